//! The topics as an AsyncAPI 3 document, made from the types that are read and written.
//!
//! `docs/asyncapi.yaml` is this document for the default names of the topics; a test compares the two.
//!
//! Source: AsyncAPI 3.0.0 with the Kafka bindings 0.5.0.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::answer::{Answer, RESULT_TYPE};
use super::control::{ORDER_TYPE, OrderJson};
use super::dead_letter::{
    ATTEMPTS_HEADER, EARLIER_CHUNKS_HEADER, HEADERS_OMITTED_HEADER, KEY_OMITTED_HEADER, REASON_HEADER,
    REQUEST_ID_HEADER, RETRY_AFTER_HEADER, Reason, Stage, VALUE_OMITTED_HEADER,
};
use super::event::{EVENT_TYPE, Event};
use super::label::LABEL_TYPE;
use super::redrive::{REDRIVE_TYPE, RedriveMark};
use super::request::{CHUNK_TYPE, Priority, REQUEST_TYPE};

mod yaml;

pub use yaml::to_yaml;

/// Names of the topics.
#[derive(Clone, Copy, Debug)]
pub struct Addresses<'a> {
    /// Requests.
    pub requests: &'a str,
    /// Answers.
    pub results: &'a str,
    /// Labelled samples and corrections.
    pub labels: &'a str,
    /// Orders.
    pub control: &'a str,
    /// Events.
    pub events: &'a str,
    /// Dead letters.
    pub dead_letters: &'a str,
}

/// A header: name, schema, meaning.
type Header = (&'static str, Value, &'static str);

/// The document.
pub fn document(addresses: &Addresses<'_>) -> Value {
    // References point into the document, in the dialect that AsyncAPI's own schemas extend.
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut written = settings.clone().for_serialize().into_generator();
    let mut read = settings.for_deserialize().into_generator();
    let messages = json!({
        "request": {
            "title": "A recording and what to do with it",
            "summary": "CloudEvents 1.0, binary mode: the value is the audio as it is. The smallest request is a value and nothing else.",
            "headers": headers(&[request_headers(), vec![of_type(REQUEST_TYPE)]].concat(), &[]),
            "payload": bytes(),
            "bindings": key("The caller's: the answer has the same, byte for byte. Requests of one key take turns with those of the others."),
        },
        "structuredRequest": {
            "title": "A recording and what to do with it, as one JSON event",
            "summary": "CloudEvents 1.0, structured mode: attributes without the prefix `ce_`, the audio in `data_base64`.",
            "contentType": "application/cloudevents+json",
            "headers": headers(&[("content-type", constant("application/cloudevents+json"), "Says that the value is an event.")], &["content-type"]),
            "payload": structured(),
        },
        "chunk": {
            "title": "A chunk of a stream",
            "summary": "Chunks of one session have one key, so that they stay in order.",
            "headers": headers(
                &[request_headers(), chunk_headers(), vec![of_type(CHUNK_TYPE)]].concat(),
                &["ce_type", "ce_session", "ce_sequence"],
            ),
            "payload": bytes(),
        },
        "sample": {
            "title": "A labelled sample",
            "headers": headers(&[request_headers(), target_header(), vec![of_type(LABEL_TYPE)]].concat(), &["ce_target"]),
            "payload": bytes(),
        },
        "correction": {
            "title": "The right answer to an earlier request",
            "summary": "The value is empty.",
            "headers": headers(&[correction_headers(), target_header(), vec![of_type(LABEL_TYPE)]].concat(), &["ce_target", "ce_subject"]),
            "payload": { "type": "null" },
        },
        "order": {
            "title": "An order to the pipeline",
            "contentType": "application/json",
            "headers": headers(&[of_type(ORDER_TYPE)], &[]),
            "payload": schema::<OrderJson>(&mut read),
        },
        "answer": {
            "title": "An answer, or the beginning of one",
            "contentType": "application/json",
            "headers": headers(&[event_headers(RESULT_TYPE, ID_STAYS), vec![
                ("ce_subject", text(), "Id of the request."),
                ("ce_subjectsource", text(), "Source of the request, where it has one."),
                ("traceparent", text(), "W3C trace context: the trace of the request, our span."),
                ("tracestate", text(), "W3C trace context, as the request brought it."),
            ]].concat(), &["ce_id", "ce_type", "ce_subject"]),
            "payload": schema::<Answer>(&mut written),
            "bindings": key("The request's."),
        },
        "event": {
            "title": "Something that happened to training, adapters, orders or records",
            "contentType": "application/json",
            "headers": headers(&event_headers(EVENT_TYPE, ID_OF_EVENT), &["ce_id", "ce_type"]),
            "payload": schema::<Event>(&mut written),
            "bindings": key("Run, adapter version, order, or partition."),
        },
        "deadLetter": {
            "title": "A record that could not be answered, labelled or carried out",
            "summary": "Key, value and headers of the record byte for byte, and behind them these headers.",
            "headers": headers(&dead_letter_headers(), &[REASON_HEADER, ATTEMPTS_HEADER]),
            "payload": bytes(),
            "bindings": key("The record's."),
        },
        "redriveMark": {
            "title": "What became of a dead letter",
            "contentType": "application/json",
            "headers": headers(&event_headers(REDRIVE_TYPE, ID_STAYS), &["ce_id", "ce_type"]),
            "payload": schema::<RedriveMark>(&mut written),
            "bindings": key("The dead letter's."),
        },
    });
    let mut schemas = read.take_definitions(true);
    schemas.extend(written.take_definitions(true));
    json!({
        "asyncapi": "3.0.0",
        "id": "urn:speechverse",
        "info": {
            "title": "speechverse",
            "version": "1",
            "description": "Requests about audio, answers, labelled samples, orders, events and dead letters on Kafka topics. How names are read and how this document may change is described in docs/TOPICS.md.",
            "license": { "name": "Apache-2.0" },
        },
        "defaultContentType": "application/octet-stream",
        "channels": {
            "requests": channel(addresses.requests, &["request", "structuredRequest", "chunk"]),
            "results": channel(addresses.results, &["answer"]),
            "labels": channel(addresses.labels, &["sample", "correction"]),
            "control": channel(addresses.control, &["order"]),
            "events": channel(addresses.events, &["event"]),
            "deadLetters": channel(addresses.dead_letters, &["deadLetter", "redriveMark"]),
            "replies": {
                "address": null,
                "description": "Where `ce_replytopic` asks for the answers; one of the topics that the operator lists.",
                "messages": { "answer": { "$ref": "#/components/messages/answer" } },
            },
        },
        "operations": {
            "answerRequests": {
                "action": "receive",
                "channel": { "$ref": "#/channels/requests" },
                "reply": {
                    "address": { "location": "$message.header#/ce_replytopic", "description": "The topic of results where absent." },
                    "channel": { "$ref": "#/channels/replies" },
                },
            },
            "publishAnswers": { "action": "send", "channel": { "$ref": "#/channels/results" } },
            "keepSamples": { "action": "receive", "channel": { "$ref": "#/channels/labels" } },
            "carryOutOrders": { "action": "receive", "channel": { "$ref": "#/channels/control" } },
            "publishEvents": { "action": "send", "channel": { "$ref": "#/channels/events" } },
            "setAside": { "action": "send", "channel": { "$ref": "#/channels/deadLetters" } },
        },
        "components": { "messages": messages, "schemas": schemas },
    })
}

fn channel(address: &str, messages: &[&str]) -> Value {
    let messages: Map<String, Value> = messages
        .iter()
        .map(|name| {
            (
                (*name).to_owned(),
                json!({ "$ref": format!("#/components/messages/{name}") }),
            )
        })
        .collect();
    json!({ "address": address, "messages": messages })
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// An object with a property for each header; others may be there too.
fn headers(headers: &[Header], required: &[&str]) -> Value {
    let properties: Map<String, Value> = headers
        .iter()
        .map(|(name, schema, meaning)| {
            let mut schema = schema.clone();
            schema["description"] = (*meaning).into();
            ((*name).to_owned(), schema)
        })
        .collect();
    match required {
        [] => json!({ "type": "object", "properties": properties }),
        required => json!({ "type": "object", "properties": properties, "required": required }),
    }
}

fn key(meaning: &str) -> Value {
    json!({ "kafka": { "key": { "type": "string", "format": "binary", "description": meaning }, "bindingVersion": "0.5.0" } })
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn bytes() -> Value {
    json!({ "type": "string", "format": "binary" })
}

fn number() -> Value {
    json!({ "type": "string", "pattern": "^[0-9]+$" })
}

fn flag() -> Value {
    json!({ "type": "string", "enum": ["true", "yes", "1", "false", "no", "0"] })
}

fn time() -> Value {
    json!({ "type": "string", "format": "date-time" })
}

fn constant(text: &str) -> Value {
    json!({ "type": "string", "const": text })
}

fn one_of(names: impl Iterator<Item = &'static str>) -> Value {
    json!({ "type": "string", "enum": names.collect::<Vec<_>>() })
}

fn of_type(name: &str) -> Header {
    ("ce_type", constant(name), "What the record is.")
}

fn request_headers() -> Vec<Header> {
    let json_of =
        |what: &str| json!({ "type": "string", "contentMediaType": "application/json", "examples": [what] });
    vec![
        (
            "content-type",
            text(),
            "Type of the audio, such as `audio/wav` or `audio/L16;rate=16000;channels=1`; absent: seen from the bytes.",
        ),
        (
            "ce_id",
            text(),
            "Id of the request; absent: `topic/partition/offset`.",
        ),
        (
            "ce_source",
            text(),
            "Who asks: source and id together name a request.",
        ),
        (
            "ce_instruction",
            text(),
            "The instruction, UTF-8; absent: the task's, else the configured one.",
        ),
        (
            "ce_task",
            text(),
            "A configured task, or several with commas between them.",
        ),
        (
            "ce_labels",
            json_of(r#"["yes","no"]"#),
            "A JSON array of the allowed answers.",
        ),
        (
            "ce_fields",
            json_of(r#"{"target_lang":"de"}"#),
            "A JSON object of values for the places of the task's prompt.",
        ),
        (
            "ce_constrain",
            flag(),
            "Whether the answer is constrained to the labels; absent: not under an instruction of its own that lists none.",
        ),
        (
            "ce_jsonschema",
            json_of(r#"{"type":"integer"}"#),
            "A JSON schema that the answer is valid under; without labels, one form at most.",
        ),
        (
            "ce_regex",
            json!({ "type": "string", "examples": ["[0-9]{2}:[0-9]{2}"] }),
            "A regular expression that matches the whole answer.",
        ),
        (
            "ce_grammar",
            json!({ "type": "string", "examples": [r#"start: "yes" | "no""#] }),
            "A grammar, as llguidance reads Lark, that the answer is a text of.",
        ),
        ("ce_maxtokens", number(), "Most answer tokens."),
        (
            "ce_deadline",
            time(),
            "Not answered after this time: it becomes a dead letter then.",
        ),
        (
            "ce_priority",
            one_of(Priority::ALL.iter().map(|priority| priority.as_str())),
            "Absent: interactive.",
        ),
        (
            "ce_partials",
            flag(),
            "Whether the text so far is wanted while the answer is made.",
        ),
        (
            "ce_wordtimes",
            flag(),
            "Whether a transcript is to say when its words are said: `words` in the answer.",
        ),
        (
            "ce_replytopic",
            text(),
            "Topic for the answers, one of those that the operator lists; absent: the topic of results.",
        ),
        (
            "ce_bargein",
            flag(),
            "Whether it ends the answers in progress of its session (`ce_session`, `ce_source`).",
        ),
        ("ce_session", text(), "Stream or conversation that it belongs to."),
        ("ce_train", flag(), "`no`: it must not be kept for training."),
        (
            "traceparent",
            text(),
            "W3C trace context, continued in the answer.",
        ),
        ("tracestate", text(), "W3C trace context, carried through."),
        (
            ATTEMPTS_HEADER,
            number(),
            "Which attempt it is; set when a dead letter is published again.",
        ),
    ]
}

fn chunk_headers() -> Vec<Header> {
    vec![
        ("ce_sequence", number(), "Number of the chunk, from 0."),
        ("ce_final", flag(), "Whether it is the last one."),
    ]
}

fn target_header() -> Vec<Header> {
    vec![("ce_target", text(), "The right answer.")]
}

fn correction_headers() -> Vec<Header> {
    vec![
        (
            "ce_subject",
            text(),
            "Id of the request whose answer is corrected.",
        ),
        (
            "ce_subjectsource",
            text(),
            "Its source, where several senders could have used that id.",
        ),
        ("ce_source", text(), "Who corrects."),
    ]
}

/// The id of what is written again after a crash.
const ID_STAYS: &str = "The same for a repeat after a crash.";
/// The id of an event, which holds its time.
const ID_OF_EVENT: &str = "The record's key and `ce_time`, with a colon between them: an event that is told again after a crash has another one.";

fn event_headers(kind: &str, id: &'static str) -> Vec<Header> {
    vec![
        ("ce_specversion", constant("1.0"), "CloudEvents 1.0, binary mode."),
        of_type(kind),
        ("ce_source", text(), "The pipeline's name."),
        ("ce_id", text(), id),
        ("ce_time", time(), "When it was written."),
        ("content-type", constant("application/json"), "Type of the value."),
    ]
}

fn dead_letter_headers() -> Vec<Header> {
    let reasons = || one_of(Reason::ALL.iter().map(|reason| reason.as_str()));
    vec![
        ("__connect.errors.topic", text(), "Topic of the record."),
        ("__connect.errors.partition", number(), "Its partition."),
        ("__connect.errors.offset", number(), "Its offset."),
        (
            "__connect.errors.stage",
            one_of(Stage::ALL.iter().map(|stage| stage.as_str())),
            "The stage that found the reason.",
        ),
        (
            "__connect.errors.class.name",
            constant("speechverse"),
            "This program.",
        ),
        ("__connect.errors.exception.class.name", reasons(), "The reason."),
        (
            "__connect.errors.exception.message",
            text(),
            "What is wrong, where, and what to do.",
        ),
        (REASON_HEADER, reasons(), "The reason."),
        (ATTEMPTS_HEADER, number(), "How often the record was tried."),
        (
            RETRY_AFTER_HEADER,
            time(),
            "From when on trying again makes sense; only for a reason that can heal.",
        ),
        (
            EARLIER_CHUNKS_HEADER,
            number(),
            "For how many chunks before it this one stands.",
        ),
        (
            REQUEST_ID_HEADER,
            text(),
            "Id of the stream's request, where it stands for other chunks too: that of the first one.",
        ),
        (
            VALUE_OMITTED_HEADER,
            number(),
            "Bytes of the value, which the broker refused or a stream did not keep.",
        ),
        (
            HEADERS_OMITTED_HEADER,
            number(),
            "How many headers the broker refused or a stream did not keep.",
        ),
        (
            KEY_OMITTED_HEADER,
            number(),
            "Bytes of the key, which the broker refused or a stream did not keep.",
        ),
    ]
}

/// A request in structured mode: its attributes are the request's headers without the prefix.
fn structured() -> Value {
    let mut properties = Map::new();
    for (name, schema, meaning) in [request_headers(), chunk_headers()].concat() {
        let Some(attribute) = name.strip_prefix("ce_") else {
            continue;
        };
        let mut schema = match name {
            "ce_labels" => json!({ "type": "array", "items": text() }),
            "ce_fields" => json!({ "type": "object", "additionalProperties": text() }),
            _ if schema == number() => json!({ "type": "integer", "minimum": 0 }),
            _ if schema == flag() => json!({ "type": "boolean" }),
            _ => schema,
        };
        schema["description"] = meaning.into();
        properties.insert(attribute.to_owned(), schema);
    }
    for (name, schema, meaning) in [
        ("specversion", constant("1.0"), "CloudEvents 1.0."),
        (
            "type",
            one_of([REQUEST_TYPE, CHUNK_TYPE].into_iter()),
            "What the event is.",
        ),
        ("datacontenttype", text(), "Type of the audio."),
        (
            "data_base64",
            json!({ "type": "string", "contentEncoding": "base64" }),
            "The audio.",
        ),
    ] {
        let mut schema = schema;
        schema["description"] = meaning.into();
        properties.insert(name.to_owned(), schema);
    }
    json!({ "type": "object", "properties": properties, "required": ["specversion", "data_base64"] })
}

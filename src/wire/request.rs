//! Requests: audio and what is to be done with it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use super::headers::{cloud_event_headers, header};
use super::incoming::{Incoming, Limits, reject};
use super::{OutgoingRecord, Reason, Record, Rejection, TraceContext};

/// `ce_type` of a request with the whole audio.
pub(super) const REQUEST_TYPE: &str = "speechverse.request.v1";
/// `ce_type` of one chunk of a stream.
pub(super) const CHUNK_TYPE: &str = "speechverse.chunk.v1";

/// What a configured task brings along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskDefaults {
    /// The task's instruction.
    pub instruction: String,
    /// Allowed answers; empty for free text.
    pub labels: Vec<String>,
    /// Most tokens of an answer; `None` for the general default.
    pub max_tokens: Option<u32>,
}

/// Knows the configured tasks.
pub trait InstructionSource: Send + Sync {
    /// The task of this name, `None` when there is none.
    fn task(&self, name: &str) -> Option<TaskDefaults>;
}

impl<F: Fn(&str) -> Option<TaskDefaults> + Send + Sync> InstructionSource for F {
    fn task(&self, name: &str) -> Option<TaskDefaults> {
        self(name)
    }
}

/// What holds for a request that says nothing else.
#[derive(Clone)]
pub struct RequestDefaults {
    /// The configured tasks.
    pub tasks: Arc<dyn InstructionSource>,
    /// Instruction of a request that has neither an instruction nor a task; `None` makes that a mistake.
    pub instruction: Option<String>,
    /// Most tokens of an answer when the request does not say.
    pub max_tokens: u32,
    /// Most tokens that a request may ask for; a larger wish is lowered to this, and an answer that ends there says
    /// `truncated`.
    pub max_tokens_max: u32,
    /// Time that an answer may take when the request sets no deadline, from when the record is read.
    pub deadline: Option<Duration>,
    /// Whether partial answers are sent when the request does not say.
    pub partials: bool,
    /// How large parts may be.
    pub limits: Limits,
}

impl Default for RequestDefaults {
    fn default() -> Self {
        Self {
            tasks: Arc::new(|_: &str| None),
            instruction: None,
            max_tokens: 256,
            max_tokens_max: 1024,
            deadline: None,
            partials: false,
            limits: Limits::default(),
        }
    }
}

/// Whole audio, or a part of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// The value is all of it.
    Whole,
    /// The value is one chunk; the session has the rest.
    Chunk,
}

/// A request that makes sense; its audio has not been looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// `ce_id`, or `topic/partition/offset`.
    pub id: String,
    /// Whole audio or a chunk.
    pub kind: RequestKind,
    /// The stream that a chunk belongs to, always there for one; a mere mark on whole audio.
    pub session: Option<String>,
    /// Number of a chunk from 0, always there for one.
    pub sequence: Option<u64>,
    /// Whether this is the last chunk; always true for whole audio.
    pub is_final: bool,
    /// `ce_task`, which is configured.
    pub task: Option<String>,
    /// The instruction: the request's, else the task's, else the default.
    pub instruction: String,
    /// Allowed answers: the request's, else the task's; empty for free text.
    pub labels: Vec<String>,
    /// Most tokens of the answer.
    pub max_tokens: u32,
    /// When an answer is of no use any more.
    pub deadline: Option<Timestamp>,
    /// Whether partial answers are wanted.
    pub partials: bool,
    /// Whether the audio may be kept for training; `None` leaves it to the configuration.
    pub train: Option<bool>,
    /// Type of the audio as declared.
    pub content_type: Option<String>,
    /// The audio; empty only for the last chunk of a stream, where it is a mere end mark.
    pub audio: Bytes,
    /// The record's key, for the answer.
    pub key: Option<Bytes>,
    /// The span of this request.
    pub trace: TraceContext,
}

/// Reads a record of the request topic.
///
/// `now` is the time that deadlines are compared with.
///
/// # Errors
/// A [`Rejection`] of stage `parse`.
pub fn parse_request(
    record: &Record,
    defaults: &RequestDefaults,
    now: Timestamp,
) -> Result<Request, Rejection> {
    let incoming = Incoming::new(record, &defaults.limits)?;
    incoming.check_version()?;
    let session = incoming.name("session")?;
    let sequence = incoming.number::<u64>("sequence")?;
    let kind = match incoming.attribute("type")?.as_deref() {
        Some(REQUEST_TYPE) => RequestKind::Whole,
        Some(CHUNK_TYPE) => RequestKind::Chunk,
        // The smallest client sends no type; a sequence number is what tells a chunk from whole audio then.
        None if sequence.is_some() => RequestKind::Chunk,
        None => RequestKind::Whole,
        Some(other) => {
            let found: String = other.chars().take(60).collect();
            let message =
                format!("`ce_type` is `{found}`, expected `{REQUEST_TYPE}` or `{CHUNK_TYPE}`");
            return reject(Reason::UnknownType, message);
        }
    };
    if kind == RequestKind::Chunk && (session.is_none() || sequence.is_none()) {
        let message = "a chunk needs `ce_session` and `ce_sequence`";
        return reject(Reason::MalformedHeader, message);
    }
    let is_final = kind == RequestKind::Whole || incoming.flag("final")?.unwrap_or(false);

    let (task, task_defaults) = task(&incoming, defaults)?;
    let Some(instruction) = incoming
        .instruction()?
        .or_else(|| task_defaults.as_ref().map(|task| task.instruction.clone()))
        .or_else(|| defaults.instruction.clone())
    else {
        let message =
            "there is neither `ce_instruction` nor `ce_task`, and no default is configured";
        return reject(Reason::MissingInstruction, message);
    };
    let task_defaults = task_defaults.unwrap_or_default();
    let labels = incoming.labels()?.unwrap_or(task_defaults.labels);
    let max_tokens = incoming.number::<u32>("maxtokens")?;
    if max_tokens == Some(0) {
        return reject(
            Reason::MalformedHeader,
            "`ce_maxtokens` is 0, expected at least 1",
        );
    }
    let max_tokens = max_tokens
        .or(task_defaults.max_tokens)
        .unwrap_or(defaults.max_tokens);

    let deadline = incoming.time("deadline")?;
    if let Some(deadline) = deadline
        && deadline <= now
    {
        let message = format!("the deadline {deadline} is past, it is {now}");
        return reject(Reason::DeadlineExceeded, message);
    }
    let deadline = deadline.or_else(|| now.checked_add(defaults.deadline?).ok());

    let audio = incoming.data();
    if audio.is_none() && !(kind == RequestKind::Chunk && is_final) {
        return reject(Reason::EmptyValue, "the value is empty, expected audio");
    }
    Ok(Request {
        id: incoming.id()?,
        kind,
        session,
        sequence,
        is_final,
        task,
        instruction,
        labels,
        max_tokens: max_tokens.min(defaults.max_tokens_max),
        deadline,
        partials: incoming.flag("partials")?.unwrap_or(defaults.partials),
        train: incoming.flag("train")?,
        content_type: incoming.content_type()?,
        audio: audio.unwrap_or_default(),
        key: record.key.clone(),
        trace: incoming.trace(),
    })
}

/// The task that a record names, and what it brings along.
pub(super) fn task(
    incoming: &Incoming<'_>,
    defaults: &RequestDefaults,
) -> Result<(Option<String>, Option<TaskDefaults>), Rejection> {
    let Some(name) = incoming.name("task")? else {
        return Ok((None, None));
    };
    match defaults.tasks.task(&name) {
        Some(task) => Ok((Some(name), Some(task))),
        None => {
            let message = format!("task `{}` is not configured", name.escape_debug());
            reject(Reason::UnknownTask, message)
        }
    }
}

/// A request to be sent: what is `None` or empty is left to the receiver.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewRequest {
    /// The request's id, unique under its source.
    pub id: String,
    /// Who asks, a URI reference such as `/speechverse/cli`.
    pub source: String,
    /// The instruction.
    pub instruction: Option<String>,
    /// Name of a configured task.
    pub task: Option<String>,
    /// Allowed answers.
    pub labels: Vec<String>,
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
    /// When an answer is of no use any more.
    pub deadline: Option<Timestamp>,
    /// Whether partial answers are wanted.
    pub partials: Option<bool>,
    /// Whether the audio may be kept for training.
    pub train: Option<bool>,
    /// Session, number and whether it is the last, for one chunk of a stream.
    pub chunk: Option<(String, u64, bool)>,
    /// Type of the audio.
    pub content_type: Option<String>,
    /// The trace to continue.
    pub trace: Option<TraceContext>,
}

impl NewRequest {
    /// The record in binary mode.
    pub fn to_record(
        &self,
        topic: Arc<str>,
        key: Option<Bytes>,
        audio: Bytes,
        time: Timestamp,
    ) -> OutgoingRecord {
        let kind = if self.chunk.is_some() {
            CHUNK_TYPE
        } else {
            REQUEST_TYPE
        };
        let content_type = self.content_type.as_deref();
        let mut headers = cloud_event_headers(
            kind,
            &self.id,
            &self.source,
            time,
            content_type,
            self.trace.as_ref(),
        );
        let mut attribute = |name: &str, value: Option<String>| {
            headers.extend(value.map(|value| header(format!("ce_{name}"), value)));
        };
        attribute("instruction", self.instruction.clone());
        attribute("task", self.task.clone());
        attribute(
            "labels",
            (!self.labels.is_empty()).then(|| labels_json(&self.labels)),
        );
        attribute(
            "maxtokens",
            self.max_tokens.map(|tokens| tokens.to_string()),
        );
        attribute("deadline", self.deadline.map(|time| time.to_string()));
        attribute("partials", self.partials.map(|flag| flag.to_string()));
        attribute(
            "train",
            self.train
                .map(|flag| if flag { "yes" } else { "no" }.to_owned()),
        );
        if let Some((session, sequence, is_final)) = &self.chunk {
            attribute("session", Some(session.clone()));
            attribute("sequence", Some(sequence.to_string()));
            attribute("final", Some(is_final.to_string()));
        }
        OutgoingRecord {
            topic,
            key,
            value: Some(audio),
            headers,
        }
    }
}

/// The value of `ce_labels`.
pub(super) fn labels_json(labels: &[String]) -> String {
    serde_json::Value::from(labels).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::Receipt;

    pub(in crate::wire) fn record(value: &[u8], headers: &[(&str, &[u8])]) -> Record {
        Record {
            receipt: Receipt {
                topic: "speechverse.requests".into(),
                partition: 2,
                offset: 17,
                epoch: 0,
            },
            key: Some(Bytes::from_static(b"caller")),
            value: Some(Bytes::copy_from_slice(value)),
            headers: headers
                .iter()
                .map(|(name, value)| header(*name, Bytes::copy_from_slice(value)))
                .collect(),
            timestamp_ms: None,
        }
    }

    fn now() -> Timestamp {
        "2030-01-01T00:00:00Z".parse().unwrap()
    }

    fn defaults() -> RequestDefaults {
        RequestDefaults {
            tasks: Arc::new(|name: &str| match name {
                "asr" => Some(TaskDefaults {
                    instruction: "Transcribe the speech.".to_owned(),
                    ..TaskDefaults::default()
                }),
                "intent" => Some(TaskDefaults {
                    instruction: "What does the speaker want?".to_owned(),
                    labels: vec!["light on".to_owned(), "light off".to_owned()],
                    max_tokens: Some(8),
                }),
                _ => None,
            }),
            instruction: Some("Listen.".to_owned()),
            ..RequestDefaults::default()
        }
    }

    fn parse(value: &[u8], headers: &[(&str, &[u8])]) -> Result<Request, Rejection> {
        parse_request(&record(value, headers), &defaults(), now())
    }

    fn reason(value: &[u8], headers: &[(&str, &[u8])]) -> Reason {
        let rejection = parse(value, headers).expect_err("the record is bad");
        assert_eq!(rejection.stage, crate::wire::Stage::Parse);
        rejection.reason
    }

    #[test]
    fn the_smallest_request_is_a_value_and_nothing_else() {
        let request = parse(b"audio", &[]).unwrap();

        assert_eq!(
            request,
            Request {
                id: "speechverse.requests/2/17".to_owned(),
                kind: RequestKind::Whole,
                session: None,
                sequence: None,
                is_final: true,
                task: None,
                instruction: "Listen.".to_owned(),
                labels: Vec::new(),
                max_tokens: 256,
                deadline: None,
                partials: false,
                train: None,
                content_type: None,
                audio: Bytes::from_static(b"audio"),
                key: Some(Bytes::from_static(b"caller")),
                trace: request.trace.clone(),
            }
        );
    }

    #[test]
    fn every_header_of_the_contract_is_read() {
        let request = parse(
            b"audio",
            &[
                ("content-type", b"audio/wav"),
                ("ce_specversion", b"1.0"),
                ("ce_id", b"r-1"),
                ("ce_type", b"speechverse.chunk.v1"),
                (
                    "ce_instruction",
                    "  Schreibe auf, was gesagt wird: äöü. ".as_bytes(),
                ),
                ("ce_task", b"asr"),
                ("ce_labels", br#"["yes","no"]"#),
                ("ce_maxtokens", b"12"),
                ("ce_deadline", b"2030-01-01T01:00:00+00:30"),
                ("ce_partials", b"true"),
                ("ce_session", b"s"),
                ("ce_sequence", b"3"),
                ("ce_final", b"true"),
                ("ce_train", b"no"),
                (
                    "traceparent",
                    b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                ),
                ("tracestate", b"a=b"),
            ],
        )
        .unwrap();

        assert_eq!(request.content_type.as_deref(), Some("audio/wav"));
        assert_eq!(request.id, "r-1");
        assert_eq!(request.kind, RequestKind::Chunk);
        assert_eq!(request.instruction, "Schreibe auf, was gesagt wird: äöü.");
        assert_eq!(request.task.as_deref(), Some("asr"));
        assert_eq!(request.labels, ["yes", "no"]);
        assert_eq!(request.max_tokens, 12);
        assert_eq!(
            request.deadline,
            Some("2030-01-01T00:30:00Z".parse().unwrap())
        );
        assert!(request.partials && request.is_final);
        assert_eq!(
            (request.session.as_deref(), request.sequence),
            (Some("s"), Some(3))
        );
        assert_eq!(request.train, Some(false));
        assert_eq!(request.trace.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_ne!(request.trace.span_id(), "00f067aa0ba902b7");
    }

    #[test]
    fn a_structured_event_says_the_same_as_a_binary_one() {
        let event = br#"{"specversion":"1.0","type":"speechverse.request.v1","id":"r-2","source":"/me",
            "datacontenttype":"audio/flac","instruction":"Write.","labels":["a","b"],"maxtokens":5,"partials":true,
            "train":"no","task":null,"subject":"ignored","data_base64":"AAEC/w=="}"#;

        let request = parse(
            event,
            &[(
                "Content-Type",
                b"Application/CloudEvents+JSON; charset=utf-8",
            )],
        )
        .unwrap();

        assert_eq!(
            (request.id.as_str(), request.instruction.as_str()),
            ("r-2", "Write.")
        );
        assert_eq!(request.content_type.as_deref(), Some("audio/flac"));
        assert_eq!(request.audio, Bytes::from_static(&[0, 1, 2, 255]));
        assert_eq!(request.labels, ["a", "b"]);
        assert_eq!(
            (request.max_tokens, request.partials, request.train),
            (5, true, Some(false))
        );
    }

    #[test]
    fn a_task_brings_its_instruction_labels_and_length() {
        let request = parse(b"audio", &[("ce_task", b"intent")]).unwrap();

        assert_eq!(request.instruction, "What does the speaker want?");
        assert_eq!(request.labels, ["light on", "light off"]);
        assert_eq!(request.max_tokens, 8);
    }

    #[test]
    fn a_wish_for_too_many_tokens_is_lowered() {
        assert_eq!(
            parse(b"a", &[("ce_maxtokens", b"999999")])
                .unwrap()
                .max_tokens,
            1024
        );
    }

    #[test]
    fn a_default_deadline_starts_when_the_record_is_read() {
        let defaults = RequestDefaults {
            deadline: Some(Duration::from_secs(90)),
            ..defaults()
        };

        let request = parse_request(&record(b"a", &[]), &defaults, now()).unwrap();

        assert_eq!(
            request.deadline,
            Some("2030-01-01T00:01:30Z".parse().unwrap())
        );
    }

    #[test]
    fn a_sequence_number_alone_makes_a_chunk_and_an_empty_last_one_ends_it() {
        let chunk = parse(b"a", &[("ce_session", b"s"), ("ce_sequence", b"0")]).unwrap();
        assert_eq!((chunk.kind, chunk.is_final), (RequestKind::Chunk, false));

        let end: [(&str, &[u8]); 3] = [
            ("ce_session", b"s"),
            ("ce_sequence", b"1"),
            ("ce_final", b"true"),
        ];
        assert_eq!(parse(b"", &end).unwrap().audio.len(), 0);
        assert_eq!(reason(b"", &end[..2]), Reason::EmptyValue);
    }

    #[test]
    fn every_bad_header_has_its_reason() {
        let long = vec![b'x'; 1_000_000];
        let many = labels_json(&(0..1_001).map(|n| n.to_string()).collect::<Vec<_>>());
        let structured = ("content-type", &b"application/cloudevents+json"[..]);
        type Case<'a> = (Reason, &'a [u8], &'a [(&'a str, &'a [u8])]);
        let cases: [Case<'_>; 34] = [
            (Reason::EmptyValue, b"", &[]),
            (
                Reason::InstructionTooLong,
                b"a",
                &[("ce_instruction", &long)],
            ),
            (
                Reason::InstructionNotUtf8,
                b"a",
                &[("ce_instruction", b"\xff\xfe")],
            ),
            (Reason::UnknownTask, b"a", &[("ce_task", b"juggle")]),
            (Reason::MalformedHeader, b"a", &[("ce_task", b"\xff")]),
            (Reason::MalformedHeader, b"a", &[("ce_id", &long)]),
            (Reason::MalformedHeader, b"a", &[("ce_id", b"a\nb")]),
            (Reason::MalformedHeader, b"a", &[("ce_id", b"\xc3\x28")]),
            (Reason::MalformedHeader, b"a", &[("content-type", b"\xff")]),
            (Reason::MalformedHeader, b"a", &[("ce_specversion", b"0.3")]),
            (
                Reason::UnknownType,
                b"a",
                &[("ce_type", b"com.example.other")],
            ),
            (Reason::MalformedLabels, b"a", &[("ce_labels", b"yes,no")]),
            (Reason::MalformedLabels, b"a", &[("ce_labels", b"[]")]),
            (Reason::MalformedLabels, b"a", &[("ce_labels", b"[1,2]")]),
            (
                Reason::MalformedLabels,
                b"a",
                &[("ce_labels", br#"["a","a"]"#)],
            ),
            (
                Reason::MalformedLabels,
                b"a",
                &[("ce_labels", br#"["a"," "]"#)],
            ),
            (
                Reason::MalformedLabels,
                b"a",
                &[("ce_labels", many.as_bytes())],
            ),
            (Reason::MalformedLabels, b"a", &[("ce_labels", &long)]),
            (Reason::MalformedHeader, b"a", &[("ce_maxtokens", b"0")]),
            (Reason::MalformedHeader, b"a", &[("ce_maxtokens", b"-3")]),
            (
                Reason::MalformedHeader,
                b"a",
                &[("ce_maxtokens", b"99999999999")],
            ),
            (
                Reason::MalformedHeader,
                b"a",
                &[("ce_deadline", b"tomorrow")],
            ),
            (
                Reason::DeadlineExceeded,
                b"a",
                &[("ce_deadline", b"2029-12-31T23:59:59Z")],
            ),
            (Reason::MalformedHeader, b"a", &[("ce_partials", b"maybe")]),
            (Reason::MalformedHeader, b"a", &[("ce_train", b"later")]),
            (
                Reason::MalformedHeader,
                b"a",
                &[("ce_type", b"speechverse.chunk.v1")],
            ),
            (Reason::MalformedHeader, b"a", &[("ce_sequence", b"1")]),
            (
                Reason::MalformedHeader,
                b"a",
                &[("ce_session", b"s"), ("ce_sequence", b"-1")],
            ),
            (Reason::MalformedEvent, b"not json", &[structured]),
            (Reason::MalformedEvent, b"[1]", &[structured]),
            (
                Reason::MalformedEvent,
                br#"{"data_base64":"*"}"#,
                &[structured],
            ),
            (
                Reason::MalformedEvent,
                br#"{"data_base64":"AA==","data":1}"#,
                &[structured],
            ),
            (
                Reason::MalformedEvent,
                br#"{"id":{},"data_base64":"AA=="}"#,
                &[structured],
            ),
            (
                Reason::MalformedEvent,
                b"[]",
                &[("content-type", b"application/cloudevents-batch+json")],
            ),
        ];

        for (expected, value, headers) in cases {
            let found = reason(value, headers);
            let name = headers
                .first()
                .map(|(name, value)| (name, value.len().min(20)));
            assert_eq!(found, expected, "{name:?}");
        }
    }

    #[test]
    fn without_any_default_an_instruction_is_needed() {
        let defaults = RequestDefaults::default();

        let rejection = parse_request(&record(b"a", &[]), &defaults, now()).unwrap_err();

        assert_eq!(rejection.reason, Reason::MissingInstruction);
    }

    #[test]
    fn a_value_over_the_limit_is_refused_in_both_modes() {
        let limits = Limits {
            value_bytes_max: 10,
            ..Limits::default()
        };
        let defaults = RequestDefaults {
            limits,
            ..defaults()
        };
        let structured = [("content-type", &b"application/cloudevents+json"[..])];
        let event = format!(r#"{{"data_base64":"{}"}}"#, "A".repeat(16));

        for record in [
            record(&[b'x'; 11], &[]),
            record(event.as_bytes(), &structured),
        ] {
            let rejection = parse_request(&record, &defaults, now()).unwrap_err();
            assert_eq!(rejection.reason, Reason::ValueTooLarge);
        }
    }

    #[test]
    fn a_malformed_trace_is_a_new_trace() {
        let request = parse(b"a", &[("traceparent", b"\xff\xff"), ("tracestate", b"x")]).unwrap();

        assert_eq!(request.trace.trace_id().len(), 32);
    }

    fn text() -> impl Strategy<Value = String> {
        "[a-zA-Z0-9äß._/-]{1,20}"
    }

    proptest! {
        #[test]
        fn a_request_that_is_sent_is_read_as_it_was_meant(
            (id, source, instruction) in (text(), text(), prop::option::of(text())),
            labels in prop::collection::hash_set(text(), 0..5),
            max_tokens in prop::option::of(1_u32..1_000),
            seconds in prop::option::of(1_i64..1_000_000),
            (partials, train) in (prop::option::of(any::<bool>()), prop::option::of(any::<bool>())),
            chunk in prop::option::of((text(), any::<u64>(), any::<bool>())),
            content_type in prop::option::of(text()),
            audio in prop::collection::vec(any::<u8>(), 1..50),
        ) {
            let trace = TraceContext::begin();
            let deadline = seconds.map(|s| Timestamp::from_second(now().as_second() + s).unwrap());
            let sent = NewRequest {
                id, source, instruction, task: Some("asr".to_owned()), labels: labels.into_iter().collect(),
                max_tokens, deadline, partials, train, chunk, content_type, trace: Some(trace.clone()),
            };

            let outgoing = sent.to_record("t".into(), None, Bytes::from(audio.clone()), now());
            let record = Record {
                receipt: Receipt { topic: "t".into(), partition: 0, offset: 0, epoch: 0 },
                key: outgoing.key, value: outgoing.value, headers: outgoing.headers, timestamp_ms: None,
            };
            let got = parse_request(&record, &defaults(), now()).unwrap();

            prop_assert_eq!(got.id, sent.id);
            prop_assert_eq!(got.instruction, sent.instruction.unwrap_or("Transcribe the speech.".to_owned()));
            prop_assert_eq!(got.labels, sent.labels);
            prop_assert_eq!(got.max_tokens, sent.max_tokens.unwrap_or(256));
            prop_assert_eq!(got.deadline, sent.deadline);
            prop_assert_eq!(got.partials, sent.partials.unwrap_or(false));
            prop_assert_eq!(got.train, sent.train);
            prop_assert_eq!(got.content_type, sent.content_type);
            prop_assert_eq!(got.audio, audio);
            prop_assert_eq!(got.trace.trace_id(), trace.trace_id());
            let chunk = got.session.zip(got.sequence).map(|(s, n)| (s, n, got.is_final));
            prop_assert_eq!(chunk, sent.chunk);
        }

        #[test]
        fn random_headers_and_values_never_panic(
            names in prop::collection::vec((prop::sample::select(vec![
                "content-type", "ce_id", "ce_type", "ce_instruction", "ce_task", "ce_labels", "ce_maxtokens",
                "ce_deadline", "ce_partials", "ce_session", "ce_sequence", "ce_final", "ce_train", "traceparent",
                "tracestate", "ce_specversion", "ce_target", "ce_subject",
            ]), prop::option::of(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                "[ -~]{0,40}".prop_map(String::into_bytes),
                prop::sample::select(vec!["application/cloudevents+json", "true", "1", "[\"a\"]", "1.0"])
                    .prop_map(|text| text.as_bytes().to_vec()),
            ])), 0..8),
            value in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..60),
                "\\{\"[a-z_]{0,9}\":[0-9\"a-z]{0,9}\\}".prop_map(String::into_bytes),
            ],
        ) {
            let mut record = record(&value, &[]);
            record.headers =
                names.into_iter().map(|(name, value)| (name.to_owned(), value.map(Bytes::from))).collect();

            let _ = parse_request(&record, &defaults(), now());
            let _ = crate::wire::parse_label(&record, &defaults());
            let _ = crate::wire::parse_control(&record);
        }
    }
}

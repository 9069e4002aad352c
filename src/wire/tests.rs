//! What the topics carry, held to the contract: golden messages, every bad header, and hostile records.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;

use super::answer::{Answer, AnswerKind, Flag, Timing};
use super::dead_letter::{Reason, Rejection, Stage, dead_letter};
use super::event::{Event, EventKind, Verdict};
use super::headers::Headers;
use super::label::{Correction, Label};
use super::request::{Chunk, Instructions, Priority, Request, RequestLimits};
use super::trace::TraceContext;
use super::{OutgoingRecord, Record, RecordOffset};
use crate::text::{OutputGrammar, ResolvedPrompt, TaskTable, TemplateVariables, TextError};

mod dead_letters;
mod envelope;
mod hostile;
mod orders;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

struct Configured;

impl Instructions for Configured {
    fn of_task(
        &self,
        names: &str,
        variables: &TemplateVariables,
        own: Option<&str>,
    ) -> Result<ResolvedPrompt, TextError> {
        static SHIPPED: LazyLock<TaskTable> = LazyLock::new(|| {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tasks");
            TaskTable::load(&folder).unwrap()
        });
        SHIPPED.ask(names, variables, own)
    }

    fn default_instruction(&self) -> String {
        "Listen.".to_owned()
    }
}

fn record(value: &[u8], headers: &[(&str, &[u8])]) -> Record {
    let owned = |(name, value): &(&str, &[u8])| ((*name).to_owned(), Some(Bytes::copy_from_slice(value)));
    Record {
        record_offset: RecordOffset {
            topic: "speechverse.requests".into(),
            partition: 2,
            offset: 17,
            epoch: 0,
        },
        key: Some(Bytes::from_static(b"\xffcaller")),
        value: Some(Bytes::copy_from_slice(value)),
        headers: headers.iter().map(owned).collect(),
        timestamp_ms: None,
    }
}

fn request(value: &[u8], headers: &[(&str, &[u8])]) -> Result<Request, Rejection> {
    Request::parse(&record(value, headers), &RequestLimits::default(), &Configured)
}

fn label(value: &[u8], headers: &[(&str, &[u8])]) -> Result<Label, Rejection> {
    Label::parse(&record(value, headers), &RequestLimits::default(), &Configured)
}

fn texts(record: &OutgoingRecord) -> Vec<(&str, &str)> {
    record
        .headers
        .iter()
        .map(|(name, value)| {
            let bytes = value.as_deref().expect("every header of ours has a value");
            (
                name.as_str(),
                std::str::from_utf8(bytes).expect("every header of ours is UTF-8"),
            )
        })
        .collect()
}

#[test]
fn the_smallest_request_is_a_value_and_nothing_else() {
    let request = request(b"audio", &[]).unwrap();

    assert_eq!(
        request,
        Request {
            source: None,
            id: "speechverse.requests/2/17".to_owned(),
            session: None,
            chunk: None,
            task: None,
            instruction: "Listen.".to_owned(),
            labels: None,
            grammar: None,
            joint: None,
            max_tokens: None,
            deadline: None,
            priority: Priority::Interactive,
            partials: false,
            train: None,
            content_type: None,
            audio: Bytes::from_static(b"audio"),
            trace: request.trace.clone(),
        }
    );
}

#[test]
fn every_header_of_the_contract_is_read() {
    let request = request(
        b"audio",
        &[
            ("content-type", b"audio/wav"),
            ("ce_specversion", b"1.0"),
            ("ce_id", b"r-1"),
            ("ce_source", b"/me"),
            ("ce_type", b"speechverse.chunk.v1"),
            ("ce_instruction", "Schreibe auf, was gesagt wird: äöü.".as_bytes()),
            ("ce_task", b"asr"),
            ("ce_labels", br#"["yes","no"]"#),
            ("ce_maxtokens", b"12"),
            ("ce_deadline", b"2030-01-01T01:00:00+00:30"),
            ("ce_priority", b"bulk"),
            ("ce_partials", b"true"),
            ("ce_session", b"s"),
            ("ce_sequence", b"3"),
            ("ce_final", b"true"),
            ("ce_train", b"no"),
            ("traceparent", PARENT.as_bytes()),
            ("tracestate", b"a=b"),
        ],
    )
    .unwrap();

    assert_eq!(
        request,
        Request {
            source: Some("/me".to_owned()),
            id: "r-1".to_owned(),
            session: Some("s".to_owned()),
            chunk: Some(Chunk {
                sequence: 3,
                is_final: true
            }),
            task: Some("asr".to_owned()),
            instruction: "Schreibe auf, was gesagt wird: äöü.".to_owned(),
            labels: Some(vec!["yes".to_owned(), "no".to_owned()]),
            grammar: Some(OutputGrammar::one_of(["yes", "no"])),
            joint: None,
            max_tokens: Some(12),
            deadline: Some("2030-01-01T00:30:00Z".parse().unwrap()),
            priority: Priority::Bulk,
            partials: true,
            train: Some(false),
            content_type: Some("audio/wav".to_owned()),
            audio: Bytes::from_static(b"audio"),
            trace: TraceContext {
                state: Some("a=b".to_owned()),
                ..TraceContext::parse(PARENT).unwrap()
            },
        }
    );
}

#[test]
fn a_structured_event_says_the_same_as_a_binary_one() {
    let event = br#"{"specversion":"1.0","type":"speechverse.request.v1","id":"r-2","source":"/me","task":null,
        "datacontenttype":"audio/flac","instruction":"Write.","labels":["a","b"],"maxtokens":5,"partials":true,
        "train":"no","subject":"ignored","data_base64":"AAEC/w==",
        "traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;

    let request = request(
        event,
        &[("Content-Type", b"Application/CloudEvents+JSON; charset=utf-8")],
    )
    .unwrap();

    assert_eq!(
        (request.id.as_str(), request.instruction.as_str()),
        ("r-2", "Write.")
    );
    assert_eq!(request.content_type.as_deref(), Some("audio/flac"));
    assert_eq!(request.audio, Bytes::from_static(&[0, 1, 2, 255]));
    assert_eq!(request.labels, Some(vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(
        (request.max_tokens, request.partials, request.train),
        (Some(5), true, Some(false))
    );
    assert_eq!(request.trace, TraceContext::parse(PARENT).unwrap());
}

#[test]
fn the_places_of_a_tasks_prompt_are_filled_from_the_request() {
    let german = request(
        b"a",
        &[
            ("ce_task", b"translation"),
            ("ce_fields", br#"{"target_lang":"de"}"#),
        ],
    )
    .unwrap();
    let event =
        br#"{"specversion":"1.0","id":"r","source":"/me","task":"keyword_search","data_base64":"AAEC",
        "fields":{"keyword":"radio"}}"#;
    let structured = request(event, &[("content-type", b"application/cloudevents+json")]).unwrap();

    assert_eq!(german.instruction, "Translate the speech into German.");
    assert_eq!((german.grammar, german.joint), (None, None));
    assert_eq!(
        structured.instruction,
        "Is the word \"radio\" used in the audio? Answer yes or no."
    );
}

#[test]
fn several_tasks_are_one_request_with_a_layout() {
    let headers: &[(&str, &[u8])] = &[
        ("ce_task", b"asr,intent"),
        ("ce_labels", br#"["play_radio","other"]"#),
    ];

    let held = request(b"a", headers).unwrap();
    let free = request(b"a", &[headers, &[("ce_constrain", b"no")]].concat()).unwrap();

    assert_eq!(held.task.as_deref(), Some("asr,intent"));
    assert!(held.instruction.contains("=== Task: Intent ===") && held.instruction.contains("- other;"));
    let joint = held.joint.unwrap();
    assert_eq!(held.grammar, Some(joint.grammar()));
    assert_eq!(joint.by_task("ASR: a | Intent: other |")["intent"], "other");
    assert_eq!((free.grammar, free.joint), (None, Some(joint)));
}

#[test]
fn an_answer_is_held_to_the_tasks_own_labels_when_that_is_asked() {
    let grammar = |headers: &[(&str, &[u8])]| request(b"a", headers).unwrap().grammar;

    assert_eq!(grammar(&[("ce_task", b"speaker_count")]), None);
    assert_eq!(
        grammar(&[("ce_task", b"speaker_count"), ("ce_constrain", b"yes")]),
        Some(OutputGrammar::one_of(["one", "two", "three"]))
    );
    assert_eq!(grammar(&[("ce_task", b"asr"), ("ce_constrain", b"yes")]), None);
}

#[test]
fn a_task_brings_its_instruction_and_the_request_may_bring_another() {
    let of_task = request(b"a", &[("ce_task", b"asr")]).unwrap();
    let own = request(b"a", &[("ce_task", b"asr"), ("ce_instruction", b"Whistle.")]).unwrap();

    assert_eq!(of_task.instruction, "Transcribe the speech.");
    assert_eq!(
        (own.instruction.as_str(), own.task.as_deref()),
        ("Whistle.", Some("asr"))
    );
}

#[test]
fn a_number_in_a_stream_makes_a_chunk_even_when_no_type_is_sent() {
    let chunk = request(b"a", &[("ce_session", b"s"), ("ce_sequence", b"0")]).unwrap();
    let whole = request(b"a", &[("ce_session", b"s")]).unwrap();

    assert_eq!(
        chunk.chunk,
        Some(Chunk {
            sequence: 0,
            is_final: false
        })
    );
    assert_eq!((whole.chunk, whole.session.as_deref()), (None, Some("s")));
}

#[test]
fn every_bad_header_has_its_reason() {
    type Case<'a> = (Reason, &'a [u8], &'a [(&'a str, &'a [u8])]);
    let long = vec![b'x'; 1_000_000];
    let many = serde_json::to_vec(&(0..1_001).map(|n| n.to_string()).collect::<Vec<_>>()).unwrap();
    let structured = ("content-type", &b"application/cloudevents+json"[..]);
    let cases: [Case<'_>; 41] = [
        (Reason::HeaderTooLarge, b"a", &[("ce_instruction", &long)]),
        (Reason::InvalidHeader, b"a", &[("ce_instruction", b"\xff\xfe")]),
        (Reason::InvalidHeader, b"a", &[("ce_instruction", b" ")]),
        (Reason::UnknownTask, b"a", &[("ce_task", b"juggle")]),
        (Reason::InvalidHeader, b"a", &[("ce_task", b"\xff")]),
        (Reason::UnknownTask, b"a", &[("ce_task", b"asr,juggle")]),
        (Reason::UnknownTask, b"a", &[("ce_task", b"asr,")]),
        (Reason::InvalidHeader, b"a", &[("ce_task", b"asr,asr")]),
        (Reason::InvalidHeader, b"a", &[("ce_task", b"translation")]),
        (Reason::InvalidHeader, b"a", &[("ce_fields", b"German")]),
        (Reason::InvalidHeader, b"a", &[("ce_fields", br#"{"a":1}"#)]),
        (Reason::InvalidHeader, b"a", &[("ce_constrain", b"perhaps")]),
        (
            Reason::InvalidLabels,
            b"a",
            &[("ce_task", b"slots"), ("ce_labels", br#"["a;b"]"#)],
        ),
        (Reason::HeaderTooLarge, b"a", &[("ce_id", &long)]),
        (Reason::InvalidHeader, b"a", &[("ce_id", b"")]),
        (Reason::InvalidHeader, b"a", &[("ce_source", b" ")]),
        (Reason::HeaderTooLarge, b"a", &[("ce_source", &long)]),
        (Reason::InvalidHeader, b"a", &[("ce_id", b"\xc3\x28")]),
        (Reason::InvalidHeader, b"a", &[("content-type", b"\xff")]),
        (
            Reason::UnsupportedType,
            b"a",
            &[("ce_type", b"com.example.other")],
        ),
        (Reason::InvalidLabels, b"a", &[("ce_labels", b"yes,no")]),
        (Reason::InvalidLabels, b"a", &[("ce_labels", b"[]")]),
        (Reason::InvalidLabels, b"a", &[("ce_labels", b"[1,2]")]),
        (Reason::InvalidLabels, b"a", &[("ce_labels", br#"["a","a"]"#)]),
        (Reason::InvalidLabels, b"a", &[("ce_labels", br#"["a"," "]"#)]),
        (Reason::InvalidLabels, b"a", &[("ce_labels", &many)]),
        (Reason::HeaderTooLarge, b"a", &[("ce_labels", &long)]),
        (Reason::InvalidHeader, b"a", &[("ce_maxtokens", b"0")]),
        (Reason::InvalidHeader, b"a", &[("ce_maxtokens", b"-3")]),
        (Reason::InvalidHeader, b"a", &[("ce_maxtokens", b"99999")]),
        (Reason::InvalidHeader, b"a", &[("ce_deadline", b"tomorrow")]),
        (Reason::InvalidHeader, b"a", &[("ce_partials", b"maybe")]),
        (Reason::InvalidHeader, b"a", &[("ce_train", b"later")]),
        (
            Reason::InvalidHeader,
            b"a",
            &[("ce_type", b"speechverse.chunk.v1")],
        ),
        (Reason::InvalidHeader, b"a", &[("ce_sequence", b"1")]),
        (
            Reason::InvalidHeader,
            b"a",
            &[("ce_session", b"s"), ("ce_sequence", b"-1")],
        ),
        (Reason::InvalidEnvelope, b"not json", &[structured]),
        (Reason::InvalidEnvelope, b"[1]", &[structured]),
        (Reason::InvalidEnvelope, br#"{"data_base64":"*"}"#, &[structured]),
        (Reason::InvalidEnvelope, br#"{"data_base64":1234}"#, &[structured]),
        (
            Reason::InvalidEnvelope,
            br#"{"data_base64":"AA==","data":1}"#,
            &[structured],
        ),
    ];

    for (expected, value, headers) in cases {
        let rejection = request(value, headers).expect_err("the record is bad");

        let name = headers.first().map(|(name, value)| (name, value.len().min(20)));
        assert_eq!(
            (rejection.reason, rejection.stage),
            (expected, Stage::Ingest),
            "{name:?}: {rejection}"
        );
    }
}

#[test]
fn an_envelope_over_the_limit_is_refused_unread() {
    let limits = RequestLimits {
        envelope_bytes_max: 10,
        ..RequestLimits::default()
    };
    let record = record(
        b"not even json",
        &[("content-type", b"application/cloudevents+json")],
    );

    let rejection = Request::parse(&record, &limits, &Configured).unwrap_err();

    assert_eq!(rejection.reason, Reason::ValueTooLarge);
}

#[test]
fn the_last_header_of_a_name_counts_and_one_without_a_value_takes_it_back() {
    let mut record = record(
        b"a",
        &[("ce_id", b"first"), ("CE_ID", b"second"), ("ce_task", b"asr")],
    );
    record.headers.push(("ce_task".to_owned(), None));

    let request = Request::parse(&record, &RequestLimits::default(), &Configured).unwrap();

    assert_eq!((request.id.as_str(), request.task), ("second", None));
}

#[test]
fn a_trace_that_is_malformed_is_a_new_one_and_the_same_after_a_repeat() {
    for bad in [
        &b"\xff\xff"[..],
        b"",
        b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
    ] {
        let trace = request(b"a", &[("traceparent", bad), ("tracestate", b"x=y")])
            .unwrap()
            .trace;

        assert_eq!(trace, request(b"a", &[]).unwrap().trace);
        assert_ne!(trace.trace_id, "0".repeat(32));
    }
    let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";
    assert_eq!(TraceContext::parse(later), TraceContext::parse(PARENT));
}

#[test]
fn audio_with_a_target_is_a_sample_and_an_empty_value_with_a_subject_a_correction() {
    let sample = label(
        b"audio",
        &[("ce_target", b"hello"), ("ce_train", b"no"), ("ce_id", b"l-1")],
    )
    .unwrap();
    let Label::Sample(sample) = sample else {
        panic!("{sample:?}")
    };
    assert_eq!(
        (sample.id.as_str(), sample.target.as_str(), sample.may_train),
        ("l-1", "hello", false)
    );
    assert_eq!(
        (sample.instruction.as_str(), &sample.audio[..]),
        ("Listen.", &b"audio"[..])
    );

    let correction = label(b"", &[("ce_target", b"hello"), ("ce_subject", b"r-1")]).unwrap();
    assert_eq!(
        correction,
        Label::Correction(Correction {
            subject: "r-1".to_owned(),
            subject_source: None,
            source: None,
            target: "hello".to_owned()
        })
    );
}

#[test]
fn a_request_is_named_by_its_source_and_its_id() {
    let asked = request(b"audio", &[("ce_source", b"/phone"), ("ce_id", b"r-1")]).unwrap();
    assert_eq!(
        (asked.source.as_deref(), asked.id.as_str()),
        (Some("/phone"), "r-1")
    );

    let headers: [(&str, &[u8]); 4] = [
        ("ce_source", b"/desk"),
        ("ce_subject", b"r-1"),
        ("ce_subjectsource", b"/phone"),
        ("ce_target", b"hello"),
    ];
    let Label::Correction(correction) = label(b"", &headers).unwrap() else {
        panic!("no correction")
    };
    assert_eq!(correction.source.as_deref(), Some("/desk"));
    assert_eq!(correction.subject_source.as_deref(), Some("/phone"));
}

#[test]
fn a_target_that_is_none_of_the_labels_is_refused_with_the_list() {
    let of = |headers: &[(&str, &[u8])]| label(b"audio", headers);
    let listed: (&str, &[u8]) = ("ce_labels", br#"["lamp_on", "lamp_off"]"#);

    let cases: [&[(&str, &[u8])]; 3] = [
        &[listed, ("ce_target", b"lamp on")],
        &[listed, ("ce_target", b"lamp_on, lamp_off")],
        &[
            listed,
            ("ce_target", b"Fly_To_The_Moon"),
            ("ce_instruction", b"Choose."),
        ],
    ];
    for headers in cases {
        let rejection = of(headers).unwrap_err();
        assert_eq!(
            (rejection.reason, rejection.stage),
            (Reason::InvalidSample, Stage::Collect)
        );
        assert!(rejection.message.contains("lamp_on, lamp_off"), "{rejection}");
    }
    for (task, target, part) in [
        ("intent", "Fly_To_The_Moon", "play_radio"),
        ("asr,intent", "ASR: fly | Intent: fly_to_the_moon |", "play_radio"),
        ("asr,intent", "fly to the moon", "no part `ASR: … |`"),
    ] {
        let rejection = of(&[("ce_task", task.as_bytes()), ("ce_target", target.as_bytes())]).unwrap_err();
        assert_eq!(rejection.reason, Reason::InvalidSample);
        assert!(rejection.message.contains(part), "{rejection}");
    }
    let joint: (&str, &[u8]) = ("ce_target", b"ASR: play it | Intent: play_radio |");
    assert!(of(&[("ce_task", b"asr,intent"), joint]).is_ok());
    let Label::Sample(sample) = of(&[listed, ("ce_target", b" Lamp_On")]).unwrap() else {
        panic!("no sample")
    };
    assert_eq!(sample.labels.unwrap(), ["lamp_on", "lamp_off"]);
}

#[test]
fn what_labels_nothing_has_its_reason() {
    type Case<'a> = (Reason, &'a [u8], &'a [(&'a str, &'a [u8])]);
    let cases: [Case<'_>; 8] = [
        (Reason::InvalidSample, b"audio", &[]),
        (Reason::InvalidSample, b"audio", &[("ce_target", b" ")]),
        (Reason::InvalidSample, b"", &[("ce_target", b"x")]),
        (
            Reason::InvalidHeader,
            b"",
            &[("ce_target", b"x"), ("ce_subject", b"")],
        ),
        (
            Reason::InvalidHeader,
            b"audio",
            &[("ce_target", b"x"), ("ce_id", b"")],
        ),
        (Reason::HeaderTooLarge, b"audio", &[("ce_target", &[b'x'; 9_000])]),
        (
            Reason::UnknownTask,
            b"audio",
            &[("ce_target", b"x"), ("ce_task", b"juggle")],
        ),
        (
            Reason::InvalidSample,
            b"",
            &[("ce_target", b"x"), ("ce_subject", b"r"), ("ce_train", b"no")],
        ),
    ];

    for (reason, value, headers) in cases {
        let rejection = label(value, headers).unwrap_err();
        assert_eq!(
            (rejection.reason, rejection.stage),
            (reason, Stage::Collect),
            "{rejection}"
        );
    }
}

fn answer() -> Answer {
    Answer {
        id: Answer::id_of("r-1", AnswerKind::Final, 0),
        request_id: "r-1".to_owned(),
        session: None,
        kind: AnswerKind::Final,
        task: Some("asr".to_owned()),
        instruction: "Transcribe the speech.".to_owned(),
        text: "turn on the light".to_owned(),
        label: None,
        fields: BTreeMap::new(),
        adapter: "demo-0003".to_owned(),
        score: -0.21,
        flags: vec![
            Flag::Looping,
            Flag::Empty,
            Flag::Truncated,
            Flag::LowConfidence,
            Flag::Unsupported,
            Flag::NoSpeech,
        ],
        audio_seconds: 3.42,
        audio_unheard_seconds: 0.0,
        tokens: 11,
        timing_ms: Timing {
            queue: 1.2,
            decode_audio: 0.8,
            encode: 41.0,
            prefill: 22.3,
            generate: 118.0,
            total: 190.1,
        },
    }
}

#[test]
fn an_answer_has_the_fields_of_the_contract_and_no_others() {
    assert_eq!(
        serde_json::to_string(&answer()).unwrap(),
        concat!(
            r#"{"id":"r-1:final","request_id":"r-1","session":null,"kind":"final","task":"asr","#,
            r#""instruction":"Transcribe the speech.","text":"turn on the light","label":null,"fields":{},"#,
            r#""adapter":"demo-0003","score":-0.21,"#,
            r#""flags":["looping","empty","truncated","low_confidence","unsupported","no_speech"],"audio_seconds":3.42,"tokens":11,"#,
            r#""timing_ms":{"queue":1.2,"decode_audio":0.8,"encode":41.0,"prefill":22.3,"generate":118.0,"total":190.1}}"#,
        )
    );
}

#[test]
fn an_answer_about_damaged_sound_says_how_much_was_not_heard() {
    let damaged = Answer {
        flags: vec![Flag::AudioRepaired, Flag::LongPause],
        audio_unheard_seconds: 0.036,
        ..answer()
    };

    let json = serde_json::to_string(&damaged).unwrap();

    let expected = r#""flags":["audio_repaired","long_pause"],"audio_seconds":3.42,"audio_unheard_seconds":0.036,"tokens":11,"#;
    assert!(json.contains(expected), "{json}");
    assert_eq!(serde_json::from_str::<Answer>(&json).unwrap(), damaged);
}

#[test]
fn an_answer_goes_out_under_the_key_of_its_request_in_the_same_trace() {
    let trace = TraceContext {
        state: Some("a=b".to_owned()),
        ..TraceContext::parse(PARENT).unwrap()
    };

    let key = Some(Bytes::from_static(b"\xff"));
    let record = answer().to_record("results".into(), key.clone(), "/speechverse", &trace);

    assert_eq!((&*record.topic, &record.key), ("results", &key));
    let headers = texts(&record);
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        [
            "ce_specversion",
            "ce_type",
            "ce_source",
            "ce_id",
            "ce_time",
            "ce_subject",
            "content-type",
            "traceparent",
            "tracestate",
        ]
    );
    let value = |name: &str| {
        headers
            .iter()
            .find(|(known, _)| *known == name)
            .expect("it is in the list")
            .1
    };
    assert_eq!(value("ce_type"), "speechverse.result.v1");
    assert_eq!((value("ce_id"), value("ce_subject")), ("r-1:final", "r-1"));
    assert!(value("ce_time").parse::<Timestamp>().is_ok());
    let ours = TraceContext::parse(value("traceparent")).unwrap();
    assert_eq!(
        (ours.trace_id == trace.trace_id, ours.parent_id == trace.parent_id),
        (true, false)
    );
    let read: Answer = serde_json::from_slice(record.value.as_deref().unwrap()).unwrap();
    assert_eq!(read, answer());
}

#[test]
fn events_look_as_they_always_did_and_are_read_back() {
    let cases = [
        (
            EventKind::CycleStarted {
                trigger: "order".to_owned(),
                parent: "demo-0003".to_owned(),
                train_samples: 20,
                held_out_samples: 5,
            },
            r#""type":"cycle_started","trigger":"order","parent":"demo-0003","train_samples":20,"held_out_samples":5"#,
        ),
        (
            EventKind::CycleProgress {
                stage: "one".to_owned(),
                step: 3,
                loss: 1.5,
            },
            r#""type":"cycle_progress","stage":"one","step":3,"loss":1.5"#,
        ),
        (
            EventKind::CycleFinished {
                verdict: Verdict::Refused,
                reason: "word error rate rose".to_owned(),
                version: Some("demo-0004".to_owned()),
                metrics: BTreeMap::from([("asr.wer".to_owned(), 0.25)]),
            },
            r#""type":"cycle_finished","verdict":"refused","reason":"word error rate rose","version":"demo-0004","metrics":{"asr.wer":0.25}"#,
        ),
        (
            EventKind::AdapterSwapped {
                from: "a".to_owned(),
                to: "b".to_owned(),
                reason: "promoted".to_owned(),
            },
            r#""type":"adapter_swapped","from":"a","to":"b","reason":"promoted""#,
        ),
        (
            EventKind::CommandObeyed {
                command: "pause".to_owned(),
            },
            r#""type":"command_obeyed","command":"pause""#,
        ),
        (
            EventKind::CommandRefused {
                command: "promote".to_owned(),
                reason: "no such version".to_owned(),
            },
            r#""type":"command_refused","command":"promote","reason":"no such version""#,
        ),
        (
            EventKind::CommandExpired {
                command: "retrain".to_owned(),
                reason: "it was written 900 s ago".to_owned(),
            },
            r#""type":"command_expired","command":"retrain","reason":"it was written 900 s ago""#,
        ),
    ];

    for (what, rest) in cases {
        let event = Event {
            id: "run-7".to_owned(),
            time: "2030-01-01T00:00:00Z".parse().unwrap(),
            what,
        };
        let json = format!(r#"{{"id":"run-7","time":"2030-01-01T00:00:00Z",{rest}}}"#);

        let record = event.to_record("events".into(), "/speechverse");

        assert_eq!(record.value.as_deref(), Some(json.as_bytes()));
        assert_eq!(record.key.as_deref(), Some(&b"run-7"[..]));
        assert_eq!(texts(&record)[1], ("ce_type", "speechverse.event.v1"));
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    }
}

#[test]
fn a_figure_that_could_not_be_computed_does_not_hide_the_end_of_a_cycle() {
    let what = EventKind::CycleFinished {
        verdict: Verdict::Failed,
        reason: "the loss is no number".to_owned(),
        version: None,
        metrics: BTreeMap::from([("loss".to_owned(), f64::NAN)]),
    };
    let record = Event::now("run-7", what).to_record("events".into(), "/speechverse");
    let read: Event = serde_json::from_slice(record.value.as_deref().unwrap()).unwrap();
    let EventKind::CycleFinished { metrics, .. } = read.what else {
        panic!("{read:?}")
    };
    assert!(metrics["loss"].is_nan());

    let json = serde_json::to_string(&Answer {
        score: f64::NAN,
        ..answer()
    })
    .unwrap();
    assert!(serde_json::from_str::<Answer>(&json).unwrap().score.is_nan());
}

#[test]
fn reasons_and_stages_have_names_of_their_own_in_snake_case() {
    for names in [
        Reason::ALL
            .iter()
            .map(|reason| reason.as_str())
            .collect::<Vec<_>>(),
        Stage::ALL.iter().map(|stage| stage.as_str()).collect(),
    ] {
        assert!(names.iter().all(|name| {
            name.bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
        }));
        let distinct: std::collections::BTreeSet<&&str> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }
}

proptest! {
    #[test]
    fn an_answer_that_is_written_is_read_back(
        (id, text, label) in ("\\PC{0,20}", "\\PC{0,40}", prop::option::of("\\PC{0,9}")),
        fields in prop::collection::btree_map("\\PC{0,9}", "\\PC{0,9}", 0..3),
        (score, eighths, tokens) in (-800_i32..1, 0..80_000_u32, any::<usize>()),
    ) {
        // Eighths, because serde_json reads other fractions to within their last bit only.
        let (score, audio_seconds) = (f64::from(score) / 8.0, f64::from(eighths) / 8.0);
        let answer = Answer { id, text, label, fields, score, audio_seconds, tokens, ..answer() };

        let json = serde_json::to_vec(&answer).unwrap();

        prop_assert_eq!(serde_json::from_slice::<Answer>(&json).unwrap(), answer);
    }

    #[test]
    fn different_answers_have_different_ids(
        a in "[a-z:0-9]{0,3}(:final|:partial)?(:[0-9])?", b in "[a-z:0-9]{0,3}(:final|:partial)?(:[0-9])?",
        (kind_a, kind_b) in (0..3_usize, 0..3_usize), (number_a, number_b) in (0..10_u64, 0..10_u64),
    ) {
        let kinds = [AnswerKind::Partial, AnswerKind::Final, AnswerKind::Error];
        let number = |kind: usize, number: u64| if kind == 0 { number } else { 0 };
        let same = (&a, kind_a, number(kind_a, number_a)) == (&b, kind_b, number(kind_b, number_b));

        let ids = (Answer::id_of(&a, kinds[kind_a], number_a), Answer::id_of(&b, kinds[kind_b], number_b));

        prop_assert_eq!(ids.0 == ids.1, same);
    }

    #[test]
    fn a_trace_that_is_written_is_read_back(trace in 1_u128.., span in 1_u64.., flags in any::<u8>()) {
        let text = format!("00-{trace:032x}-{span:016x}-{flags:02x}");

        let read = TraceContext::parse(&text).expect("it is well-formed");

        let child = TraceContext::parse(&read.child("name")).expect("ours is well-formed");
        prop_assert_eq!((read.trace_id, read.flags), (child.trace_id, child.flags));
        prop_assert_eq!(read.parent_id, format!("{span:016x}"));
    }

    #[test]
    fn any_text_as_a_trace_never_panics(text in "\\PC{0,80}|[0-9a-f-]{50,60}") {
        let _ = TraceContext::parse(&text);
    }
}

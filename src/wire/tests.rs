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

mod asyncapi;
mod dead_letters;
mod envelope;
mod golden;
mod hostile;
mod labels;
mod orders;
mod requests;

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

fn answer() -> Answer {
    Answer {
        id: Answer::id_of(None, "r-1", AnswerKind::Final, 0),
        request_id: "r-1".to_owned(),
        request_source: None,
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
        segment: None,
        words: Vec::new(),
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
fn an_answer_about_damaged_sound_says_how_much_was_not_decoded() {
    let damaged = Answer {
        flags: vec![Flag::AudioRepaired, Flag::LongPause],
        audio_unheard_seconds: 0.036,
        segment: None,
        words: Vec::new(),
        ..answer()
    };

    let json = serde_json::to_string(&damaged).unwrap();

    let expected = r#""flags":["audio_repaired","long_pause"],"audio_seconds":3.42,"audio_unheard_seconds":0.036,"tokens":11,"#;
    assert!(json.contains(expected), "{json}");
    assert_eq!(serde_json::from_str::<Answer>(&json).unwrap(), damaged);
}

#[test]
fn a_request_may_bring_the_form_of_its_answer() {
    for (header, source) in [
        ("ce_jsonschema", r#"{"type": "integer"}"#),
        ("ce_regex", "[a-z]+"),
        ("ce_grammar", "start: \"yes\" | \"no\""),
        ("regex", "[a-z]+"),
    ] {
        let asked = request(b"audio", &[(header, source.as_bytes())]).unwrap();

        let grammar = asked.grammar.expect("it is constrained");
        assert!(grammar.structure().is_some(), "{header}");
    }
    type Headers<'h> = &'h [(&'h str, &'h [u8])];
    let cases: [(Headers<'_>, &str); 6] = [
        (&[("ce_regex", b"(a")], "`ce_regex`"),
        (&[("ce_jsonschema", b"{")], "`ce_jsonschema`"),
        (&[("ce_grammar", b"begin: \"a\"")], "`ce_grammar`"),
        (&[("ce_regex", b"a"), ("ce_jsonschema", b"{}")], "contradict"),
        (
            &[("ce_regex", b"a"), ("ce_labels", br#"["a"]"#)],
            "`ce_labels` contradict",
        ),
        (&[("ce_regex", b"a"), ("ce_constrain", b"no")], "contradict"),
    ];
    for (headers, part) in cases {
        let rejection = request(b"audio", headers).unwrap_err();
        assert_eq!(rejection.reason, Reason::InvalidStructure, "{rejection}");
        assert!(rejection.message.contains(part), "{rejection}");
    }
}

#[test]
fn an_answer_names_the_source_of_its_request() {
    let source = Some("/phone".to_owned());
    let named = Answer {
        id: Answer::id_of(source.as_deref(), "r-1", AnswerKind::Final, 0),
        request_source: source,
        ..answer()
    };
    let trace = TraceContext::parse(PARENT).unwrap();

    let record = named.to_record("results".into(), None, "/speechverse", &trace);

    let headers = texts(&record);
    let value = |name| {
        headers
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
    };
    assert_eq!(value("ce_subjectsource"), Some("/phone"));
    assert_eq!(value("ce_id"), Some("r-1:final@f147ca202892e247"));
    let json = std::str::from_utf8(record.value.as_deref().unwrap()).unwrap();
    assert!(
        json.contains(r#""request_id":"r-1","request_source":"/phone","session""#),
        "{json}"
    );
    assert_eq!(serde_json::from_str::<Answer>(json).unwrap(), named);
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
                valid_samples: 2,
                held_out_samples: 5,
            },
            r#""type":"cycle_started","trigger":"order","parent":"demo-0003","train_samples":20,"valid_samples":2,"held_out_samples":5"#,
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
        a in "[a-z:0-9]{0,3}(:final|:partial)?(:[0-9])?(@[0-9a-f]{16})?",
        b in "[a-z:0-9]{0,3}(:final|:partial)?(:[0-9])?",
        (source_a, source_b) in (proptest::option::of("[/a-c]{0,2}"), proptest::option::of("[/a-c]{0,2}")),
        (kind_a, kind_b) in (0..3_usize, 0..3_usize), (number_a, number_b) in (0..10_u64, 0..10_u64),
    ) {
        let kinds = [AnswerKind::Partial, AnswerKind::Final, AnswerKind::Error];
        let number = |kind: usize, number: u64| if kind == 0 { number } else { 0 };
        let same = (&source_a, &a, kind_a, number(kind_a, number_a))
            == (&source_b, &b, kind_b, number(kind_b, number_b));

        let ids = (
            Answer::id_of(source_a.as_deref(), &a, kinds[kind_a], number_a),
            Answer::id_of(source_b.as_deref(), &b, kinds[kind_b], number_b),
        );

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

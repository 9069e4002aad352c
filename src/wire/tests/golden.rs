//! Golden messages: `tests/fixtures/messages` holds records as other programs write and read them. They may
//! get company, and they may not change: a client that was right once stays right.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::answer::Answer;
use super::super::control::Order;
use super::super::redrive::{Place, RedriveMark, RedriveState};
use super::*;

/// A record as a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    /// Which topic, by the name of its channel.
    topic: String,
    key: Option<Content>,
    headers: Vec<(String, Option<Content>)>,
    value: Option<Content>,
    /// What a record of an input topic is read as.
    reads_as: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Content {
    Text(String),
    Base64(String),
    /// Relative to the folder.
    File(PathBuf),
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/messages")
}

fn bytes(content: &Option<Content>) -> Option<Bytes> {
    Some(match content.as_ref()? {
        Content::Text(text) => Bytes::from(text.clone()),
        Content::Base64(text) => Bytes::from(STANDARD.decode(text).unwrap()),
        Content::File(path) => Bytes::from(std::fs::read(folder().join(path)).unwrap()),
    })
}

impl Golden {
    fn open(name: &str) -> Self {
        let path = folder().join(format!("{name}.json"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn record(&self) -> Record {
        Record {
            key: bytes(&self.key),
            value: bytes(&self.value),
            headers: self
                .headers
                .iter()
                .map(|(name, value)| (name.clone(), bytes(value)))
                .collect(),
            ..record(b"", &[])
        }
    }

    /// Asserts that `written` is this record; the time of writing is not compared.
    fn is(&self, written: &OutgoingRecord) {
        let expected = self.record();
        assert_eq!(written.key, expected.key);
        assert_eq!(written.value, expected.value);
        let timeless = |(name, value): &(String, Option<Bytes>)| match name.as_str() {
            "ce_time" => {
                let text = std::str::from_utf8(value.as_deref().unwrap()).unwrap();
                text.parse::<Timestamp>().unwrap();
                (name.clone(), None)
            }
            _ => (name.clone(), value.clone()),
        };
        let [written, expected] = [&written.headers, &expected.headers]
            .map(|headers| headers.iter().map(timeless).collect::<Vec<_>>());
        assert_eq!(written, expected);
    }
}

/// What a record is read as: every fact that a golden message may name.
fn read_as(golden: &Golden) -> Value {
    let record = golden.record();
    let limits = RequestLimits::default();
    match golden.topic.as_str() {
        "requests" => {
            let request = Request::parse(&record, &limits, &Configured).unwrap();
            json!({
                "id": request.id,
                "source": request.source,
                "session": request.session,
                "sequence": request.chunk.map(|chunk| chunk.sequence),
                "is_final": request.chunk.map(|chunk| chunk.is_final),
                "task": request.task,
                "instruction": request.instruction,
                "labels": request.labels,
                "form": (request.grammar.as_ref())
                    .and_then(|grammar| Some(grammar.structure()?.kind().name())),
                "max_tokens": request.max_tokens,
                "deadline": request.deadline,
                "priority": request.priority.as_str(),
                "partials": request.partials,
                "train": request.train,
                "trace_id": request.trace.trace_id,
                "audio_bytes": request.audio.len(),
            })
        }
        "labels" => match Label::parse(&record, &limits, &Configured).unwrap() {
            Label::Sample(sample) => json!({ "sample": sample.id, "target": sample.target }),
            Label::Correction(correction) => json!({
                "corrects": correction.subject,
                "of": correction.subject_source,
                "target": correction.target,
            }),
        },
        "control" => {
            let order = Order::parse(&record).unwrap();
            json!({ "id": order.id, "command": order.command.name() })
        }
        other => panic!("`{other}` is no topic that is read"),
    }
}

#[test]
fn golden_messages_are_read_as_they_always_were() {
    let mut read = BTreeSet::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let golden = Golden::open(&name);
        let Some(expected) = &golden.reads_as else {
            continue;
        };
        let found = read_as(&golden);
        for (fact, value) in expected.as_object().unwrap() {
            assert_eq!(&found[fact], value, "{name}: {fact}");
        }
        read.insert(name);
    }
    assert!(read.len() >= 8, "{read:?}");
}

#[test]
fn golden_messages_are_written_as_they_always_were() {
    let trace = TraceContext {
        state: Some("vendor=1".to_owned()),
        ..TraceContext::parse(PARENT).unwrap()
    };
    for name in ["answer", "answer_to_source", "partial"] {
        let read = Golden::open(name).record();
        let answer: Answer = serde_json::from_slice(read.value.as_deref().unwrap()).unwrap();
        let source = answer.request_source.as_deref();
        assert_eq!(
            answer.id,
            Answer::id_of(source, &answer.request_id, answer.kind, 7)
        );
        Golden::open(name).is(&answer.to_record("results".into(), read.key.clone(), "/speechverse", &trace));
    }

    let read = Golden::open("event").record();
    let event: Event = serde_json::from_slice(read.value.as_deref().unwrap()).unwrap();
    Golden::open("event").is(&event.to_record("events".into(), "/speechverse"));

    let rejection = Rejection::new(Reason::InternalError, Stage::Encode, "out of memory");
    let original = Golden::open("request_not_audio").record();
    let time = "2030-01-01T00:00:00Z".parse().unwrap();
    Golden::open("dead_letter").is(&dead_letter(&original, &rejection, 0, None, "dead".into(), time));

    let mark = RedriveMark {
        record: Place {
            topic: "speechverse.requests".to_owned(),
            partition: 2,
            offset: 17,
        },
        state: RedriveState::Done,
    };
    Golden::open("redrive_mark").is(&mark.to_record("dead".into(), original.key, "/speechverse/cli"));
}

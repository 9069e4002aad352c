//! `speechverse dead-letters` as a process, on the embedded broker.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use embedded_broker::EmbeddedBroker;
use jiff::Timestamp;
use speechverse::kafka::config::KafkaConfig;
use speechverse::kafka::{Read, ReadFrom, Reader, Sink};
use speechverse::wire::dead_letter::{Reason, Rejection, Stage, dead_letter};
use speechverse::wire::request::CHUNK_TYPE;
use speechverse::wire::{OutgoingRecord, Record, RecordOffset};
use support::{LIMIT, speechverse};

struct Bench {
    broker: EmbeddedBroker,
    config: KafkaConfig,
    sink: Sink,
}

impl Bench {
    async fn new() -> Self {
        let (broker, config) = support::broker().await;
        let sink = Sink::new(&config).unwrap();
        Self { broker, config, sink }
    }

    /// Writes the dead letter of a request; `failed_ago` before now.
    async fn letter(&self, number: i64, reason: Reason, failed_ago: Duration) {
        let header = |name: &str, value: &[u8]| (name.to_owned(), Some(Bytes::copy_from_slice(value)));
        let record = Record {
            record_offset: RecordOffset {
                topic: Arc::from(self.config.topics.requests.as_str()),
                partition: 0,
                offset: number,
                epoch: 0,
            },
            key: Some(Bytes::from(format!("key-{}", number % 2))),
            value: Some(Bytes::from(format!("\0sound {number}"))),
            headers: vec![
                header("ce_id", format!("r-{number}").as_bytes()),
                header("x", b"\xff"),
            ],
            timestamp_ms: None,
        };
        let rejection = Rejection::new(reason, Stage::Decode, "out of luck");
        let topic = Arc::from(self.config.topics.dead_letters.as_str());
        let letter = dead_letter(&record, &rejection, 0, None, topic, Timestamp::now() - failed_ago);
        self.sink.send(letter).await.unwrap();
    }

    /// Runs `speechverse dead-letters`; its exit code and what it printed.
    async fn run(&self, args: &[&str]) -> (i32, String) {
        let mut command = speechverse(&["dead-letters"]);
        command.args(args).args(["--bootstrap", &self.config.bootstrap]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        let words = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), words)
    }

    /// Everything in the request topic.
    async fn requests(&self) -> Vec<Record> {
        let topic = &self.config.topics.requests;
        let mut reader = Reader::open(&self.config, topic, ReadFrom::Beginning, LIMIT)
            .await
            .unwrap();
        let mut records = Vec::new();
        while let Read::Record(record) = reader.next(LIMIT).await.unwrap() {
            records.push(record);
        }
        records.sort_by(|one, other| one.value.cmp(&other.value));
        records
    }
}

/// The dead letter of chunk `number` of a stream.
fn chunk(config: &KafkaConfig, number: i64) -> OutgoingRecord {
    let header = |name: &str, value: String| (name.to_owned(), Some(Bytes::from(value)));
    let record = Record {
        record_offset: RecordOffset {
            topic: Arc::from(config.topics.requests.as_str()),
            partition: 0,
            offset: 100 + number,
            epoch: 0,
        },
        key: Some(Bytes::from("stream")),
        value: Some(Bytes::from(format!("chunk {number}"))),
        headers: vec![
            header("ce_type", CHUNK_TYPE.to_owned()),
            header("ce_session", "s".to_owned()),
            header("ce_sequence", number.to_string()),
        ],
        timestamp_ms: None,
    };
    let rejection = Rejection::new(Reason::InternalError, Stage::Ingest, "out of luck");
    let topic = Arc::from(config.topics.dead_letters.as_str());
    dead_letter(&record, &rejection, 0, None, topic, Timestamp::now() - HOUR)
}

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test(flavor = "multi_thread")]
async fn each_dead_letter_that_is_due_is_published_again_once_as_it_came() {
    let bench = Bench::new().await;
    bench.letter(0, Reason::InternalError, HOUR).await;
    bench.letter(1, Reason::NotAudio, HOUR).await;
    bench.letter(2, Reason::InternalError, Duration::ZERO).await;
    bench.letter(3, Reason::InternalError, HOUR).await;
    bench.letter(3, Reason::InternalError, HOUR).await; // a crash wrote it twice

    let (code, words) = bench.run(&["redrive", "--dry-run"]).await;
    assert_eq!(code, 0, "{words}");
    assert!(words.contains("2 would be redriven"), "{words}");
    assert!(bench.requests().await.is_empty());

    let (code, words) = bench.run(&["redrive"]).await;
    assert_eq!(code, 0, "{words}");
    assert!(words.contains("2 redriven, 1 wait for the end"), "{words}");
    assert!(
        words.contains("1 of reasons that do not pass by themselves"),
        "{words}"
    );
    let (code, words) = bench.run(&["redrive"]).await;
    assert_eq!(code, 0, "{words}");
    assert!(words.contains("0 redriven, 2 redriven before"), "{words}");

    let requests = bench.requests().await;
    let values: Vec<&[u8]> = requests
        .iter()
        .map(|record| record.value.as_deref().unwrap())
        .collect();
    assert_eq!(values, [&b"\0sound 0"[..], b"\0sound 3"]);
    assert_eq!(requests[0].key.as_deref(), Some(&b"key-0"[..]));
    let headers: Vec<(&str, &[u8])> = requests[0]
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_deref().unwrap()))
        .collect();
    assert_eq!(
        headers,
        [
            ("ce_id", &b"r-0"[..]),
            ("x", b"\xff"),
            ("speechverse_attempts", b"2")
        ]
    );

    let (code, words) = bench.run(&["redrive", "--again", "--id", "r-0"]).await;
    assert_eq!(code, 0, "{words}");
    assert_eq!(bench.requests().await.len(), 3);
    bench.broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_a_stream_are_published_again_in_the_order_of_their_records() {
    let bench = Bench::new().await;
    for number in [3, 0, 2, 1] {
        bench.sink.send(chunk(&bench.config, number)).await.unwrap();
    }

    let (code, words) = bench.run(&["redrive"]).await;
    assert_eq!(code, 0, "{words}");

    let mut requests = bench.requests().await;
    requests.sort_by_key(|record| record.record_offset.offset); // of one key, so of one partition
    let values: Vec<&[u8]> = (requests.iter())
        .map(|record| record.value.as_deref().unwrap())
        .collect();
    assert_eq!(values, [b"chunk 0", b"chunk 1", b"chunk 2", b"chunk 3"]);
    bench.broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_chosen_by_reason_id_key_topic_time_and_number() {
    let bench = Bench::new().await;
    for number in 0..4 {
        let reason = [Reason::NotAudio, Reason::UnknownTask][usize::from(number == 3)];
        bench.letter(number, reason, Duration::ZERO).await;
    }
    let ids = async |args: &[&str]| {
        let (code, words) = bench.run(&[&["list", "--json"], args].concat()).await;
        assert_eq!(code, 0, "{words}");
        let mut ids: Vec<String> = words
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["id"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        ids.sort();
        ids.join(" ")
    };

    assert_eq!(ids(&[]).await, "r-0 r-1 r-2 r-3");
    assert_eq!(ids(&["--reason", "unknown_task"]).await, "r-3");
    assert_eq!(ids(&["--id", "r-1", "--id", "r-2"]).await, "r-1 r-2");
    assert_eq!(ids(&["--key", "key-0"]).await, "r-0 r-2");
    assert_eq!(ids(&["--topic", "speechverse.labels"]).await, "");
    assert_eq!(
        ids(&["--since", "1h", "--until", "2100-01-01T00:00:00Z"]).await,
        "r-0 r-1 r-2 r-3"
    );
    assert_eq!(ids(&["--until", "1h"]).await, "");
    assert_eq!(ids(&["--limit", "3"]).await.split(' ').count(), 3);
    let (code, words) = bench.run(&["redrive", "--reason", "unknown_task"]).await;
    assert_eq!(code, 0, "{words}");
    assert_eq!(bench.requests().await.len(), 1);
    let (code, words) = bench.run(&["list", "--reason", "nonsense"]).await;
    assert_eq!(code, 2);
    assert!(words.contains("internal_error"), "{words}");
    bench.broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_dead_letter_is_shown_and_its_bytes_come_back_as_they_were() {
    let bench = Bench::new().await;
    bench.letter(5, Reason::InternalError, HOUR).await;
    let (_, line) = bench.run(&["list", "--json"]).await;
    let row: serde_json::Value = serde_json::from_str(&line).unwrap();
    let place = row["place"].as_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("value");

    let (code, words) = bench.run(&["show", place]).await;
    assert_eq!(code, 0, "{words}");
    for wanted in [
        "internal_error, found by decode",
        "out of luck",
        "due",
        "key-1",
        "ce_id: r-5",
        "8 bytes",
    ] {
        assert!(words.contains(wanted), "{wanted}: {words}");
    }
    let (code, words) = bench
        .run(&["show", place, "--value", file.to_str().unwrap()])
        .await;
    assert_eq!(code, 0, "{words}");
    assert_eq!(std::fs::read(&file).unwrap(), b"\0sound 5");

    // The headers are those that the record had, whether its letter is whole or not.
    let mut let_go = chunk(&bench.config, 7);
    let_go.value = None;
    let_go
        .headers
        .push(("speechverse_value_omitted".to_owned(), Some(Bytes::from("7"))));
    bench.sink.send(let_go).await.unwrap();
    let (_, line) = bench.run(&["list", "--json", "--key", "stream"]).await;
    let row: serde_json::Value = serde_json::from_str(&line).unwrap();
    let (code, words) = bench.run(&["show", row["place"].as_str().unwrap()]).await;
    assert_eq!(code, 0, "{words}");
    for wanted in ["ce_sequence: 7", "not whole"] {
        assert!(words.contains(wanted), "{wanted}: {words}");
    }
    for added in ["header       ce_id", "header       speechverse_"] {
        assert!(!words.contains(added), "{added}: {words}");
    }
    let (code, words) = bench.run(&["show", "0/99"]).await;
    assert_eq!(code, 1);
    assert!(words.contains("0/99"), "{words}");
    bench.broker.shutdown().await;
}

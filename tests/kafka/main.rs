//! The Kafka module on a broker: crashes, rebalances, retention, large records. On the embedded broker
//! always, on Apache Kafka where `SPEECHVERSE_KAFKA=host:port` names one; `scripts/kafka/suite.sh` and
//! `make test` start it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use embedded_broker::{BrokerConfig, EmbeddedBroker};
use speechverse::kafka::config::{Delivery, KafkaConfig, TopicsConfig};
use speechverse::kafka::{
    Budget, Closed, ConnectionMonitor, OffsetTracker, Read, ReadFrom, Reader, Release, Settled, Sink,
    SinkError, Source, SourceConfig, SourceEvent, admin,
};
use speechverse::wire::{OutgoingRecord, Record};

mod crashes;
mod exactly_once;
mod partitions;
mod retention;

/// Longest that one step of a test may take.
const STEP: Duration = Duration::from_secs(60);

/// A broker with topics of its own for one test.
struct Bench {
    /// Kept alive; `None` on Apache Kafka.
    _broker: Option<EmbeddedBroker>,
    config: KafkaConfig,
}

impl Bench {
    async fn embedded() -> Self {
        let broker = EmbeddedBroker::start(BrokerConfig::default()).await.unwrap();
        let config = config(broker.bootstrap());
        admin::ensure_topics(&config, STEP).await.unwrap();
        Self {
            _broker: Some(broker),
            config,
        }
    }

    async fn apache() -> Option<Self> {
        let config = config(std::env::var("SPEECHVERSE_KAFKA").ok()?);
        admin::ensure_topics(&config, STEP).await.unwrap();
        Some(Self {
            _broker: None,
            config,
        })
    }

    fn requests(&self) -> &str {
        &self.config.topics.requests
    }

    fn sink(&self) -> Sink {
        Sink::new(&self.config).unwrap()
    }

    fn start(&self) -> Running {
        start(&self.config)
    }

    /// Publishes records with these numbers as their values, under as many keys.
    async fn publish(&self, numbers: std::ops::Range<u64>) {
        self.publish_with(&self.sink(), numbers).await;
    }

    /// Publishes records, numbered from 0, for as long as `work` takes; what that gives, and how many there
    /// are. Whoever is killed meanwhile has something in hand, and whoever comes next finds something to do,
    /// however fast or late anybody is.
    async fn publish_during<T>(&self, work: impl Future<Output = T>) -> (T, u64) {
        const AT_ONCE: u64 = 10;
        const PAUSE: Duration = Duration::from_millis(40);
        let is_over = Cell::new(false);
        let working = async {
            let done = work.await;
            is_over.set(true);
            done
        };
        let publishing = async {
            let sink = self.sink();
            let mut count = 0;
            while !is_over.get() {
                self.publish_with(&sink, count..count + AT_ONCE).await;
                count += AT_ONCE;
                tokio::time::sleep(PAUSE).await;
            }
            count
        };
        tokio::join!(working, publishing)
    }

    async fn publish_with(&self, sink: &Sink, numbers: std::ops::Range<u64>) {
        let sends: Vec<_> = numbers
            .map(|number| {
                let (sink, record) = (sink.clone(), outgoing(self.requests(), number));
                tokio::spawn(async move { sink.send(record).await })
            })
            .collect();
        for send in sends {
            send.await.unwrap().unwrap();
        }
    }
}

/// Starts to read the requests as a member of the group.
fn start(config: &KafkaConfig) -> Running {
    let budget = Budget::new(config.in_flight_bytes_max);
    let tracker = match config.delivery {
        Delivery::AtLeastOnce => OffsetTracker::new(budget),
        Delivery::ExactlyOnce => OffsetTracker::transactional(budget),
    };
    let source = SourceConfig {
        kafka: config.clone(),
        topics: vec![config.topics.requests.clone()],
        monitor: ConnectionMonitor::default(),
    };
    let (source, events) = Source::start(source, tracker.clone()).unwrap();
    Running {
        source,
        events,
        tracker,
    }
}

struct Running {
    source: Source,
    events: flume::Receiver<SourceEvent>,
    tracker: OffsetTracker,
}

impl Running {
    async fn record(&self) -> Record {
        loop {
            let event = tokio::time::timeout(STEP, self.events.recv_async())
                .await
                .expect("an event in time");
            match event.expect("the source lives") {
                SourceEvent::Record(record) => return record,
                SourceEvent::Failed(error) => panic!("{error}"),
                SourceEvent::Assigned { .. } | SourceEvent::Revoked(_) => {}
            }
        }
    }

    async fn is_silent(&self, wait: Duration) -> bool {
        tokio::time::timeout(wait, self.record()).await.is_err()
    }
}

/// Turns checks into tests: once for the embedded broker, once for Apache Kafka.
macro_rules! on_every_broker {
    ($($name:ident => $($check:ident)::+;)*) => {
        mod embedded {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::$($check)::+(&Bench::embedded().await).await;
                }
            )*
        }

        mod apache_kafka {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    match Bench::apache().await {
                        Some(bench) => super::$($check)::+(&bench).await,
                        None => speechverse::testing::skip(
                            concat!("apache_kafka::", stringify!($name)),
                            "SPEECHVERSE_KAFKA is not set; scripts/kafka/suite.sh starts one and sets it",
                        ),
                    }
                }
            )*
        }
    };
}

on_every_broker! {
    missing_topics_are_created_once => topics;
    a_record_of_ten_megabytes_arrives_byte_for_byte => large;
    a_topic_that_takes_less_than_we_send_is_the_record_s_fault => too_large_for_the_topic;
    crashes_at_any_time_lose_nothing_and_a_clean_end_repeats_nothing => crashes::crashes;
    members_that_come_and_go_lose_nothing => members;
    a_record_is_handed_out_soon_after_it_is_published => latency;
    answers_and_offsets_are_committed_together => exactly_once::together;
    an_answer_that_is_refused_holds_no_other_back => exactly_once::refused;
    killed_processes_answer_every_record_once_and_get_their_partitions_back_at_once => exactly_once::kills;
    a_process_whose_place_is_taken_writes_nothing_any_more => exactly_once::zombie;
    members_that_come_and_go_answer_every_record_once => exactly_once::members;
}

async fn topics(bench: &Bench) {
    let again = admin::ensure_topics(&bench.config, STEP).await.unwrap();
    let cluster = admin::broker_metadata(&bench.config, STEP).await.unwrap();

    assert!(again.is_empty(), "{again:?}");
    for (setting, name) in bench.config.topics.all() {
        let expected = if setting == "control" { 1 } else { 3 };
        assert_eq!(cluster.topic(name).unwrap().partitions, expected, "{name}");
    }
    let mut several = bench.config.clone();
    several.topics.control = bench.config.topics.requests.clone();
    several.topics.requests = format!("{}.of-their-own", bench.config.topics.requests);
    let refused = admin::ensure_topics(&several, STEP)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("has 3 partitions") && refused.contains("--delete --topic"),
        "{refused}"
    );
    let control = &bench.config.topics.control;
    let end = || admin::end_of(&bench.config, control, 0, STEP);
    assert_eq!(end().await.unwrap(), 0);
    bench.sink().send(outgoing(control, 0)).await.unwrap();
    assert_eq!(end().await.unwrap(), 1);
    let missing = Reader::open(&bench.config, "no.such.topic.here", ReadFrom::End, STEP).await;
    assert!(missing.is_err());
}

async fn large(bench: &Bench) {
    let value: Bytes = (0..10_000_000_u32).map(|index| (index % 251) as u8).collect();
    let record = OutgoingRecord {
        key: Some(Bytes::from_static(b"device-7")),
        value: Some(value.clone()),
        headers: vec![("content-type".to_owned(), Some(Bytes::from_static(b"audio/wav")))],
        ..outgoing(bench.requests(), 0)
    };
    let written = bench.sink().send(record.clone()).await.unwrap();

    let running = bench.start();
    let read = running.record().await;

    assert!(read.value == record.value, "the value changed on its way");
    assert_eq!((&read.key, &read.headers), (&record.key, &record.headers));
    assert!(running.tracker.budget().bytes() > 10_000_000);
    assert_eq!(
        running.tracker.release(&read.record_offset),
        Release::Released {
            bytes: running_bytes(&read)
        }
    );
    assert_eq!(running.tracker.budget().bytes(), 0);
    let fetched = Reader::fetch(
        &bench.config,
        bench.requests(),
        written.partition,
        written.offset,
        STEP,
    )
    .await
    .unwrap();
    assert!(fetched.unwrap().value == record.value);
}

async fn too_large_for_the_topic(bench: &Bench) {
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    let topic = format!("{}.small", bench.requests());
    let admin: AdminClient<_> = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &bench.config.bootstrap)
        .create()
        .unwrap();
    let wanted = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "20000");
    admin
        .create_topics([&wanted], &AdminOptions::new())
        .await
        .unwrap();
    let sink = bench.sink();

    let value = Some(Bytes::from(vec![7; 50_000]));
    let error = sink
        .send(OutgoingRecord {
            value,
            ..outgoing(&topic, 0)
        })
        .await
        .unwrap_err();

    assert!(
        matches!(
            &error,
            SinkError::TooLarge {
                allowed_by: "the broker",
                ..
            }
        ),
        "{error:?}"
    );
    sink.send(outgoing(&topic, 1)).await.unwrap();
}

/// Members join and leave cleanly while records are published: nothing lost, and (all of it clean) nothing
/// repeated.
async fn members(bench: &Bench) {
    const COUNT: u64 = 900;
    let finished = Arc::new(Finished::default());
    let publishing = async {
        for begin in (0..COUNT).step_by(30) {
            bench.publish(begin..begin + 30).await;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    };
    let working = async {
        let first = Member::join(bench, &finished);
        tokio::time::sleep(Duration::from_millis(2_000)).await;
        let second = Member::join(bench, &finished);
        tokio::time::sleep(Duration::from_millis(3_000)).await;
        first.leave().await;
        let third = Member::join(bench, &finished);
        tokio::time::sleep(Duration::from_millis(2_000)).await;
        second.leave().await;
        let limit = Instant::now() + STEP;
        while finished.distinct() < COUNT as usize && Instant::now() < limit {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        third.leave().await;
    };
    tokio::join!(publishing, working);

    assert_eq!(finished.numbers(), (0..COUNT).collect::<Vec<u64>>());
    assert_eq!(finished.repeats(), 0);
}

async fn latency(bench: &Bench) {
    let running = bench.start();
    let mut reader = Reader::open(&bench.config, bench.requests(), ReadFrom::End, STEP)
        .await
        .unwrap();
    let sink = bench.sink();
    sink.send(outgoing(bench.requests(), 0)).await.unwrap();
    running.record().await;

    let mut waits = Vec::new();
    for number in 1..60 {
        let began = Instant::now();
        sink.send(outgoing(bench.requests(), number)).await.unwrap();
        let record = running.record().await;
        waits.push(began.elapsed());
        running.tracker.release(&record.record_offset);
    }
    waits.sort();
    assert!(
        waits[30] < Duration::from_millis(80),
        "median {:?}, slowest {:?}",
        waits[30],
        waits[58]
    );

    let mut seen = 0;
    while seen < 60 {
        match reader.next(STEP).await.unwrap() {
            Read::Record(_) => seen += 1,
            Read::CaughtUp => {}
            Read::TimedOut => panic!("the reader saw {seen} of 60"),
        }
    }
}

/// Which records were finished, and how often.
#[derive(Default)]
struct Finished {
    counts: Arc<Mutex<BTreeMap<u64, usize>>>,
    turn: AtomicU64,
}

impl Finished {
    /// Finishes a record after 0 to 60 ms, so that they finish out of order.
    fn work_on(&self, record: Record, tracker: &OffsetTracker) {
        let (counts, tracker) = (self.counts.clone(), tracker.clone());
        let delay = self.turn.fetch_add(1, Ordering::Relaxed) * 37 % 61;
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            if matches!(tracker.release(&record.record_offset), Release::Released { .. }) {
                *counts.lock().unwrap().entry(number(&record)).or_default() += 1;
            }
        });
    }

    /// Another process says that it has finished a record.
    fn note(&self, number: u64) {
        *self.counts.lock().unwrap().entry(number).or_default() += 1;
    }

    fn distinct(&self) -> usize {
        self.counts.lock().unwrap().len()
    }

    fn numbers(&self) -> Vec<u64> {
        self.counts.lock().unwrap().keys().copied().collect()
    }

    fn repeats(&self) -> usize {
        self.counts.lock().unwrap().values().map(|count| count - 1).sum()
    }
}

/// A source with a task that works on what it hands out.
struct Member {
    source: Source,
    work: tokio::task::JoinHandle<()>,
}

impl Member {
    fn join(bench: &Bench, finished: &Arc<Finished>) -> Self {
        let Running {
            source,
            events,
            tracker,
        } = bench.start();
        let finished = finished.clone();
        let work = tokio::spawn(async move {
            while let Ok(event) = events.recv_async().await {
                if let SourceEvent::Record(record) = event {
                    finished.work_on(record, &tracker);
                }
            }
        });
        Self { source, work }
    }

    async fn leave(self) {
        self.source.close(STEP).await.unwrap();
        self.work.await.unwrap();
    }
}

fn config(bootstrap: String) -> KafkaConfig {
    static UNIQUE: AtomicU64 = AtomicU64::new(0);
    let id = format!(
        "{}-{}",
        std::process::id(),
        UNIQUE.fetch_add(1, Ordering::Relaxed)
    );
    let topic = |name: &str| format!("test.{id}.{name}");
    KafkaConfig {
        bootstrap,
        group_id: format!("test.{id}"),
        topics: TopicsConfig {
            requests: topic("requests"),
            results: topic("results"),
            labels: topic("labels"),
            control: topic("control"),
            events: topic("events"),
            dead_letters: topic("dead-letters"),
            ..TopicsConfig::default()
        },
        session_timeout_ms: 30_000, // nobody here dies without leaving, and a busy machine may stall for seconds
        revoke_wait_ms_max: 5_000,
        partitions: 3,
        ..KafkaConfig::default()
    }
}

fn outgoing(topic: &str, number: u64) -> OutgoingRecord {
    OutgoingRecord {
        topic: topic.into(),
        key: Some(Bytes::copy_from_slice(&number.to_le_bytes())),
        value: Some(Bytes::from(number.to_string())),
        headers: Vec::new(),
    }
}

fn number(record: &Record) -> u64 {
    std::str::from_utf8(record.value.as_ref().unwrap())
        .unwrap()
        .parse()
        .unwrap()
}

/// What the tracker counts for a record: its bytes and a fixed overhead.
fn running_bytes(record: &Record) -> u64 {
    let headers: usize = record
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len))
        .sum();
    let bytes =
        record.key.as_ref().map_or(0, Bytes::len) + record.value.as_ref().map_or(0, Bytes::len) + headers;
    bytes as u64 + 512
}

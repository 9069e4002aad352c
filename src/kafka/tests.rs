//! The module against librdkafka's mock cluster: small records only (it loses large ones), and errors on
//! order.

use std::time::Duration;

use bytes::Bytes;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use super::*;
use crate::kafka::config::{GroupProtocol, KafkaConfig};
use crate::wire::{OutgoingRecord, Record};

mod orders;
mod sink;
mod source;

/// Longest that any test waits for one thing.
const LIMIT: Duration = Duration::from_secs(30);
const TOPIC: &str = "speechverse.requests";

/// A mock cluster of one broker with one topic, and settings that fit it.
struct Cluster {
    mock: MockCluster<'static, DefaultProducerContext>,
    config: KafkaConfig,
    /// What a source reads.
    topic: &'static str,
}

impl Cluster {
    fn new(partitions: i32) -> Self {
        let mock = MockCluster::new(1).unwrap();
        mock.create_topic(TOPIC, partitions, 1).unwrap();
        let config = KafkaConfig {
            bootstrap: mock.bootstrap_servers(),
            commit_interval_ms: 50,
            session_timeout_ms: 6_000,
            ..KafkaConfig::default()
        };
        let topic = TOPIC;
        Self { mock, config, topic }
    }

    /// The mock shares partitions out at once under this protocol, and after three seconds under the classic
    /// one.
    fn quick(partitions: i32) -> Self {
        let mut cluster = Self::new(partitions);
        cluster.config.group_protocol = GroupProtocol::Consumer;
        cluster
    }

    async fn publish(&self, count: usize) {
        let sink = Sink::new(&self.config).unwrap();
        for index in 0..count {
            sink.send(outgoing(&index.to_string())).await.unwrap();
        }
        sink.close(LIMIT).await.unwrap();
    }

    /// Publishes records of different keys, so that each of several partitions has some of them.
    async fn publish_keyed(&self, count: usize) {
        self.publish_with((0..count).map(|key| Bytes::from(key.to_string())))
            .await;
    }

    /// Publishes records of one key, which are of one partition.
    async fn publish_as(&self, key: &'static str, count: usize) {
        self.publish_with((0..count).map(|_| Bytes::from_static(key.as_bytes())))
            .await;
    }

    /// Publishes a record of each key.
    async fn publish_with(&self, keys: impl Iterator<Item = Bytes>) {
        let sink = Sink::new(&self.config).unwrap();
        for key in keys {
            sink.send(OutgoingRecord {
                key: Some(key),
                ..outgoing("sound")
            })
            .await
            .unwrap();
        }
        sink.close(LIMIT).await.unwrap();
    }

    fn start(&self) -> Running {
        self.start_with(Budget::new(self.config.in_flight_bytes_max))
    }

    fn start_with(&self, budget: Budget) -> Running {
        let tracker = OffsetTracker::new(budget);
        let config = SourceConfig {
            kafka: self.config.clone(),
            topics: vec![self.topic.to_owned()],
            monitor: ConnectionMonitor::default(),
        };
        let monitor = config.monitor.clone();
        let (source, events) = Source::start(config, tracker.clone()).unwrap();
        Running {
            source,
            events,
            tracker,
            monitor,
        }
    }
}

/// A source with its channel and its tracker.
struct Running {
    source: Source,
    events: flume::Receiver<SourceEvent>,
    tracker: OffsetTracker,
    monitor: ConnectionMonitor,
}

impl Running {
    async fn event(&self) -> SourceEvent {
        tokio::time::timeout(LIMIT, self.events.recv_async())
            .await
            .expect("an event in time")
            .unwrap()
    }

    async fn record(&self) -> Record {
        loop {
            match self.event().await {
                SourceEvent::Record(record) => return record,
                SourceEvent::Failed(error) => panic!("{error}"),
                SourceEvent::Assigned { .. } | SourceEvent::Revoked(_) => {}
            }
        }
    }

    async fn records(&self, count: usize) -> Vec<Record> {
        let mut records = Vec::new();
        while records.len() < count {
            records.push(self.record().await);
        }
        records
    }

    /// The next partitions that are taken away.
    /// The next revocation, before which no record may come.
    async fn revoked(&self) -> Revocation {
        loop {
            match self.event().await {
                SourceEvent::Revoked(revocation) => return revocation,
                SourceEvent::Assigned { .. } => {}
                other => panic!("an event that a test would lose: {other:?}"),
            }
        }
    }

    /// Whether no record arrives for a while.
    async fn is_silent(&self) -> bool {
        tokio::time::timeout(Duration::from_millis(600), self.record())
            .await
            .is_err()
    }
}

fn outgoing(value: &str) -> OutgoingRecord {
    OutgoingRecord {
        topic: TOPIC.into(),
        key: None,
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: Vec::new(),
    }
}

fn text(record: &Record) -> String {
    String::from_utf8(record.value.clone().unwrap().to_vec()).unwrap()
}

fn texts(records: &[Record]) -> Vec<String> {
    records.iter().map(text).collect()
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waited)
        .await
        .unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_partition_that_has_no_leader_yet_is_asked_for_again() {
    use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Code};
    let cluster = Cluster::new(1);
    cluster.publish(3).await;
    let errors = [
        Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
    ];
    cluster.mock.request_errors(Api::ListOffsets, &errors);

    let end = admin::end_of(&cluster.config, TOPIC, 0, LIMIT).await;

    assert_eq!(end.unwrap(), 3);
}

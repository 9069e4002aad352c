//! Who reads what came of the requests: with a Kafka client alone, committed records only, nothing of ours.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientConfig, bindings};

/// Longest that the broker may take to answer.
const BROKER_MAX: Duration = Duration::from_secs(30);
/// Longest that the end of a topic may take to be reached.
const END_MAX: Duration = Duration::from_secs(120);

/// A client to which nothing happens for so long is given its brokers again.
const QUIET_MAX: Duration = Duration::from_secs(15);

/// Gives a client that has been quiet its brokers again: after an outage librdkafka (2.12) may have forgotten
/// them (issue 5301).
pub(crate) struct BrokerRestorer {
    servers: CString,
    quiet_since: Instant,
}

impl BrokerRestorer {
    pub(crate) fn new(bootstrap: &str) -> Self {
        Self {
            servers: CString::new(bootstrap).unwrap(),
            quiet_since: Instant::now(),
        }
    }

    pub(crate) fn reset(&mut self) {
        self.quiet_since = Instant::now();
    }

    pub(crate) fn look_at<C: ClientContext>(&mut self, client: &Client<C>) {
        if self.quiet_since.elapsed() > QUIET_MAX {
            self.reset();
            // SAFETY: client and text outlive the call, which copies the text and is allowed on any thread.
            unsafe { bindings::rd_kafka_brokers_add(client.native_ptr(), self.servers.as_ptr()) };
        }
    }
}

/// What a record says became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A final answer, with its text.
    Answer(String),
    /// A dead letter, with its reason.
    DeadLetter(String),
}

/// A record of the results or the dead letters.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) id: String,
    pub(crate) key: Vec<u8>,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) outcome: Outcome,
    /// Records whose outcome it is: of a stream that failed as a whole, its last chunk's stands for all.
    pub(crate) records: usize,
    /// Of a dead letter: which chunk of its stream it is; for who reads what was found.
    #[expect(dead_code, reason = "it is shown with the rest")]
    pub(crate) chunk: Option<String>,
}

/// The two topics in which outcomes are.
#[derive(Clone, Debug)]
pub(crate) struct Outputs {
    pub(crate) bootstrap: String,
    pub(crate) results: String,
    pub(crate) dead_letters: String,
}

impl Outputs {
    fn consumer(&self, topics: &[&str]) -> BaseConsumer {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("broker.address.family", "v4")
            .set("group.id", "fault-suite") // never joined
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("reconnect.backoff.max.ms", "500")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        for topic in topics {
            let metadata = consumer.fetch_metadata(Some(topic), BROKER_MAX).unwrap();
            for partition in metadata.topics()[0].partitions() {
                list.add_partition_offset(topic, partition.id(), Offset::Beginning)
                    .unwrap();
            }
        }
        consumer.assign(&list).unwrap();
        consumer
    }

    fn seen(&self, message: &BorrowedMessage<'_>) -> Option<Seen> {
        let (id, outcome, records) = if message.topic() == self.dead_letters {
            let reason = header(message, "speechverse_reason").expect("a dead letter has a reason");
            let id = header(message, "ce_id").unwrap_or_default();
            let earlier = header(message, "speechverse_earlier_chunks");
            let earlier = earlier.map_or(0, |count| count.parse().expect("a number of chunks"));
            (id, Outcome::DeadLetter(reason), earlier + 1)
        } else {
            let value = message.payload().expect("an answer has a value");
            let answer: serde_json::Value = serde_json::from_slice(value).expect("an answer is JSON");
            let field = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
            if field("kind") != "final" {
                return None;
            }
            assert_eq!(field("id"), format!("{}:final", field("request_id")));
            (field("request_id"), Outcome::Answer(field("text")), 1)
        };
        Some(Seen {
            id,
            key: message.key().unwrap_or_default().to_vec(),
            partition: message.partition(),
            offset: message.offset(),
            outcome,
            records,
            chunk: header(message, "ce_sequence"),
        })
    }

    /// Everything, from the beginning to the end, in the order of each partition.
    pub(crate) fn read_all(&self) -> Vec<Seen> {
        let mut all = Vec::new();
        for topic in [&self.results, &self.dead_letters] {
            self.read(topic, |message| all.extend(self.seen(message)));
        }
        all
    }

    fn read(&self, topic: &str, mut take: impl FnMut(&BorrowedMessage<'_>)) {
        let consumer = self.consumer(&[topic]);
        let mut partitions_left = consumer.assignment().unwrap().count();
        let deadline = Instant::now() + END_MAX;
        while partitions_left > 0 {
            assert!(Instant::now() < deadline, "the end of {topic} is not reached");
            match consumer.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => take(&message),
                Some(Err(KafkaError::PartitionEOF(_))) => partitions_left -= 1,
                Some(Err(_)) | None => {} // connections are tried again
            }
        }
    }

    /// For who looks into a run that stands still: where requests without an outcome are in their topic, what
    /// the group has committed of it, where its partitions end, and whether their outcomes are there after
    /// all.
    pub(crate) fn look(&self, topic: &str, group: &str, without_outcome: &BTreeSet<String>) -> String {
        let mut text = String::new();
        self.read(topic, |message| {
            if let Some(id) = header(message, "ce_id").filter(|id| without_outcome.contains(id)) {
                let _ = writeln!(text, "{id} is at {}/{}", message.partition(), message.offset());
            }
        });
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("broker.address.family", "v4")
            .set("group.id", group)
            .create()
            .unwrap();
        let metadata = consumer.fetch_metadata(Some(topic), BROKER_MAX).unwrap();
        let mut list = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            list.add_partition(topic, partition.id());
        }
        for found in consumer.committed_offsets(list, BROKER_MAX).unwrap().elements() {
            let ends = consumer.fetch_watermarks(topic, found.partition(), BROKER_MAX);
            let _ = writeln!(text, "{found:?}, its partition: {ends:?}");
        }
        let seen = self.read_all();
        let late = seen.iter().filter(|seen| without_outcome.contains(&seen.id));
        let _ = writeln!(
            text,
            "in the log by now: {:?}",
            late.map(|seen| &seen.id).collect::<Vec<_>>()
        );
        text
    }
}

fn header(message: &BorrowedMessage<'_>, name: &str) -> Option<String> {
    let headers = message.headers()?;
    let found = headers.iter().filter(|header| header.key == name).last()?;
    Some(String::from_utf8_lossy(found.value?).into_owned())
}

/// Reads along, to know when an outcome was there to be read.
pub(crate) struct Watch {
    arrivals: Arc<Mutex<HashMap<String, Instant>>>,
    is_over: Arc<AtomicBool>,
}

impl Watch {
    pub(crate) fn start(outputs: &Outputs) -> Self {
        let consumer = outputs.consumer(&[&outputs.results, &outputs.dead_letters]);
        let (arrivals, is_over) = (
            Arc::<Mutex<HashMap<_, _>>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let watch = Self {
            arrivals: Arc::clone(&arrivals),
            is_over: Arc::clone(&is_over),
        };
        let outputs = outputs.clone();
        std::thread::spawn(move || {
            let mut restorer = BrokerRestorer::new(&outputs.bootstrap);
            while !is_over.load(Ordering::Relaxed) {
                restorer.look_at(consumer.client());
                if let Some(Ok(message)) = consumer.poll(Duration::from_millis(50))
                    && let Some(seen) = outputs.seen(&message)
                {
                    restorer.reset();
                    arrivals
                        .lock()
                        .unwrap()
                        .entry(seen.id)
                        .or_insert_with(Instant::now);
                }
            }
        });
        watch
    }

    /// When the first outcome of a request was there.
    pub(crate) fn arrival(&self, id: &str) -> Option<Instant> {
        self.arrivals.lock().unwrap().get(id).copied()
    }

    /// Requests, labels and orders with an outcome.
    pub(crate) fn count(&self) -> usize {
        self.arrivals.lock().unwrap().len()
    }
}

impl Watch {
    /// One that has seen these, now.
    pub(crate) fn of(ids: impl Iterator<Item = String>) -> Self {
        Self::with(ids.map(|id| (id, Instant::now())).collect())
    }

    /// One that has seen this, then.
    pub(crate) fn at(id: &str, arrival: Instant) -> Self {
        Self::with(HashMap::from([(id.to_owned(), arrival)]))
    }

    fn with(arrivals: HashMap<String, Instant>) -> Self {
        Self {
            arrivals: Arc::new(Mutex::new(arrivals)),
            is_over: Arc::default(),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

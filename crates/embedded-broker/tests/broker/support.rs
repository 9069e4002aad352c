//! Where to connect, how to skip out loud, and the clients that most checks need.

use std::collections::HashSet;
use std::future::Future;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use embedded_broker::{BrokerConfig, EmbeddedBroker};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// Longest that any check may take.
const CHECK_TIME_MAX: Duration = Duration::from_secs(90);
/// Longest that one step of a check may take.
pub(crate) const STEP: Duration = Duration::from_secs(15);

/// Which broker a check runs on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Embedded,
    ApacheKafka,
}

/// A broker to check.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) bootstrap: String,
    pub(crate) kind: Kind,
}

impl Target {
    /// The embedded broker, one for all checks, on a runtime of its own.
    pub(crate) fn embedded() -> Self {
        static BOOTSTRAP: OnceLock<String> = OnceLock::new();
        let bootstrap = BOOTSTRAP.get_or_init(|| {
            let (sender, receiver) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                runtime().block_on(async {
                    let broker = EmbeddedBroker::start(BrokerConfig::default())
                        .await
                        .expect("the broker starts");
                    sender
                        .send(broker.bootstrap())
                        .expect("the test waits for the address");
                    std::future::pending::<()>().await;
                });
            });
            receiver.recv().expect("the broker's address arrives")
        });
        Self {
            bootstrap: bootstrap.clone(),
            kind: Kind::Embedded,
        }
    }

    /// The Apache Kafka that `SPEECHVERSE_KAFKA` names, if it answers.
    pub(crate) fn apache_kafka() -> Result<Self, String> {
        static FOUND: OnceLock<Result<String, String>> = OnceLock::new();
        let found = FOUND.get_or_init(|| {
            let bootstrap = std::env::var("SPEECHVERSE_KAFKA").map_err(|_| {
                "SPEECHVERSE_KAFKA is not set; scripts/kafka/suite.sh starts one and sets it".to_owned()
            })?;
            let client: BaseConsumer = ClientConfig::new()
                .set("bootstrap.servers", &bootstrap)
                .create()
                .map_err(|error| error.to_string())?;
            let answer = client.fetch_metadata(None, Duration::from_secs(10));
            answer
                .map(|_| bootstrap.clone())
                .map_err(|error| format!("no Kafka answers at {bootstrap}: {error}"))
        });
        found.clone().map(|bootstrap| Self {
            bootstrap,
            kind: Kind::ApacheKafka,
        })
    }

    /// The settings that every client here starts from.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("broker.address.family", "v4")
            .set("message.max.bytes", "60000000")
            .set("log_level", "3");
        config
    }

    pub(crate) fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("fetch.message.max.bytes", "20000000")
            .set("fetch.wait.max.ms", "100");
        config
    }

    pub(crate) fn producer(&self) -> Result<FutureProducer> {
        Ok(self
            .client()
            .set("message.timeout.ms", "15000")
            .set("linger.ms", "0")
            .create()?)
    }

    pub(crate) fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        Ok(self.client().create()?)
    }

    /// Makes a topic of a name nobody else uses.
    pub(crate) async fn topic(&self, purpose: &str, partitions: i32) -> Result<String> {
        self.topic_with(purpose, partitions, &[]).await
    }

    /// Makes a topic of a name nobody else uses, with settings.
    pub(crate) async fn topic_with(
        &self,
        purpose: &str,
        partitions: i32,
        settings: &[(&str, &str)],
    ) -> Result<String> {
        let name = unique(purpose);
        let mut topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        let results = self
            .admin()?
            .create_topics([&topic], &AdminOptions::new())
            .await?;
        for result in results {
            result.map_err(|(name, error)| anyhow::anyhow!("creating {name}: {error}"))?;
        }
        Ok(name)
    }

    /// Reads a topic from its beginning to its present end.
    pub(crate) async fn read_all(&self, topic: &str, isolation: &str) -> Result<Vec<Got>> {
        let config = self
            .consumer(&unique("reader"))
            .set("isolation.level", isolation)
            .set("enable.partition.eof", "true")
            .clone();
        let topic = topic.to_owned();
        blocking(move || read_to_end(&config, &topic)).await
    }

    /// The values of a topic as text, sorted by partition and offset.
    pub(crate) async fn texts(&self, topic: &str, isolation: &str) -> Result<Vec<String>> {
        let mut all = self.read_all(topic, isolation).await?;
        all.sort_by_key(|got| (got.partition, got.offset));
        Ok(all
            .iter()
            .map(|got| String::from_utf8_lossy(got.value.as_deref().unwrap_or(b"")).into_owned())
            .collect())
    }
}

/// A record as a reader got it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Got {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp_ms: Option<i64>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

fn read_to_end(config: &ClientConfig, topic: &str) -> Result<Vec<Got>> {
    let consumer: BaseConsumer = config.create()?;
    let metadata = consumer.fetch_metadata(Some(topic), STEP)?;
    let partitions = metadata
        .topics()
        .first()
        .context("the topic is described")?
        .partitions();
    let mut from_the_start = TopicPartitionList::new();
    for partition in partitions {
        from_the_start.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
    }
    consumer.assign(&from_the_start)?;
    let (mut all, mut finished, started) = (Vec::new(), HashSet::new(), Instant::now());
    while finished.len() < partitions.len() {
        ensure!(
            started.elapsed() < STEP,
            "{} of {} partitions have no end",
            finished.len(),
            partitions.len()
        );
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                finished.insert(partition);
            }
            Some(Err(error)) => bail!("reading {topic}: {error}"),
            Some(Ok(message)) => {
                let headers = message.headers().map(|headers| {
                    headers
                        .iter()
                        .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
                        .collect()
                });
                all.push(Got {
                    partition: message.partition(),
                    offset: message.offset(),
                    timestamp_ms: message.timestamp().to_millis(),
                    key: message.key().map(<[u8]>::to_vec),
                    value: message.payload().map(<[u8]>::to_vec),
                    headers: headers.unwrap_or_default(),
                });
            }
        }
    }
    Ok(all)
}

/// Writes one text and waits until it is acknowledged; answers its offset.
pub(crate) async fn write(producer: &FutureProducer, topic: &str, partition: i32, text: &str) -> Result<i64> {
    let record = FutureRecord::<str, str>::to(topic)
        .partition(partition)
        .payload(text);
    match producer.send(record, STEP).await {
        Ok(delivery) => Ok(delivery.offset),
        Err((error, _)) => Err(error).with_context(|| format!("writing {text:?} to {topic}/{partition}")),
    }
}

/// Runs a call of rdkafka that blocks.
pub(crate) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(call)
        .await
        .expect("the blocking call does not panic")
}

/// Waits until `done`, looking often; answers how long it took.
pub(crate) async fn eventually(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> bool,
) -> Result<Duration> {
    let started = Instant::now();
    while !done() {
        ensure!(started.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(started.elapsed())
}

/// A name that no other check uses, in this run or another.
pub(crate) fn unique(purpose: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970");
    format!(
        "{purpose}-{:x}-{:x}",
        now.as_micros(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970")
        .as_millis() as i64
}

/// Says something that libtest does not swallow.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Says that a check did not run, and why.
pub(crate) fn skip(check: &str, why: &str) {
    say(&format!("SKIPPED: {check}: {why}"));
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be built")
}

/// Runs one check on a runtime of its own.
pub(crate) fn run<F: Future<Output = Result<()>>>(check: F) {
    let outcome = runtime().block_on(async { tokio::time::timeout(CHECK_TIME_MAX, check).await });
    match outcome {
        Err(_) => panic!("the check took longer than {CHECK_TIME_MAX:?}"),
        Ok(Err(error)) => panic!("{error:?}"),
        Ok(Ok(())) => {}
    }
}

/// Turns checks into tests: once for the embedded broker, once for Apache Kafka.
macro_rules! suite {
    ($($name:ident => $module:ident::$check:ident),* $(,)?) => {
        mod embedded {
            use super::support::{Target, run};

            $(
                #[test]
                fn $name() {
                    run(super::$module::$check(Target::embedded()));
                }
            )*
        }

        mod apache_kafka {
            use super::support::{Target, run, skip};

            $(
                #[test]
                fn $name() {
                    match Target::apache_kafka() {
                        Ok(target) => run(super::$module::$check(target)),
                        Err(why) => skip(concat!("apache_kafka::", stringify!($name)), &why),
                    }
                }
            )*
        }
    };
}

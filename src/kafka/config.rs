//! The `[kafka]` table: broker, topics, delivery, back-pressure, and what is passed on to librdkafka.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::transactions::Batching;
use crate::util::ConfigError;

mod overrides;

pub use overrides::ClientOverrides;

/// Largest record that the settings allow, bytes: the whole of one record has to fit into memory several
/// times.
const MESSAGE_BYTES_CAP: usize = 512 * 1024 * 1024; // 512 MiB
/// Space that librdkafka wants above the largest record, bytes: a batch has a header of its own.
const BATCH_OVERHEAD_BYTES: usize = 64 * 1024;

/// The `[kafka]` table.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaConfig {
    /// Where the brokers are: `host:port`, several separated by commas. Not used with `embedded = true`,
    /// where the embedded broker's own address takes its place.
    pub bootstrap: String,
    /// Start a broker inside this process, for trying, developing and testing; it keeps nothing after the
    /// end.
    pub embedded: bool,
    /// Consumer group. Every process of one pipeline has the same; two pipelines on the same topics have two.
    pub group_id: String,
    /// Names of the topics.
    pub topics: TopicsConfig,
    /// Name of this process in its group, the same after a restart and different from all others'. The group
    /// then waits `session_timeout_ms` for a process that restarts before it hands its partitions on (static
    /// membership), and `exactly_once` shuts out an earlier process of the name that is still at work. Empty:
    /// no name.
    pub instance_id: String,
    /// How the group shares its partitions out.
    pub group_protocol: GroupProtocol,
    /// What a crash may do to an answer: `at_least_once` may repeat it (under the same id), `exactly_once`
    /// does not.
    pub delivery: Delivery,
    /// How often finished offsets are committed, milliseconds. At least once: smaller means fewer repeats
    /// after a crash. Exactly once: least time between two transactions, and so the longest that an answer
    /// waits for one.
    pub commit_interval_ms: u64,
    /// Exactly once: answers in one transaction; as many do not wait for the interval.
    pub transaction_records_max: usize,
    /// Exactly once: the broker ends a transaction that is open for so long, milliseconds. A process that
    /// hangs holds back readers of the results for as long.
    pub transaction_timeout_ms: u64,
    /// A process that is silent for so long loses its partitions to the others, milliseconds.
    pub session_timeout_ms: u64,
    /// Longest a rebalance waits for the records in flight of a partition that is taken away, milliseconds.
    pub revoke_wait_ms_max: u64,
    /// Longest the broker may take to acknowledge a record that we write, repeats included, milliseconds.
    pub send_timeout_ms: u64,
    /// The process says that it is not ready when no broker has been in reach for so long, milliseconds.
    pub unreachable_ms_max: u64,
    /// Partitions of a topic that is created because it is missing.
    pub partitions: i32,
    /// Copies of a topic that is created because it is missing; -1 leaves it to the broker.
    pub replication: i32,
    /// Largest record, bytes: read, written, and as `max.message.bytes` of topics that are created.
    pub message_bytes_max: usize,
    /// Records read and not yet taken by the first stage; above it the partitions pause.
    pub queue_records_max: usize,
    /// Records read and not yet answered; above it the partitions pause.
    pub in_flight_records_max: usize,
    /// Bytes read and not yet answered, decoded audio included; above it the partitions pause, below half
    /// they resume.
    pub in_flight_bytes_max: u64,
    /// Bytes written and not yet acknowledged; a writer waits above it.
    pub send_buffer_bytes_max: usize,
    /// librdkafka properties for all clients, such as `"security.protocol" = "SASL_SSL"`. A value `env:NAME`
    /// is taken from the environment, which is the place for secrets.
    pub client: ClientOverrides,
    /// librdkafka properties for consumers only; they win over `client`.
    pub consumer: ClientOverrides,
    /// librdkafka properties for producers only; they win over `client`.
    pub producer: ClientOverrides,
}

/// The `[kafka.topics]` table.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct TopicsConfig {
    /// Audio and instructions, in.
    pub requests: String,
    /// Answers, out.
    pub results: String,
    /// Labelled samples and corrections, in.
    pub labels: String,
    /// Orders: retrain, promote, roll back, pause, resume; in.
    pub control: String,
    /// What happened: training progress, verdicts, swaps; out.
    pub events: String,
    /// Records that could not be answered, with the reason, out.
    pub dead_letters: String,
    /// Topics that a request may name in `ce_replytopic` for its answers, beside `results`; none unless
    /// listed here.
    pub replies: Vec<String>,
}

/// What a crash may do to an answer.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Never lost; after a crash possibly repeated, under the same id.
    #[default]
    AtLeastOnce,
    /// Never lost, never repeated: answers, dead letters and offsets in Kafka transactions. Who reads the
    /// topics has to set `isolation.level = read_committed`.
    ExactlyOnce,
}

/// How a consumer group shares its partitions out.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum GroupProtocol {
    /// A member shares them out, cooperatively: only the partitions that move stand still. Every broker knows
    /// it.
    #[default]
    Classic,
    /// The broker shares them out (KIP-848): rebalances are faster. Apache Kafka 4.0 and later, and not the
    /// embedded broker; the session time-out is the broker's setting `group.consumer.session.timeout.ms`.
    Consumer,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            bootstrap: "127.0.0.1:9092".to_owned(),
            embedded: false,
            group_id: "speechverse".to_owned(),
            topics: TopicsConfig::default(),
            instance_id: String::new(),
            group_protocol: GroupProtocol::default(),
            delivery: Delivery::default(),
            commit_interval_ms: 100,
            transaction_records_max: 256,
            transaction_timeout_ms: 10_000,
            session_timeout_ms: 20_000,
            revoke_wait_ms_max: 1_000,
            send_timeout_ms: 30_000,
            unreachable_ms_max: 5_000,
            partitions: 4,
            replication: -1,
            message_bytes_max: 16_000_000, // 8 minutes of 16 kHz mono 16-bit sound
            queue_records_max: 64,
            in_flight_records_max: 1_024,
            in_flight_bytes_max: 256 * 1024 * 1024,  // 256 MiB
            send_buffer_bytes_max: 64 * 1024 * 1024, // 64 MiB
            client: ClientOverrides::default(),
            consumer: ClientOverrides::default(),
            producer: ClientOverrides::default(),
        }
    }
}

impl Default for TopicsConfig {
    fn default() -> Self {
        Self {
            requests: "speechverse.requests".to_owned(),
            results: "speechverse.results".to_owned(),
            labels: "speechverse.labels".to_owned(),
            control: "speechverse.control".to_owned(),
            events: "speechverse.events".to_owned(),
            dead_letters: "speechverse.dead-letters".to_owned(),
            replies: Vec::new(),
        }
    }
}

impl TopicsConfig {
    /// Every topic with the name of its setting, in the order of the table.
    pub fn all(&self) -> Vec<(&'static str, &str)> {
        let replies = self.replies.iter().map(|topic| ("replies", topic.as_str()));
        let others = [
            ("requests", self.requests.as_str()),
            ("results", &self.results),
            ("labels", &self.labels),
            ("control", &self.control),
            ("events", &self.events),
            ("dead_letters", &self.dead_letters),
        ];
        others.into_iter().chain(replies).collect()
    }
}

impl KafkaConfig {
    /// Checks ranges and the rules between settings, and that every `env:NAME` is there.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] for the first rule that does not hold.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_names()?;
        self.validate_group()?;
        ConfigError::range("kafka.commit_interval_ms", self.commit_interval_ms, 1, 60_000)?;
        ConfigError::range(
            "kafka.session_timeout_ms",
            self.session_timeout_ms,
            1_000,
            1_800_000,
        )?;
        ConfigError::range("kafka.revoke_wait_ms_max", self.revoke_wait_ms_max, 0, 60_000)?;
        ConfigError::range("kafka.send_timeout_ms", self.send_timeout_ms, 100, 3_600_000)?;
        ConfigError::range(
            "kafka.unreachable_ms_max",
            self.unreachable_ms_max,
            500,
            3_600_000,
        )?;
        ConfigError::range("kafka.partitions", self.partitions, 1, 10_000)?;
        if self.replication != -1 {
            ConfigError::range("kafka.replication", self.replication, 1, 100)?;
        }
        let message_bytes_max = self.message_bytes_max;
        ConfigError::range(
            "kafka.message_bytes_max",
            message_bytes_max,
            1_024,
            MESSAGE_BYTES_CAP,
        )?;
        ConfigError::range("kafka.queue_records_max", self.queue_records_max, 1, 100_000)?;
        ConfigError::range(
            "kafka.in_flight_records_max",
            self.in_flight_records_max,
            1,
            1_000_000,
        )?;
        self.validate_sizes()?;
        let tables = [
            ("client", &self.client),
            ("consumer", &self.consumer),
            ("producer", &self.producer),
        ];
        for (table, overrides) in tables {
            overrides.validate(table)?;
        }
        Ok(())
    }

    /// Largest record plus the header of the batch that carries it, bytes: what librdkafka and a fetch must
    /// allow.
    pub fn batch_bytes_max(&self) -> usize {
        self.message_bytes_max + BATCH_OVERHEAD_BYTES
    }

    /// `transactional.id` of this process: two of one group and name shut each other out, two without a name
    /// never do.
    pub(super) fn transactional_id(&self) -> String {
        match self.instance_id.as_str() {
            "" => {
                let random = RandomState::new().build_hasher().finish();
                format!("{}-{random:016x}", self.group_id)
            }
            name => format!("{}-{name}", self.group_id),
        }
    }

    /// Longest that the records, or the offsets, of a transaction may take: what is left of its time is for
    /// ending it.
    pub(super) fn transaction_send_timeout(&self) -> Duration {
        Duration::from_millis(self.send_timeout_ms.min(self.transaction_timeout_ms / 2))
    }

    /// When transactions begin, and how large they are.
    pub(super) fn batching(&self) -> Batching {
        Batching {
            interval: Duration::from_millis(self.commit_interval_ms),
            outcomes_max: self.transaction_records_max,
            bytes_max: self.send_buffer_bytes_max / 2, // librdkafka counts more than we do
            timeout: Duration::from_millis(self.transaction_timeout_ms),
        }
    }

    fn validate_group(&self) -> Result<(), ConfigError> {
        let name = &self.instance_id;
        if !name.is_empty() && !is_topic_name(name) {
            return Err(ConfigError::invalid(
                "kafka.instance_id",
                format!("`{name}` is no name: 1 to 249 of `a-z A-Z 0-9 . _ -`, and neither `.` nor `..`"),
            ));
        }
        if self.group_protocol == GroupProtocol::Consumer && self.embedded {
            return Err(ConfigError::invalid(
                "kafka.group_protocol",
                "`consumer` needs Apache Kafka 4.0 or later; the embedded broker knows only `classic`",
            ));
        }
        ConfigError::range(
            "kafka.transaction_records_max",
            self.transaction_records_max,
            1,
            100_000,
        )?;
        let timeout_ms = self.transaction_timeout_ms;
        ConfigError::range("kafka.transaction_timeout_ms", timeout_ms, 1_000, 900_000)?;
        if self.delivery == Delivery::ExactlyOnce && self.commit_interval_ms >= timeout_ms / 2 {
            return Err(ConfigError::invalid(
                "kafka.commit_interval_ms",
                format!(
                    "{} must be less than half of `kafka.transaction_timeout_ms`",
                    self.commit_interval_ms
                ),
            ));
        }
        Ok(())
    }

    fn validate_names(&self) -> Result<(), ConfigError> {
        if self
            .bootstrap
            .split(',')
            .any(|address| !looks_like_address(address.trim()))
        {
            return Err(ConfigError::invalid(
                "kafka.bootstrap",
                format!(
                    "`{}` is not `host:port`, or several of them separated by commas",
                    self.bootstrap
                ),
            ));
        }
        if self.group_id.trim().is_empty() || self.group_id.contains('\0') {
            return Err(ConfigError::invalid(
                "kafka.group_id",
                "must be a name that is not empty",
            ));
        }
        let topics = self.topics.all();
        for (index, (setting, name)) in topics.iter().enumerate() {
            let key = format!("kafka.topics.{setting}");
            if !is_topic_name(name) {
                return Err(ConfigError::invalid(
                    key,
                    format!(
                        "`{name}` is no topic name: 1 to 249 of `a-z A-Z 0-9 . _ -`, and neither `.` nor `..`"
                    ),
                ));
            }
            if let Some((other, _)) = topics[..index].iter().find(|(_, earlier)| earlier == name) {
                return Err(ConfigError::invalid(
                    key,
                    format!("`{name}` is the name of `kafka.topics.{other}` too; each topic needs its own"),
                ));
            }
        }
        Ok(())
    }

    fn validate_sizes(&self) -> Result<(), ConfigError> {
        let batch = self.batch_bytes_max();
        if self.in_flight_bytes_max < batch as u64 {
            return Err(ConfigError::invalid(
                "kafka.in_flight_bytes_max",
                format!(
                    "{} cannot hold one record of `kafka.message_bytes_max`; {batch} is enough",
                    self.in_flight_bytes_max
                ),
            ));
        }
        if self.send_buffer_bytes_max < batch {
            return Err(ConfigError::invalid(
                "kafka.send_buffer_bytes_max",
                format!(
                    "{} cannot hold one record of `kafka.message_bytes_max`; {batch} is enough",
                    self.send_buffer_bytes_max
                ),
            ));
        }
        ConfigError::range(
            "kafka.send_buffer_bytes_max",
            self.send_buffer_bytes_max,
            batch,
            1 << 31,
        )
    }
}

/// Whether Kafka accepts `name` as a topic.
fn is_topic_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=249).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(allowed)
}

/// Whether `text` could be `host:port`, or `protocol://host:port` as librdkafka allows.
fn looks_like_address(text: &str) -> bool {
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    !host.is_empty() && !host.contains(char::is_whitespace) && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests;

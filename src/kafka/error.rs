//! What can go wrong between us and the broker.

use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};

use crate::util::ConfigError;

/// A source, a reader or an administrative call failed.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    /// A setting is wrong.
    #[error(transparent)]
    Settings(#[from] ConfigError),
    /// librdkafka refuses a property.
    #[error("librdkafka refuses the property `{property}`: {reason}")]
    Property {
        /// Name of the property.
        property: String,
        /// librdkafka's reason; it does not hold the value.
        reason: String,
    },
    /// A client cannot be made.
    #[error("cannot make a Kafka {client}: {reason}")]
    Client {
        /// `consumer`, `producer` or `admin client`.
        client: &'static str,
        /// librdkafka's reason.
        reason: String,
    },
    /// No broker answers.
    #[error(
        "no Kafka broker answers at `{bootstrap}` after {waited_ms} ms ({reason}): start it, correct `kafka.bootstrap`, or use the embedded broker"
    )]
    Unreachable {
        /// The addresses that were tried.
        bootstrap: String,
        /// How long they were tried, milliseconds.
        waited_ms: u128,
        /// librdkafka's reason.
        reason: String,
    },
    /// The broker refuses something about a topic.
    #[error("topic `{topic}`: cannot {action}: {reason}")]
    Topic {
        /// Name of the topic.
        topic: String,
        /// What was asked for.
        action: &'static str,
        /// The broker's reason.
        reason: String,
    },
    /// The topic does not exist.
    #[error("topic `{topic}` does not exist: create it, or start `serve`, which does")]
    NoSuchTopic {
        /// Name of the topic.
        topic: String,
    },
    /// The control topic has several partitions, and orders would not stay in order.
    #[error(
        "the control topic `{topic}` has {partitions} partitions, expected 1: orders in several partitions overtake \
         each other; stop who writes to it, delete it (`kafka-topics.sh --delete --topic {topic}`) and start again, \
         which makes it anew, or name another topic in `kafka.topics.control`"
    )]
    OrdersOvertake {
        /// Name of the topic.
        topic: String,
        /// How many partitions it has.
        partitions: usize,
    },
    /// The consumer cannot go on and has to be made anew.
    #[error("the consumer of {topics} cannot go on: {reason}")]
    Fatal {
        /// What it reads.
        topics: String,
        /// librdkafka's reason.
        reason: String,
    },
    /// The thread that reads cannot be started.
    #[error("cannot start the thread that reads from Kafka: {source}")]
    Thread {
        /// The system's reason.
        source: std::io::Error,
    },
    /// The thread that reads has ended.
    #[error("the thread that reads from Kafka has ended")]
    Ended,
    /// The source did not end in time; its thread goes on in the background.
    #[error(
        "the source did not end within {waited_ms} ms (is the broker gone?); finished records may be repeated"
    )]
    CloseTimedOut {
        /// How long it was waited for, milliseconds.
        waited_ms: u128,
    },
}

/// A record could not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// It is larger than the settings or the topic allow; it can be written without its value, or not at all.
    #[error(
        "a record of {bytes} bytes is too large for topic `{topic}`: {bytes_max} are allowed by {allowed_by}"
    )]
    TooLarge {
        /// Topic that it was meant for.
        topic: String,
        /// Size of key, value and headers.
        bytes: usize,
        /// Largest size that is allowed, as far as it is known here.
        bytes_max: usize,
        /// `kafka.message_bytes_max` or `the broker`.
        allowed_by: &'static str,
    },
    /// Something about the record itself is refused; sending it again does not help.
    #[error("topic `{topic}` refuses the record: {reason}")]
    Refused {
        /// Topic that it was meant for.
        topic: String,
        /// The broker's or librdkafka's reason.
        reason: String,
    },
    /// The topic does not exist or may not be written.
    #[error("topic `{topic}` cannot be written: {reason}")]
    Topic {
        /// Topic that the record was meant for.
        topic: String,
        /// The broker's reason.
        reason: String,
    },
    /// The broker did not acknowledge it in time. It may or may not be written; sending it again is safe
    /// where ids make repeats harmless.
    #[error("topic `{topic}`: no acknowledgement within {waited_ms} ms ({reason})")]
    NotAcknowledged {
        /// Topic that the record was meant for.
        topic: String,
        /// How long was waited, milliseconds.
        waited_ms: u128,
        /// librdkafka's reason.
        reason: String,
    },
    /// The producer cannot go on and has to be made anew.
    #[error("the producer cannot go on: {reason}")]
    Fatal {
        /// librdkafka's reason.
        reason: String,
    },
    /// Records were still without acknowledgement when the time to flush was over.
    #[error("{records} records are without acknowledgement after {waited_ms} ms")]
    Unflushed {
        /// How many.
        records: i32,
        /// How long was waited, milliseconds.
        waited_ms: u128,
    },
}

impl SinkError {
    /// Whether the record is at fault: another record would pass, this one never will.
    pub fn is_about_the_record(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::Refused { .. })
    }
}

/// librdkafka's error as one line without its decoration.
pub(super) fn reason(error: &ClientError) -> String {
    match error.rdkafka_error_code() {
        Some(code) => describe(code),
        None => error.to_string(),
    }
}

/// `UnknownTopicOrPartition (Broker: Unknown topic or partition)` as librdkafka words it.
pub(super) fn describe(code: RDKafkaErrorCode) -> String {
    code.to_string()
}

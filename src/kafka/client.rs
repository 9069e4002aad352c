//! How our clients are set up: properties, and where they report.

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::producer::BaseProducer;
use rdkafka::statistics::Statistics;

use super::error::KafkaError;
use super::monitor::{ClientMonitor, ConnectionMonitor};
use crate::kafka::config::{ClientOverrides, Delivery, GroupProtocol, KafkaConfig};

/// What a fetch may bring, bytes. Only a cap: a record that somebody's topic let in has to reach us, however
/// large, to be set aside; librdkafka would otherwise ask for it again for ever.
const RECEIVE_BYTES_MAX: usize = 1 << 30; // 1 GiB
/// Least memory for records that wait inside librdkafka, KiB.
const PREFETCH_KIB_MIN: usize = 8 * 1024;
/// How often librdkafka reports its statistics, which tell of connections and lag, milliseconds.
const STATISTICS_INTERVAL_MS: u32 = 1_000;

/// What every client has in common.
fn common(config: &KafkaConfig, role: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &config.bootstrap)
        .set("client.id", format!("speechverse-{role}"))
        .set("message.max.bytes", config.batch_bytes_max().to_string())
        .set("receive.message.max.bytes", RECEIVE_BYTES_MAX.to_string())
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "2000")
        .set("topic.metadata.refresh.interval.ms", "30000")
        .set("socket.nagle.disable", "true") // requests are small, and each is waited for
        .set("statistics.interval.ms", STATISTICS_INTERVAL_MS.to_string())
        .set_log_level(RDKafkaLogLevel::Info);
    if config.bootstrap.starts_with("127.") {
        client.set("broker.address.family", "v4");
    }
    client
}

/// Properties of every consumer: no commits by itself, nothing that was aborted, low latency, little
/// prefetch.
fn consumer(config: &KafkaConfig, role: &str) -> ClientConfig {
    let mut client = common(config, role);
    let prefetch_kib = PREFETCH_KIB_MIN.max(config.batch_bytes_max() / 1024);
    client
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.min.bytes", "1")
        .set("fetch.error.backoff.ms", "50")
        .set("fetch.queue.backoff.ms", "20") // 1 s by default, each time the small prefetch is full
        .set("fetch.message.max.bytes", config.batch_bytes_max().to_string())
        .set("fetch.max.bytes", (2 * config.batch_bytes_max()).to_string())
        .set("queued.max.messages.kbytes", prefetch_kib.to_string());
    client
}

/// A member of the group.
pub(super) fn group_consumer(config: &KafkaConfig) -> Result<ClientConfig, KafkaError> {
    let mut client = consumer(config, "source");
    client.set("group.id", &config.group_id);
    if !config.instance_id.is_empty() {
        client.set("group.instance.id", &config.instance_id);
    }
    match config.group_protocol {
        // The broker decides who reads what, and when a member counts as dead.
        GroupProtocol::Consumer => {
            client.set("group.protocol", "consumer");
        }
        GroupProtocol::Classic => {
            client
                .set("partition.assignment.strategy", "cooperative-sticky")
                .set("session.timeout.ms", config.session_timeout_ms.to_string())
                .set(
                    "heartbeat.interval.ms",
                    (config.session_timeout_ms / 5).clamp(100, 3_000).to_string(),
                );
        }
    }
    overlay(&mut client, "client", &config.client)?;
    overlay(&mut client, "consumer", &config.consumer)?;
    Ok(client)
}

/// A consumer outside any group.
pub(super) fn reader(config: &KafkaConfig) -> Result<ClientConfig, KafkaError> {
    let mut client = consumer(config, "reader");
    client
        .set("group.id", format!("{}-reader", config.group_id)) // never joined, never committed
        .set("enable.partition.eof", "true");
    overlay(&mut client, "client", &config.client)?;
    Ok(client)
}

/// The idempotent producer.
pub(super) fn producer(config: &KafkaConfig) -> Result<ClientConfig, KafkaError> {
    let mut client = common(config, "sink");
    let buffer_kib = (config.send_buffer_bytes_max / 1024).max(1);
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "0")
        .set("message.timeout.ms", config.send_timeout_ms.to_string())
        .set("queue.buffering.max.kbytes", buffer_kib.to_string());
    overlay(&mut client, "client", &config.client)?;
    overlay(&mut client, "producer", &config.producer)?;
    Ok(client)
}

/// A producer of transactions, of which no two of one id can be at work.
pub(super) fn transactional_producer(config: &KafkaConfig) -> Result<ClientConfig, KafkaError> {
    let mut client = producer(config)?;
    client
        .set("transactional.id", config.transactional_id())
        .set(
            "transaction.timeout.ms",
            config.transaction_timeout_ms.to_string(),
        )
        .set(
            "message.timeout.ms",
            config.transaction_send_timeout().as_millis().to_string(),
        );
    Ok(client)
}

/// A client for metadata and topics.
pub(super) fn admin(config: &KafkaConfig) -> Result<ClientConfig, KafkaError> {
    let mut client = common(config, "admin");
    overlay(&mut client, "client", &config.client)?;
    Ok(client)
}

/// Whether librdkafka takes every property as the settings have it. No broker is asked.
///
/// # Errors
/// [`KafkaError::Property`] or [`KafkaError::Client`] with its reason; [`KafkaError::Settings`].
pub fn check_properties(config: &KafkaConfig) -> Result<(), KafkaError> {
    let alone = |mut client: ClientConfig| {
        client.remove("bootstrap.servers");
        client
    };
    let consumer: Result<BaseConsumer<Reporting>, _> =
        alone(group_consumer(config)?).create_with_context(Reporting::alone("check"));
    consumer.map_err(|error| creation_error("consumer", error))?;
    let producer: Result<BaseProducer, _> = alone(producer(config)?).create();
    producer.map_err(|error| creation_error("producer", error))?;
    if config.delivery == Delivery::ExactlyOnce {
        let producer: Result<BaseProducer, _> = alone(transactional_producer(config)?).create();
        producer.map_err(|error| creation_error("transactional producer", error))?;
    }
    Ok(())
}

fn overlay(client: &mut ClientConfig, table: &str, overrides: &ClientOverrides) -> Result<(), KafkaError> {
    for (property, value) in overrides.resolved(table)? {
        client.set(property, value);
    }
    Ok(())
}

/// Why a client could not be made, without the value of the property at fault.
pub(super) fn creation_error(client: &'static str, error: ClientError) -> KafkaError {
    match error {
        ClientError::ClientConfig(_, description, property, value) => KafkaError::Property {
            reason: if value.is_empty() {
                description
            } else {
                description.replace(&value, "…")
            },
            property,
        },
        other => KafkaError::Client {
            client,
            reason: other.to_string(),
        },
    }
}

/// The context of clients that have nothing to say but what their monitor takes.
#[derive(Clone, Debug)]
pub(super) struct Reporting(pub(super) ClientMonitor);

impl Reporting {
    /// The context of a client that a command, or a look-up, makes for itself.
    pub(super) fn alone(name: &str) -> Self {
        Self(ConnectionMonitor::default().client(name, false))
    }
}

impl ClientContext for Reporting {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        self.0.error(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.0.statistics(&statistics);
    }
}

impl rdkafka::consumer::ConsumerContext for Reporting {}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(table: &str, property: &str, value: &str) -> Result<(), KafkaError> {
        let overrides: ClientOverrides = [(property.to_owned(), value.to_owned())].into_iter().collect();
        let mut config = KafkaConfig::default();
        match table {
            "client" => config.client = overrides,
            "consumer" => config.consumer = overrides,
            _ => config.producer = overrides,
        }
        check_properties(&config)
    }

    #[test]
    fn properties_are_checked_without_a_broker() {
        check_properties(&KafkaConfig::default()).unwrap();
        with("client", "socket.keepalive.enable", "true").unwrap();
        with("producer", "compression.type", "lz4").unwrap();

        for (table, property, value) in [
            ("client", "securty.protocol", "ssl"),
            ("client", "security.protocol", "tls"),
            ("consumer", "fetch.wait.max.ms", "soon"),
            ("producer", "compression.type", "rar"),
        ] {
            let error = with(table, property, value).unwrap_err();

            assert!(matches!(error, KafkaError::Property { .. }), "{error}");
            assert!(error.to_string().contains(property), "{error}");
        }
    }
}

//! `Sink`: writes records and says when the broker has them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use tokio::sync::Semaphore;

use super::bootstrap::restore_brokers;
use super::client::{self, Reporting};
use super::convert;
use super::error::{KafkaError, SinkError, reason};
use super::monitor::{ClientMonitor, ConnectionMonitor};
use crate::kafka::config::KafkaConfig;
use crate::wire::OutgoingRecord;

/// Unit of the send buffer, bytes.
const PERMIT_BYTES: usize = 1024;
/// Pause before a record is offered again to a producer whose queue is full.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(5);
/// Pause between two looks at what is still without acknowledgement.
const FLUSH_TICK: Duration = Duration::from_millis(1);

/// Where the broker put a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Partition of the topic.
    pub partition: i32,
    /// Offset in it.
    pub offset: i64,
}

/// Least time between two producers, one made because the other failed for good.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);

/// An idempotent producer: every record is acknowledged by all in-sync replicas, in the order of the calls
/// per partition, and librdkafka's own repeats make no duplicates. Clones are the same producer.
///
/// A producer that librdkafka declares failed for good takes no record any more, so another one takes its
/// place; what it had not acknowledged is written again, and may then be there twice.
#[derive(Clone)]
pub struct Sink {
    shared: Arc<Shared>,
}

struct Shared {
    client: ClientConfig,
    monitor: ClientMonitor,
    current: Mutex<Current>,
    /// Bytes that may be without acknowledgement, in [`PERMIT_BYTES`].
    buffer: Semaphore,
    buffer_permits: u32,
    message_bytes_max: usize,
    send_timeout: Duration,
}

/// The producer in use.
struct Current {
    producer: FutureProducer<Reporting>,
    number: u64,
    made: Instant,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink")
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl Sink {
    /// Makes the producer; it connects by itself, now or when a broker is there.
    ///
    /// # Errors
    /// [`KafkaError`] when a setting is refused.
    pub fn new(config: &KafkaConfig) -> Result<Self, KafkaError> {
        Self::watched(config, &ConnectionMonitor::default())
    }

    /// As [`new`](Self::new); `monitor` knows whether it reaches a broker.
    ///
    /// # Errors
    /// [`KafkaError`] when a setting is refused.
    pub fn watched(config: &KafkaConfig, monitor: &ConnectionMonitor) -> Result<Self, KafkaError> {
        config.validate()?;
        let client = client::producer(config)?;
        let monitor = monitor.client("producer", false);
        let producer = create(&client, &monitor)?;
        let buffer_permits = u32::try_from(config.send_buffer_bytes_max / PERMIT_BYTES).unwrap_or(u32::MAX);
        let shared = Shared {
            client,
            monitor,
            current: Mutex::new(Current {
                producer,
                number: 1,
                made: Instant::now(),
            }),
            buffer: Semaphore::new(buffer_permits as usize),
            buffer_permits,
            message_bytes_max: config.message_bytes_max,
            send_timeout: Duration::from_millis(config.send_timeout_ms),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Writes `record`; resolves when the broker has acknowledged it, or says why it never will.
    ///
    /// Waits while the send buffer is full. librdkafka repeats what may succeed for `send_timeout_ms`, and
    /// within that time a producer that failed for good is made anew; a further repeat is the caller's
    /// decision. Dropping the future does not take a record back that was given to it.
    ///
    /// # Errors
    /// [`SinkError`]: see [`is_about_the_record`](SinkError::is_about_the_record).
    pub async fn send(&self, record: OutgoingRecord) -> Result<Written, SinkError> {
        let bytes = check(&record, self.shared.message_bytes_max)?;
        let permits = u32::try_from(bytes / PERMIT_BYTES + 1)
            .unwrap_or(u32::MAX)
            .min(self.shared.buffer_permits);
        let _permits = self
            .shared
            .buffer
            .acquire_many(permits)
            .await
            .expect("the semaphore is never closed");

        let began = Instant::now();
        loop {
            let (number, producer) = self.current();
            match self.send_with(&producer, &record, bytes, began).await {
                Err(SinkError::Fatal { reason }) if began.elapsed() < self.shared.send_timeout => {
                    drop(producer); // its last holder ends it
                    self.renew(number, &reason).await?;
                }
                result => {
                    self.report(&record, &result);
                    return result;
                }
            }
        }
    }

    async fn send_with(
        &self,
        producer: &FutureProducer<Reporting>,
        record: &OutgoingRecord,
        bytes: usize,
        began: Instant,
    ) -> Result<Written, SinkError> {
        let mut outgoing = FutureRecord::<[u8], [u8]>::to(&record.topic).headers(headers(record)?);
        outgoing.key = record.key.as_deref();
        outgoing.payload = record.value.as_deref();
        let delivery = loop {
            match producer.send_result(outgoing) {
                Ok(delivery) => break delivery,
                Err((ClientError::MessageProduction(RDKafkaErrorCode::QueueFull), again))
                    if began.elapsed() < self.shared.send_timeout =>
                {
                    outgoing = again;
                    tokio::time::sleep(QUEUE_FULL_PAUSE).await;
                }
                Err((error, _)) => return Err(self.refusal(producer, record, bytes, &error, began)),
            }
        };
        match delivery.await {
            Ok(Ok(delivery)) => Ok(Written {
                partition: delivery.partition,
                offset: delivery.offset,
            }),
            Ok(Err((error, _))) => Err(self.refusal(producer, record, bytes, &error, began)),
            Err(_) => Err(SinkError::Fatal {
                reason: "it was dropped with records outstanding".to_owned(),
            }),
        }
    }

    /// Makes the producer anew where librdkafka has declared it failed for good, as sends do by themselves,
    /// and gives it its brokers again where it has none left.
    ///
    /// # Errors
    /// [`SinkError::Fatal`] when librdkafka does not give another one.
    pub async fn renew_if_failed(&self) -> Result<(), SinkError> {
        let (number, producer) = self.current();
        if self.shared.monitor.take_lacks_brokers()
            && let Some(servers) = self.shared.client.get("bootstrap.servers")
        {
            restore_brokers(producer.client(), servers);
        }
        match producer.client().fatal_error() {
            Some((code, reason)) => {
                drop(producer);
                self.renew(number, &format!("{code}: {reason}")).await
            }
            None => Ok(()),
        }
    }

    /// Logs that a send is tried again: once in a while, and during an outage not at all.
    pub fn log_repeat(&self, error: &SinkError) {
        self.shared.monitor.complain("send", &error.to_string());
    }

    /// Replaces producer `failed`, unless somebody has done so already; no more often than every
    /// [`RENEW_INTERVAL`].
    async fn renew(&self, failed: u64, reason: &str) -> Result<(), SinkError> {
        let shared = &self.shared;
        loop {
            let age = {
                let mut current = self.lock();
                if current.number != failed {
                    return Ok(());
                }
                let age = current.made.elapsed();
                if age >= RENEW_INTERVAL {
                    let producer =
                        create(&shared.client, &shared.monitor).map_err(|error| SinkError::Fatal {
                            reason: format!("{reason}; another one cannot be made: {error}"),
                        })?;
                    let retired = std::mem::replace(&mut current.producer, producer);
                    current.number += 1;
                    current.made = Instant::now();
                    drop(current);
                    shared.monitor.renewed(reason);
                    // Ending joins the producer's thread, which may take half a second.
                    drop(tokio::task::spawn_blocking(move || drop(retired)));
                    return Ok(());
                }
                age
            };
            tokio::time::sleep(RENEW_INTERVAL - age).await;
        }
    }

    /// Reports to the monitor whether the topic takes records.
    fn report(&self, record: &OutgoingRecord, result: &Result<Written, SinkError>) {
        let monitor = &self.shared.monitor;
        match result {
            Ok(_) => monitor.topic_written(&record.topic),
            Err(SinkError::Topic { topic, reason }) => monitor.topic_refused(topic, reason),
            Err(_) => {}
        }
    }

    fn current(&self) -> (u64, FutureProducer<Reporting>) {
        let current = self.lock();
        (current.number, current.producer.clone())
    }

    /// A poisoned lock is sound here: a producer is replaced whole.
    fn lock(&self) -> MutexGuard<'_, Current> {
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that are given to librdkafka and not acknowledged.
    pub(super) fn in_flight(&self) -> i32 {
        self.lock().producer.in_flight_count()
    }

    /// Waits until everything that was given to it is acknowledged or has failed.
    ///
    /// # Errors
    /// [`SinkError::Unflushed`] when that takes longer than `limit`.
    pub(super) async fn flush(&self, limit: Duration) -> Result<(), SinkError> {
        // Not `Producer::flush`, which sleeps 100 ms whenever anything is outstanding.
        let began = Instant::now();
        loop {
            let records = self.in_flight();
            if records == 0 {
                return Ok(());
            }
            if began.elapsed() >= limit {
                return Err(SinkError::Unflushed {
                    records,
                    waited_ms: began.elapsed().as_millis(),
                });
            }
            tokio::time::sleep(FLUSH_TICK).await;
        }
    }

    /// Waits until everything that was given to it is acknowledged or has failed, then ends the producer if
    /// this is its last clone.
    ///
    /// # Errors
    /// [`SinkError::Unflushed`]; what was outstanding is then given up.
    pub async fn close(self, limit: Duration) -> Result<(), SinkError> {
        let flushed = self.flush(limit).await;
        // Ending joins the producer's thread, which may take 100 ms.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
        flushed
    }

    fn refusal(
        &self,
        producer: &FutureProducer<Reporting>,
        record: &OutgoingRecord,
        bytes: usize,
        error: &ClientError,
        began: Instant,
    ) -> SinkError {
        match producer.client().fatal_error() {
            Some((fatal, why)) if error.rdkafka_error_code().is_some() => SinkError::Fatal {
                reason: format!("{fatal}: {why}"),
            },
            _ => refusal(record, bytes, self.shared.message_bytes_max, error, began),
        }
    }
}

/// Size of a record's key, value and headers, bytes.
///
/// # Errors
/// [`SinkError`] when a record cannot be handed to librdkafka.
pub(super) fn check(record: &OutgoingRecord, bytes_max: usize) -> Result<usize, SinkError> {
    let bytes = convert::payload_bytes(record.key.as_ref(), record.value.as_ref(), &record.headers);
    if bytes > bytes_max {
        return Err(too_large(record, bytes, bytes_max, "`kafka.message_bytes_max`"));
    }
    if record.topic.contains('\0') {
        return Err(SinkError::Refused {
            topic: record.topic.to_string(),
            reason: "the topic's name holds a zero byte".to_owned(),
        });
    }
    Ok(bytes)
}

/// A record's headers for librdkafka.
///
/// # Errors
/// [`SinkError::Refused`] when a name cannot be carried.
pub(super) fn headers(record: &OutgoingRecord) -> Result<OwnedHeaders, SinkError> {
    convert::native_headers(record).map_err(|name| SinkError::Refused {
        topic: record.topic.to_string(),
        reason: format!("the header name `{}` holds a zero byte", name.escape_debug()),
    })
}

/// What librdkafka's error says of a record of `bytes` that was offered at `began`.
pub(super) fn refusal(
    record: &OutgoingRecord,
    bytes: usize,
    bytes_max: usize,
    error: &ClientError,
    began: Instant,
) -> SinkError {
    let topic = record.topic.to_string();
    let reason = reason(error);
    let Some(code) = error.rdkafka_error_code() else {
        return SinkError::Refused { topic, reason };
    };
    use RDKafkaErrorCode as Code;
    match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => {
            too_large(record, bytes, bytes_max, "the broker")
        }
        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownPartition
        | Code::TopicAuthorizationFailed
        | Code::InvalidTopic
        | Code::PolicyViolation => SinkError::Topic { topic, reason },
        Code::InvalidMessage
        | Code::BadMessage
        | Code::InvalidArgument
        | Code::InvalidRecord
        | Code::InvalidTimestamp
        | Code::UnsupportedCompressionType => SinkError::Refused { topic, reason },
        Code::Fatal | Code::Fenced | Code::InvalidProducerEpoch => SinkError::Fatal { reason },
        _ => SinkError::NotAcknowledged {
            topic,
            waited_ms: began.elapsed().as_millis(),
            reason,
        },
    }
}

fn too_large(record: &OutgoingRecord, bytes: usize, bytes_max: usize, allowed_by: &'static str) -> SinkError {
    SinkError::TooLarge {
        topic: record.topic.to_string(),
        bytes,
        bytes_max,
        allowed_by,
    }
}

fn create(client: &ClientConfig, monitor: &ClientMonitor) -> Result<FutureProducer<Reporting>, KafkaError> {
    client
        .create_with_context(Reporting(monitor.clone()))
        .map_err(|error| client::creation_error("producer", error))
}

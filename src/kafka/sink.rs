//! `Sink`: writes records and says when the broker has them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use tokio::sync::Semaphore;

use super::client::{self, Logging};
use super::convert;
use super::error::{KafkaError, SinkError, reason};
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

/// An idempotent producer: every record is acknowledged by all in-sync replicas, in the order of the calls per
/// partition, and librdkafka's own repeats make no duplicates. Clones are the same producer.
#[derive(Clone)]
pub struct Sink {
    producer: FutureProducer<Logging>,
    /// Bytes that may be without acknowledgement, in [`PERMIT_BYTES`].
    buffer: Arc<Semaphore>,
    buffer_permits: u32,
    message_bytes_max: usize,
    send_timeout: Duration,
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
        config.validate()?;
        let producer = client::producer(config)?
            .create_with_context(Logging)
            .map_err(|error| client::creation_error("producer", error))?;
        let buffer_permits = u32::try_from(config.send_buffer_bytes_max / PERMIT_BYTES).unwrap_or(u32::MAX);
        Ok(Self {
            producer,
            buffer: Arc::new(Semaphore::new(buffer_permits as usize)),
            buffer_permits,
            message_bytes_max: config.message_bytes_max,
            send_timeout: Duration::from_millis(config.send_timeout_ms),
        })
    }

    /// Writes `record`; resolves when the broker has acknowledged it, or says why it never will.
    ///
    /// Waits while the send buffer is full. librdkafka repeats what may succeed for `send_timeout_ms`, so a further
    /// repeat is the caller's decision. Dropping the future does not take a record back that was handed over.
    ///
    /// # Errors
    /// [`SinkError`]: see [`is_about_the_record`](SinkError::is_about_the_record) and
    /// [`is_retriable`](SinkError::is_retriable).
    pub async fn send(&self, record: OutgoingRecord) -> Result<Written, SinkError> {
        let bytes = convert::payload_bytes(record.key.as_ref(), record.value.as_ref(), &record.headers);
        if bytes > self.message_bytes_max {
            return Err(self.too_large(&record, bytes, "`kafka.message_bytes_max`"));
        }
        if record.topic.contains('\0') {
            return Err(SinkError::Refused {
                topic: record.topic.to_string(),
                reason: "the topic's name holds a zero byte".to_owned(),
            });
        }
        let headers = convert::native_headers(&record).map_err(|name| SinkError::Refused {
            topic: record.topic.to_string(),
            reason: format!("the header name `{}` holds a zero byte", name.escape_debug()),
        })?;
        let permits = u32::try_from(bytes / PERMIT_BYTES + 1)
            .unwrap_or(u32::MAX)
            .min(self.buffer_permits);
        let _permits = self
            .buffer
            .acquire_many(permits)
            .await
            .expect("the semaphore is never closed");

        let began = Instant::now();
        let mut outgoing = FutureRecord::<[u8], [u8]>::to(&record.topic).headers(headers);
        outgoing.key = record.key.as_deref();
        outgoing.payload = record.value.as_deref();
        let delivery = loop {
            match self.producer.send_result(outgoing) {
                Ok(delivery) => break delivery,
                Err((ClientError::MessageProduction(RDKafkaErrorCode::QueueFull), again))
                    if began.elapsed() < self.send_timeout =>
                {
                    outgoing = again;
                    tokio::time::sleep(QUEUE_FULL_PAUSE).await;
                }
                Err((error, _)) => return Err(self.refusal(&record, bytes, &error, began)),
            }
        };
        match delivery.await {
            Ok(Ok(delivery)) => Ok(Written {
                partition: delivery.partition,
                offset: delivery.offset,
            }),
            Ok(Err((error, _))) => Err(self.refusal(&record, bytes, &error, began)),
            Err(_) => Err(SinkError::Fatal {
                reason: "it was dropped with records outstanding".to_owned(),
            }),
        }
    }

    /// Records that are handed over and not acknowledged.
    pub fn in_flight(&self) -> i32 {
        self.producer.in_flight_count()
    }

    /// Waits until everything that was handed over is acknowledged or has failed.
    ///
    /// # Errors
    /// [`SinkError::Unflushed`] when that takes longer than `limit`.
    pub async fn flush(&self, limit: Duration) -> Result<(), SinkError> {
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

    /// [Flushes](Self::flush), then ends the producer if this is its last clone.
    ///
    /// # Errors
    /// [`SinkError::Unflushed`]; what was outstanding is then given up.
    pub async fn close(self, limit: Duration) -> Result<(), SinkError> {
        let flushed = self.flush(limit).await;
        // Ending joins the producer's thread, which may take 100 ms.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
        flushed
    }

    fn too_large(&self, record: &OutgoingRecord, bytes: usize, allowed_by: &'static str) -> SinkError {
        SinkError::TooLarge {
            topic: record.topic.to_string(),
            bytes,
            bytes_max: self.message_bytes_max,
            allowed_by,
        }
    }

    fn refusal(
        &self,
        record: &OutgoingRecord,
        bytes: usize,
        error: &ClientError,
        began: Instant,
    ) -> SinkError {
        let topic = record.topic.to_string();
        let reason = reason(error);
        let Some(code) = error.rdkafka_error_code() else {
            return SinkError::Refused { topic, reason };
        };
        if let Some((fatal, why)) = self.producer.client().fatal_error() {
            return SinkError::Fatal {
                reason: format!("{fatal}: {why}"),
            };
        }
        use RDKafkaErrorCode as Code;
        match code {
            Code::MessageSizeTooLarge | Code::InvalidMessageSize => {
                self.too_large(record, bytes, "the broker")
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
}

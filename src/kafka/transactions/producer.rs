//! librdkafka's transactional producer, and a consumer's membership as its transactions name it.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use rdkafka::bindings;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};

use super::fault::{Fault, TransactionalProducer, WriteFault};
use crate::kafka::client::{self, Reporting};
use crate::kafka::config::KafkaConfig;
use crate::kafka::convert;
use crate::kafka::error::{KafkaError, SinkError, reason};
use crate::kafka::monitor::{ClientMonitor, ConnectionMonitor};
use crate::kafka::offset_tracker::Position;
use crate::kafka::sink;
use crate::wire::OutgoingRecord;

/// Longest that one call waits where a later call can go on with it: how long the consumer is not polled.
const CALL_MAX: Duration = Duration::from_secs(1);
/// Pause between two looks at what is still without acknowledgement.
const FLUSH_TICK: Duration = Duration::from_micros(50);

/// A producer of transactions; see [`TransactionalProducer`].
pub(in crate::kafka) struct Producer {
    client: ClientConfig,
    monitor: ClientMonitor,
    producer: ThreadedProducer<Reporting>,
    message_bytes_max: usize,
    /// Longest that records and offsets may take.
    send_timeout: Duration,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}

/// Where the delivery of a record is reported: its place, and what became of it.
type Delivery = (usize, flume::Sender<(usize, Result<(), ClientError>)>);

/// Passes deliveries on to who wrote.
impl ProducerContext for Reporting {
    type DeliveryOpaque = Box<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: Self::DeliveryOpaque) {
        let (index, sender) = *opaque;
        let result = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(error.clone()),
        };
        let _ = sender.send((index, result)); // who wrote may have given up
    }
}

impl Producer {
    /// Makes the producer of a group's instance; it connects by itself.
    ///
    /// # Errors
    /// [`KafkaError`] when a setting is refused.
    pub(in crate::kafka) fn new(
        config: &KafkaConfig,
        monitor: &ConnectionMonitor,
    ) -> Result<Self, KafkaError> {
        let client = client::transactional_producer(config)?;
        let monitor = monitor.client("transactional producer", false);
        Ok(Self {
            producer: create(&client, &monitor)?,
            client,
            monitor,
            message_bytes_max: config.message_bytes_max,
            send_timeout: config.transaction_send_timeout(),
        })
    }

    fn offer(&self, record: &OutgoingRecord, delivery: Delivery, began: Instant) -> Result<(), SinkError> {
        let bytes = sink::check(record, self.message_bytes_max)?;
        let mut outgoing =
            BaseRecord::<[u8], [u8], Box<Delivery>>::with_opaque_to(&record.topic, Box::new(delivery))
                .headers(sink::headers(record)?);
        outgoing.key = record.key.as_deref();
        outgoing.payload = record.value.as_deref();
        self.producer
            .send(outgoing)
            .map_err(|(error, _)| sink::refusal(record, bytes, self.message_bytes_max, &error, began))
    }

    /// What librdkafka says of the producer itself, after something failed.
    fn fault(&self, what: &str, error: &ClientError) -> Fault {
        let fault = classify(error);
        match &fault {
            Fault::Retry(reason) | Fault::Abort(reason) => self.monitor.complain(what, reason),
            _ => {}
        }
        fault
    }

    fn wait_for_deliveries(&self) {
        // `commit_transaction` sleeps 100 ms where anything is still counted as outstanding.
        let deadline = Instant::now() + CALL_MAX;
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            std::thread::sleep(FLUSH_TICK);
        }
    }
}

impl TransactionalProducer for Producer {
    type Group = Group;

    fn init(&mut self) -> Result<(), Fault> {
        let done = self.producer.init_transactions(CALL_MAX);
        done.map_err(|error| self.fault("take over of the transactional id", &error))
    }

    fn begin(&mut self) -> Result<(), Fault> {
        let done = self.producer.begin_transaction();
        done.map_err(|error| self.fault("begin of a transaction", &error))
    }

    fn write(&mut self, records: &[&OutgoingRecord]) -> Result<(), WriteFault> {
        let began = Instant::now();
        let (sender, deliveries) = flume::unbounded(); // one message a record
        let mut refused = Vec::new();
        let mut failure = None;
        let mut fail = |index: usize, error: SinkError| match error.is_about_the_record() {
            true => refused.push((index, error)),
            false => failure = Some(error),
        };
        let mut outstanding = 0_usize;
        for (index, record) in records.iter().enumerate() {
            match self.offer(record, (index, sender.clone()), began) {
                Ok(()) => outstanding += 1,
                Err(error) => fail(index, error),
            }
        }
        let deadline = began + self.send_timeout + CALL_MAX;
        while outstanding > 0 {
            let Ok((index, result)) = deliveries.recv_deadline(deadline) else {
                break;
            };
            outstanding -= 1;
            let record = records[index];
            match result {
                Ok(()) => self.monitor.topic_written(&record.topic),
                // The others of a transaction that failed are thrown away; they are not at fault.
                Err(ClientError::MessageProduction(Code::PurgeQueue | Code::PurgeInflight)) => {
                    fail(
                        index,
                        not_acknowledged(record, began, "thrown away with its transaction"),
                    );
                }
                Err(error) => {
                    let bytes = sink::check(record, self.message_bytes_max).unwrap_or_default();
                    let error = sink::refusal(record, bytes, self.message_bytes_max, &error, began);
                    if let SinkError::Topic { topic, reason } = &error {
                        self.monitor.topic_refused(topic, reason);
                    }
                    fail(index, error);
                }
            }
        }
        if let Some((code, reason)) = self.producer.client().fatal_error() {
            let reason = format!("{code}: {reason}");
            let fault = match code {
                Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => Fault::Fenced(reason),
                _ => Fault::Fatal(reason),
            };
            return Err(WriteFault { refused, fault });
        }
        match failure {
            _ if outstanding > 0 => {
                let reason = format!(
                    "{outstanding} records are without acknowledgement after {:?}",
                    began.elapsed()
                );
                self.monitor.complain("write in a transaction", &reason);
                let fault = Fault::Abort(reason);
                Err(WriteFault { refused, fault })
            }
            Some(error) => {
                self.monitor
                    .complain("write in a transaction", &error.to_string());
                let fault = Fault::Abort(error.to_string());
                Err(WriteFault { refused, fault })
            }
            None if !refused.is_empty() => {
                let fault = Fault::Abort("a record is refused".to_owned());
                Err(WriteFault { refused, fault })
            }
            None => Ok(()),
        }
    }

    fn send_offsets(&mut self, positions: &[Position], group: &Self::Group) -> Result<(), Fault> {
        let offsets = convert::position_list(positions);
        let done = self
            .producer
            .send_offsets_to_transaction(&offsets, &group.metadata, self.send_timeout);
        done.map_err(|error| self.fault("commit of offsets in a transaction", &error))
    }

    fn commit(&mut self) -> Result<(), Fault> {
        self.wait_for_deliveries();
        let done = self.producer.commit_transaction(CALL_MAX);
        done.map_err(|error| self.fault("commit of a transaction", &error))
    }

    fn abort(&mut self) -> Result<(), Fault> {
        let done = self.producer.abort_transaction(CALL_MAX);
        done.map_err(|error| self.fault("abortion of a transaction", &error))
    }

    fn renew(&mut self) -> Result<(), Fault> {
        let producer =
            create(&self.client, &self.monitor).map_err(|error| Fault::Retry(error.to_string()))?;
        let former = std::mem::replace(&mut self.producer, producer);
        let reason = former
            .client()
            .fatal_error()
            .map_or_else(|| "its calls only failed".to_owned(), |(_, reason)| reason);
        self.monitor.renewed(&reason);
        // One that is stuck may take its time to end; the consumer has to be polled meanwhile.
        std::thread::spawn(move || drop(former));
        Ok(())
    }
}

fn create(client: &ClientConfig, monitor: &ClientMonitor) -> Result<ThreadedProducer<Reporting>, KafkaError> {
    client
        .create_with_context(Reporting(monitor.clone()))
        .map_err(|error| client::creation_error("transactional producer", error))
}

fn not_acknowledged(record: &OutgoingRecord, began: Instant, reason: &str) -> SinkError {
    SinkError::NotAcknowledged {
        topic: record.topic.to_string(),
        waited_ms: began.elapsed().as_millis(),
        reason: reason.to_owned(),
    }
}

/// What helps against an error of a transaction's call.
fn classify(error: &ClientError) -> Fault {
    let reason = reason(error);
    let ClientError::Transaction(error) = error else {
        return Fault::Retry(reason); // records that are still outstanding before a commit
    };
    let reason = format!("{reason}: {}", error.string());
    match error.code() {
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch if error.is_fatal() => {
            Fault::Fenced(reason)
        }
        Code::TransactionalIdAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::UnsupportedFeature
        | Code::InvalidTransactionTimeout => Fault::Refused(reason),
        Code::OffsetMetadataTooLarge => Fault::MemoryTooLong,
        Code::IllegalGeneration
        | Code::UnknownMemberId
        | Code::FencedInstanceId
        | Code::StaleMemberEpoch
        | Code::FencedMemberEpoch
        | Code::RebalanceInProgress => Fault::Stale(reason),
        _ if error.is_fatal() => Fault::Fatal(reason),
        _ if error.txn_requires_abort() => Fault::Abort(reason),
        _ if error.is_retriable() => Fault::Retry(reason),
        _ => Fault::Fatal(reason), // a state that it should not be in
    }
}

/// A consumer's membership in its group, as a transaction names it.
pub(in crate::kafka) struct Group {
    metadata: ConsumerGroupMetadata,
    /// Id of the member.
    pub(in crate::kafka) member: String,
}

impl Group {
    /// The membership of `consumer`; `None` while it is no member. Without an id and a generation, the broker
    /// would take offsets from anybody.
    ///
    /// librdkafka gives the metadata and what is in it in two calls; both before and after it has to be the
    /// same.
    pub(in crate::kafka) fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<Self> {
        let before = identity(consumer)?;
        let metadata = consumer.group_metadata()?;
        let (member, generation) = identity(consumer)?;
        let is_member = !member.is_empty() && generation >= 0 && !consumer.assignment_lost();
        ((member.as_str(), generation) == (before.0.as_str(), before.1) && is_member)
            .then_some(Self { metadata, member })
    }
}

/// Id of the member that `consumer` is, and the generation of its group.
fn identity<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<(String, i32)> {
    // SAFETY: the consumer lives as long as it is borrowed.
    let metadata = unsafe { bindings::rd_kafka_consumer_group_metadata(consumer.client().native_ptr()) };
    if metadata.is_null() {
        return None;
    }
    // SAFETY: `metadata` is ours and live until it is destroyed, once, after the copies are made; its member
    // id is text with a zero byte behind it.
    unsafe {
        let member = bindings::rd_kafka_consumer_group_metadata_member_id(metadata);
        let member = (!member.is_null()).then(|| CStr::from_ptr(member).to_string_lossy().into_owned());
        let generation = bindings::rd_kafka_consumer_group_metadata_generation_id(metadata);
        bindings::rd_kafka_consumer_group_metadata_destroy(metadata);
        Some((member?, generation))
    }
}

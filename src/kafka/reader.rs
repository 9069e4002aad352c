//! `Reader`: reads one topic from its beginning or its end, outside any group, for commands and tests.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::debug;

use super::bootstrap::restore_brokers;
use super::client::{self, Reporting};
use super::convert;
use super::error::{KafkaError, reason};
use crate::kafka::config::KafkaConfig;
use crate::wire::Record;

/// Pause before a partition without a leader is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How often a reader that waits looks whether its client has brokers.
const BROKERS_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Where a [`Reader`] begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    /// With the oldest record.
    Beginning,
    /// With the first record that is written after [`Reader::open`] has returned.
    End,
}

/// What [`Reader::next`] found.
#[derive(Debug)]
pub enum Read {
    /// The next record; records of one partition come in order. Its record_offset is for reading only (epoch
    /// 0).
    Record(Record),
    /// There is no further record for now; said once each time the end is reached.
    CaughtUp,
    /// Nothing came within the limit.
    TimedOut,
}

/// Reads all partitions of one topic.
pub struct Reader {
    consumer: Arc<StreamConsumer<Reporting>>,
    bootstrap: String,
    topic: Arc<str>,
    partitions: usize,
    at_end: HashSet<i32>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// Opens `topic`; where it begins is settled when this returns. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`KafkaError::NoSuchTopic`]; [`KafkaError::Unreachable`] when nobody answers within `limit`.
    pub async fn open(
        config: &KafkaConfig,
        topic: &str,
        from: ReadFrom,
        limit: Duration,
    ) -> Result<Self, KafkaError> {
        let consumer: StreamConsumer<Reporting> = client::reader(config)?
            .create_with_context(Reporting::alone("reader"))
            .map_err(|error| client::creation_error("consumer", error))?;
        let (topic, bootstrap) = (Arc::<str>::from(topic), config.bootstrap.clone());
        let open = move || {
            let began = Instant::now();
            let unreachable = |error: ClientError| unreachable(&bootstrap, began, &error);
            let partitions = partitions(&consumer, &topic, limit).map_err(unreachable)?;
            if partitions.is_empty() {
                return Err(KafkaError::NoSuchTopic {
                    topic: topic.to_string(),
                });
            }
            let mut list = TopicPartitionList::with_capacity(partitions.len());
            for partition in &partitions {
                let (oldest, end) = loop {
                    match consumer.fetch_watermarks(&topic, *partition, limit) {
                        Ok(watermarks) => break watermarks,
                        Err(error) if is_passing(&error) && began.elapsed() < limit => {
                            std::thread::sleep(RETRY_PAUSE)
                        }
                        Err(error) => return Err(unreachable(error)),
                    }
                };
                let offset = if from == ReadFrom::Beginning { oldest } else { end };
                list.add_partition_offset(&topic, *partition, Offset::Offset(offset.max(0)))
                    .expect("offsets of a log are not negative");
            }
            consumer
                .assign(&list)
                .map_err(|error| unreadable(&topic, &error))?;
            Ok(Self {
                consumer: Arc::new(consumer),
                bootstrap,
                topic,
                partitions: partitions.len(),
                at_end: HashSet::new(),
            })
        };
        tokio::task::spawn_blocking(open)
            .await
            .map_err(|_| KafkaError::Ended)?
    }

    /// Reads partitions too that were added to the topic since it was opened, from their beginning; how many
    /// there are.
    ///
    /// # Errors
    /// [`KafkaError::Unreachable`] when nobody answers within `limit`; [`KafkaError::Topic`].
    pub async fn take_new_partitions(&mut self, limit: Duration) -> Result<usize, KafkaError> {
        let (consumer, topic, bootstrap) = (
            Arc::clone(&self.consumer),
            Arc::clone(&self.topic),
            self.bootstrap.clone(),
        );
        let known = self.partitions;
        let take = move || {
            let began = Instant::now();
            let found = partitions(&consumer, &topic, limit)
                .map_err(|error| unreachable(&bootstrap, began, &error))?;
            let mut list = TopicPartitionList::new();
            for partition in found.into_iter().skip(known) {
                list.add_partition_offset(&topic, partition, Offset::Beginning)
                    .expect("the beginning is an offset");
            }
            if list.count() > 0 {
                (consumer.incremental_assign(&list)).map_err(|error| unreadable(&topic, &error))?;
            }
            Ok::<usize, KafkaError>(list.count())
        };
        let taken = tokio::task::spawn_blocking(take)
            .await
            .map_err(|_| KafkaError::Ended)??;
        self.partitions += taken;
        Ok(taken)
    }

    /// Reads the record at one place, such as the request that a correction names; `None` when it is not
    /// there any more.
    ///
    /// # Errors
    /// [`KafkaError::Unreachable`] when nobody answers within `limit`; [`KafkaError::Topic`].
    pub async fn fetch(
        config: &KafkaConfig,
        topic: &str,
        partition: i32,
        offset: i64,
        limit: Duration,
    ) -> Result<Option<Record>, KafkaError> {
        let began = Instant::now();
        let mut reader = Self::open(config, topic, ReadFrom::End, limit).await?;
        if offset < 0 || partition < 0 || partition as usize >= reader.partitions {
            return Ok(None);
        }
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition_offset(topic, partition, Offset::Offset(offset))
            .expect("the offset is not negative");
        (reader.consumer.assign(&list)).map_err(|error| unreadable(topic, &error))?;
        reader.partitions = 1;
        match reader.next(limit.saturating_sub(began.elapsed())).await? {
            Read::Record(record) => Ok(Some(record).filter(|record| record.record_offset.offset == offset)),
            Read::CaughtUp => Ok(None),
            Read::TimedOut => Err(KafkaError::Unreachable {
                bootstrap: config.bootstrap.clone(),
                waited_ms: limit.as_millis(),
                reason: "no record and no end of the partition".to_owned(),
            }),
        }
    }

    /// Waits up to `limit` for the next record, or for the end of what is there.
    ///
    /// # Errors
    /// [`KafkaError::Fatal`] when the consumer cannot go on. A broker that is away for a while is no error.
    pub async fn next(&mut self, limit: Duration) -> Result<Read, KafkaError> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            if self.consumer.context().0.take_lacks_brokers() {
                restore_brokers(self.consumer.client(), &self.bootstrap);
            }
            let slice = deadline.min(tokio::time::Instant::now() + BROKERS_CHECK_INTERVAL);
            let Ok(result) = tokio::time::timeout_at(slice, self.consumer.recv()).await else {
                if slice == deadline {
                    return Ok(Read::TimedOut);
                }
                continue;
            };
            match result {
                Ok(message) => {
                    self.at_end.remove(&message.partition());
                    return Ok(Read::Record(convert::record(&message, self.topic.clone(), 0)));
                }
                Err(ClientError::PartitionEOF(partition)) => {
                    if self.at_end.insert(partition) && self.at_end.len() == self.partitions {
                        return Ok(Read::CaughtUp);
                    }
                }
                Err(ClientError::MessageConsumptionFatal(code)) => return Err(self.fatal(code)),
                Err(error) => debug!(%error, topic = %self.topic, "reading fails for now; it is tried again"),
            }
        }
    }

    fn fatal(&self, code: RDKafkaErrorCode) -> KafkaError {
        KafkaError::Fatal {
            topics: self.topic.to_string(),
            reason: code.to_string(),
        }
    }
}

/// The partitions of a topic, in order; none where there is no such topic.
fn partitions(
    consumer: &StreamConsumer<Reporting>,
    topic: &str,
    limit: Duration,
) -> Result<Vec<i32>, ClientError> {
    let metadata = consumer.fetch_metadata(Some(topic), limit)?;
    let found = metadata.topics().first().filter(|found| found.error().is_none());
    let mut partitions: Vec<i32> = found.map_or_else(Vec::new, |found| {
        found
            .partitions()
            .iter()
            .map(|partition| partition.id())
            .collect()
    });
    partitions.sort_unstable();
    Ok(partitions)
}

fn unreachable(bootstrap: &str, began: Instant, error: &ClientError) -> KafkaError {
    KafkaError::Unreachable {
        bootstrap: bootstrap.to_owned(),
        waited_ms: began.elapsed().as_millis(),
        reason: reason(error),
    }
}

fn unreadable(topic: &str, error: &ClientError) -> KafkaError {
    KafkaError::Topic {
        topic: topic.to_owned(),
        action: "read it",
        reason: reason(error),
    }
}

/// Whether a partition has no leader yet: its topic is young, or its broker has just gone.
fn is_passing(error: &ClientError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownPartition
        )
    )
}

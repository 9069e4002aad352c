//! The topics: created, found, deleted, filled, and kept within their bounds.

use std::collections::BTreeMap;

use kafka_protocol::error::ResponseError;
use tracing::info;

use super::limits::PARTITIONS_MAX;
use super::log::batch::CheckedBatch;
use super::log::control::Outcome;
use super::log::partition::PartitionLog;
use super::topic_settings::TopicSettings;
use crate::BrokerConfig;

/// One topic.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) settings: TopicSettings,
    partitions: Vec<PartitionLog>,
    bytes: u64,
    appended: u64,
    logged_retention: bool,
}

impl Topic {
    fn new(partitions: u32, settings: TopicSettings) -> Self {
        Self {
            settings,
            partitions: (0..partitions).map(|_| PartitionLog::default()).collect(),
            bytes: 0,
            appended: 0,
            logged_retention: false,
        }
    }

    /// How many partitions it has.
    pub(crate) fn partition_count(&self) -> i32 {
        self.partitions.len() as i32 // bounded by PARTITIONS_MAX
    }

    /// One of its partitions.
    pub(crate) fn partition(&self, index: i32) -> Option<&PartitionLog> {
        self.partitions.get(usize::try_from(index).ok()?)
    }

    fn partition_mut(&mut self, index: i32) -> Option<&mut PartitionLog> {
        self.partitions.get_mut(usize::try_from(index).ok()?)
    }

    fn recount(&mut self) {
        self.bytes = self.partitions.iter().map(PartitionLog::bytes).sum();
    }

    /// Lets the oldest batch of all partitions go, but never the newest one.
    fn drop_oldest(&mut self) -> bool {
        let newest = self.appended.saturating_sub(1);
        let oldest = self
            .partitions
            .iter_mut()
            .filter_map(|log| log.oldest().map(|batch| batch.order).map(|order| (order, log)))
            .min_by_key(|(order, _)| *order);
        match oldest {
            Some((order, log)) if order < newest => {
                log.drop_oldest();
                true
            }
            _ => false,
        }
    }

    fn keep_within(&mut self, name: &str, bytes_max: u64) {
        let before = self.bytes;
        while self.bytes > bytes_max && self.drop_oldest() {
            self.recount();
        }
        if let Some(bytes) = self.settings.retention_bytes {
            for log in &mut self.partitions {
                while log.bytes() > bytes && log.batch_count() > 1 {
                    log.drop_oldest();
                }
            }
            self.recount();
        }
        if self.bytes < before && !self.logged_retention {
            self.logged_retention = true;
            info!(
                topic = name,
                bytes_max, "the embedded broker's topic is full, from now on its oldest records go"
            );
        }
    }

    fn drop_older_than(&mut self, time_ms: i64) {
        for log in &mut self.partitions {
            // A negative time is no time, and no reason to go.
            while log
                .oldest()
                .is_some_and(|batch| (0..time_ms).contains(&batch.max_timestamp))
            {
                log.drop_oldest();
            }
        }
        self.recount();
    }
}

/// All topics.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    by_name: BTreeMap<String, Topic>,
    bytes: u64,
}

impl Topics {
    /// Finds a topic.
    pub(crate) fn get(&self, name: &str) -> Option<&Topic> {
        self.by_name.get(name)
    }

    /// Finds a partition.
    ///
    /// # Errors
    /// `UnknownTopicOrPartition`.
    pub(crate) fn partition(&self, name: &str, index: i32) -> Result<&PartitionLog, ResponseError> {
        self.get(name)
            .and_then(|topic| topic.partition(index))
            .ok_or(ResponseError::UnknownTopicOrPartition)
    }

    /// All topics by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Topic)> {
        self.by_name.iter().map(|(name, topic)| (name.as_str(), topic))
    }

    /// Whether a topic of this name and size may be made.
    ///
    /// # Errors
    /// What stands in the way, in Kafka's terms.
    pub(crate) fn may_create(
        &self,
        name: &str,
        partitions: u32,
        config: &BrokerConfig,
    ) -> Result<(), ResponseError> {
        if !valid_name(name) {
            return Err(ResponseError::InvalidTopicException);
        }
        if self.by_name.contains_key(name) {
            return Err(ResponseError::TopicAlreadyExists);
        }
        if partitions == 0 || partitions > BrokerConfig::PARTITIONS_MAX {
            return Err(ResponseError::InvalidPartitions);
        }
        let all: usize = self.by_name.values().map(|topic| topic.partitions.len()).sum();
        if self.by_name.len() >= config.topics_max || all + partitions as usize > PARTITIONS_MAX {
            return Err(ResponseError::PolicyViolation);
        }
        Ok(())
    }

    /// Makes a topic.
    ///
    /// # Errors
    /// As [`may_create`](Self::may_create).
    pub(crate) fn create(
        &mut self,
        name: &str,
        partitions: u32,
        settings: TopicSettings,
        config: &BrokerConfig,
    ) -> Result<&Topic, ResponseError> {
        self.may_create(name, partitions, config)?;
        Ok(self
            .by_name
            .entry(name.to_owned())
            .or_insert(Topic::new(partitions, settings)))
    }

    /// Deletes a topic; `false` when there is none.
    pub(crate) fn delete(&mut self, name: &str) -> bool {
        let Some(topic) = self.by_name.remove(name) else {
            return false;
        };
        self.bytes -= topic.bytes;
        true
    }

    /// Adds a producer's batch, then lets old batches go where a bound is passed. Answers the batch's offset.
    ///
    /// # Errors
    /// The Kafka error that refuses the batch.
    pub(crate) fn append(
        &mut self,
        name: &str,
        index: i32,
        batch: CheckedBatch,
        config: &BrokerConfig,
    ) -> Result<i64, ResponseError> {
        let topic = self
            .by_name
            .get_mut(name)
            .ok_or(ResponseError::UnknownTopicOrPartition)?;
        if batch.len() > topic.settings.message_bytes_max(config) {
            return Err(ResponseError::MessageTooLarge);
        }
        let order = topic.appended;
        let log = topic
            .partition_mut(index)
            .ok_or(ResponseError::UnknownTopicOrPartition)?;
        let before = log.bytes();
        let base_offset = log.append(batch, order)?;
        let grown = log.bytes() - before;
        if grown > 0 {
            topic.appended += 1;
            self.grew(name, grown, config);
        }
        Ok(base_offset)
    }

    /// Writes the end of a transaction into a partition, if that is still there.
    pub(crate) fn end_transaction(
        &mut self,
        name: &str,
        index: i32,
        (producer_id, epoch): (i64, i16),
        outcome: Outcome,
        now_ms: i64,
        config: &BrokerConfig,
    ) {
        let Some(topic) = self.by_name.get_mut(name) else {
            return;
        };
        let order = topic.appended;
        let Some(log) = topic.partition_mut(index) else {
            return;
        };
        let before = log.bytes();
        log.end_transaction(producer_id, epoch, outcome, now_ms, order);
        let grown = log.bytes() - before;
        topic.appended += 1;
        self.grew(name, grown, config);
    }

    /// Lets records go that are older than their topic's `retention.ms`.
    pub(crate) fn drop_expired(&mut self, now_ms: i64) {
        for topic in self.by_name.values_mut() {
            if let Some(age_ms) = topic.settings.retention_ms {
                topic.drop_older_than(now_ms.saturating_sub(age_ms));
            }
        }
        self.recount();
    }

    fn grew(&mut self, name: &str, grown: u64, config: &BrokerConfig) {
        if let Some(topic) = self.by_name.get_mut(name) {
            let before = topic.bytes;
            topic.bytes += grown;
            topic.keep_within(name, config.bytes_per_topic_max);
            self.bytes = self.bytes - before + topic.bytes;
        }
        while self.bytes > config.bytes_max {
            let largest = self.by_name.iter_mut().max_by_key(|(_, topic)| topic.bytes);
            let Some((name, topic)) = largest else { return };
            let before = topic.bytes;
            topic.keep_within(name, before.saturating_sub(1));
            let freed = before - topic.bytes;
            self.bytes -= freed;
            if freed == 0 {
                return; // one batch per topic and still too much: only possible with more topics than bytes
            }
        }
    }

    fn recount(&mut self) {
        self.bytes = self.by_name.values().map(|topic| topic.bytes).sum();
    }
}

/// Kafka's rule for names of topics.
fn valid_name(name: &str) -> bool {
    const NAME_BYTES_MAX: usize = 249;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name != "."
        && name != ".."
        && name.chars().all(allowed)
}

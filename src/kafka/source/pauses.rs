//! Which partitions are paused, and which may be.

use std::collections::HashSet;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::topic_partition_list::TopicPartitionList;
use tracing::warn;

use crate::kafka::budget::OffsetTracker;
use crate::kafka::offset_tracker::TopicPartition;

/// The partitions that are ours, as far as pauses go.
///
/// Only a partition that has started is paused, resumed or sought. librdkafka (2.12) numbers its orders to a
/// partition before it queues them, on two threads, and leaves an order out that a later number has overtaken
/// (`rd_kafka_toppar_op_serve`). Where that is the order to begin with a partition that was just assigned,
/// the partition is never read.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    /// So much is in flight that nothing more is to be read.
    pub(super) is_full: bool,
    /// Partitions that have too much in flight by themselves.
    too_much: HashSet<TopicPartition>,
    /// Partitions of which a record was read since they were assigned.
    started: HashSet<TopicPartition>,
    /// Partitions that are paused.
    pub(super) paused: HashSet<TopicPartition>,
}

impl Pauses {
    /// Whether anything is paused, or about to be.
    pub(super) fn is_any(&self) -> bool {
        self.is_full || !self.paused.is_empty()
    }

    /// A record of the partition was read.
    pub(super) fn start(&mut self, partition: &TopicPartition) {
        if !self.started.contains(partition) {
            self.started.insert(partition.clone());
        }
    }

    /// Whether a record of the partition was read since it was assigned.
    pub(super) fn has_started(&self, partition: &TopicPartition) -> bool {
        self.started.contains(partition)
    }

    /// The partitions that are to be paused now: all of them, or those that have too much in flight.
    pub(super) fn wanted(&mut self, tracker: &OffsetTracker) -> HashSet<TopicPartition> {
        if self.is_full {
            self.too_much.clear();
            return self.started.clone();
        }
        self.too_much = tracker.to_pause(&self.too_much);
        self.too_much.intersection(&self.started).cloned().collect()
    }

    /// Resumes partitions that are taken away: librdkafka (2.12) would keep the pause, and never read those
    /// that come back.
    pub(super) fn forget<C: ConsumerContext>(
        &mut self,
        consumer: &BaseConsumer<C>,
        partitions: &[TopicPartition],
    ) {
        let stays = |partition: &TopicPartition| !partitions.contains(partition);
        let mut list = TopicPartitionList::new();
        for partition in self.paused.extract_if(|partition| !stays(partition)) {
            list.add_partition(&partition.topic, partition.partition);
        }
        self.too_much.retain(stays);
        self.started.retain(stays);
        if list.count() > 0
            && let Err(error) = consumer.resume(&list)
        {
            warn!(%error, "failed to resume partitions that are taken away");
        }
    }
}

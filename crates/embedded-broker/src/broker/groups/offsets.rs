//! Committed offsets of one group.

use std::collections::BTreeMap;

use kafka_protocol::protocol::StrBytes;

/// How far a group has come in one partition.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CommittedOffset {
    /// Offset of the next record to read.
    pub(crate) offset: i64,
    /// Whatever the client wants to find beside it.
    pub(crate) metadata: StrBytes,
}

impl CommittedOffset {
    /// An offset with its text; the text is copied so that it does not keep its whole request alive.
    pub(crate) fn new(offset: i64, metadata: Option<&StrBytes>) -> Self {
        let metadata = metadata
            .map(|text| StrBytes::from_string(text.to_string()))
            .unwrap_or_default();
        Self { offset, metadata }
    }
}

/// The offsets, by topic and partition.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    by_topic: BTreeMap<String, BTreeMap<i32, CommittedOffset>>,
    count: usize,
}

impl Offsets {
    /// Partitions with an offset.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The offset of a partition.
    pub(crate) fn get(&self, topic: &str, partition: i32) -> Option<&CommittedOffset> {
        self.by_topic.get(topic)?.get(&partition)
    }

    /// Writes the offset of a partition.
    pub(crate) fn set(&mut self, topic: &str, partition: i32, offset: CommittedOffset) {
        let before = self
            .by_topic
            .entry(topic.to_owned())
            .or_default()
            .insert(partition, offset);
        self.count += usize::from(before.is_none());
    }

    /// Every topic with an offset, and its partitions.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, Vec<i32>)> {
        self.by_topic
            .iter()
            .map(|(topic, partitions)| (topic.as_str(), partitions.keys().copied().collect()))
    }

    /// Forgets a topic.
    pub(crate) fn topic_deleted(&mut self, topic: &str) {
        let gone = self
            .by_topic
            .remove(topic)
            .map_or(0, |partitions| partitions.len());
        self.count -= gone;
    }
}

//! The offset tracker: which records are unfinished, and so which offset may be committed.
//!
//! Work finishes out of order; a committed offset says "everything before me is done". So per partition the
//! tracker keeps the offsets that are unfinished, and the position to commit is the lowest of them, or the
//! one after the last record when none is. It is pure data; [`OffsetTracker`](super::OffsetTracker) is the
//! handle that threads share.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::wire::RecordOffset;

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Name of the topic.
    pub topic: Arc<str>,
    /// Number of the partition.
    pub partition: i32,
}

impl TopicPartition {
    /// The partition `partition` of `topic`.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self {
            topic: topic.into(),
            partition,
        }
    }

    /// The partition that a record with `record_offset` was read from.
    pub fn of(record_offset: &RecordOffset) -> Self {
        Self::new(record_offset.topic.clone(), record_offset.partition)
    }
}

/// An offset to commit: the first one that a restart has to read again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The partition.
    pub partition: TopicPartition,
    /// Everything before this offset is finished.
    pub offset: i64,
}

/// What the tracker says about a record that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Not seen before in this assignment: work on it.
    New,
    /// It is being worked on already: drop it.
    InFlight,
    /// Its record_offset is of an assignment that has ended: drop it.
    Void,
}

/// What became of a record_offset that was handed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The record is finished; `bytes` are free again.
    Released {
        /// What the record weighed at its admission.
        bytes: u64,
    },
    /// The record_offset was handed back before, or never admitted.
    Unknown,
    /// The record_offset is of an assignment that has ended: the record is or will be read again, here or
    /// elsewhere.
    Void,
}

/// Unfinished records per partition, and the positions that follow from them.
#[derive(Debug, Default)]
pub struct OffsetTable {
    partitions: HashMap<TopicPartition, Slots>,
    last_epoch: u64,
    unfinished: usize,
    bytes: u64,
}

/// What is known of one assigned partition.
#[derive(Debug)]
struct Slots {
    epoch: u64,
    /// Offset to weight of the records that are being worked on.
    unfinished: BTreeMap<i64, u64>,
    /// The offset after the record that was read last; `None` before the first.
    next: Option<i64>,
    committed: Option<i64>,
}

impl OffsetTable {
    /// An empty tracker.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes note that `partitions` belong to us from now on; returns the epoch of their record_offsets.
    ///
    /// A partition that is there already is begun anew: its earlier record_offsets are void.
    pub fn assign(&mut self, partitions: impl IntoIterator<Item = TopicPartition>) -> u64 {
        self.last_epoch += 1;
        let epoch = self.last_epoch;
        for partition in partitions {
            self.forget(&partition);
            self.partitions.insert(partition, Slots::new(epoch));
        }
        epoch
    }

    /// Gives `partitions` up; returns the positions that are not committed yet. Their record_offsets are void
    /// afterwards.
    pub fn revoke<'a>(&mut self, partitions: impl IntoIterator<Item = &'a TopicPartition>) -> Vec<Position> {
        let mut positions = Vec::new();
        for partition in partitions {
            positions.extend(self.uncommitted(partition));
            self.forget(partition);
        }
        positions
    }

    /// Epoch of the partition's current assignment; `None` when it is not ours.
    pub fn epoch(&self, partition: &TopicPartition) -> Option<u64> {
        self.partitions.get(partition).map(|slots| slots.epoch)
    }

    /// Takes note of a record that was read and weighs `bytes`.
    ///
    /// Records of a partition arrive in the order of their offsets. One that goes back and is not in flight
    /// means that the topic was made anew or the position was reset: it is admitted, because a repeat is
    /// better than a loss.
    pub fn admit(&mut self, record_offset: &RecordOffset, bytes: u64) -> Admission {
        let Some(slots) = self.partitions.get_mut(&TopicPartition::of(record_offset)) else {
            return Admission::Void;
        };
        if slots.epoch != record_offset.epoch {
            return Admission::Void;
        }
        let admission = slots.admit(record_offset.offset, bytes);
        if admission == Admission::New {
            self.unfinished += 1;
            self.bytes += bytes;
        }
        admission
    }

    /// Takes note that the answer (or the dead letter) of a record is acknowledged.
    pub fn release(&mut self, record_offset: &RecordOffset) -> Release {
        let Some(slots) = self.partitions.get_mut(&TopicPartition::of(record_offset)) else {
            return Release::Void;
        };
        if slots.epoch != record_offset.epoch {
            return Release::Void;
        }
        let Some(bytes) = slots.unfinished.remove(&record_offset.offset) else {
            return Release::Unknown;
        };
        self.unfinished -= 1;
        self.bytes -= bytes;
        Release::Released { bytes }
    }

    /// Positions that have moved since they were last [committed](Self::committed), in order.
    pub fn positions(&self) -> Vec<Position> {
        let mut positions: Vec<Position> = self
            .partitions
            .keys()
            .filter_map(|partition| self.uncommitted(partition))
            .collect();
        positions.sort();
        positions
    }

    /// Takes note that the broker has `positions`.
    pub fn committed(&mut self, positions: &[Position]) {
        for position in positions {
            if let Some(slots) = self.partitions.get_mut(&position.partition) {
                slots.committed = Some(position.offset);
            }
        }
    }

    /// The offset before which everything of `partition` is finished; `None` when nothing was read yet.
    pub fn position(&self, partition: &TopicPartition) -> Option<i64> {
        self.partitions.get(partition)?.position()
    }

    /// Partitions that are ours, in order.
    pub fn assigned(&self) -> Vec<TopicPartition> {
        let mut partitions: Vec<TopicPartition> = self.partitions.keys().cloned().collect();
        partitions.sort();
        partitions
    }

    /// Records that are being worked on.
    pub fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Records of `partitions` that are being worked on.
    pub fn unfinished_of<'a>(&self, partitions: impl IntoIterator<Item = &'a TopicPartition>) -> usize {
        let count = |partition| {
            self.partitions
                .get(partition)
                .map_or(0, |slots| slots.unfinished.len())
        };
        partitions.into_iter().map(count).sum()
    }

    /// Bytes of the records that are being worked on.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn uncommitted(&self, partition: &TopicPartition) -> Option<Position> {
        let slots = self.partitions.get(partition)?;
        let offset = slots.position()?;
        (slots.committed != Some(offset)).then(|| Position {
            partition: partition.clone(),
            offset,
        })
    }

    fn forget(&mut self, partition: &TopicPartition) {
        if let Some(slots) = self.partitions.remove(partition) {
            self.unfinished -= slots.unfinished.len();
            self.bytes -= slots.unfinished.values().sum::<u64>();
        }
    }
}

impl Slots {
    fn new(epoch: u64) -> Self {
        Self {
            epoch,
            unfinished: BTreeMap::new(),
            next: None,
            committed: None,
        }
    }

    fn admit(&mut self, offset: i64, bytes: u64) -> Admission {
        if self.unfinished.contains_key(&offset) {
            return Admission::InFlight;
        }
        self.next = Some(offset + 1);
        self.unfinished.insert(offset, bytes);
        Admission::New
    }

    /// The lowest offset that is unfinished or unread.
    fn position(&self) -> Option<i64> {
        let unfinished = self.unfinished.keys().next().copied();
        unfinished.into_iter().chain(self.next).min()
    }
}

#[cfg(test)]
mod tests;

//! The offset tracker: which records are unfinished, and so which offset may be committed.
//!
//! Work finishes out of order; a committed offset says "everything before me is done". So per partition the
//! tracker keeps the offsets that are unfinished, and the position to commit is the lowest of them, or the
//! one after the last record when none is. What is finished behind that position is committed as its
//! metadata, and not worked on again after a restart. It is pure data;
//! [`OffsetTracker`](super::OffsetTracker) is the handle that threads share.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::answered::{Answered, MEMORY_BYTES_MAX};
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
    /// What is finished behind it, for the metadata of the offset; empty where nothing is.
    pub memory: String,
}

/// What the tracker says about a record that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Not seen before in this assignment: work on it.
    New,
    /// It is being worked on already: drop it.
    InFlight,
    /// It was finished before this assignment, as the committed offset's metadata says: drop it.
    Answered,
    /// Its record_offset is of an assignment that has ended: drop it.
    Void,
}

/// What became of a record_offset that was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The record is finished; `bytes` are free again.
    Released {
        /// Bytes of the record at its admission.
        bytes: u64,
    },
    /// The record_offset was released before, or never admitted.
    Unknown,
    /// The record_offset is of an assignment that has ended: the record is or will be read again, here or
    /// elsewhere.
    Void,
}

/// Unfinished records per partition, and the positions that follow from them.
#[derive(Debug)]
pub struct OffsetTable {
    partitions: HashMap<TopicPartition, Slots>,
    last_epoch: u64,
    unfinished: usize,
    /// How many of them are no work any more.
    idle: usize,
    bytes: u64,
    /// Longest metadata of a committed offset, bytes; lower where the broker takes less.
    memory_bytes_max: usize,
    /// Longest metadata that the broker has taken, bytes.
    memory_bytes_taken: usize,
}

impl Default for OffsetTable {
    fn default() -> Self {
        Self {
            partitions: HashMap::new(),
            last_epoch: 0,
            unfinished: 0,
            idle: 0,
            bytes: 0,
            memory_bytes_max: MEMORY_BYTES_MAX,
            memory_bytes_taken: 0,
        }
    }
}

/// What is known of one assigned partition.
#[derive(Debug)]
struct Slots {
    epoch: u64,
    /// The records that are being worked on, by offset.
    unfinished: BTreeMap<i64, Unfinished>,
    /// Bytes of those that are work still.
    busy_bytes: u64,
    /// The offset after the record that was read last; `None` before the first.
    next: Option<i64>,
    /// What was finished before this assignment.
    answered: Answered,
    /// Whether the group's offset has been asked for.
    is_known: bool,
    committed: Option<Position>,
    /// Offset up to which the committed position and its memory know.
    committed_upto: i64,
}

/// A record that is being worked on.
#[derive(Clone, Copy, Debug)]
struct Unfinished {
    /// Bytes that it takes.
    bytes: u64,
    /// Whether its outcome waits for a transaction: nothing is left to do but to commit it.
    is_settled: bool,
    /// Whether it only waits for others: it is no work.
    is_waiting: bool,
}

impl Unfinished {
    /// Whether it is no work any more: it waits for others, or for its transaction.
    fn is_idle(&self) -> bool {
        self.is_waiting || self.is_settled
    }

    /// Bytes that it takes while it is work.
    fn busy_bytes(&self) -> u64 {
        if self.is_idle() { 0 } else { self.bytes }
    }
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

    /// Partitions whose committed offset has not been asked for.
    pub fn unknown(&self) -> Vec<TopicPartition> {
        let unknown = self.partitions.iter().filter(|(_, slots)| !slots.is_known);
        let mut partitions: Vec<TopicPartition> = unknown.map(|(partition, _)| partition.clone()).collect();
        partitions.sort();
        partitions
    }

    /// Takes note of what the group has committed of `partition`, with its metadata; `None` where that is
    /// nothing. Records that the metadata names are [`Answered`](Admission::Answered) from now on.
    pub fn recall(&mut self, partition: &TopicPartition, committed: Option<(i64, &str)>) {
        let Some(slots) = self.partitions.get_mut(partition) else {
            return;
        };
        slots.is_known = true;
        if let Some((offset, memory)) = committed {
            slots.answered = Answered::parse(offset, memory).unwrap_or_default();
            let position = Position {
                partition: partition.clone(),
                offset,
                memory: memory.to_owned(),
            };
            self.committed(&[position]);
        }
    }

    /// The broker does not take metadata of the length that was tried: from now on none is longer than what
    /// it has taken.
    pub fn limit_memory(&mut self) {
        self.memory_bytes_max = self.memory_bytes_taken;
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

    /// Takes note of a record that was read and takes `bytes`.
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
        let Some(record) = slots.unfinished.remove(&record_offset.offset) else {
            return Release::Unknown;
        };
        slots.busy_bytes -= record.busy_bytes();
        self.unfinished -= 1;
        self.idle -= usize::from(record.is_idle());
        self.bytes -= record.bytes;
        Release::Released { bytes: record.bytes }
    }

    /// Takes note that a record only waits for others: it is no work, and takes `bytes_max` at most from now
    /// on. The bytes that it takes less.
    pub fn wait(&mut self, record_offset: &RecordOffset, bytes_max: u64) -> u64 {
        let slots = self.partitions.get_mut(&TopicPartition::of(record_offset));
        let Some(slots) = slots.filter(|slots| slots.epoch == record_offset.epoch) else {
            return 0;
        };
        let Some(record) = slots.unfinished.get_mut(&record_offset.offset) else {
            return 0;
        };
        slots.busy_bytes -= record.busy_bytes();
        self.idle += usize::from(!record.is_idle());
        record.is_waiting = true;
        let bytes = record.bytes.saturating_sub(bytes_max);
        record.bytes -= bytes;
        self.bytes -= bytes;
        bytes
    }

    /// Takes note whether the outcome of a record waits for its transaction. `false` when the record does not
    /// count: it is not being worked on in this assignment.
    pub fn settle(&mut self, record_offset: &RecordOffset, is_settled: bool) -> bool {
        let slots = self.partitions.get_mut(&TopicPartition::of(record_offset));
        let Some(slots) = slots.filter(|slots| slots.epoch == record_offset.epoch) else {
            return false;
        };
        let Some(record) = slots.unfinished.get_mut(&record_offset.offset) else {
            return false;
        };
        self.idle -= usize::from(record.is_idle());
        slots.busy_bytes -= record.busy_bytes();
        record.is_settled = is_settled;
        self.idle += usize::from(record.is_idle());
        slots.busy_bytes += record.busy_bytes();
        true
    }

    /// Positions that have moved since they were last [committed](Self::committed), in order.
    pub fn positions(&self) -> Vec<Position> {
        self.positions_after(&[]).0
    }

    /// Positions as they are when `outcomes`, each the record offsets of one, are released; and which of them
    /// cannot be, because the metadata that would have to name them is full.
    pub fn positions_after(&self, outcomes: &[&[RecordOffset]]) -> (Vec<Position>, BTreeSet<usize>) {
        let mut left_out = BTreeSet::new();
        loop {
            let mut gone: HashMap<TopicPartition, BTreeSet<i64>> = HashMap::new();
            let kept = outcomes
                .iter()
                .enumerate()
                .filter(|(index, _)| !left_out.contains(index));
            for record_offset in kept.clone().flat_map(|(_, record_offsets)| *record_offsets) {
                let partition = TopicPartition::of(record_offset);
                gone.entry(partition).or_default().insert(record_offset.offset);
            }
            let none = BTreeSet::new();
            let (mut positions, mut known_upto) = (Vec::new(), HashMap::new());
            for (partition, slots) in &self.partitions {
                let gone = gone.get(partition).unwrap_or(&none);
                if let Some((position, upto)) = self.position_of(partition, slots, gone) {
                    known_upto.insert(partition, upto);
                    positions
                        .extend(Some(position).filter(|position| slots.committed.as_ref() != Some(position)));
                }
            }
            let is_unknown = |record_offset: &RecordOffset| {
                let upto = known_upto.get(&TopicPartition::of(record_offset));
                upto.is_none_or(|upto| record_offset.offset >= *upto)
            };
            let unknown: Vec<usize> = kept
                .filter(|(_, record_offsets)| record_offsets.iter().any(is_unknown))
                .map(|(index, _)| index)
                .collect();
            if unknown.is_empty() {
                positions.sort();
                return (positions, left_out);
            }
            left_out.extend(unknown);
        }
    }

    /// Takes note that the broker has `positions`.
    pub fn committed(&mut self, positions: &[Position]) {
        for position in positions {
            if let Some(slots) = self.partitions.get_mut(&position.partition) {
                slots.committed_upto = Answered::parse(position.offset, &position.memory)
                    .map_or(position.offset, |answered| answered.upto());
                slots.committed = Some(position.clone());
                self.memory_bytes_taken = self.memory_bytes_taken.max(position.memory.len());
            }
        }
    }

    /// The offset before which everything of `partition` is finished; `None` when nothing was read yet.
    pub fn position(&self, partition: &TopicPartition) -> Option<i64> {
        let slots = self.partitions.get(partition)?;
        slots
            .answered_after(&BTreeSet::new())
            .map(|answered| answered.position())
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

    /// Records that are being worked on, without those that only wait for others or for their transaction.
    pub fn busy(&self) -> usize {
        self.unfinished - self.idle
    }

    /// Bytes of a partition's records that are being worked on, without those that only wait for others or
    /// for their transaction.
    pub fn busy_bytes(&self, partition: &TopicPartition) -> u64 {
        self.partitions.get(partition).map_or(0, |slots| slots.busy_bytes)
    }

    /// The partitions that `is_taken` names, given their [`busy_bytes`](Self::busy_bytes).
    pub fn busy_partitions(&self, is_taken: impl Fn(&TopicPartition, u64) -> bool) -> Vec<TopicPartition> {
        let taken = |(partition, slots): &(&TopicPartition, &Slots)| is_taken(partition, slots.busy_bytes);
        let found = self.partitions.iter().filter(taken);
        found.map(|(partition, _)| partition.clone()).collect()
    }

    /// Records of `partitions` that are being worked on, without those whose outcome waits for its
    /// transaction.
    pub fn unsettled_of<'a>(&self, partitions: impl IntoIterator<Item = &'a TopicPartition>) -> usize {
        let count = |partition| {
            let slots = self.partitions.get(partition);
            slots.map_or(0, |slots| {
                slots
                    .unfinished
                    .values()
                    .filter(|record| !record.is_settled)
                    .count()
            })
        };
        partitions.into_iter().map(count).sum()
    }

    /// Bytes of the records that are being worked on.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn uncommitted(&self, partition: &TopicPartition) -> Option<Position> {
        let slots = self.partitions.get(partition)?;
        let (position, _) = self.position_of(partition, slots, &BTreeSet::new())?;
        (slots.committed.as_ref() != Some(&position)).then_some(position)
    }

    /// The position when the records at `gone` are finished too, and the offset up to which its memory knows.
    fn position_of(
        &self,
        partition: &TopicPartition,
        slots: &Slots,
        gone: &BTreeSet<i64>,
    ) -> Option<(Position, i64)> {
        let answered = slots.answered_after(gone)?;
        let (memory, upto) = answered.to_text(self.memory_bytes_max);
        if upto < slots.committed_upto {
            return None; // it would forget what is answered
        }
        let position = Position {
            partition: partition.clone(),
            offset: answered.position(),
            memory,
        };
        Some((position, upto))
    }

    fn forget(&mut self, partition: &TopicPartition) {
        if let Some(slots) = self.partitions.remove(partition) {
            self.unfinished -= slots.unfinished.len();
            self.idle -= slots
                .unfinished
                .values()
                .filter(|record| record.is_idle())
                .count();
            self.bytes -= slots.unfinished.values().map(|record| record.bytes).sum::<u64>();
        }
    }
}

impl Slots {
    fn new(epoch: u64) -> Self {
        Self {
            epoch,
            unfinished: BTreeMap::new(),
            busy_bytes: 0,
            next: None,
            answered: Answered::default(),
            is_known: false,
            committed: None,
            committed_upto: i64::MIN,
        }
    }

    fn admit(&mut self, offset: i64, bytes: u64) -> Admission {
        if self.unfinished.contains_key(&offset) {
            return Admission::InFlight;
        }
        let begin = self
            .next
            .or(self.committed.as_ref().map(|position| position.offset));
        if begin.is_some_and(|begin| offset < begin) {
            self.answered = Answered::default(); // what was committed speaks of another log
            self.committed_upto = i64::MIN;
        }
        self.next = Some(offset + 1);
        if self.answered.contains(offset) {
            return Admission::Answered;
        }
        let record = Unfinished {
            bytes,
            is_settled: false,
            is_waiting: false,
        };
        self.unfinished.insert(offset, record);
        self.busy_bytes += bytes;
        Admission::New
    }

    /// What is finished when the records at `gone` are; `None` before the first record.
    fn answered_after(&self, gone: &BTreeSet<i64>) -> Option<Answered> {
        let next = self.next?;
        let upto = next.max(self.answered.upto());
        // Where reading went back, unfinished records may lie behind what was read last.
        let unfinished = self.unfinished.range(..upto).map(|(offset, _)| *offset);
        let unfinished = unfinished.filter(|offset| !gone.contains(offset));
        let runs = unfinished.map(|offset| offset..offset + 1);
        Some(Answered::new(upto, runs.chain(self.answered.except_from(next))))
    }
}

#[cfg(test)]
mod tests;

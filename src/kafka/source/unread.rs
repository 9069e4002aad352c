//! Records that retention deletes before they are read: where reading skipped, and what the log's start says
//! of it.
//!
//! A gap between two records that were read need not be a loss: transaction markers, aborted and compacted
//! records leave gaps too. Only what lies before the start of the log is gone. librdkafka reports that start
//! with every answer to a fetch, so a gap is judged by the statistics that follow it.

use std::collections::HashMap;

use crate::kafka::monitor::RecordsDeleted;
use crate::kafka::offset_tracker::TopicPartition;

/// A gap that the start of the log has not explained after so many statistics is none of retention's doing.
const LOOKS_MAX: u8 = 3;

/// What was read of the partitions that are ours.
#[derive(Debug, Default)]
pub(super) struct Unread {
    partitions: HashMap<TopicPartition, Reading>,
}

/// Where reading of a partition is.
#[derive(Debug, Default)]
struct Reading {
    /// The offset that should be read next; not known before the first record of a group without offsets.
    next: Option<i64>,
    gaps: Vec<Gap>,
    /// The log's start, where the last look found it beyond `next` with nothing left to hand out.
    beyond: Option<i64>,
}

/// Offsets from `from` up to `to` that were not read.
#[derive(Debug)]
struct Gap {
    from: i64,
    to: i64,
    looks: u8,
}

impl Unread {
    /// Whether nothing of `partition` has been read, nor is it known where reading begins.
    pub(super) fn is_new(&self, partition: &TopicPartition) -> bool {
        self.partitions
            .get(partition)
            .is_none_or(|reading| reading.next.is_none())
    }

    /// The group's offset of `partition` as its reading begins.
    pub(super) fn begin(&mut self, partition: &TopicPartition, offset: i64) {
        let reading = self.partitions.entry(partition.clone()).or_default();
        reading.next.get_or_insert(offset);
    }

    /// The record at `offset` was read.
    pub(super) fn read(&mut self, partition: &TopicPartition, offset: i64) {
        if let Some(reading) = self.partitions.get_mut(partition) {
            reading.read(offset);
        } else {
            let mut reading = Reading::default();
            reading.read(offset);
            self.partitions.insert(partition.clone(), reading);
        }
    }

    /// Judges what was not read of `partition` by the start of its log; `drained`: everything fetched is
    /// handed out.
    pub(super) fn look(
        &mut self,
        partition: &TopicPartition,
        log_start: i64,
        drained: bool,
    ) -> Vec<RecordsDeleted> {
        let Some(reading) = self.partitions.get_mut(partition) else {
            return Vec::new();
        };
        let deleted = |(first_offset, end): (i64, i64)| RecordsDeleted {
            partition: partition.clone(),
            first_offset,
            records: end - first_offset,
        };
        reading
            .look(log_start, drained)
            .into_iter()
            .map(deleted)
            .collect()
    }

    /// Partitions that are not ours any more.
    pub(super) fn forget(&mut self, partitions: &[TopicPartition]) {
        self.partitions
            .retain(|partition, _| !partitions.contains(partition));
    }
}

impl Reading {
    fn read(&mut self, offset: i64) {
        if let Some(from) = self.next.filter(|next| offset > *next) {
            let to = offset;
            self.gaps.push(Gap { from, to, looks: 0 });
        }
        self.next = Some(offset + 1);
        self.beyond = None;
    }

    /// Ranges that are gone: first offset, and the one after the last.
    fn look(&mut self, log_start: i64, drained: bool) -> Vec<(i64, i64)> {
        let mut gone = Vec::new();
        self.gaps.retain_mut(|gap| {
            gap.looks += 1;
            if log_start > gap.from {
                gone.push((gap.from, log_start.min(gap.to)));
                return false;
            }
            gap.looks < LOOKS_MAX
        });
        // An emptied log brings no record that would show the gap.
        let Some(next) = self.next.filter(|next| drained && log_start > *next) else {
            self.beyond = None;
            return gone;
        };
        match self.beyond {
            Some(beyond) => {
                gone.push((next, beyond));
                self.next = Some(beyond);
                self.beyond = None;
            }
            None => self.beyond = Some(log_start),
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition() -> TopicPartition {
        TopicPartition::new("requests", 0)
    }

    fn ranges(deleted: Vec<RecordsDeleted>) -> Vec<(i64, i64)> {
        deleted
            .iter()
            .map(|deleted| (deleted.first_offset, deleted.records))
            .collect()
    }

    #[test]
    fn records_before_the_start_of_the_log_were_lost_and_other_gaps_are_none() {
        let (mut unread, place) = (Unread::default(), partition());
        for offset in [0, 3, 10, 12] {
            unread.read(&place, offset); // 11 is a transaction's marker
        }

        assert_eq!(ranges(unread.look(&place, 1, true)), []);
        assert_eq!(ranges(unread.look(&place, 10, true)), [(1, 2), (4, 6)]);
        assert_eq!(ranges(unread.look(&place, 10, true)), [], "reported once");
    }

    #[test]
    fn a_gap_that_the_log_s_start_does_not_explain_is_forgotten() {
        let (mut unread, place) = (Unread::default(), partition());
        unread.read(&place, 0);
        unread.read(&place, 2);
        for _ in 0..LOOKS_MAX {
            assert_eq!(ranges(unread.look(&place, 0, true)), []);
        }

        assert_eq!(
            ranges(unread.look(&place, 3, true)),
            [],
            "retention went over what had been read"
        );
    }

    #[test]
    fn what_was_deleted_between_the_group_s_offset_and_the_first_record_counts() {
        let (mut unread, place) = (Unread::default(), partition());
        assert!(unread.is_new(&place));
        unread.begin(&place, 5);
        unread.begin(&place, 7); // later, and so not where it began

        unread.read(&place, 12);

        assert!(!unread.is_new(&place));
        assert_eq!(ranges(unread.look(&place, 12, false)), [(5, 7)]);
    }

    #[test]
    fn a_log_that_was_emptied_is_noticed_without_a_further_record_and_counted_once() {
        let (mut unread, place) = (Unread::default(), partition());
        unread.read(&place, 4);

        assert_eq!(
            ranges(unread.look(&place, 9, false)),
            [],
            "what was fetched is still to come"
        );
        assert_eq!(ranges(unread.look(&place, 9, true)), []);
        assert_eq!(ranges(unread.look(&place, 9, true)), [(5, 4)]);
        assert_eq!(ranges(unread.look(&place, 9, true)), []);
        unread.read(&place, 9);
        assert_eq!(ranges(unread.look(&place, 9, true)), []);
    }

    #[test]
    fn a_group_without_offsets_misses_nothing_and_a_topic_made_anew_begins_anew() {
        let (mut unread, place) = (Unread::default(), partition());
        unread.read(&place, 100);
        assert_eq!(ranges(unread.look(&place, 100, true)), []);

        unread.read(&place, 0);
        assert_eq!(ranges(unread.look(&place, 0, true)), []);
        unread.forget(std::slice::from_ref(&place));
        assert!(unread.is_new(&place));
    }
}

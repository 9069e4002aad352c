//! What a transaction holds: outcomes, and the positions that follow from them.

use std::time::Instant;

use super::Transactions;
use super::fault::TransactionalProducer;
use crate::kafka::offset_tracker::Position;
use crate::kafka::settlement::{Outcome, Outcomes, Settled};
use crate::wire::RecordOffset;

/// A transaction's contents.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) outcomes: Vec<Outcome>,
    pub(super) positions: Vec<Position>,
    /// The epochs under which the partitions of `positions` were ours.
    pub(super) epochs: Vec<u64>,
    pub(super) began: Instant,
}

impl Batch {
    pub(super) fn empty(now: Instant) -> Self {
        Self {
            outcomes: Vec::new(),
            positions: Vec::new(),
            epochs: Vec::new(),
            began: now,
        }
    }
}

impl<P: TransactionalProducer> Transactions<P> {
    /// What the next transaction holds; `None` when none is due.
    pub(super) fn next_batch(&mut self, now: Instant) -> Option<Batch> {
        let outcomes = self.tracker.outcomes()?;
        let is_due = self
            .last_begin
            .is_none_or(|begin| now.saturating_duration_since(begin) >= self.batching.interval);
        if !is_due && outcomes.len() < self.left_out + self.batching.outcomes_max {
            return None;
        }
        let (kept, positions, left_out) = self.take_named(outcomes);
        self.left_out = left_out;
        if positions.is_empty() {
            outcomes.put_back(kept);
            if left_out > 0 {
                self.last_begin = Some(now); // to look through them in every round would be much work
            }
            return None;
        }
        let epoch = |position: &Position| self.tracker.epoch(&position.partition).unwrap_or_default();
        Some(Batch {
            epochs: positions.iter().map(epoch).collect(),
            outcomes: kept,
            positions,
            began: now,
        })
    }

    /// Takes the oldest outcomes that positions can name, up to the bounds, with these positions; and how
    /// many others it passed over, which stay in the queue in their order. What those wait for may stand
    /// behind them, however many they are.
    fn take_named(&self, outcomes: &Outcomes) -> (Vec<Outcome>, Vec<Position>, usize) {
        let (count_max, bytes_max) = (self.batching.outcomes_max, self.batching.bytes_max);
        let (mut kept, mut left_out): (Vec<Outcome>, Vec<Outcome>) = (Vec::new(), Vec::new());
        let (mut positions, mut bytes) = (Vec::new(), 0_usize);
        loop {
            let count_left = count_max.saturating_sub(kept.len());
            let bytes_left = bytes_max.saturating_sub(bytes);
            let taken = self.current(outcomes.take(count_left, bytes_left));
            if !kept.is_empty() && taken.iter().map(Outcome::bytes).sum::<usize>() > bytes_left {
                left_out.extend(taken); // one that is too large beside the others
                break;
            }
            let (positions_now, unnamed) = self.keep(&mut kept, taken);
            positions = positions_now;
            left_out.extend(unnamed);
            bytes = kept.iter().map(Outcome::bytes).sum();
            // More than half is enough: what is left would be filled in many small steps.
            let is_filled = kept.len() > count_max / 2 || bytes > bytes_max / 2;
            if is_filled || outcomes.len() == 0 {
                break;
            }
        }
        // Those of a stream and what lies between its chunks may only have names together.
        if kept.is_empty() && !left_out.is_empty() {
            (positions, left_out) = self.keep(&mut kept, left_out);
        }
        let passed_over = left_out.len();
        outcomes.put_back(left_out);
        (kept, positions, passed_over)
    }

    /// Adds to `kept` what positions can name of `more`; these positions, and the rest.
    fn keep(&self, kept: &mut Vec<Outcome>, more: Vec<Outcome>) -> (Vec<Position>, Vec<Outcome>) {
        kept.extend(more);
        let record_offsets: Vec<&[RecordOffset]> = kept
            .iter()
            .map(|outcome| outcome.record_offsets.as_slice())
            .collect();
        let (positions, unnamed) = self.tracker.positions_after(&record_offsets);
        let mut index = 0..;
        let (rest, named): (Vec<Outcome>, Vec<Outcome>) = std::mem::take(kept)
            .into_iter()
            .partition(|_| index.next().is_some_and(|index| unnamed.contains(&index)));
        *kept = named;
        (positions, rest)
    }

    /// Ends outcomes of partitions that are not ours any more; the others, with the records that still are.
    fn current(&self, taken: Vec<Outcome>) -> Vec<Outcome> {
        let is_current = |record_offset: &RecordOffset| self.tracker.is_current(record_offset);
        let (mut current, void): (Vec<Outcome>, Vec<Outcome>) = taken
            .into_iter()
            .partition(|outcome| outcome.record_offsets.iter().any(is_current));
        void.into_iter().for_each(|outcome| outcome.end(Settled::Void));
        for outcome in &mut current {
            outcome.record_offsets.retain(is_current);
        }
        current
    }
}

//! Outcomes of records that wait for a transaction, in the order in which they came.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::convert;
use super::error::SinkError;
use crate::wire::{OutgoingRecord, RecordOffset};

/// What became of an outcome that was handed to a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is committed: readers see its records, and its offsets are finished.
    Committed,
    /// Its records are read again, here or elsewhere: their partition was taken away, or it is not known
    /// whether the transaction was committed.
    Void,
    /// One of its records is refused for good; its offsets are not finished and wait for another outcome.
    Refused(SinkError),
    /// The source has ended before; the records are read again after the restart.
    Stopped,
}

/// The records that a transaction writes for records that were read.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) record_offsets: Vec<RecordOffset>,
    pub(super) records: Vec<OutgoingRecord>,
    settled: oneshot::Sender<Settled>,
}

impl Outcome {
    /// An outcome, and what says how it ended.
    pub(super) fn new(
        record_offsets: Vec<RecordOffset>,
        records: Vec<OutgoingRecord>,
    ) -> (Self, oneshot::Receiver<Settled>) {
        let (sender, receiver) = oneshot::channel();
        let outcome = Self {
            record_offsets,
            records,
            settled: sender,
        };
        (outcome, receiver)
    }

    /// Says how it ended.
    pub(super) fn end(self, settled: Settled) {
        let _ = self.settled.send(settled); // who waited may have gone
    }

    /// Size of its records, bytes.
    pub(super) fn bytes(&self) -> usize {
        let bytes = |record: &OutgoingRecord| {
            convert::payload_bytes(record.key.as_ref(), record.value.as_ref(), &record.headers)
        };
        self.records.iter().map(bytes).sum()
    }
}

/// A queue of outcomes. The lock of the offset table, where both are held, is taken before this one's.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    outcomes: VecDeque<Outcome>,
    /// Nobody takes outcomes any more.
    is_closed: bool,
}

impl Outcomes {
    /// Keeps an outcome until a transaction takes it.
    pub(super) fn push(&self, outcome: Outcome) {
        let mut queue = self.lock();
        match queue.is_closed {
            true => outcome.end(Settled::Stopped),
            false => queue.outcomes.push_back(outcome),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lock().outcomes.len()
    }

    /// A source is there that takes outcomes.
    pub(super) fn open(&self) {
        self.lock().is_closed = false;
    }

    /// No source is there any more: ends what waits, and what comes from now on.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.is_closed = true;
        queue
            .outcomes
            .drain(..)
            .for_each(|outcome| outcome.end(Settled::Stopped));
    }

    /// Takes the oldest outcomes, `count_max` and `bytes_max` at most, and one at least.
    pub(super) fn take(&self, count_max: usize, bytes_max: usize) -> Vec<Outcome> {
        let mut queue = self.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(outcome) = queue.outcomes.pop_front() {
            let size = outcome.bytes();
            if !taken.is_empty() && (taken.len() >= count_max || bytes + size > bytes_max) {
                queue.outcomes.push_front(outcome);
                break;
            }
            bytes += size;
            taken.push(outcome);
        }
        taken
    }

    /// Puts outcomes back in front of the others, in their order.
    pub(super) fn put_back(&self, outcomes: Vec<Outcome>) {
        let mut queue = self.lock();
        for outcome in outcomes.into_iter().rev() {
            queue.outcomes.push_front(outcome);
        }
    }

    /// A poisoned lock is sound here: every critical section leaves whole values.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

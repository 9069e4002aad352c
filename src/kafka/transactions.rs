//! Exactly once: outcomes and the offsets of their records in one transaction, as a state machine.
//!
//! [`Transactions`] takes outcomes from an [`OffsetTracker`], writes them, sends the positions that follow
//! from them, and commits. One thread drives it, the one that polls the consumer, so no rebalance can happen
//! between two of its steps unseen. It is generic over the [`TransactionalProducer`], so that a simulation
//! runs the same code against a broker of its own.
//!
//! What is known to be aborted is written again from memory. Where it is not known whether a commit
//! succeeded, memory counts for nothing: the group's committed offsets are asked, and reading goes back to
//! them ([`Step::Resync`]).

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::budget::OffsetTracker;
use super::error::SinkError;
use super::offset_tracker::Position;
use super::settlement::Settled;
use crate::telemetry::metrics;
use crate::wire::OutgoingRecord;

mod batch;
mod fault;
mod producer;
#[cfg(test)]
mod simulation;

use batch::Batch;
use fault::{Fault, TransactionalProducer, WriteFault};
pub(super) use producer::{Group, Producer};

/// Pause before something that failed is tried again; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest such pause.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// A producer whose calls have only failed for so long is replaced: after an outage, librdkafka's may never
/// be able to abort again, and asks for one more try for ever.
const FAILING_MAX: Duration = Duration::from_secs(15);

/// When transactions begin, and how large they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batching {
    /// Least time between the begins of two.
    pub(super) interval: Duration,
    /// Outcomes of one; as many begin one before the interval is over.
    pub(super) outcomes_max: usize,
    /// Bytes of one.
    pub(super) bytes_max: usize,
    /// The broker ends one that is open for longer.
    pub(super) timeout: Duration,
}

/// How far a call of [`Transactions::step`] came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing is to do now.
    Idle,
    /// It went on: call again.
    Moved,
    /// Something failed and is tried again later.
    Waiting,
    /// What is in flight counts for nothing: reading has to go back to the group's committed offsets. Said
    /// until [`Transactions::resynced`].
    Resync,
    /// There is no going on; why.
    Ended(String),
}

#[derive(Debug)]
enum Phase {
    /// The transactional id has to be taken over.
    Init,
    /// No transaction is open.
    Idle,
    /// Its records are acknowledged; its positions are to be sent.
    Offsets(Batch),
    /// Its positions are sent; it is to be committed.
    Commit(Batch),
    /// It is to be aborted; it may be that it is committed (`in_doubt`).
    Abort { batch: Batch, in_doubt: bool },
    /// The producer failed for good, or for too long.
    Renew { batch: Batch, in_doubt: bool },
    /// There is no going on.
    Ended(String),
}

/// The transactions of one source.
#[derive(Debug)]
pub(super) struct Transactions<P> {
    producer: P,
    tracker: OffsetTracker,
    batching: Batching,
    phase: Phase,
    /// Nothing begins, and nothing is tried again, before.
    not_before: Instant,
    last_begin: Option<Instant>,
    /// Outcomes that were looked at last and passed over, because positions could not name them.
    left_out: usize,
    retry_pause: Duration,
    /// Since when calls of the producer have only failed.
    failing_since: Option<Instant>,
    /// Nothing begins before the tracker knows again what is committed.
    resync_due: bool,
}

impl<P: TransactionalProducer> Transactions<P> {
    /// No transaction yet; the first steps take the transactional id over.
    pub(super) fn new(producer: P, tracker: OffsetTracker, batching: Batching, now: Instant) -> Self {
        if let Some(outcomes) = tracker.outcomes() {
            outcomes.open();
        }
        Self {
            producer,
            tracker,
            batching,
            phase: Phase::Init,
            not_before: now,
            last_begin: None,
            left_out: 0,
            retry_pause: RETRY_FIRST,
            failing_since: None,
            resync_due: false,
        }
    }

    /// The tracker is to begin anew, after [`Step::Resync`].
    pub(super) fn resynced(&mut self) {
        self.resync_due = false;
    }

    /// Whether the transactional id is ours, as far as we know.
    pub(super) fn is_initialised(&self) -> bool {
        !matches!(self.phase, Phase::Init | Phase::Renew { .. } | Phase::Ended(_))
    }

    /// Goes on by one call of the producer, or a few that belong together. `group` is asked for our
    /// membership when positions are to be sent; `None` when there is none now. `now` is asked again after a
    /// call: it may have blocked for seconds.
    pub(super) fn step(
        &mut self,
        group: impl FnOnce() -> Option<P::Group>,
        now: impl Fn() -> Instant,
    ) -> Step {
        if self.resync_due {
            return Step::Resync;
        }
        if now() < self.not_before {
            return Step::Waiting;
        }
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Init => self.init(now),
            Phase::Idle => self.begin(now),
            Phase::Offsets(batch) => self.send_offsets(batch, group, now),
            Phase::Commit(batch) => self.commit(batch, now),
            Phase::Abort { batch, in_doubt } => self.abort(batch, in_doubt, now),
            Phase::Renew { batch, in_doubt } => self.renew(batch, in_doubt, now),
            Phase::Ended(reason) => self.end(reason),
        }
    }

    /// Ends the transaction that is open and commits what is settled, before partitions are given up; `false`
    /// when `is_late` came first. `pause` waits a little.
    ///
    /// What is late may still be committed: its offsets were sent while the partitions were ours, and the
    /// group shows nobody an offset that a transaction may still change.
    pub(super) fn conclude(
        &mut self,
        group: impl Fn() -> Option<P::Group>,
        now: impl Fn() -> Instant,
        is_late: impl Fn() -> bool,
        pause: impl Fn(),
    ) -> bool {
        while !is_late() {
            self.last_begin = None; // the interval does not count now
            match self.step(&group, &now) {
                Step::Moved => {}
                Step::Idle => return true,
                Step::Waiting => pause(),
                Step::Resync | Step::Ended(_) => return false,
            }
        }
        false
    }

    fn init(&mut self, now: impl Fn() -> Instant) -> Step {
        match self.producer.init() {
            Ok(()) => {
                self.retry_pause = RETRY_FIRST;
                self.moved(Phase::Idle)
            }
            Err(Fault::Retry(reason)) => self.fail(Phase::Init, "init", &reason, now()),
            Err(fault) => self.failed(Batch::empty(now()), false, "init", fault, now()),
        }
    }

    fn begin(&mut self, now: impl Fn() -> Instant) -> Step {
        let Some(batch) = self.next_batch(now()) else {
            return Step::Idle;
        };
        self.last_begin = Some(batch.began);
        if let Err(fault) = self.producer.begin() {
            return match fault {
                Fault::Retry(reason) => {
                    self.put_back(batch);
                    self.fail(Phase::Idle, "begin", &reason, now())
                }
                fault => self.failed(batch, false, "begin", fault, now()),
            };
        }
        let records: Vec<&OutgoingRecord> = batch
            .outcomes
            .iter()
            .flat_map(|outcome| &outcome.records)
            .collect();
        match self.producer.write(&records) {
            Ok(()) => self.moved(Phase::Offsets(batch)),
            Err(WriteFault { refused, fault }) => {
                let batch = self.without(batch, refused);
                self.failed(batch, false, "write", fault, now())
            }
        }
    }

    fn send_offsets(
        &mut self,
        batch: Batch,
        group: impl FnOnce() -> Option<P::Group>,
        now: impl Fn() -> Instant,
    ) -> Step {
        // Positions of a partition that was taken away would be ours no more, whatever the group says of us.
        let is_ours =
            |(position, epoch): (&Position, &u64)| self.tracker.epoch(&position.partition) == Some(*epoch);
        if !batch.positions.iter().zip(&batch.epochs).all(is_ours) {
            let fault = Fault::Stale("partitions of the transaction were taken away".to_owned());
            return self.failed(batch, false, "send offsets", fault, now());
        }
        let Some(group) = group() else {
            let fault = Fault::Stale("the consumer is no member of its group now".to_owned());
            return self.failed(batch, false, "send offsets", fault, now());
        };
        match self.producer.send_offsets(&batch.positions, &group) {
            Ok(()) => self.moved(Phase::Commit(batch)),
            Err(Fault::Retry(reason)) => self.fail(Phase::Offsets(batch), "send offsets", &reason, now()),
            Err(Fault::MemoryTooLong) => {
                warn!(
                    "the broker takes no metadata of committed offsets as long as ours: answers wait for those before them from now on"
                );
                self.tracker.limit_memory();
                self.failed(batch, false, "send offsets", Fault::MemoryTooLong, now())
            }
            Err(fault) => self.failed(batch, false, "send offsets", fault, now()),
        }
    }

    fn commit(&mut self, batch: Batch, now: impl Fn() -> Instant) -> Step {
        match self.producer.commit() {
            Ok(()) => {
                let (outcomes, partitions) = (batch.outcomes.len(), batch.positions.len());
                let took = now().saturating_duration_since(batch.began);
                debug!(outcomes, partitions, ?took, "transaction committed");
                metrics::transaction_ended("committed");
                let is_ours = |(position, epoch): (&Position, &u64)| {
                    (self.tracker.epoch(&position.partition) == Some(*epoch)).then(|| position.clone())
                };
                let ours: Vec<Position> = batch
                    .positions
                    .iter()
                    .zip(&batch.epochs)
                    .filter_map(is_ours)
                    .collect();
                self.tracker.committed(&ours);
                for outcome in batch.outcomes {
                    for record_offset in &outcome.record_offsets {
                        self.tracker.release(record_offset);
                    }
                    outcome.end(Settled::Committed);
                }
                self.retry_pause = RETRY_FIRST;
                self.moved(Phase::Idle)
            }
            Err(Fault::Retry(reason)) => self.fail(Phase::Commit(batch), "commit", &reason, now()),
            Err(fault) => self.failed(batch, true, "commit", fault, now()),
        }
    }

    fn abort(&mut self, batch: Batch, in_doubt: bool, now: impl Fn() -> Instant) -> Step {
        match self.producer.abort() {
            Ok(()) => {
                metrics::transaction_ended("aborted");
                self.failing_since = None;
                self.phase = Phase::Idle;
                self.not_before = now() + self.retry_pause;
                self.over(batch, in_doubt)
            }
            Err(Fault::Fatal(reason)) => self.fail(Phase::Renew { batch, in_doubt }, "abort", &reason, now()),
            Err(Fault::Fenced(reason)) => self.fenced(reason, batch, in_doubt, now()),
            Err(Fault::Refused(reason)) => self.end(reason),
            Err(fault) => self.fail(Phase::Abort { batch, in_doubt }, "abort", &fault.reason(), now()),
        }
    }

    fn renew(&mut self, batch: Batch, in_doubt: bool, now: impl Fn() -> Instant) -> Step {
        if let Err(fault) = self.producer.renew() {
            return self.fail(Phase::Renew { batch, in_doubt }, "renew", &fault.reason(), now());
        }
        // What the former producer left open is aborted by `init`, or committed where its commit had arrived.
        metrics::transaction_ended("abandoned");
        self.failing_since = None;
        self.phase = Phase::Init;
        self.over(batch, in_doubt)
    }

    /// A transaction has not been committed, or nobody knows.
    fn over(&mut self, batch: Batch, in_doubt: bool) -> Step {
        if !in_doubt {
            self.put_back(batch);
            return Step::Moved;
        }
        batch
            .outcomes
            .into_iter()
            .for_each(|outcome| outcome.end(Settled::Void));
        self.resync_due = true;
        Step::Resync
    }

    fn put_back(&self, batch: Batch) {
        if let Some(outcomes) = self.tracker.outcomes() {
            outcomes.put_back(batch.outcomes);
        }
    }

    /// Gives outcomes with refused records back to who settled them.
    fn without(&self, mut batch: Batch, refused: Vec<(usize, SinkError)>) -> Batch {
        let mut record = 0;
        let mut kept = Vec::new();
        for outcome in batch.outcomes {
            let records = record..record + outcome.records.len();
            record = records.end;
            match refused.iter().find(|(index, _)| records.contains(index)) {
                None => kept.push(outcome),
                Some((_, error)) => {
                    outcome
                        .record_offsets
                        .iter()
                        .for_each(|record_offset| self.tracker.unsettle(record_offset));
                    outcome.end(Settled::Refused(error.clone()));
                }
            }
        }
        batch.outcomes = kept;
        batch
    }

    /// The transaction cannot go on after `fault`.
    fn failed(&mut self, batch: Batch, in_doubt: bool, what: &str, fault: Fault, now: Instant) -> Step {
        match fault {
            Fault::Fenced(reason) => self.fenced(reason, batch, in_doubt, now),
            Fault::Refused(reason) => self.end(reason),
            Fault::Fatal(reason) => self.fail(Phase::Renew { batch, in_doubt }, what, &reason, now),
            fault => {
                let step = self.fail(Phase::Abort { batch, in_doubt }, what, &fault.reason(), now);
                self.not_before = now; // what follows the abort is put off, not the abort
                step
            }
        }
    }

    /// Another producer of our id has shut this one out, or the broker has because a transaction took too
    /// long. In the second case there is nobody else, and another producer may go on.
    fn fenced(&mut self, reason: String, batch: Batch, in_doubt: bool, now: Instant) -> Step {
        if now.saturating_duration_since(batch.began) < self.batching.timeout {
            return self.end(format!(
                "another process has taken the transactional id over ({reason}); `kafka.instance_id` has to differ \
                 between processes"
            ));
        }
        info!(
            reason,
            "the broker has ended a transaction that was open for too long"
        );
        self.fail(Phase::Renew { batch, in_doubt }, "transaction", &reason, now)
    }

    fn end(&mut self, reason: String) -> Step {
        self.phase = Phase::Ended(reason.clone());
        Step::Ended(reason)
    }

    fn moved(&mut self, phase: Phase) -> Step {
        self.failing_since = None;
        self.phase = phase;
        Step::Moved
    }

    /// Stays in `phase`, or goes to it, after a pause; where calls have failed for too long, the producer is
    /// replaced.
    fn fail(&mut self, phase: Phase, what: &str, reason: &str, now: Instant) -> Step {
        debug!(what, reason, pause = ?self.retry_pause, "a transaction's step failed");
        let failing = now.saturating_duration_since(*self.failing_since.get_or_insert(now));
        self.phase = if failing < FAILING_MAX {
            phase
        } else {
            phase.renewal(now)
        };
        self.not_before = now + self.retry_pause;
        self.retry_pause = (self.retry_pause * 2).min(RETRY_MAX);
        Step::Waiting
    }
}

impl Phase {
    /// The same with another producer.
    fn renewal(self, now: Instant) -> Self {
        match self {
            Self::Init | Self::Idle => Self::Renew {
                batch: Batch::empty(now),
                in_doubt: false,
            },
            Self::Offsets(batch) => Self::Renew {
                batch,
                in_doubt: false,
            },
            Self::Commit(batch) => Self::Renew {
                batch,
                in_doubt: true,
            },
            Self::Abort { batch, in_doubt } | Self::Renew { batch, in_doubt } => {
                Self::Renew { batch, in_doubt }
            }
            ended @ Self::Ended(_) => ended,
        }
    }
}

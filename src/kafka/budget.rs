//! How much is in flight: the gauge that pauses the source, and the tracker handle that threads share.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::audio_gauge::AudioGauge;
use super::offset_tracker::{Admission, OffsetTable, Position, Release, TopicPartition};
use super::settlement::{Outcome, Outcomes, Settled};
use crate::wire::{OutgoingRecord, RecordOffset};

/// Bytes in flight, with a bound. The source pauses above the bound and goes on below half of it.
///
/// Records that were read count by themselves, until their record_offset is released. What a stage makes of
/// them (decoded audio is ten times its FLAC) is added with [`hold`](Self::hold). Clones share one gauge.
#[derive(Clone, Debug)]
pub struct Budget {
    gauge: Arc<Gauge>,
    audio: AudioGauge,
}

#[derive(Debug)]
struct Gauge {
    bytes: AtomicU64,
    bytes_max: u64,
}

/// Bytes that count as in flight until this is dropped.
#[derive(Debug)]
pub struct BudgetHold {
    gauge: Arc<Gauge>,
    bytes: u64,
}

impl Budget {
    /// An empty gauge with the bound `bytes_max`, and without a bound on audio.
    pub fn new(bytes_max: u64) -> Self {
        Self::with_audio(bytes_max, f64::INFINITY)
    }

    /// As [`new`](Self::new), with a bound on the audio in flight, seconds.
    pub fn with_audio(bytes_max: u64, audio_seconds_max: f64) -> Self {
        let bytes = AtomicU64::new(0);
        Self {
            gauge: Arc::new(Gauge { bytes, bytes_max }),
            audio: AudioGauge::new(audio_seconds_max),
        }
    }

    /// The audio in flight.
    pub fn audio(&self) -> &AudioGauge {
        &self.audio
    }

    /// Counts `bytes` as in flight for as long as the result lives. Never waits: what was read has to be
    /// worked on.
    pub fn hold(&self, bytes: u64) -> BudgetHold {
        self.raise(bytes);
        BudgetHold {
            gauge: self.gauge.clone(),
            bytes,
        }
    }

    /// Bytes in flight.
    pub fn bytes(&self) -> u64 {
        self.gauge.bytes.load(Ordering::Relaxed)
    }

    /// The bound.
    pub fn bytes_max(&self) -> u64 {
        self.gauge.bytes_max
    }

    /// Whether no more should be read.
    pub fn is_over(&self) -> bool {
        self.bytes() >= self.bytes_max()
    }

    /// Bytes up to the bound.
    fn free(&self) -> u64 {
        self.bytes_max().saturating_sub(self.bytes())
    }

    /// Whether enough is free to read on after a pause.
    pub fn is_below_half(&self) -> bool {
        self.bytes() <= self.bytes_max() / 2
    }

    fn raise(&self, bytes: u64) {
        self.gauge.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn lower(&self, bytes: u64) {
        self.gauge.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for BudgetHold {
    fn drop(&mut self) {
        self.gauge.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The offset tracker as the source, the publisher and the sample collector share it. Clones are the same
/// tracker.
#[derive(Clone, Debug)]
pub struct OffsetTracker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    offsets: Mutex<OffsetTable>,
    budget: Budget,
    /// Notified of every record that is released or settled.
    released: Condvar,
    /// What waits for a transaction; `None` where answers are written outside transactions.
    outcomes: Option<Outcomes>,
    /// Whether the source reads nothing, because so much is in flight.
    is_full: AtomicBool,
}

impl OffsetTracker {
    /// An empty tracker whose records count against `budget`.
    pub fn new(budget: Budget) -> Self {
        Self::with(budget, None)
    }

    /// As [`new`](Self::new), for exactly once: outcomes are [settled](Self::settle), and the source writes
    /// them with their offsets in transactions.
    pub fn transactional(budget: Budget) -> Self {
        Self::with(budget, Some(Outcomes::default()))
    }

    fn with(budget: Budget, outcomes: Option<Outcomes>) -> Self {
        Self {
            shared: Arc::new(Shared {
                offsets: Mutex::default(),
                budget,
                released: Condvar::new(),
                outcomes,
                is_full: AtomicBool::new(false),
            }),
        }
    }

    /// Whether outcomes are [settled](Self::settle).
    pub fn is_transactional(&self) -> bool {
        self.shared.outcomes.is_some()
    }

    /// Hands the outcome of records to the source, which writes `records` and commits `record_offsets` in one
    /// transaction; resolves when that is over. Dropping the future does not take the outcome back.
    ///
    /// Of a tracker that is not transactional, [`Settled::Void`].
    pub async fn settle(&self, record_offsets: Vec<RecordOffset>, records: Vec<OutgoingRecord>) -> Settled {
        let Some(outcomes) = &self.shared.outcomes else {
            return Settled::Void;
        };
        let (mut outcome, settled) = Outcome::new(record_offsets, records);
        // It counts in no bound of records, so that those behind it are read; what it holds does count.
        let _held = self.shared.budget.hold(outcome.bytes() as u64);
        {
            let mut offsets = self.offsets();
            outcome
                .record_offsets
                .retain(|record_offset| offsets.settle(record_offset, true));
            if outcome.record_offsets.is_empty() {
                return Settled::Void;
            }
            outcomes.push(outcome);
        }
        self.shared.released.notify_all();
        settled.await.unwrap_or(Settled::Stopped)
    }

    /// Hands a record_offset back: the record's answer, or its dead letter, is acknowledged (or its sample is
    /// stored).
    pub fn release(&self, record_offset: &RecordOffset) -> Release {
        let release = self.offsets().release(record_offset);
        if let Release::Released { bytes } = release {
            self.shared.budget.lower(bytes);
            self.shared.released.notify_all();
        }
        release
    }

    /// Takes note that a record only waits for others, as the earlier chunks of a stream do: it counts no
    /// more in the bound of records, and with `bytes_max` at most in that of bytes, which is how much of it
    /// is still in memory.
    pub fn wait(&self, record_offset: &RecordOffset, bytes_max: u64) {
        let bytes = self.offsets().wait(record_offset, bytes_max);
        self.shared.budget.lower(bytes);
    }

    /// Records that were read and are not released, without those that only wait for others or for their
    /// transaction.
    pub fn busy(&self) -> usize {
        self.offsets().busy()
    }

    /// Whether work on the record still counts; false when its partition was taken away.
    pub fn is_current(&self, record_offset: &RecordOffset) -> bool {
        self.offsets().epoch(&TopicPartition::of(record_offset)) == Some(record_offset.epoch)
    }

    /// Whether a partition may not be read for now, so that what stands in it has to wait: it has too much in
    /// flight, or all partitions together have.
    ///
    /// A source that is full of records that wait for others, the chunks of unfinished streams, holds nobody
    /// back: no work would ever make room.
    pub fn holds_back(&self, partition: &TopicPartition) -> bool {
        let budget = self.budget();
        let (has_work, bytes) = {
            let offsets = self.offsets();
            (offsets.busy() > 0, offsets.busy_bytes(partition))
        };
        self.shared.is_full.load(Ordering::Relaxed) && has_work
            || bytes > budget.free() / 2
            || budget.audio().holds_back(partition)
    }

    /// Records that were read and are not released.
    pub fn unfinished(&self) -> usize {
        self.offsets().unfinished()
    }

    /// The gauge of bytes in flight.
    pub fn budget(&self) -> &Budget {
        &self.shared.budget
    }

    /// Blocks until the records of `partitions` that were read are released or settled, `limit` at most;
    /// whether they are.
    pub(super) fn wait_finished(&self, partitions: &[TopicPartition], limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut offsets = self.offsets();
        while offsets.unsettled_of(partitions) > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = self.shared.released.wait_timeout(offsets, left);
            offsets = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    pub(super) fn admit(&self, record_offset: &RecordOffset, bytes: u64) -> Admission {
        let admission = self.offsets().admit(record_offset, bytes);
        if admission == Admission::New {
            self.shared.budget.raise(bytes);
        }
        admission
    }

    /// Takes note whether the source reads nothing, because so much is in flight.
    pub(super) fn tell_full(&self, is_full: bool) {
        self.shared.is_full.store(is_full, Ordering::Relaxed);
    }

    /// Which partitions have so much in flight that they are not to be read now, where `paused` are not read
    /// so far. The rule of [`AudioGauge`] holds for the bytes of their records too.
    pub(super) fn to_pause(&self, paused: &HashSet<TopicPartition>) -> HashSet<TopicPartition> {
        let budget = self.budget();
        let mut wanted = budget.audio().to_pause(|| self.assigned(), paused);
        let free = budget.free();
        let too_many_bytes =
            self.offsets()
                .busy_partitions(|partition, bytes| match paused.contains(partition) {
                    true => bytes > free / 2,
                    false => bytes >= free,
                });
        wanted.extend(too_many_bytes);
        wanted
    }

    pub(super) fn assign(&self, partitions: Vec<TopicPartition>) -> u64 {
        self.budget().audio().forget(&partitions);
        self.freeing(|offsets| offsets.assign(partitions))
    }

    pub(super) fn revoke(&self, partitions: &[TopicPartition]) -> Vec<Position> {
        self.budget().audio().forget(partitions);
        self.freeing(|offsets| offsets.revoke(partitions))
    }

    pub(super) fn positions(&self) -> Vec<Position> {
        self.offsets().positions()
    }

    pub(super) fn committed(&self, positions: &[Position]) {
        self.offsets().committed(positions);
    }

    pub(super) fn epoch(&self, partition: &TopicPartition) -> Option<u64> {
        self.offsets().epoch(partition)
    }

    pub(super) fn position(&self, partition: &TopicPartition) -> Option<i64> {
        self.offsets().position(partition)
    }

    pub(super) fn assigned(&self) -> Vec<TopicPartition> {
        self.offsets().assigned()
    }

    pub(super) fn unsettled_of(&self, partitions: &[TopicPartition]) -> usize {
        self.offsets().unsettled_of(partitions)
    }

    pub(super) fn unknown(&self) -> Vec<TopicPartition> {
        self.offsets().unknown()
    }

    pub(super) fn recall(&self, partition: &TopicPartition, committed: Option<(i64, &str)>) {
        self.offsets().recall(partition, committed);
    }

    pub(super) fn limit_memory(&self) {
        self.offsets().limit_memory();
    }

    pub(super) fn positions_after(&self, outcomes: &[&[RecordOffset]]) -> (Vec<Position>, BTreeSet<usize>) {
        self.offsets().positions_after(outcomes)
    }

    /// What waits for a transaction; `None` where there are none.
    pub(super) fn outcomes(&self) -> Option<&Outcomes> {
        self.shared.outcomes.as_ref()
    }

    /// The outcome of `record_offset` does not wait for its transaction any more: another one has to come.
    pub(super) fn unsettle(&self, record_offset: &RecordOffset) {
        self.offsets().settle(record_offset, false);
    }

    /// Runs a change that may make records void, and takes their bytes off the gauge.
    fn freeing<T>(&self, change: impl FnOnce(&mut OffsetTable) -> T) -> T {
        let (result, freed) = {
            let mut offsets = self.offsets();
            let before = offsets.bytes();
            let result = change(&mut offsets);
            (result, before - offsets.bytes())
        };
        self.shared.budget.lower(freed);
        self.shared.released.notify_all();
        result
    }

    /// The critical sections are a few map operations; none of them panics half-way, so a poisoned lock is
    /// sound.
    fn offsets(&self) -> MutexGuard<'_, OffsetTable> {
        self.shared.offsets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record_offset(offset: i64, epoch: u64) -> RecordOffset {
        RecordOffset {
            topic: "requests".into(),
            partition: 0,
            offset,
            epoch,
        }
    }

    #[test]
    fn a_record_counts_until_it_is_released_and_a_hold_until_it_is_dropped() {
        let tracker = OffsetTracker::new(Budget::new(100));
        let epoch = tracker.assign(vec![TopicPartition::new("requests", 0)]);

        tracker.admit(&record_offset(0, epoch), 60);
        let hold = tracker.budget().hold(40);
        assert!(tracker.budget().is_over());

        tracker.release(&record_offset(0, epoch));
        tracker.release(&record_offset(0, epoch));
        assert_eq!(tracker.budget().bytes(), 40);
        drop(hold);
        assert_eq!(tracker.budget().bytes(), 0);
    }

    #[tokio::test]
    async fn an_outcome_counts_by_its_bytes_until_its_transaction() {
        let tracker = OffsetTracker::transactional(Budget::new(100));
        let epoch = tracker.assign(vec![TopicPartition::new("requests", 0)]);
        tracker.admit(&record_offset(0, epoch), 60);
        let answer = OutgoingRecord {
            topic: "results".into(),
            key: None,
            value: Some("four".into()),
            headers: Vec::new(),
        };

        let mut settling = Box::pin(tracker.settle(vec![record_offset(0, epoch)], vec![answer]));
        let is_over = tokio::select! {
            biased;
            _ = &mut settling => true,
            () = std::future::ready(()) => false,
        };

        assert!(!is_over, "no transaction takes it");
        assert_eq!((tracker.busy(), tracker.budget().bytes()), (0, 64));
        drop(settling);
        assert_eq!(tracker.budget().bytes(), 60);
    }

    #[test]
    fn a_partition_whose_records_take_what_is_free_is_paused_and_streams_take_nothing() {
        let tracker = OffsetTracker::new(Budget::new(100));
        let [busy, other] = [0, 1].map(|number| TopicPartition::new("requests", number));
        let epoch = tracker.assign(vec![busy.clone(), other.clone()]);
        for offset in 0..2 {
            tracker.admit(&record_offset(offset, epoch), 25);
        }

        let paused = tracker.to_pause(&HashSet::new());

        assert_eq!(paused, HashSet::from([busy.clone()]));
        assert!(tracker.holds_back(&busy) && !tracker.holds_back(&other));
        tracker.wait(&record_offset(0, epoch), u64::MAX);
        assert_eq!(
            tracker.to_pause(&paused),
            HashSet::new(),
            "25 are half of the 50 free"
        );
        tracker.release(&record_offset(1, epoch));
        tracker.release(&record_offset(0, epoch));
        tracker.admit(&record_offset(2, epoch), 50);
        assert_eq!(tracker.to_pause(&paused), paused);
    }

    #[test]
    fn a_full_source_holds_everybody_back_unless_nothing_is_worked_on() {
        let tracker = OffsetTracker::new(Budget::new(100));
        let partition = TopicPartition::new("requests", 0);
        let epoch = tracker.assign(vec![partition.clone()]);
        tracker.admit(&record_offset(0, epoch), 1);
        assert!(!tracker.holds_back(&partition));

        tracker.tell_full(true);
        assert!(tracker.holds_back(&partition));
        tracker.wait(&record_offset(0, epoch), u64::MAX);

        assert!(!tracker.holds_back(&partition), "chunks alone make no room");
    }

    #[test]
    fn partitions_that_leave_free_their_bytes() {
        let tracker = OffsetTracker::new(Budget::new(100));
        let partition = TopicPartition::new("requests", 0);
        let epoch = tracker.assign(vec![partition.clone()]);
        tracker.admit(&record_offset(0, epoch), 60);
        assert!(tracker.is_current(&record_offset(0, epoch)));

        tracker.revoke(&[partition]);
        assert_eq!(tracker.budget().bytes(), 0);
        assert!(!tracker.is_current(&record_offset(0, epoch)));
    }

    #[test]
    fn a_wait_ends_with_the_last_record_and_not_before() {
        let tracker = OffsetTracker::new(Budget::new(100));
        let partition = TopicPartition::new("requests", 0);
        let epoch = tracker.assign(vec![partition.clone()]);
        tracker.admit(&record_offset(0, epoch), 1);
        tracker.admit(&record_offset(1, epoch), 1);
        let waiting = tracker.clone();
        let waiter = std::thread::spawn({
            let partition = partition.clone();
            move || waiting.wait_finished(&[partition], Duration::from_secs(60))
        });

        tracker.release(&record_offset(0, epoch));
        assert!(!tracker.wait_finished(&[partition], Duration::from_millis(50)));
        assert!(!waiter.is_finished());
        let released = Instant::now();
        tracker.release(&record_offset(1, epoch));

        assert!(waiter.join().unwrap());
        assert!(
            released.elapsed() < Duration::from_secs(30),
            "woken, not timed out"
        );
    }
}

//! `AudioGauge`: seconds of audio in flight, by partition, with a bound that all partitions share, and the
//! records that wait until their partition may have more.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::offset_tracker::TopicPartition;
use crate::wire::Record;

/// Seconds of audio in flight: admitted, and without an outcome yet. Clones share one gauge.
///
/// A partition is to be paused when it has as much in flight as is still free, and resumed when it has no
/// more than half of what is free then. So one busy partition gets half of the bound, two in the long run a
/// third each, and there is always space for a partition that has been silent.
///
/// How long a record's sound is, is known only when it is decoded. What the source has read ahead of a
/// partition by then is deferred here, apart from the records of other partitions, and the partition is
/// paused for as long. Deferred records are kept here so that they outlive the stage that deferred them.
///
/// Source of the rule: dynamic queue length thresholds, Choudhury and Hahne (IEEE/ACM Transactions on
/// Networking 6(2), 1998), with a factor of 1.
#[derive(Clone, Debug)]
pub struct AudioGauge {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    max_ms: u64,
    held: Mutex<Held>,
    /// Notified of everything that is released.
    released: Notify,
}

#[derive(Debug, Default)]
struct Held {
    total_ms: u64,
    by_partition: HashMap<TopicPartition, u64>,
    /// Records that were read and may not be worked on yet; none of these queues is empty.
    deferred: BTreeMap<TopicPartition, VecDeque<Record>>,
}

/// Audio that counts as in flight until this is dropped.
#[derive(Debug)]
pub struct AudioHold {
    shared: Arc<Shared>,
    partition: TopicPartition,
    ms: u64,
}

impl AudioGauge {
    /// An empty gauge with the bound `seconds_max`; infinity is none.
    pub fn new(seconds_max: f64) -> Self {
        Self {
            shared: Arc::new(Shared {
                max_ms: milliseconds(seconds_max),
                held: Mutex::default(),
                released: Notify::new(),
            }),
        }
    }

    /// Counts `seconds` of a record of `partition` for as long as the result lives. Never waits: what was
    /// read has to be worked on.
    pub fn hold(&self, partition: TopicPartition, seconds: f64) -> AudioHold {
        let ms = milliseconds(seconds);
        {
            let mut held = self.shared.held();
            held.total_ms += ms;
            *held.by_partition.entry(partition.clone()).or_default() += ms;
        }
        AudioHold {
            shared: self.shared.clone(),
            partition,
            ms,
        }
    }

    /// Seconds in flight.
    pub fn seconds(&self) -> f64 {
        self.shared.held().total_ms as f64 / 1e3
    }

    /// The record, if its partition may have more in flight and none of its records is deferred; otherwise
    /// it is deferred behind those. Not bounded by itself: the source pauses a partition of which a record is
    /// deferred, and deferred records count in its bounds of records and bytes.
    pub fn admit(&self, record: Record) -> Option<Record> {
        let partition = TopicPartition::of(&record.record_offset);
        let mut held = self.shared.held();
        if !held.deferred.contains_key(&partition) && held.of(&partition) < self.free_ms(&held) {
            return Some(record);
        }
        held.deferred.entry(partition).or_default().push_back(record);
        None
    }

    /// The next deferred record that may be worked on: of the partition that has the least in flight. Safe to
    /// cancel.
    pub async fn deferred(&self) -> Record {
        loop {
            let released = self.shared.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            if let Some(record) = self.take_deferred() {
                return record;
            }
            released.await;
        }
    }

    /// Whether a partition may not be read for now: what stands in it may have to wait.
    pub(super) fn holds_back(&self, partition: &TopicPartition) -> bool {
        let held = self.shared.held();
        let free = self.free_ms(&held);
        free == 0 || held.of(partition) > free / 2 || held.deferred.contains_key(partition)
    }

    /// Which of the `assigned` partitions are not to be read now, where `paused` are not read so far.
    pub(super) fn to_pause(
        &self,
        assigned: impl FnOnce() -> Vec<TopicPartition>,
        paused: &HashSet<TopicPartition>,
    ) -> HashSet<TopicPartition> {
        let held = self.shared.held();
        let free = self.free_ms(&held);
        if paused.is_empty() && held.total_ms < free && held.deferred.is_empty() {
            return HashSet::new(); // no partition has more than there is
        }
        let is_to_pause = |partition: &TopicPartition| {
            let ms = held.of(partition);
            held.deferred.contains_key(partition)
                || match paused.contains(partition) {
                    true => ms > free / 2,
                    false => ms >= free,
                }
        };
        assigned().into_iter().filter(is_to_pause).collect()
    }

    /// Drops the deferred records of partitions that are taken away, or begun anew.
    pub(super) fn forget(&self, partitions: &[TopicPartition]) {
        let mut held = self.shared.held();
        held.deferred
            .retain(|partition, _| !partitions.contains(partition));
    }

    fn take_deferred(&self) -> Option<Record> {
        let mut held = self.shared.held();
        let free = self.free_ms(&held);
        let waiting = held
            .deferred
            .keys()
            .map(|partition| (held.of(partition), partition));
        let (_, partition) = waiting.filter(|(ms, _)| *ms < free).min()?;
        let partition = partition.clone();
        let records = held.deferred.get_mut(&partition)?;
        let record = records.pop_front();
        if records.is_empty() {
            held.deferred.remove(&partition);
        }
        record
    }

    fn free_ms(&self, held: &Held) -> u64 {
        self.shared.max_ms.saturating_sub(held.total_ms)
    }
}

impl Held {
    /// Milliseconds that a partition has in flight.
    fn of(&self, partition: &TopicPartition) -> u64 {
        self.by_partition.get(partition).copied().unwrap_or(0)
    }
}

impl Shared {
    /// A poisoned lock is sound: the figures and the queues are changed by steps that do not panic.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AudioHold {
    fn drop(&mut self) {
        {
            let mut held = self.shared.held();
            held.total_ms -= self.ms;
            if let Some(ms) = held.by_partition.get_mut(&self.partition) {
                *ms -= self.ms;
                if *ms == 0 {
                    held.by_partition.remove(&self.partition);
                }
            }
        }
        self.shared.released.notify_waiters();
    }
}

/// Whole milliseconds, rounded up, so that the shortest clip counts.
fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1e3).ceil() as u64 // saturates
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::RecordOffset;

    fn partition(number: i32) -> TopicPartition {
        TopicPartition::new("requests", number)
    }

    fn to_pause(gauge: &AudioGauge, paused: &HashSet<TopicPartition>) -> HashSet<TopicPartition> {
        gauge.to_pause(|| (0..4).map(partition).collect(), paused)
    }

    #[test]
    fn a_busy_partition_is_paused_at_half_of_the_bound_and_the_others_are_read_on() {
        let gauge = AudioGauge::new(60.0);
        let mut holds = vec![gauge.hold(partition(0), 29.0)];
        assert!(to_pause(&gauge, &HashSet::new()).is_empty());

        holds.push(gauge.hold(partition(0), 1.0));
        let paused = to_pause(&gauge, &HashSet::new());

        assert_eq!(paused, HashSet::from([partition(0)]));
        holds.pop();
        assert_eq!(to_pause(&gauge, &paused), paused, "it is not resumed at once");
        holds.pop();
        holds.push(gauge.hold(partition(0), 20.0));
        assert!(
            to_pause(&gauge, &paused).is_empty(),
            "20 s are half of the 40 s that are free"
        );
    }

    #[test]
    fn all_partitions_are_paused_when_the_bound_is_reached() {
        let gauge = AudioGauge::new(10.0);
        let _hold = gauge.hold(partition(3), 12.5);

        assert_eq!(to_pause(&gauge, &HashSet::new()).len(), 4);
        assert_eq!(gauge.seconds(), 12.5);
    }

    fn record(number: i32, offset: i64) -> Record {
        Record {
            record_offset: RecordOffset {
                topic: "requests".into(),
                partition: number,
                offset,
                epoch: 1,
            },
            key: None,
            value: None,
            headers: Vec::new(),
            timestamp_ms: None,
        }
    }

    fn place(record: &Record) -> (i32, i64) {
        (record.record_offset.partition, record.record_offset.offset)
    }

    #[tokio::test]
    async fn a_record_of_a_partition_with_its_share_is_deferred_and_others_are_worked_on() {
        let gauge = AudioGauge::new(60.0);
        let busy = gauge.hold(partition(0), 30.0);

        assert!(gauge.admit(record(0, 0)).is_none());
        let silent = gauge.admit(record(1, 0)).map(|record| place(&record));
        assert_eq!(silent, Some((1, 0)));
        assert!(gauge.holds_back(&partition(0)) && !gauge.holds_back(&partition(1)));
        let waiting = tokio::spawn({
            let gauge = gauge.clone();
            async move { place(&gauge.deferred().await) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(busy);

        assert_eq!(waiting.await.unwrap(), (0, 0));
        assert_eq!(gauge.seconds(), 0.0);
    }

    #[tokio::test]
    async fn deferred_records_keep_the_order_of_their_partition_which_is_paused_meanwhile() {
        let gauge = AudioGauge::new(60.0);
        let (zero, one) = (gauge.hold(partition(0), 30.0), gauge.hold(partition(1), 20.0));
        for (number, offset) in [(0, 0), (0, 1), (1, 0)] {
            assert!(gauge.admit(record(number, offset)).is_none());
        }
        drop((zero, one));
        assert!(gauge.admit(record(0, 2)).is_none(), "others are before it");
        let paused = to_pause(&gauge, &HashSet::new());
        assert_eq!(paused, HashSet::from([partition(0), partition(1)]));
        assert_eq!(to_pause(&gauge, &paused), paused);

        let _held = gauge.hold(partition(0), 1.0);
        let mut order = Vec::new();
        for _ in 0..4 {
            order.push(place(&gauge.deferred().await));
        }

        assert_eq!(
            order,
            [(1, 0), (0, 0), (0, 1), (0, 2)],
            "who has least goes first"
        );
        assert!(to_pause(&gauge, &paused).is_empty());
    }

    #[test]
    fn at_the_bound_every_partition_is_held_back() {
        let gauge = AudioGauge::new(10.0);
        let _hold = gauge.hold(partition(0), 10.0);

        assert!(gauge.holds_back(&partition(3)));
        assert!(gauge.admit(record(3, 0)).is_none());
        gauge.forget(&[partition(3)]);
        assert!(gauge.take_deferred().is_none());
    }

    proptest! {
        /// Three partitions that send without end, each admitted a clip whenever it is not paused.
        #[test]
        fn however_much_the_others_send_the_bound_holds_and_a_silent_partition_is_read(
            clips in prop::collection::vec((0..4_i32, 1..=3_u32), 1..300),
            silent in 0..4_i32,
        ) {
            let gauge = AudioGauge::new(100.0);
            let (mut holds, mut paused) = (Vec::new(), HashSet::new());
            for (number, seconds) in clips {
                paused = to_pause(&gauge, &paused);
                if number != silent && !paused.contains(&partition(number)) {
                    holds.push(gauge.hold(partition(number), f64::from(seconds)));
                }
            }

            // A half, a half of the rest, and so on; each may go beyond by its last clip.
            prop_assert!(gauge.seconds() <= 93.0, "{}", gauge.seconds());
            prop_assert!(!to_pause(&gauge, &paused).contains(&partition(silent)));
        }
    }
}

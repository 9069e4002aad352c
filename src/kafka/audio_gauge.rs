//! `AudioGauge`: seconds of audio in flight, by partition, with a bound that all partitions share.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::offset_tracker::TopicPartition;

/// Seconds of audio in flight: admitted, and without an outcome yet. Clones share one gauge.
///
/// A partition is to be paused when it has as much in flight as is still free, and resumed when it has no
/// more than half of what is free then. So one busy partition gets half of the bound, two in the long run a
/// third each, and there is always space for a partition that has been silent.
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

    /// Returns when less than the bound is in flight. Safe to cancel.
    pub async fn below_bound(&self) {
        loop {
            let released = self.shared.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            if self.shared.held().total_ms < self.shared.max_ms {
                return;
            }
            released.await;
        }
    }

    /// Whether a partition has so much in flight that it may be paused: what stands in it may have to wait.
    pub fn holds_back(&self, partition: &TopicPartition) -> bool {
        let held = self.shared.held();
        let ms = held.by_partition.get(partition).copied().unwrap_or(0);
        ms > self.shared.max_ms.saturating_sub(held.total_ms) / 2
    }

    /// Which of the `assigned` partitions are not to be read now, where `paused` are not read so far.
    pub(super) fn to_pause(
        &self,
        assigned: impl FnOnce() -> Vec<TopicPartition>,
        paused: &HashSet<TopicPartition>,
    ) -> HashSet<TopicPartition> {
        let held = self.shared.held();
        let free = self.shared.max_ms.saturating_sub(held.total_ms);
        if paused.is_empty() && held.total_ms < free {
            return HashSet::new(); // no partition has more than there is
        }
        let is_to_pause = |partition: &TopicPartition| {
            let ms = held.by_partition.get(partition).copied().unwrap_or(0);
            match paused.contains(partition) {
                true => ms > free / 2,
                false => ms >= free,
            }
        };
        assigned().into_iter().filter(is_to_pause).collect()
    }
}

impl Shared {
    /// A poisoned lock is sound: both figures are changed by additions that do not panic.
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

    #[tokio::test]
    async fn who_waits_for_room_goes_on_when_enough_is_released() {
        let gauge = AudioGauge::new(10.0);
        let first = gauge.hold(partition(0), 6.0);
        let second = gauge.hold(partition(1), 6.0);
        let waiting = tokio::spawn({
            let gauge = gauge.clone();
            async move { gauge.below_bound().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());

        drop(first);

        waiting.await.unwrap();
        drop(second);
        assert_eq!(gauge.seconds(), 0.0);
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

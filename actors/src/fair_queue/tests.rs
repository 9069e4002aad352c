//! The queue's promises, on any input.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// A clip: key, number among all, seconds.
type Clip = (u8, usize, f64);

fn entry(key: u8, priority: Priority, audio_seconds: f64) -> QueueEntry {
    QueueEntry {
        key: Bytes::from(vec![key]),
        priority,
        audio_seconds,
        deadline: None,
    }
}

fn filled(clips: &[(u8, bool, u32)]) -> FairQueue<(Priority, Clip)> {
    let mut queue = FairQueue::new(0.1);
    for (number, (key, is_bulk, tenths)) in clips.iter().enumerate() {
        let priority = Priority::ALL[usize::from(*is_bulk)];
        let seconds = f64::from(*tenths) / 10.0;
        queue.push(
            entry(*key, priority, seconds),
            (priority, (*key, number, seconds)),
        );
    }
    queue
}

fn drained<T>(queue: &mut FairQueue<T>) -> Vec<T> {
    std::iter::from_fn(|| queue.pop(|_| true)).collect()
}

fn clips(keys: u8, tenths_max: u32) -> impl Strategy<Value = Vec<(u8, bool, u32)>> {
    prop::collection::vec((0..keys, any::<bool>(), 0..tenths_max), 0..120)
}

proptest! {
    #[test]
    fn everything_leaves_once_and_in_order_within_a_key_and_priority(clips in clips(5, 1_200)) {
        let mut queue = filled(&clips);
        prop_assert_eq!(queue.len(), clips.len());

        let left = drained(&mut queue);

        prop_assert_eq!(left.len(), clips.len());
        let mut last: BTreeMap<(u8, &str), usize> = BTreeMap::new();
        for (priority, (key, number, _)) in left {
            if let Some(before) = last.insert((key, priority.as_str()), number) {
                prop_assert!(before < number, "{} left before {}", before, number);
            }
        }
        prop_assert!(queue.is_empty() && queue.audio_seconds(Priority::Bulk) == 0.0);
        prop_assert!(queue.bulk.flows.is_empty() && queue.interactive.turns.is_empty(), "no memory is left");
    }

    /// The bound of deficit round robin: while two keys wait, neither gets ahead by more than a quantum and
    /// the longest clip of each.
    #[test]
    fn two_keys_that_wait_get_the_same_seconds(
        one in prop::collection::vec(1..300_u32, 40),
        other in prop::collection::vec(1..300_u32, 40),
        crowd in prop::collection::vec((2..6_u8, 1..300_u32), 0..40),
    ) {
        let of = |key: u8| move |tenths: &u32| (key, false, *tenths);
        let mut clips: Vec<_> = one.iter().map(of(0)).chain(other.iter().map(of(1))).collect();
        clips.extend(crowd.iter().map(|(key, tenths)| (*key, false, *tenths)));
        let mut queue = filled(&clips);
        let mut left = [(0_usize, 0.0_f64), (0, 0.0)];

        while let Some((_, (key, _, seconds))) = queue.pop(|_| true) {
            if let Some((count, sum)) = left.get_mut(usize::from(key)) {
                *count += 1;
                *sum += seconds.max(CLIP_SECONDS_MIN);
            }
            if left.iter().any(|(count, _)| *count == 40) {
                break; // from here on one of them does not wait any more
            }
            let ahead = (left[0].1 - left[1].1).abs();
            prop_assert!(ahead <= QUANTUM_SECONDS + 2.0 * 30.0, "{} s ahead", ahead);
        }
    }

    /// However much a session has sent before, another one's clip does not wait for it.
    #[test]
    fn a_clip_of_a_new_key_waits_for_one_turn_of_each_other_key_at_most(
        chatty in prop::collection::vec((0..4_u8, 1..80_u32), 1..200),
    ) {
        let chatty: Vec<_> = chatty.into_iter().map(|(key, tenths)| (key, false, tenths)).collect();
        let keys: std::collections::BTreeSet<u8> = chatty.iter().map(|(key, ..)| *key).collect();
        let mut queue = filled(&chatty);
        queue.push(entry(9, Priority::Interactive, 5.0), (Priority::Interactive, (9, usize::MAX, 5.0)));

        let mut before = 0.0;
        while let Some((_, (key, _, seconds))) = queue.pop(|_| true) {
            if key == 9 {
                break;
            }
            before += seconds.max(CLIP_SECONDS_MIN);
        }

        let most = keys.len() as f64 * (QUANTUM_SECONDS + 8.0);
        prop_assert!(before <= most, "waited for {} s of {} keys", before, keys.len());
    }

    #[test]
    fn bulk_gets_its_share_while_both_wait_and_no_more(seconds in 1..40_u32, bulk_seconds in 1..40_u32) {
        let mut queue = FairQueue::new(0.1);
        let (seconds, bulk_seconds) = (f64::from(seconds), f64::from(bulk_seconds));
        for _ in 0..400 {
            queue.push(entry(0, Priority::Interactive, seconds), (Priority::Interactive, seconds));
            queue.push(entry(1, Priority::Bulk, bulk_seconds), (Priority::Bulk, bulk_seconds));
        }
        let (mut bulk, mut all) = (0.0, 0.0);

        while queue.has(Priority::Interactive) && queue.has(Priority::Bulk) {
            let (priority, seconds) = queue.pop(|_| true).unwrap();
            all += seconds;
            if priority == Priority::Bulk {
                bulk += seconds;
            }
        }

        let (least, most) = (0.1 * all - 2.0 * QUANTUM_SECONDS - bulk_seconds, 0.1 * all + bulk_seconds);
        prop_assert!((least..=most).contains(&bulk), "{} of {} s", bulk, all);
    }

    #[test]
    fn what_is_late_is_taken_out_and_nothing_else(late in prop::collection::vec((0..4_u8, any::<bool>()), 0..60)) {
        let now = Instant::now();
        let mut queue = FairQueue::new(0.1);
        for (number, (key, is_late)) in late.iter().enumerate() {
            let deadline = if *is_late { now } else { now + Duration::from_millis(1) };
            let entry = QueueEntry { deadline: Some(deadline), ..entry(*key, Priority::ALL[number % 2], 1.0) };
            queue.push(entry, number);
        }
        prop_assert_eq!(queue.deadline().is_some(), !late.is_empty());

        let mut gone = queue.take_late(now);
        let mut rest = drained(&mut queue);

        gone.sort_unstable();
        rest.sort_unstable();
        let numbers = |wanted: bool| -> Vec<usize> { (0..late.len()).filter(|at| late[*at].1 == wanted).collect() };
        prop_assert_eq!(gone, numbers(true));
        prop_assert_eq!(rest, numbers(false));
    }
}

#[test]
fn interactive_goes_first_and_bulk_when_its_priority_alone_is_open() {
    let mut queue = FairQueue::new(0.0);
    queue.push(entry(0, Priority::Bulk, 1.0), "bulk");
    queue.push(entry(1, Priority::Interactive, 1.0), "interactive");

    assert_eq!(queue.pop(|priority| priority == Priority::Bulk), Some("bulk"));
    assert_eq!(queue.pop(|priority| priority == Priority::Bulk), None);
    queue.push(entry(0, Priority::Bulk, 1.0), "bulk");
    assert_eq!(drained(&mut queue), ["interactive", "bulk"]);
}

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn tp(partition: i32) -> TopicPartition {
    TopicPartition::new("requests", partition)
}

fn record_offset(partition: i32, offset: i64, epoch: u64) -> RecordOffset {
    RecordOffset {
        topic: "requests".into(),
        partition,
        offset,
        epoch,
    }
}

fn position(partition: i32, offset: i64) -> Position {
    Position {
        partition: tp(partition),
        offset,
    }
}

#[test]
fn nothing_is_committed_before_anything_is_read() {
    let mut tracker = OffsetTable::new();
    tracker.assign([tp(0)]);

    assert_eq!(tracker.positions(), []);
    assert_eq!(tracker.revoke([&tp(0)]), []);
}

#[test]
fn work_that_finishes_out_of_order_waits_for_the_slowest() {
    let mut tracker = OffsetTable::new();
    let epoch = tracker.assign([tp(0)]);
    for offset in 5..9 {
        assert_eq!(
            tracker.admit(&record_offset(0, offset, epoch), 10),
            Admission::New
        );
    }

    tracker.release(&record_offset(0, 8, epoch));
    tracker.release(&record_offset(0, 6, epoch));
    assert_eq!(tracker.positions(), [position(0, 5)]);

    tracker.release(&record_offset(0, 5, epoch));
    assert_eq!(tracker.positions(), [position(0, 7)]);

    tracker.release(&record_offset(0, 7, epoch));
    assert_eq!(tracker.positions(), [position(0, 9)]);
    assert_eq!((tracker.unfinished(), tracker.bytes()), (0, 0));
}

#[test]
fn gaps_between_offsets_do_not_hold_the_position_back() {
    let mut tracker = OffsetTable::new();
    let epoch = tracker.assign([tp(0)]);
    for offset in [3, 10, 400] {
        tracker.admit(&record_offset(0, offset, epoch), 1);
    }

    tracker.release(&record_offset(0, 3, epoch));

    assert_eq!(tracker.positions(), [position(0, 10)]);
}

#[test]
fn a_position_is_reported_until_it_is_committed_and_again_when_it_moves() {
    let mut tracker = OffsetTable::new();
    let epoch = tracker.assign([tp(0)]);
    tracker.admit(&record_offset(0, 0, epoch), 1);
    tracker.release(&record_offset(0, 0, epoch));
    assert_eq!(tracker.positions(), [position(0, 1)]);
    assert_eq!(
        tracker.positions(),
        [position(0, 1)],
        "a commit that failed is tried again"
    );

    tracker.committed(&[position(0, 1)]);
    assert_eq!(tracker.positions(), []);

    tracker.admit(&record_offset(0, 1, epoch), 1);
    assert_eq!(tracker.positions(), [], "an unfinished record moves nothing");
}

#[test]
fn a_record_read_twice_is_worked_on_once() {
    let mut tracker = OffsetTable::new();
    let epoch = tracker.assign([tp(0)]);

    assert_eq!(tracker.admit(&record_offset(0, 4, epoch), 7), Admission::New);
    assert_eq!(tracker.admit(&record_offset(0, 4, epoch), 7), Admission::InFlight);

    assert_eq!((tracker.unfinished(), tracker.bytes()), (1, 7));
    assert_eq!(
        tracker.release(&record_offset(0, 4, epoch)),
        Release::Released { bytes: 7 }
    );
    assert_eq!(tracker.release(&record_offset(0, 4, epoch)), Release::Unknown);
}

#[test]
fn receipts_of_an_assignment_that_ended_are_void() {
    let mut tracker = OffsetTable::new();
    let old = tracker.assign([tp(0)]);
    tracker.admit(&record_offset(0, 0, old), 1);
    assert_eq!(tracker.revoke([&tp(0)]), [position(0, 0)]);
    assert_eq!(tracker.release(&record_offset(0, 0, old)), Release::Void);

    let new = tracker.assign([tp(0)]);
    tracker.admit(&record_offset(0, 0, new), 1);

    assert_eq!(tracker.release(&record_offset(0, 0, old)), Release::Void);
    assert_eq!(tracker.admit(&record_offset(0, 1, old), 1), Admission::Void);
    assert_eq!(
        tracker.positions(),
        [position(0, 0)],
        "the new record is unfinished"
    );
}

#[test]
fn a_topic_made_anew_is_read_from_its_new_beginning() {
    let mut tracker = OffsetTable::new();
    let epoch = tracker.assign([tp(0)]);
    tracker.admit(&record_offset(0, 900, epoch), 1);

    assert_eq!(tracker.admit(&record_offset(0, 0, epoch), 1), Admission::New);
    tracker.release(&record_offset(0, 0, epoch));
    tracker.release(&record_offset(0, 900, epoch));

    assert_eq!(tracker.positions(), [position(0, 1)]);
}

/// One thing that happens to a consumer.
#[derive(Clone, Debug)]
enum Event {
    Read { partition: usize },
    Finish { pick: usize, twice: bool },
    Commit { fails: bool },
    Rebalance { lost: bool },
    Crash,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        10 => (0..2_usize).prop_map(|partition| Event::Read { partition }),
        8 => (any::<usize>(), prop::bool::weighted(0.1)).prop_map(|(pick, twice)| Event::Finish { pick, twice }),
        3 => prop::bool::weighted(0.2).prop_map(|fails| Event::Commit { fails }),
        1 => any::<bool>().prop_map(|lost| Event::Rebalance { lost }),
        1 => Just(Event::Crash),
    ]
}

/// A consumer of two partitions whose logs have gaps, with everything that a test may want to know.
struct World {
    tracker: OffsetTable,
    logs: [Vec<i64>; 2],
    /// Index into the log of what is read next.
    cursor: [usize; 2],
    broker: BTreeMap<TopicPartition, i64>,
    /// Record offsets handed out, void ones included: work does not know.
    working: Vec<RecordOffset>,
    done: [BTreeSet<i64>; 2],
}

impl World {
    fn new(logs: [Vec<i64>; 2]) -> Self {
        let mut tracker = OffsetTable::new();
        tracker.assign([tp(0), tp(1)]);
        Self {
            tracker,
            logs,
            cursor: [0, 0],
            broker: BTreeMap::new(),
            working: Vec::new(),
            done: Default::default(),
        }
    }

    fn read(&mut self, partition: usize) -> bool {
        let Some(&offset) = self.logs[partition].get(self.cursor[partition]) else {
            return false;
        };
        self.cursor[partition] += 1;
        let number = partition as i32;
        let record_offset = record_offset(number, offset, self.tracker.epoch(&tp(number)).unwrap());
        match self.tracker.admit(&record_offset, offset as u64 + 1) {
            Admission::New => self.working.push(record_offset),
            other => panic!("{offset} was read in order and is {other:?}"),
        }
        true
    }

    fn finish(&mut self, pick: usize, twice: bool) {
        if self.working.is_empty() {
            return;
        }
        let record_offset = self.working.swap_remove(pick % self.working.len());
        if matches!(self.tracker.release(&record_offset), Release::Released { .. }) {
            self.done[record_offset.partition as usize].insert(record_offset.offset);
        }
        if twice {
            assert!(!matches!(
                self.tracker.release(&record_offset),
                Release::Released { .. }
            ));
        }
    }

    fn commit(&mut self, positions: Vec<Position>) {
        for position in positions {
            let partition = position.partition.partition as usize;
            for offset in self.logs[partition]
                .iter()
                .filter(|offset| **offset < position.offset)
            {
                assert!(
                    self.done[partition].contains(offset),
                    "{offset} is unfinished, {position:?} commits it"
                );
            }
            self.broker.insert(position.partition, position.offset);
        }
    }

    fn begin_again(&mut self) {
        self.tracker.assign([tp(0), tp(1)]);
        for partition in 0..2 {
            let from = self.broker.get(&tp(partition as i32)).copied().unwrap_or(0);
            self.seek(partition, from);
        }
    }

    fn seek(&mut self, partition: usize, offset: i64) {
        self.cursor[partition] = self.logs[partition].partition_point(|found| *found < offset);
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Read { partition } => {
                self.read(partition);
            }
            Event::Finish { pick, twice } => self.finish(pick, twice),
            Event::Commit { fails } => {
                let positions = self.tracker.positions();
                if !fails {
                    self.tracker.committed(&positions);
                    self.commit(positions);
                }
            }
            Event::Rebalance { lost } => {
                let positions = self.tracker.revoke([&tp(0), &tp(1)]);
                if !lost {
                    self.commit(positions);
                }
                self.begin_again();
            }
            Event::Crash => {
                self.tracker = OffsetTable {
                    last_epoch: self.tracker.last_epoch, // record_offsets do not survive a crash; keep them tellable apart
                    ..OffsetTable::new()
                };
                self.begin_again();
            }
        }
        self.check_sums();
    }

    fn check_sums(&self) {
        let slots = self.tracker.partitions.values();
        let unfinished: usize = slots.clone().map(|slots| slots.unfinished.len()).sum();
        let bytes: u64 = slots.flat_map(|slots| slots.unfinished.values()).sum();

        assert_eq!(
            (self.tracker.unfinished(), self.tracker.bytes()),
            (unfinished, bytes)
        );
    }
}

/// Offsets in order, with gaps.
fn log() -> impl Strategy<Value = Vec<i64>> {
    prop::collection::vec(1..4_i64, 0..40).prop_map(|steps| {
        let ends = steps.into_iter().scan(-1, |last, step| {
            *last += step;
            Some(*last)
        });
        ends.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happens_no_record_is_lost_and_no_unfinished_one_is_committed(
        first in log(),
        second in log(),
        events in prop::collection::vec(event(), 0..200),
    ) {
        let mut world = World::new([first, second]);

        for event in events {
            world.step(event);
        }

        while world.read(0) || world.read(1) || !world.working.is_empty() {
            world.finish(0, false);
        }
        let positions = world.tracker.positions();
        world.commit(positions);
        for partition in 0..2 {
            let all: BTreeSet<i64> = world.logs[partition].iter().copied().collect();
            prop_assert_eq!(&world.done[partition], &all);
            if let Some(last) = world.logs[partition].last() {
                prop_assert_eq!(world.broker.get(&tp(partition as i32)).copied(), Some(last + 1));
            }
        }
        prop_assert_eq!(world.tracker.unfinished(), 0);
    }
}

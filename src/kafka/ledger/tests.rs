use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn tp(partition: i32) -> TopicPartition {
    TopicPartition::new("requests", partition)
}

fn receipt(partition: i32, offset: i64, epoch: u64) -> Receipt {
    Receipt {
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
    let mut ledger = OffsetLedger::new();
    ledger.assign([tp(0)]);

    assert_eq!(ledger.positions(), []);
    assert_eq!(ledger.revoke([&tp(0)]), []);
}

#[test]
fn work_that_finishes_out_of_order_waits_for_the_slowest() {
    let mut ledger = OffsetLedger::new();
    let epoch = ledger.assign([tp(0)]);
    for offset in 5..9 {
        assert_eq!(ledger.admit(&receipt(0, offset, epoch), 10), Admission::New);
    }

    ledger.release(&receipt(0, 8, epoch));
    ledger.release(&receipt(0, 6, epoch));
    assert_eq!(ledger.positions(), [position(0, 5)]);

    ledger.release(&receipt(0, 5, epoch));
    assert_eq!(ledger.positions(), [position(0, 7)]);

    ledger.release(&receipt(0, 7, epoch));
    assert_eq!(ledger.positions(), [position(0, 9)]);
    assert_eq!((ledger.unfinished(), ledger.bytes()), (0, 0));
}

#[test]
fn gaps_between_offsets_do_not_hold_the_position_back() {
    let mut ledger = OffsetLedger::new();
    let epoch = ledger.assign([tp(0)]);
    for offset in [3, 10, 400] {
        ledger.admit(&receipt(0, offset, epoch), 1);
    }

    ledger.release(&receipt(0, 3, epoch));

    assert_eq!(ledger.positions(), [position(0, 10)]);
}

#[test]
fn a_position_is_reported_until_it_is_committed_and_again_when_it_moves() {
    let mut ledger = OffsetLedger::new();
    let epoch = ledger.assign([tp(0)]);
    ledger.admit(&receipt(0, 0, epoch), 1);
    ledger.release(&receipt(0, 0, epoch));
    assert_eq!(ledger.positions(), [position(0, 1)]);
    assert_eq!(
        ledger.positions(),
        [position(0, 1)],
        "a commit that failed is tried again"
    );

    ledger.committed(&[position(0, 1)]);
    assert_eq!(ledger.positions(), []);

    ledger.admit(&receipt(0, 1, epoch), 1);
    assert_eq!(ledger.positions(), [], "an unfinished record moves nothing");
}

#[test]
fn a_record_read_twice_is_worked_on_once() {
    let mut ledger = OffsetLedger::new();
    let epoch = ledger.assign([tp(0)]);

    assert_eq!(ledger.admit(&receipt(0, 4, epoch), 7), Admission::New);
    assert_eq!(ledger.admit(&receipt(0, 4, epoch), 7), Admission::InFlight);

    assert_eq!((ledger.unfinished(), ledger.bytes()), (1, 7));
    assert_eq!(
        ledger.release(&receipt(0, 4, epoch)),
        Release::Released { bytes: 7 }
    );
    assert_eq!(ledger.release(&receipt(0, 4, epoch)), Release::Unknown);
}

#[test]
fn receipts_of_an_assignment_that_ended_are_void() {
    let mut ledger = OffsetLedger::new();
    let old = ledger.assign([tp(0)]);
    ledger.admit(&receipt(0, 0, old), 1);
    assert_eq!(ledger.revoke([&tp(0)]), [position(0, 0)]);
    assert_eq!(ledger.release(&receipt(0, 0, old)), Release::Void);

    let new = ledger.assign([tp(0)]);
    ledger.admit(&receipt(0, 0, new), 1);

    assert_eq!(ledger.release(&receipt(0, 0, old)), Release::Void);
    assert_eq!(ledger.admit(&receipt(0, 1, old), 1), Admission::Void);
    assert_eq!(
        ledger.positions(),
        [position(0, 0)],
        "the new record is unfinished"
    );
}

#[test]
fn a_topic_made_anew_is_read_from_its_new_beginning() {
    let mut ledger = OffsetLedger::new();
    let epoch = ledger.assign([tp(0)]);
    ledger.admit(&receipt(0, 900, epoch), 1);

    assert_eq!(ledger.admit(&receipt(0, 0, epoch), 1), Admission::New);
    ledger.release(&receipt(0, 0, epoch));
    ledger.release(&receipt(0, 900, epoch));

    assert_eq!(ledger.positions(), [position(0, 1)]);
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
    ledger: OffsetLedger,
    logs: [Vec<i64>; 2],
    /// Index into the log of what is read next.
    cursor: [usize; 2],
    broker: BTreeMap<TopicPartition, i64>,
    /// Receipts handed out, void ones included: work does not know.
    working: Vec<Receipt>,
    done: [BTreeSet<i64>; 2],
}

impl World {
    fn new(logs: [Vec<i64>; 2]) -> Self {
        let mut ledger = OffsetLedger::new();
        ledger.assign([tp(0), tp(1)]);
        Self {
            ledger,
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
        let receipt = receipt(number, offset, self.ledger.epoch(&tp(number)).unwrap());
        match self.ledger.admit(&receipt, offset as u64 + 1) {
            Admission::New => self.working.push(receipt),
            other => panic!("{offset} was read in order and is {other:?}"),
        }
        true
    }

    fn finish(&mut self, pick: usize, twice: bool) {
        if self.working.is_empty() {
            return;
        }
        let receipt = self.working.swap_remove(pick % self.working.len());
        if matches!(self.ledger.release(&receipt), Release::Released { .. }) {
            self.done[receipt.partition as usize].insert(receipt.offset);
        }
        if twice {
            assert!(!matches!(self.ledger.release(&receipt), Release::Released { .. }));
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
        self.ledger.assign([tp(0), tp(1)]);
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
                let positions = self.ledger.positions();
                if !fails {
                    self.ledger.committed(&positions);
                    self.commit(positions);
                }
            }
            Event::Rebalance { lost } => {
                let positions = self.ledger.revoke([&tp(0), &tp(1)]);
                if !lost {
                    self.commit(positions);
                }
                self.begin_again();
            }
            Event::Crash => {
                self.ledger = OffsetLedger {
                    last_epoch: self.ledger.last_epoch, // receipts do not survive a crash; keep them tellable apart
                    ..OffsetLedger::new()
                };
                self.begin_again();
            }
        }
        self.check_sums();
    }

    fn check_sums(&self) {
        let slots = self.ledger.partitions.values();
        let unfinished: usize = slots.clone().map(|slots| slots.unfinished.len()).sum();
        let bytes: u64 = slots.flat_map(|slots| slots.unfinished.values()).sum();

        assert_eq!(
            (self.ledger.unfinished(), self.ledger.bytes()),
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
        let positions = world.ledger.positions();
        world.commit(positions);
        for partition in 0..2 {
            let all: BTreeSet<i64> = world.logs[partition].iter().copied().collect();
            prop_assert_eq!(&world.done[partition], &all);
            if let Some(last) = world.logs[partition].last() {
                prop_assert_eq!(world.broker.get(&tp(partition as i32)).copied(), Some(last + 1));
            }
        }
        prop_assert_eq!(world.ledger.unfinished(), 0);
    }
}

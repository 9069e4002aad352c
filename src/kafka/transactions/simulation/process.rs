//! A model of a process: the real tracker and transactions, a consumer and a producer that are models.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tracing::debug;

use super::broker::{Place, Refusal, TIMEOUT};
use super::*;
use crate::kafka::budget::Budget;
use crate::kafka::offset_tracker::{Admission, TopicPartition};
use crate::wire::RecordOffset;

const TOPIC: &str = "requests";
/// Steps that a process makes at most before it gives partitions up.
const CONCLUDE_STEPS_MAX: u32 = 30;
/// Polls that read everything.
const POLLS: usize = 200;

/// Whether a process goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Lives,
    Ended,
}

/// An answer on its way.
struct Answering {
    place: Place,
    record_offset: RecordOffset,
    settled: Pin<Box<dyn Future<Output = Settled>>>,
}

/// See the module.
pub(super) struct Process {
    pub(super) member: String,
    generation: u64,
    world: Shared,
    tracker: OffsetTracker,
    transactions: Transactions<Model>,
    /// Where reading of the partitions that are ours goes on; `None` until the group's offset is known.
    cursors: BTreeMap<i32, Option<i64>>,
    working: Vec<RecordOffset>,
    answering: Vec<Answering>,
}

impl Process {
    pub(super) fn start(name: String, number: usize, world: &Shared) -> Self {
        let member = format!("{name}/{number}");
        let now = world.borrow().now;
        let tracker = OffsetTracker::transactional(Budget::new(1 << 20));
        let producer = Model {
            id: name,
            epoch: 0,
            has_failed: false,
            world: Rc::clone(world),
        };
        let batching = Batching {
            interval: Duration::from_millis(100),
            outcomes_max: 4,
            bytes_max: 1 << 20,
            timeout: TIMEOUT,
        };
        world.borrow_mut().broker.join(&member);
        Self {
            member,
            generation: 0,
            world: Rc::clone(world),
            transactions: Transactions::new(producer, tracker.clone(), batching, now),
            tracker,
            cursors: BTreeMap::new(),
            working: Vec::new(),
            answering: Vec::new(),
        }
    }

    /// Reads a record of one of its partitions, as the source does.
    pub(super) fn poll(&mut self) {
        if self.cursors.is_empty() || !self.transactions.is_initialised() {
            return;
        }
        let pick = self.world.borrow_mut().random.below(self.cursors.len());
        let partition = *self.cursors.keys().nth(pick).unwrap();
        let tp = TopicPartition::new(TOPIC, partition);
        if self.cursors[&partition].is_none() {
            let Ok(committed) = self.world.borrow().broker.committed(partition) else {
                return;
            };
            let known = committed
                .as_ref()
                .map(|(offset, memory)| (*offset, memory.as_str()));
            debug!(self.member, partition, ?known, "the group's offset is known");
            self.tracker.recall(&tp, known);
            self.cursors
                .insert(partition, Some(known.map_or(0, |(offset, _)| offset)));
        }
        let from = self.cursors[&partition].unwrap();
        let Some(offset) = self.world.borrow().broker.read(partition, from) else {
            return;
        };
        self.cursors.insert(partition, Some(offset + 1));
        let record_offset = RecordOffset {
            topic: TOPIC.into(),
            partition,
            offset,
            epoch: self.tracker.epoch(&tp).unwrap(),
        };
        match self.tracker.admit(&record_offset, 1) {
            Admission::New => self.working.push(record_offset),
            Admission::Answered => {}
            other => panic!("{record_offset:?} is {other:?}"),
        }
    }

    /// Finishes one record, any of them, and looks at what became of those before.
    pub(super) fn finish_one(&mut self) {
        if !self.working.is_empty() {
            let pick = self.world.borrow_mut().random.below(self.working.len());
            let record_offset = self.working.swap_remove(pick);
            self.answer(record_offset);
        }
        self.look_at_answers();
    }

    /// Reads what there is and finishes it, what was read last first.
    pub(super) fn finish_backwards(&mut self) {
        for _ in 0..POLLS {
            self.poll();
        }
        while let Some(record_offset) = self.working.pop() {
            self.answer(record_offset);
        }
    }

    /// The broker takes no metadata longer than what it has.
    pub(super) fn limit_memory(&self) {
        self.tracker.limit_memory();
    }

    fn answer(&mut self, record_offset: RecordOffset) {
        let (tracker, record) = (self.tracker.clone(), record_offset.clone());
        let outgoing = OutgoingRecord {
            topic: "results".into(),
            key: None,
            value: Some(Bytes::from(format!("{} {}", record.partition, record.offset))),
            headers: Vec::new(),
        };
        let mut settled = Box::pin(async move { tracker.settle(vec![record], vec![outgoing]).await });
        let place = (record_offset.partition, record_offset.offset);
        // The first look puts it into the queue.
        match settled.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(settled) => assert_eq!(settled, Settled::Void),
            Poll::Pending => self.answering.push(Answering {
                place,
                record_offset,
                settled,
            }),
        }
    }

    fn look_at_answers(&mut self) {
        let mut again = Vec::new();
        self.answering.retain_mut(|answering| {
            let Poll::Ready(settled) = answering
                .settled
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
            else {
                return true;
            };
            match settled {
                Settled::Committed => {
                    let is_there = self.world.borrow().broker.has_answer(answering.place);
                    assert!(is_there, "{:?} is said to be committed", answering.place);
                }
                Settled::Refused(_) => again.push(answering.record_offset.clone()),
                Settled::Void | Settled::Stopped => {}
            }
            false
        });
        again
            .into_iter()
            .for_each(|record_offset| self.answer(record_offset));
    }

    /// Goes on with its transactions, as the source does between two polls.
    pub(super) fn step(&mut self) -> Fate {
        let group = (self.member.clone(), self.generation);
        let world = Rc::clone(&self.world);
        match self.transactions.step(|| Some(group), || world.borrow().now) {
            Step::Resync => self.resync(),
            Step::Ended(_) => return Fate::Ended,
            Step::Idle | Step::Moved | Step::Waiting => {}
        }
        self.look_at_answers();
        Fate::Lives
    }

    fn resync(&mut self) {
        let partitions: Vec<i32> = self.cursors.keys().copied().collect();
        self.assign(partitions);
        self.transactions.resynced();
    }

    fn assign(&mut self, partitions: Vec<i32>) {
        let names = partitions
            .iter()
            .map(|partition| TopicPartition::new(TOPIC, *partition));
        self.tracker.assign(names.collect());
        self.cursors
            .extend(partitions.into_iter().map(|partition| (partition, None)));
    }

    /// Gives partitions up before the group hands them on.
    pub(super) fn give_up_all_but(&mut self, kept: &[i32]) {
        let leaving: Vec<i32> = self
            .cursors
            .keys()
            .copied()
            .filter(|partition| !kept.contains(partition))
            .collect();
        if leaving.is_empty() {
            return;
        }
        let steps = std::cell::Cell::new(0);
        let group = (self.member.clone(), self.generation);
        let world = Rc::clone(&self.world);
        self.transactions.conclude(
            || Some(group.clone()),
            || world.borrow().now,
            || steps.replace(steps.get() + 1) >= CONCLUDE_STEPS_MAX,
            || world.borrow_mut().now += Duration::from_millis(20),
        );
        self.revoke(&leaving);
    }

    fn revoke(&mut self, partitions: &[i32]) {
        let names: Vec<TopicPartition> = partitions
            .iter()
            .map(|partition| TopicPartition::new(TOPIC, *partition))
            .collect();
        self.tracker.revoke(&names);
        self.cursors
            .retain(|partition, _| !partitions.contains(partition));
        self.look_at_answers();
    }

    /// Takes up what the group gives it.
    pub(super) fn take_up(&mut self) {
        let Some((generation, partitions)) = self.world.borrow().broker.membership(&self.member) else {
            return;
        };
        self.generation = generation;
        let new: Vec<i32> = partitions
            .into_iter()
            .filter(|partition| !self.cursors.contains_key(partition))
            .collect();
        if !new.is_empty() {
            self.assign(new);
        }
    }

    /// Learns whether it is still a member; who is not has lost everything, and joins again.
    pub(super) fn hear_of_its_group(&mut self) {
        if self.world.borrow().broker.membership(&self.member).is_some() {
            return;
        }
        let lost: Vec<i32> = self.cursors.keys().copied().collect();
        self.revoke(&lost);
        self.member.push('+'); // another member id
        self.world.borrow_mut().broker.join(&self.member);
    }
}

/// A producer that fails now and then, before or after the broker has done what it was asked for.
struct Model {
    id: String,
    epoch: u64,
    /// It failed for good.
    has_failed: bool,
    world: Shared,
}

impl Model {
    /// A fault for a call that asks the broker for `done`; none in most cases.
    fn call<T>(
        &mut self,
        faults: &[fn(String) -> Fault],
        done: impl FnOnce(&mut World, &str, u64) -> Result<T, Refusal>,
    ) -> Result<T, Fault> {
        if self.has_failed {
            return Err(Fault::Fatal("it has failed before".to_owned()));
        }
        let world = Rc::clone(&self.world);
        let mut world = world.borrow_mut();
        let takes = std::mem::take(&mut world.call_takes);
        if !takes.is_zero() {
            world.now += takes;
            world.broker_sweeps();
        }
        if world.is_stuck {
            return Err(faults[0]("stuck".to_owned()));
        }
        let fault_chance = world.fault_chance;
        if !world.random.chance(fault_chance) {
            return self.judged(done(&mut world, &self.id, self.epoch));
        }
        let fault = faults[world.random.below(faults.len())]("injected".to_owned());
        debug!(self.id, ?fault, "a call fails");
        // The answer of the broker is lost on its way, or the question was.
        if world.random.chance(0.5)
            && let Err(refusal) = done(&mut world, &self.id, self.epoch)
        {
            return self.judged(Err(refusal));
        }
        self.has_failed |= matches!(fault, Fault::Fatal(_));
        Err(fault)
    }

    fn judged<T>(&mut self, result: Result<T, Refusal>) -> Result<T, Fault> {
        result.map_err(|refusal| match refusal {
            Refusal::Fenced => {
                self.has_failed = true;
                Fault::Fenced("the broker says so".to_owned())
            }
            Refusal::Stale => Fault::Stale("the broker says so".to_owned()),
        })
    }
}

fn place(record: &OutgoingRecord) -> Place {
    let value = String::from_utf8(record.value.as_ref().unwrap().to_vec()).unwrap();
    let (partition, offset) = value.split_once(' ').unwrap();
    (partition.parse().unwrap(), offset.parse().unwrap())
}

impl TransactionalProducer for Model {
    /// Member and generation, as the process knows them.
    type Group = (String, u64);

    fn init(&mut self) -> Result<(), Fault> {
        let epoch = self.call(&[Fault::Retry, Fault::Fatal], |world, id, _| {
            Ok(world.broker.init(id))
        })?;
        self.epoch = epoch;
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Fault> {
        self.call(&[Fault::Fatal], |_, _, _| Ok(()))
    }

    fn write(&mut self, records: &[&OutgoingRecord]) -> Result<(), WriteFault> {
        for (index, record) in records.iter().enumerate() {
            let done = |world: &mut World, id: &str, epoch| {
                let now = world.now;
                world.broker.write(id, epoch, place(record), now)
            };
            if let Err(fault) = self.call(&[Fault::Abort, Fault::Fatal], done) {
                let is_refused =
                    matches!(fault, Fault::Abort(_)) && self.world.borrow_mut().random.chance(0.5);
                let error = SinkError::Refused {
                    topic: "results".to_owned(),
                    reason: "injected".to_owned(),
                };
                let refused = is_refused.then_some((index, error)).into_iter().collect();
                return Err(WriteFault { refused, fault });
            }
        }
        Ok(())
    }

    fn send_offsets(&mut self, positions: &[Position], group: &Self::Group) -> Result<(), Fault> {
        let faults = [
            Fault::Retry as fn(String) -> Fault,
            Fault::Abort,
            |_| Fault::MemoryTooLong,
            Fault::Stale,
        ];
        self.call(&faults, |world, id, epoch| {
            let now = world.now;
            world
                .broker
                .stage_offsets((id, epoch), positions, (&group.0, group.1), now)
        })
    }

    fn commit(&mut self) -> Result<(), Fault> {
        self.call(&[Fault::Retry, Fault::Retry, Fault::Fatal], |world, id, epoch| {
            world.broker.end(id, epoch, true)
        })
    }

    fn abort(&mut self) -> Result<(), Fault> {
        self.call(&[Fault::Retry, Fault::Fatal], |world, id, epoch| {
            world.broker.end(id, epoch, false)
        })
    }

    fn renew(&mut self) -> Result<(), Fault> {
        self.has_failed = false;
        self.world.borrow_mut().is_stuck = false;
        Ok(())
    }
}

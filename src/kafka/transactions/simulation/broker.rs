//! A model of a broker: a log of requests, the group's offsets, transactional ids, and a log of answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tracing::debug;

use crate::kafka::offset_tracker::Position;
use crate::util::random::SplitMix;

/// Partitions of the requests.
pub(super) const PARTITIONS: i32 = 2;
/// A transaction that is open for so long is aborted.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// A record of the requests: partition and offset.
pub(super) type Place = (i32, i64);

/// What the broker answers where it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// An earlier life of a transactional id.
    Fenced,
    /// Not a member, or not of this generation.
    Stale,
}

#[derive(Debug, Default)]
struct Open {
    since: Option<Instant>,
    answers: Vec<Place>,
    offsets: Vec<Position>,
}

#[derive(Debug, Default)]
struct Owner {
    epoch: u64,
    open: Open,
    /// How the last transaction of the epoch ended; `true`: committed.
    last_end: Option<bool>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Broker {
    /// Offsets by partition; there are gaps.
    logs: Vec<Vec<i64>>,
    generation: u64,
    /// Members of the group, and what is theirs.
    members: BTreeMap<String, Vec<i32>>,
    committed: BTreeMap<i32, (i64, String)>,
    owners: BTreeMap<String, Owner>,
    /// What readers of committed records see.
    answers: Vec<Place>,
}

impl Broker {
    pub(super) fn new(random: &mut SplitMix, records: usize) -> Self {
        let log = |_| {
            let mut next = 0;
            let mut offset = |_| {
                next += 1 + i64::from(random.chance(0.25));
                next
            };
            (0..records).map(&mut offset).collect()
        };
        Self {
            logs: (0..PARTITIONS).map(log).collect(),
            generation: 0,
            members: BTreeMap::new(),
            committed: BTreeMap::new(),
            owners: BTreeMap::new(),
            answers: Vec::new(),
        }
    }

    /// The first record of a partition from an offset on.
    pub(super) fn read(&self, partition: i32, from: i64) -> Option<i64> {
        let log = &self.logs[partition as usize];
        log.iter().copied().find(|offset| *offset >= from)
    }

    /// The group's offset of a partition; `Err` while a transaction may still change it.
    pub(super) fn committed(&self, partition: i32) -> Result<Option<(i64, String)>, ()> {
        let mut staged = self.owners.values().flat_map(|owner| &owner.open.offsets);
        match staged.any(|position| position.partition.partition == partition) {
            true => Err(()),
            false => Ok(self.committed.get(&partition).cloned()),
        }
    }

    /// Lets a member in, which shares nothing out yet.
    pub(super) fn join(&mut self, member: &str) {
        self.members.insert(member.to_owned(), Vec::new());
    }

    /// A member goes, or is thrown out.
    pub(super) fn leave(&mut self, member: &str) {
        self.members.remove(member);
    }

    /// A new generation: its members, and what is theirs.
    pub(super) fn share_out(&mut self, shares: &[(String, Vec<i32>)]) {
        self.generation += 1;
        debug!(generation = self.generation, ?shares, "partitions are shared out");
        self.members = shares.iter().cloned().collect();
    }

    /// Generation and partitions of a member.
    pub(super) fn membership(&self, member: &str) -> Option<(u64, Vec<i32>)> {
        let partitions = self.members.get(member)?;
        Some((self.generation, partitions.clone()))
    }

    /// Another life of a transactional id; what the former left open is aborted.
    pub(super) fn init(&mut self, id: &str) -> u64 {
        let owner = self.owners.entry(id.to_owned()).or_default();
        owner.epoch += 1;
        owner.open = Open::default();
        owner.last_end = None;
        debug!(id, epoch = owner.epoch, "a transactional id begins another life");
        owner.epoch
    }

    fn owner(&mut self, id: &str, epoch: u64) -> Result<&mut Owner, Refusal> {
        let owner = self.owners.entry(id.to_owned()).or_default();
        match owner.epoch == epoch {
            true => Ok(owner),
            false => Err(Refusal::Fenced),
        }
    }

    pub(super) fn write(&mut self, id: &str, epoch: u64, answer: Place, now: Instant) -> Result<(), Refusal> {
        let open = &mut self.owner(id, epoch)?.open;
        open.since.get_or_insert(now);
        open.answers.push(answer);
        Ok(())
    }

    pub(super) fn stage_offsets(
        &mut self,
        (id, epoch): (&str, u64),
        positions: &[Position],
        (member, generation): (&str, u64),
        now: Instant,
    ) -> Result<(), Refusal> {
        let is_member = self.members.contains_key(member) && generation == self.generation;
        let open = &mut self.owner(id, epoch)?.open;
        open.since.get_or_insert(now);
        if !is_member {
            return Err(Refusal::Stale);
        }
        open.offsets.extend(positions.iter().cloned());
        Ok(())
    }

    pub(super) fn end(&mut self, id: &str, epoch: u64, commits: bool) -> Result<(), Refusal> {
        let owner = self.owner(id, epoch)?;
        if owner.open.since.is_none() {
            assert!(
                owner.last_end.is_none_or(|end| end == commits) || !commits,
                "a transaction that was aborted is committed"
            );
            return Ok(()); // it has ended, and the answer was lost on its way
        }
        owner.last_end = Some(commits);
        let open = std::mem::take(&mut owner.open);
        debug!(id, commits, ?open, "a transaction ends");
        if !commits {
            return Ok(());
        }
        for answer in open.answers {
            assert!(!self.answers.contains(&answer), "{answer:?} is answered twice");
            self.answers.push(answer);
        }
        for position in open.offsets {
            self.committed
                .insert(position.partition.partition, (position.offset, position.memory));
        }
        Ok(())
    }

    /// Aborts what has been open for too long, and shuts its owner out.
    pub(super) fn sweep(&mut self, now: Instant) {
        for owner in self.owners.values_mut() {
            if owner
                .open
                .since
                .is_some_and(|since| now.saturating_duration_since(since) > TIMEOUT)
            {
                owner.epoch += 1;
                owner.open = Open::default();
            }
        }
    }

    /// Whether a transaction is open.
    pub(super) fn has_open(&self) -> bool {
        self.owners.values().any(|owner| owner.open.since.is_some())
    }

    /// Whether `answer` can be seen.
    pub(super) fn has_answer(&self, answer: Place) -> bool {
        self.answers.contains(&answer)
    }

    /// What readers of committed records saw, in order.
    pub(super) fn answers(&self) -> &[Place] {
        &self.answers
    }

    /// Whether the group has read everything, and no transaction is open.
    pub(super) fn is_at_rest(&self) -> bool {
        let is_read = |(partition, log): (usize, &Vec<i64>)| {
            let committed = self.committed.get(&(partition as i32));
            log.last()
                .is_none_or(|last| committed.is_some_and(|(offset, _)| offset > last))
        };
        self.logs.iter().enumerate().all(is_read) && !self.has_open()
    }

    /// Every record has its answer, and no answer is without its record.
    pub(super) fn check_answers(&self) {
        let logs = self.logs.iter().zip(0..);
        let records: BTreeSet<Place> = logs
            .flat_map(|(log, partition)| log.iter().map(move |offset| (partition, *offset)))
            .collect();
        let answers: BTreeSet<Place> = self.answers.iter().copied().collect();
        assert_eq!(answers, records);
        assert_eq!(self.answers.len(), records.len(), "some are answered twice");
    }
}

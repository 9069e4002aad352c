//! Transactional producers: who is the living owner of an id, and what its open transaction has touched.
//!
//! One node coordinates and stores, so a transaction ends in one step under the broker's lock; nothing is
//! ever half committed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use kafka_protocol::error::ResponseError;

use super::groups::offsets::CommittedOffset;
use super::limits::{OFFSETS_MAX, TRANSACTION_TIMEOUT_MS_MAX, TRANSACTIONAL_IDS_MAX};
use super::log::control::Outcome;

/// A producer in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProducerIdentity {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
}

/// Which offset a transaction wants to commit: group, topic, partition.
pub(crate) type OffsetKey = (String, String, i32);

/// What an open transaction has touched.
#[derive(Debug)]
pub(crate) struct OpenTransaction {
    since: Instant,
    /// Topic partitions with records of it.
    pub(crate) partitions: BTreeSet<(String, i32)>,
    /// Offsets that count when it commits.
    pub(crate) offsets: BTreeMap<OffsetKey, CommittedOffset>,
}

#[derive(Debug)]
struct Owner {
    producer: ProducerIdentity,
    timeout: Duration,
    open: Option<OpenTransaction>,
    last_outcome: Option<Outcome>,
    last_used: Instant,
}

/// A transaction that is over, for the log and the groups to act on.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Whose.
    pub(crate) producer: ProducerIdentity,
    /// How.
    pub(crate) outcome: Outcome,
    /// What it had touched.
    pub(crate) transaction: OpenTransaction,
}

/// All transactional ids.
#[derive(Debug)]
pub(crate) struct Transactions {
    by_id: HashMap<String, Owner>,
    next_producer_id: i64,
}

impl Transactions {
    /// Starts counting producers at a number that no earlier broker on the same port has given out: a
    /// producer that outlives its broker would otherwise meet a stranger under its own number.
    pub(crate) fn new(now_ms: i64) -> Self {
        const PRODUCERS_PER_MS: i64 = 1_000;
        Self {
            by_id: HashMap::new(),
            next_producer_id: now_ms.max(0).saturating_mul(PRODUCERS_PER_MS),
        }
    }

    /// A number for a producer without transactions.
    pub(crate) fn new_producer_id(&mut self) -> i64 {
        let id = self.next_producer_id;
        self.next_producer_id += 1;
        id
    }

    /// Makes the caller the owner of a transactional id. Earlier owners are shut out, and what they left open
    /// is answered for abortion.
    ///
    /// # Errors
    /// `InvalidTransactionTimeout`, `InvalidRequest` for an empty id, `ProducerFenced` when `present` names a
    /// life that is over, `PolicyViolation` when every id is in use.
    pub(crate) fn init(
        &mut self,
        id: &str,
        timeout_ms: i32,
        present: Option<ProducerIdentity>,
        now: Instant,
    ) -> Result<(ProducerIdentity, Option<Ended>), ResponseError> {
        if !(1..=TRANSACTION_TIMEOUT_MS_MAX).contains(&timeout_ms) {
            return Err(ResponseError::InvalidTransactionTimeout);
        }
        if id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        if !self.by_id.contains_key(id) {
            self.make_room()?;
        }
        let timeout = Duration::from_millis(timeout_ms.unsigned_abs().into());
        let fresh_id = self.next_producer_id;
        let owner = self.by_id.entry(id.to_owned()).or_insert_with(|| Owner {
            producer: ProducerIdentity {
                id: fresh_id,
                epoch: -1,
            },
            timeout,
            open: None,
            last_outcome: None,
            last_used: now,
        });
        if owner.producer.id != fresh_id && present.is_some_and(|present| present != owner.producer) {
            return Err(ResponseError::ProducerFenced);
        }
        let ended = owner.end(Outcome::Aborted);
        owner.advance(fresh_id);
        if owner.producer.id == fresh_id {
            self.next_producer_id += 1;
        }
        owner.timeout = timeout;
        owner.last_outcome = None;
        owner.last_used = now;
        // The marker carries the new epoch, which shuts the old owner out of the partitions too.
        let ended = ended.map(|ended| Ended {
            producer: owner.marker_identity(ended.producer),
            ..ended
        });
        Ok((owner.producer, ended))
    }

    /// Adds partitions to the open transaction, which starts with the first.
    ///
    /// # Errors
    /// As [`owner_of`](Self::owner_of).
    pub(crate) fn add_partitions(
        &mut self,
        id: &str,
        producer: ProducerIdentity,
        partitions: impl Iterator<Item = (String, i32)>,
        now: Instant,
    ) -> Result<(), ResponseError> {
        self.owner_of(id, producer)?
            .opened(now)
            .partitions
            .extend(partitions);
        Ok(())
    }

    /// Announces that offsets will follow, which starts the transaction.
    ///
    /// # Errors
    /// As [`owner_of`](Self::owner_of).
    pub(crate) fn announce_offsets(
        &mut self,
        id: &str,
        producer: ProducerIdentity,
        now: Instant,
    ) -> Result<(), ResponseError> {
        self.owner_of(id, producer)?.opened(now);
        Ok(())
    }

    /// Adds an offset to the open transaction.
    ///
    /// # Errors
    /// As [`owner_of`](Self::owner_of); `InvalidTxnState` when none is open, `InvalidCommitOffsetSize` when
    /// it holds too many.
    pub(crate) fn stage_offset(
        &mut self,
        id: &str,
        producer: ProducerIdentity,
        key: OffsetKey,
        offset: CommittedOffset,
    ) -> Result<(), ResponseError> {
        let staged: usize = self.open().map(|open| open.offsets.len()).sum();
        let owner = self.owner_of(id, producer)?;
        let open = owner.open.as_mut().ok_or(ResponseError::InvalidTxnState)?;
        if staged >= OFFSETS_MAX {
            return Err(ResponseError::InvalidCommitOffsetSize);
        }
        open.offsets.insert(key, offset);
        Ok(())
    }

    /// Whether a transactional batch may be written to a partition.
    ///
    /// # Errors
    /// `InvalidProducerEpoch` from an earlier life, `InvalidProducerIdMapping` from a stranger,
    /// `InvalidTxnState` when the partition was never added.
    pub(crate) fn may_write(
        &self,
        id: Option<&str>,
        producer: ProducerIdentity,
        topic: &str,
        partition: i32,
    ) -> Result<(), ResponseError> {
        let owner = id
            .and_then(|id| self.by_id.get(id))
            .ok_or(ResponseError::InvalidProducerIdMapping)?;
        if owner.producer.id != producer.id {
            return Err(ResponseError::InvalidProducerIdMapping);
        }
        if owner.producer.epoch != producer.epoch {
            return Err(ResponseError::InvalidProducerEpoch);
        }
        let open = owner.open.as_ref().ok_or(ResponseError::InvalidTxnState)?;
        let added = open
            .partitions
            .iter()
            .any(|(name, index)| name == topic && *index == partition);
        if added {
            Ok(())
        } else {
            Err(ResponseError::InvalidTxnState)
        }
    }

    /// Ends the open transaction. `None` when there is nothing to do because it had ended the same way
    /// before.
    ///
    /// # Errors
    /// As [`owner_of`](Self::owner_of); `InvalidTxnState` when there is nothing to end.
    pub(crate) fn end(
        &mut self,
        id: &str,
        producer: ProducerIdentity,
        outcome: Outcome,
        now: Instant,
    ) -> Result<Option<Ended>, ResponseError> {
        let owner = self.owner_of(id, producer)?;
        owner.last_used = now;
        match owner.end(outcome) {
            Some(ended) => Ok(Some(ended)),
            None if owner.last_outcome == Some(outcome) => Ok(None),
            None => Err(ResponseError::InvalidTxnState),
        }
    }

    /// Ends transactions that have been open for too long, and shuts their owners out.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(String, Ended)> {
        let mut expired = Vec::new();
        for (id, owner) in &mut self.by_id {
            let too_long = |open: &OpenTransaction| now.saturating_duration_since(open.since) > owner.timeout;
            if !owner.open.as_ref().is_some_and(too_long) {
                continue;
            }
            let Some(ended) = owner.end(Outcome::Aborted) else {
                continue;
            };
            owner.advance(self.next_producer_id);
            if owner.producer.id == self.next_producer_id {
                self.next_producer_id += 1;
            }
            let producer = owner.marker_identity(ended.producer);
            expired.push((id.clone(), Ended { producer, ..ended }));
        }
        expired
    }

    /// Whether an open transaction may still change this committed offset.
    pub(crate) fn is_undecided(&self, group: &str, topic: &str, partition: i32) -> bool {
        let key = (group.to_owned(), topic.to_owned(), partition);
        self.open().any(|open| open.offsets.contains_key(&key))
    }

    /// Forgets a deleted topic.
    pub(crate) fn topic_deleted(&mut self, topic: &str) {
        for open in self.by_id.values_mut().filter_map(|owner| owner.open.as_mut()) {
            open.partitions.retain(|(name, _)| name != topic);
            open.offsets.retain(|(_, name, _), _| name != topic);
        }
    }

    fn open(&self) -> impl Iterator<Item = &OpenTransaction> {
        self.by_id.values().filter_map(|owner| owner.open.as_ref())
    }

    /// The owner of an id, if it is this producer in this life.
    ///
    /// # Errors
    /// `InvalidProducerIdMapping` for a stranger, `ProducerFenced` for an earlier life.
    fn owner_of(&mut self, id: &str, producer: ProducerIdentity) -> Result<&mut Owner, ResponseError> {
        let owner = self
            .by_id
            .get_mut(id)
            .ok_or(ResponseError::InvalidProducerIdMapping)?;
        if owner.producer.id != producer.id {
            return Err(ResponseError::InvalidProducerIdMapping);
        }
        if owner.producer.epoch != producer.epoch {
            return Err(ResponseError::ProducerFenced);
        }
        Ok(owner)
    }

    fn make_room(&mut self) -> Result<(), ResponseError> {
        if self.by_id.len() < TRANSACTIONAL_IDS_MAX {
            return Ok(());
        }
        let idle = self
            .by_id
            .iter()
            .filter(|(_, owner)| owner.open.is_none())
            .min_by_key(|(_, owner)| owner.last_used)
            .map(|(id, _)| id.clone())
            .ok_or(ResponseError::PolicyViolation)?;
        self.by_id.remove(&idle);
        Ok(())
    }
}

impl Owner {
    fn opened(&mut self, now: Instant) -> &mut OpenTransaction {
        self.last_used = now;
        self.open.get_or_insert_with(|| OpenTransaction {
            since: now,
            partitions: BTreeSet::new(),
            offsets: BTreeMap::new(),
        })
    }

    fn end(&mut self, outcome: Outcome) -> Option<Ended> {
        let transaction = self.open.take()?;
        self.last_outcome = Some(outcome);
        Some(Ended {
            producer: self.producer,
            outcome,
            transaction,
        })
    }

    /// The next life; a new number where the epochs are used up.
    fn advance(&mut self, fresh_id: i64) {
        self.producer = if self.producer.epoch < i16::MAX - 1 {
            ProducerIdentity {
                epoch: self.producer.epoch + 1,
                ..self.producer
            }
        } else {
            ProducerIdentity {
                id: fresh_id,
                epoch: 0,
            }
        };
    }

    /// Who signs the marker that ends the former life's transaction.
    fn marker_identity(&self, former: ProducerIdentity) -> ProducerIdentity {
        let same = self.producer.id == former.id;
        ProducerIdentity {
            id: former.id,
            epoch: if same { self.producer.epoch } else { former.epoch },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT_MS: i32 = 1_000;

    fn owner(transactions: &mut Transactions, id: &str, now: Instant) -> ProducerIdentity {
        transactions.init(id, TIMEOUT_MS, None, now).unwrap().0
    }

    fn open(transactions: &mut Transactions, id: &str, producer: ProducerIdentity, now: Instant) {
        let partition = std::iter::once(("topic".to_owned(), 0));
        transactions.add_partitions(id, producer, partition, now).unwrap();
    }

    #[test]
    fn a_new_owner_ends_what_the_former_left_open_and_shuts_it_out() {
        let now = Instant::now();
        let mut transactions = Transactions::new(0);
        let first = owner(&mut transactions, "id", now);
        open(&mut transactions, "id", first, now);

        let (second, left_open) = transactions.init("id", TIMEOUT_MS, None, now).unwrap();
        let ended = left_open.expect("the former owner had opened one");
        let late = transactions.may_write(Some("id"), first, "topic", 0);

        assert_eq!(
            second,
            ProducerIdentity {
                epoch: first.epoch + 1,
                ..first
            }
        );
        assert_eq!((ended.outcome, ended.producer), (Outcome::Aborted, second));
        assert_eq!(late, Err(ResponseError::InvalidProducerEpoch));
    }

    #[test]
    fn a_transaction_past_its_time_is_ended_and_its_owner_shut_out() {
        let now = Instant::now();
        let mut transactions = Transactions::new(0);
        let producer = owner(&mut transactions, "id", now);
        open(&mut transactions, "id", producer, now);

        let early = transactions.expire(now + Duration::from_millis(500)).len();
        let expired = transactions.expire(now + Duration::from_millis(1_500));
        let late = transactions
            .end("id", producer, Outcome::Committed, now)
            .unwrap_err();

        assert_eq!((early, expired.len()), (0, 1));
        assert_eq!(late, ResponseError::ProducerFenced);
    }

    #[test]
    fn epochs_that_are_used_up_give_way_to_a_new_number() {
        let now = Instant::now();
        let mut transactions = Transactions::new(0);
        let first = owner(&mut transactions, "id", now);

        let mut last = first;
        for _ in 0..i16::MAX {
            last = owner(&mut transactions, "id", now);
            assert!(last.epoch >= 0);
        }

        assert_ne!(last.id, first.id);
        assert_ne!(transactions.new_producer_id(), last.id);
    }

    #[test]
    fn a_producer_that_names_a_life_that_is_over_is_fenced() {
        let now = Instant::now();
        let mut transactions = Transactions::new(0);
        let first = owner(&mut transactions, "id", now);
        let second = owner(&mut transactions, "id", now);

        let of_the_past = transactions.init("id", TIMEOUT_MS, Some(first), now).unwrap_err();
        let of_the_present = transactions.init("id", TIMEOUT_MS, Some(second), now).unwrap().0;

        assert_eq!(of_the_past, ResponseError::ProducerFenced);
        assert_eq!(of_the_present.epoch, second.epoch + 1);
    }

    #[test]
    fn one_id_too_many_takes_the_place_of_the_longest_idle_but_never_of_an_open_one() {
        let start = Instant::now();
        let mut transactions = Transactions::new(0);
        for number in 0..TRANSACTIONAL_IDS_MAX {
            let now = start + Duration::from_millis(number as u64);
            let id = format!("id {number}");
            let producer = owner(&mut transactions, &id, now);
            if number == 0 {
                open(&mut transactions, &id, producer, now);
            }
        }

        owner(&mut transactions, "another", start + Duration::from_secs(9));

        let is_there = |id: &str| transactions.by_id.contains_key(id);
        assert!(is_there("id 0") && !is_there("id 1") && is_there("another"));
    }
}

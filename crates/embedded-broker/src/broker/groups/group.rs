//! The state machine of one consumer group: empty, gathering, awaiting its leader, stable.
//!
//! Every answer that has to wait (join, synchronise) is a one-shot channel held by its member, so that
//! nothing here ever blocks. Time comes in as an argument. [`agreement`] has the rounds in which the members
//! agree.

mod agreement;

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::protocol::StrBytes;
use tokio::sync::oneshot;

use super::member::{Introduction, JoinAnswer, Member, SyncAnswer};
use super::offsets::Offsets;

/// Where a group is on its way to an agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nobody is here.
    Empty,
    /// Members come (back) until the deadline.
    Gathering {
        /// When those who have not come are left behind.
        deadline: Instant,
        /// Whether the group was empty: then it waits out a short delay for company.
        first: bool,
    },
    /// The leader is sharing out the partitions.
    AwaitingLeader {
        /// When those who have not synchronised are left behind.
        deadline: Instant,
    },
    /// Everybody knows what to read.
    Stable,
}

impl Phase {
    /// Kafka's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Phase::Empty => "Empty",
            Phase::Gathering { .. } => "PreparingRebalance",
            Phase::AwaitingLeader { .. } => "CompletingRebalance",
            Phase::Stable => "Stable",
        }
    }
}

/// Who asks to join.
#[derive(Debug)]
pub(crate) enum Newcomer {
    /// Somebody without an id; `fresh_id` is for them. With `must_return` they get it first and have to come
    /// back.
    Unknown {
        /// An id nobody else has.
        fresh_id: String,
        /// Whether the client speaks a version that asks twice.
        must_return: bool,
    },
    /// Somebody who names an id.
    Known {
        /// That id.
        member_id: String,
    },
}

/// How a join goes on.
#[derive(Debug)]
pub(crate) enum JoinStep {
    /// The client shall ask again with this id.
    ComeBack(String),
    /// The answer comes when the group agrees.
    Wait(JoinAnswer),
}

/// One consumer group.
#[derive(Debug)]
pub(crate) struct Group {
    phase: Phase,
    generation: i32,
    leader: Option<String>,
    protocol_type: StrBytes,
    protocol: StrBytes,
    members: BTreeMap<String, Member>,
    /// Ids given to clients that have yet to come back, and until when they may.
    expected: BTreeMap<String, Instant>,
    last_used: Instant,
    /// What has been committed.
    pub(crate) offsets: Offsets,
}

impl Group {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Empty,
            generation: 0,
            leader: None,
            protocol_type: StrBytes::default(),
            protocol: StrBytes::default(),
            members: BTreeMap::new(),
            expected: BTreeMap::new(),
            last_used: now,
            offsets: Offsets::default(),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn protocol_type(&self) -> &StrBytes {
        &self.protocol_type
    }

    pub(crate) fn protocol(&self) -> &StrBytes {
        &self.protocol
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = (&str, &Member)> {
        self.members.iter().map(|(id, member)| (id.as_str(), member))
    }

    pub(super) fn places_taken(&self) -> usize {
        self.members.len() + self.expected.len()
    }

    pub(super) fn is_forgettable(&self) -> bool {
        self.members.is_empty() && self.expected.is_empty()
    }

    pub(super) fn last_used(&self) -> Instant {
        self.last_used
    }

    /// Notes that somebody used the group without being a member.
    pub(crate) fn touch(&mut self, now: Instant) {
        self.last_used = now;
    }

    /// Lets somebody in, or back in.
    ///
    /// # Errors
    /// `UnknownMemberId` for an id that is not from here, `InconsistentGroupProtocol` when no strategy is
    /// common.
    pub(crate) fn join(
        &mut self,
        who: Newcomer,
        as_what: Introduction,
        now: Instant,
    ) -> Result<JoinStep, ResponseError> {
        self.touch(now);
        let member_id = match &who {
            Newcomer::Unknown { fresh_id, .. } => fresh_id.clone(),
            Newcomer::Known { member_id } => member_id.clone(),
        };
        if !self.agrees_with(&member_id, &as_what) {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        if let Newcomer::Unknown { must_return, .. } = who {
            if let Some(former) = self.member_of(as_what.instance.as_ref()) {
                if self.phase == Phase::Stable {
                    return Ok(JoinStep::Wait(self.replace(&former, member_id, as_what, now)));
                }
                self.dismiss(&former, ResponseError::FencedInstanceId);
            } else if must_return && as_what.instance.is_none() {
                self.expected
                    .insert(member_id.clone(), now + as_what.session_timeout);
                return Ok(JoinStep::ComeBack(member_id));
            }
        } else if self.expected.remove(&member_id).is_none() && !self.members.contains_key(&member_id) {
            return Err(ResponseError::UnknownMemberId);
        }
        self.check_instance(&member_id, as_what.instance.as_ref())?;
        Ok(JoinStep::Wait(self.admit(member_id, as_what, now)))
    }

    /// A static member is back under another id: it takes its former one's place and partitions, which is no
    /// reason for a new round, unless what it knows is.
    fn replace(
        &mut self,
        former: &str,
        member_id: String,
        as_what: Introduction,
        now: Instant,
    ) -> JoinAnswer {
        let member = self.members.get(former);
        let knows_the_same =
            member.is_some_and(|member| member.introduction.strategies().eq(as_what.strategies()));
        let assignment = member.map(|member| member.assignment.clone()).unwrap_or_default();
        let leads = self.leader.as_deref() == Some(former);
        self.dismiss(former, ResponseError::FencedInstanceId);
        if !knows_the_same {
            return self.admit(member_id, as_what, now);
        }
        let mut member = Member::new(as_what, now);
        member.assignment = assignment;
        self.members.insert(member_id.clone(), member);
        if leads {
            self.leader = Some(member_id.clone());
        }
        self.joined_already(&member_id)
    }

    fn admit(&mut self, member_id: String, as_what: Introduction, now: Instant) -> JoinAnswer {
        let unchanged = self
            .members
            .get(&member_id)
            .is_some_and(|member| member.introduction.protocols == as_what.protocols);
        let leads = self.leader.as_deref() == Some(member_id.as_str());
        let repeats_answer = match self.phase {
            // The answer was lost on its way: the agreement stands.
            Phase::AwaitingLeader { .. } => unchanged,
            // A follower that comes back unchanged has nothing to discuss; a leader asks for a new round.
            Phase::Stable => unchanged && !leads,
            Phase::Empty | Phase::Gathering { .. } => false,
        };
        if repeats_answer {
            if let Some(member) = self.members.get_mut(&member_id) {
                member.last_contact = now;
            }
            return self.joined_already(&member_id);
        }
        self.gather(now);
        self.protocol_type = as_what.protocol_type.clone();
        let member = self
            .members
            .entry(member_id)
            .or_insert_with(|| Member::new(as_what.clone(), now));
        member.introduction = as_what;
        member.last_contact = now;
        let answer = member.wait_for_join();
        self.try_agree(now);
        answer
    }

    /// The answer to a join that changes nothing about the agreement.
    fn joined_already(&self, member_id: &str) -> JoinAnswer {
        let (sender, answer) = oneshot::channel();
        let _ = sender.send(Ok(self.joined(member_id)));
        answer
    }

    /// Takes the leader's decision, or a follower's question for it.
    ///
    /// # Errors
    /// `UnknownMemberId`, `IllegalGeneration`, `RebalanceInProgress`.
    pub(crate) fn sync(
        &mut self,
        member_id: &str,
        generation: i32,
        assignments: Vec<(StrBytes, Bytes)>,
        now: Instant,
    ) -> Result<SyncAnswer, ResponseError> {
        self.check_member(member_id, generation)?;
        if matches!(self.phase, Phase::Gathering { .. } | Phase::Empty) {
            return Err(ResponseError::RebalanceInProgress);
        }
        let member = self
            .members
            .get_mut(member_id)
            .ok_or(ResponseError::UnknownMemberId)?;
        member.last_contact = now;
        let answer = member.wait_for_sync();
        let leads = self.leader.as_deref() == Some(member_id);
        if leads && matches!(self.phase, Phase::AwaitingLeader { .. }) {
            for (id, assignment) in assignments {
                if let Some(member) = self.members.get_mut(id.as_str()) {
                    member.assignment = assignment;
                }
            }
            self.phase = Phase::Stable;
        }
        if self.phase == Phase::Stable {
            self.hand_out_assignments();
        }
        Ok(answer)
    }

    /// Notes a sign of life.
    ///
    /// # Errors
    /// `UnknownMemberId`, `IllegalGeneration`; `RebalanceInProgress` asks the member to join again.
    pub(crate) fn heartbeat(
        &mut self,
        member_id: &str,
        generation: i32,
        now: Instant,
    ) -> Result<(), ResponseError> {
        self.check_member(member_id, generation)?;
        if let Some(member) = self.members.get_mut(member_id) {
            member.last_contact = now;
        }
        match self.phase {
            Phase::Gathering { .. } => Err(ResponseError::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    /// Lets a member go, by its id or, where that is empty, by its static name.
    ///
    /// # Errors
    /// `UnknownMemberId`.
    pub(crate) fn leave(
        &mut self,
        member_id: &str,
        instance: Option<&StrBytes>,
        now: Instant,
    ) -> Result<(), ResponseError> {
        self.touch(now);
        if self.expected.remove(member_id).is_some() {
            return Ok(());
        }
        let id = if self.members.contains_key(member_id) {
            Some(member_id.to_owned())
        } else {
            self.member_of(instance.filter(|_| member_id.is_empty()))
        };
        self.dismiss(
            &id.ok_or(ResponseError::UnknownMemberId)?,
            ResponseError::UnknownMemberId,
        );
        self.after_departure(now);
        Ok(())
    }

    /// Whether this member may commit offsets now; refreshes it.
    ///
    /// # Errors
    /// `UnknownMemberId`, `IllegalGeneration`, `RebalanceInProgress`.
    pub(crate) fn may_commit(
        &mut self,
        member_id: &str,
        generation: i32,
        now: Instant,
    ) -> Result<(), ResponseError> {
        self.touch(now);
        if generation < 0 && self.members.is_empty() {
            return Ok(()); // a client that assigns its own partitions
        }
        self.check_member(member_id, generation)?;
        if matches!(self.phase, Phase::AwaitingLeader { .. }) {
            return Err(ResponseError::RebalanceInProgress);
        }
        if let Some(member) = self.members.get_mut(member_id) {
            member.last_contact = now;
        }
        Ok(())
    }

    /// Whether this is a member of the present generation.
    ///
    /// # Errors
    /// `UnknownMemberId`, `IllegalGeneration`.
    pub(crate) fn check_member(&self, member_id: &str, generation: i32) -> Result<(), ResponseError> {
        if !self.members.contains_key(member_id) {
            return Err(ResponseError::UnknownMemberId);
        }
        if generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        Ok(())
    }

    /// Whether the static name `instance`, if any, is still this member's.
    ///
    /// # Errors
    /// `FencedInstanceId` when another member has come under the name.
    pub(crate) fn check_instance(
        &self,
        member_id: &str,
        instance: Option<&StrBytes>,
    ) -> Result<(), ResponseError> {
        match self.member_of(instance) {
            Some(owner) if owner != member_id => Err(ResponseError::FencedInstanceId),
            _ => Ok(()),
        }
    }

    /// Lets sessions and deadlines that have passed take effect.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.expected.retain(|_, until| now < *until);
        let expired = self.ids_of(|member| member.is_expired(now));
        self.leave_behind(expired, now);
        match self.phase {
            Phase::Gathering { deadline, first } if now >= deadline => {
                if !first {
                    let absent = self.ids_of(|member| !member.is_joining());
                    for id in absent {
                        self.dismiss(&id, ResponseError::UnknownMemberId);
                    }
                }
                self.phase = Phase::Gathering {
                    deadline,
                    first: false,
                };
                self.after_departure(now);
            }
            Phase::AwaitingLeader { deadline } if now >= deadline => {
                let silent = self.ids_of(|member| !member.is_syncing());
                self.leave_behind(silent, now);
            }
            _ => {}
        }
    }

    fn ids_of(&self, picked: impl Fn(&Member) -> bool) -> Vec<String> {
        self.members
            .iter()
            .filter(|(_, member)| picked(member))
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn leave_behind(&mut self, ids: Vec<String>, now: Instant) {
        if ids.is_empty() {
            return;
        }
        for id in ids {
            self.dismiss(&id, ResponseError::UnknownMemberId);
        }
        self.after_departure(now);
    }

    fn dismiss(&mut self, member_id: &str, reason: ResponseError) {
        if let Some(mut member) = self.members.remove(member_id) {
            member.answer_join(Err(reason));
            member.answer_sync(Err(reason));
        }
        if self.leader.as_deref() == Some(member_id) {
            self.leader = None;
        }
    }

    fn after_departure(&mut self, now: Instant) {
        if self.members.is_empty() {
            if self.phase != Phase::Empty {
                self.phase = Phase::Empty;
                self.generation = self.generation.saturating_add(1);
            }
            return;
        }
        self.gather(now);
        self.try_agree(now);
    }

    /// Id of the member with the static name `instance`.
    fn member_of(&self, instance: Option<&StrBytes>) -> Option<String> {
        let instance = instance?;
        let found = self
            .members
            .iter()
            .find(|(_, member)| member.introduction.instance.as_ref() == Some(instance));
        found.map(|(id, _)| id.clone())
    }
}

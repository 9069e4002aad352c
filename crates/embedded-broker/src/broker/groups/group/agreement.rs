//! A round of a group: everybody comes (back), a strategy is chosen, the leader gets to know who is here.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::protocol::StrBytes;

use super::{Group, Phase};
use crate::broker::groups::member::{Introduction, Joined, Member, Peer, Synced};
use crate::broker::limits::FIRST_JOIN_DELAY;

impl Group {
    /// Starts a new round, unless one is under way.
    pub(super) fn gather(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Gathering { .. }) {
            return;
        }
        for member in self.members.values_mut() {
            member.answer_sync(Err(ResponseError::RebalanceInProgress));
        }
        // The deadline is for those who are members already: they need time to notice, and to finish their
        // work.
        self.phase = match self.longest_rebalance() {
            None => Phase::Gathering {
                deadline: now + FIRST_JOIN_DELAY,
                first: true,
            },
            Some(longest) => Phase::Gathering {
                deadline: now + longest,
                first: false,
            },
        };
    }

    fn longest_rebalance(&self) -> Option<Duration> {
        self.members
            .values()
            .map(|member| member.introduction.rebalance_timeout)
            .max()
    }

    /// Ends the round if everybody is here.
    pub(super) fn try_agree(&mut self, now: Instant) {
        let Phase::Gathering { first: false, .. } = self.phase else {
            return;
        };
        let everybody = !self.members.is_empty() && self.members.values().all(Member::is_joining);
        if !everybody {
            return;
        }
        self.generation = self.generation.saturating_add(1);
        self.protocol = self.vote();
        let leader = self
            .leader
            .take()
            .filter(|leader| self.members.contains_key(leader));
        self.leader = leader.or_else(|| self.members.keys().next().cloned());
        let longest = self.longest_rebalance().unwrap_or_default();
        self.phase = Phase::AwaitingLeader {
            deadline: now + longest,
        };
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let joined = self.joined(&id);
            if let Some(member) = self.members.get_mut(&id) {
                member.last_contact = now;
                member.assignment = Bytes::new();
                member.answer_join(Ok(joined));
            }
        }
    }

    pub(super) fn joined(&self, member_id: &str) -> Joined {
        let leads = self.leader.as_deref() == Some(member_id);
        let peers = self.members.iter().filter(|_| leads).map(|(id, member)| Peer {
            member_id: id.clone(),
            instance: member.introduction.instance.clone(),
            metadata: member.introduction.metadata(&self.protocol),
        });
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            member_id: member_id.to_owned(),
            members: peers.collect(),
        }
    }

    pub(super) fn hand_out_assignments(&mut self) {
        for member in self.members.values_mut() {
            let synced = Synced {
                protocol_type: self.protocol_type.clone(),
                protocol: self.protocol.clone(),
                assignment: member.assignment.clone(),
            };
            member.answer_sync(Ok(synced));
        }
    }

    /// Each member votes for the first of its strategies that all know; most votes win, ties go to the first
    /// name.
    fn vote(&self) -> StrBytes {
        let mut votes: BTreeMap<&StrBytes, usize> = BTreeMap::new();
        for member in self.members.values() {
            let known_by_all =
                |name: &&StrBytes| self.members.values().all(|other| other.introduction.knows(name));
            let choice = member
                .introduction
                .protocols
                .iter()
                .map(|(name, _)| name)
                .find(known_by_all);
            if let Some(name) = choice {
                *votes.entry(name).or_default() += 1;
            }
        }
        let winner = votes.iter().max_by(|(a, x), (b, y)| x.cmp(y).then(b.cmp(a)));
        winner.map(|(name, _)| (*name).clone()).unwrap_or_default()
    }

    pub(super) fn agrees_with(&self, member_id: &str, introduction: &Introduction) -> bool {
        let mut others = self
            .members
            .iter()
            .filter(|(id, _)| *id != member_id)
            .map(|(_, member)| member)
            .peekable();
        if introduction.protocols.is_empty() || introduction.protocol_type.is_empty() {
            return false;
        }
        if others.peek().is_none() {
            return true;
        }
        let others: Vec<&Member> = others.collect();
        let common = |name: &StrBytes| others.iter().all(|other| other.introduction.knows(name));
        introduction.protocol_type == self.protocol_type
            && introduction.protocols.iter().any(|(name, _)| common(name))
    }
}

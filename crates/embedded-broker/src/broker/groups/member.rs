//! One consumer in a group: what it can do, when its last request came, and which of its requests still
//! waits.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::protocol::StrBytes;
use tokio::sync::oneshot;

/// A finished join, from the point of view of one member.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Joined {
    /// Which agreement this is.
    pub(crate) generation: i32,
    /// `consumer`, or what else the members call themselves.
    pub(crate) protocol_type: StrBytes,
    /// The assignment strategy that all members know.
    pub(crate) protocol: StrBytes,
    /// Who shares out the partitions.
    pub(crate) leader: String,
    /// Who is being answered.
    pub(crate) member_id: String,
    /// Everybody, for the leader; empty for the others.
    pub(crate) members: Vec<Peer>,
}

/// A member as the leader sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Peer {
    pub(crate) member_id: String,
    pub(crate) instance: Option<StrBytes>,
    pub(crate) metadata: Bytes,
}

/// A finished synchronisation: what one member shall read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Synced {
    pub(crate) protocol_type: StrBytes,
    pub(crate) protocol: StrBytes,
    pub(crate) assignment: Bytes,
}

/// Where the answer to a join will arrive.
pub(crate) type JoinAnswer = oneshot::Receiver<Result<Joined, ResponseError>>;
/// Where the answer to a synchronisation will arrive.
pub(crate) type SyncAnswer = oneshot::Receiver<Result<Synced, ResponseError>>;

/// What a consumer says when it joins.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    /// Its static name, if it has one.
    pub(crate) instance: Option<StrBytes>,
    /// What its client calls itself.
    pub(crate) client_id: String,
    /// Where it connects from.
    pub(crate) client_host: String,
    /// `consumer`, usually.
    pub(crate) protocol_type: StrBytes,
    /// Assignment strategies in order of preference, each with what the leader must know.
    pub(crate) protocols: Vec<(StrBytes, Bytes)>,
    /// Silence after which it counts as dead.
    pub(crate) session_timeout: Duration,
    /// Time it may take to come back when the group agrees anew.
    pub(crate) rebalance_timeout: Duration,
}

impl Introduction {
    pub(crate) fn knows(&self, protocol: &StrBytes) -> bool {
        self.protocols.iter().any(|(name, _)| name == protocol)
    }

    /// Names of its strategies.
    pub(crate) fn strategies(&self) -> impl Iterator<Item = &StrBytes> {
        self.protocols.iter().map(|(name, _)| name)
    }

    /// What it says about itself under a strategy.
    pub(crate) fn metadata(&self, protocol: &StrBytes) -> Bytes {
        self.protocols
            .iter()
            .find(|(name, _)| name == protocol)
            .map(|(_, metadata)| metadata.clone())
            .unwrap_or_default()
    }
}

/// A member.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) introduction: Introduction,
    pub(crate) assignment: Bytes,
    pub(super) last_contact: Instant,
    join: Option<oneshot::Sender<Result<Joined, ResponseError>>>,
    sync: Option<oneshot::Sender<Result<Synced, ResponseError>>>,
}

impl Member {
    pub(super) fn new(introduction: Introduction, now: Instant) -> Self {
        Self {
            introduction,
            assignment: Bytes::new(),
            last_contact: now,
            join: None,
            sync: None,
        }
    }

    /// Waits for the others; whoever waited on the same join before is asked to try again.
    pub(super) fn wait_for_join(&mut self) -> JoinAnswer {
        self.answer_join(Err(ResponseError::RebalanceInProgress));
        let (sender, receiver) = oneshot::channel();
        self.join = Some(sender);
        receiver
    }

    /// Waits for the leader's decision.
    pub(super) fn wait_for_sync(&mut self) -> SyncAnswer {
        self.answer_sync(Err(ResponseError::RebalanceInProgress));
        let (sender, receiver) = oneshot::channel();
        self.sync = Some(sender);
        receiver
    }

    /// Whether its join still waits, with somebody at the other end.
    pub(super) fn is_joining(&self) -> bool {
        self.join.as_ref().is_some_and(|sender| !sender.is_closed())
    }

    /// Whether its synchronisation still waits, with somebody at the other end.
    pub(super) fn is_syncing(&self) -> bool {
        self.sync.as_ref().is_some_and(|sender| !sender.is_closed())
    }

    /// Whether it has been silent for too long. Whoever waits for an answer is not silent.
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        let waiting = self.is_joining() || self.is_syncing();
        !waiting && now.saturating_duration_since(self.last_contact) > self.introduction.session_timeout
    }

    pub(super) fn answer_join(&mut self, answer: Result<Joined, ResponseError>) {
        if let Some(sender) = self.join.take() {
            let _ = sender.send(answer); // the connection may be gone; the session time-out will tell
        }
    }

    pub(super) fn answer_sync(&mut self, answer: Result<Synced, ResponseError>) {
        if let Some(sender) = self.sync.take() {
            let _ = sender.send(answer);
        }
    }
}

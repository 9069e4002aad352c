//! Consumer groups of the classic protocol: who reads which partition, and how far they have come.
//!
//! [`group`] is the state machine of one group, [`member`] one consumer in it, [`offsets`] what has been
//! committed.

pub(super) mod group;
pub(super) mod member;
pub(super) mod offsets;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::Instant;

use kafka_protocol::error::ResponseError;
use tracing::warn;

use super::limits::{GROUPS_MAX, MEMBERS_MAX, OFFSETS_MAX};
use group::Group;

/// All groups.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    by_id: HashMap<String, Group>,
    ids_given: u64,
}

impl Groups {
    /// Finds a group.
    pub(crate) fn get(&self, id: &str) -> Option<&Group> {
        self.by_id.get(id)
    }

    /// Finds a group, to change it.
    pub(crate) fn get_mut(&mut self, id: &str) -> Option<&mut Group> {
        self.by_id.get_mut(id)
    }

    /// All groups by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Group)> {
        self.by_id.iter().map(|(id, group)| (id.as_str(), group))
    }

    /// Finds or makes a group.
    ///
    /// # Errors
    /// `InvalidGroupId` for an empty id, `GroupMaxSizeReached` when no group can be forgotten for it.
    pub(crate) fn get_or_create(&mut self, id: &str, now: Instant) -> Result<&mut Group, ResponseError> {
        if id.is_empty() {
            return Err(ResponseError::InvalidGroupId);
        }
        if !self.by_id.contains_key(id) && self.by_id.len() >= GROUPS_MAX {
            self.forget_longest_idle()?;
        }
        Ok(self.by_id.entry(id.to_owned()).or_insert_with(|| Group::new(now)))
    }

    /// A member id that no other member has.
    pub(crate) fn new_member_id(&mut self, client_id: &str) -> String {
        const CLIENT_ID_CHARS: usize = 64;
        self.ids_given += 1;
        let client: String = client_id.chars().take(CLIENT_ID_CHARS).collect();
        // The process id distinguishes members of an earlier broker on the same port from ours.
        format!("{client}-{:x}-{:x}", std::process::id(), self.ids_given)
    }

    /// Whether another member may come.
    ///
    /// # Errors
    /// `GroupMaxSizeReached`.
    pub(crate) fn room_for_member(&self) -> Result<(), ResponseError> {
        let members: usize = self.by_id.values().map(Group::places_taken).sum();
        if members < MEMBERS_MAX {
            Ok(())
        } else {
            Err(ResponseError::GroupMaxSizeReached)
        }
    }

    /// Whether another offset may be committed.
    ///
    /// # Errors
    /// `InvalidCommitOffsetSize`.
    pub(crate) fn room_for_offset(&self) -> Result<(), ResponseError> {
        let offsets: usize = self.by_id.values().map(|group| group.offsets.len()).sum();
        if offsets < OFFSETS_MAX {
            Ok(())
        } else {
            Err(ResponseError::InvalidCommitOffsetSize)
        }
    }

    /// Forgets what was committed for a deleted topic.
    pub(crate) fn topic_deleted(&mut self, topic: &str) {
        for group in self.by_id.values_mut() {
            group.offsets.topic_deleted(topic);
        }
    }

    /// Lets deadlines take effect, and groups go that hold nothing.
    pub(crate) fn sweep(&mut self, now: Instant) {
        for group in self.by_id.values_mut() {
            group.sweep(now);
        }
        self.by_id
            .retain(|_, group| !group.is_forgettable() || group.offsets.len() > 0);
    }

    fn forget_longest_idle(&mut self) -> Result<(), ResponseError> {
        let idle = self
            .by_id
            .iter()
            .filter(|(_, group)| group.is_forgettable())
            .min_by_key(|(_, group)| group.last_used())
            .map(|(id, _)| id.clone())
            .ok_or(ResponseError::GroupMaxSizeReached)?;
        warn!(
            group = idle,
            groups_max = GROUPS_MAX,
            "too many groups, the longest unused one loses its offsets"
        );
        self.by_id.remove(&idle);
        Ok(())
    }
}

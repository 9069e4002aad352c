//! Everything the broker knows, behind one lock that is never held across an await.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use kafka_protocol::messages::BrokerId;
use kafka_protocol::protocol::StrBytes;
use tokio::sync::Notify;
use tracing::warn;

use super::groups::Groups;
use super::topics::Topics;
use super::transactions::{Ended, Transactions};
use crate::BrokerConfig;
use crate::broker::log::control::Outcome;

/// The id of the only broker of the cluster.
pub(super) const BROKER_ID: BrokerId = BrokerId(1);

/// What changes.
#[derive(Debug)]
pub(super) struct State {
    pub(super) topics: Topics,
    pub(super) groups: Groups,
    pub(super) transactions: Transactions,
}

/// The broker as its connections share it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: BrokerConfig,
    /// Host that clients are to connect to.
    pub(super) host: StrBytes,
    /// Port that clients are to connect to.
    pub(super) port: i32,
    /// Wakes fetches that wait for records.
    pub(super) news: Notify,
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn new(config: BrokerConfig, host: String, port: u16) -> Self {
        let state = State {
            topics: Topics::default(),
            groups: Groups::default(),
            transactions: Transactions::new(now_ms()),
        };
        Self {
            config,
            host: StrBytes::from_string(host),
            port: port.into(),
            news: Notify::new(),
            state: Mutex::new(state),
        }
    }

    /// Takes the lock. A handler that panicked has failed its own connection; the others go on.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets every deadline that has passed take effect.
    pub(super) fn sweep(&self, now: Instant) {
        let mut state = self.lock();
        let state = &mut *state;
        state.groups.sweep(now);
        let expired = state.transactions.expire(now);
        let wake = !expired.is_empty();
        for (id, ended) in expired {
            warn!(
                transactional_id = id,
                "a transaction was open for longer than its time-out and is aborted"
            );
            state.settle(ended, &self.config);
        }
        state.topics.drop_expired(now_ms());
        if wake {
            self.news.notify_waiters();
        }
    }
}

impl State {
    /// Writes the end of a transaction into its partitions, and its offsets into their groups.
    pub(super) fn settle(&mut self, ended: Ended, config: &BrokerConfig) {
        let producer = (ended.producer.id, ended.producer.epoch);
        for (topic, partition) in &ended.transaction.partitions {
            self.topics
                .end_transaction(topic, *partition, producer, ended.outcome, now_ms(), config);
        }
        if ended.outcome == Outcome::Aborted {
            return;
        }
        for ((group, topic, partition), offset) in ended.transaction.offsets {
            // The group was there when the offset was staged; if it has been forgotten since, it starts anew.
            if let Ok(group) = self.groups.get_or_create(&group, Instant::now()) {
                group.offsets.set(&topic, partition, offset);
            }
        }
    }

    /// Deletes a topic and everything that speaks of it; `false` when there is none.
    pub(super) fn delete_topic(&mut self, name: &str) -> bool {
        if !self.topics.delete(name) {
            return false;
        }
        self.groups.topic_deleted(name);
        self.transactions.topic_deleted(name);
        true
    }
}

/// Milliseconds since the Unix epoch.
pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

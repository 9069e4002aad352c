//! `Source`: reads topics as a member of the group, on a thread of its own, and hands records on.
//!
//! The thread never stops polling: when the next stage is slow, or too much is in flight, it pauses the
//! partitions and goes on polling, so that the group does not throw it out. Offsets are committed from the
//! [`OffsetTracker`], never from what was merely read.

use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::budget::OffsetTracker;
use super::error::KafkaError;
use super::monitor::ConnectionMonitor;
use super::offset_tracker::TopicPartition;
use crate::kafka::config::KafkaConfig;
use crate::wire::Record;

mod context;
mod pauses;
mod thread;
mod unread;

/// Everything a [`Source`] needs to start, and to start again.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// Broker, group, limits.
    pub kafka: KafkaConfig,
    /// Topics to read.
    pub topics: Vec<String>,
    /// Knows whether it reaches a broker, and takes reports of records that were deleted unread.
    pub monitor: ConnectionMonitor,
}

/// What a [`Source`] sends; in order.
#[derive(Debug)]
pub enum SourceEvent {
    /// A record to work on. Its record_offset goes back to [`OffsetTracker::release`] when it is finished.
    Record(Record),
    /// Partitions are ours from now on; their records follow.
    Assigned {
        /// Which.
        partitions: Vec<TopicPartition>,
        /// Epoch of their record_offsets.
        epoch: u64,
    },
    /// Partitions are being taken away; the group waits while their records in flight finish, briefly.
    Revoked(Revocation),
    /// The source cannot go on; its thread has ended and another one has to be started.
    Failed(KafkaError),
}

/// Partitions that are being taken away.
///
/// The group waits until their records in flight are released, or `revoke_wait_ms_max` is over. Then finished
/// offsets are committed and record_offsets are void.
#[derive(Debug)]
pub struct Revocation {
    /// Which.
    pub partitions: Vec<TopicPartition>,
    /// Whether they are gone already (the group threw us out): nothing can be committed any more.
    pub lost: bool,
}

/// How a source ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Records that were read and not finished; they will be read again.
    pub unfinished: usize,
}

/// The thread is asked to end.
struct Close {
    drain: Duration,
    done: oneshot::Sender<Closed>,
}

/// A consumer with its thread. Dropping it ends the thread after a last commit, without waiting for it.
#[derive(Debug)]
pub struct Source {
    orders: flume::Sender<Close>,
    thread: Option<JoinHandle<()>>,
}

impl Source {
    /// Joins the group and begins to read.
    ///
    /// Events arrive on the channel, which holds `queue_records_max` of them. When it is disconnected, the
    /// source has ended. The tracker is emptied of what an earlier source of the same topics left in it as
    /// soon as partitions are assigned.
    ///
    /// # Errors
    /// [`KafkaError`] when a setting is refused or the thread cannot be started. A broker that cannot be
    /// reached is no error here: the thread goes on trying.
    pub fn start(
        config: SourceConfig,
        tracker: OffsetTracker,
    ) -> Result<(Self, flume::Receiver<SourceEvent>), KafkaError> {
        config.kafka.validate()?;
        let (events, receiver) = flume::bounded(config.kafka.queue_records_max);
        let (sender, orders) = flume::bounded(1);
        let reading = thread::Reading::new(&config, tracker, events, orders)?;
        let thread = std::thread::Builder::new()
            .name("kafka-source".to_owned())
            .spawn(move || reading.run())
            .map_err(|source| KafkaError::Thread { source })?;
        let source = Self {
            orders: sender,
            thread: Some(thread),
        };
        Ok((source, receiver))
    }

    /// Stops reading, waits up to `drain` for records in flight, commits what is finished, and leaves the
    /// group.
    ///
    /// # Errors
    /// [`KafkaError::CloseTimedOut`] when that takes 10 s longer than `drain`: the broker is gone.
    /// [`KafkaError::Ended`] when the thread has ended before.
    pub async fn close(mut self, drain: Duration) -> Result<Closed, KafkaError> {
        let (done, closed) = oneshot::channel();
        let order = Close { drain, done };
        self.orders.send(order).map_err(|_| KafkaError::Ended)?;
        let limit = drain + Duration::from_secs(10);
        let result = tokio::time::timeout(limit, closed).await;
        let waited_ms = limit.as_millis();
        let closed = result.map_err(|_| KafkaError::CloseTimedOut { waited_ms })?;
        self.thread = None; // it sent its last word
        closed.map_err(|_| KafkaError::Ended)
    }

    /// Whether the thread lives.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

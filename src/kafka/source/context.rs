//! What librdkafka calls back from the poll: rebalances, commits, statistics, logs.

use std::collections::{HashMap, VecDeque};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::bindings;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::statistics::{Partition, Statistics};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::util::Timeout;
use tracing::{debug, info, warn};

use super::pauses::Pauses;
use super::unread::Unread;
use super::{Revocation, SourceEvent};
use crate::kafka::budget::OffsetTracker;
use crate::kafka::convert;
use crate::kafka::error::reason;
use crate::kafka::monitor::{ClientMonitor, is_connection};
use crate::kafka::offset_tracker::{Position, TopicPartition};
use crate::kafka::transactions::{Group, Producer, Transactions};
use crate::telemetry::metrics;

/// How often a rebalance that waits for records in flight passes on what waits for the channel.
const REVOKE_TICK: Duration = Duration::from_millis(50);
/// How long, and how often, a revocation tries to commit while the group takes no offsets.
const LAST_COMMIT_MAX: Duration = Duration::from_secs(2);
const LAST_COMMIT_TICK: Duration = Duration::from_millis(20);
/// A commit that is not answered after so long is sent again.
const COMMIT_ANSWER_MAX: Duration = Duration::from_secs(4);

/// Events on their way to the channel. What does not fit waits here; the partitions are paused while it does.
pub(super) struct Outbox {
    channel: flume::Sender<SourceEvent>,
    waiting: Mutex<VecDeque<SourceEvent>>,
}

impl Outbox {
    pub(super) fn new(channel: flume::Sender<SourceEvent>) -> Self {
        Self {
            channel,
            waiting: Mutex::default(),
        }
    }

    /// Sends an event, or keeps it until the channel takes it.
    pub(super) fn push(&self, event: SourceEvent) {
        locked(&self.waiting).push_back(event);
        self.flush();
    }

    /// Sends what waits, as far as the channel takes it.
    pub(super) fn flush(&self) {
        let mut waiting = locked(&self.waiting);
        while let Some(event) = waiting.pop_front() {
            match self.channel.try_send(event) {
                Ok(()) => {}
                Err(flume::TrySendError::Full(event)) => {
                    waiting.push_front(event);
                    return;
                }
                Err(flume::TrySendError::Disconnected(_)) => waiting.clear(),
            }
        }
    }

    /// Drops records that wait, where `unwanted` says so.
    pub(super) fn drop_records(&self, unwanted: impl Fn(&TopicPartition) -> bool) {
        locked(&self.waiting).retain(|event| match event {
            SourceEvent::Record(record) => !unwanted(&TopicPartition::of(&record.record_offset)),
            _ => true,
        });
    }

    /// Whether the next stage has as much as it can hold.
    pub(super) fn is_full(&self) -> bool {
        self.channel.is_full() || !locked(&self.waiting).is_empty()
    }

    /// Whether the next stage has worked off enough to be given more.
    pub(super) fn has_room(&self) -> bool {
        let half = self.channel.capacity().unwrap_or(usize::MAX) / 2;
        locked(&self.waiting).is_empty() && self.channel.len() <= half
    }

    pub(super) fn is_disconnected(&self) -> bool {
        self.channel.is_disconnected()
    }
}

/// The state that callbacks and the poll loop share; all of them run on the source's thread.
pub(super) struct SourceContext {
    pub(super) tracker: OffsetTracker,
    pub(super) outbox: Outbox,
    monitor: ClientMonitor,
    revoke_wait_max: Duration,
    /// The source is going: rebalances wait for nobody.
    pub(super) closing: AtomicBool,
    pauses: Mutex<Pauses>,
    /// Positions on their way to the broker, and since when; without those that it has answered.
    commits_sent: Mutex<HashMap<TopicPartition, (Position, Instant)>>,
    unread: Mutex<Unread>,
    /// What writes outcomes and offsets; `None` where offsets are committed by the consumer.
    pub(super) transactions: Option<Mutex<Transactions<Producer>>>,
    /// Which member of the group the partitions were given to.
    members: Mutex<HashMap<TopicPartition, String>>,
    /// We are another member than the one that partitions were given to.
    pub(super) is_another_member: AtomicBool,
}

impl SourceContext {
    pub(super) fn new(
        tracker: OffsetTracker,
        outbox: Outbox,
        monitor: ClientMonitor,
        revoke_wait_max: Duration,
        transactions: Option<Transactions<Producer>>,
    ) -> Self {
        Self {
            transactions: transactions.map(Mutex::new),
            members: Mutex::default(),
            is_another_member: AtomicBool::new(false),
            tracker,
            outbox,
            monitor,
            revoke_wait_max,
            closing: AtomicBool::new(false),
            pauses: Mutex::default(),
            commits_sent: Mutex::default(),
            unread: Mutex::default(),
        }
    }

    /// What was read, to find what was not.
    pub(super) fn unread(&self) -> MutexGuard<'_, Unread> {
        locked(&self.unread)
    }

    /// Which partitions are paused.
    pub(super) fn pauses(&self) -> MutexGuard<'_, Pauses> {
        locked(&self.pauses)
    }

    /// Whether librdkafka has left the consumer without brokers; said once.
    pub(super) fn take_lacks_brokers(&self) -> bool {
        self.monitor.take_lacks_brokers()
    }

    /// Something failed for now and is tried again. A connection's failure is logged by the monitor.
    pub(super) fn failed(&self, what: &str, error: &ClientError) {
        if !error.rdkafka_error_code().is_some_and(is_connection) {
            self.monitor.complain(what, &reason(error));
        }
    }

    /// Asks the broker to take the positions that have moved, without waiting; what it answers is heard by
    /// [`commit_callback`](ConsumerContext::commit_callback).
    ///
    /// No other is sent while one is on its way. Only while there is none does librdkafka begin to read
    /// partitions that are new, or is it done with those that are taken away, and a broker answers the
    /// requests of a connection one by one: commits slower than the interval would pile up, and hold
    /// rebalances up without end. To send none for a second after a rebalance would not do then. To learn
    /// from the statistics that one has arrived would, but they come once a second, ten times too seldom.
    pub(super) fn commit_soon(&self, consumer: &BaseConsumer<Self>) {
        let mut sent = locked(&self.commits_sent);
        if sent.values().any(|(_, when)| when.elapsed() < COMMIT_ANSWER_MAX) {
            return;
        }
        let positions = self.tracker.positions();
        if positions.is_empty() {
            return;
        }
        if let Err(error) = commit_async(consumer, &positions) {
            self.failed("commit, which is repeated", &error);
            return;
        }
        let now = Instant::now();
        *sent = positions
            .into_iter()
            .map(|position| (position.partition.clone(), (position, now)))
            .collect();
    }

    /// Takes what an answer is about from what is on its way. What is not there was taken away meanwhile, or
    /// another commit has come later.
    fn take_answered(&self, offsets: &TopicPartitionList) -> Vec<Position> {
        let mut sent = locked(&self.commits_sent);
        let mut answered = Vec::new();
        for (partition, committed) in convert::committed(offsets) {
            let position = sent.get(&partition).map(|(position, _)| position);
            let was_sent = position.map(|position| (position.offset, position.memory.clone()));
            if committed.is_some() && committed == was_sent {
                answered.extend(sent.remove(&partition).map(|(position, _)| position));
            }
        }
        answered
    }

    /// Commits `positions` and waits for the broker. An error: ask again, polling in between, because the
    /// group is about to share its partitions out anew and takes no offsets until it has, or because the
    /// broker takes no metadata of that length.
    ///
    /// A member that has joined the next generation, and does not know its number yet, commits under the old
    /// one: librdkafka lets it, and the broker refuses (librdkafka issue 4059).
    pub(super) fn commit_now(
        &self,
        consumer: &BaseConsumer<Self>,
        positions: &[Position],
    ) -> Result<(), RDKafkaErrorCode> {
        if positions.is_empty() {
            return Ok(());
        }
        match consumer.commit(&convert::position_list(positions), CommitMode::Sync) {
            Ok(()) => {
                locked(&self.commits_sent).clear(); // what went before this one counts no more
                self.tracker.committed(positions);
                debug!(partitions = positions.len(), "committed");
                Ok(())
            }
            Err(ClientError::ConsumerCommit(error)) if is_sharing_out(error) => {
                debug!(%error, "the group takes no offsets while it shares its partitions out");
                Err(error)
            }
            Err(ClientError::ConsumerCommit(error @ RDKafkaErrorCode::OffsetMetadataTooLarge)) => {
                self.tracker.limit_memory();
                Err(error)
            }
            Err(error) => {
                warn!(%error, "failed to commit finished offsets; their records will be repeated");
                Ok(())
            }
        }
    }

    /// Our membership in the group, for a transaction; `None` while we are not the member that all of our
    /// partitions were given to.
    pub(super) fn group(&self, consumer: &BaseConsumer<Self>) -> Option<Group> {
        let group = Group::of(consumer)?;
        let members = locked(&self.members);
        let is_mine = |partition| members.get(partition) == Some(&group.member);
        if self.tracker.assigned().iter().all(is_mine) {
            return Some(group);
        }
        self.is_another_member.store(true, Ordering::Relaxed);
        None
    }

    /// Ends the open transaction and commits what is settled, for a while; whether that was done.
    pub(super) fn conclude_transactions(&self, consumer: &BaseConsumer<Self>) -> bool {
        let Some(transactions) = &self.transactions else {
            return true;
        };
        let deadline = Instant::now() + LAST_COMMIT_MAX;
        locked(transactions).conclude(
            || self.group(consumer),
            Instant::now,
            || Instant::now() >= deadline,
            || std::thread::sleep(LAST_COMMIT_TICK),
        )
    }

    /// Partitions are ours from now on; what was in flight of them counts for nothing.
    pub(super) fn assigned(&self, consumer: &BaseConsumer<Self>, partitions: Vec<TopicPartition>) {
        if partitions.is_empty() {
            return;
        }
        if self.transactions.is_some() {
            let member = Group::of(consumer).map(|group| group.member).unwrap_or_default();
            let members = partitions
                .iter()
                .map(|partition| (partition.clone(), member.clone()));
            locked(&self.members).extend(members);
        }
        let epoch = self.tracker.assign(partitions.clone());
        info!(partitions = %names(&partitions), epoch, "partitions assigned");
        self.unread().forget(&partitions);
        self.outbox.push(SourceEvent::Assigned { partitions, epoch });
    }

    fn revoked(&self, consumer: &BaseConsumer<Self>, partitions: Vec<TopicPartition>) {
        if partitions.is_empty() {
            return;
        }
        let lost = consumer.assignment_lost();
        self.outbox
            .drop_records(|partition| partitions.contains(partition));
        self.tracker.budget().audio().forget(&partitions);
        if !self.closing.load(Ordering::Relaxed) {
            self.wait_for_records_in_flight(&partitions, lost);
        }
        let unfinished = self.tracker.unsettled_of(&partitions);
        if !lost && !self.conclude_transactions(consumer) {
            warn!(partitions = %names(&partitions), "a transaction is not over; answers that it does not hold are written by who reads on");
        }
        let positions = self.tracker.revoke(&partitions);
        if !lost && self.transactions.is_none() && !self.commit_last(consumer, positions) {
            warn!(partitions = %names(&partitions), "the group took no offsets; finished records will be repeated");
        }
        locked(&self.members).retain(|partition, _| !partitions.contains(partition));
        locked(&self.commits_sent).retain(|partition, _| !partitions.contains(partition));
        self.unread().forget(&partitions);
        for partition in &partitions {
            metrics::consumer_lag(&partition.topic, partition.partition, None);
        }
        let partitions = names(&partitions);
        match self.monitor.in_outage() {
            true => debug!(partitions, lost, unfinished, "partitions revoked"), // the outage is said already
            false => info!(partitions, lost, unfinished, "partitions revoked"),
        }
    }

    /// As [`commit_now`](Self::commit_now), again and again for a while: other members may still be notified
    /// their partitions, and a revocation cannot be polled through.
    fn commit_last(&self, consumer: &BaseConsumer<Self>, mut positions: Vec<Position>) -> bool {
        let deadline = Instant::now() + LAST_COMMIT_MAX;
        loop {
            match self.commit_now(consumer, &positions) {
                Ok(()) => return true,
                // Then what is finished behind them is repeated, and not all since the last commit.
                Err(RDKafkaErrorCode::OffsetMetadataTooLarge) => {
                    positions.iter_mut().for_each(|position| position.memory.clear());
                }
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(LAST_COMMIT_TICK);
        }
    }

    fn wait_for_records_in_flight(&self, partitions: &[TopicPartition], lost: bool) {
        self.outbox.push(SourceEvent::Revoked(Revocation {
            partitions: partitions.to_vec(),
            lost,
        }));
        let deadline = Instant::now() + self.revoke_wait_max;
        while !lost && !self.outbox.is_disconnected() {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.tracker.wait_finished(partitions, left.min(REVOKE_TICK)) || left.is_zero() {
                return;
            }
            self.outbox.flush();
        }
    }

    /// Records of a partition that are not finished; `None` where the log's end or our place in it is not
    /// known.
    fn lag(&self, partition: &TopicPartition, found: &Partition) -> Option<i64> {
        // -1 and -1001 mean "not known yet".
        let known = |offsets: [i64; 3]| offsets.into_iter().find(|offset| *offset >= 0);
        let end = known([found.ls_offset, found.hi_offset, -1])?;
        let position = self.tracker.position(partition);
        let position = known([position.unwrap_or(-1), found.committed_offset, found.lo_offset])?;
        Some((end - position).max(0))
    }

    /// Counts and reports what retention deleted before it was read.
    fn report_deleted(&self, partition: &TopicPartition, found: &Partition) {
        let mut unread = self.unread();
        if found.committed_offset >= 0 && unread.is_new(partition) {
            unread.begin(partition, found.committed_offset);
        }
        let deleted = unread.look(partition, found.lo_offset, found.fetchq_cnt == 0);
        drop(unread);
        for deleted in deleted {
            self.monitor.records_deleted(deleted);
        }
    }
}

impl ClientContext for SourceContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.monitor.log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        self.monitor.error(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        let connected = self.monitor.statistics(&statistics);
        for partition in self.tracker.assigned() {
            let topic = statistics.topics.get(partition.topic.as_ref());
            let found = topic.and_then(|topic| topic.partitions.get(&partition.partition));
            // What was known before an outage is not known any more.
            let lag = found
                .filter(|_| connected)
                .and_then(|found| self.lag(&partition, found));
            metrics::consumer_lag(&partition.topic, partition.partition, lag);
            if let Some(found) = found {
                self.report_deleted(&partition, found);
            }
        }
    }
}

impl ConsumerContext for SourceContext {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                self.monitor.assigned();
                self.assigned(consumer, partitions(list));
            }
            Rebalance::Revoke(list) => {
                self.revoked(consumer, partitions(list));
                self.pauses().forget(consumer, &partitions(list));
            }
            Rebalance::Error(error) => self.failed("share of the partitions", error),
        }
    }

    /// What became of a commit that was not waited for. librdkafka calls all of it refused where a part is.
    fn commit_callback(&self, result: Result<(), ClientError>, offsets: &TopicPartitionList) {
        let answered = self.take_answered(offsets);
        match result {
            Ok(()) => self.tracker.committed(&answered),
            Err(ClientError::ConsumerCommit(RDKafkaErrorCode::OffsetMetadataTooLarge)) => {
                self.tracker.limit_memory();
            }
            Err(ClientError::ConsumerCommit(error)) if is_sharing_out(error) => {
                debug!(%error, "the group takes no offsets while it shares its partitions out")
            }
            Err(error) => self.failed("commit, which is repeated", &error),
        }
    }

    fn main_queue_min_poll_interval(&self) -> Timeout {
        Timeout::After(Duration::from_millis(50))
    }
}

/// Whether a commit was refused because the group shares its partitions out, or has done so and we do not
/// know it yet.
fn is_sharing_out(error: RDKafkaErrorCode) -> bool {
    matches!(
        error,
        RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::StaleMemberEpoch
            | RDKafkaErrorCode::RebalanceInProgress
    )
}

fn partitions(list: &TopicPartitionList) -> Vec<TopicPartition> {
    let elements = list.elements();
    let partition = elements
        .iter()
        .map(|element| TopicPartition::new(element.topic(), element.partition()));
    partition.collect()
}

fn names(partitions: &[TopicPartition]) -> String {
    let names: Vec<String> = partitions
        .iter()
        .map(|partition| format!("{}/{}", partition.topic, partition.partition))
        .collect();
    names.join(" ")
}

/// Asks for a commit whose answer comes to [`ConsumerContext::commit_callback`] with a later poll. Of
/// `CommitMode::Async` nothing is heard: librdkafka answers only a callback that rdkafka never sets.
fn commit_async(consumer: &BaseConsumer<SourceContext>, positions: &[Position]) -> Result<(), ClientError> {
    let (client, offsets) = (consumer.client().native_ptr(), convert::position_list(positions));
    // SAFETY: the consumer lives as long as it is borrowed; its queue is ours until it is destroyed, once.
    let queue = unsafe { bindings::rd_kafka_queue_get_consumer(client) };
    if queue.is_null() {
        return Err(ClientError::ConsumerCommit(RDKafkaErrorCode::UnknownGroup));
    }
    // SAFETY: as above. librdkafka copies the list, and holds the queue itself until the answer is in it.
    let code = unsafe {
        let code = bindings::rd_kafka_commit_queue(client, offsets.ptr(), queue, None, ptr::null_mut());
        bindings::rd_kafka_queue_destroy(queue);
        code
    };
    match RDKafkaErrorCode::from(code) {
        RDKafkaErrorCode::NoError => Ok(()),
        code => Err(ClientError::ConsumerCommit(code)),
    }
}

/// A poisoned lock is sound here: every critical section leaves whole values.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

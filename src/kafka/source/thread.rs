//! The poll loop: never blocks, never stops while the source lives.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::oneshot;
use tracing::{debug, error, warn};

use super::context::{Outbox, SourceContext};
use super::{Close, Closed, SourceConfig, SourceEvent};
use crate::kafka::budget::OffsetTracker;
use crate::kafka::error::{KafkaError, reason};
use crate::kafka::offset_tracker::{Admission, TopicPartition};
use crate::kafka::{client, convert};
use crate::telemetry::metrics;

/// Longest the loop waits for a record: how soon it notices an order.
const POLL: Duration = Duration::from_millis(50);
/// The same while partitions are paused: how soon it notices that it may read on.
const POLL_PAUSED: Duration = Duration::from_millis(5);
/// Longest that the group's offsets are waited for, once an assignment.
const OFFSETS_MAX: Duration = Duration::from_secs(2);
/// Least time that a last commit may take, while the group is sharing out its partitions.
const COMMIT_RETRY_MAX: Duration = Duration::from_secs(5);

/// The thread's own state.
pub(super) struct Reading {
    consumer: BaseConsumer<SourceContext>,
    orders: flume::Receiver<Close>,
    topics: Vec<Arc<str>>,
    in_flight_records_max: usize,
    commit_interval: Duration,
    next_commit: Instant,
    /// Nothing more is read: the source ends.
    held: bool,
    /// Partitions that are paused by themselves, because of the audio that they have in flight.
    slowed: HashSet<TopicPartition>,
}

/// Why the loop ends.
enum End {
    /// After a drain that has until the deadline.
    Close(Instant, Option<oneshot::Sender<Closed>>),
    Fatal(String),
}

impl Reading {
    pub(super) fn new(
        config: &SourceConfig,
        tracker: OffsetTracker,
        events: flume::Sender<SourceEvent>,
        orders: flume::Receiver<Close>,
    ) -> Result<Self, KafkaError> {
        let kafka = &config.kafka;
        let monitor = config
            .monitor
            .client(format!("consumer of {}", config.topics.join(", ")), true);
        let revoke_wait_max = Duration::from_millis(kafka.revoke_wait_ms_max);
        let context = SourceContext::new(tracker, Outbox::new(events), monitor, revoke_wait_max);
        let consumer: BaseConsumer<SourceContext> = client::group_consumer(kafka)?
            .create_with_context(context)
            .map_err(|error| client::creation_error("consumer", error))?;
        let names: Vec<&str> = config.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&names).map_err(|error| KafkaError::Fatal {
            topics: names.join(", "),
            reason: reason(&error),
        })?;
        let commit_interval = Duration::from_millis(kafka.commit_interval_ms);
        Ok(Self {
            consumer,
            orders,
            topics: config.topics.iter().map(|topic| topic.as_str().into()).collect(),
            in_flight_records_max: kafka.in_flight_records_max,
            commit_interval,
            next_commit: Instant::now() + commit_interval,
            held: false,
            slowed: HashSet::new(),
        })
    }

    /// Reads until it is told to end.
    pub(super) fn run(mut self) {
        self.tell_paused(); // from the start, so that the series is there
        let end = loop {
            if let Some(end) = self.take_order() {
                break end;
            }
            if self.context().outbox.is_disconnected() {
                warn!("nobody takes records any more; the source ends");
                break End::Close(Instant::now(), None);
            }
            if let Err(reason) = self.turn() {
                break End::Fatal(reason);
            }
        };
        match end {
            End::Close(deadline, done) => self.close(deadline, done),
            End::Fatal(reason) => self.fail(reason),
        }
    }

    /// One round: pass on what waits, pause or resume, poll once, commit when it is time.
    fn turn(&mut self) -> Result<(), String> {
        self.context().outbox.flush();
        self.balance();
        self.balance_audio();
        let paused = self.context().paused.load(Ordering::Relaxed) || !self.slowed.is_empty();
        let until_commit = self.next_commit.saturating_duration_since(Instant::now());
        let wait = until_commit.min(if paused { POLL_PAUSED } else { POLL });
        match self.consumer.poll(wait) {
            None => {}
            Some(Ok(message)) => self.take(&message),
            Some(Err(ClientError::MessageConsumptionFatal(code))) => return Err(code.to_string()),
            Some(Err(error)) => self.context().failed("read", &error),
        }
        if Instant::now() >= self.next_commit {
            self.context().commit_soon(&self.consumer);
            self.next_commit = Instant::now() + self.commit_interval;
        }
        Ok(())
    }

    /// Hands a message on, unless its partition is not ours any more or it is being worked on already.
    fn take(&self, message: &BorrowedMessage<'_>) {
        let context = self.context();
        let Some(topic) = self.topics.iter().find(|topic| topic.as_ref() == message.topic()) else {
            return; // not subscribed; cannot happen, and must not end the thread
        };
        let partition = TopicPartition::new(topic.clone(), message.partition());
        let Some(epoch) = context.tracker.epoch(&partition) else {
            debug!(topic = %topic, partition = message.partition(), "a record of a partition that is not ours");
            return;
        };
        self.note(&partition, message.offset());
        let record = convert::record(message, topic.clone(), epoch);
        match context
            .tracker
            .admit(&record.record_offset, convert::weight(&record))
        {
            Admission::New => context.outbox.push(SourceEvent::Record(record)),
            Admission::InFlight | Admission::Void => {}
        }
    }

    /// Takes note of what is read, and so of what was skipped. The first record of an assignment is measured
    /// by the group's offset: what lies between was deleted while nobody read.
    fn note(&self, partition: &TopicPartition, offset: i64) {
        let mut unread = self.context().unread();
        if offset > 0 && unread.is_new(partition) {
            let assigned = self.context().tracker.assigned();
            let new = list(assigned.iter().filter(|partition| unread.is_new(partition)));
            match self.consumer.committed_offsets(new, OFFSETS_MAX) {
                Ok(offsets) => {
                    for element in offsets.elements() {
                        if let Offset::Offset(offset) = element.offset() {
                            unread.begin(&TopicPartition::new(element.topic(), element.partition()), offset);
                        }
                    }
                }
                Err(error) => {
                    debug!(%error, "the group's offsets are not known: deleted records may go uncounted")
                }
            }
        }
        unread.read(partition, offset);
    }

    /// Pauses the partitions when enough is in flight, resumes them when less than half of it is.
    fn balance(&mut self) {
        let context = self.context();
        let (unfinished, budget) = (context.tracker.unfinished(), context.tracker.budget());
        let paused = context.paused.load(Ordering::Relaxed);
        let enough = self.held
            || context.outbox.is_full()
            || unfinished >= self.in_flight_records_max
            || budget.is_over();
        let has_capacity = !self.held
            && context.outbox.has_room()
            && unfinished <= self.in_flight_records_max / 2
            && budget.is_below_half();
        let pause = if paused { !has_capacity } else { enough };
        if pause == paused {
            return;
        }
        let changed = self.consumer.assignment().and_then(|assignment| {
            if pause {
                self.consumer.pause(&assignment)
            } else {
                self.consumer.resume(&assignment)
            }
        });
        match changed {
            Ok(()) => {
                context.paused.store(pause, Ordering::Relaxed);
                self.slowed.clear(); // all of them are paused, or none is
                self.tell_paused();
            }
            Err(error) => warn!(%error, pause, "failed to pause or resume partitions; it is tried again"),
        }
    }

    /// Pauses the partitions that have too much audio in flight, and resumes those that have worked it off.
    fn balance_audio(&mut self) {
        let context = self.context();
        if context.paused.load(Ordering::Relaxed) {
            return; // all of them are
        }
        let audio = context.tracker.budget().audio();
        let wanted = audio.to_pause(|| context.tracker.assigned(), &self.slowed);
        if wanted == self.slowed {
            return;
        }
        let paused = self.consumer.pause(&list(wanted.difference(&self.slowed)));
        let assigned: HashSet<TopicPartition> = context.tracker.assigned().into_iter().collect();
        let over = self
            .slowed
            .difference(&wanted)
            .filter(|partition| assigned.contains(partition));
        let resumed = self.consumer.resume(&list(over));
        match paused.and(resumed) {
            Ok(()) => {
                self.slowed = wanted;
                self.tell_paused();
            }
            Err(error) => warn!(%error, "failed to pause or resume a partition; it is tried again"),
        }
    }

    fn tell_paused(&self) {
        let paused = match self.context().paused.load(Ordering::Relaxed) {
            true => self.context().tracker.assigned().len(),
            false => self.slowed.len(),
        };
        for topic in &self.topics {
            metrics::partitions_paused(topic, paused);
        }
    }

    fn take_order(&self) -> Option<End> {
        match self.orders.try_recv() {
            Ok(Close { drain, done }) => Some(End::Close(Instant::now() + drain, Some(done))),
            Err(flume::TryRecvError::Empty) => None,
            Err(flume::TryRecvError::Disconnected) => Some(End::Close(Instant::now(), None)),
        }
    }

    fn close(mut self, deadline: Instant, done: Option<oneshot::Sender<Closed>>) {
        self.held = true;
        while self.context().tracker.unfinished() > 0 && Instant::now() < deadline {
            if let Err(reason) = self.turn() {
                error!(reason, "the consumer failed while it drained");
                break;
            }
        }
        let deadline = deadline.max(Instant::now() + COMMIT_RETRY_MAX);
        while !self
            .context()
            .commit_now(&self.consumer, &self.context().tracker.positions())
            && Instant::now() < deadline
        {
            if let Err(reason) = self.turn() {
                error!(reason, "the consumer failed before it could commit");
                break;
            }
        }
        let context = self.context();
        context.closing.store(true, Ordering::Relaxed);
        let unfinished = context.tracker.unfinished();
        self.leave();
        if let Some(done) = done {
            let _ = done.send(Closed { unfinished }); // who asked may have gone
        }
    }

    fn fail(self, reason: String) {
        error!(reason, "the consumer cannot go on");
        self.context().closing.store(true, Ordering::Relaxed);
        let topics = self.topics.join(", ");
        self.context()
            .outbox
            .push(SourceEvent::Failed(KafkaError::Fatal { topics, reason }));
        self.leave();
    }

    /// Leaves the group; the partitions are revoked on the way, with their callback.
    fn leave(self) {
        let tracker = self.context().tracker.clone();
        drop(self);
        tracker.revoke(&tracker.assigned()); // where the group was lost, nobody told
    }

    fn context(&self) -> &SourceContext {
        self.consumer.context()
    }
}

fn list<'p>(partitions: impl Iterator<Item = &'p TopicPartition>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(&partition.topic, partition.partition);
    }
    list
}

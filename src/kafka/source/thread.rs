//! The poll loop: never blocks, never stops while the source lives.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use tokio::sync::oneshot;
use tracing::{debug, error, warn};

use super::context::{Outbox, SourceContext, locked};
use super::{Close, Closed, Revocation, SourceConfig, SourceEvent};
use crate::kafka::bootstrap::restore_brokers;
use crate::kafka::budget::OffsetTracker;
use crate::kafka::error::{KafkaError, reason};
use crate::kafka::offset_tracker::{Admission, TopicPartition};
use crate::kafka::transactions::{Producer, Step, Transactions};
use crate::kafka::{client, convert};
use crate::telemetry::metrics;

/// Longest the loop waits for a record: how soon it notices an order.
const POLL: Duration = Duration::from_millis(50);
/// The same while partitions are paused: how soon it notices that it may read on.
const POLL_PAUSED: Duration = Duration::from_millis(5);
/// The same while outcomes may come that a transaction is to take.
const POLL_UNFINISHED: Duration = Duration::from_millis(5);
/// Steps of transactions in one round, so that the consumer is polled between them.
const STEPS_MAX: usize = 8;
/// Longest that reading waits to begin at another offset.
const SEEK_MAX: Duration = Duration::from_secs(1);
/// Longest that an answer is waited for that nobody needs.
const WAKE_MAX: Duration = Duration::from_millis(100);
/// Longest that the group's offsets are waited for, once an assignment.
const OFFSETS_MAX: Duration = Duration::from_secs(2);
/// Least time that a last commit may take, while the group is sharing out its partitions.
const COMMIT_RETRY_MAX: Duration = Duration::from_secs(5);

/// The thread's own state.
pub(super) struct Reading {
    consumer: BaseConsumer<SourceContext>,
    orders: flume::Receiver<Close>,
    topics: Vec<Arc<str>>,
    bootstrap: String,
    in_flight_records_max: usize,
    commit_interval: Duration,
    next_commit: Instant,
    /// Nothing more is read: the source ends.
    is_closing: bool,
    subscribed: bool,
    /// Partitions whose committed offset is not known have to be read from there; nothing of them is taken
    /// before.
    goes_back: Cell<bool>,
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
        let transactions = match tracker.is_transactional() {
            true => Some(Transactions::new(
                Producer::new(kafka, &config.monitor)?,
                tracker.clone(),
                kafka.batching(),
                Instant::now(),
            )),
            false => None,
        };
        let outbox = Outbox::new(events);
        let context = SourceContext::new(tracker, outbox, monitor, revoke_wait_max, transactions);
        let consumer: BaseConsumer<SourceContext> = client::group_consumer(kafka)?
            .create_with_context(context)
            .map_err(|error| client::creation_error("consumer", error))?;
        let commit_interval = Duration::from_millis(kafka.commit_interval_ms);
        Ok(Self {
            consumer,
            orders,
            topics: config.topics.iter().map(|topic| topic.as_str().into()).collect(),
            bootstrap: kafka.bootstrap.clone(),
            in_flight_records_max: kafka.in_flight_records_max,
            commit_interval,
            next_commit: Instant::now() + commit_interval,
            is_closing: false,
            subscribed: false,
            goes_back: Cell::new(false),
        })
    }

    /// Joins the group, once earlier holders of the transactional id are shut out: what they left open is
    /// aborted then, and the group's offsets can be read.
    fn subscribe(&mut self) -> Result<(), String> {
        let transactions = self.context().transactions.as_ref();
        if self.subscribed || transactions.is_some_and(|transactions| !locked(transactions).is_initialised())
        {
            return Ok(());
        }
        let names: Vec<&str> = self.topics.iter().map(AsRef::as_ref).collect();
        self.consumer.subscribe(&names).map_err(|error| reason(&error))?;
        self.subscribed = true;
        Ok(())
    }

    /// Reads until it is asked to end.
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
        self.subscribe()?;
        self.context().outbox.flush();
        self.balance();
        if self.goes_back.get() {
            self.go_back();
        }
        let context = self.context();
        let until_commit = match &context.transactions {
            Some(_) => POLL, // they keep time themselves
            None => self.next_commit.saturating_duration_since(Instant::now()),
        };
        let poll = if context.pauses().is_any() {
            POLL_PAUSED
        } else if context.transactions.is_some() && context.tracker.unfinished() > 0 {
            POLL_UNFINISHED
        } else {
            POLL
        };
        let wait = until_commit.min(poll);
        match self.consumer.poll(wait) {
            None => {}
            Some(Ok(message)) => self.take(&message),
            Some(Err(ClientError::MessageConsumptionFatal(code))) => return Err(code.to_string()),
            Some(Err(error)) => self.context().failed("read", &error),
        }
        if self.context().take_lacks_brokers() {
            restore_brokers(self.consumer.client(), &self.bootstrap);
        }
        if self.context().transactions.is_some() {
            return self.transact();
        }
        if Instant::now() >= self.next_commit {
            self.context().commit_soon(&self.consumer);
            self.next_commit = Instant::now() + self.commit_interval;
        }
        Ok(())
    }

    /// Goes on with transactions as far as they go now.
    fn transact(&self) -> Result<(), String> {
        let context = self.context();
        let Some(transactions) = &context.transactions else {
            return Ok(());
        };
        let mut steps = 0..STEPS_MAX;
        let mut step = Step::Moved;
        while step == Step::Moved && steps.next().is_some() {
            step = locked(transactions).step(|| context.group(&self.consumer), Instant::now);
        }
        match step {
            Step::Resync => {
                self.resync("it is not known whether a transaction was committed");
                locked(transactions).resynced();
            }
            Step::Ended(reason) => return Err(reason),
            Step::Idle | Step::Moved | Step::Waiting => {}
        }
        if self.context().is_another_member.swap(false, Ordering::Relaxed) {
            self.resync("the group has taken us for another member since it gave us partitions");
        }
        Ok(())
    }

    /// What is in flight counts for nothing: the group's offsets say what is answered, and reading goes on
    /// from there.
    fn resync(&self, reason: &str) {
        let context = self.context();
        let partitions = context.tracker.assigned();
        if partitions.is_empty() {
            return;
        }
        warn!(reason, "reading goes back to what the group has committed");
        context.outbox.drop_records(|_| true);
        context.outbox.push(SourceEvent::Revoked(Revocation {
            partitions: partitions.clone(),
            lost: true,
        }));
        context.assigned(&self.consumer, partitions);
        self.goes_back.set(true);
    }

    /// Begins to read at the group's offsets, where those were not known; tried again as long as one of them
    /// cannot be had.
    fn go_back(&self) {
        let Some(committed) = self.committed(&self.context().tracker.unknown()) else {
            return;
        };
        // Others begin where the group's offsets say.
        for (partition, committed) in &committed {
            if !self.context().pauses().has_started(partition) {
                continue;
            }
            let offset = committed
                .as_ref()
                .map_or(Offset::Beginning, |(offset, _)| Offset::Offset(*offset));
            let sought = self
                .consumer
                .seek(&partition.topic, partition.partition, offset, SEEK_MAX);
            if let Err(error) = sought {
                self.context()
                    .failed("begin to read at the group's offset", &error);
                return;
            }
        }
        self.recall(&committed);
        self.goes_back.set(false);
    }

    /// What the group has committed of `partitions`; `None` when the broker does not say.
    fn committed(&self, partitions: &[TopicPartition]) -> Option<Vec<convert::Committed>> {
        let offsets = self
            .consumer
            .committed_offsets(list(partitions.iter()), OFFSETS_MAX);
        let offsets = offsets.and_then(|offsets| {
            offsets
                .elements()
                .iter()
                .try_for_each(TopicPartitionListElem::error)?;
            Ok(offsets)
        });
        match offsets {
            Ok(offsets) => Some(convert::committed(&offsets)),
            Err(error) => {
                self.context().failed("question for the group's offsets", &error);
                None
            }
        }
    }

    /// Takes note of what the group has committed: what is answered, and where reading begins.
    fn recall(&self, committed: &[convert::Committed]) {
        let context = self.context();
        for (partition, committed) in committed {
            let committed = committed
                .as_ref()
                .map(|(offset, memory)| (*offset, memory.as_str()));
            context.tracker.recall(partition, committed);
            if let Some((offset, _)) = committed {
                context.unread().begin(partition, offset);
            }
        }
    }

    /// Makes sure that it is known what the group has committed of a partition before its first record is
    /// passed on; `false` when that has to be asked again, and the record read again, first.
    fn is_recalled(&self, partition: &TopicPartition) -> bool {
        let unknown = self.context().tracker.unknown();
        if !unknown.contains(partition) {
            return true;
        }
        if self.goes_back.get() {
            return false;
        }
        match self.committed(&unknown) {
            Some(committed) => self.recall(&committed),
            // A repeat is no harm, and deleted records may go uncounted.
            None if self.context().transactions.is_none() => {
                for partition in &unknown {
                    self.context().tracker.recall(partition, None);
                }
            }
            None => {
                self.goes_back.set(true);
                return false;
            }
        }
        true
    }

    /// Hands a message on, unless its partition is not ours any more, or it is being worked on or answered
    /// already.
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
        context.pauses().start(&partition);
        if !self.is_recalled(&partition) {
            return; // it is read again
        }
        context.unread().read(&partition, message.offset());
        let record = convert::record(message, topic.clone(), epoch);
        match context
            .tracker
            .admit(&record.record_offset, convert::weight(&record))
        {
            Admission::New => context.outbox.push(SourceEvent::Record(record)),
            Admission::Answered => metrics::record_answered_before(),
            Admission::InFlight | Admission::Void => {}
        }
    }

    /// Pauses all partitions when enough is in flight, until less than half of it is, or those that have too
    /// much in flight by themselves.
    fn balance(&self) {
        let context = self.context();
        let (wanted, paused) = {
            let mut pauses = context.pauses();
            pauses.is_full = self.is_full(pauses.is_full);
            context.tracker.tell_full(pauses.is_full);
            let wanted = pauses.wanted(&context.tracker);
            if wanted == pauses.paused {
                return;
            }
            (wanted, pauses.paused.clone())
        };
        let pause = self.consumer.pause(&list(wanted.difference(&paused)));
        match pause.and_then(|()| self.resume(&list(paused.difference(&wanted)))) {
            Ok(()) => {
                context.pauses().paused = wanted;
                self.tell_paused();
            }
            Err(error) => warn!(%error, "failed to pause or resume partitions; it is tried again"),
        }
    }

    /// Whether nothing more is to be read.
    fn is_full(&self, was_full: bool) -> bool {
        let context = self.context();
        let (unfinished, budget) = (context.tracker.busy(), context.tracker.budget());
        if was_full {
            let has_capacity = !self.is_closing
                && context.outbox.has_room()
                && unfinished <= self.in_flight_records_max / 2
                && budget.is_below_half();
            return !has_capacity;
        }
        self.is_closing
            || context.outbox.is_full()
            || unfinished >= self.in_flight_records_max
            || budget.is_over()
    }

    /// Resumes partitions, at once: librdkafka (2.12) does not wake the thread of their broker, which, where
    /// nothing else is fetched from it, looks for partitions to fetch once a second only. A request does.
    fn resume(&self, partitions: &TopicPartitionList) -> Result<(), ClientError> {
        if partitions.count() == 0 {
            return Ok(());
        }
        self.consumer.resume(partitions)?;
        let mut ends = partitions.clone();
        ends.set_all_offsets(Offset::End)?;
        if let Err(error) = self.consumer.offsets_for_times(ends, WAKE_MAX) {
            debug!(%error, "partitions are resumed, and read a little later");
        }
        Ok(())
    }

    fn tell_paused(&self) {
        let paused = self.context().pauses().paused.len();
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
        self.is_closing = true;
        while self.context().tracker.unfinished() > 0 && Instant::now() < deadline {
            if let Err(reason) = self.turn() {
                error!(reason, "the consumer failed while it drained");
                break;
            }
        }
        let deadline = deadline.max(Instant::now() + COMMIT_RETRY_MAX);
        while !self.commit_finally() && Instant::now() < deadline {
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

    /// Commits everything that is finished; `false` when that has to be tried again.
    fn commit_finally(&self) -> bool {
        let context = self.context();
        match context.transactions {
            Some(_) => context.conclude_transactions(&self.consumer),
            None => {
                let positions = context.tracker.positions();
                context.commit_now(&self.consumer, &positions).is_ok()
            }
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
        tracker.revoke(&tracker.assigned()); // where the group was lost, nobody noticed
        if let Some(outcomes) = tracker.outcomes() {
            outcomes.close();
        }
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

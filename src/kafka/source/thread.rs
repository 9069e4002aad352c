//! The poll loop: never blocks, never stops while the source lives.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::{BorrowedMessage, Message};
use tokio::sync::oneshot;
use tracing::{debug, error, warn};

use super::context::{Outbox, SourceContext, Status, list};
use super::{Closed, Command, SourceConfig, SourceEvent};
use crate::kafka::budget::OffsetTracker;
use crate::kafka::error::{KafkaError, reason};
use crate::kafka::offset_tracker::{Admission, TopicPartition};
use crate::kafka::{client, convert};

/// Longest the loop waits for a record: how soon it notices an order.
const POLL: Duration = Duration::from_millis(50);
/// The same while partitions are paused: how soon it notices that there is room again.
const POLL_PAUSED: Duration = Duration::from_millis(5);
/// Longest that going back to unfinished records may take.
const SEEK_MAX: Duration = Duration::from_secs(5);
/// Least time that a last commit may take, while the group is sharing out its partitions.
const COMMIT_RETRY_MAX: Duration = Duration::from_secs(5);
/// The same complaint is logged once in this time.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);

/// The thread's own state.
pub(super) struct Reading {
    consumer: BaseConsumer<SourceContext>,
    orders: flume::Receiver<Command>,
    topics: Vec<Arc<str>>,
    in_flight_records_max: usize,
    commit_interval: Duration,
    next_commit: Instant,
    /// The owner asked for a pause.
    held: bool,
    complaints: HashMap<String, Instant>,
}

/// Why the loop ends.
enum End {
    /// After a drain that has until the deadline.
    Close(Instant, Option<oneshot::Sender<Closed>>),
    Abandon(oneshot::Sender<()>),
    Fatal(String),
}

impl Reading {
    pub(super) fn new(
        config: &SourceConfig,
        tracker: OffsetTracker,
        events: flume::Sender<SourceEvent>,
        orders: flume::Receiver<Command>,
        status: Arc<Status>,
    ) -> Result<Self, KafkaError> {
        let kafka = &config.kafka;
        let context = SourceContext {
            tracker,
            outbox: Outbox::new(events),
            status,
            revoke_wait_max: Duration::from_millis(kafka.revoke_wait_ms_max),
            closing: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            commits_sent: Mutex::default(),
        };
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
            complaints: HashMap::new(),
        })
    }

    /// Reads until it is told to end.
    pub(super) fn run(mut self) {
        let end = loop {
            if let Some(end) = self.take_orders() {
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
            End::Abandon(done) => self.abandon(done),
            End::Fatal(reason) => self.fail(reason),
        }
    }

    /// One round: pass on what waits, pause or resume, poll once, commit when it is time.
    fn turn(&mut self) -> Result<(), String> {
        self.context().outbox.flush();
        self.balance();
        let paused = self.context().paused.load(Ordering::Relaxed);
        let until_commit = self.next_commit.saturating_duration_since(Instant::now());
        let wait = until_commit.min(if paused { POLL_PAUSED } else { POLL });
        let complaint = match self.consumer.poll(wait) {
            None => None,
            Some(Ok(message)) => {
                self.take(&message);
                None
            }
            Some(Err(ClientError::MessageConsumptionFatal(code))) => return Err(code.to_string()),
            Some(Err(error)) => Some(reason(&error)),
        };
        if let Some(complaint) = complaint {
            self.complain(complaint);
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
        let record = convert::record(message, topic.clone(), epoch);
        match context
            .tracker
            .admit(&record.record_offset, convert::weight(&record))
        {
            Admission::New => context.outbox.push(SourceEvent::Record(record)),
            Admission::InFlight | Admission::Finished | Admission::Void => {}
        }
    }

    /// Pauses the partitions when enough is in flight, resumes them when less than half of it is.
    fn balance(&self) {
        let context = self.context();
        let (unfinished, budget) = (context.tracker.unfinished(), context.tracker.budget());
        let paused = context.paused.load(Ordering::Relaxed);
        let enough = self.held
            || context.outbox.is_full()
            || unfinished >= self.in_flight_records_max
            || budget.is_over();
        let room = !self.held
            && context.outbox.has_room()
            && unfinished <= self.in_flight_records_max / 2
            && budget.is_below_half();
        let pause = if paused { !room } else { enough };
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
            Ok(()) => context.paused.store(pause, Ordering::Relaxed),
            Err(error) => warn!(%error, pause, "failed to pause or resume partitions; it is tried again"),
        }
    }

    fn take_orders(&mut self) -> Option<End> {
        loop {
            match self.orders.try_recv() {
                Ok(Command::Read(read)) => self.held = !read,
                Ok(Command::Replay(done)) => {
                    let _ = done.send(self.replay()); // who asked may have gone
                }
                Ok(Command::Close { drain, done }) => {
                    return Some(End::Close(Instant::now() + drain, Some(done)));
                }
                Ok(Command::Abandon(done)) => return Some(End::Abandon(done)),
                Err(flume::TryRecvError::Empty) => return None,
                Err(flume::TryRecvError::Disconnected) => return Some(End::Close(Instant::now(), None)),
            }
        }
    }

    fn replay(&self) -> Result<usize, KafkaError> {
        let context = self.context();
        context.outbox.drop_records(|_| true);
        let positions = context.tracker.replay();
        if positions.is_empty() {
            return Ok(0);
        }
        let failed = |reason: String| KafkaError::Replay { reason };
        let result = self
            .consumer
            .seek_partitions(list(&positions), SEEK_MAX)
            .map_err(|error| failed(reason(&error)))?;
        for element in result.elements() {
            element.error().map_err(|error| failed(reason(&error)))?;
        }
        Ok(positions.len())
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

    fn abandon(self, done: oneshot::Sender<()>) {
        self.context().closing.store(true, Ordering::Relaxed);
        self.context().abandoned.store(true, Ordering::Relaxed);
        self.leave();
        let _ = done.send(()); // who asked may have gone
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

    fn complain(&mut self, complaint: String) {
        let now = Instant::now();
        let recent = |last: &Instant| now.duration_since(*last) < COMPLAINT_INTERVAL;
        if self.complaints.get(&complaint).is_some_and(recent) {
            debug!(reason = complaint, "reading fails for now");
            return;
        }
        warn!(reason = complaint, "reading fails for now; it is tried again");
        self.complaints.retain(|_, last| recent(last));
        self.complaints.insert(complaint, now);
    }

    fn context(&self) -> &SourceContext {
        self.consumer.context()
    }
}

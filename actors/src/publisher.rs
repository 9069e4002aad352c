//! `Publisher`: answers go to Kafka, then offsets are released.
//!
//! Receives [`PublishAnswer`], [`PublishPartial`], [`PublishDeadLetter`], [`PublishEvent`]. An offset is
//! released only when the broker has acknowledged the answer or the dead letter of its record. Sends run side
//! by side, a bounded number of them; one that fails is repeated for as long as the process lives, and while
//! it does the bound fills and holds the pipeline back. What the broker refuses for good is shortened; an
//! answer that it refuses even so becomes a dead letter, and a dead letter that it refuses even so is
//! counted, published as an event and released, so that no partition stands still behind it.
//!
//! Exactly once, what is published of a request goes to the request's tracker instead, and the source writes
//! it and commits the offsets in one transaction. Partial answers and other events are sent as ever.

mod delivery;
mod shorten;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kameo::error::Infallible;
use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::prelude::*;
use speechverse::kafka::config::TopicsConfig;
use speechverse::kafka::{OffsetTracker, RecordsDeleted, Settled, Sink, SinkError};
use speechverse::telemetry::{StageItem, metrics};
use speechverse::util::{Clock, Ticks};
use speechverse::wire::dead_letter::{Reason, Rejection, Stage, dead_letter};
use speechverse::wire::event::{Event, EventKind};
use speechverse::wire::{OutgoingRecord, Record, RecordOffset};
use tokio::sync::Semaphore;
use tracing::{Instrument as _, debug, error, warn};

use self::delivery::{About, Delivery};
use self::shorten::shorten;
use crate::messages::{OrphanedRecord, PublishAnswer, PublishDeadLetter, PublishEvent, PublishPartial};

/// First pause before a send is repeated; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest pause before a send is repeated.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often the producer is looked at while nothing is sent.
const PRODUCER_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Everything a [`Publisher`] needs to start, and to start again.
#[derive(Clone)]
pub struct PublisherArgs {
    /// Writes records.
    pub sink: Sink,
    /// By topic: which offsets may be committed.
    pub trackers: HashMap<String, OffsetTracker>,
    /// Names of the topics.
    pub topics: TopicsConfig,
    /// Value of `ce_source`.
    pub source: Arc<str>,
    /// Request contexts that a stage let go of.
    pub orphans: flume::Receiver<OrphanedRecord>,
    /// Records that retention deleted before they were read, to be published as events.
    pub deleted: flume::Receiver<RecordsDeleted>,
    /// By which sends are repeated and the producer is looked at.
    pub clock: Clock,
    /// Sends that may be on their way at once.
    pub sends_max: usize,
    /// Longest that a stop waits for them.
    pub drain: Duration,
}

/// The publisher stage.
pub struct Publisher {
    args: PublisherArgs,
    permits: Arc<Semaphore>,
    stopping: Arc<AtomicBool>,
    producer_checks: Ticks,
}

impl Actor for Publisher {
    type Args = PublisherArgs;
    type Error = Infallible;

    async fn on_start(args: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        let permits = Arc::new(Semaphore::new(args.sends_max));
        Ok(Self {
            permits,
            stopping: Arc::new(AtomicBool::new(false)),
            producer_checks: Ticks::new(args.clock.clone(), PRODUCER_CHECK_INTERVAL),
            args,
        })
    }

    /// Takes lost contexts and reports of deleted records as they come, beside the mailbox.
    async fn next(
        &mut self,
        _: WeakActorRef<Self>,
        mailbox: &mut MailboxReceiver<Self>,
    ) -> Result<Option<Signal<Self>>, Self::Error> {
        loop {
            tokio::select! {
                biased;
                signal = mailbox.recv() => return Ok(signal),
                Ok(orphan) = self.args.orphans.recv_async() => self.send_orphan(orphan).await,
                Ok(deleted) = self.args.deleted.recv_async() => self.send_deleted(deleted).await,
                () = self.producer_checks.next() => {
                    if let Err(error) = self.args.sink.renew_if_failed().await {
                        self.args.sink.log_repeat(&error);
                    }
                }
            }
        }
    }

    /// Waits for the sends that are on their way, for as long as a drain may take; what cannot be sent is
    /// read again after the restart. After a failure they go on: nobody reads their records again then.
    async fn on_stop(&mut self, _: WeakActorRef<Self>, reason: ActorStopReason) -> Result<(), Self::Error> {
        if matches!(reason, ActorStopReason::Normal) {
            self.stopping.store(true, Ordering::Release);
            let everything = u32::try_from(self.args.sends_max).unwrap_or(u32::MAX);
            let _ = tokio::time::timeout(self.args.drain, self.permits.acquire_many(everything)).await;
        }
        Ok(())
    }
}

impl Message<PublishAnswer> for Publisher {
    type Reply = ();

    async fn handle(&mut self, message: PublishAnswer, _: &mut Context<Self, Self::Reply>) {
        let PublishAnswer { answer, mut context } = message;
        context.dequeued();
        let mut inner = context.complete();
        let item = inner.take_item();
        let outgoing = answer.to_record(
            self.args.topic_of_answers(inner.request.reply_topic.as_ref()),
            inner.record.key.clone(),
            &self.args.source,
            &inner.request.trace,
        );
        let (admitted, audio_seconds) = (inner.admitted, inner.audio_seconds);
        let kind = answer.kind.as_str();
        let done = move || metrics::answer_published(kind, admitted.elapsed(), audio_seconds);
        let about = About::Answer {
            record: inner.record,
            earlier: inner.earlier,
            request_id: inner.request.id,
        };
        self.send(outgoing, about, item, audio_seconds, done)
            .instrument(inner.span)
            .await;
    }
}

impl Message<PublishPartial> for Publisher {
    type Reply = ();

    /// Sends once, where a send is free; releases nothing.
    async fn handle(&mut self, message: PublishPartial, _: &mut Context<Self, Self::Reply>) {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return;
        };
        let PublishPartial {
            answer,
            reply_topic,
            key,
            trace,
        } = message;
        let topic = self.args.topic_of_answers(reply_topic.as_ref());
        let outgoing = answer.to_record(topic, key, &self.args.source, &trace);
        let sink = self.args.sink.clone();
        let sending = async move {
            match sink.send(outgoing).await {
                Ok(_) => metrics::partial_published(),
                Err(error) => debug!(%error, "a partial answer is not delivered"),
            }
            drop(permit);
        };
        begin(sending).await;
    }
}

impl Message<PublishDeadLetter> for Publisher {
    type Reply = ();

    async fn handle(&mut self, message: PublishDeadLetter, _: &mut Context<Self, Self::Reply>) {
        self.send_dead_letter(message).await;
    }
}

impl Message<PublishEvent> for Publisher {
    type Reply = ();

    async fn handle(&mut self, message: PublishEvent, _: &mut Context<Self, Self::Reply>) {
        self.send_event(message.event).await;
    }
}

impl Publisher {
    async fn send_orphan(&self, orphan: OrphanedRecord) {
        let message = "the stage that held this record failed; publish it again to try once more";
        let order = PublishDeadLetter {
            audio_seconds: orphan.audio_seconds,
            earlier: orphan.earlier,
            request_id: orphan.request_id,
            ..PublishDeadLetter::at_admission(
                orphan.record,
                Rejection::new(Reason::InternalError, orphan.stage, message),
            )
        };
        self.send_dead_letter(order).await;
    }

    async fn send_deleted(&self, deleted: RecordsDeleted) {
        let (topic, partition) = (deleted.partition.topic, deleted.partition.partition);
        let id = format!("{topic}/{partition}");
        let what = EventKind::RecordsDeleted {
            topic: topic.to_string(),
            partition,
            first_offset: deleted.first_offset,
            records: deleted.records,
        };
        self.send_event(Event::now(id, what)).await;
    }

    async fn send_event(&self, event: Event) {
        let topic = Arc::from(self.args.topics.events.as_str());
        let outgoing = event.to_record(topic, &self.args.source);
        self.send(outgoing, About::Event, None, 0.0, || ()).await;
    }

    async fn send_dead_letter(&self, message: PublishDeadLetter) {
        let PublishDeadLetter {
            record,
            rejection,
            span,
            audio_seconds,
            earlier,
            request_id,
        } = message;
        let item = StageItem::enter(Stage::Publish.as_str(), Duration::ZERO, &span);
        let id = request_id.as_deref();
        let outgoing = span.in_scope(|| self.args.dead_letter(&record, &rejection, earlier.len(), id));
        let about = About::DeadLetter {
            record_offset: record.record_offset,
            earlier,
        };
        let (reason, stage) = (rejection.reason.as_str(), rejection.stage.as_str());
        let done = move || metrics::dead_letter_published(reason, stage);
        self.send(outgoing, about, Some(item), audio_seconds, done)
            .instrument(span)
            .await;
    }

    /// Sends in the background, up to the bound; the records behind it are released after the
    /// acknowledgement, or when the broker takes no word of them at all.
    async fn send(
        &self,
        outgoing: OutgoingRecord,
        about: About,
        item: Option<StageItem>,
        audio_seconds: f64,
        done: impl FnOnce() + Send + 'static,
    ) {
        // What waits for a transaction takes no permit: those that it waits for may have to come here yet.
        let permits = u32::from(self.args.transactions_of(&about).is_none());
        let permit = Arc::clone(&self.permits).acquire_many_owned(permits).await;
        let (args, stopping) = (self.args.clone(), Arc::clone(&self.stopping));
        let sending = async move {
            let delivery = args.deliver(outgoing, &about, &stopping).await;
            let is_void = matches!(delivery, Delivery::Void);
            let over = match delivery {
                Delivery::Acknowledged => {
                    done();
                    args.release(&about);
                    true
                }
                Delivery::Refused(error) => args.refused(about, &error, &stopping).await,
                Delivery::Void | Delivery::Stopped => false,
            };
            if (over || is_void) && audio_seconds > 0.0 {
                metrics::utterance_left(audio_seconds);
            }
            // Where it is not over, the record is read again: the stage could not finish it.
            if let Some(item) = item.filter(|_| over) {
                item.finish();
            }
            drop(permit);
        };
        begin(sending.in_current_span()).await;
    }
}

impl PublisherArgs {
    /// Where the answers to a request go.
    fn topic_of_answers(&self, reply_topic: Option<&Arc<str>>) -> Arc<str> {
        let results = || Arc::from(self.topics.results.as_str());
        reply_topic.cloned().unwrap_or_else(results)
    }

    fn dead_letter(
        &self,
        record: &Record,
        rejection: &Rejection,
        earlier_chunks: usize,
        request_id: Option<&str>,
    ) -> OutgoingRecord {
        let (reason, stage) = (rejection.reason.as_str(), rejection.stage.as_str());
        warn!(reason, stage, message = %rejection.message, record_offset = ?record.record_offset, "dead letter");
        let topic = Arc::from(self.topics.dead_letters.as_str());
        dead_letter(
            record,
            rejection,
            earlier_chunks,
            request_id,
            topic,
            self.clock.time(),
        )
    }

    /// What becomes of a record that the broker does not take; `true` when it is over with it.
    async fn refused(&self, about: About, error: &SinkError, stopping: &AtomicBool) -> bool {
        let (about, error) = match about {
            About::Answer {
                record,
                earlier,
                request_id,
            } => {
                metrics::record_refused("answer");
                let message = format!("the answer could not be published: {error}");
                let rejection = Rejection::new(Reason::AnswerRefused, Stage::Publish, message);
                let letter = self.dead_letter(&record, &rejection, earlier.len(), Some(&request_id));
                let record_offset = record.record_offset;
                let about = About::DeadLetter {
                    record_offset,
                    earlier,
                };
                match self.deliver(letter, &about, stopping).await {
                    Delivery::Acknowledged => {
                        let (reason, stage) = (rejection.reason.as_str(), rejection.stage.as_str());
                        metrics::dead_letter_published(reason, stage);
                        self.release(&about);
                        return true;
                    }
                    Delivery::Void | Delivery::Stopped => return false,
                    Delivery::Refused(error) => (about, error),
                }
            }
            About::DeadLetter { .. } => (about, error.clone()),
            About::Event => {
                error!(%error, "an event is refused and given up");
                metrics::record_refused("event");
                return true;
            }
        };
        // Nothing that the broker takes can be said of it on its topic: said elsewhere, and let go.
        metrics::record_refused("dead_letter");
        if let Some(record_offset) = about.record_offsets().last() {
            error!(%error, ?record_offset, "the dead letter of a record is refused and given up, its offset is released");
            let what = EventKind::RecordRefused {
                topic: record_offset.topic.to_string(),
                partition: record_offset.partition,
                offset: record_offset.offset,
                reason: error.to_string(),
            };
            let id = format!("{}/{}", record_offset.topic, record_offset.partition);
            let event = Event::now(id, what).to_record(Arc::from(self.topics.events.as_str()), &self.source);
            match self.deliver(event, &about, stopping).await {
                Delivery::Acknowledged => {}
                Delivery::Refused(error) => {
                    error!(%error, "an event is refused and given up");
                    metrics::record_refused("event");
                }
                Delivery::Void | Delivery::Stopped => return false,
            }
        }
        self.release(&about);
        true
    }

    /// Repeats a send until the broker acknowledges it, refuses it for good, or the process stops. Exactly
    /// once, the offsets that it is about are committed with it.
    async fn deliver(&self, mut outgoing: OutgoingRecord, about: &About, stopping: &AtomicBool) -> Delivery {
        if let Some(tracker) = self.transactions_of(about) {
            return settle(tracker, outgoing, about).await;
        }
        let started = self.clock.now();
        let mut pause = RETRY_FIRST;
        loop {
            if self.is_void(about) {
                debug!(topic = %outgoing.topic, "not sent, the partitions of its records were taken away");
                return Delivery::Void;
            }
            match self.sink.send(outgoing.clone()).await {
                Ok(_) => return Delivery::Acknowledged,
                Err(error) if error.is_about_the_record() => {
                    // It will never fit. The name of what happened still does.
                    if !shorten(&mut outgoing) {
                        return Delivery::Refused(error);
                    }
                    error!(%error, topic = %outgoing.topic, "a record is refused, it is sent shortened");
                }
                Err(error) => {
                    if stopping.load(Ordering::Acquire) {
                        error!(%error, topic = %outgoing.topic, "not delivered before the stop, its record is read again after the restart");
                        return Delivery::Stopped;
                    }
                    self.sink.log_repeat(&error);
                    debug!(%error, topic = %outgoing.topic, elapsed = ?(self.clock.now() - started), "not delivered, trying again");
                    self.clock.sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// The tracker that a send goes to, where its records are answered exactly once.
    fn transactions_of(&self, about: &About) -> Option<&OffsetTracker> {
        let tracker = self.trackers.get(&*about.record_offsets().last()?.topic)?;
        tracker.is_transactional().then_some(tracker)
    }

    /// Whether whoever has the partitions of its records now reads all of them again.
    fn is_void(&self, about: &About) -> bool {
        let is_current = |record_offset: &&RecordOffset| {
            let tracker = self.trackers.get(&*record_offset.topic);
            tracker.is_none_or(|tracker| tracker.is_current(record_offset))
        };
        let record_offsets = about.record_offsets();
        !record_offsets.is_empty() && !record_offsets.iter().any(is_current)
    }

    /// Releases a record's own record_offset and those of the chunks before it.
    fn release(&self, about: &About) {
        for record_offset in about.record_offsets() {
            if let Some(tracker) = self.trackers.get(&*record_offset.topic) {
                tracker.release(record_offset);
            }
        }
    }
}

/// Begins a send here, so that it stands before what follows it in the producer's queue, and goes on with it
/// in a task: tasks begin in any order.
async fn begin(sending: impl Future<Output = ()> + Send + 'static) {
    let mut sending = Box::pin(sending);
    tokio::select! {
        biased;
        () = &mut sending => {}
        () = std::future::ready(()) => {
            tokio::spawn(sending);
        }
    }
}

/// Hands a record, and the offsets that it is about, to the next transaction, until one with them is
/// committed.
async fn settle(tracker: &OffsetTracker, mut outgoing: OutgoingRecord, about: &About) -> Delivery {
    loop {
        let record_offsets = about.record_offsets().into_iter().cloned().collect();
        match tracker.settle(record_offsets, vec![outgoing.clone()]).await {
            Settled::Committed => return Delivery::Acknowledged,
            Settled::Void => return Delivery::Void,
            Settled::Stopped => return Delivery::Stopped,
            Settled::Refused(error) => {
                if !shorten(&mut outgoing) {
                    return Delivery::Refused(error);
                }
                error!(%error, topic = %outgoing.topic, "a record is refused, it is sent shortened");
            }
        }
    }
}

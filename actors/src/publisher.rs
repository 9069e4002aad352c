//! `Publisher`: answers go to Kafka, then offsets are released.
//!
//! Receives [`PublishAnswer`], [`PublishPartial`], [`PublishDeadLetter`], [`PublishEvent`]. An offset
//! is released only when the broker has acknowledged the answer or the dead letter of its record. Sends run side by
//! side, a bounded number of them; one that fails is repeated for as long as the process lives, and while it does the
//! bound fills and holds the pipeline back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kameo::error::Infallible;
use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::prelude::*;
use speechverse::kafka::config::TopicsConfig;
use speechverse::kafka::{OffsetTracker, Sink};
use speechverse::telemetry::metrics;
use speechverse::wire::dead_letter::{Reason, Rejection, dead_letter};
use speechverse::wire::{OutgoingRecord, RecordOffset};
use tokio::sync::Semaphore;
use tracing::{debug, error, warn};

use crate::messages::{OrphanedRecord, PublishAnswer, PublishDeadLetter, PublishEvent, PublishPartial};

/// First pause before a send is repeated; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest pause before a send is repeated.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Header of a record whose value the broker refuses: how many bytes it had.
pub const VALUE_OMITTED_HEADER: &str = "speechverse_value_omitted";
/// Header of a record that the broker refuses even so: how many headers were left out.
pub const HEADERS_OMITTED_HEADER: &str = "speechverse_headers_omitted";
/// Header of a record that the broker refuses even so: how many bytes its key had.
pub const KEY_OMITTED_HEADER: &str = "speechverse_key_omitted";

/// Headers that we add ourselves, at most; a dead letter's stand behind those of its record.
const OWN_HEADERS_MAX: usize = 16;
/// Longest header that we add ourselves, name and value together.
const OWN_HEADER_BYTES_MAX: usize = 2_048;

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
    pub lost: flume::Receiver<OrphanedRecord>,
    /// Sends that may be on their way at once.
    pub sends_max: usize,
}

/// The publisher stage.
pub struct Publisher {
    args: PublisherArgs,
    permits: Arc<Semaphore>,
    stopping: Arc<AtomicBool>,
}

impl Actor for Publisher {
    type Args = PublisherArgs;
    type Error = Infallible;

    async fn on_start(args: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        let permits = Arc::new(Semaphore::new(args.sends_max));
        Ok(Self {
            args,
            permits,
            stopping: Arc::new(AtomicBool::new(false)),
        })
    }

    /// Takes lost contexts as they come, beside the mailbox.
    async fn next(
        &mut self,
        _: WeakActorRef<Self>,
        mailbox: &mut MailboxReceiver<Self>,
    ) -> Result<Option<Signal<Self>>, Self::Error> {
        loop {
            let lost = tokio::select! {
                biased;
                signal = mailbox.recv() => return Ok(signal),
                lost = self.args.lost.recv_async() => lost,
            };
            let Ok(lost) = lost else {
                return Ok(mailbox.recv().await);
            };
            let message = "the stage that held this record failed; publish it again to try once more";
            let order = PublishDeadLetter {
                rejection: Rejection::new(Reason::InternalError, lost.stage, message),
                record: lost.record,
                audio_seconds: lost.audio_seconds,
                earlier: lost.earlier,
            };
            self.send_dead_letter(order).await;
        }
    }

    /// Waits for the sends that are on their way; what cannot be sent is read again after the restart.
    async fn on_stop(&mut self, _: WeakActorRef<Self>, _: ActorStopReason) -> Result<(), Self::Error> {
        self.stopping.store(true, Ordering::Release);
        let everything = u32::try_from(self.args.sends_max).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(RETRY_MAX, self.permits.acquire_many(everything)).await;
        Ok(())
    }
}

impl Message<PublishAnswer> for Publisher {
    type Reply = ();

    async fn handle(&mut self, message: PublishAnswer, _: &mut Context<Self, Self::Reply>) {
        let PublishAnswer { answer, context } = message;
        let inner = context.complete();
        let outgoing = answer.to_record(
            Arc::from(self.args.topics.results.as_str()),
            inner.record.key.clone(),
            &self.args.source,
            &inner.request.trace,
        );
        let (admitted, audio_seconds) = (inner.admitted, inner.audio_seconds);
        let kind = answer.kind.as_str();
        let done = move || metrics::answer_published(kind, admitted.elapsed(), audio_seconds);
        self.send(
            outgoing,
            settled(inner.record.record_offset, inner.earlier),
            audio_seconds,
            done,
        )
        .await;
    }
}

impl Message<PublishPartial> for Publisher {
    type Reply = ();

    /// Sends once, where there is room; releases nothing.
    async fn handle(&mut self, message: PublishPartial, _: &mut Context<Self, Self::Reply>) {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return;
        };
        let PublishPartial { answer, key, trace } = message;
        let topic = Arc::from(self.args.topics.results.as_str());
        let outgoing = answer.to_record(topic, key, &self.args.source, &trace);
        let sink = self.args.sink.clone();
        let mut sending = Box::pin(async move {
            match sink.send(outgoing).await {
                Ok(_) => metrics::partial_published(),
                Err(error) => debug!(%error, "a partial answer is not delivered"),
            }
            drop(permit);
        });
        // Begun here and not in its task, so that it stands before what follows it in the producer's queue.
        tokio::select! {
            biased;
            () = &mut sending => {}
            () = std::future::ready(()) => {
                tokio::spawn(sending);
            }
        }
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
        let topic = Arc::from(self.args.topics.events.as_str());
        let outgoing = message.event.to_record(topic, &self.args.source);
        self.send(outgoing, Vec::new(), 0.0, || ()).await;
    }
}

impl Publisher {
    async fn send_dead_letter(&self, message: PublishDeadLetter) {
        let PublishDeadLetter {
            record,
            rejection,
            audio_seconds,
            earlier,
        } = message;
        let (reason, stage) = (rejection.reason.as_str(), rejection.stage.as_str());
        warn!(reason, stage, message = %rejection.message, record_offset = ?record.record_offset, "dead letter");
        let outgoing = dead_letter(
            &record,
            &rejection,
            Arc::from(self.args.topics.dead_letters.as_str()),
        );
        let done = move || metrics::dead_letter_published(reason, stage);
        self.send(
            outgoing,
            settled(record.record_offset, earlier),
            audio_seconds,
            done,
        )
        .await;
    }

    /// Sends in the background, up to the bound; the records behind it are released after the acknowledgement.
    async fn send(
        &self,
        outgoing: OutgoingRecord,
        record_offsets: Vec<RecordOffset>,
        audio_seconds: f64,
        done: impl FnOnce() + Send + 'static,
    ) {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let args = self.args.clone();
        let stopping = Arc::clone(&self.stopping);
        tokio::spawn(async move {
            let acknowledged = deliver(&args.sink, outgoing, &stopping).await;
            if acknowledged {
                done();
                for record_offset in &record_offsets {
                    release(&args, record_offset);
                }
                if audio_seconds > 0.0 {
                    metrics::utterance_left(audio_seconds);
                }
            }
            drop(permit);
        });
    }
}

/// Repeats a send until the broker acknowledges it, or the process stops; `true` when it was acknowledged.
async fn deliver(sink: &Sink, mut outgoing: OutgoingRecord, stopping: &AtomicBool) -> bool {
    let started = Instant::now();
    let mut pause = RETRY_FIRST;
    loop {
        match sink.send(outgoing.clone()).await {
            Ok(_) => return true,
            Err(error) if error.is_about_the_record() => {
                // It will never fit. The name of what happened still does.
                error!(%error, topic = %outgoing.topic, "a record is refused, it is sent shortened");
                if !shorten(&mut outgoing) {
                    return false;
                }
            }
            Err(error) => {
                if stopping.load(Ordering::Acquire) {
                    error!(%error, topic = %outgoing.topic, "not delivered before the stop, its record is read again after the restart");
                    return false;
                }
                warn!(%error, topic = %outgoing.topic, elapsed = ?started.elapsed(), "not delivered, trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Takes away what the record can best do without, and says so in a header; `false` when nothing is left to take.
fn shorten(outgoing: &mut OutgoingRecord) -> bool {
    let count = |name: &str, number: usize| (name.to_owned(), Some(bytes::Bytes::from(number.to_string())));
    let headers = &mut outgoing.headers;
    if let Some(value) = outgoing.value.take() {
        headers.push(count(VALUE_OMITTED_HEADER, value.len()));
        return true;
    }
    let before = headers.len();
    if before > OWN_HEADERS_MAX {
        headers.drain(..=before - OWN_HEADERS_MAX); // ours come last; one place is for the note below
    }
    headers.retain(|(name, value)| {
        name.len() + value.as_ref().map_or(0, |value| value.len()) <= OWN_HEADER_BYTES_MAX
    });
    let gone = before - headers.len();
    if gone > 0 {
        headers.push(count(HEADERS_OMITTED_HEADER, gone));
        return true;
    }
    let Some(key) = outgoing.key.take() else {
        return false;
    };
    headers.push(count(KEY_OMITTED_HEADER, key.len()));
    true
}

/// A record's own record_offset and those of the chunks before it.
fn settled(record_offset: RecordOffset, mut earlier: Vec<RecordOffset>) -> Vec<RecordOffset> {
    earlier.push(record_offset);
    earlier
}

fn release(args: &PublisherArgs, record_offset: &RecordOffset) {
    if let Some(tracker) = args.trackers.get(&*record_offset.topic) {
        tracker.release(record_offset);
    }
}

//! The context that travels with an utterance or a record, and where it goes when nobody ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use speechverse::audio::Damage;
use speechverse::inference::Generation;
use speechverse::kafka::{AudioHold, BudgetHold, OffsetTracker};
use speechverse::telemetry::spans::{self, RemoteParent, RequestIdentity};
use speechverse::telemetry::{StageItem, fault_point, metrics};
use speechverse::training::{Control, Yield};
use speechverse::wire::answer::Segment;
use speechverse::wire::dead_letter::{Reason, Rejection, Stage};
use speechverse::wire::request::Request;
use speechverse::wire::{Record, RecordOffset};
use tokio::sync::OwnedSemaphorePermit;
use tracing::Span;

use crate::fair_queue::QueueEntry;
use crate::interrupt::Interrupt;
use crate::reading::ReadSegment;
pub use crate::times::StageTimes;

/// Whoever joins the answers to the windows of a recording.
pub trait WindowOwner: std::fmt::Debug + Send + Sync {
    /// A window has its answer; the whole, where it was the last one.
    fn answered(&self, number: usize, answer: WindowAnswer) -> Option<Joined>;

    /// A window cannot be answered, so the recording cannot. Its context, unless it has had its outcome, or
    /// is not known yet.
    fn failed(&self, why: Rejection) -> Option<RequestContext>;

    /// Whether the recording has failed, or the window is none after all, so that it need not be worked on.
    fn is_over(&self) -> bool;

    /// Keeps a finished answer back while it is not certain that the window is one; otherwise it comes back,
    /// to be published.
    fn keep(&self, done: WindowDone) -> Option<WindowDone> {
        Some(done)
    }
}

/// The answer to a window.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowAnswer {
    /// Its tokens.
    pub generation: Generation,
    /// Its text.
    pub text: String,
    /// Time spent on it.
    pub times: StageTimes,
}

/// A window's answer on its way out.
#[derive(Debug)]
pub struct WindowDone {
    /// The window's own context.
    pub context: RequestContext,
    /// Which window it is.
    pub part: WindowPart,
    /// The adapter version.
    pub version: String,
    /// Its tokens.
    pub generation: Generation,
    /// Its text.
    pub text: String,
}

/// The answers to all windows as one.
#[derive(Debug)]
pub struct Joined {
    /// The recording's context.
    pub context: RequestContext,
    /// All tokens.
    pub generation: Generation,
    /// All words.
    pub text: String,
}

/// Which window of a recording a context is about.
#[derive(Debug)]
pub struct WindowPart {
    /// Who joins.
    pub owner: Arc<dyn WindowOwner>,
    /// Its number, from 0.
    pub number: usize,
    /// Where its sound is in the recording.
    pub segment: Segment,
    /// Its place among the recording's windows in flight.
    pub place: Option<OwnedSemaphorePermit>,
}

/// Where contexts go that nobody settled: a stage died with them, or a bug dropped them.
#[derive(Clone, Debug)]
pub struct OrphanQueue {
    sender: flume::Sender<OrphanedRecord>,
    closing: Arc<AtomicBool>,
}

/// A record whose stage let go of it without an outcome.
#[derive(Debug)]
pub struct OrphanedRecord {
    /// The record, to be published as a dead letter.
    pub record: Record,
    /// Seconds of its audio, for the in-flight gauge.
    pub audio_seconds: f64,
    /// Where it was.
    pub stage: Stage,
    /// Record offsets of further records that its outcome settles.
    pub earlier: Vec<RecordOffset>,
    /// Id of its request, where one was read.
    pub request_id: Option<String>,
}

impl OrphanQueue {
    /// The two ends: contexts get the first, the publisher the second. Not bounded by itself: it can hold at
    /// most what the ingest admitted.
    pub fn new() -> (Self, flume::Receiver<OrphanedRecord>) {
        let (sender, receiver) = flume::unbounded();
        let closing = Arc::new(AtomicBool::new(false));
        (Self { sender, closing }, receiver)
    }

    /// From now on, contexts that are dropped are abandoned: their records are read again after the restart.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Takes a record that was never admitted from a stage that cannot go on with it.
    pub fn take(&self, record: Record, stage: Stage) {
        self.send(OrphanedRecord {
            record,
            audio_seconds: 0.0,
            stage,
            earlier: Vec::new(),
            request_id: None,
        });
    }

    fn send(&self, orphan: OrphanedRecord) {
        if !self.closing.load(Ordering::Acquire) {
            let _ = self.sender.send(orphan); // without a publisher there is nobody left to tell
        }
    }
}

/// A record that a stage has in hand before it has a context, or that never gets one. Dropped without
/// [`RecordGuard::complete`], it becomes a dead letter, as a context does.
#[derive(Debug)]
pub struct RecordGuard {
    held: Option<(Record, StageItem)>,
    stage: Stage,
    orphans: OrphanQueue,
}

impl RecordGuard {
    /// Holds a record in `stage`, which counts it as an item of its work.
    pub fn new(record: Record, stage: Stage, orphans: OrphanQueue) -> Self {
        let item = StageItem::enter(stage.as_str(), Duration::ZERO, &Span::current());
        let guard = Self {
            held: Some((record, item)),
            stage,
            orphans,
        };
        fault_point(stage.as_str());
        guard
    }

    /// Takes the record out: the stage is done with it, its outcome is in the caller's hands now.
    pub fn complete(self) -> Record {
        let (record, item) = self.take();
        item.finish();
        record
    }

    /// The request that the record turned out to hold: its work is inside the request's span from now on.
    pub fn belongs_to(&mut self, request: &Span) {
        if let Some((_, item)) = &mut self.held {
            item.set_parent(request);
        }
    }

    /// Takes the record out of a stage that cannot go on with it.
    pub fn reject(self) -> Record {
        self.take().0
    }

    fn take(mut self) -> (Record, StageItem) {
        self.held.take().expect("a record is taken once, by value")
    }
}

impl std::ops::Deref for RecordGuard {
    type Target = Record;

    fn deref(&self) -> &Record {
        let held = self.held.as_ref();
        &held.expect("only `take` empties the guard, and it consumes it").0
    }
}

impl Drop for RecordGuard {
    fn drop(&mut self) {
        if let Some((record, _)) = self.held.take() {
            self.orphans.take(record, self.stage);
        }
    }
}

/// The span of a request, continuing the trace that it came with.
pub fn request_span(record_offset: &RecordOffset, request: &Request) -> Span {
    let identity = RequestIdentity {
        request_id: &request.id,
        session: request.session.as_deref(),
        topic: &record_offset.topic,
        partition: record_offset.partition,
        offset: record_offset.offset,
    };
    let parent = RemoteParent {
        trace_id: &request.trace.trace_id,
        span_id: &request.trace.parent_id,
        flags: request.trace.span_flags(),
    };
    spans::request_span(identity, parent)
}

/// What stays with an utterance from admission to its outcome: its record, its request, its clock.
///
/// A context that is dropped without [`RequestContext::complete`] turns its record into a dead letter, so
/// nothing that was admitted can be forgotten, whatever a stage does.
#[derive(Debug)]
pub struct RequestContext {
    inner: Option<Box<RequestState>>,
    orphans: OrphanQueue,
}

/// The contents of a [`RequestContext`].
#[derive(Debug)]
pub struct RequestState {
    /// The record as it was read.
    pub record: Record,
    /// What it asks for.
    pub request: Request,
    /// When it was admitted.
    pub admitted: Instant,
    /// Length of its audio, seconds.
    pub audio_seconds: f64,
    /// Time spent so far.
    pub times: StageTimes,
    /// Which stage holds it.
    pub stage: Stage,
    /// When that stage's queue got it.
    pub queued: Instant,
    /// Record offsets of further records that the outcome settles: the earlier chunks of a stream.
    pub earlier: Vec<RecordOffset>,
    /// Whether its audio is so quiet throughout that there can hardly be speech in it.
    pub no_speech: bool,
    /// Whether its audio goes on behind a long pause.
    pub long_pause: bool,
    /// What of its audio could not be decoded.
    pub damage: Damage,
    /// When it is not worth answering any more, by the pipeline's clock.
    pub deadline: Option<Instant>,
    /// Whether its answer is to be ended with what there is of it.
    pub interrupt: Interrupt,
    /// Of a stream: what was read of it while it was spoken.
    pub so_far: Option<ReadSegment>,
    /// The request's span: log lines and the spans of stages are inside it.
    pub span: Span,
    /// Its work in the present stage, from the moment that the stage took it up.
    item: Option<StageItem>,
    /// The memory of its samples, counted until the outcome.
    held: Option<BudgetHold>,
    /// Its seconds of audio, likewise.
    audio: Option<AudioHold>,
    /// Its place before the generator, while it waits there.
    place: Option<OwnedSemaphorePermit>,
    /// Training waits between steps while this is here.
    ahead: Option<Yield>,
    /// Of a window: which one of which recording. Its record is then the recording's, and not its own.
    part: Option<WindowPart>,
    /// Of an admitted utterance: knows whether its record's partition is still ours.
    tracker: Option<OffsetTracker>,
}

impl RequestState {
    /// Takes the guard of the present stage's work out.
    pub fn take_item(&mut self) -> Option<StageItem> {
        self.item.take()
    }
}

impl RequestContext {
    /// A context for an admitted record; `span` is the [`request_span`] of the request.
    pub fn new(
        record: Record,
        mut request: Request,
        audio_seconds: f64,
        span: Span,
        orphans: OrphanQueue,
    ) -> Self {
        let now = Instant::now();
        request.trace.own_span = spans::span_id(&span);
        let inner = RequestState {
            span,
            item: None,
            record,
            request,
            admitted: now,
            audio_seconds,
            times: StageTimes::default(),
            stage: Stage::Ingest,
            queued: now,
            earlier: Vec::new(),
            no_speech: false,
            long_pause: false,
            damage: Damage::default(),
            deadline: None,
            interrupt: Interrupt::default(),
            so_far: None,
            held: None,
            audio: None,
            place: None,
            ahead: None,
            part: None,
            tracker: None,
        };
        Self {
            inner: Some(Box::new(inner)),
            orphans,
        }
    }

    /// It is about a window of a recording: its outcome is an answer for whoever joins, and its record is not
    /// settled by it.
    pub fn is_window(&mut self, part: WindowPart) {
        self.part = Some(part);
    }

    /// Takes out which window it is about, if it is about one.
    pub fn take_window(&mut self) -> Option<WindowPart> {
        self.part.take()
    }

    /// Whether it is about a window.
    pub fn is_part(&self) -> bool {
        self.part.is_some()
    }

    /// It is an utterance that counts as admitted, and its records are in `tracker`.
    pub fn is_tracked(&mut self, tracker: OffsetTracker) {
        self.tracker = Some(tracker);
    }

    /// Whether it need not be worked on: it is a window of a recording that has failed, or none after all, or
    /// whoever has the partitions of its records now works on it.
    pub fn is_void(&self) -> bool {
        let is_taken = |tracker: &OffsetTracker| {
            let mut record_offsets = self.earlier.iter().chain([&self.record.record_offset]);
            !record_offsets.any(|record_offset| tracker.is_current(record_offset))
        };
        self.part.as_ref().is_some_and(|part| part.owner.is_over())
            || self.tracker.as_ref().is_some_and(is_taken)
    }

    /// Ends it without an outcome, because it is void.
    pub fn withdraw(self) {
        let inner = self.complete();
        if inner.tracker.is_some() {
            metrics::utterance_left(inner.audio_seconds);
        }
    }

    /// What cannot be answered because of `why`: itself, or, of a window, its recording, if that has no
    /// outcome yet.
    pub fn fail(mut self, why: &Rejection) -> Option<Self> {
        let Some(part) = self.take_window() else {
            return Some(self);
        };
        self.complete();
        part.owner.failed(why.clone())
    }

    /// Counts the memory of its samples until the outcome, and lets the outcome settle `earlier` records too.
    pub fn hold(&mut self, held: BudgetHold, earlier: Vec<RecordOffset>) {
        self.held = Some(held);
        self.earlier.extend(earlier);
    }

    /// Counts its audio as in flight until the outcome.
    pub fn hold_audio(&mut self, held: AudioHold) {
        self.audio = Some(held);
    }

    /// Its work is done: nothing of it counts as in flight any more, and training need not wait for it.
    pub fn let_go(&mut self) {
        (self.held, self.audio, self.ahead) = (None, None, None);
    }

    /// Takes one of the [`DecoderPlaces`](crate::places::DecoderPlaces), until
    /// [`leave_place`](Self::leave_place).
    pub fn take_place(&mut self, place: OwnedSemaphorePermit) {
        self.place = Some(place);
    }

    /// It does not wait for the generator any more.
    pub fn leave_place(&mut self) {
        self.place = None;
    }

    /// What the queue of a stage needs to know of it: requests with the same key take turns with the others,
    /// those without a key by session, else by source.
    pub fn queue_entry(&self) -> QueueEntry {
        let request = &self.request;
        let named = || request.session.as_ref().or(request.source.as_ref());
        let key = self.record.key.clone();
        QueueEntry {
            key: key.unwrap_or_else(|| named().map(|name| name.clone().into()).unwrap_or_default()),
            priority: request.priority,
            audio_seconds: self.audio_seconds,
            deadline: self.deadline,
        }
    }

    /// Makes training give way until the outcome.
    pub fn yield_to_serving(&mut self, training: Option<&Control>) {
        self.ahead = training.map(Control::yield_to_serving);
    }

    /// The present stage is done with it: it waits for `stage` from now on.
    pub fn queue_for(&mut self, stage: Stage) {
        if let Some(item) = self.item.take() {
            item.finish();
        }
        self.stage = stage;
        self.queued = Instant::now();
    }

    /// The stage that it waits for takes it up; adds the wait to its times.
    pub fn dequeued(&mut self) {
        let waited = self.queued.elapsed();
        self.times.queue_ms += waited.as_secs_f64() * 1e3;
        let item = StageItem::enter(self.stage.as_str(), waited, &self.span);
        self.item = Some(item);
        fault_point(self.stage.as_str());
    }

    /// The span of the present stage's work, the request's own where no stage has taken it up.
    pub fn stage_span(&self) -> &Span {
        self.item.as_ref().map_or(&self.span, StageItem::span)
    }

    /// Takes the contents out: the outcome is in the caller's hands now.
    pub fn complete(mut self) -> RequestState {
        *self.inner.take().expect("a context is settled once, by value")
    }
}

impl std::ops::Deref for RequestContext {
    type Target = RequestState;

    fn deref(&self) -> &RequestState {
        self.inner
            .as_ref()
            .expect("only `complete` takes the contents, and it consumes the context")
    }
}

impl std::ops::DerefMut for RequestContext {
    fn deref_mut(&mut self) -> &mut RequestState {
        self.inner
            .as_mut()
            .expect("only `complete` takes the contents, and it consumes the context")
    }
}

impl Drop for RequestContext {
    fn drop(&mut self) {
        let Some(mut inner) = self.inner.take() else {
            return;
        };
        if let Some(part) = inner.part.take() {
            let message = "the stage that held a window of this recording failed";
            drop(
                part.owner
                    .failed(Rejection::new(Reason::InternalError, inner.stage, message)),
            );
            return;
        }
        self.orphans.send(OrphanedRecord {
            record: inner.record,
            audio_seconds: inner.audio_seconds,
            stage: inner.stage,
            earlier: inner.earlier,
            request_id: Some(inner.request.id),
        });
    }
}

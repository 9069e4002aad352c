//! Messages that cross from one actor to another, and the context that travels with an utterance.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use speechverse::kafka::BudgetHold;
use speechverse::models::adapter::AdapterSnapshot;
use speechverse::training::{Control, Yield};
use speechverse::wire::answer::Answer;
use speechverse::wire::dead_letter::{Reason, Rejection, Stage};
use speechverse::wire::event::Event;
use speechverse::wire::request::Request;
use speechverse::wire::trace::TraceContext;
use speechverse::wire::{Record, RecordOffset};
use tch::Tensor;

/// Milliseconds that an utterance spent in each stage so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StageTimes {
    /// Waiting in queues.
    pub queue_ms: f64,
    /// Decoding and resampling the sound.
    pub decode_audio_ms: f64,
    /// Speech encoder.
    pub encode_ms: f64,
    /// Adapter and the LLM's pass over the prompt.
    pub prefill_ms: f64,
    /// Generating the answer.
    pub generate_ms: f64,
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
}

impl OrphanQueue {
    /// The two ends: contexts get the first, the publisher the second. Not bounded by itself: it can hold at most
    /// what the ingest admitted.
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
        });
    }

    fn send(&self, lost: OrphanedRecord) {
        if !self.closing.load(Ordering::Acquire) {
            let _ = self.sender.send(lost); // without a publisher there is nobody left to tell
        }
    }
}

/// A record that a stage has in hand before it has a context, or that never gets one. Dropped without
/// [`RecordGuard::complete`], it becomes a dead letter, as a context does.
#[derive(Debug)]
pub struct RecordGuard {
    record: Option<Record>,
    stage: Stage,
    orphans: OrphanQueue,
}

impl RecordGuard {
    /// Holds a record in `stage`.
    pub fn new(record: Record, stage: Stage, orphans: OrphanQueue) -> Self {
        let record = Some(record);
        Self {
            record,
            stage,
            orphans,
        }
    }

    /// Takes the record out: its outcome is in the caller's hands now.
    pub fn complete(mut self) -> Record {
        self.record.take().expect("a record is settled once, by value")
    }
}

impl std::ops::Deref for RecordGuard {
    type Target = Record;

    fn deref(&self) -> &Record {
        let record = self.record.as_ref();
        record.expect("only `complete` takes the record, and it consumes the guard")
    }
}

impl Drop for RecordGuard {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            self.orphans.take(record, self.stage);
        }
    }
}

/// What stays with an utterance from admission to its outcome: its record, its request, its clock.
///
/// A context that is dropped without [`RequestContext::complete`] turns its record into a dead letter, so nothing that was
/// admitted can be forgotten, whatever a stage does.
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
    /// The memory of its samples, counted until the outcome.
    held: Option<BudgetHold>,
    /// Training waits between steps while this is here.
    ahead: Option<Yield>,
}

impl RequestContext {
    /// A context for an admitted record.
    pub fn new(record: Record, request: Request, audio_seconds: f64, orphans: OrphanQueue) -> Self {
        let now = Instant::now();
        let inner = RequestState {
            record,
            request,
            admitted: now,
            audio_seconds,
            times: StageTimes::default(),
            stage: Stage::Ingest,
            queued: now,
            earlier: Vec::new(),
            no_speech: false,
            held: None,
            ahead: None,
        };
        Self {
            inner: Some(Box::new(inner)),
            orphans,
        }
    }

    /// Counts the memory of its samples until the outcome, and lets the outcome settle `earlier` records too.
    pub fn hold(&mut self, held: BudgetHold, earlier: Vec<RecordOffset>) {
        self.held = Some(held);
        self.earlier = earlier;
    }

    /// Makes training give way until the outcome.
    pub fn yield_to_serving(&mut self, training: Option<&Control>) {
        self.ahead = training.map(Control::yield_to_serving);
    }

    /// Marks that the context waits for `stage` from now on.
    pub fn queue_for(&mut self, stage: Stage) {
        self.stage = stage;
        self.queued = Instant::now();
    }

    /// Marks that its stage took it up; adds the wait to its times and returns it.
    pub fn dequeued(&mut self) -> std::time::Duration {
        let waited = self.queued.elapsed();
        self.times.queue_ms += waited.as_secs_f64() * 1e3;
        waited
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
        let Some(inner) = self.inner.take() else { return };
        self.orphans.send(OrphanedRecord {
            record: inner.record,
            audio_seconds: inner.audio_seconds,
            stage: inner.stage,
            earlier: inner.earlier,
        });
    }
}

/// Order to the encoder: one utterance, its sound ready.
#[derive(Debug)]
pub struct EncodeUtterance {
    /// Mono, 16 kHz, in [-1, 1].
    pub samples: Vec<f32>,
    /// The adapter version this utterance is pinned to.
    pub adapter: AdapterSnapshot,
    /// Its context.
    pub context: RequestContext,
}

/// Order to the decoder: one utterance, its features ready.
#[derive(Debug)]
pub struct DecodeUtterance {
    /// Mixed encoder features, `[T, D]`, valid frames only.
    pub features: Tensor,
    /// The adapter version this utterance is pinned to.
    pub adapter: AdapterSnapshot,
    /// Its context.
    pub context: RequestContext,
}

/// Order to the publisher: an answer, to be acknowledged by the broker before its record's offset is released.
#[derive(Debug)]
pub struct PublishAnswer {
    /// The answer.
    pub answer: Answer,
    /// RequestContext of the utterance.
    pub context: RequestContext,
}

/// Order to the publisher: the text so far of an answer that is still being written. It settles nothing, and it is not
/// missed where the publisher is busy.
#[derive(Debug)]
pub struct PublishPartial {
    /// The answer so far.
    pub answer: Answer,
    /// The request's key.
    pub key: Option<bytes::Bytes>,
    /// The trace that the request belongs to.
    pub trace: TraceContext,
}

/// Order to the publisher: a record that cannot be answered.
#[derive(Debug)]
pub struct PublishDeadLetter {
    /// The record as it was read.
    pub record: Record,
    /// Why, and where that was found.
    pub rejection: Rejection,
    /// Seconds of audio that were admitted for it; 0 when it was refused at admission.
    pub audio_seconds: f64,
    /// Record offsets of further records that this settles.
    pub earlier: Vec<RecordOffset>,
}

impl PublishDeadLetter {
    /// A refusal at admission, before the record counted as in flight.
    pub fn at_admission(record: Record, rejection: Rejection) -> Self {
        Self {
            record,
            rejection,
            audio_seconds: 0.0,
            earlier: Vec::new(),
        }
    }

    /// The record of a settled context, with the reason.
    pub fn of(context: RequestContext, reason: Reason, message: impl Into<String>) -> Self {
        let stage = context.stage;
        let inner = context.complete();
        Self {
            record: inner.record,
            rejection: Rejection::new(reason, stage, message),
            audio_seconds: inner.audio_seconds,
            earlier: inner.earlier,
        }
    }
}

/// Order to the publisher: tell the world what happened.
#[derive(Clone, Debug)]
pub struct PublishEvent {
    /// The event.
    pub event: Event,
}

/// Fact for the collector: an utterance was admitted; a later correction may name it.
#[derive(Clone, Debug)]
pub struct UtteranceAdmitted {
    /// Its request.
    pub request: Request,
    /// Where its record came from.
    pub record_offset: RecordOffset,
    /// Mono, 16 kHz.
    pub samples: Arc<[f32]>,
}

/// Order to the trainer: run a cycle now.
#[derive(Clone, Debug)]
pub struct StartCycle {
    /// Id of the run, named by whoever ordered it.
    pub run: String,
    /// Why: an order, the schedule, enough samples.
    pub trigger: String,
}

//! Messages that cross from one actor to another, and the ticket that travels with an utterance.

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
use speechverse::wire::{Receipt, Record};
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

/// Where tickets go that nobody settled: a stage died with them, or a bug dropped them.
#[derive(Clone, Debug)]
pub struct LostAndFound {
    sender: flume::Sender<LostTicket>,
    closing: Arc<AtomicBool>,
}

/// A record whose stage let go of it without an outcome.
#[derive(Debug)]
pub struct LostTicket {
    /// The record, to be published as a dead letter.
    pub record: Record,
    /// Seconds of its audio, for the in-flight gauge.
    pub audio_seconds: f64,
    /// Where it was.
    pub stage: Stage,
    /// Receipts of further records that its outcome settles.
    pub earlier: Vec<Receipt>,
}

impl LostAndFound {
    /// The two ends: tickets get the first, the publisher the second. Not bounded by itself: it can hold at most
    /// what the ingest admitted.
    pub fn new() -> (Self, flume::Receiver<LostTicket>) {
        let (sender, receiver) = flume::unbounded();
        let closing = Arc::new(AtomicBool::new(false));
        (Self { sender, closing }, receiver)
    }

    /// From now on, tickets that are dropped are abandoned: their records are read again after the restart.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Takes a record that was never admitted from a stage that cannot go on with it.
    pub fn take(&self, record: Record, stage: Stage) {
        self.send(LostTicket {
            record,
            audio_seconds: 0.0,
            stage,
            earlier: Vec::new(),
        });
    }

    fn send(&self, lost: LostTicket) {
        if !self.closing.load(Ordering::Acquire) {
            let _ = self.sender.send(lost); // without a publisher there is nobody left to tell
        }
    }
}

/// A record that a stage has in hand before it has a ticket, or that never gets one. Dropped without
/// [`InHand::settle`], it becomes a dead letter, as a ticket does.
#[derive(Debug)]
pub struct InHand {
    record: Option<Record>,
    stage: Stage,
    home: LostAndFound,
}

impl InHand {
    /// Holds a record in `stage`.
    pub fn new(record: Record, stage: Stage, home: LostAndFound) -> Self {
        let record = Some(record);
        Self { record, stage, home }
    }

    /// Takes the record out: its outcome is in the caller's hands now.
    pub fn settle(mut self) -> Record {
        self.record.take().expect("a record is settled once, by value")
    }
}

impl std::ops::Deref for InHand {
    type Target = Record;

    fn deref(&self) -> &Record {
        let record = self.record.as_ref();
        record.expect("only `settle` takes the record, and it consumes the guard")
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            self.home.take(record, self.stage);
        }
    }
}

/// What stays with an utterance from admission to its outcome: its record, its request, its clock.
///
/// A ticket that is dropped without [`Ticket::settle`] turns its record into a dead letter, so nothing that was
/// admitted can be forgotten, whatever a stage does.
#[derive(Debug)]
pub struct Ticket {
    inner: Option<Box<TicketInner>>,
    home: LostAndFound,
}

/// The contents of a [`Ticket`].
#[derive(Debug)]
pub struct TicketInner {
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
    /// Receipts of further records that the outcome settles: the earlier chunks of a stream.
    pub earlier: Vec<Receipt>,
    /// Whether its audio is so quiet throughout that there can hardly be speech in it.
    pub no_speech: bool,
    /// The memory of its samples, counted until the outcome.
    held: Option<BudgetHold>,
    /// Training waits between steps while this is here.
    ahead: Option<Yield>,
}

impl Ticket {
    /// A ticket for an admitted record.
    pub fn new(record: Record, request: Request, audio_seconds: f64, home: LostAndFound) -> Self {
        let now = Instant::now();
        let inner = TicketInner {
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
            home,
        }
    }

    /// Counts the memory of its samples until the outcome, and lets the outcome settle `earlier` records too.
    pub fn hold(&mut self, held: BudgetHold, earlier: Vec<Receipt>) {
        self.held = Some(held);
        self.earlier = earlier;
    }

    /// Makes training give way until the outcome.
    pub fn go_first(&mut self, training: Option<&Control>) {
        self.ahead = training.map(Control::go_first);
    }

    /// Marks that the ticket waits for `stage` from now on.
    pub fn queue_for(&mut self, stage: Stage) {
        self.stage = stage;
        self.queued = Instant::now();
    }

    /// Marks that its stage took it up; adds the wait to its times and returns it.
    pub fn taken_up(&mut self) -> std::time::Duration {
        let waited = self.queued.elapsed();
        self.times.queue_ms += waited.as_secs_f64() * 1e3;
        waited
    }

    /// Takes the contents out: the outcome is in the caller's hands now.
    pub fn settle(mut self) -> TicketInner {
        *self.inner.take().expect("a ticket is settled once, by value")
    }
}

impl std::ops::Deref for Ticket {
    type Target = TicketInner;

    fn deref(&self) -> &TicketInner {
        self.inner
            .as_ref()
            .expect("only `settle` takes the contents, and it consumes the ticket")
    }
}

impl std::ops::DerefMut for Ticket {
    fn deref_mut(&mut self) -> &mut TicketInner {
        self.inner
            .as_mut()
            .expect("only `settle` takes the contents, and it consumes the ticket")
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        self.home.send(LostTicket {
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
    /// Its ticket.
    pub ticket: Ticket,
}

/// Order to the decoder: one utterance, its features ready.
#[derive(Debug)]
pub struct DecodeUtterance {
    /// Mixed encoder features, `[T, D]`, valid frames only.
    pub features: Tensor,
    /// The adapter version this utterance is pinned to.
    pub adapter: AdapterSnapshot,
    /// Its ticket.
    pub ticket: Ticket,
}

/// Order to the publisher: an answer, to be acknowledged by the broker before its record's offset is released.
#[derive(Debug)]
pub struct PublishAnswer {
    /// The answer.
    pub answer: Answer,
    /// Ticket of the utterance.
    pub ticket: Ticket,
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
    /// Seconds of audio that were admitted for it; 0 when it was refused at the door.
    pub audio_seconds: f64,
    /// Receipts of further records that this settles.
    pub earlier: Vec<Receipt>,
}

impl PublishDeadLetter {
    /// A refusal at the door, before the record counted as in flight.
    pub fn at_the_door(record: Record, rejection: Rejection) -> Self {
        Self {
            record,
            rejection,
            audio_seconds: 0.0,
            earlier: Vec::new(),
        }
    }

    /// The record of a settled ticket, with the reason.
    pub fn of(ticket: Ticket, reason: Reason, message: impl Into<String>) -> Self {
        let stage = ticket.stage;
        let inner = ticket.settle();
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
    pub receipt: Receipt,
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

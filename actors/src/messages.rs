//! Messages that cross from one actor to another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kameo::actor::Recipient;
use speechverse::audio::Damage;
use speechverse::inference::Features;
use speechverse::models::adapter::AdapterSnapshot;
use speechverse::wire::answer::{Answer, Segment};
use speechverse::wire::dead_letter::{Reason, Rejection};
use speechverse::wire::event::Event;
use speechverse::wire::request::Request;
use speechverse::wire::trace::TraceContext;
use speechverse::wire::{Record, RecordOffset};
use tracing::Span;

use crate::reading::ReadingTurn;

pub use crate::places::DecoderPlaces;

pub use crate::context::{
    Joined, OrphanQueue, OrphanedRecord, RecordGuard, RequestContext, RequestState, StageTimes, WindowAnswer,
    WindowDone, WindowOwner, WindowPart, request_span,
};

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
    /// What the encoder made of it.
    pub features: Features,
    /// The adapter version this utterance is pinned to.
    pub adapter: AdapterSnapshot,
    /// Its context.
    pub context: RequestContext,
}

/// What a reading of an utterance in progress is about.
#[derive(Debug)]
pub struct SoFar {
    /// The stream's readings; while this lives, no other one is on its way.
    pub turn: ReadingTurn,
    /// The utterance, as far as it has come.
    pub segment: Segment,
    /// The stream's request, without sound.
    pub request: Request,
    /// Its key.
    pub key: Option<bytes::Bytes>,
    /// Whether the language model is asked too, so that words can be confirmed.
    pub is_to_confirm: bool,
}

/// Order to the encoder: an utterance that is still spoken, to be read as far as it goes. It settles nothing,
/// and gives way to whatever does.
#[derive(Debug)]
pub struct EncodeSoFar {
    /// Mono, 16 kHz, in [-1, 1].
    pub samples: Vec<f32>,
    /// The adapter version that the stream is pinned to.
    pub adapter: AdapterSnapshot,
    /// What it is about.
    pub so_far: SoFar,
}

/// Order to the decoder: an utterance that is still spoken, its features ready.
#[derive(Debug)]
pub struct ReadSoFar {
    /// What the encoder made of it.
    pub features: Features,
    /// The adapter version that the stream is pinned to.
    pub adapter: AdapterSnapshot,
    /// What it is about.
    pub so_far: SoFar,
}

/// Order to the publisher: an answer, to be acknowledged by the broker before its record's offset is
/// released.
#[derive(Debug)]
pub struct PublishAnswer {
    /// The answer.
    pub answer: Answer,
    /// RequestContext of the utterance.
    pub context: RequestContext,
}

/// Order to the publisher: the text so far of an answer that is still being written. It settles nothing, and
/// it is not missed where the publisher is busy.
#[derive(Debug)]
pub struct PublishPartial {
    /// The answer so far.
    pub answer: Answer,
    /// Topic that the request wants its answers on, when it says.
    pub reply_topic: Option<Arc<str>>,
    /// The request's key.
    pub key: Option<bytes::Bytes>,
    /// The trace that the request belongs to.
    pub trace: TraceContext,
}

impl PublishPartial {
    /// Offers the publisher an answer so far to a request with this key; a busy publisher has better to do,
    /// and it is dropped.
    pub fn offer(answer: Answer, request: &Request, key: Option<bytes::Bytes>, publisher: &Recipient<Self>) {
        let partial = Self {
            answer,
            reply_topic: request.reply_topic.clone(),
            key,
            trace: request.trace.clone(),
        };
        let _ = publisher.tell(partial).try_send();
    }
}

/// Order to the publisher: a record that cannot be answered.
#[derive(Debug)]
pub struct PublishDeadLetter {
    /// The record as it was read.
    pub record: Record,
    /// Why, and where that was found.
    pub rejection: Rejection,
    /// The span that its log lines stand in.
    pub span: Span,
    /// Seconds of audio that were admitted for it; 0 when it was refused at admission.
    pub audio_seconds: f64,
    /// Record offsets of further records that this settles.
    pub earlier: Vec<RecordOffset>,
    /// Id of the request, where one was read.
    pub request_id: Option<String>,
}

impl PublishDeadLetter {
    /// A refusal at admission, before the record counted as in flight.
    pub fn at_admission(record: Record, rejection: Rejection) -> Self {
        let offset = &record.record_offset;
        let (topic, partition, offset) = (&*offset.topic, offset.partition, offset.offset);
        Self {
            span: tracing::info_span!("record", topic, partition, offset),
            record,
            rejection,
            audio_seconds: 0.0,
            earlier: Vec::new(),
            request_id: None,
        }
    }

    /// The record of a settled context, with the reason; of a window, that of its recording, unless that has
    /// its outcome already.
    pub fn of(context: RequestContext, reason: Reason, message: impl Into<String>) -> Option<Self> {
        let rejection = Rejection::new(reason, context.stage, message);
        let inner = context.fail(&rejection)?.complete();
        Some(Self {
            span: inner.span,
            record: inner.record,
            rejection,
            audio_seconds: inner.audio_seconds,
            earlier: inner.earlier,
            request_id: Some(inner.request.id),
        })
    }

    /// That of a request that is too late; `now` by the pipeline's clock.
    pub fn late(context: RequestContext, now: Instant) -> Option<Self> {
        let by = context
            .deadline
            .map_or(Duration::ZERO, |deadline| now.saturating_duration_since(deadline));
        let message = format!("`ce_deadline` is past by {} ms", by.as_millis());
        Self::of(context, Reason::DeadlineExceeded, message)
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
    /// What a correction needs of its request.
    pub request: AdmittedRequest,
    /// Where its record came from.
    pub record_offset: RecordOffset,
    /// Mono, 16 kHz.
    pub samples: Arc<[f32]>,
    /// What of its audio could not be decoded.
    pub damage: Damage,
}

/// What is remembered of a request for its corrections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdmittedRequest {
    /// Its `ce_source`.
    pub source: Option<String>,
    /// Its id.
    pub id: String,
    /// The task that it names.
    pub task: Option<String>,
    /// What to do with the audio.
    pub instruction: String,
    /// Allowed answers, as it lists them.
    pub labels: Option<Vec<String>>,
    /// Values that it gives to the placeholders of its task's prompt.
    pub fields: BTreeMap<String, String>,
    /// Whether its answer is constrained to the labels in force; a form of its own (a JSON schema, a regular
    /// expression) is none of labels.
    pub constrained: bool,
}

impl From<&Request> for AdmittedRequest {
    fn from(request: &Request) -> Self {
        Self {
            source: request.source.clone(),
            id: request.id.clone(),
            task: request.task.clone(),
            instruction: request.instruction.clone(),
            labels: request.labels.clone(),
            fields: request.fields.clone(),
            constrained: (request.grammar.as_ref()).is_some_and(|grammar| grammar.structure().is_none()),
        }
    }
}

/// Order to the trainer: run a cycle now.
#[derive(Clone, Debug)]
pub struct StartCycle {
    /// Id of the run, named by whoever ordered it.
    pub run: String,
    /// Why: an order, the schedule, enough samples.
    pub trigger: String,
}

//! From windows of a recording to orders for the encoder.

use bytes::Bytes;
use kameo::prelude::*;
use speechverse::audio::{AudioError, SAMPLE_RATE_HZ};
use speechverse::inference::AudioWindow;
use speechverse::inference::config::DecoderConfig;
use speechverse::kafka::{OffsetTracker, TopicPartition};
use speechverse::models::adapter::AdapterSnapshot;
use speechverse::training::Control;
use speechverse::wire::Record;
use speechverse::wire::answer::{Answer, AnswerKind, Segment};
use speechverse::wire::dead_letter::{Reason, Stage};
use speechverse::wire::request::Request;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{Span, error};

use crate::answering::answer_of;
use crate::interrupt::Interrupt;
use crate::joining::Joining;
use crate::messages::{
    EncodeUtterance, Joined, OrphanQueue, PublishAnswer, PublishPartial, RequestContext, WindowAnswer,
    WindowDone, WindowOwner, WindowPart,
};

/// What the windows of one recording have in common.
#[derive(Debug)]
pub(crate) struct WindowSource {
    pub(crate) joining: Joining,
    /// A record of the recording, without its value.
    pub(crate) record: Record,
    /// Its request, without sound.
    pub(crate) request: Request,
    pub(crate) span: Span,
    pub(crate) orphans: OrphanQueue,
    pub(crate) tracker: OffsetTracker,
    pub(crate) adapter: AdapterSnapshot,
    pub(crate) deadline: Option<Instant>,
    pub(crate) interrupt: Interrupt,
    pub(crate) training: Option<Control>,
}

impl WindowSource {
    /// Whether the recording is still to be answered, and here.
    pub(crate) fn is_wanted(&self) -> bool {
        self.joining.failure().is_none()
            && !self.interrupt.is_set()
            && self.tracker.is_current(&self.record.record_offset)
    }

    /// Announces a window to whoever joins, and makes the order for the encoder.
    pub(crate) fn order(&self, cut: AudioWindow, place: Option<OwnedSemaphorePermit>) -> EncodeUtterance {
        let number = self.joining.expect(cut.window.overlaps);
        self.order_as(cut, number, Arc::new(self.joining.clone()), place)
    }

    /// The order for a window that has its number, and an owner of its own.
    pub(crate) fn order_as(
        &self,
        cut: AudioWindow,
        number: usize,
        owner: Arc<dyn WindowOwner>,
        place: Option<OwnedSemaphorePermit>,
    ) -> EncodeUtterance {
        let seconds = cut.samples.len() as f64 / f64::from(SAMPLE_RATE_HZ);
        let begin_seconds = cut.window.samples.start as f64 / f64::from(SAMPLE_RATE_HZ);
        let mut context = RequestContext::new(
            self.record.clone(),
            self.request.clone(),
            seconds,
            self.span.clone(),
            self.orphans.clone(),
        );
        context.is_window(WindowPart {
            owner,
            number,
            segment: Segment {
                number: number as u64,
                begin_seconds,
                end_seconds: begin_seconds + seconds,
                is_settled: true,
                confirmed: None,
            },
            place,
        });
        let budget = self.tracker.budget();
        context.hold(
            budget.hold(size_of_val(cut.samples.as_slice()) as u64),
            Vec::new(),
        );
        let partition = TopicPartition::of(&self.record.record_offset);
        context.hold_audio(budget.audio().hold(partition, seconds));
        context.deadline = self.deadline;
        context.interrupt = self.interrupt.clone();
        context.yield_to_serving(self.training.as_ref());
        context.queue_for(Stage::Encode);
        EncodeUtterance {
            samples: cut.samples,
            adapter: self.adapter.clone(),
            context,
        }
    }
}

/// A record without what it holds.
pub(crate) fn without_value(record: &Record) -> Record {
    Record {
        value: None,
        ..record.clone()
    }
}

/// A request without its sound.
pub(crate) fn without_sound(request: &Request) -> Request {
    Request {
        audio: Bytes::new(),
        ..request.clone()
    }
}

/// Publishes the answer to a window, which does not change any more, and the whole if it was the last one.
pub(crate) async fn publish_window(
    done: WindowDone,
    config: &DecoderConfig,
    answers: &Recipient<PublishAnswer>,
    partials: &Recipient<PublishPartial>,
) {
    let WindowDone {
        context,
        part,
        version,
        mut generation,
        text,
    } = done;
    let request = &context.request;
    generation.place_words(part.segment.begin_seconds, context.audio_seconds);
    if request.partials && !part.owner.is_over() {
        let whole = answer_of(&context, version.clone(), &generation, text.clone(), config);
        let answer = Answer {
            id: Answer::segment_id(request.source.as_deref(), &request.id, part.segment.number),
            kind: AnswerKind::Partial,
            segment: Some(Segment {
                confirmed: Some(text.clone()),
                ..part.segment.clone()
            }),
            ..whole
        };
        PublishPartial::offer(answer, request, context.record.key.clone(), partials);
    }
    let answer = WindowAnswer {
        generation,
        text,
        times: context.complete().times,
    };
    if let Some(joined) = part.owner.answered(part.number, answer) {
        publish_joined(joined, version, config, answers).await;
    }
}

/// Publishes what was joined.
pub(crate) async fn publish_joined(
    joined: Joined,
    version: String,
    config: &DecoderConfig,
    publisher: &Recipient<PublishAnswer>,
) {
    let Joined {
        mut context,
        generation,
        text,
    } = joined;
    context.queue_for(Stage::Publish);
    let answer = answer_of(&context, version, &generation, text, config);
    if let Err(error) = publisher.tell(PublishAnswer { answer, context }).await {
        error!(error = %error.to_string(), "publisher is gone, an answer goes back");
    }
}

/// The dead-letter reason of an audio error.
pub fn reason_of(error: &AudioError) -> Reason {
    match error {
        AudioError::EmptyValue => Reason::EmptyValue,
        AudioError::TooLarge { .. } => Reason::ValueTooLarge,
        AudioError::NotAudio { .. } => Reason::NotAudio,
        AudioError::UnsupportedCodec { .. } => Reason::UnsupportedAudio,
        AudioError::ContentType(_) => Reason::InvalidContentType,
        AudioError::Truncated { .. } => Reason::TruncatedAudio,
        AudioError::Corrupt { .. } => Reason::CorruptAudio,
        AudioError::ZeroSamples { .. } => Reason::NoSamples,
        AudioError::NonFinite { .. } => Reason::NonFiniteSamples,
        AudioError::AbsurdRate { .. } | AudioError::AbsurdChannels { .. } => Reason::AbsurdFormat,
        AudioError::TooLong { .. } | AudioError::TooManySamples { .. } => Reason::AudioTooLong,
    }
}

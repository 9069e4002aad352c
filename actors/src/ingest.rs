//! `AudioIngest`: Kafka records become utterances.
//!
//! Takes records from a source's channel, sends [`EncodeUtterance`], [`UtteranceAdmitted`] or
//! [`PublishDeadLetter`]. Decodes and resamples sound, so it lives in its own thread. It pins each utterance
//! to the adapter version of the moment. When as much audio is in flight as is allowed, or the stages behind
//! it are full, it waits, the channel fills, and the source pauses its partitions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kameo::error::Infallible;
use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::prelude::*;
use speechverse::audio::{
    AudioError, AudioLimits, Damage, Waveform, decode, has_long_pause, loudest_frame_dbfs,
};
use speechverse::kafka::{Budget, OffsetTracker, SourceEvent, TopicPartition};
use speechverse::telemetry::metrics;
use speechverse::text::{OutputGrammar, ResolvedPrompt, Structure, TaskTable, TemplateVariables, TextError};
use speechverse::training::Control;
use speechverse::util::Clock;
use speechverse::wire::Record;
use speechverse::wire::dead_letter::{Reason, Rejection, Stage};
use speechverse::wire::request::{Instructions, Request, RequestLimits};
use tracing::{debug, error, info, warn};

use crate::current::CurrentAdapter;
use crate::inbox::{Arrival, Inbox};
use crate::messages::{
    EncodeUtterance, OrphanQueue, PublishDeadLetter, RecordGuard, RequestContext, UtteranceAdmitted,
    request_span,
};
use crate::streams::{Assembled, Streams};

/// How often unfinished streams are looked at.
const STREAM_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Instructions by task and by default.
#[derive(Clone, Debug)]
pub struct TaskInstructions {
    /// Configured tasks.
    pub tasks: Arc<TaskTable>,
    /// For a request that names neither instruction nor task.
    pub default: String,
}

impl Instructions for TaskInstructions {
    fn of_task(
        &self,
        names: &str,
        variables: &TemplateVariables,
        own: Option<&str>,
    ) -> Result<ResolvedPrompt, TextError> {
        self.tasks.ask(names, variables, own)
    }

    fn default_instruction(&self) -> String {
        self.default.clone()
    }
}

/// Everything an [`AudioIngest`] needs to start, and to start again.
#[derive(Clone)]
pub struct IngestArgs {
    /// Records of the request topic.
    pub events: flume::Receiver<SourceEvent>,
    /// Which offsets are finished.
    pub tracker: OffsetTracker,
    /// By which deadlines are judged and unfinished streams given up.
    pub clock: Clock,
    /// What a value may be.
    pub audio: AudioLimits,
    /// What a request may be.
    pub limits: RequestLimits,
    /// What to do when a request does not say.
    pub instructions: Arc<dyn Instructions + Send + Sync>,
    /// Sound whose loudest 30 ms are below this gets the flag `no_speech`, dB below full scale.
    pub no_speech_below_dbfs: f64,
    /// The version to pin to.
    pub adapter: CurrentAdapter,
    /// Where forgotten contexts go.
    pub orphans: OrphanQueue,
    /// Training that gives way while utterances are in flight; absent when it should not.
    pub training: Option<Control>,
    /// Next stage.
    pub encoder: Recipient<EncodeUtterance>,
    /// Remembers utterances for corrections; its loss is no reason to stop.
    pub collector: Recipient<UtteranceAdmitted>,
    /// Takes what cannot be answered.
    pub publisher: Recipient<PublishDeadLetter>,
}

/// The first stage.
pub struct AudioIngest {
    args: IngestArgs,
    inbox: Inbox,
    streams: Streams,
}

impl Actor for AudioIngest {
    type Args = IngestArgs;
    type Error = Infallible;

    async fn on_start(args: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        let streams = Streams::new(args.audio.value_bytes_max, args.clock.clone());
        Ok(Self {
            inbox: Inbox::new(
                "requests",
                args.events.clone(),
                args.tracker.budget().audio().clone(),
                STREAM_CHECK_INTERVAL,
                args.clock.clone(),
            ),
            args,
            streams,
        })
    }

    /// Takes records as they come, beside the mailbox.
    async fn next(
        &mut self,
        _: WeakActorRef<Self>,
        mailbox: &mut MailboxReceiver<Self>,
    ) -> Result<Option<Signal<Self>>, Self::Error> {
        loop {
            let arrival = self.inbox.next(mailbox).await;
            self.give_up_old_streams().await;
            match arrival {
                Arrival::Signal(signal) => return Ok(signal),
                Arrival::Record(record) => self.admit(record).await,
                Arrival::Revoked(revocation) => self.streams.forget(&revocation.partitions),
                Arrival::Tick => {}
            }
        }
    }
}

/// The chunks of unfinished streams have no contexts yet.
impl Drop for AudioIngest {
    fn drop(&mut self) {
        for record in self.streams.take_all() {
            self.args.orphans.take(record, Stage::Ingest);
        }
    }
}

impl AudioIngest {
    async fn admit(&mut self, record: Record) {
        metrics::request_received();
        let record = self.guard(record);
        let request = match Request::parse(&record, &self.args.limits, &*self.args.instructions) {
            Ok(request) => request,
            Err(rejection) => return self.refuse(record.reject(), rejection).await,
        };
        if request.chunk.is_none() {
            return self.answer(record, request, Vec::new()).await;
        }
        match self.streams.take(record.complete(), request) {
            Assembled::Waiting => {}
            Assembled::Repeated(record) => {
                debug!(record_offset = ?record.record_offset, "a chunk that its stream had before is passed over");
                self.args.tracker.release(&record.record_offset);
            }
            Assembled::Whole(whole) => {
                let record = self.guard(whole.record);
                let earlier = whole.earlier.into_iter().map(|record| self.guard(record));
                self.answer(record, whole.request, earlier.collect()).await;
            }
            Assembled::Broken(records, rejection) => {
                for record in records {
                    self.refuse(record, rejection.clone()).await;
                }
            }
        }
    }

    fn guard(&self, record: Record) -> RecordGuard {
        RecordGuard::new(record, Stage::Ingest, self.args.orphans.clone())
    }

    async fn give_up_old_streams(&mut self) {
        for (records, rejection) in self.streams.expired() {
            for record in records {
                self.refuse(record, rejection.clone()).await;
            }
        }
    }

    /// Decodes a whole recording and hands it on; `earlier` are the chunks before its last one.
    async fn answer(&self, mut record: RecordGuard, request: Request, earlier: Vec<RecordGuard>) {
        let started = Instant::now();
        let span = request_span(&record.record_offset, &request);
        record.belongs_to(&span);
        if !self.args.tracker.is_current(&record.record_offset) {
            debug!(record_offset = ?record.record_offset, "a record of a revoked partition, another process works on it");
            earlier.into_iter().chain([record]).for_each(|record| {
                record.complete();
            });
            return;
        }
        let ready: Result<_, Rejection> = span.in_scope(|| {
            let deadline = self.deadline(&request)?;
            Ok((deadline, self.decode(&request)?))
        });
        let (deadline, waveform) = match ready {
            Ok(ready) => ready,
            Err(rejection) => {
                for record in earlier.into_iter().chain([record]) {
                    self.refuse(record.reject(), rejection.clone()).await;
                }
                return;
            }
        };
        let no_speech = loudest_frame_dbfs(&waveform.samples) < self.args.no_speech_below_dbfs;
        let seconds = waveform.seconds();
        metrics::utterance_admitted(seconds);
        let budget: &Budget = self.args.tracker.budget();
        let form = request.grammar.as_ref().and_then(OutputGrammar::structure);
        let form_bytes = form.map_or(0, Structure::memory_bytes);
        let held = budget.hold((size_of_val(waveform.samples.as_slice()) + form_bytes) as u64);
        let record_offset = record.record_offset.clone();
        let audio = budget.audio().hold(TopicPartition::of(&record_offset), seconds);
        let mut context = RequestContext::new(
            record.complete(),
            request,
            seconds,
            span,
            self.args.orphans.clone(),
        );
        let earlier = earlier.into_iter().map(|record| record.complete().record_offset);
        context.hold(held, earlier.collect());
        context.hold_audio(audio);
        context.deadline = deadline;
        context.no_speech = no_speech;
        context.long_pause = has_long_pause(&waveform.samples);
        context.damage = waveform.damage;
        context.yield_to_serving(self.args.training.as_ref());
        let worked = started.elapsed();
        context.times.decode_audio_ms = worked.as_secs_f64() * 1e3;
        if context.request.train != Some(false) {
            let fact = UtteranceAdmitted {
                request: Request {
                    audio: bytes::Bytes::new(),
                    ..context.request.clone()
                },
                record_offset,
                samples: Arc::from(waveform.samples.as_slice()),
                damage: context.damage.clone(),
            };
            if let Err(error) = self.args.collector.tell(fact).try_send() {
                debug!(error = %error.to_string(), "the collector is busy: a correction of this request will not find it");
            }
        }
        context.queue_for(Stage::Encode);
        let order = EncodeUtterance {
            samples: waveform.samples,
            adapter: self.args.adapter.get(),
            context,
        };
        if let Err(error) = self.args.encoder.tell(order).await {
            warn!(error = %error.to_string(), "encoder is gone, its utterance goes back");
        }
    }

    /// When a request is not worth answering any more, from now on independent of the time of day.
    fn deadline(&self, request: &Request) -> Result<Option<Instant>, Rejection> {
        let Some(deadline) = request.deadline else {
            return Ok(None);
        };
        let left = Duration::try_from(deadline.duration_since(self.args.clock.time()));
        match left {
            Ok(left) if !left.is_zero() => Ok(self.args.clock.now().checked_add(left)),
            _ => {
                let message = format!("`ce_deadline` {deadline} is past");
                Err(Rejection::new(Reason::DeadlineExceeded, Stage::Ingest, message))
            }
        }
    }

    fn decode(&self, request: &Request) -> Result<Waveform, Rejection> {
        let waveform = decode(&request.audio, request.content_type.as_deref(), &self.args.audio)
            .map_err(|error| Rejection::new(reason_of(&error), Stage::Ingest, error.to_string()))?;
        if waveform.content_type_mismatch {
            debug!(request_id = %request.id, content_type = ?request.content_type, "the bytes are of another type than declared");
        }
        if waveform.damage != Damage::default() {
            let Damage {
                undecoded_seconds,
                notes,
                ..
            } = &waveform.damage;
            info!(request_id = %request.id, undecoded_seconds, ?notes, "the sound is damaged");
        }
        Ok(waveform)
    }

    async fn refuse(&self, record: Record, rejection: Rejection) {
        let letter = PublishDeadLetter::at_admission(record, rejection);
        if let Err(error) = self.args.publisher.tell(letter).await {
            error!(error = %error.to_string(), "publisher is gone");
        }
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

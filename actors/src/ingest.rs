//! `AudioIngest`: Kafka records become utterances.
//!
//! Takes records from a source's channel, sends [`EncodeUtterance`], [`UtteranceAdmitted`] or
//! [`PublishDeadLetter`]. Decodes and resamples sound, so it lives in its own thread. It pins each utterance
//! to the adapter version of the moment. Records of a partition with its share of the audio in flight wait
//! beside the others. When the stages behind it are full, it waits, the channel fills, and the source pauses
//! its partitions.
//!
//! A transcript of sound that is longer than a window is made window by window: a recording's windows are
//! cut here, or, where it is longer than what is kept of it, on a thread of its own, for which it waits in a
//! fair queue; those of a stream as its chunks come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kameo::actor::WeakRecipient;
use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::prelude::*;
use speechverse::audio::config::{AudioConfig, SpeechConfig};
use speechverse::audio::{
    AudioError, AudioLimits, Damage, SAMPLE_RATE_HZ, Waveform, decode, has_long_pause, loudest_frame_dbfs,
    samples_of,
};
use speechverse::inference::config::DecoderConfig;
use speechverse::inference::{AudioWindow, VoiceDetector};
use speechverse::kafka::{Budget, OffsetTracker, SourceEvent, TopicPartition};
use speechverse::models::ModelError;
use speechverse::telemetry::metrics;
use speechverse::text::{OutputGrammar, ResolvedPrompt, Structure, TaskTable, TemplateVariables, TextError};
use speechverse::training::Control;
use speechverse::util::Clock;
use speechverse::wire::dead_letter::{Reason, Rejection, Stage};
use speechverse::wire::request::{Instructions, Request, RequestLimits};
use speechverse::wire::{Record, RecordOffset};
use tracing::{Span, debug, error, info, warn};

use crate::answering::is_transcript;
use crate::current::CurrentAdapter;
use crate::inbox::{Arrival, Inbox};
use crate::interrupt::{Interrupt, Interrupts};
use crate::joining::Joining;
use crate::long_recording::NotLong;
use crate::long_recordings::LongRecordings;
use crate::messages::{
    EncodeSoFar, EncodeUtterance, OrphanQueue, PublishAnswer, PublishDeadLetter, PublishPartial, RecordGuard,
    RequestContext, UtteranceAdmitted, request_span,
};
use crate::reading::ReadSegment;
use crate::stream_audio::{ReadingIntervals, Step, StreamAudio, StreamEnd};
use crate::streams::{Next, StreamLimits, StreamName, StreamRecords, Streams, Taken};
use crate::windows::{WindowSource, publish_joined, publish_window, without_sound, without_value};

mod recordings;
mod sessions;

/// Bytes of `kafka.in_flight_bytes_max` for each chunk that unfinished streams may have.
const BYTES_PER_CHUNK: u64 = 64;
/// How often unfinished streams, and recordings that wait, are looked at.
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
    pub audio: AudioConfig,
    /// How speech is found, and where long sound is cut.
    pub speech: SpeechConfig,
    /// By which answers that are joined here get their flags.
    pub decoder: DecoderConfig,
    /// What a request may be.
    pub limits: RequestLimits,
    /// What to do when a request does not say.
    pub instructions: Arc<dyn Instructions + Send + Sync>,
    /// The version to pin to.
    pub adapter: CurrentAdapter,
    /// Where forgotten contexts go.
    pub orphans: OrphanQueue,
    /// Training that gives way while utterances are in flight; absent when it should not.
    pub training: Option<Control>,
    /// Next stage.
    pub encoder: Recipient<EncodeUtterance>,
    /// Remembers utterances for corrections, where this process takes them; its loss is no reason to stop.
    pub collector: Option<Recipient<UtteranceAdmitted>>,
    /// Reads what is spoken in streams so far.
    pub so_far: Recipient<EncodeSoFar>,
    /// Takes answers that are joined here.
    pub answers: Recipient<PublishAnswer>,
    /// Takes answers to windows that were kept back until now.
    pub partials: Recipient<PublishPartial>,
    /// Takes what cannot be answered.
    pub publisher: Recipient<PublishDeadLetter>,
}

/// What is known of a recording beside its sound.
struct Facts {
    deadline: Option<Instant>,
    decode_audio: Duration,
    /// Records of earlier chunks.
    earlier: Vec<RecordOffset>,
    interrupt: Interrupt,
    /// Of a stream that is answered as one: what was read of it.
    so_far: Option<ReadSegment>,
}

/// The first stage.
pub struct AudioIngest {
    args: IngestArgs,
    inbox: Inbox,
    streams: Streams<StreamAudio>,
    /// When unfinished streams were looked at.
    looked_at: Instant,
    detector: VoiceDetector,
    long_recordings: LongRecordings,
    /// Takes back those that are not long.
    not_long: WeakRecipient<NotLong>,
    interrupts: Interrupts,
}

impl Actor for AudioIngest {
    type Args = IngestArgs;
    type Error = ModelError;

    async fn on_start(args: Self::Args, ingest: ActorRef<Self>) -> Result<Self, Self::Error> {
        let bytes_max = args.tracker.budget().bytes_max();
        let part = |divisor: u64| usize::try_from(bytes_max / divisor).unwrap_or(usize::MAX);
        let limits = StreamLimits {
            streams_max: args.speech.sessions_max,
            idle: Duration::from_secs(args.speech.session_idle_seconds_max),
            // The rest is for what is being worked on.
            kept_bytes_max: part(4),
            chunks_max: part(BYTES_PER_CHUNK),
        };
        let streams = Streams::new(limits, args.clock.clone());
        let detector = VoiceDetector::open(&args.speech, &args.audio)?;
        info!(detector = detector.name(), "how speech is found");
        Ok(Self {
            detector,
            interrupts: Interrupts::default(),
            long_recordings: LongRecordings::new(args.speech.long_recordings_max),
            not_long: ingest.recipient().downgrade(),
            inbox: Inbox::new(
                "requests",
                args.events.clone(),
                args.tracker.budget().audio().clone(),
                STREAM_CHECK_INTERVAL,
                args.clock.clone(),
            ),
            looked_at: args.clock.now(),
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
            self.give_up_what_is_old().await;
            match arrival {
                Arrival::Signal(signal) => return Ok(signal),
                Arrival::Record(record) => {
                    let began = Instant::now();
                    self.admit(record).await;
                    let busy = began.elapsed();
                    if busy >= STREAM_CHECK_INTERVAL {
                        self.streams.excuse(busy, |_| true); // nothing was read meanwhile
                    }
                }
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
            return self.answer(record, request).await;
        }
        let taken = self.streams.take(record.complete(), request);
        self.go_on(taken).await;
    }

    async fn go_on(&mut self, taken: Taken) {
        match taken {
            Taken::Next(next) => self.take_chunk(next).await,
            Taken::Repeated(record) => {
                debug!(record_offset = ?record.record_offset, "a chunk that its stream had before is passed over");
                metrics::chunk_repeated();
                self.args.tracker.release(&record.record_offset);
            }
            Taken::Broken(records, rejection) => self.refuse_all(*records, rejection).await,
        }
    }

    fn guard(&self, record: Record) -> RecordGuard {
        RecordGuard::new(record, Stage::Ingest, self.args.orphans.clone())
    }

    /// Gives up streams that are silent, which counts only where chunks would be read if there were any, and
    /// recordings that wait and are not wanted any more.
    async fn give_up_what_is_old(&mut self) {
        let now = self.args.clock.now();
        let passed = now - self.looked_at;
        if passed >= STREAM_CHECK_INTERVAL {
            self.looked_at = now;
            let tracker = &self.args.tracker;
            self.streams
                .excuse(passed, |partition| tracker.holds_back(partition));
            for recording in self.long_recordings.take_unwanted(now) {
                recording.dismiss(now).await;
            }
        }
        for (records, rejection) in self.streams.expired() {
            self.refuse_all(records, rejection).await;
        }
    }

    /// Whether a record's partition was taken away: another process works on it.
    fn is_revoked(&self, record_offset: &RecordOffset) -> bool {
        let revoked = !self.args.tracker.is_current(record_offset);
        if revoked {
            debug!(
                ?record_offset,
                "a record of a revoked partition, another process works on it"
            );
        }
        revoked
    }

    /// Whether long sound is answered window by window: what is said is asked for, in any words.
    fn is_by_window(&self, request: &Request) -> bool {
        request.grammar.is_none() && is_transcript(request, &self.args.instructions.default_instruction())
    }

    /// Ends the answers that are in progress for a request's session.
    fn barge_in(&mut self, request: &Request) {
        let interrupted = self.interrupts.interrupt(request);
        if interrupted > 0 {
            debug!(request_id = %request.id, interrupted, "a new utterance ends answers in progress");
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

    async fn refuse(&self, record: Record, rejection: Rejection) {
        self.tell_publisher(PublishDeadLetter::at_admission(record, rejection))
            .await;
    }

    async fn tell_publisher(&self, letter: PublishDeadLetter) {
        if let Err(error) = self.args.publisher.tell(letter).await {
            error!(error = %error.to_string(), "publisher is gone");
        }
    }
}

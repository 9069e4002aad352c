//! A recording that is longer than what is kept of it: measured and decoded again on a thread of its own,
//! piece by piece, and sent to the encoder window by window, a few at a time.

use std::sync::Arc;
use std::time::Instant;

use kameo::actor::WeakRecipient;
use kameo::prelude::*;
use speechverse::audio::config::{AudioConfig, SpeechConfig};
use speechverse::audio::{AudioError, Damage, LongSound, Sound, Waveform, decode_or_measure, samples_of};
use speechverse::inference::config::DecoderConfig;
use speechverse::inference::{AudioWindow, SpeechWindows, VoiceDetector};
use speechverse::telemetry::metrics;
use speechverse::util::Clock;
use speechverse::wire::dead_letter::{Reason, Rejection, Stage};
use speechverse::wire::request::Request;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tracing::{debug, error, info, warn};

use crate::messages::{EncodeUtterance, PublishAnswer, PublishDeadLetter, RequestContext};
use crate::stream_audio::too_long;
use crate::windows::{WindowSource, publish_joined, reason_of};

/// A recording that seemed long and is not: its sound is all here.
#[derive(Debug)]
pub(crate) struct NotLong {
    pub(crate) context: RequestContext,
    pub(crate) waveform: Waveform,
}

/// A recording that is probably long, with everything that it takes to work through it. Its sound is with the
/// request of its context.
pub(crate) struct LongRecording {
    /// Not counted as admitted yet: how long its sound is, is not known.
    pub(crate) context: RequestContext,
    /// Whether it may be answered window by window.
    pub(crate) by_window: bool,
    pub(crate) work: Work,
}

/// What does not change while a recording is worked through.
pub(crate) struct Work {
    pub(crate) source: WindowSource,
    pub(crate) speech: SpeechConfig,
    pub(crate) audio: AudioConfig,
    pub(crate) decoder: DecoderConfig,
    pub(crate) clock: Clock,
    pub(crate) encoder: Recipient<EncodeUtterance>,
    pub(crate) answers: Recipient<PublishAnswer>,
    pub(crate) publisher: Recipient<PublishDeadLetter>,
    /// Takes it back where it is not long.
    pub(crate) not_long: WeakRecipient<NotLong>,
}

impl LongRecording {
    /// Whether it is still to be answered, and here, at `now`.
    pub(crate) fn is_wanted(&self, now: Instant) -> bool {
        let is_late = self.context.deadline.is_some_and(|deadline| deadline <= now);
        !is_late && self.work.source.is_wanted()
    }

    /// Settles one that is not wanted any more and was not begun.
    pub(crate) async fn dismiss(self, now: Instant) {
        let Self { context, work, .. } = self;
        let source = &work.source;
        if !source.tracker.is_current(&source.record.record_offset) {
            context.withdraw();
        } else if source.interrupt.is_set() {
            source.joining.keep(context);
            work.close().await;
        } else if let Some(letter) = PublishDeadLetter::late(context, now) {
            work.publish(letter).await;
        }
    }

    /// Works through it.
    pub(crate) fn run(self, runtime: &Handle) {
        let now = self.work.clock.now();
        if !self.is_wanted(now) {
            return runtime.block_on(self.dismiss(now));
        }
        let Self {
            mut context,
            by_window,
            work,
        } = self;
        let started = Instant::now();
        let sound = work.measure(&context.request, by_window);
        let decode_audio = started.elapsed();
        context.times.decode_audio_ms += decode_audio.as_secs_f64() * 1e3;
        match sound {
            Ok(Sound::Long(sound)) => {
                context.audio_seconds = sound.seconds();
                context.damage = sound.damage.clone();
                metrics::utterance_admitted(context.audio_seconds);
                context.is_tracked(work.source.tracker.clone());
                work.source.joining.keep(context);
                work.answer(&sound, runtime);
            }
            Ok(Sound::Whole(waveform)) => {
                let back = NotLong { context, waveform };
                let told = work.not_long.upgrade();
                let told = told.map(|ingest| runtime.block_on(async { ingest.tell(back).await }));
                if !matches!(told, Some(Ok(()))) {
                    warn!("ingest is gone, a recording goes back");
                }
            }
            Err(why) => {
                if let Some(letter) = PublishDeadLetter::of(context, why.reason, why.message) {
                    runtime.block_on(work.publish(letter));
                }
            }
        }
    }
}

impl Work {
    fn measure(&self, request: &Request, by_window: bool) -> Result<Sound, Rejection> {
        let kept = samples_of(self.audio.whole_seconds_max);
        let limits = self.audio.limits();
        let sound = decode_or_measure(&request.audio, request.content_type.as_deref(), &limits, kept)
            .map_err(|error| rejection(&error))?;
        match &sound {
            Sound::Whole(waveform) => {
                note_defects(request, waveform.content_type_mismatch, &waveform.damage);
            }
            Sound::Long(long) if by_window => {
                note_defects(request, long.content_type_mismatch, &long.damage);
            }
            Sound::Long(long) => return Err(too_long(samples_of(long.seconds()) as u64, kept)),
        }
        Ok(sound)
    }

    /// Sends its windows; its context is with whoever joins, and so is its outcome.
    fn answer(&self, sound: &LongSound, runtime: &Handle) {
        let detector = VoiceDetector::open_or_by_level(&self.speech, &self.audio);
        let mut windows = SpeechWindows::new(&detector, &self.speech.windows(false));
        let places = Arc::new(Semaphore::new(self.speech.windows_in_flight_max));
        let mut failure = None;
        let read = sound.read(|piece| {
            let found = match windows.push(&detector, piece) {
                Ok(found) => found,
                Err(error) => {
                    let why = Rejection::new(Reason::InternalError, Stage::Ingest, error.to_string());
                    failure = Some(why);
                    return false;
                }
            };
            found
                .into_iter()
                .all(|window| self.send(window, &places, runtime))
                && self.source.is_wanted()
        });
        // What was said before somebody spoke again is the answer.
        let interrupted = self.source.interrupt.is_set();
        if failure.is_none() && (interrupted || self.source.is_wanted()) {
            if interrupted || read.is_ok() {
                let last = windows.finish().filter(|_| !interrupted);
                let all = last.is_none_or(|window| self.send(window, &places, runtime));
                if all || self.source.interrupt.is_set() {
                    runtime.block_on(self.close());
                }
                return;
            }
            // Cannot be: it was decoded to its end before.
            failure = read.err().map(|error| rejection(&error));
        }
        match failure {
            Some(why) => self.refuse(why, runtime),
            None if !self.source.tracker.is_current(&self.source.record.record_offset) => self.withdraw(),
            None => {} // a window failed, and whoever noticed took the recording with it
        }
    }

    /// No further window comes: where all answers are there, the whole is published.
    async fn close(&self) {
        if let Some(joined) = self.source.joining.close() {
            let version = self.source.adapter.version().to_owned();
            publish_joined(joined, version, &self.decoder, &self.answers).await;
        }
    }

    /// The partition was taken away: whoever has it now answers the recording, and nothing is said of it
    /// here.
    fn withdraw(&self) {
        let why = Rejection::new(
            Reason::InternalError,
            Stage::Ingest,
            "its partition was taken away",
        );
        if let Some(context) = self.source.joining.give_up(why) {
            context.withdraw();
        }
    }

    /// Sends a window when there is a place for it; `false` where that makes no sense any more.
    fn send(&self, window: AudioWindow, places: &Arc<Semaphore>, runtime: &Handle) -> bool {
        let Ok(place) = runtime.block_on(Arc::clone(places).acquire_owned()) else {
            return false;
        };
        if !self.source.is_wanted() {
            return false;
        }
        let order = self.source.order(window, Some(place));
        match runtime.block_on(async { self.encoder.tell(order).await }) {
            Ok(()) => true,
            Err(error) => {
                warn!(error = %error.to_string(), "encoder is gone, a recording goes back");
                false
            }
        }
    }

    fn refuse(&self, why: Rejection, runtime: &Handle) {
        let Some(context) = self.source.joining.give_up(why.clone()) else {
            return;
        };
        if let Some(letter) = PublishDeadLetter::of(context, why.reason, why.message) {
            runtime.block_on(self.publish(letter));
        }
    }

    async fn publish(&self, letter: PublishDeadLetter) {
        if let Err(error) = self.publisher.tell(letter).await {
            error!(error = %error.to_string(), "publisher is gone");
        }
    }
}

/// Logs what is wrong with the sound of a request that can be answered.
pub(crate) fn note_defects(request: &Request, content_type_mismatch: bool, damage: &Damage) {
    if content_type_mismatch {
        debug!(request_id = %request.id, content_type = ?request.content_type, "the bytes are of another type than declared");
    }
    if *damage != Damage::default() {
        let Damage {
            undecoded_seconds,
            notes,
            ..
        } = damage;
        info!(request_id = %request.id, undecoded_seconds, ?notes, "the sound is damaged");
    }
}

/// The rejection of sound that cannot be decoded.
pub(crate) fn rejection(error: &AudioError) -> Rejection {
    Rejection::new(reason_of(error), Stage::Ingest, error.to_string())
}

//! A recording that is longer than what is kept of it: decoded again on a thread of its own, piece by piece,
//! and sent to the encoder window by window, a few at a time.

use std::sync::Arc;

use kameo::prelude::*;
use speechverse::audio::config::{AudioConfig, SpeechConfig};
use speechverse::audio::{AudioError, LongSound};
use speechverse::inference::config::DecoderConfig;
use speechverse::inference::{AudioWindow, SpeechWindows, VoiceDetector};
use speechverse::telemetry::metrics;
use speechverse::wire::dead_letter::{Reason, Rejection, Stage};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tracing::{error, warn};

use crate::messages::{EncodeUtterance, PublishAnswer, PublishDeadLetter};
use crate::windows::{WindowSource, publish_joined, reason_of};

/// Everything that it takes to work through one.
pub(crate) struct LongRecording {
    pub(crate) sound: LongSound,
    pub(crate) source: WindowSource,
    pub(crate) speech: SpeechConfig,
    pub(crate) audio: AudioConfig,
    pub(crate) decoder: DecoderConfig,
    /// How many are worked through at once.
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) encoder: Recipient<EncodeUtterance>,
    pub(crate) answers: Recipient<PublishAnswer>,
    pub(crate) publisher: Recipient<PublishDeadLetter>,
}

impl LongRecording {
    /// Works through it on a thread of its own; its context is with whoever joins, and so is its outcome.
    pub(crate) fn start(self) {
        let runtime = Handle::current();
        let joining = self.source.joining.clone();
        let started = std::thread::Builder::new()
            .name("long-recording".to_owned())
            .spawn(move || self.run(&runtime));
        if let Err(error) = started {
            error!(%error, "no thread for a long recording");
            let why = Rejection::new(Reason::InternalError, Stage::Ingest, error.to_string());
            drop(joining.give_up(why));
        }
    }

    fn run(self, runtime: &Handle) {
        let Ok(_slot) = runtime.block_on(Arc::clone(&self.slots).acquire_owned()) else {
            return;
        };
        let detector = VoiceDetector::open_or_by_level(&self.speech, &self.audio);
        let mut windows = SpeechWindows::new(&detector, &self.speech.windows(false));
        let places = Arc::new(Semaphore::new(self.speech.windows_in_flight_max));
        let mut failure = None;
        let read = self.sound.read(|piece| {
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
                if (all || self.source.interrupt.is_set())
                    && let Some(joined) = self.source.joining.close()
                {
                    let version = self.source.adapter.version().to_owned();
                    runtime.block_on(publish_joined(joined, version, &self.decoder, &self.answers));
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

    /// The partition was taken away: whoever has it now answers the recording, and nothing is said of it
    /// here.
    fn withdraw(&self) {
        let why = Rejection::new(
            Reason::InternalError,
            Stage::Ingest,
            "its partition was taken away",
        );
        if let Some(context) = self.source.joining.give_up(why) {
            metrics::utterance_left(context.audio_seconds);
            context.complete();
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
        let Some(letter) = PublishDeadLetter::of(context, why.reason, why.message) else {
            return;
        };
        if let Err(error) = runtime.block_on(async { self.publisher.tell(letter).await }) {
            error!(error = %error.to_string(), "publisher is gone");
        }
    }
}

fn rejection(error: &AudioError) -> Rejection {
    Rejection::new(reason_of(error), Stage::Ingest, error.to_string())
}

//! The audio of a chunked stream: decoded as it comes, and, of a transcript, cut into windows.

use std::time::Instant;

use speechverse::audio::config::SpeechConfig;
use speechverse::audio::{
    AudioLimits, Damage, SAMPLE_RATE_HZ, StreamDecoder, VOICE_FRAME_SAMPLES, samples_of,
};
use speechverse::inference::{AudioWindow, SpeechWindows, VoiceDetector};
use speechverse::kafka::{Budget, BudgetHold};
use speechverse::wire::answer::Segment;
use speechverse::wire::dead_letter::{Reason, Rejection, Stage};
use speechverse::wire::request::Request;

use crate::joining::Joining;
use crate::likely::LikelyWindow;
use crate::messages::{EncodeSoFar, EncodeUtterance, SoFar, WindowDone};
use crate::reading::{ReadSegment, Reading};
use crate::windows::{WindowSource, reason_of};

/// Silence after which nothing is read any more: the utterance may be over.
const SILENCE_SAMPLES: u64 = 2 * VOICE_FRAME_SAMPLES as u64;

/// How often a stream in which somebody speaks is read, samples.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadingIntervals {
    /// By the CTC head.
    pub(crate) read: u64,
    /// By the language model too.
    pub(crate) confirm: u64,
}

/// What is to be done about a window.
#[derive(Debug)]
pub(crate) enum Step {
    /// It is to be answered.
    Encode(EncodeUtterance),
    /// Its answer is made already.
    Publish(Box<WindowDone>),
}

/// Gives the windows and readings of a stream up where it is dropped before its end: it is broken, or its
/// partition was taken away, and nothing more of it is to be worked on or published.
#[derive(Debug, Default)]
struct GiveUp {
    joining: Option<Joining>,
    reading: Reading,
}

impl Drop for GiveUp {
    fn drop(&mut self) {
        if let Some(joining) = self.joining.take() {
            self.reading.set_answered(true);
            let why = Rejection::new(Reason::BrokenStream, Stage::Ingest, "its stream is given up");
            drop(joining.give_up(why));
        }
    }
}

/// One stream.
#[derive(Debug)]
pub(crate) struct StreamAudio {
    decoder: StreamDecoder,
    /// The memory of what is kept to be decoded later.
    held: Option<BudgetHold>,
    /// Its sound, while it may be answered as one.
    whole: Option<Vec<f32>>,
    whole_samples_max: usize,
    samples: u64,
    windows: Option<SpeechWindows>,
    /// Windows that are full while the sound is no longer than one, and may be answered as one.
    pending: Vec<AudioWindow>,
    /// Of a transcript: how its windows are sent and joined.
    pub(crate) source: Option<WindowSource>,
    /// When it is not worth answering any more, by the pipeline's clock.
    pub(crate) deadline: Option<Instant>,
    give_up: GiveUp,
    windows_sent: usize,
    /// A window that ends an utterance if nobody speaks on.
    likely: Option<LikelyWindow>,
    pub(crate) reading: Reading,
    barged_in: bool,
    /// When the last reading was due, and the last by the language model, samples.
    read_at: u64,
    confirm_at: u64,
}

/// The end of a stream.
#[derive(Debug)]
pub(crate) struct StreamEnd {
    /// Its sound, where no window of it was sent; it is answered as one.
    pub(crate) whole: Option<Vec<f32>>,
    /// Its last window, where others were sent before.
    pub(crate) last: Option<AudioWindow>,
    /// Length, seconds.
    pub(crate) seconds: f64,
    pub(crate) damage: Damage,
}

impl StreamAudio {
    /// A stream about which anything may be asked: it is answered whole, up to `whole_seconds_max`.
    pub(crate) fn whole(content_type: Option<&str>, limits: &AudioLimits, whole_seconds_max: f64) -> Self {
        Self {
            decoder: StreamDecoder::new(content_type, limits),
            held: None,
            whole: Some(Vec::new()),
            whole_samples_max: samples_of(whole_seconds_max),
            samples: 0,
            windows: None,
            pending: Vec::new(),
            source: None,
            deadline: None,
            give_up: GiveUp::default(),
            windows_sent: 0,
            likely: None,
            reading: Reading::default(),
            barged_in: false,
            read_at: 0,
            confirm_at: 0,
        }
    }

    /// A stream whose transcript is asked for, of any length; cut at each utterance's end where
    /// `by_utterance`.
    pub(crate) fn transcript(
        content_type: Option<&str>,
        limits: &AudioLimits,
        speech: &SpeechConfig,
        by_utterance: bool,
        detector: &VoiceDetector,
        source: WindowSource,
    ) -> Self {
        let reading = Reading::default();
        Self {
            whole_samples_max: speech.window_samples_max(),
            windows: Some(SpeechWindows::new(detector, &speech.windows(by_utterance))),
            give_up: GiveUp {
                joining: Some(source.joining.clone()),
                reading: reading.clone(),
            },
            reading,
            source: Some(source),
            ..Self::whole(content_type, limits, 0.0)
        }
    }

    /// Bytes that are kept to be decoded later.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.decoder.kept_bytes()
    }

    /// Memory of sound that is asked about as a whole, bytes; none of a transcript's, of which a window is
    /// kept.
    pub(crate) fn whole_bytes(&self) -> usize {
        let whole = self.whole.as_ref().filter(|_| self.windows.is_none());
        whole.map_or(0, |samples| samples.capacity() * size_of::<f32>())
    }

    /// Counts the bytes that are kept now as in flight, for as long as it lives.
    pub(crate) fn hold(&mut self, budget: &Budget) {
        self.held = Some(budget.hold(self.kept_bytes() as u64));
    }

    /// Its windows are joined or not needed from now on: they are not given up when it is dropped.
    pub(crate) fn keep_windows(&mut self) {
        self.give_up.joining = None;
    }

    /// Takes the next chunk; the windows that end in it.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        detector: &VoiceDetector,
    ) -> Result<Vec<AudioWindow>, Rejection> {
        let samples = self.decoder.push(bytes).map_err(|error| rejection(&error))?;
        self.cut(&samples, detector)
    }

    fn cut(&mut self, samples: &[f32], detector: &VoiceDetector) -> Result<Vec<AudioWindow>, Rejection> {
        self.samples += samples.len() as u64;
        if let Some(whole) = &mut self.whole {
            whole.extend_from_slice(samples);
            if whole.len() > self.whole_samples_max {
                if self.windows.is_none() {
                    return Err(too_long(self.samples, self.whole_samples_max));
                }
                self.whole = None;
            }
        }
        let Some(windows) = &mut self.windows else {
            return Ok(Vec::new());
        };
        let mut found = std::mem::take(&mut self.pending);
        let new = windows
            .push(detector, samples)
            .map_err(|error| Rejection::new(Reason::InternalError, Stage::Ingest, error.to_string()))?;
        found.extend(new);
        // A window holds whole frames, so it is full up to a frame before the sound is too long for one.
        if self.whole.is_some() && found.iter().all(|found| found.window.is_cut) {
            self.pending = found;
            return Ok(Vec::new());
        }
        self.windows_sent += found.len();
        if self.windows_sent > 0 {
            self.whole = None;
        }
        Ok(found)
    }

    /// The stream's request, once, when it asks for barge-in and somebody has begun to speak.
    pub(crate) fn barges_in(&mut self) -> Option<Request> {
        let source = self.source.as_ref().filter(|source| source.request.barge_in)?;
        let has_windows = self.windows_sent > 0 || !self.pending.is_empty();
        let speaks = has_windows || self.windows.as_ref()?.in_speech().is_some();
        if !speaks || std::mem::replace(&mut self.barged_in, true) {
            return None;
        }
        Some(source.request.clone())
    }

    /// What is to be done about windows that have ended.
    pub(crate) fn ended(&mut self, windows: Vec<AudioWindow>) -> Vec<Step> {
        let mut steps = Vec::with_capacity(windows.len());
        for cut in windows {
            let likely = self.likely.take();
            self.reading.set_answered(false);
            let Some(source) = &self.source else { continue };
            match likely {
                Some(likely) if likely.window == cut.window => {
                    source.joining.expect(cut.window.overlaps);
                    steps.extend(likely.confirm().map(Step::Publish));
                }
                _ => {
                    let number = source.joining.next_number() as u64;
                    let end = seconds(cut.window.samples.end);
                    let so_far = self.read_segment(number, cut.window.is_cut.then_some(end));
                    let mut order = source.order(cut, None);
                    order.context.so_far = Some(so_far);
                    steps.push(Step::Encode(order));
                }
            }
        }
        steps
    }

    /// Whether it was read while it was spoken: partial answers of it may have been published.
    pub(crate) fn was_read(&self) -> bool {
        self.read_at > 0
    }

    /// What is read of a segment, for its answer.
    pub(crate) fn read_segment(&self, number: u64, cut_seconds: Option<f64>) -> ReadSegment {
        ReadSegment {
            reading: self.reading.clone(),
            number,
            cut_seconds,
        }
    }

    /// The order to answer an utterance that has probably ended, where its stream asks for partial answers;
    /// the answer is kept back until that is certain.
    pub(crate) fn likely_ended(&mut self) -> Option<Step> {
        let source = self.source.as_ref().filter(|source| source.request.partials)?;
        let windows = self.windows.as_ref().filter(|_| self.pending.is_empty())?;
        let window = windows.likely_end();
        if self.likely.as_ref().map(|likely| &likely.window) == window.as_ref() {
            return None;
        }
        self.likely = None;
        self.reading.set_answered(window.is_some());
        let window = window?;
        let number = source.joining.next_number();
        let (likely, owner) = LikelyWindow::new(window.clone(), &source.joining);
        let mut order = source.order_as(windows.sound_of(window), number, owner, None);
        order.context.so_far = Some(self.read_segment(number as u64, None));
        self.likely = Some(likely);
        Some(Step::Encode(order))
    }

    /// The utterance that is being spoken, to be read so far: where its stream asks for partial answers, it
    /// is time, and no reading is on its way.
    pub(crate) fn next_reading(&mut self, every: ReadingIntervals) -> Option<EncodeSoFar> {
        let source = self.source.as_ref().filter(|source| source.request.partials)?;
        let windows = self.windows.as_ref().filter(|_| self.pending.is_empty())?;
        let due = self.read_at + every.read;
        if self.samples < due || windows.silence_samples() >= SILENCE_SAMPLES {
            return None;
        }
        let (begin, samples) = windows.in_speech()?;
        let turn = self.reading.turn()?;
        // In step with the sound, however long its chunks are, unless one was left out.
        let is_in_step = self.samples < due + every.read;
        self.read_at = if is_in_step { due } else { self.samples };
        let is_to_confirm = self.samples >= self.confirm_at.max(begin) + every.confirm;
        if is_to_confirm {
            self.confirm_at = self.samples;
        }
        Some(EncodeSoFar {
            samples: samples.to_vec(),
            adapter: source.adapter.clone(),
            so_far: SoFar {
                turn,
                segment: Segment {
                    number: self.windows_sent as u64,
                    begin_seconds: seconds(begin),
                    end_seconds: seconds(begin + samples.len() as u64),
                    is_settled: false,
                    confirmed: None,
                },
                request: source.request.clone(),
                key: source.record.key.clone(),
                is_to_confirm,
            },
        })
    }

    /// The stream is over: the windows that end in what was not cut yet, and the end itself.
    pub(crate) fn finish(
        &mut self,
        detector: &VoiceDetector,
    ) -> Result<(Vec<AudioWindow>, StreamEnd), Rejection> {
        let nothing = StreamDecoder::new(None, &AudioLimits::default());
        let decoder = std::mem::replace(&mut self.decoder, nothing);
        let end = decoder.finish().map_err(|error| rejection(&error))?;
        let windows = self.cut(&end.samples, detector)?;
        let last = match self.whole {
            Some(_) => {
                self.likely = None; // it is answered as it came
                None
            }
            None => self.windows.as_mut().and_then(SpeechWindows::finish),
        };
        self.windows_sent += usize::from(last.is_some());
        let end = StreamEnd {
            whole: self.whole.take(),
            last,
            seconds: self.samples as f64 / f64::from(SAMPLE_RATE_HZ),
            damage: end.damage,
        };
        Ok((windows, end))
    }
}

/// Length of a sound.
fn seconds(samples: u64) -> f64 {
    samples as f64 / f64::from(SAMPLE_RATE_HZ)
}

/// The rejection of sound that is too long to be asked about as a whole.
pub(crate) fn too_long(samples: u64, samples_max: usize) -> Rejection {
    let rate = f64::from(SAMPLE_RATE_HZ);
    let message = format!(
        "the sound lasts at least {:.1} s; anything but a transcript is answered up to {:.1} s \
         (`audio.whole_seconds_max`)",
        samples as f64 / rate,
        samples_max as f64 / rate
    );
    Rejection::new(Reason::AudioTooLong, Stage::Ingest, message)
}

fn rejection(error: &speechverse::audio::AudioError) -> Rejection {
    Rejection::new(reason_of(error), Stage::Ingest, error.to_string())
}

//! Speech in sound: a voice activity detector, and windows of speech cut by it.
//!
//! The detector is Silero VAD where its folder is there. Where it is not, loud is taken for speech: what is
//! within 25 dB of the loudest so far, and above the level of silence.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::InferenceError;
use crate::audio::config::{AudioConfig, SpeechConfig};
use crate::audio::{VOICE_FRAME_SAMPLES, Window, WindowCutter, WindowLimits, power_without_dc};
use crate::models::ModelError;
use crate::models::silero_vad::{SileroVad, VadState};
use crate::telemetry::metrics;

/// Frames of speech, one after the other, that a recording has at least where somebody speaks: 0.13 s.
const SPEECH_FRAMES_MIN: usize = 4;
/// Power of what is speech to the loudest before: -25 dB.
const BELOW_LOUDEST: f64 = 0.003_162;
/// What the loudest loses in a frame, so that a door that slams is forgotten: 1 dB a second.
const LOUDEST_KEPT: f64 = 0.992_66; // 10^(-0.1 · 0.032)

/// Detects speech.
#[derive(Debug)]
pub struct VoiceDetector {
    /// Asked by one thread at a time.
    silero: Option<Mutex<SileroVad>>,
    /// Power below which everything is silence.
    silence: f64,
    speech_above: f32,
}

/// What a detector remembers of one stream of sound.
#[derive(Debug)]
pub struct VoiceState {
    silero: Option<VadState>,
    loudest: f64,
    /// Samples that do not make a frame yet.
    rest: Vec<f32>,
}

impl VoiceDetector {
    /// The detector of `speech.detector`; the rule by loudness where there is no such folder.
    ///
    /// # Errors
    /// [`ModelError`] when the folder holds something else.
    pub fn open(speech: &SpeechConfig, audio: &AudioConfig) -> Result<Self, ModelError> {
        let wanted = !speech.detector.as_os_str().is_empty();
        let silero = match wanted && speech.detector.exists() {
            true => Some(Mutex::new(SileroVad::open(&speech.detector)?)),
            false => None,
        };
        Ok(Self {
            silero,
            silence: 10_f64.powf(audio.no_speech_below_dbfs / 10.0),
            speech_above: speech.speech_above as f32,
        })
    }

    /// As [`open`](Self::open); where the folder holds something else, that is logged and loudness decides.
    pub fn open_or_by_level(speech: &SpeechConfig, audio: &AudioConfig) -> Self {
        Self::open(speech, audio).unwrap_or_else(|error| {
            tracing::error!(%error, "the voice activity detector cannot be opened, loud is taken for speech");
            let none = SpeechConfig {
                detector: Default::default(),
                ..speech.clone()
            };
            Self::open(&none, audio).expect("without a folder there is nothing to open")
        })
    }

    /// Its name, for people.
    pub fn name(&self) -> &'static str {
        match self.silero {
            Some(_) => "Silero VAD",
            None => "loudness (no `speech.detector`; `models fetch silero-vad` gets it)",
        }
    }

    /// Before the first sample.
    pub fn begin(&self) -> VoiceState {
        VoiceState {
            silero: self.silero.as_ref().map(|silero| locked(silero).begin()),
            loudest: 0.0,
            rest: Vec::new(),
        }
    }

    /// The probability of speech in each whole frame ([`VOICE_FRAME_SAMPLES`]) so far; what is
    /// left waits for more.
    ///
    /// # Errors
    /// [`ModelError`] when the network fails.
    pub fn speech_probabilities(
        &self,
        samples: &[f32],
        state: &mut VoiceState,
    ) -> Result<Vec<f32>, ModelError> {
        let mut frames = std::mem::take(&mut state.rest);
        frames.extend_from_slice(samples);
        let whole = frames.len() / VOICE_FRAME_SAMPLES * VOICE_FRAME_SAMPLES;
        state.rest = frames.split_off(whole);
        match (&self.silero, &mut state.silero) {
            (Some(silero), Some(state)) => {
                let silero = locked(silero);
                let began = Instant::now();
                let probabilities = silero.probabilities(&frames, state);
                metrics::network_pass("detect", began.elapsed());
                probabilities
            }
            _ => Ok(frames
                .chunks(VOICE_FRAME_SAMPLES)
                .map(|frame| {
                    let power = power_without_dc(frame);
                    state.loudest = power.max(state.loudest * LOUDEST_KEPT);
                    let is_speech = power >= self.silence && power > state.loudest * BELOW_LOUDEST;
                    f32::from(u8::from(is_speech))
                })
                .collect()),
        }
    }

    /// Whether somebody speaks in a whole recording, which is looked at up to where that is clear. By
    /// loudness alone, everything that is not silence is taken for speech.
    ///
    /// # Errors
    /// [`ModelError`] when the network fails.
    pub fn has_speech(&self, samples: &[f32]) -> Result<bool, ModelError> {
        // In most recordings somebody speaks soon.
        const FIRST: usize = 16 * VOICE_FRAME_SAMPLES; // 0.5 s
        const AT_ONCE: usize = 64 * VOICE_FRAME_SAMPLES; // 2 s
        let (first, rest) = samples.split_at(samples.len().min(FIRST));
        let frames_min = match self.silero {
            Some(_) => SPEECH_FRAMES_MIN,
            None => 1,
        };
        let (mut state, mut run) = (self.begin(), 0);
        for part in std::iter::once(first).chain(rest.chunks(AT_ONCE)) {
            let mut padded = part.to_vec();
            let last = part.last().copied().unwrap_or_default(); // a step would sound like speech
            padded.resize(part.len().next_multiple_of(VOICE_FRAME_SAMPLES), last);
            for probability in self.speech_probabilities(&padded, &mut state)? {
                run = if probability >= self.speech_above {
                    run + 1
                } else {
                    0
                };
                if run >= frames_min {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Where a whole recording is cut into windows of speech, in samples.
    ///
    /// # Errors
    /// [`ModelError`] when the network fails.
    pub fn windows(&self, samples: &[f32], limits: &WindowLimits) -> Result<Vec<Window>, ModelError> {
        const AT_ONCE: usize = 1_000 * VOICE_FRAME_SAMPLES; // 32 s
        let (mut state, mut cutter) = (self.begin(), WindowCutter::new(limits));
        let mut windows = Vec::new();
        for part in samples.chunks(AT_ONCE) {
            let found = self.speech_probabilities(part, &mut state)?;
            windows.extend(
                found
                    .into_iter()
                    .filter_map(|probability| cutter.push(probability)),
            );
        }
        windows.extend(cutter.finish(samples.len() as u64));
        Ok(windows)
    }
}

/// A poisoned lock is sound: the network does not change.
fn locked(silero: &Mutex<SileroVad>) -> MutexGuard<'_, SileroVad> {
    silero.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream of sound and the windows of speech in it.
#[derive(Debug)]
pub struct SpeechWindows {
    state: VoiceState,
    cutter: WindowCutter,
    /// Sound from `begin` on, samples since the start.
    open: Vec<f32>,
    begin: u64,
}

/// A window with its sound.
#[derive(Clone, Debug, PartialEq)]
pub struct AudioWindow {
    /// Where it is, samples since the start.
    pub window: Window,
    /// Mono, 16 kHz.
    pub samples: Vec<f32>,
}

impl SpeechWindows {
    /// Before the first sample.
    pub fn new(detector: &VoiceDetector, limits: &WindowLimits) -> Self {
        Self {
            state: detector.begin(),
            cutter: WindowCutter::new(limits),
            open: Vec::new(),
            begin: 0,
        }
    }

    /// Takes more sound; the windows that end in it.
    ///
    /// # Errors
    /// [`InferenceError`] when the network fails.
    pub fn push(
        &mut self,
        detector: &VoiceDetector,
        samples: &[f32],
    ) -> Result<Vec<AudioWindow>, InferenceError> {
        self.open.extend_from_slice(samples);
        let found = detector.speech_probabilities(samples, &mut self.state)?;
        let windows: Vec<Window> = found
            .into_iter()
            .filter_map(|probability| self.cutter.push(probability))
            .collect();
        let cut = windows
            .into_iter()
            .map(|window| self.with_samples(window))
            .collect();
        self.forget_before(self.cutter.begin());
        Ok(cut)
    }

    /// The window that ends here if the silence goes on, where that is likely.
    pub fn likely_end(&self) -> Option<Window> {
        self.cutter.likely_end()
    }

    /// The sound of a window that is not finished.
    pub fn sound_of(&self, window: Window) -> AudioWindow {
        self.with_samples(window)
    }

    /// Silence at the end of what came so far, samples.
    pub fn silence_samples(&self) -> u64 {
        self.cutter.silence_samples()
    }

    /// The sound has ended; what is left of it.
    pub fn finish(&mut self) -> Option<AudioWindow> {
        let total = self.heard_samples();
        let found = self.cutter.finish(total).map(|window| self.with_samples(window));
        self.open.clear();
        self.begin = total;
        found
    }

    /// Samples taken so far.
    pub fn heard_samples(&self) -> u64 {
        self.begin + self.open.len() as u64
    }

    /// What no window has yet, where somebody speaks in it.
    pub fn in_speech(&self) -> Option<(u64, &[f32])> {
        self.cutter
            .in_speech()
            .then_some((self.begin, self.open.as_slice()))
    }

    fn with_samples(&self, window: Window) -> AudioWindow {
        let at = |sample: u64| usize::try_from(sample.saturating_sub(self.begin)).unwrap_or(usize::MAX);
        let Range { start, end } = at(window.samples.start)..at(window.samples.end);
        let end = end.min(self.open.len());
        let samples = self.open[start.min(end)..end].to_vec();
        AudioWindow { window, samples }
    }

    fn forget_before(&mut self, sample: u64) {
        let spare = usize::try_from(sample.saturating_sub(self.begin)).unwrap_or(usize::MAX);
        let spare = spare.min(self.open.len());
        self.open.drain(..spare);
        self.begin += spare as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fixture, real_model};

    /// A detector by loudness, and windows of at most 4 s.
    fn by_level() -> (VoiceDetector, WindowLimits) {
        let speech = SpeechConfig {
            detector: "no such folder".into(),
            window_seconds_max: 4.0,
            window_overlap_seconds: 1.0,
            ..SpeechConfig::default()
        };
        let detector = VoiceDetector::open(&speech, &AudioConfig::default()).unwrap();
        assert!(detector.name().starts_with("loudness"));
        (detector, speech.windows(false))
    }

    /// Alternating tone and silence, seconds each.
    fn sound(pieces: &[(f64, bool)]) -> Vec<f32> {
        let mut samples = Vec::new();
        for (seconds, loud) in pieces {
            let level = if *loud { 0.3 } else { 0.000_1 };
            samples.extend((0..(seconds * 16_000.0) as usize).map(|at| (at as f32 * 0.3).sin() * level));
        }
        samples
    }

    #[test]
    fn loud_is_speech_where_there_is_no_detector() {
        let (detector, _) = by_level();

        assert!(!detector.has_speech(&sound(&[(2.0, false)])).unwrap());
        assert!(detector.has_speech(&sound(&[(2.0, false), (0.1, true)])).unwrap());
        assert!(
            !detector.has_speech(&[0.5; 9_000]).unwrap(),
            "a constant is no sound"
        );
    }

    #[test]
    fn a_recording_has_speech_where_enough_frames_of_it_in_a_row_are_speech() {
        let Some(folder) = real_model("inference::voice::has_speech", "silero-vad") else {
            return;
        };
        let speech = SpeechConfig {
            detector: folder,
            ..SpeechConfig::default()
        };
        let detector = VoiceDetector::open(&speech, &AudioConfig::default()).unwrap();
        let bytes = std::fs::read(fixture("speech/librivox-0880.wav")).unwrap();
        let voice = crate::audio::decode(&bytes, None, &Default::default())
            .unwrap()
            .samples;
        let silence = vec![0.0; 100_000];
        let late = [&silence[..], &voice].concat();
        let has_run = |samples: &[f32]| {
            let whole = samples.len() / VOICE_FRAME_SAMPLES * VOICE_FRAME_SAMPLES;
            let found = detector.speech_probabilities(&samples[..whole], &mut detector.begin());
            let is_speech: Vec<bool> = found
                .unwrap()
                .iter()
                .map(|p| *p >= detector.speech_above)
                .collect();
            is_speech
                .windows(SPEECH_FRAMES_MIN)
                .any(|frames| frames.iter().all(|frame| *frame))
        };
        // Cut at all places around the begin of speech, whose first run lies across a border of what is
        // looked at where some of the silence is missing.
        let mut answers = Vec::new();
        for end in (100_000..late.len().min(120_480)).step_by(VOICE_FRAME_SAMPLES) {
            for begin in [0, 60, 61, 62, 63] {
                let samples =
                    &late[begin * VOICE_FRAME_SAMPLES..end / VOICE_FRAME_SAMPLES * VOICE_FRAME_SAMPLES];

                let found = detector.has_speech(samples).unwrap();

                assert_eq!(found, has_run(samples), "{begin}..{end}");
                answers.push(found);
            }
        }
        assert!(answers.contains(&true) && answers.contains(&false), "{answers:?}");
        assert!(!detector.has_speech(&[]).unwrap());
    }

    #[test]
    fn a_stream_in_pieces_has_the_windows_of_the_whole_with_their_sound() {
        let (detector, limits) = by_level();
        let samples = sound(&[
            (3.0, false),
            (2.5, true),
            (0.5, false),
            (9.0, true),
            (6.0, false),
            (1.0, true),
        ]);
        let whole = detector.windows(&samples, &limits).unwrap();
        assert!(
            whole.len() >= 5 && whole.iter().any(|window| window.overlaps),
            "{whole:?}"
        );

        for size in [100, 5_120, 70_000] {
            let mut stream = SpeechWindows::new(&detector, &limits);
            let mut found = Vec::new();
            for part in samples.chunks(size) {
                found.extend(stream.push(&detector, part).unwrap());
                assert!(stream.open.len() <= limits.samples_max + size + VOICE_FRAME_SAMPLES);
            }
            found.extend(stream.finish());

            let windows: Vec<Window> = found.iter().map(|found| found.window.clone()).collect();
            assert_eq!(windows, whole, "pieces of {size}");
            for cut in found {
                let range = cut.window.samples.start as usize..cut.window.samples.end as usize;
                assert_eq!(cut.samples, samples[range], "pieces of {size}");
            }
        }
    }

    #[test]
    fn speech_that_goes_on_is_told_from_silence() {
        let (detector, limits) = by_level();
        let mut stream = SpeechWindows::new(&detector, &limits);

        stream.push(&detector, &sound(&[(1.0, false)])).unwrap();
        assert_eq!(stream.in_speech(), None);
        stream.push(&detector, &sound(&[(0.5, true)])).unwrap();

        let (begin, so_far) = stream.in_speech().unwrap();
        assert!((16_000 - 12 * 512..16_000).contains(&begin), "{begin}");
        assert_eq!(begin + so_far.len() as u64, 24_000);
    }
}

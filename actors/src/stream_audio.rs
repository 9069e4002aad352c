//! The audio of a chunked stream: decoded as it comes, and, of a transcript, cut into windows.

use speechverse::audio::config::SpeechConfig;
use speechverse::audio::{AudioLimits, Damage, SAMPLE_RATE_HZ, StreamDecoder, samples_of};
use speechverse::inference::{AudioWindow, SpeechWindows, VoiceDetector};
use speechverse::wire::answer::Segment;
use speechverse::wire::dead_letter::{Reason, Rejection, Stage};
use speechverse::wire::request::Request;

use crate::messages::{EncodeSoFar, EncodeUtterance, SoFar};
use crate::reading::Reading;
use crate::windows::{WindowSource, reason_of};

/// One stream.
#[derive(Debug)]
pub(crate) struct StreamAudio {
    decoder: StreamDecoder,
    /// Its sound, while it may be answered as one.
    whole: Option<Vec<f32>>,
    whole_samples_max: usize,
    samples: u64,
    windows: Option<SpeechWindows>,
    /// Of a transcript: how its windows are sent and joined.
    pub(crate) source: Option<WindowSource>,
    windows_sent: usize,
    reading: Reading,
    barged_in: bool,
    /// Samples that were there at the last reading.
    read_at: u64,
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
            whole: Some(Vec::new()),
            whole_samples_max: samples_of(whole_seconds_max),
            samples: 0,
            windows: None,
            source: None,
            windows_sent: 0,
            reading: Reading::default(),
            barged_in: false,
            read_at: 0,
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
        Self {
            whole_samples_max: speech.window_samples_max(),
            windows: Some(SpeechWindows::new(detector, &speech.windows(by_utterance))),
            source: Some(source),
            ..Self::whole(content_type, limits, 0.0)
        }
    }

    /// Whether it is decoded while it comes, so that its bytes need not be kept.
    pub(crate) fn is_live(&self) -> bool {
        self.decoder.is_live()
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
        let found = windows
            .push(detector, samples)
            .map_err(|error| Rejection::new(Reason::InternalError, Stage::Ingest, error.to_string()))?;
        self.windows_sent += found.len();
        if self.windows_sent > 0 {
            self.whole = None;
        }
        Ok(found)
    }

    /// The stream's request, once, when it asks for barge-in and somebody has begun to speak.
    pub(crate) fn barges_in(&mut self) -> Option<Request> {
        let source = self.source.as_ref().filter(|source| source.request.barge_in)?;
        let speaks = self.windows_sent > 0 || self.windows.as_ref()?.in_speech().is_some();
        if !speaks || std::mem::replace(&mut self.barged_in, true) {
            return None;
        }
        Some(source.request.clone())
    }

    /// Orders for the encoder.
    pub(crate) fn orders(&self, windows: Vec<AudioWindow>) -> Vec<EncodeUtterance> {
        let source = self.source.as_ref();
        let order = |window| source.map(|source| source.order(window, None));
        windows.into_iter().filter_map(order).collect()
    }

    /// The utterance that is being spoken, to be read so far: where its stream asks for partial answers,
    /// `interval` samples came since the last time, and no reading is on its way.
    pub(crate) fn next_reading(&mut self, interval: usize) -> Option<EncodeSoFar> {
        let source = self.source.as_ref().filter(|source| source.request.partials)?;
        if self.samples < self.read_at + interval as u64 {
            return None;
        }
        let (begin, samples) = self.windows.as_ref()?.in_speech()?;
        let turn = self.reading.turn()?;
        self.read_at = self.samples;
        let seconds = |samples: u64| samples as f64 / f64::from(SAMPLE_RATE_HZ);
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
            Some(_) => None,
            None => self.windows.as_mut().and_then(SpeechWindows::finish),
        };
        let end = StreamEnd {
            whole: self.whole.take(),
            last,
            seconds: self.samples as f64 / f64::from(SAMPLE_RATE_HZ),
            damage: end.damage,
        };
        Ok((windows, end))
    }
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

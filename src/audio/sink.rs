//! Where decoders put their samples: limits are kept, channels become one, the rate turns into 16 kHz, and
//! what could not be decoded is written down.

use super::channels::{ChannelMeter, MEASURED_EVERY, Mix, mix};
use super::resample::Resampler;
use super::{AudioError, AudioLimits, Container, Damage, Waveform};

/// Largest magnitude of a sample. Full scale is 1, and 32,768 where somebody wrote integers as floats.
const SAMPLE_MAX: f32 = 1e9;

/// Most notes about one value; the seconds are counted on.
const NOTES_MAX: usize = 4;

/// Why a sound is not decoded to its end that could be.
pub(super) const NOBODY: &str = "nobody takes its samples any more";

/// What becomes of samples at 16 kHz.
pub(super) enum Keep {
    /// They are kept.
    All,
    /// They are kept up to so many; where there are more, they are counted and none is kept.
    UpTo(usize),
    /// They are handed on piece by piece, as long as somebody takes them.
    HandOn(flume::Sender<Vec<f32>>),
}

/// A sound that is decoded.
pub(super) struct Decoded {
    /// Without samples where more than could be kept, or all handed on.
    pub(super) waveform: Waveform,
    /// The mix with which it should be decoded again, if another one.
    pub(super) better: Option<Mix>,
    /// What samples of the mean are multiplied by; done where all of them are kept.
    pub(super) gain: f32,
    /// Samples at 16 kHz, kept or not.
    pub(super) samples: u64,
}

/// Takes decoded samples and stops at the first one over a limit, so that a decoder never runs away.
pub(super) struct Sink {
    container: Container,
    limits: AudioLimits,
    mix: Mix,
    /// The part of the sound that has one rate and one number of channels; absent before the first.
    part: Option<Part>,
    /// Rate and channels of the first part.
    source: Option<(u32, u16)>,
    /// Samples at 16 kHz of the parts before this one.
    finished: Vec<f32>,
    keep: Keep,
    /// Samples at 16 kHz that were handed on, or are too many to be kept.
    gone: u64,
    /// Seconds and samples (frames times channels) of the parts before this one.
    seconds_before: f64,
    samples_before: u64,
    frames: u64,
    verdict: Option<(Mix, f32)>,
    damage: Damage,
    /// Seconds among those taken that are silence in the place of what could not be decoded.
    silent_seconds: f64,
}

/// Sound of one rate and one number of channels.
struct Part {
    rate_hz: u32,
    channels: u16,
    frames: u64,
    resampler: Resampler,
    meter: ChannelMeter,
    mono: Vec<f32>,
}

impl Sink {
    /// A sink for one value.
    pub(super) fn new(container: Container, limits: &AudioLimits, mix: Mix, keep: Keep) -> Self {
        Self {
            container,
            limits: *limits,
            mix,
            part: None,
            source: None,
            finished: Vec::new(),
            keep,
            gone: 0,
            seconds_before: 0.0,
            samples_before: 0,
            frames: 0,
            verdict: None,
            damage: Damage::default(),
            silent_seconds: 0.0,
        }
    }

    /// Says of what rate and how many channels the next samples are, both as declared and unchecked. It may
    /// change in the middle of a sound.
    ///
    /// # Errors
    /// [`AudioError::AbsurdRate`], [`AudioError::AbsurdChannels`].
    pub(super) fn start(&mut self, rate_hz: u32, channels: u16) -> Result<(), AudioError> {
        if let Some(part) = &self.part
            && (part.rate_hz, part.channels) == (rate_hz, channels)
        {
            return Ok(());
        }
        check_source(rate_hz, channels, &self.limits)?;
        let before = self.part.take();
        let mut resampler = None;
        if let Some(mut part) = before {
            self.judge_channels(&mut part);
            self.seconds_before += part.frames as f64 / f64::from(part.rate_hz);
            self.samples_before += part.frames * u64::from(part.channels);
            // The resampler goes on where only the number of channels changes: the sound has no seam there.
            if part.rate_hz == rate_hz {
                resampler = Some(part.resampler);
            } else {
                self.finished.append(&mut part.resampler.finish());
            }
        }
        self.source.get_or_insert((rate_hz, channels));
        self.part = Some(Part {
            rate_hz,
            channels,
            frames: 0,
            resampler: resampler.unwrap_or_else(|| Resampler::new(rate_hz)),
            meter: ChannelMeter::new(channels, rate_hz),
            mono: Vec::new(),
        });
        Ok(())
    }

    /// What the sound is in.
    pub(super) fn container(&self) -> Container {
        self.container
    }

    /// What the value may be.
    pub(super) fn limits(&self) -> &AudioLimits {
        &self.limits
    }

    /// Number of channels now; 0 before [`Self::start`].
    pub(super) fn channels(&self) -> u16 {
        self.part.as_ref().map_or(0, |part| part.channels)
    }

    /// Rate now, hertz; 0 before [`Self::start`].
    pub(super) fn rate_hz(&self) -> u32 {
        self.part.as_ref().map_or(0, |part| part.rate_hz)
    }

    /// Frames taken so far, of all rates.
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    /// Refuses a declared number of further frames over a limit before they are decoded.
    pub(super) fn expect_frames(&self, frames: u64) -> Result<(), AudioError> {
        let Some(part) = &self.part else {
            return Ok(());
        };
        let frames = part.frames.saturating_add(frames);
        let seconds = self.seconds_before + frames as f64 / f64::from(part.rate_hz);
        let seconds_max = self.limits.seconds_max;
        if seconds > seconds_max {
            return Err(AudioError::TooLong { seconds, seconds_max });
        }
        let samples = frames
            .saturating_mul(u64::from(part.channels))
            .saturating_add(self.samples_before);
        if samples > self.limits.decoded_samples_max {
            let samples_max = self.limits.decoded_samples_max;
            return Err(AudioError::TooManySamples { samples, samples_max });
        }
        Ok(())
    }

    /// Takes frames of interleaved channels; a partial frame at the end is the caller's mistake and is
    /// ignored.
    pub(super) fn push_interleaved(&mut self, samples: &[f32]) -> Result<(), AudioError> {
        let channels = usize::from(self.channels()).max(1);
        self.expect_frames((samples.len() / channels) as u64)?;
        let at = self.frames;
        let part = self.part.as_mut().expect("`start` comes before samples");
        let mono = if channels == 1 {
            samples
        } else {
            let chosen = self.mix;
            part.mono.clear();
            part.mono
                .extend(samples.chunks_exact(channels).map(|frame| mix(frame, chosen)));
            let measured = samples.chunks_exact(channels).zip(&part.mono);
            for (frame, mono) in measured.step_by(MEASURED_EVERY) {
                part.meter.take(frame, *mono);
            }
            &part.mono
        };
        if let Some(bad) = mono.iter().position(|sample| !usable(*sample)) {
            return Err(AudioError::NonFinite {
                frame: at + bad as u64,
            });
        }
        part.frames += mono.len() as u64;
        self.frames += mono.len() as u64;
        part.resampler.push(mono);
        self.pass_on()
    }

    /// Hands samples on, or lets go of them where there are too many.
    fn pass_on(&mut self) -> Result<(), AudioError> {
        let ready = self.finished.len() + self.part.as_ref().map_or(0, |part| part.resampler.ready());
        let samples = match &self.keep {
            Keep::All => return Ok(()),
            Keep::UpTo(most) if self.gone == 0 && ready <= *most => return Ok(()),
            Keep::UpTo(_) | Keep::HandOn(_) => self.take_ready(),
        };
        if let Keep::HandOn(taker) = &self.keep
            && !samples.is_empty()
            && taker.send(samples).is_err()
        {
            return Err(AudioError::Corrupt {
                container: self.container,
                detail: NOBODY.to_owned(),
            });
        }
        Ok(())
    }

    /// The samples at 16 kHz that are ready and not taken yet; they count as handed on.
    pub(super) fn take_ready(&mut self) -> Vec<f32> {
        let samples = self.ready_samples();
        self.gone += samples.len() as u64;
        samples
    }

    fn ready_samples(&mut self) -> Vec<f32> {
        let mut samples = std::mem::take(&mut self.finished);
        if let Some(part) = &mut self.part {
            samples.append(&mut part.resampler.take_ready());
        }
        samples
    }

    /// Writes down that sound of this length ends before it should: it is not there, or not whole.
    pub(super) fn cut_short(&mut self, seconds: f64, detail: String) {
        self.damage.cut_short = true;
        self.note(seconds, detail);
    }

    /// Writes down that something was mended or stepped over, and how much sound that cost.
    pub(super) fn repaired(&mut self, seconds: f64, detail: String) {
        self.damage.repaired = true;
        self.note(seconds, detail);
    }

    /// Writes down that silence of this length stands in the place of what could not be decoded.
    pub(super) fn silenced(&mut self, seconds: f64, detail: String) {
        self.silent_seconds += seconds;
        self.repaired(seconds, detail);
    }

    fn note(&mut self, seconds: f64, detail: String) {
        if seconds.is_finite() {
            self.damage.undecoded_seconds += seconds.max(0.0);
        }
        if self.damage.notes.len() < NOTES_MAX {
            self.damage.notes.push(detail);
        }
    }

    /// Seconds taken so far.
    pub(super) fn decoded_seconds(&self) -> f64 {
        self.seconds_before
            + self
                .part
                .as_ref()
                .map_or(0.0, |part| part.frames as f64 / f64::from(part.rate_hz))
    }

    /// Seconds that are known not to be decoded.
    pub(super) fn undecoded_seconds(&self) -> f64 {
        self.damage.undecoded_seconds
    }

    /// Seconds of a number of frames at the rate of now.
    pub(super) fn seconds(&self, frames: u64) -> f64 {
        frames as f64 / f64::from(self.rate_hz().max(1))
    }

    fn judge_channels(&mut self, part: &mut Part) {
        // The first part that has something to say decides for all: parts differ where streams were joined.
        let verdict = part.meter.verdict();
        if verdict != (Mix::Mean, 1.0) {
            self.verdict.get_or_insert(verdict);
        }
    }

    /// The waveform, once all is in.
    ///
    /// # Errors
    /// [`AudioError::ZeroSamples`]; [`AudioError::Truncated`] or [`AudioError::Corrupt`] when a larger share
    /// than allowed is not decoded.
    pub(super) fn finish(mut self) -> Result<Decoded, AudioError> {
        if let Some(mut part) = self.part.take() {
            self.judge_channels(&mut part);
            let mut last = part.resampler.finish();
            if self.finished.is_empty() {
                self.finished = last; // the usual case, without a copy
            } else {
                self.finished.append(&mut last);
            }
        }
        self.pass_on()?;
        let (container, mut samples) = (self.container, std::mem::take(&mut self.finished));
        let count = self.gone + samples.len() as u64;
        let damage = self.damage;
        let taken = count as f64 / f64::from(super::SAMPLE_RATE_HZ);
        let whole = (taken - self.silent_seconds).max(0.0) + damage.undecoded_seconds;
        let refused = damage.undecoded_seconds > self.limits.unheard_share_max * whole;
        if let Some(first) = damage.notes.first()
            && (refused || count == 0)
        {
            let undecoded = damage.undecoded_seconds;
            let detail = match count == 0 {
                true => first.clone(),
                false => format!(
                    "{first}; {undecoded:.3} s of {whole:.3} s cannot be decoded, more than `audio.unheard_share_max`"
                ),
            };
            return Err(match damage.cut_short {
                true => AudioError::Truncated { container, detail },
                false => AudioError::Corrupt { container, detail },
            });
        }
        if count == 0 {
            return Err(AudioError::ZeroSamples { container });
        }
        let (better, gain) = self.verdict.unwrap_or((Mix::Mean, 1.0));
        // What was handed on is as loud as it is, and the rest goes on at that level.
        if self.gone == 0 && self.mix == Mix::Mean && gain != 1.0 {
            samples.iter_mut().for_each(|sample| *sample *= gain);
        }
        let (source_rate_hz, source_channels) = self.source.unwrap_or_default();
        let waveform = Waveform {
            samples,
            source_rate_hz,
            source_channels,
            container,
            content_type_mismatch: false,
            damage,
        };
        Ok(Decoded {
            waveform,
            better: (self.mix == Mix::Mean && better != Mix::Mean).then_some(better),
            gain: if self.mix == Mix::Mean { gain } else { 1.0 },
            samples: count,
        })
    }
}

/// Refuses a rate or a number of channels that is out of range.
///
/// # Errors
/// [`AudioError::AbsurdRate`], [`AudioError::AbsurdChannels`].
pub(super) fn check_source(rate_hz: u32, channels: u16, limits: &AudioLimits) -> Result<(), AudioError> {
    let AudioLimits {
        rate_hz_min,
        rate_hz_max,
        channels_max,
        ..
    } = *limits;
    if rate_hz == 0 || !(rate_hz_min..=rate_hz_max).contains(&rate_hz) {
        let rate_hz = u64::from(rate_hz);
        return Err(AudioError::AbsurdRate {
            rate_hz,
            rate_hz_min,
            rate_hz_max,
        });
    }
    if channels == 0 || channels > channels_max {
        return Err(AudioError::AbsurdChannels {
            channels: u64::from(channels),
            channels_max,
        });
    }
    Ok(())
}

/// Whether a sample is a number that can be resampled without running over.
fn usable(sample: f32) -> bool {
    sample.abs() <= SAMPLE_MAX // false for NaN
}

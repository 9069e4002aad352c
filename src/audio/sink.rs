//! Where decoders put their samples: limits are kept, channels averaged, the rate turned into 16 kHz.

use super::resample::Resampler;
use super::{AudioError, AudioLimits, Container, Waveform};

/// Largest magnitude of a sample. Full scale is 1, and 32,768 where somebody wrote integers as floats.
const SAMPLE_MAX: f32 = 1e9;

/// Takes decoded samples and stops at the first one over a limit, so that a decoder never runs away.
pub(super) struct Sink {
    container: Container,
    rate_hz: u32,
    channels: u16,
    limits: AudioLimits,
    frames: u64,
    resampler: Resampler,
    mono: Vec<f32>,
}

impl Sink {
    /// A sink for a source of this rate and this many channels, both as declared and unchecked.
    ///
    /// # Errors
    /// [`AudioError::AbsurdRate`], [`AudioError::AbsurdChannels`].
    pub(super) fn new(
        container: Container,
        rate_hz: u32,
        channels: u16,
        limits: &AudioLimits,
    ) -> Result<Self, AudioError> {
        check_source(rate_hz, channels, limits)?;
        Ok(Self {
            container,
            rate_hz,
            channels,
            limits: *limits,
            frames: 0,
            resampler: Resampler::new(rate_hz),
            mono: Vec::new(),
        })
    }

    /// Number of channels of the source.
    pub(super) fn channels(&self) -> u16 {
        self.channels
    }

    /// Frames taken so far.
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    /// Refuses a declared length over a limit before anything is decoded.
    pub(super) fn expect_frames(&self, frames: u64) -> Result<(), AudioError> {
        let seconds = frames as f64 / f64::from(self.rate_hz);
        if seconds > self.limits.seconds_max {
            return Err(AudioError::TooLong {
                seconds,
                seconds_max: self.limits.seconds_max,
            });
        }
        let samples = frames.saturating_mul(u64::from(self.channels));
        if samples > self.limits.decoded_samples_max {
            let samples_max = self.limits.decoded_samples_max;
            return Err(AudioError::TooManySamples { samples, samples_max });
        }
        Ok(())
    }

    /// Takes frames whose channels are averaged already.
    pub(super) fn push_mono(&mut self, mono: &[f32]) -> Result<(), AudioError> {
        self.expect_frames(self.frames + mono.len() as u64)?;
        if let Some(at) = mono.iter().position(|sample| !usable(*sample)) {
            return Err(AudioError::NonFinite {
                frame: self.frames + at as u64,
            });
        }
        self.frames += mono.len() as u64;
        self.resampler.push(mono);
        Ok(())
    }

    /// Takes frames of interleaved channels; a partial frame at the end is the caller's mistake and is ignored.
    pub(super) fn push_interleaved(&mut self, samples: &[f32]) -> Result<(), AudioError> {
        let channels = usize::from(self.channels);
        if channels == 1 {
            return self.push_mono(samples);
        }
        let mut mono = std::mem::take(&mut self.mono);
        mono.clear();
        mono.extend(samples.chunks_exact(channels).map(average));
        let pushed = self.push_mono(&mono);
        self.mono = mono;
        pushed
    }

    /// The waveform, once all is in.
    ///
    /// # Errors
    /// [`AudioError::ZeroSamples`].
    pub(super) fn finish(self) -> Result<Waveform, AudioError> {
        let samples = self.resampler.finish();
        if samples.is_empty() {
            return Err(AudioError::ZeroSamples {
                container: self.container,
            });
        }
        Ok(Waveform {
            samples,
            source_rate_hz: self.rate_hz,
            source_channels: self.channels,
            container: self.container,
            content_type_mismatch: false,
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

fn average(frame: &[f32]) -> f32 {
    frame.iter().sum::<f32>() / frame.len() as f32
}

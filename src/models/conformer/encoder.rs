//! The frozen encoder: loading a folder, batching, running.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::config::{ConformerConfig, MELS_PER_FRAME};
use super::front_end::FrontEnd;
use super::network::Conformer;
use crate::audio::log_mel::{FFT_SAMPLES, HOP_SAMPLES};
use crate::audio::mel_frames::MelFrames;
use crate::models::{Encoded, EncoderInfo, HiddenStates, ModelError, SpeechEncoder};
use crate::nn::accel::Placement;
use crate::nn::attention::valid_positions;
use crate::weights::Checkpoint;

const FRAMES_PER_SECOND: f64 = 25.0;
/// Beyond this a sample is no audio, and its power no f32.
const SAMPLE_MAX: f32 = 1e9;

/// A BEST-RQ Conformer, frozen.
#[derive(Debug)]
pub struct ConformerEncoder {
    front_end: FrontEnd,
    network: Conformer,
    width: i64,
    samples_max: usize,
    device: Device,
    kind: Kind,
}

impl ConformerEncoder {
    /// Loads a folder that `speechverse pretrain` wrote: `config.json` and its checkpoint.
    ///
    /// # Errors
    /// [`ModelError`] when a file is missing, a setting asks for other mathematics, or a tensor does not fit.
    pub fn load(dir: &Path, placement: &Placement) -> Result<Self, ModelError> {
        let config = ConformerConfig::read(&dir.join("config.json"))?;
        let checkpoint = Checkpoint::open(dir)?;
        let _no_grad = tch::no_grad_guard();
        let mut loader = checkpoint.loader(placement.device, placement.kind());
        let front_end = FrontEnd::load(&mut loader, &config);
        let network = Conformer::declare(&mut loader, &config);
        loader.finish()?;
        Ok(Self {
            front_end,
            network,
            width: config.hidden_size,
            samples_max: samples_max(&config),
            device: placement.device,
            kind: placement.kind(),
        })
    }

    /// Normalised mel frames of a batch, checked.
    fn features(&self, clips: &[&[f32]]) -> Result<(Tensor, Vec<i64>), ModelError> {
        check_clips(clips, self.samples_max)?;
        let features = self.front_end.forward(clips)?;
        Ok((features.values.f_to_kind(self.kind)?, features.lengths))
    }
}

/// Longest clip that a configuration takes, samples.
pub(crate) fn samples_max(config: &ConformerConfig) -> usize {
    let mels = config.max_source_positions * MELS_PER_FRAME;
    // One sample more would make one mel frame more.
    usize::try_from(mels).unwrap_or(0) * HOP_SAMPLES + FFT_SAMPLES - 1
}

/// Refuses batches and clips that cannot be encoded.
pub(crate) fn check_clips(clips: &[&[f32]], samples_max: usize) -> Result<(), ModelError> {
    if clips.is_empty() {
        return Err(ModelError::EmptyBatch);
    }
    for (index, clip) in clips.iter().enumerate() {
        if clip.is_empty() {
            return Err(ModelError::EmptyClip { index });
        }
        if clip.len() > samples_max {
            return Err(ModelError::ClipTooLong {
                index,
                samples: clip.len(),
                samples_max,
            });
        }
        let is_audio = |value: &f32| value.abs() <= SAMPLE_MAX; // false for NaN
        if let Some(at) = clip.iter().position(|value| !is_audio(value)) {
            return Err(ModelError::BadSample {
                index,
                at,
                value: clip[at],
            });
        }
    }
    Ok(())
}

/// Zeroes what lies beyond each row's end in `[B, T, D]`.
fn zero_invalid(states: &Tensor, lengths: &[i64]) -> Tensor {
    match valid_positions(lengths, states.size()[1]) {
        Some(valid) => states * valid.unsqueeze(-1).to_device(states.device()),
        None => states.shallow_clone(),
    }
}

impl SpeechEncoder for ConformerEncoder {
    fn info(&self) -> EncoderInfo {
        EncoderInfo {
            layers: self.network.layers(),
            width: self.width,
            frames_per_second: FRAMES_PER_SECOND,
            max_samples: Some(self.samples_max),
        }
    }

    /// `ceil(mel frames / 4)`, where mel frames are the 25 ms windows that fit into the clip at every 10 ms.
    fn frames(&self, samples: usize) -> i64 {
        ConformerConfig::frames(MelFrames::count(samples) as i64)
    }

    fn hidden_states(&self, clips: &[&[f32]]) -> Result<HiddenStates, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let (features, mel_lengths) = self.features(clips)?;
        let mut states = Vec::new();
        let lengths = self.network.run(&features, &mel_lengths, 0.0, |_, state| {
            states.push(state.shallow_clone());
            Ok::<_, ModelError>(())
        })?;
        let states = states.iter().map(|state| zero_invalid(state, &lengths)).collect();
        Ok(HiddenStates { states, lengths })
    }

    fn encode(&self, clips: &[&[f32]], mix: &Tensor) -> Result<Encoded, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let expected = [clips.len() as i64, self.network.layers() + 1];
        if mix.size() != expected {
            return Err(ModelError::Shape {
                what: "the layer mix",
                expected: format!("{expected:?}"),
                found: mix.size(),
            });
        }
        let mix =
            mix.f_to_device(self.device)?
                .f_to_kind(Kind::Float)?
                .f_view([expected[0], expected[1], 1, 1])?;
        let (features, mel_lengths) = self.features(clips)?;
        let mut sum: Option<Tensor> = None; // [B, T, D], f32 whatever the kind
        let lengths = self.network.run(&features, &mel_lengths, 0.0, |layer, state| {
            let share = state.f_to_kind(Kind::Float)?.f_mul(&mix.f_select(1, layer)?)?;
            sum = Some(match sum.take() {
                Some(mut sum) => sum.f_add_(&share)?,
                None => share,
            });
            Ok::<_, ModelError>(())
        })?;
        let sum = sum.expect("state 0 is always visited");
        Ok(Encoded {
            features: zero_invalid(&sum, &lengths).f_to_kind(self.kind)?,
            lengths,
        })
    }
}

#[cfg(test)]
mod tests;

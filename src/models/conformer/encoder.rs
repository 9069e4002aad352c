//! The frozen encoder: loading a folder, batching, running.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::config::{ConformerConfig, MELS_PER_FRAME};
use super::front_end::FrontEnd;
use super::network::Conformer;
use crate::audio::log_mel::{FFT_SAMPLES, HOP_SAMPLES};
use crate::audio::mel_frames::MelFrames;
use crate::models::clips::{Mixture, check_clips};
use crate::models::{Encoded, EncoderInfo, HiddenStates, ModelError, SpeechEncoder};
use crate::nn::accel::Placement;
use crate::nn::packed::{pack, unpack};
use crate::weights::Checkpoint;

const FRAMES_PER_SECOND: f64 = 25.0;

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
        check_clips(clips, Some(self.samples_max))?;
        let features = self.front_end.forward(clips)?;
        Ok((features.values.f_to_kind(self.kind)?, features.lengths))
    }
}

/// Longest clip that a configuration takes, samples.
pub(super) fn samples_max(config: &ConformerConfig) -> usize {
    let mels = config.max_source_positions * MELS_PER_FRAME;
    // One sample more would make one mel frame more.
    usize::try_from(mels).unwrap_or(0) * HOP_SAMPLES + FFT_SAMPLES - 1
}

/// Zeroes what lies beyond each row's end in `[B, T, D]`.
fn zero_invalid(states: &Tensor, lengths: &[i64]) -> Tensor {
    match super::network::valid_positions(lengths, states.size()[1]) {
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
        let (last, lengths) = self
            .network
            .run(&features, &mel_lengths, 0.0, |_, state, lengths| {
                states.push(zero_invalid(state, lengths));
                Ok::<_, ModelError>(())
            })?;
        Ok(HiddenStates {
            states,
            last: zero_invalid(&last, &lengths),
            lengths,
        })
    }

    fn encode(&self, clips: &[&[f32]], mix: &Tensor) -> Result<Encoded, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let layers = usize::try_from(self.network.layers()).unwrap_or(0);
        let mut mixture = Mixture::new(mix, clips.len(), layers, self.device)?;
        let (features, mel_lengths) = self.features(clips)?;
        let (last, lengths) = self
            .network
            .run(&features, &mel_lengths, 0.0, |index, state, lengths| {
                if index == layers {
                    return Ok(());
                }
                mixture.add(index, &pack(state, lengths), lengths)
            })?;
        let last = pack(&last, &lengths); // [R, D]
        mixture.add(layers, &last, &lengths)?;
        let mixed = mixture.finish(&last)?.f_to_kind(self.kind)?;
        Ok(Encoded {
            features: unpack(&mixed, &lengths),
            lengths,
        })
    }
}

#[cfg(test)]
mod tests;

//! The frozen encoder: loading a folder, batching, running.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::config::{ConformerConfig, MELS_PER_FRAME};
use super::front_end::FrontEnd;
use super::network::Conformer;
use crate::audio::log_mel::{FFT_SAMPLES, HOP_SAMPLES};
use crate::audio::mel_frames::MelFrames;
use crate::models::clips::PackedEncoder;
use crate::models::{EncoderInfo, ModelError};
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
    dtype: Kind,
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
            dtype: placement.kind(),
        })
    }
}

/// Longest clip that a configuration takes, samples.
pub(super) fn samples_max(config: &ConformerConfig) -> usize {
    let mels = config.max_source_positions * MELS_PER_FRAME;
    // One sample more would make one mel frame more.
    usize::try_from(mels).unwrap_or(0) * HOP_SAMPLES + FFT_SAMPLES - 1
}

impl PackedEncoder for ConformerEncoder {
    fn device(&self) -> Device {
        self.device
    }

    fn kind(&self) -> Kind {
        self.dtype
    }

    fn sizes(&self) -> EncoderInfo {
        EncoderInfo {
            layers: self.network.layers() as i64,
            width: self.width,
            frames_per_second: FRAMES_PER_SECOND,
            max_samples: Some(self.samples_max),
        }
    }

    /// `ceil(mel frames / 4)`, where mel frames are the 25 ms windows that fit into the clip at every 10 ms.
    fn frames_of(&self, samples: usize) -> i64 {
        ConformerConfig::frames(MelFrames::count(samples) as i64)
    }

    fn embed(&self, clips: &[&[f32]], lengths: &[i64]) -> Result<Tensor, ModelError> {
        let features = self.front_end.forward(clips)?;
        let values = features.values.f_to_kind(self.dtype)?;
        let (hidden, _) = self.network.embed(&values, &features.lengths);
        Ok(pack(&hidden, lengths))
    }

    /// Blocks work on padded rows, because the same code learns on them.
    fn run(
        &self,
        hidden: Tensor,
        lengths: &[i64],
        visit: &mut dyn FnMut(usize, &Tensor) -> Result<(), ModelError>,
    ) -> Result<[Tensor; 2], ModelError> {
        let ends = self
            .network
            .run(unpack(&hidden, lengths), lengths, 0.0, |index, state| {
                visit(index, &pack(state, lengths))
            })?;
        Ok(ends.map(|end| pack(&end, lengths)))
    }
}

#[cfg(test)]
mod tests;

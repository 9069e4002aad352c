//! The encoder network: loading, batching, running.
//!
//! Checkpoint names: `model.encoder.{conv1,conv2,embed_positions,layers.N.*,layer_norm}`, or the same without
//! `model.` where the bare model was saved.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::config::{FRAME_SAMPLES, MELS_PER_FRAME};
use super::{WhisperConfig, Window};
use crate::audio::log_mel::{LogMel, LogMelConfig};
use crate::models::clips::PackedEncoder;
use crate::models::{EncoderInfo, ModelError};
use crate::nn::accel::Placement;
use crate::nn::attention::SelfAttention;
use crate::nn::conv::Conv1d;
use crate::nn::feed_forward::FeedForward;
use crate::nn::norm::LayerNorm;
use crate::nn::packed::pack;
use crate::weights::{Checkpoint, Loader};

const FRAMES_PER_SECOND: f64 = 50.0;
const NORM_EPS: f64 = 1e-5;

/// Whisper's encoder, frozen.
#[derive(Debug)]
pub struct WhisperEncoder {
    front_end: LogMel,
    conv1: Conv1d,
    conv2: Conv1d,
    /// `[max_source_positions, D]`.
    positions: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
    window: Window,
    width: i64,
    device: Device,
    dtype: Kind,
}

/// One pre-norm transformer layer.
#[derive(Debug)]
struct Layer {
    attention_norm: LayerNorm,
    attention: SelfAttention,
    feed_norm: LayerNorm,
    feed: FeedForward,
}

impl WhisperEncoder {
    /// Loads the encoder of a model folder: `config.json`, `preprocessor_config.json` and its checkpoint.
    ///
    /// # Errors
    /// [`ModelError`] when a file is missing, a setting asks for other mathematics, or a tensor does not fit.
    pub fn load(dir: &Path, window: Window, placement: &Placement) -> Result<Self, ModelError> {
        let config = WhisperConfig::read(&dir.join("config.json"))?;
        let front_end_path = dir.join("preprocessor_config.json");
        let front_end = LogMelConfig::read(&front_end_path)?;
        config.check_front_end(&front_end_path, &front_end)?;
        let checkpoint = Checkpoint::open(dir)?;
        let _no_grad = tch::no_grad_guard();
        let mut loader = checkpoint.loader(placement.device, placement.kind());
        let front_end = LogMel::new(&front_end, placement.device);
        let encoder = Self::take(&mut loader, &config, front_end, window);
        loader.finish()?;
        Ok(encoder)
    }

    fn take(loader: &mut Loader<'_>, config: &WhisperConfig, front_end: LogMel, window: Window) -> Self {
        let root = if loader.contains("model.encoder.conv1.weight") {
            "model."
        } else {
            ""
        };
        loader.ignore(&format!("{root}decoder."));
        loader.ignore("proj_out.");
        let name = |part: &str| format!("{root}encoder.{part}");
        let width = config.d_model;
        let conv1 = Conv1d::load(loader, &name("conv1"), config.num_mel_bins, width, 1);
        let conv2 = Conv1d::load(loader, &name("conv2"), width, width, MELS_PER_FRAME as i64);
        let positions = loader.take(
            &name("embed_positions.weight"),
            &[config.max_source_positions, width],
        );
        let layers = (0..config.encoder_layers)
            .map(|index| Layer::load(loader, &name(&format!("layers.{index}")), config))
            .collect();
        let norm = LayerNorm::load(loader, &name("layer_norm"), width, NORM_EPS);
        let (device, dtype) = (loader.device(), loader.kind());
        Self {
            front_end,
            conv1,
            conv2,
            positions,
            layers,
            norm,
            window,
            width,
            device,
            dtype,
        }
    }
}

impl PackedEncoder for WhisperEncoder {
    fn device(&self) -> Device {
        self.device
    }

    fn kind(&self) -> Kind {
        self.dtype
    }

    fn sizes(&self) -> EncoderInfo {
        EncoderInfo {
            layers: self.layers.len() as i64,
            width: self.width,
            frames_per_second: FRAMES_PER_SECOND,
            max_samples: Some(self.front_end.window_samples()),
        }
    }

    /// The whole window's where it is padded; `ceil(samples / 320)` where it is cut to the clip.
    fn frames_of(&self, samples: usize) -> i64 {
        match self.window {
            Window::Padded => (self.front_end.window_samples() / FRAME_SAMPLES) as i64,
            Window::Clip => samples.div_ceil(FRAME_SAMPLES) as i64,
        }
    }

    fn embed(&self, clips: &[&[f32]], lengths: &[i64]) -> Result<Tensor, ModelError> {
        let mel_frames: Vec<usize> = lengths
            .iter()
            .map(|&length| length as usize * MELS_PER_FRAME)
            .collect();
        // Mel frames beyond a clip's end are zero, which is also what the convolutions pad with, so the first
        // sees every clip as if it were alone. The second has stride 2, and a clip's mel frames are even in
        // number: its last output looks no further than the clip's last mel frame.
        let mel = self.front_end.forward(clips, &mel_frames)?; // [B, M, 2·T]
        let convolved = self
            .conv2
            .forward(&self.conv1.forward(&mel.f_to_kind(self.dtype)?).gelu("none"))
            .gelu("none"); // [B, D, T]
        let time = convolved.size()[2];
        let hidden = convolved.transpose(1, 2).contiguous() + self.positions.narrow(0, 0, time); // [B, T, D]
        Ok(pack(&hidden, lengths)) // [R, D]
    }

    fn run(
        &self,
        mut hidden: Tensor,
        lengths: &[i64],
        visit: &mut dyn FnMut(usize, &Tensor) -> Result<(), ModelError>,
    ) -> Result<[Tensor; 2], ModelError> {
        for (index, layer) in self.layers.iter().enumerate() {
            visit(index, &hidden)?;
            hidden = layer.forward(&hidden, lengths);
        }
        let last = self.norm.forward(&hidden);
        Ok([last.shallow_clone(), last])
    }
}

impl Layer {
    fn load(loader: &mut Loader<'_>, name: &str, config: &WhisperConfig) -> Self {
        let (width, inner) = (config.d_model, config.encoder_ffn_dim);
        Self {
            attention_norm: LayerNorm::load(loader, &format!("{name}.self_attn_layer_norm"), width, NORM_EPS),
            attention: SelfAttention::load(
                loader,
                &format!("{name}.self_attn"),
                width,
                config.encoder_attention_heads,
                false,
            ),
            feed_norm: LayerNorm::load(loader, &format!("{name}.final_layer_norm"), width, NORM_EPS),
            feed: FeedForward::load(
                loader,
                &format!("{name}.fc1"),
                &format!("{name}.fc2"),
                width,
                inner,
            ),
        }
    }

    /// `[R, D]` → `[R, D]`.
    fn forward(&self, input: &Tensor, lengths: &[i64]) -> Tensor {
        let normed = self.attention_norm.forward(input);
        let mut hidden = self.attention.forward(&normed, lengths, None);
        hidden += input;
        let mut fed = self.feed.forward(&self.feed_norm.forward(&hidden));
        fed += &hidden;
        fed
    }
}

#[cfg(test)]
mod tests;

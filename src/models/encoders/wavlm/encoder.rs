//! The encoder network: loading, batching, running.
//!
//! Checkpoint names: `feature_extractor.conv_layers.N.*`, `feature_projection.*`,
//! `encoder.pos_conv_embed.conv.*`, `encoder.layer_norm.*` and `encoder.layers.N.*`, alone or below `wavlm.`,
//! `hubert.` or `wav2vec2.`.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::config::position_weight_names;
use super::front_end::FrontEnd;
use super::{WavConfig, WaveformConfig};
use crate::audio::SAMPLE_RATE_HZ;
use crate::models::clips::PackedEncoder;
use crate::models::{EncoderInfo, ModelError};
use crate::nn::accel::Placement;
use crate::nn::attention::SelfAttention;
use crate::nn::conv::FrameConv;
use crate::nn::feed_forward::FeedForward;
use crate::nn::norm::LayerNorm;
use crate::nn::packed::join;
use crate::nn::relative_bias::RelativeBias;
use crate::weights::{Checkpoint, Loader};

/// Parts of published checkpoints that serve training or other tasks.
const UNUSED: [&str; 9] = [
    "lm_head.",
    "quantizer.",
    "project_hid.",
    "project_q.",
    "projector.",
    "classifier.",
    "layer_weights",
    "tdnn.",
    "objective.",
];

/// An encoder of the wav2vec 2.0 family, frozen.
#[derive(Debug)]
pub struct WavEncoder {
    front_end: FrontEnd,
    positions: FrameConv,
    /// Whether layers are pre-norm; then `norm` follows the last one, else it precedes the first.
    pre_norm: bool,
    norm: LayerNorm,
    layers: Vec<Layer>,
    distances: Option<Distances>,
    width: i64,
    frames_per_second: f64,
    dtype: Kind,
    device: Device,
}

/// WavLM's table of distance buckets.
#[derive(Debug)]
struct Distances {
    /// `[buckets, N]` f32.
    table: Tensor,
    distance_max: i64,
}

/// One transformer layer.
#[derive(Debug)]
struct Layer {
    attention: SelfAttention,
    attention_norm: LayerNorm,
    feed: FeedForward,
    feed_norm: LayerNorm,
}

impl WavEncoder {
    /// Loads the encoder of a model folder: `config.json`, `preprocessor_config.json` and its checkpoint.
    ///
    /// # Errors
    /// [`ModelError`] when a file is missing, a setting asks for other mathematics, or a tensor does not fit.
    pub fn load(dir: &Path, placement: &Placement) -> Result<Self, ModelError> {
        let config = WavConfig::read(&dir.join("config.json"))?;
        let waveform = WaveformConfig::read(&dir.join("preprocessor_config.json"))?;
        let checkpoint = Checkpoint::open(dir)?;
        let _no_grad = tch::no_grad_guard();

        let prefix = format!("{}.", config.model_type);
        let is_bare = !checkpoint.contains(&format!("{prefix}feature_projection.projection.weight"));
        let root = if is_bare { "" } else { prefix.as_str() };
        let [old_scale, _] = position_weight_names(true);
        let old_names = checkpoint.contains(&format!("{root}encoder.{old_scale}"));

        let mut loader = checkpoint.loader(placement.device, placement.kind());
        loader.ignore(&format!("{root}masked_spec_embed"));
        UNUSED.iter().for_each(|part| loader.ignore(part));
        if !is_bare {
            loader.ignore("feature_extractor."); // of the speaker verification head
        }
        let variables = config.variables(root, old_names);
        let fits = variables.iter().all(|(name, shape)| {
            let found = checkpoint.shape(name).unwrap_or_default();
            found.iter().copied().eq(shape.iter().map(|&size| size as usize))
        });
        if !fits {
            // Nothing is computed from shapes that only `config.json` claims; the differences are all listed.
            for (name, shape) in &variables {
                let _ = loader.take(name, shape);
            }
            loader.finish()?;
            unreachable!("a shape differs, so the load fails");
        }
        let encoder = Self::take(&mut loader, root, old_names, &config, &waveform);
        loader.finish()?;
        Ok(encoder)
    }

    fn take(
        loader: &mut Loader<'_>,
        root: &str,
        old_names: bool,
        config: &WavConfig,
        waveform: &WaveformConfig,
    ) -> Self {
        let width = config.hidden_size;
        let front_end = FrontEnd::load(loader, root, config, waveform);
        let positions = take_positions(loader, root, old_names, config);
        let norm = LayerNorm::load(
            loader,
            &format!("{root}encoder.layer_norm"),
            width,
            config.layer_norm_eps,
        );
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(loader, &format!("{root}encoder.layers.{index}"), config))
            .collect();
        let distances = config.is_wavlm().then(|| Distances {
            table: loader.take_as(
                &format!("{root}encoder.layers.0.attention.rel_attn_embed.weight"),
                &[config.num_buckets, config.num_attention_heads],
                Kind::Float,
            ),
            distance_max: config.max_bucket_distance,
        });
        Self {
            front_end,
            positions,
            pre_norm: config.do_stable_layer_norm,
            norm,
            layers,
            distances,
            width,
            frames_per_second: f64::from(SAMPLE_RATE_HZ) / config.hop_samples() as f64,
            dtype: loader.kind(),
            device: loader.device(),
        }
    }
}

impl PackedEncoder for WavEncoder {
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
            frames_per_second: self.frames_per_second,
            max_samples: None,
        }
    }

    /// `(samples − 400) / 320 + 1` with the published convolutions, and one for anything shorter.
    fn frames_of(&self, samples: usize) -> i64 {
        self.front_end.frames(samples) as i64
    }

    fn embed(&self, clips: &[&[f32]], _: &[i64]) -> Result<Tensor, ModelError> {
        let embedded: Vec<Tensor> = clips
            .iter()
            .map(|clip| {
                let frames = self.front_end.forward(clip)?; // [T, D]
                // An even number of taps makes one frame too many.
                let positions = self.positions.forward(&frames).narrow(0, 0, frames.size()[0]);
                Ok(positions.gelu("none") + frames)
            })
            .collect::<Result<_, ModelError>>()?;
        let hidden = join(&embedded); // [R, D]
        Ok(if self.pre_norm {
            hidden
        } else {
            self.norm.forward(&hidden)
        })
    }

    fn run(
        &self,
        mut hidden: Tensor,
        lengths: &[i64],
        visit: &mut dyn FnMut(usize, &Tensor) -> Result<(), ModelError>,
    ) -> Result<[Tensor; 2], ModelError> {
        let longest = lengths.iter().copied().max().unwrap_or(1);
        let bias = self
            .distances
            .as_ref()
            .map(|distances| RelativeBias::new(&distances.table, longest, distances.distance_max));
        for (index, layer) in self.layers.iter().enumerate() {
            visit(index, &hidden)?;
            hidden = if self.pre_norm {
                layer.forward_pre_norm(&hidden, lengths, bias.as_ref())
            } else {
                layer.forward_post_norm(&hidden, lengths, bias.as_ref())
            };
        }
        let last = if self.pre_norm {
            self.norm.forward(&hidden)
        } else {
            hidden.shallow_clone()
        };
        Ok([hidden, last])
    }
}

/// The positional convolution, its weight norm resolved: `weight = scale · direction / ‖direction‖`, a norm
/// per tap.
fn take_positions(loader: &mut Loader<'_>, root: &str, old_names: bool, config: &WavConfig) -> FrameConv {
    let [scale_name, direction_name] = position_weight_names(old_names);
    let [scale_shape, direction_shape] = config.position_weight_shapes();
    let scale = loader.take_as(&format!("{root}encoder.{scale_name}"), &scale_shape, Kind::Float);
    let direction = loader.take_as(
        &format!("{root}encoder.{direction_name}"),
        &direction_shape,
        Kind::Float,
    );
    let bias = loader.take(
        &format!("{root}encoder.pos_conv_embed.conv.bias"),
        &[config.hidden_size],
    );
    let norm = direction
        .square()
        .sum_dim_intlist([0, 1].as_slice(), true, Kind::Double)
        .sqrt(); // [1, 1, taps]
    let weight = (direction * (scale / norm)).to_kind(loader.kind());
    let padding = config.num_conv_pos_embeddings / 2;
    FrameConv::new(
        &weight,
        Some(bias),
        1,
        padding,
        config.num_conv_pos_embedding_groups,
    )
}

impl Layer {
    fn load(loader: &mut Loader<'_>, name: &str, config: &WavConfig) -> Self {
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        let norm = |loader: &mut Loader<'_>, part: &str| {
            LayerNorm::load(loader, &format!("{name}.{part}"), width, config.layer_norm_eps)
        };
        let attention = format!("{name}.attention");
        Self {
            attention: if config.is_wavlm() {
                SelfAttention::load_gated(loader, &attention, width, heads)
            } else {
                SelfAttention::load(loader, &attention, width, heads, true)
            },
            attention_norm: norm(loader, "layer_norm"),
            feed: FeedForward::load(
                loader,
                &format!("{name}.feed_forward.intermediate_dense"),
                &format!("{name}.feed_forward.output_dense"),
                width,
                config.intermediate_size,
            ),
            feed_norm: norm(loader, "final_layer_norm"),
        }
    }

    /// `[R, D]` → `[R, D]`, each norm after its sum.
    fn forward_post_norm(&self, input: &Tensor, lengths: &[i64], bias: Option<&RelativeBias>) -> Tensor {
        let mut attended = self.attention.forward(input, lengths, bias);
        attended += input;
        let hidden = self.attention_norm.forward(&attended);
        let mut fed = self.feed.forward(&hidden);
        fed += &hidden;
        self.feed_norm.forward(&fed)
    }

    /// `[R, D]` → `[R, D]`, each norm before its part; the residual stream itself is never normalised.
    fn forward_pre_norm(&self, input: &Tensor, lengths: &[i64], bias: Option<&RelativeBias>) -> Tensor {
        let normed = self.attention_norm.forward(input);
        let mut hidden = self.attention.forward(&normed, lengths, bias);
        hidden += input;
        let mut fed = self.feed.forward(&self.feed_norm.forward(&hidden));
        fed += &hidden;
        fed
    }
}

#[cfg(test)]
mod tests;

//! `config.json` and `preprocessor_config.json` of a wav2vec 2.0 family folder, as far as numbers depend on
//! them, and the tensors they imply.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::audio::SAMPLE_RATE_HZ;
use crate::models::ModelError;
use crate::models::config_file::{read_json, refuse};

/// Numbers a gate projection makes of each head's slice: four to be summed for each of two sigmoids.
pub(super) const GATE_OUTPUTS: i64 = 8;

/// The keys that decide shapes and mathematics; the library's defaults where a key is absent. Other keys pass
/// unread.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default)]
pub struct WavConfig {
    /// `wavlm`, `hubert` or `wav2vec2`.
    pub model_type: String,
    /// Width `D`.
    pub hidden_size: i64,
    /// Layers `L`.
    pub num_hidden_layers: i64,
    /// Heads `N`.
    pub num_attention_heads: i64,
    /// Width inside the feed-forward part.
    pub intermediate_size: i64,
    /// Non-linearity of the feed-forward part.
    pub hidden_act: String,
    /// Added to variances in the norms of projection and transformer.
    pub layer_norm_eps: f64,
    /// `group` or `layer`: how the front end normalises.
    pub feat_extract_norm: String,
    /// Non-linearity of the front end and of the positional convolution.
    pub feat_extract_activation: String,
    /// Channels of each convolution of the front end.
    pub conv_dim: Vec<i64>,
    /// Their strides.
    pub conv_stride: Vec<i64>,
    /// Their taps.
    pub conv_kernel: Vec<i64>,
    /// Whether they have biases.
    pub conv_bias: bool,
    /// Taps of the positional convolution.
    pub num_conv_pos_embeddings: i64,
    /// Its groups.
    pub num_conv_pos_embedding_groups: i64,
    /// Whether the transformer is pre-norm.
    pub do_stable_layer_norm: bool,
    /// WavLM: buckets of the relative position bias, both signs together.
    pub num_buckets: i64,
    /// WavLM: distance from which all share a bucket, frames.
    pub max_bucket_distance: i64,
    /// HuBERT: whether the projection begins with a norm.
    pub feat_proj_layer_norm: bool,
    /// HuBERT: whether the positional convolution begins with a batch norm.
    pub conv_pos_batch_norm: bool,
    /// Whether strided convolutions follow the transformer.
    pub add_adapter: bool,
    /// Width of per-language adapters inside the layers.
    pub adapter_attn_dim: Option<Value>,
    /// Set when the weights are stored in a packed integer format.
    pub quantization_config: Option<Value>,
}

impl Default for WavConfig {
    fn default() -> Self {
        Self {
            model_type: String::new(),
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-5,
            feat_extract_norm: "group".to_owned(),
            feat_extract_activation: "gelu".to_owned(),
            conv_dim: vec![512; 7],
            conv_stride: vec![5, 2, 2, 2, 2, 2, 2],
            conv_kernel: vec![10, 3, 3, 3, 3, 2, 2],
            conv_bias: false,
            num_conv_pos_embeddings: 128,
            num_conv_pos_embedding_groups: 16,
            do_stable_layer_norm: false,
            num_buckets: 320,
            max_bucket_distance: 800,
            feat_proj_layer_norm: true,
            conv_pos_batch_norm: false,
            add_adapter: false,
            adapter_attn_dim: None,
            quantization_config: None,
        }
    }
}

/// The parts of `preprocessor_config.json` that decide values; the library's defaults where a key is absent.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default)]
pub struct WaveformConfig {
    /// Class name in the library.
    pub feature_extractor_type: String,
    /// Numbers per sample.
    pub feature_size: i64,
    /// Samples per second.
    pub sampling_rate: u32,
    /// Whether every utterance is brought to zero mean and unit variance.
    pub do_normalize: bool,
}

impl Default for WaveformConfig {
    fn default() -> Self {
        Self {
            feature_extractor_type: "Wav2Vec2FeatureExtractor".to_owned(),
            feature_size: 1,
            sampling_rate: SAMPLE_RATE_HZ,
            do_normalize: true,
        }
    }
}

/// How the front end normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrontEndNorm {
    /// Each channel over time, once, after the first convolution.
    Group,
    /// Each frame over channels, after every convolution.
    Layer,
}

impl WavConfig {
    /// Reads `config.json` of a folder and refuses, by key, what this program does not compute.
    ///
    /// # Errors
    /// [`ModelError::File`] when it cannot be read, [`ModelError::Unsupported`] for a key out of bounds.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let config: Self = read_json(path)?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ModelError> {
        self.check_words(path)?;
        self.check_numbers(path)
    }

    fn check_words(&self, path: &Path) -> Result<(), ModelError> {
        if !["wavlm", "hubert", "wav2vec2"].contains(&self.model_type.as_str()) {
            let expected = "\"wavlm\", \"hubert\" or \"wav2vec2\"";
            return refuse(path, "model_type", format!("{:?}", self.model_type), expected);
        }
        for (key, found) in [
            ("hidden_act", &self.hidden_act),
            ("feat_extract_activation", &self.feat_extract_activation),
        ] {
            if found != "gelu" {
                return refuse(path, key, format!("{found:?}"), "\"gelu\"");
            }
        }
        if self.norm().is_none() {
            let found = format!("{:?}", self.feat_extract_norm);
            return refuse(path, "feat_extract_norm", found, "\"group\" or \"layer\"");
        }
        // A key that a family does not know is not read by the library either.
        let (hubert, wavlm) = (self.model_type == "hubert", self.is_wavlm());
        for (key, set, read) in [
            ("conv_pos_batch_norm", self.conv_pos_batch_norm, hubert),
            ("add_adapter", self.add_adapter, !hubert),
        ] {
            if set && read {
                return refuse(path, key, "true".to_owned(), "false");
            }
        }
        for (key, set, expected) in [
            (
                "adapter_attn_dim",
                self.adapter_attn_dim.is_some() && !wavlm,
                "null",
            ),
            (
                "quantization_config",
                self.quantization_config.is_some(),
                "unquantised weights only",
            ),
        ] {
            if set {
                return refuse(path, key, "a value".to_owned(), expected);
            }
        }
        Ok(())
    }

    fn check_numbers(&self, path: &Path) -> Result<(), ModelError> {
        // Far beyond any published model; a lying file must not make loops or products run away.
        for (key, found, most) in [
            ("hidden_size", self.hidden_size, 1 << 14),
            ("num_hidden_layers", self.num_hidden_layers, 256),
            ("num_attention_heads", self.num_attention_heads, 1 << 10),
            ("intermediate_size", self.intermediate_size, 1 << 17),
            ("num_conv_pos_embeddings", self.num_conv_pos_embeddings, 1 << 12),
            (
                "num_conv_pos_embedding_groups",
                self.num_conv_pos_embedding_groups,
                1 << 14,
            ),
        ] {
            if !(1..=most).contains(&found) {
                return refuse(path, key, found.to_string(), &format!("1 to {most}"));
            }
        }
        for (key, found) in [
            ("num_attention_heads", self.num_attention_heads),
            (
                "num_conv_pos_embedding_groups",
                self.num_conv_pos_embedding_groups,
            ),
        ] {
            if self.hidden_size % found != 0 {
                let expected = format!("a divisor of `hidden_size`, which is {}", self.hidden_size);
                return refuse(path, key, found.to_string(), &expected);
            }
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps <= 1.0) {
            let found = self.layer_norm_eps.to_string();
            return refuse(path, "layer_norm_eps", found, "above 0, at most 1");
        }
        const CONVOLUTIONS_MAX: usize = 16;
        for (key, list, most) in [
            ("conv_dim", &self.conv_dim, 1 << 13),
            ("conv_stride", &self.conv_stride, 64),
            ("conv_kernel", &self.conv_kernel, 256),
        ] {
            let usable = (1..=CONVOLUTIONS_MAX).contains(&list.len())
                && list.len() == self.conv_dim.len()
                && list.iter().all(|value| (1..=most).contains(value));
            if !usable {
                let expected = format!(
                    "1 to {CONVOLUTIONS_MAX} numbers from 1 to {most}, as many as in `conv_dim` and the other lists"
                );
                return refuse(path, key, format!("{list:?}"), &expected);
            }
        }
        const HOP_SAMPLES_MAX: i64 = SAMPLE_RATE_HZ as i64; // a frame a second
        let hop = self
            .conv_stride
            .iter()
            .fold(1_i64, |hop, stride| hop.saturating_mul(*stride));
        if hop > HOP_SAMPLES_MAX {
            let expected = format!("a product of at most {HOP_SAMPLES_MAX}");
            return refuse(path, "conv_stride", format!("{:?}", self.conv_stride), &expected);
        }
        if self.is_wavlm() {
            const BUCKETS_MAX: i64 = 1 << 16;
            if !(4..=BUCKETS_MAX).contains(&self.num_buckets) {
                let expected = format!("4 to {BUCKETS_MAX}");
                return refuse(path, "num_buckets", self.num_buckets.to_string(), &expected);
            }
            let exact = self.num_buckets / 4; // distances with a bucket of their own
            if !(exact + 1..=1 << 30).contains(&self.max_bucket_distance) {
                let expected = format!("above a quarter of `num_buckets`, which is {exact}");
                let found = self.max_bucket_distance.to_string();
                return refuse(path, "max_bucket_distance", found, &expected);
            }
        }
        Ok(())
    }

    /// Whether layers have WavLM's gated relative position bias.
    pub fn is_wavlm(&self) -> bool {
        self.model_type == "wavlm"
    }

    /// Whether the projection begins with a norm: only HuBERT can do without.
    pub(super) fn projection_norm(&self) -> bool {
        self.feat_proj_layer_norm || self.model_type != "hubert"
    }

    pub(super) fn norm(&self) -> Option<FrontEndNorm> {
        match self.feat_extract_norm.as_str() {
            "group" => Some(FrontEndNorm::Group),
            "layer" => Some(FrontEndNorm::Layer),
            _ => None,
        }
    }

    /// Samples from one frame to the next.
    pub fn hop_samples(&self) -> usize {
        self.conv_stride.iter().product::<i64>() as usize
    }

    /// Samples that one frame sees.
    pub fn field_samples(&self) -> usize {
        let (field, _) = self
            .conv_kernel
            .iter()
            .zip(&self.conv_stride)
            .fold((1, 1), |(field, hop), (kernel, stride)| {
                (field + (kernel - 1) * hop, hop * stride)
            });
        field as usize
    }

    /// Channels that leave the front end.
    pub(super) fn feature_width(&self) -> i64 {
        *self
            .conv_dim
            .last()
            .expect("checked: there is at least one convolution")
    }

    /// Shapes of the weight norm's scale and direction: the norm is taken per tap.
    pub(super) fn position_weight_shapes(&self) -> [[i64; 3]; 2] {
        let (width, taps) = (self.hidden_size, self.num_conv_pos_embeddings);
        [
            [1, 1, taps],
            [width, width / self.num_conv_pos_embedding_groups, taps],
        ]
    }

    /// Every tensor of the encoder under `root` (such as `wavlm.`), by name and shape; the positional
    /// convolution's weight norm in the new spelling or, where `old_names`, in the old one.
    pub fn variables(&self, root: &str, old_names: bool) -> Vec<(String, Vec<i64>)> {
        let mut variables = Vec::new();
        let mut add = |name: &str, shape: &[i64]| variables.push((format!("{root}{name}"), shape.to_vec()));
        let width = self.hidden_size;
        let mut inputs = 1;
        for (index, (&outputs, &taps)) in self.conv_dim.iter().zip(&self.conv_kernel).enumerate() {
            let name = |part: &str| format!("feature_extractor.conv_layers.{index}.{part}");
            add(&name("conv.weight"), &[outputs, inputs, taps]);
            if self.conv_bias {
                add(&name("conv.bias"), &[outputs]);
            }
            if index == 0 || self.norm() == Some(FrontEndNorm::Layer) {
                add(&name("layer_norm.weight"), &[outputs]);
                add(&name("layer_norm.bias"), &[outputs]);
            }
            inputs = outputs;
        }
        if self.projection_norm() {
            add("feature_projection.layer_norm.weight", &[inputs]);
            add("feature_projection.layer_norm.bias", &[inputs]);
        }
        add("feature_projection.projection.weight", &[width, inputs]);
        add("feature_projection.projection.bias", &[width]);
        let [scale, direction] = self.position_weight_shapes();
        let [scale_name, direction_name] = position_weight_names(old_names);
        add(&format!("encoder.{scale_name}"), &scale);
        add(&format!("encoder.{direction_name}"), &direction);
        add("encoder.pos_conv_embed.conv.bias", &[width]);
        add("encoder.layer_norm.weight", &[width]);
        add("encoder.layer_norm.bias", &[width]);
        for layer in 0..self.num_hidden_layers {
            let mut add = |name: &str, shape: &[i64]| add(&format!("encoder.layers.{layer}.{name}"), shape);
            for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                add(&format!("attention.{projection}.weight"), &[width, width]);
                add(&format!("attention.{projection}.bias"), &[width]);
            }
            if self.is_wavlm() {
                let head_width = width / self.num_attention_heads;
                add(
                    "attention.gru_rel_pos_const",
                    &[1, self.num_attention_heads, 1, 1],
                );
                add("attention.gru_rel_pos_linear.weight", &[GATE_OUTPUTS, head_width]);
                add("attention.gru_rel_pos_linear.bias", &[GATE_OUTPUTS]);
                if layer == 0 {
                    let table = [self.num_buckets, self.num_attention_heads];
                    add("attention.rel_attn_embed.weight", &table);
                }
            }
            for norm in ["layer_norm", "final_layer_norm"] {
                add(&format!("{norm}.weight"), &[width]);
                add(&format!("{norm}.bias"), &[width]);
            }
            let inner = self.intermediate_size;
            add("feed_forward.intermediate_dense.weight", &[inner, width]);
            add("feed_forward.intermediate_dense.bias", &[inner]);
            add("feed_forward.output_dense.weight", &[width, inner]);
            add("feed_forward.output_dense.bias", &[width]);
        }
        variables
    }
}

/// Names below `encoder.` of the positional convolution's scale and direction.
pub(super) fn position_weight_names(old_names: bool) -> [&'static str; 2] {
    if old_names {
        ["pos_conv_embed.conv.weight_g", "pos_conv_embed.conv.weight_v"]
    } else {
        [
            "pos_conv_embed.conv.parametrizations.weight.original0",
            "pos_conv_embed.conv.parametrizations.weight.original1",
        ]
    }
}

impl WaveformConfig {
    /// Reads `preprocessor_config.json` of a folder and refuses, by key, whatever would need another front
    /// end.
    ///
    /// # Errors
    /// [`ModelError::File`] when it cannot be read, [`ModelError::Unsupported`] for a key that asks for
    /// something else.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let config: Self = read_json(path)?;
        let right = Self::default();
        if config.feature_extractor_type != right.feature_extractor_type {
            let found = format!("{:?}", config.feature_extractor_type);
            return refuse(
                path,
                "feature_extractor_type",
                found,
                &right.feature_extractor_type,
            );
        }
        if config.sampling_rate != right.sampling_rate {
            let (found, expected) = (config.sampling_rate.to_string(), right.sampling_rate.to_string());
            return refuse(path, "sampling_rate", found, &expected);
        }
        if config.feature_size != right.feature_size {
            let (found, expected) = (config.feature_size.to_string(), right.feature_size.to_string());
            return refuse(path, "feature_size", found, &expected);
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests;

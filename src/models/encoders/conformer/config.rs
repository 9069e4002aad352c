//! `config.json` of a BEST-RQ Conformer folder. The format is ours: the paper's encoder was never published,
//! so there is no layout to follow. Key names are those of `Wav2Vec2ConformerConfig` of the transformers
//! library where it has the thing.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::models::ModelError;

/// The `model_type` of our folders.
pub const MODEL_TYPE: &str = "speechverse-bestrq";
/// Mel frames that become one encoder frame: two convolutions of stride 2.
pub const MELS_PER_FRAME: i64 = 4;
/// Largest `config.json` read, bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
const NORM_EPS: f64 = 1e-5;

/// How log-mel frames are brought to zero mean and unit variance, bin by bin.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalization {
    /// By the clip's own mean and variance: loudness and channel drop out. The default.
    #[default]
    Utterance,
    /// By the training data's, kept in the checkpoint as `front_end.mean` and `front_end.deviation` `[M]`.
    Global,
}

/// The norm inside the convolution module.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvNorm {
    /// LayerNorm over channels, frame by frame: a clip's values depend on nothing beside it, in training too.
    /// The default.
    #[default]
    Layer,
    /// BatchNorm by its running statistics, as the Conformer paper has it. Exact when frozen; it cannot be
    /// pre-trained here, because statistics over a batch would mix clips and padding.
    Batch,
}

/// Shape and mathematics of the encoder; the defaults are the paper's shape (24 × 768, 8 heads, about 300 M
/// parameters).
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ConformerConfig {
    /// Always `speechverse-bestrq`.
    pub model_type: String,
    /// Width `D`.
    pub hidden_size: i64,
    /// Conformer blocks `L`.
    pub num_hidden_layers: i64,
    /// Heads `N`.
    pub num_attention_heads: i64,
    /// Width inside each of a block's two feed-forward parts.
    pub intermediate_size: i64,
    /// Non-linearity of feed-forward parts and convolution module; `swish` alone is known.
    pub hidden_act: String,
    /// Positions; `relative` (Transformer-XL) alone is known.
    pub position_embeddings_type: String,
    /// Taps of the depthwise convolution, odd.
    pub conv_depthwise_kernel_size: i64,
    /// Norm inside the convolution module.
    pub conv_norm: ConvNorm,
    /// Epsilon of every norm; 1e-5 alone is known.
    pub layer_norm_eps: f64,
    /// Mel bins `M`.
    pub num_mel_bins: i64,
    /// Normalisation of the mel frames.
    pub normalize: Normalization,
    /// Channels of the first subsampling convolution before its gate halves them.
    pub subsampling_channels: i64,
    /// Taps of both subsampling convolutions, odd.
    pub subsampling_kernel_size: i64,
    /// Most encoder frames of one clip: 1500 are 60 s. Attention's memory grows with the square.
    pub max_source_positions: i64,
}

impl Default for ConformerConfig {
    fn default() -> Self {
        Self {
            model_type: MODEL_TYPE.to_owned(),
            hidden_size: 768,
            num_hidden_layers: 24,
            num_attention_heads: 8,
            intermediate_size: 2560,
            hidden_act: "swish".to_owned(),
            position_embeddings_type: "relative".to_owned(),
            conv_depthwise_kernel_size: 31,
            conv_norm: ConvNorm::Layer,
            layer_norm_eps: NORM_EPS,
            num_mel_bins: 80,
            normalize: Normalization::Utterance,
            subsampling_channels: 1024,
            subsampling_kernel_size: 5,
            max_source_positions: 1500,
        }
    }
}

impl ConformerConfig {
    /// Reads `config.json` of a folder and refuses, by key, what this program does not compute. Unknown keys
    /// pass, as in every published `config.json`; a key that is absent has its default.
    ///
    /// # Errors
    /// [`ModelError::File`] when it cannot be read, [`ModelError::Unsupported`] for a key out of bounds.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let unusable = |reason: String| ModelError::File {
            path: path.to_path_buf(),
            reason,
        };
        let size = std::fs::metadata(path)
            .map_err(|error| unusable(error.to_string()))?
            .len();
        if size > CONFIG_BYTES_MAX {
            return Err(unusable(format!(
                "it has {size} bytes, at most {CONFIG_BYTES_MAX} are read"
            )));
        }
        let text = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
        Self::parse(&text, path)
    }

    /// As [`read`](Self::read), from bytes at hand; `path` is for messages.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, ModelError> {
        let unusable = |reason: String| ModelError::File {
            path: path.to_path_buf(),
            reason,
        };
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|error| unusable(error.to_string()))?;
        if value.get("model_type").is_none() {
            return Err(unusable(format!(
                "it lacks `model_type`, expected \"{MODEL_TYPE}\""
            )));
        }
        let config: Self = serde_json::from_value(value).map_err(|error| unusable(error.to_string()))?;
        match config.problem() {
            None => Ok(config),
            Some((key, found, expected)) => Err(ModelError::Unsupported {
                path: path.to_path_buf(),
                key,
                found,
                expected,
            }),
        }
    }

    /// The first key that asks for something this program does not compute: key, found, expected.
    pub fn problem(&self) -> Option<(&'static str, String, String)> {
        let words = [
            ("model_type", &self.model_type, MODEL_TYPE),
            ("hidden_act", &self.hidden_act, "swish"),
            (
                "position_embeddings_type",
                &self.position_embeddings_type,
                "relative",
            ),
        ];
        for (key, found, expected) in words {
            if found != expected {
                return Some((key, format!("{found:?}"), format!("{expected:?}")));
            }
        }
        if self.layer_norm_eps != NORM_EPS {
            return Some((
                "layer_norm_eps",
                self.layer_norm_eps.to_string(),
                NORM_EPS.to_string(),
            ));
        }
        // Far beyond any sensible model; a lying file must not make loops or products run away.
        let numbers = [
            ("hidden_size", self.hidden_size, 1 << 14),
            ("num_hidden_layers", self.num_hidden_layers, 256),
            ("num_attention_heads", self.num_attention_heads, 1 << 10),
            ("intermediate_size", self.intermediate_size, 1 << 17),
            (
                "conv_depthwise_kernel_size",
                self.conv_depthwise_kernel_size,
                1023,
            ),
            ("num_mel_bins", self.num_mel_bins, 512),
            ("subsampling_channels", self.subsampling_channels, 1 << 14),
            ("subsampling_kernel_size", self.subsampling_kernel_size, 31),
            ("max_source_positions", self.max_source_positions, 30_000),
        ];
        for (key, found, most) in numbers {
            if !(1..=most).contains(&found) {
                return Some((key, found.to_string(), format!("1 to {most}")));
            }
        }
        if self.hidden_size % self.num_attention_heads != 0 {
            let expected = format!("a divisor of `hidden_size`, which is {}", self.hidden_size);
            return Some((
                "num_attention_heads",
                self.num_attention_heads.to_string(),
                expected,
            ));
        }
        let even = [
            ("hidden_size", self.hidden_size),
            ("subsampling_channels", self.subsampling_channels),
        ];
        for (key, found) in even {
            if found % 2 != 0 {
                return Some((key, found.to_string(), "an even number".to_owned()));
            }
        }
        let odd = [
            ("conv_depthwise_kernel_size", self.conv_depthwise_kernel_size),
            ("subsampling_kernel_size", self.subsampling_kernel_size),
        ];
        for (key, found) in odd {
            if found % 2 == 0 {
                return Some((key, found.to_string(), "an odd number".to_owned()));
            }
        }
        None
    }

    /// Encoder frames that `mel_frames` become: `ceil(ceil(F / 2) / 2)`, which is `ceil(F / 4)`.
    pub fn frames(mel_frames: i64) -> i64 {
        (mel_frames + MELS_PER_FRAME - 1) / MELS_PER_FRAME
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn parse(value: &Value) -> Result<ConformerConfig, String> {
        ConformerConfig::parse(value.to_string().as_bytes(), Path::new("config.json"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_that_changes_the_mathematics_is_refused_by_name() {
        assert!(parse(&json!({"model_type": MODEL_TYPE})).is_ok());
        for (key, value) in [
            ("model_type", json!("wavlm")),
            ("hidden_act", json!("gelu")),
            ("position_embeddings_type", json!("rotary")),
            ("layer_norm_eps", json!(1e-6)),
            ("hidden_size", json!(0)),
            ("hidden_size", json!(i64::MAX)),
            ("num_hidden_layers", json!(-1)),
            ("num_attention_heads", json!(7)),
            ("intermediate_size", json!(i64::MAX)),
            ("conv_depthwise_kernel_size", json!(4)),
            ("subsampling_kernel_size", json!(2)),
            ("subsampling_channels", json!(15)),
            ("num_mel_bins", json!(0)),
            ("max_source_positions", json!(i64::MAX)),
        ] {
            let mut config = json!({"model_type": MODEL_TYPE});
            config[key] = value;
            let message = parse(&config).unwrap_err();
            assert!(message.contains(&format!("`{key}`")), "{key}: {message}");
        }
        for (key, value) in [("conv_norm", json!("group")), ("normalize", json!("none"))] {
            let mut config = json!({"model_type": MODEL_TYPE});
            config[key] = value.clone();
            let message = parse(&config).unwrap_err();
            assert!(message.contains(value.as_str().unwrap()), "{key}: {message}");
        }
        assert!(parse(&json!({})).unwrap_err().contains("`model_type`"));
    }

    #[test]
    fn settings_survive_being_written_and_read_again() {
        let config = ConformerConfig {
            conv_norm: ConvNorm::Batch,
            normalize: Normalization::Global,
            ..ConformerConfig::default()
        };

        assert_eq!(parse(&serde_json::to_value(&config).unwrap()), Ok(config));
    }

    #[test]
    fn two_strides_of_two_round_up_twice() {
        for (mel, frames) in [
            (1, 1),
            (2, 1),
            (3, 1),
            (4, 1),
            (5, 2),
            (8, 2),
            (9, 3),
            (98, 25),
            (100, 25),
        ] {
            assert_eq!(ConformerConfig::frames(mel), frames, "{mel}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ConformerConfig::parse(&bytes, Path::new("x"));
        }

        #[test]
        fn any_number_in_any_key_is_taken_or_refused(key in 0usize..9, number in any::<i64>()) {
            let keys = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                "conv_depthwise_kernel_size", "num_mel_bins", "subsampling_channels", "subsampling_kernel_size",
                "max_source_positions"];
            let mut config = json!({"model_type": MODEL_TYPE});
            config[keys[key]] = json!(number);
            if let Ok(config) = parse(&config) {
                prop_assert!(config.problem().is_none());
            }
        }
    }
}

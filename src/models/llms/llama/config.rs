//! `LlamaConfig`: `config.json` of the Llama family, mirrored and checked.
//!
//! Unknown keys pass, because the file is not ours. Every key that changes the mathematics is read, and what
//! this program does not do is refused by the key's name, so that a model either runs as published or not at
//! all.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::models::ModelError;
use crate::models::config_file::{self, unsupported};

/// Which member of the family: they differ in their biases only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Llama 2 and 3, SmolLM2.
    Llama,
    /// Qwen2 and Qwen2.5.
    Qwen2,
}

/// The sizes and constants of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Which member of the family.
    pub variant: Variant,
    /// Width `H`.
    pub hidden_size: i64,
    /// Width of the feed-forward layers.
    pub intermediate_size: i64,
    /// Transformer layers.
    pub layers: i64,
    /// Query heads `N`.
    pub heads: i64,
    /// Key and value heads; each serves `heads / key_value_heads` query heads.
    pub key_value_heads: i64,
    /// Width of one head.
    pub head_dim: i64,
    /// Rows of the embedding table `V`.
    pub vocab_size: i64,
    /// Most positions of a sequence.
    pub max_positions: i64,
    /// Added to the variance in every norm.
    pub norm_epsilon: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// The output layer is the embedding table.
    pub tied: bool,
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// The attention's output projection has a bias.
    pub output_bias: bool,
}

/// The keys we read, as they are spelt.
#[derive(Deserialize)]
struct Raw {
    model_type: String,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    vocab_size: i64,
    max_position_embeddings: i64,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_parameters: Option<Value>,
    rope_scaling: Option<Value>,
    partial_rotary_factor: Option<f64>,
    rope_interleaved: Option<bool>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    pretraining_tp: Option<i64>,
    use_sliding_window: Option<bool>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
}

impl LlamaConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// [`ModelError::File`] when it is missing, broken or its sizes do not fit each other;
    /// [`ModelError::Unsupported`] when it asks for mathematics that is not done here.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let (text, path) = config_file::read(folder)?;
        Self::parse(&text, &path)
    }

    /// Reads the text of a `config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// As [`LlamaConfig::open`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ModelError> {
        let file_error = |reason: String| ModelError::File {
            path: path.to_path_buf(),
            reason,
        };
        let raw: Raw = serde_json::from_str(text).map_err(|error| file_error(error.to_string()))?;
        let variant = match raw.model_type.as_str() {
            "llama" => Variant::Llama,
            "qwen2" => Variant::Qwen2,
            other => {
                return Err(unsupported(path, "model_type", other, "`llama` and `qwen2`"));
            }
        };
        refuse_unsupported(&raw, path)?;
        let rope_theta = rope_theta(&raw, path)?;

        let attention_bias = raw.attention_bias.unwrap_or(false);
        let config = Self {
            variant,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            key_value_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            // An absurd head count is reported by `check`, not by a division here.
            head_dim: match raw.head_dim {
                Some(head_dim) => head_dim,
                None => raw.hidden_size / raw.num_attention_heads.max(1),
            },
            vocab_size: raw.vocab_size,
            max_positions: raw.max_position_embeddings,
            norm_epsilon: raw.rms_norm_eps.unwrap_or(1e-6),
            rope_theta,
            tied: raw.tie_word_embeddings.unwrap_or(false),
            // Qwen2 has these three biases whatever `attention_bias` says, and none on the output.
            qkv_bias: variant == Variant::Qwen2 || attention_bias,
            output_bias: variant == Variant::Llama && attention_bias,
        };
        config.check(raw.head_dim.is_some()).map_err(file_error)?;
        Ok(config)
    }

    /// Sizes that are positive, bounded, and fit each other.
    fn check(&self, explicit_head_dim: bool) -> Result<(), String> {
        for (key, size, most) in [
            ("hidden_size", self.hidden_size, 1 << 17),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("num_hidden_layers", self.layers, 1 << 10),
            ("num_attention_heads", self.heads, 1 << 12),
            ("num_key_value_heads", self.key_value_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 12),
            ("vocab_size", self.vocab_size, 1 << 24),
            ("max_position_embeddings", self.max_positions, 1 << 28),
        ] {
            if size < 1 || size > most {
                return Err(format!("`{key}` is {size}, expected 1 to {most}"));
            }
        }
        if self.heads % self.key_value_heads != 0 {
            return Err(format!(
                "`num_attention_heads` {} is not a multiple of `num_key_value_heads` {}",
                self.heads, self.key_value_heads
            ));
        }
        if !explicit_head_dim && self.hidden_size % self.heads != 0 {
            return Err(format!(
                "`hidden_size` {} is not a multiple of `num_attention_heads` {}",
                self.hidden_size, self.heads
            ));
        }
        if self.head_dim % 2 != 0 {
            return Err(format!(
                "`head_dim` is {}, rotary positions need an even number",
                self.head_dim
            ));
        }
        for (key, value) in [
            ("rms_norm_eps", self.norm_epsilon),
            ("rope_theta", self.rope_theta),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("`{key}` is {value}, expected a positive number"));
            }
        }
        Ok(())
    }
}

/// Refuses by name whatever would change the values and is not done here.
fn refuse_unsupported(raw: &Raw, path: &Path) -> Result<(), ModelError> {
    if let Some(activation) = raw.hidden_act.as_deref()
        && activation != "silu"
    {
        return Err(unsupported(path, "hidden_act", activation, "`silu`"));
    }
    for (key, set) in [
        ("mlp_bias", raw.mlp_bias),
        ("rope_interleaved", raw.rope_interleaved),
        ("use_sliding_window", raw.use_sliding_window),
    ] {
        if set == Some(true) {
            return Err(unsupported(path, key, true, "false"));
        }
    }
    if let Some(kind) = (raw.layer_types.iter().flatten()).find(|kind| *kind != "full_attention") {
        return Err(unsupported(path, "layer_types", kind, "`full_attention`"));
    }
    if let Some(factor) = raw.partial_rotary_factor
        && factor != 1.0
    {
        return Err(unsupported(path, "partial_rotary_factor", factor, "1"));
    }
    // Sliced projections add up to the whole ones, but in another order of rounding.
    if let Some(slices) = raw.pretraining_tp
        && slices != 1
    {
        return Err(unsupported(path, "pretraining_tp", slices, "1"));
    }
    config_file::refuse_quantised(raw.quantization_config.as_ref(), path)
}

/// The rotary base, from `rope_parameters` (transformers 5) or `rope_theta` beside `rope_scaling` (before).
fn rope_theta(raw: &Raw, path: &Path) -> Result<f64, ModelError> {
    let mut theta = raw.rope_theta;
    for (key, value) in [
        ("rope_scaling", &raw.rope_scaling),
        ("rope_parameters", &raw.rope_parameters),
    ] {
        let Some(parameters) = value.as_ref().filter(|value| !value.is_null()) else {
            continue;
        };
        let expected = "null or the default rotary positions";
        let Some(entries) = parameters.as_object() else {
            return Err(unsupported(path, key, parameters, expected));
        };
        for (entry, value) in entries {
            let fits = match entry.as_str() {
                "rope_type" | "type" => value.as_str() == Some("default"),
                "rope_theta" => {
                    theta = value.as_f64();
                    theta.is_some()
                }
                "partial_rotary_factor" => value.as_f64() == Some(1.0),
                _ => value.is_null(),
            };
            if !fits {
                return Err(unsupported(path, key, parameters, expected));
            }
        }
    }
    Ok(theta.unwrap_or(10_000.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn base() -> Value {
        json!({"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32,
            "max_position_embeddings": 64, "hidden_act": "silu"})
    }

    fn with(key: &str, value: Value) -> Result<LlamaConfig, ModelError> {
        let mut config = base();
        config[key] = value;
        LlamaConfig::parse(&config.to_string(), Path::new("config.json"))
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let config = with("unknown_key", json!([1])).unwrap();

        assert_eq!((config.head_dim, config.key_value_heads), (2, 2));
        assert_eq!((config.norm_epsilon, config.rope_theta), (1e-6, 10_000.0));
        assert!(!config.tied && !config.qkv_bias && !config.output_bias);
    }

    #[test]
    fn each_member_of_the_family_has_its_own_biases() {
        let llama = with("attention_bias", json!(true)).unwrap();
        let qwen2 = with("model_type", json!("qwen2")).unwrap();

        assert!(llama.qkv_bias && llama.output_bias);
        assert!(qwen2.qkv_bias && !qwen2.output_bias);
    }

    #[test]
    fn the_rotary_base_is_read_from_either_spelling() {
        assert_eq!(with("rope_theta", json!(5e5)).unwrap().rope_theta, 5e5);
        let parameters = json!({"rope_type": "default", "rope_theta": 1e6});
        assert_eq!(with("rope_parameters", parameters).unwrap().rope_theta, 1e6);
        assert!(with("rope_scaling", Value::Null).is_ok());
        assert!(with("rope_scaling", json!({"type": "default"})).is_ok());
    }

    #[test]
    fn mathematics_that_is_not_done_here_is_refused_by_the_keys_name() {
        for (key, value) in [
            ("model_type", json!("gemma3")),
            ("hidden_act", json!("gelu")),
            ("mlp_bias", json!(true)),
            ("rope_interleaved", json!(true)),
            ("use_sliding_window", json!(true)),
            ("layer_types", json!(["full_attention", "sliding_attention"])),
            ("partial_rotary_factor", json!(0.5)),
            ("pretraining_tp", json!(2)),
            ("quantization_config", json!({"quant_method": "awq"})),
            ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0})),
            ("rope_scaling", json!({"type": "default", "factor": 8.0})),
            ("rope_scaling", json!("yarn")),
            (
                "rope_parameters",
                json!({"full_attention": {"rope_type": "default"}}),
            ),
            (
                "rope_parameters",
                json!({"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
            ),
        ] {
            match with(key, value) {
                Err(ModelError::Unsupported { key: named, .. }) => assert_eq!(named, key),
                other => panic!("{key}: {other:?}"),
            }
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        for (key, value) in [
            ("hidden_size", json!(9)),
            ("hidden_size", json!(i64::MAX)),
            ("num_attention_heads", json!(0)),
            ("num_key_value_heads", json!(3)),
            ("head_dim", json!(3)),
            ("vocab_size", json!(-1)),
            ("rms_norm_eps", json!(0.0)),
            ("rope_theta", json!(-1.0)),
            ("num_hidden_layers", json!("2")),
        ] {
            assert!(matches!(with(key, value), Err(ModelError::File { .. })), "{key}");
        }
    }

    proptest! {
        #[test]
        fn no_text_can_panic(text in any::<String>(), size in any::<i64>(), key in 0usize..7) {
            let path = Path::new("config.json");
            let _ = LlamaConfig::parse(&text, path);
            let keys = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "vocab_size", "head_dim"];
            let _ = with(keys[key], json!(size));
        }
    }
}

//! `T5Config`: `config.json` of T5 models, mirrored and checked.
//!
//! Unknown keys pass, because the file is not ours. Every key that changes the mathematics is read, and what
//! this program does not do is refused by the key's name, so that a model either runs as published or not at
//! all.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::models::ModelError;
use crate::models::config_file::{self, unsupported};

/// What the feed-forward layers do between their matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`: T5 1.0.
    Relu,
    /// The tanh approximation of GELU: T5 1.1 and Flan-T5.
    GeluTanh,
    /// GELU with the error function.
    Gelu,
    /// `x · sigmoid(x)`.
    Silu,
}

/// The sizes and constants of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct T5Config {
    /// Width `H`.
    pub width: i64,
    /// Width of one attention head.
    pub head_width: i64,
    /// Attention heads `N`; `heads · head_width` need not be the width.
    pub heads: i64,
    /// Width of the feed-forward layers.
    pub inner_width: i64,
    /// Layers of the encoder.
    pub encoder_layers: i64,
    /// Layers of the decoder.
    pub decoder_layers: i64,
    /// Rows of the embedding table `V`.
    pub vocab_size: i64,
    /// Buckets of the relative positions.
    pub buckets: i64,
    /// Offsets from here on share a bucket.
    pub max_distance: i64,
    /// Added to the mean square in every norm.
    pub norm_epsilon: f64,
    /// What the feed-forward layers do between their matrices.
    pub activation: Activation,
    /// Whether the activation gates a second projection.
    pub gated: bool,
    /// The output layer is the embedding table, unless the checkpoint has one of its own; `false`: it must
    /// have one.
    pub may_tie: bool,
    /// What the decoder made is scaled by `width^-0.5` before the output layer: T5 1.0.
    pub scales_output: bool,
    /// The token that the decoder begins with.
    pub start_id: i64,
}

/// The keys we read, as they are spelt.
#[derive(Deserialize)]
struct Raw {
    model_type: String,
    d_model: i64,
    d_kv: i64,
    d_ff: i64,
    num_layers: i64,
    num_decoder_layers: Option<i64>,
    num_heads: i64,
    vocab_size: i64,
    relative_attention_num_buckets: Option<i64>,
    relative_attention_max_distance: Option<i64>,
    layer_norm_epsilon: Option<f64>,
    feed_forward_proj: Option<String>,
    dense_act_fn: Option<String>,
    is_gated_act: Option<bool>,
    tie_word_embeddings: Option<bool>,
    scale_decoder_outputs: Option<bool>,
    decoder_start_token_id: Option<i64>,
    pad_token_id: Option<i64>,
    is_encoder_decoder: Option<bool>,
    is_decoder: Option<bool>,
    tie_encoder_decoder: Option<bool>,
    quantization_config: Option<Value>,
}

impl T5Config {
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
    /// As [`T5Config::open`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ModelError> {
        let file_error = |reason: String| ModelError::File {
            path: path.to_path_buf(),
            reason,
        };
        let raw: Raw = serde_json::from_str(text).map_err(|error| file_error(error.to_string()))?;
        if raw.model_type != "t5" {
            return Err(unsupported(path, "model_type", &raw.model_type, "`t5`"));
        }
        refuse_unsupported(&raw, path)?;
        let (activation, gated) = feed_forward(&raw, path)?;
        let config = Self {
            width: raw.d_model,
            head_width: raw.d_kv,
            heads: raw.num_heads,
            inner_width: raw.d_ff,
            encoder_layers: raw.num_layers,
            decoder_layers: raw.num_decoder_layers.unwrap_or(raw.num_layers),
            vocab_size: raw.vocab_size,
            buckets: raw.relative_attention_num_buckets.unwrap_or(32),
            max_distance: raw.relative_attention_max_distance.unwrap_or(128),
            norm_epsilon: raw.layer_norm_epsilon.unwrap_or(1e-6),
            activation,
            gated,
            may_tie: raw.tie_word_embeddings != Some(false),
            // Files of transformers 5 have the key; before, untied heads were the sign of T5 1.1.
            scales_output: (raw.scale_decoder_outputs).unwrap_or(raw.tie_word_embeddings != Some(false)),
            start_id: raw.decoder_start_token_id.or(raw.pad_token_id).unwrap_or(0),
        };
        config.check().map_err(file_error)?;
        Ok(config)
    }

    /// Width of all heads together.
    pub fn heads_width(&self) -> i64 {
        self.heads * self.head_width
    }

    /// Sizes that are positive, bounded, and fit each other.
    fn check(&self) -> Result<(), String> {
        for (key, size, least, most) in [
            ("d_model", self.width, 1, 1 << 17),
            ("d_kv", self.head_width, 1, 1 << 12),
            ("num_heads", self.heads, 1, 1 << 12),
            ("d_ff", self.inner_width, 1, 1 << 20),
            ("num_layers", self.encoder_layers, 1, 1 << 10),
            ("num_decoder_layers", self.decoder_layers, 1, 1 << 10),
            ("vocab_size", self.vocab_size, 1, 1 << 24),
            // An encoder spends half of them on each direction, and half of those on exact offsets.
            ("relative_attention_num_buckets", self.buckets, 4, 1 << 12),
            (
                "relative_attention_max_distance",
                self.max_distance,
                self.buckets / 2 + 1,
                1 << 16,
            ),
            ("decoder_start_token_id", self.start_id, 0, self.vocab_size - 1),
        ] {
            if size < least || size > most {
                return Err(format!("`{key}` is {size}, expected {least} to {most}"));
            }
        }
        if !(self.norm_epsilon.is_finite() && self.norm_epsilon > 0.0) {
            return Err(format!(
                "`layer_norm_epsilon` is {}, expected a positive number",
                self.norm_epsilon
            ));
        }
        Ok(())
    }
}

/// Refuses by name whatever would change the values and is not done here.
fn refuse_unsupported(raw: &Raw, path: &Path) -> Result<(), ModelError> {
    for (key, set, expected) in [
        ("is_encoder_decoder", raw.is_encoder_decoder, true),
        ("is_decoder", raw.is_decoder, false),
        ("tie_encoder_decoder", raw.tie_encoder_decoder, false),
    ] {
        if set == Some(!expected) {
            return Err(unsupported(path, key, !expected, &expected.to_string()));
        }
    }
    config_file::refuse_quantised(raw.quantization_config.as_ref(), path)
}

/// Activation and gating, which files spell in up to three keys.
fn feed_forward(raw: &Raw, path: &Path) -> Result<(Activation, bool), ModelError> {
    let spelt = raw.feed_forward_proj.as_deref().unwrap_or("relu");
    let (gated, name) = match spelt.strip_prefix("gated-") {
        Some(name) => (true, name),
        None => (false, spelt),
    };
    let activation = match (name, gated) {
        ("relu", _) => Activation::Relu,
        // Gated, plain `gelu` means the approximation; alone, the exact one.
        ("gelu", true) | ("gelu_new", _) => Activation::GeluTanh,
        ("gelu", false) => Activation::Gelu,
        ("silu", _) => Activation::Silu,
        _ => {
            let expected = "`relu`, `gelu`, `gelu_new` or `silu`, alone or after `gated-`";
            return Err(unsupported(path, "feed_forward_proj", spelt, expected));
        }
    };
    let derived = match activation {
        Activation::Relu => "relu",
        Activation::GeluTanh => "gelu_new",
        Activation::Gelu => "gelu",
        Activation::Silu => "silu",
    };
    if let Some(other) = raw.dense_act_fn.as_deref().filter(|other| *other != derived) {
        let expected = format!("`{derived}`, as `feed_forward_proj` says");
        return Err(unsupported(path, "dense_act_fn", other, &expected));
    }
    if let Some(other) = raw.is_gated_act.filter(|other| *other != gated) {
        let expected = format!("{gated}, as `feed_forward_proj` says");
        return Err(unsupported(path, "is_gated_act", other, &expected));
    }
    Ok((activation, gated))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn base() -> Value {
        json!({"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2,
            "vocab_size": 32, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0})
    }

    fn with(keys: &[(&str, Value)]) -> Result<T5Config, ModelError> {
        let mut config = base();
        for (key, value) in keys {
            config[*key] = value.clone();
        }
        T5Config::parse(&config.to_string(), Path::new("config.json"))
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let config = with(&[("unknown_key", json!([1]))]).unwrap();

        assert_eq!(
            (config.decoder_layers, config.buckets, config.max_distance),
            (2, 32, 128)
        );
        assert_eq!((config.norm_epsilon, config.start_id), (1e-6, 0));
        assert!(config.may_tie && config.scales_output && config.gated);
    }

    #[test]
    fn heads_are_tied_and_scaled_as_either_version_of_transformers_spells_it() {
        let tied = |keys: &[(&str, Value)]| {
            let config = with(keys).unwrap();
            (config.may_tie, config.scales_output)
        };
        let (tie, scale) = ("tie_word_embeddings", "scale_decoder_outputs");

        assert_eq!(tied(&[(tie, json!(false))]), (false, false));
        assert_eq!(tied(&[(tie, json!(true))]), (true, true));
        assert_eq!(tied(&[(tie, Value::Null)]), (true, true));
        assert_eq!(tied(&[(tie, json!(true)), (scale, json!(false))]), (true, false));
        assert_eq!(tied(&[(tie, json!(false)), (scale, json!(true))]), (false, true));
    }

    #[test]
    fn every_spelling_of_the_feed_forward_layer_is_understood() {
        for (spelt, activation, gated) in [
            ("relu", Activation::Relu, false),
            ("gated-gelu", Activation::GeluTanh, true),
            ("gelu", Activation::Gelu, false),
            ("gated-silu", Activation::Silu, true),
            ("gated-relu", Activation::Relu, true),
        ] {
            let config = with(&[("feed_forward_proj", json!(spelt))]).unwrap();
            assert_eq!((config.activation, config.gated), (activation, gated), "{spelt}");
        }
        assert!(with(&[("dense_act_fn", json!("gelu_new")), ("is_gated_act", json!(true))]).is_ok());
    }

    #[test]
    fn mathematics_that_is_not_done_here_is_refused_by_the_keys_name() {
        for (key, value) in [
            ("model_type", json!("umt5")),
            ("feed_forward_proj", json!("gated-tanh")),
            ("feed_forward_proj", json!("gelu-gated")),
            ("dense_act_fn", json!("gelu")),
            ("is_gated_act", json!(false)),
            ("is_encoder_decoder", json!(false)),
            ("is_decoder", json!(true)),
            ("tie_encoder_decoder", json!(true)),
            ("quantization_config", json!({"quant_method": "bitsandbytes"})),
        ] {
            match with(&[(key, value)]) {
                Err(ModelError::Unsupported { key: named, .. }) => assert_eq!(named, key),
                other => panic!("{key}: {other:?}"),
            }
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        for (key, value) in [
            ("d_model", json!(0)),
            ("d_model", json!(i64::MAX)),
            ("num_heads", json!(-1)),
            ("relative_attention_num_buckets", json!(3)),
            ("relative_attention_max_distance", json!(16)),
            ("decoder_start_token_id", json!(32)),
            ("layer_norm_epsilon", json!(0.0)),
            ("num_layers", json!("2")),
        ] {
            assert!(
                matches!(with(&[(key, value)]), Err(ModelError::File { .. })),
                "{key}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_can_panic(text in any::<String>(), size in any::<i64>(), key in 0usize..7) {
            let _ = T5Config::parse(&text, Path::new("config.json"));
            let keys = ["d_model", "d_kv", "d_ff", "num_layers", "num_heads", "vocab_size",
                "relative_attention_num_buckets"];
            let _ = with(&[(keys[key], json!(size))]);
        }
    }
}

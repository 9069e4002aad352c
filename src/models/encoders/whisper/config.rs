//! `config.json` of a Whisper folder, as far as the encoder's values depend on it.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::audio::log_mel::{HOP_SAMPLES, LogMelConfig};
use crate::models::ModelError;
use crate::models::config_file::read_json;

/// Mel frames that become one encoder frame.
pub(super) const MELS_PER_FRAME: usize = 2;
/// Samples that become one encoder frame: 20 ms.
pub const FRAME_SAMPLES: usize = HOP_SAMPLES * MELS_PER_FRAME; // 320

/// The keys that decide the encoder's shapes and mathematics. Other keys pass unread.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct WhisperConfig {
    /// Which family the folder holds.
    pub model_type: String,
    /// Width `D`.
    pub d_model: i64,
    /// Layers `L`.
    pub encoder_layers: i64,
    /// Heads `N`.
    pub encoder_attention_heads: i64,
    /// Width inside the feed-forward part.
    pub encoder_ffn_dim: i64,
    /// Mel bins `M`.
    pub num_mel_bins: i64,
    /// Frames of the full window.
    pub max_source_positions: i64,
    /// Non-linearity; the library's default where absent.
    #[serde(default = "gelu")]
    pub activation_function: String,
    /// Whether embeddings are multiplied by `sqrt(D)`.
    #[serde(default)]
    pub scale_embedding: bool,
    /// Set when the weights are stored in a packed integer format.
    #[serde(default)]
    pub quantization_config: Option<Value>,
}

fn gelu() -> String {
    "gelu".to_owned()
}

impl WhisperConfig {
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
        let refuse = |key, found: String, expected: String| {
            Err(ModelError::Unsupported {
                path: path.to_path_buf(),
                key,
                found,
                expected,
            })
        };
        if self.model_type != "whisper" {
            return refuse(
                "model_type",
                format!("{:?}", self.model_type),
                "\"whisper\"".to_owned(),
            );
        }
        if self.activation_function != "gelu" {
            return refuse(
                "activation_function",
                format!("{:?}", self.activation_function),
                "\"gelu\"".to_owned(),
            );
        }
        if self.scale_embedding {
            return refuse("scale_embedding", "true".to_owned(), "false".to_owned());
        }
        if self.quantization_config.is_some() {
            return refuse(
                "quantization_config",
                "a value".to_owned(),
                "unquantised weights only".to_owned(),
            );
        }
        // Far beyond any published model; a lying file must not make loops or products run away.
        for (key, found, most) in [
            ("d_model", self.d_model, 1 << 14),
            ("encoder_layers", self.encoder_layers, 256),
            ("encoder_attention_heads", self.encoder_attention_heads, 1 << 10),
            ("encoder_ffn_dim", self.encoder_ffn_dim, 1 << 17),
            ("num_mel_bins", self.num_mel_bins, 512),
            ("max_source_positions", self.max_source_positions, 30_000),
        ] {
            if !(1..=most).contains(&found) {
                return refuse(key, found.to_string(), format!("1 to {most}"));
            }
        }
        if self.d_model % self.encoder_attention_heads != 0 {
            let expected = format!("a divisor of `d_model`, which is {}", self.d_model);
            return refuse(
                "encoder_attention_heads",
                self.encoder_attention_heads.to_string(),
                expected,
            );
        }
        Ok(())
    }

    /// Checks that the front end makes what this encoder takes.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] when mel bins or the window's length disagree.
    pub fn check_front_end(&self, path: &Path, front_end: &LogMelConfig) -> Result<(), ModelError> {
        let refuse = |key, found: usize, expected: String| {
            Err(ModelError::Unsupported {
                path: path.to_path_buf(),
                key,
                found: found.to_string(),
                expected,
            })
        };
        if i64::try_from(front_end.feature_size) != Ok(self.num_mel_bins) {
            let expected = format!("{} as `num_mel_bins` of `config.json` says", self.num_mel_bins);
            return refuse("feature_size", front_end.feature_size, expected);
        }
        let window_frames = front_end.window_samples() / FRAME_SAMPLES;
        if i64::try_from(window_frames) != Ok(self.max_source_positions) {
            let expected = format!(
                "a window of {} frames, as `max_source_positions` of `config.json` says, not {window_frames}",
                self.max_source_positions
            );
            return refuse("chunk_length", front_end.chunk_length, expected);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"model_type":"whisper","d_model":64,"encoder_layers":2,"encoder_attention_heads":4,
        "encoder_ffn_dim":128,"num_mel_bins":80,"max_source_positions":50,"vocab_size":51865}"#;

    fn read(text: &str) -> Result<WhisperConfig, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        WhisperConfig::read(&path)
    }

    fn with(key: &str, value: Value) -> String {
        let mut json: serde_json::Map<String, Value> = serde_json::from_str(GOOD).unwrap();
        json.insert(key.to_owned(), value);
        Value::Object(json).to_string()
    }

    #[test]
    fn a_key_that_changes_the_mathematics_is_refused_by_name() {
        assert!(read(GOOD).is_ok());
        for (key, value) in [
            ("model_type", "wavlm".into()),
            ("activation_function", "relu".into()),
            ("scale_embedding", true.into()),
            ("quantization_config", serde_json::json!({"bits": 4})),
            ("d_model", 0.into()),
            ("d_model", i64::MAX.into()),
            ("encoder_layers", (-1).into()),
            ("encoder_layers", 1_000_000_000.into()),
            ("encoder_attention_heads", 0.into()),
            ("encoder_attention_heads", 5.into()),
            ("encoder_ffn_dim", i64::MAX.into()),
            ("num_mel_bins", 0.into()),
            ("max_source_positions", i64::MAX.into()),
        ] {
            let message = read(&with(key, value)).unwrap_err().to_string();
            assert!(message.contains(&format!("`{key}`")), "{key}: {message}");
        }
    }

    #[test]
    fn a_missing_or_malformed_key_is_an_error_that_names_it() {
        for (text, word) in [
            (GOOD.replace("\"d_model\":64,", ""), "d_model"),
            (with("encoder_layers", "two".into()), "two"),
            ("{".to_owned(), "EOF"),
            (String::new(), "EOF"),
        ] {
            let message = read(&text).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn a_front_end_of_another_size_is_refused() {
        let config = read(GOOD).unwrap();
        let path = Path::new("preprocessor_config.json");
        let fits = LogMelConfig {
            chunk_length: 1,
            ..LogMelConfig::default()
        };
        assert!(config.check_front_end(path, &fits).is_ok());

        let mels = LogMelConfig {
            feature_size: 128,
            ..fits.clone()
        };
        assert!(
            config
                .check_front_end(path, &mels)
                .unwrap_err()
                .to_string()
                .contains("`feature_size`")
        );
        let window = LogMelConfig {
            chunk_length: 30,
            ..fits
        };
        assert!(
            config
                .check_front_end(path, &window)
                .unwrap_err()
                .to_string()
                .contains("`chunk_length`")
        );
    }
}

//! Whisper's encoder: log-mel frames, two convolutions, a pre-norm transformer.
//!
//! Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (arXiv 2212.04356),
//! as `WhisperEncoder` of the transformers library (version 5) computes it. Only the encoder is used: a
//! checkpoint's decoder and output layer are known and left on disk.
//!
//! 16 kHz samples → 100 mel frames a second → 50 encoder frames a second, at most 30 s at a time.

mod config;
mod encoder;

pub use config::{FRAME_SAMPLES, WhisperConfig};
pub use encoder::WhisperEncoder;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How much of the model's window is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    /// The whole window, the clip followed by silence: the reference behaviour, 1500 frames for every clip.
    Padded,
    /// Only the clip: `ceil(samples / 320)` frames at positions `0, 1, …`. Eight to ten times less work for
    /// everyday clips; features differ a little from the padded ones, because attention no longer sees the
    /// silence.
    #[default]
    Clip,
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Padded => "padded",
            Self::Clip => "clip",
        })
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "padded" => Ok(Self::Padded),
            "clip" => Ok(Self::Clip),
            _ => Err(format!("window `{text}` is unknown; use `padded` or `clip`")),
        }
    }
}

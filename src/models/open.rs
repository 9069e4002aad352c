//! Which network a model folder holds.

use std::path::Path;

use serde::Deserialize;

use super::config_file::{read_json, refuse};
use super::encoders::conformer::{self, ConformerEncoder};
use super::encoders::whisper::Window;
use super::{ModelError, SpeechEncoder, WavEncoder, WhisperEncoder};
use crate::nn::accel::Placement;

/// Loads the speech encoder of a folder, whichever of the supported kinds `model_type` in its `config.json` names.
///
/// `window` matters where the network has one (Whisper); the others see a clip as long as it is.
///
/// # Errors
/// [`ModelError`] when the kind is unknown, a file is missing, a setting asks for other mathematics, or a tensor does not fit.
pub fn open_encoder(
    dir: &Path,
    window: Window,
    placement: &Placement,
) -> Result<Box<dyn SpeechEncoder>, ModelError> {
    #[derive(Deserialize)]
    struct Kind {
        model_type: String,
    }
    let path = dir.join("config.json");
    let dtype: Kind = read_json(&path)?;
    match dtype.model_type.as_str() {
        "whisper" => Ok(Box::new(WhisperEncoder::load(dir, window, placement)?)),
        "wavlm" | "hubert" | "wav2vec2" => Ok(Box::new(WavEncoder::load(dir, placement)?)),
        conformer::MODEL_TYPE => Ok(Box::new(ConformerEncoder::load(dir, placement)?)),
        other => refuse(
            &path,
            "model_type",
            format!("{other:?}"),
            "the speech encoders \"whisper\", \"wavlm\", \"hubert\", \"wav2vec2\" and \"speechverse-bestrq\"",
        ),
    }
}

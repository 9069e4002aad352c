//! A language model from its folder, whatever it is.

use std::path::Path;

use super::llms::llama::Llama;
use super::llms::t5::T5;
use super::{LanguageModel, ModelError, config_file};
use crate::nn::accel::{Placement, Precision};

/// Opens the language model of a folder in the Hugging Face layout, by `model_type` of its `config.json`: `t5` (T5 1.0,
/// T5 1.1, Flan-T5), `llama` (Llama, SmolLM2), `qwen2` (Qwen2, Qwen2.5).
///
/// # Errors
/// [`ModelError::Unsupported`] for any other type; [`ModelError`] when the folder's files are broken or do not fit.
pub fn open_language_model(
    folder: &Path,
    placement: &Placement,
) -> Result<Box<dyn LanguageModel>, ModelError> {
    let (device, kind) = (placement.device, placement.kind());
    let int8 = placement.precision == Precision::Int8;
    let (model_type, path) = config_file::model_type(folder)?;
    Ok(match model_type.as_str() {
        "t5" => {
            let mut model = T5::open(folder, device, kind)?;
            if int8 {
                model.quantize();
            }
            Box::new(model)
        }
        "llama" | "qwen2" => {
            let mut model = Llama::open(folder, device, kind)?;
            if int8 {
                model.quantize();
            }
            Box::new(model)
        }
        other => {
            let expected = "`llama`, `qwen2` or `t5`";
            return Err(config_file::unsupported(&path, "model_type", other, expected));
        }
    })
}

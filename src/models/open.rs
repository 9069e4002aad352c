//! Which network a model folder holds: one table of every `model_type` that can be opened.

use std::path::Path;

use super::encoders::conformer::{self, ConformerEncoder};
use super::encoders::whisper::Window;
use super::llms::llama::Llama;
use super::llms::t5::T5;
use super::{LanguageModel, ModelError, SpeechEncoder, WavEncoder, WhisperEncoder, config_file};
use crate::nn::accel::Placement;

/// Opens a speech encoder's folder; `Window` matters where the network has one (Whisper).
type OpenEncoder = fn(&Path, Window, &Placement) -> Result<Box<dyn SpeechEncoder>, ModelError>;
/// Opens a language model's folder.
type OpenLanguageModel = fn(&Path, &Placement) -> Result<Box<dyn LanguageModel>, ModelError>;

/// What a network is for, and how its folder is opened.
#[derive(Clone, Copy)]
pub enum Open {
    /// A speech encoder.
    Encoder(OpenEncoder),
    /// A language model.
    LanguageModel(OpenLanguageModel),
}

const WAV: Open = Open::Encoder(|folder, _, placement| Ok(Box::new(WavEncoder::load(folder, placement)?)));
const LLAMA: Open =
    Open::LanguageModel(|folder, placement| Ok(Box::new(Llama::open_for(folder, placement)?)));

/// Every network, by `model_type` in its folder's `config.json`. A new one needs its folder and a line here.
pub const MODELS: &[(&str, Open)] = &[
    (
        "whisper",
        Open::Encoder(|folder, window, to| Ok(Box::new(WhisperEncoder::load(folder, window, to)?))),
    ),
    ("wavlm", WAV),
    ("hubert", WAV),
    ("wav2vec2", WAV),
    (
        conformer::MODEL_TYPE,
        Open::Encoder(|folder, _, to| Ok(Box::new(ConformerEncoder::load(folder, to)?))),
    ),
    (
        "t5", // T5 1.0, T5 1.1, Flan-T5
        Open::LanguageModel(|folder, to| Ok(Box::new(T5::open_for(folder, to)?))),
    ),
    ("llama", LLAMA), // Llama, SmolLM2
    ("qwen2", LLAMA), // Qwen2, Qwen2.5
];

/// Loads the speech encoder of a folder in the Hugging Face layout.
///
/// `window` matters where the network has one (Whisper); the others see a clip as long as it is. Its features
/// are in the dtype of [`Placement::of_many_rows`].
///
/// # Errors
/// [`ModelError::Unsupported`] when [`MODELS`] has no speech encoder of its type; [`ModelError`] when a file
/// is missing, a setting asks for other mathematics, or a tensor does not fit.
pub fn open_encoder(
    folder: &Path,
    window: Window,
    placement: &Placement,
) -> Result<Box<dyn SpeechEncoder>, ModelError> {
    let (found, what) = (entry(folder)?, "a speech encoder");
    match found {
        (_, Some(Open::Encoder(open))) => open(folder, window, &placement.of_many_rows()),
        (model_type, _) => Err(unsupported(folder, &model_type, what, |open| {
            matches!(open, Open::Encoder(_))
        })),
    }
}

/// Loads the language model of a folder in the Hugging Face layout.
///
/// # Errors
/// [`ModelError::Unsupported`] when [`MODELS`] has no language model of its type; [`ModelError`] when the
/// folder's files are broken or do not fit.
pub fn open_language_model(
    folder: &Path,
    placement: &Placement,
) -> Result<Box<dyn LanguageModel>, ModelError> {
    let (found, what) = (entry(folder)?, "a language model");
    match found {
        (_, Some(Open::LanguageModel(open))) => open(folder, placement),
        (model_type, _) => Err(unsupported(folder, &model_type, what, |open| {
            matches!(open, Open::LanguageModel(_))
        })),
    }
}

/// The `model_type` of a folder, and its entry in [`MODELS`].
fn entry(folder: &Path) -> Result<(String, Option<Open>), ModelError> {
    let (model_type, _) = config_file::model_type(folder)?;
    let known = MODELS.iter().find(|(name, _)| *name == model_type);
    Ok((model_type, known.map(|(_, open)| *open)))
}

fn unsupported(folder: &Path, found: &str, what: &str, fits: impl Fn(&Open) -> bool) -> ModelError {
    let names: Vec<String> = (MODELS.iter())
        .filter(|(_, open)| fits(open))
        .map(|(name, _)| format!("`{name}`"))
        .collect();
    let expected = format!("{what}: {}", names.join(", "));
    config_file::unsupported(&folder.join("config.json"), "model_type", found, &expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::probe;
    use crate::testing::TinyModels;

    fn of_type(model_type: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let config = format!("{{\"model_type\": {model_type:?}}}");
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        folder
    }

    #[test]
    fn every_type_of_the_table_is_opened_as_what_it_is_and_no_type_stands_there_twice() {
        for (at, (model_type, open)) in MODELS.iter().enumerate() {
            assert!(MODELS[..at].iter().all(|(other, _)| other != model_type));
            let folder = of_type(model_type);
            let encoder = open_encoder(folder.path(), Window::Clip, &Placement::reference()).err();
            let llm = open_language_model(folder.path(), &Placement::reference()).err();
            let (own, other) = match open {
                Open::Encoder(_) => (encoder, llm),
                Open::LanguageModel(_) => (llm, encoder),
            };

            // There is nothing but a type in the folder; whoever it belongs to misses the rest.
            let own = own.expect("the folder lacks everything else").to_string();
            assert!(!own.contains("`model_type`"), "{model_type}: {own}");
            let other = other.expect("it is the other kind").to_string();
            assert!(
                other.contains("`model_type`") && other.contains(model_type),
                "{other}"
            );
        }
    }

    #[test]
    fn a_probe_opens_a_folder_as_what_it_is_or_says_which_language_models_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let models = TinyModels::write(folder.path(), 1);
        for (folder, ids) in [(&models.llm, None), (&models.t5, Some(&[256, 4][..]))] {
            let found = probe::llm(folder, &[3, 4, 5], ids).unwrap();
            assert!(found.iter().any(|(name, _)| name == "logits"));
        }
        for folder in [models.encoder.as_path(), of_type("gemma3").path()] {
            let error = probe::llm(folder, &[3], None).unwrap_err().to_string();

            for name in ["`t5`", "`llama`", "`qwen2`"] {
                assert!(error.contains(name), "{error}");
            }
        }
        let error = probe::llm(&models.llm, &[3], Some(&[4])).unwrap_err().to_string();
        assert!(error.contains("decoder"), "{error}");
    }
}

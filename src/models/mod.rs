//! Networks only: one folder each, and one table, [`MODELS`], of what can be opened. Nothing here knows
//! Kafka.
//!
//! Pipelines speak to two traits, [`SpeechEncoder`] and [`LanguageModel`], and never ask for a model's name.
//!
//! Letters, the same everywhere: **B** rows, **S** samples, **M** mels, **T** encoder frames, **P** positions
//! in the language model, **L** text tokens (or, in `L+1`, encoder layers), **D** encoder width, **H**
//! language-model width, **N** heads, **V** vocabulary.

pub mod adapter;
pub mod config;
pub mod encoders;
pub mod llms;
pub mod probe;
pub mod silero_vad;

mod clips;
mod config_file;
mod error;
mod open;
#[cfg(test)]
mod tests;
mod traits;

pub use encoders::wavlm::WavEncoder;
pub use encoders::whisper::WhisperEncoder;
pub use error::ModelError;
pub use open::{MODELS, Open, open_encoder, open_language_model};
pub use traits::{
    ChunkedPrefill, Encoded, EncoderInfo, HiddenStates, LanguageModel, LanguageModelInfo, SpeechEncoder,
};

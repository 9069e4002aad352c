//! One folder per network, and the speech LLM that joins them. Nothing here knows Kafka.
//!
//! Pipelines speak to two traits, [`SpeechEncoder`] and [`LanguageModel`], and never ask for a model's name.
//!
//! Letters, the same everywhere: **B** rows, **S** samples, **M** mels, **T** encoder frames, **P** positions in the
//! language model, **L** text tokens (or, in `L+1`, encoder layers), **D** encoder width, **H** language-model width,
//! **N** heads, **V** vocabulary.

pub mod adapter;
pub mod config;
pub mod decoding;
pub mod encoders;
pub mod llms;
pub mod probe;
pub mod probe_llm;
pub mod responder;
pub mod speech_llm;

mod clips;
mod config_file;
mod error;
mod open;
mod open_llm;
mod probe_encoder;
mod traits;

pub use encoders::wavlm::WavEncoder;
pub use encoders::whisper::WhisperEncoder;
pub use error::ModelError;
pub use open::open_encoder;
pub use open_llm::open_language_model;
pub use traits::{Encoded, EncoderInfo, HiddenStates, LanguageModel, LanguageModelInfo, SpeechEncoder};

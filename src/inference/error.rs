//! What can go wrong between a request and its answer.

use crate::models::ModelError;
use crate::text::TextError;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum InferenceError {
    /// A network failed, or the request does not fit it.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Tokenizer or prompt layout failed.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A request with sound was given to a [`Generator`](super::Generator), which has no encoder.
    #[error("the request has audio and no features; a generator has no speech encoder, use an engine")]
    NoFeatures,
}

impl From<tch::TchError> for InferenceError {
    fn from(error: tch::TchError) -> Self {
        Self::Model(error.into())
    }
}

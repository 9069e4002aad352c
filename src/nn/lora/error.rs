//! What can go wrong with low-rank adapters.

use std::path::PathBuf;

use crate::weights::WeightsError;

/// What can go wrong with a set of low-rank adapters.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// Settings that make no sense.
    #[error("LoRA setting `{key}` is {found}, expected {expected}")]
    Setting {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A target that the model does not have.
    #[error("LoRA target `{target}` matches no projection of the model; its projections are {known}")]
    Target {
        /// The target.
        target: String,
        /// The names there are, separated by commas.
        known: String,
    },
    /// A file that could not be read or written.
    #[error("could not {action} `{}`: {source}", path.display())]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A configuration that is not one.
    #[error("`{}` is not a LoRA configuration: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A configuration that asks for what is not done here.
    #[error("`{}` sets `{key}` to {found}, this program supports {expected}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What is supported.
        expected: &'static str,
    },
    /// The weights do not fit the configuration and the model.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// libtorch refused.
    #[error("libtorch failed: {0}")]
    Torch(#[from] tch::TchError),
}

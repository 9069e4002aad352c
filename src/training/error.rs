//! What can go wrong in training.

use std::path::PathBuf;

use crate::models::ModelError;
use crate::nn::accel::AccelError;
use crate::nn::optimizer::OptimizerError;
use crate::registry::RegistryError;
use crate::text::TextError;
use crate::training::config::TrainingConfigError;

/// What can go wrong in training and evaluation.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// A line of a manifest is not a sample.
    #[error("manifest `{}`, line {line}: {reason}", path.display())]
    Manifest {
        /// Which manifest.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write` …
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Nothing is left to train or validate on.
    #[error("no sample for {what}: {reason}")]
    NoExamples {
        /// Stage or set.
        what: String,
        /// What was read and why it was left out.
        reason: String,
    },
    /// Too many clips could not be read.
    #[error("{failed} of {tried} clips could not be read, the last one: {last}")]
    Unreadable {
        /// How many failed.
        failed: u64,
        /// How many were tried.
        tried: u64,
        /// Which and why.
        last: String,
    },
    /// Loss or gradients were not finite too often in a row.
    #[error(
        "stage {stage}, step {step}: {skipped} steps in a row had a loss or gradient that is not finite; lower the learning rate or `clip_norm`"
    )]
    Diverged {
        /// Which stage.
        stage: String,
        /// At which step.
        step: u64,
        /// Steps skipped in a row.
        skipped: u64,
    },
    /// A checkpoint does not fit this run, or is damaged.
    #[error("cannot resume from `{}`: {reason}", path.display())]
    Checkpoint {
        /// Its folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The settings do not go with the networks or the data.
    #[error("training settings: {problem}")]
    Settings {
        /// Key, value, and what was expected.
        problem: String,
    },
    /// The thread that reads audio ahead has ended without a word.
    #[error("the thread that reads audio ahead has ended unexpectedly")]
    ReaderGone,
    /// The plot could not be drawn.
    #[error("cannot draw `{}`: {reason}", path.display())]
    Plot {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] TrainingConfigError),
    /// A network failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Tokenizer or prompt layout failed.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The optimiser refused.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// The device cannot be had.
    #[error(transparent)]
    Accel(#[from] AccelError),
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl From<tch::TchError> for TrainingError {
    fn from(error: tch::TchError) -> Self {
        Self::Model(error.into())
    }
}

impl TrainingError {
    /// An error of the file system, for `map_err`.
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

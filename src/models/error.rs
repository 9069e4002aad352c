//! What can go wrong inside a model.

use std::path::PathBuf;

use tch::TchError;

use crate::audio::log_mel::LogMelError;
use crate::nn::NnError;
use crate::weights::WeightsError;

/// What can go wrong when a model is loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A tensor or a list does not have the shape the model was given to expect.
    #[error("{what} has shape {found:?}, expected {expected}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// What would have been right, in letters or numbers.
        expected: String,
        /// Its shape.
        found: Vec<i64>,
    },
    /// A configuration file is missing, unreadable or not what it should be.
    #[error("cannot use `{}`: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A key of a model's configuration asks for mathematics that this program does not do.
    #[error("`{}` sets `{key}` to {found}, this program supports {expected}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What is supported.
        expected: String,
    },
    /// A number format in which a network cannot compute.
    #[error("{model} cannot run in {found}: {reason}")]
    Precision {
        /// The network.
        model: &'static str,
        /// The format.
        found: &'static str,
        /// Why, and what to use.
        reason: &'static str,
    },
    /// Something needs a CTC head that an adapter lacks.
    #[error("the adapter has no usable CTC head: {why}")]
    NoCtcHead {
        /// What is missing.
        why: &'static str,
    },
    /// A clip without samples.
    #[error("clip {index} of the batch has no samples")]
    EmptyClip {
        /// Its place in the batch.
        index: usize,
    },
    /// A batch without clips.
    #[error("the batch is empty")]
    EmptyBatch,
    /// A clip longer than the model's window: cutting into windows is the ingest's business.
    #[error(
        "clip {index} of the batch has {samples} samples, the model's window holds {samples_max}; cut it into windows"
    )]
    ClipTooLong {
        /// Its place in the batch.
        index: usize,
        /// Its samples.
        samples: usize,
        /// The most that fit.
        samples_max: usize,
    },
    /// A sample that is not a number, or far beyond any audio: it would poison the whole window.
    #[error(
        "clip {index} of the batch has a sample of {value} at position {at}; samples are finite, nominally in [-1, 1]"
    )]
    BadSample {
        /// The clip's place in the batch.
        index: usize,
        /// The first such sample's position.
        at: usize,
        /// The sample.
        value: f32,
    },
    /// More positions than the model has, or than a cache slot holds.
    #[error("{positions} positions are asked for, there are {positions_max}")]
    TooManyPositions {
        /// How many the input needs.
        positions: i64,
        /// How many there are.
        positions_max: i64,
    },
    /// An instruction that leaves no positions, where the audio beside it would have fitted.
    #[error(
        "the instruction has {tokens} tokens, beside the audio and the answer there is space for {tokens_max}: shorten it"
    )]
    InstructionTooLong {
        /// How many it has.
        tokens: i64,
        /// How many would fit.
        tokens_max: i64,
    },
    /// Allowed answers that generation cannot be held to.
    #[error("answers cannot be constrained as asked: {reason}")]
    Constraint {
        /// What is wrong with them.
        reason: String,
    },
    /// Decoding options that make no sense.
    #[error("decoding option `{option}` is {found}, expected {expected}")]
    Decoding {
        /// Which option.
        option: &'static str,
        /// Its value.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// An answer is pinned to low-rank parts that are not there.
    #[error("low-rank parts {key} of an answer are not loaded")]
    NoLora {
        /// Key that its prompt names.
        key: u64,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocabulary}")]
    TokenOutOfRange {
        /// The id.
        id: i64,
        /// Ids end before this.
        vocabulary: i64,
    },
    /// A network gave up in a way that it should not.
    #[error("the {what} panicked: {message}")]
    Panicked {
        /// Which network.
        what: &'static str,
        /// Its message.
        message: String,
    },
    /// The front end does not fit.
    #[error(transparent)]
    FrontEnd(#[from] LogMelError),
    /// The weights did not load.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The result of a pass was no longer wanted.
    #[error("given up before its end: it is no longer wanted")]
    GivenUp,
    /// libtorch refused an operation.
    #[error("libtorch failed: {0}")]
    Torch(#[from] TchError),
}

impl From<NnError> for ModelError {
    fn from(error: NnError) -> Self {
        match error {
            NnError::Shape {
                what,
                expected,
                found,
            } => Self::Shape {
                what,
                expected,
                found,
            },
            NnError::TooManyPositions {
                positions,
                positions_max,
            } => Self::TooManyPositions {
                positions,
                positions_max,
            },
        }
    }
}

impl ModelError {
    /// The error that stands for a caught panic of a network.
    pub fn panicked(what: &'static str, panic: &(dyn std::any::Any + Send)) -> Self {
        let words = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let message = words.or_else(|| panic.downcast_ref::<String>().cloned());
        Self::Panicked {
            what,
            message: message.unwrap_or_else(|| "without a message".to_owned()),
        }
    }
}

//! What can go wrong while a model is fetched or imported, with the facts in fields.

use std::path::{Path, PathBuf};

/// Why an import (or a fetch) did not happen. Nothing is left behind at the destination then.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file could not be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or folder concerned.
        path: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },

    /// The source is neither a GGUF file nor a CTranslate2 Whisper model.
    #[error(
        "`{}` is not a model this program can import: found {found}, expected a GGUF file (*.gguf) or a CTranslate2 \
         Whisper model (model.bin with tokenizer.json beside it)",
        path.display()
    )]
    Unrecognised {
        /// What was given.
        path: PathBuf,
        /// What it turned out to be.
        found: String,
    },

    /// The file breaks its own format.
    #[error("`{}` is damaged or not what it claims to be: at byte {at}, {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where in it.
        at: u64,
        /// What was found there, and what was expected.
        what: String,
    },

    /// The file is sound, but holds something that is not handled.
    #[error("`{}` cannot be imported: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it holds and what is handled.
        what: String,
    },

    /// The tensors are not those that the declared architecture has; all differences together.
    #[error("the tensors of `{}` do not fit the architecture it declares: {}", path.display(), differences.join("; "))]
    Tensors {
        /// The file.
        path: PathBuf,
        /// One entry per tensor: missing, unexpected, or of another shape.
        differences: Vec<String>,
    },

    /// A weight cannot be written in the chosen number format.
    #[error(
        "tensor `{tensor}` holds {value}, which {format} cannot hold (largest: {largest}); import it as {advice} instead"
    )]
    Range {
        /// Name in the written checkpoint.
        tensor: String,
        /// The offending value.
        value: f32,
        /// The format asked for.
        format: &'static str,
        /// The largest finite number of that format.
        largest: f32,
        /// A format that would do.
        advice: &'static str,
    },

    /// The tokenizer cannot be carried over.
    #[error("the tokenizer of `{}` cannot be imported: {what}", path.display())]
    Tokenizer {
        /// The file that holds it (or should).
        path: PathBuf,
        /// Why not.
        what: String,
    },

    /// The destination is taken.
    #[error(
        "`{}` exists and is not empty; choose another folder or allow it to be replaced",
        path.display()
    )]
    DestinationExists {
        /// The destination.
        path: PathBuf,
    },

    /// A name that is not in the list of models that can be fetched.
    #[error("no model is called `{name}`; known models: {known}")]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// All names, separated by commas.
        known: String,
    },

    /// The downloader reported that it could not get everything.
    #[error("{what}")]
    Download {
        /// What failed, where, and what to do.
        what: String,
    },

    /// A model of the Hugging Face hub could not be fetched.
    #[error(transparent)]
    Hub(#[from] crate::HubError),

    /// What was imported is not, bit for bit, what the list of downloads promises.
    #[error(
        "`{}` has sha256 {found} after import, expected {expected}; delete the folder and fetch again, and report this if it persists",
        path.display()
    )]
    Digest {
        /// The written checkpoint.
        path: PathBuf,
        /// From the list of downloads.
        expected: String,
        /// Computed.
        found: String,
    },
}

impl ImportError {
    /// For `map_err`: an I/O failure with its action and path.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

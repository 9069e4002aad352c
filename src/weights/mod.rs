//! Files to variables: safetensors loading with exact coverage.
//!
//! A [`Checkpoint`] is a folder as published on Hugging Face, opened but not yet read; a [`Loader`] hands its
//! tensors out by name and, at the end, accounts for every one of them: what the model declares and the files
//! lack, what the files hold and the model does not know, and what is there in another shape or type are
//! reported together in one error. Pickle is never read.

mod checkpoint;
mod folder;
mod loader;
mod map;

pub use checkpoint::{Checkpoint, TensorSummary};
pub use folder::check_folder;
pub use loader::Loader;

use std::fmt;
use std::path::PathBuf;

use tch::TchError;

/// What can go wrong between files and variables.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The folder holds no safetensors checkpoint.
    #[error(
        "no checkpoint in `{}`: expected `model.safetensors` or `model.safetensors.index.json`{}",
        dir.display(),
        instead
    )]
    NoCheckpoint {
        /// Where it was looked for.
        dir: PathBuf,
        /// What was found in its place, as words after the rest; empty where nothing was.
        instead: String,
    },
    /// A file that a model folder needs is missing, or is something else.
    #[error("`{}` {problem}", path.display())]
    Folder {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// A file could not be opened, mapped or read.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A safetensors header is broken, or lies about the file it stands in.
    #[error("`{}` is not a valid safetensors file: {reason}; fetch or convert it again", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The index of a sharded checkpoint is broken, or disagrees with its shards.
    #[error("`{}` is not a valid checkpoint index: {reason}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The checkpoint and the model do not declare the same tensors.
    #[error(transparent)]
    Mismatch(#[from] Box<Mismatch>),
    /// libtorch refused a tensor that looked right.
    #[error("tensor `{name}` could not be made: {source}")]
    Torch {
        /// The tensor.
        name: String,
        /// libtorch's words.
        source: TchError,
    },
}

/// Every difference between what a model declares and what its checkpoint holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// The checkpoint's path.
    pub checkpoint: PathBuf,
    /// Declared, not in the files.
    pub missing: Vec<String>,
    /// In the files, neither declared nor knowingly ignored.
    pub unexpected: Vec<String>,
    /// In both, with different shapes.
    pub misshapen: Vec<Misshapen>,
    /// Declared as floating point, stored as something else.
    pub mistyped: Vec<Mistyped>,
    /// Two names that must hold the same tensor, and do not.
    pub unequal: Vec<(String, String)>,
    /// Declared more than once: a mistake in the model's own code.
    pub taken_twice: Vec<String>,
}

/// One tensor whose shape differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misshapen {
    /// The tensor's name in the checkpoint.
    pub name: String,
    /// The shape the model declares.
    pub declared: Vec<i64>,
    /// The shape in the checkpoint.
    pub found: Vec<usize>,
}

/// One tensor whose element type cannot serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistyped {
    /// The tensor's name in the checkpoint.
    pub name: String,
    /// The element type in the checkpoint, as safetensors spells it.
    pub found: String,
}

impl Mismatch {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
            && self.unexpected.is_empty()
            && self.misshapen.is_empty()
            && self.mistyped.is_empty()
            && self.unequal.is_empty()
            && self.taken_twice.is_empty()
    }
}

/// Names printed per kind of difference; the fields hold all of them.
const LISTED_MAX: usize = 12;

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "checkpoint `{}` does not fit the model",
            self.checkpoint.display()
        )?;
        let quote = |name: &String| format!("`{name}`");
        list(f, "missing from the checkpoint", &self.missing, quote)?;
        list(f, "unexpected in the checkpoint", &self.unexpected, quote)?;
        list(f, "misshapen", &self.misshapen, |it| {
            format!(
                "`{}` has shape {:?} in the checkpoint, the model declares {:?}",
                it.name, it.found, it.declared
            )
        })?;
        list(f, "mistyped", &self.mistyped, |it| {
            format!(
                "`{}` is {} in the checkpoint, the model declares a float (F32, F16, BF16 or F64)",
                it.name, it.found
            )
        })?;
        list(
            f,
            "different from what they must equal",
            &self.unequal,
            |(name, of)| format!("`{name}` from `{of}`"),
        )?;
        list(f, "declared twice by the model's code", &self.taken_twice, quote)
    }
}

impl std::error::Error for Mismatch {}

fn list<T>(f: &mut fmt::Formatter<'_>, title: &str, items: &[T], show: impl Fn(&T) -> String) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = items.iter().take(LISTED_MAX).map(show).collect();
    write!(f, "; {} {title}: {}", items.len(), shown.join(", "))?;
    match items.len().saturating_sub(LISTED_MAX) {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}

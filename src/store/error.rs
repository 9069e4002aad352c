//! What can go wrong with the folder of samples.

use std::path::{Path, PathBuf};

/// The store cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refuses a file operation: no space, no permission, a broken disk.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// File or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Another process has the store open.
    #[error("the sample store `{}` is open in another process ({holder}): give each process its own `store.dir`", dir.display())]
    Locked {
        /// Folder of the store.
        dir: PathBuf,
        /// What the lock file says about who has it.
        holder: String,
    },
    /// There is nothing to read.
    #[error("there is no sample store at `{}`, which is `store.dir`", dir.display())]
    Missing {
        /// Folder that was looked for.
        dir: PathBuf,
    },
    /// The sample was forgotten since it was looked up.
    #[error("the sample was forgotten since it was looked up in `{}`", path.display())]
    Forgotten {
        /// Segment file where it was.
        path: PathBuf,
    },
    /// Segments were written anew, and samples that were to be forgotten are still known: a fault of this
    /// program.
    #[error("{samples} samples that were to be forgotten are still in `{}`: open the store again and forget them again", dir.display())]
    NotForgotten {
        /// How many.
        samples: usize,
        /// Folder of the store.
        dir: PathBuf,
    },
    /// A file is there that cannot be one of ours.
    #[error("`{}` is {bytes} bytes long, which no segment can be (at most {bytes_max}): move it away", path.display())]
    NotASegment {
        /// File with the name of a segment.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// Longest that a segment can be.
        bytes_max: u64,
    },
    /// A stored record is not what was written.
    #[error("the sample at byte {offset} of `{}` is damaged: {reason}", path.display())]
    Damaged {
        /// Segment file.
        path: PathBuf,
        /// Where the record begins.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
}

impl StoreError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

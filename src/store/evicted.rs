//! Segments that were evicted, for as long as a snapshot keeps their files.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use super::error::StoreError;
use super::index::Segment;
use super::sample::ContentHash;
use super::segment::SegmentFile;
use super::snapshot::IndexEntry;

/// A segment that was evicted; its file stays for as long as a snapshot holds it.
#[derive(Debug)]
pub(super) struct Evicted {
    file: Weak<SegmentFile>,
    path: PathBuf,
    entries: Arc<Vec<IndexEntry>>,
    /// Samples that its notes are about.
    pub(super) mentions: HashSet<ContentHash>,
}

impl Evicted {
    /// Lets go of the segment's file, which is deleted at once if nobody else holds it.
    pub(super) fn new(segment: Segment) -> Self {
        Self {
            file: Arc::downgrade(&segment.file),
            path: segment.file.path.clone(),
            entries: segment.entries,
            mentions: segment.mentions,
        }
    }

    /// Whether the file is still there.
    pub(super) fn is_on_disk(&self) -> bool {
        self.path.try_exists().unwrap_or(true)
    }

    /// The samples that it held.
    pub(super) fn samples(&self) -> impl Iterator<Item = ContentHash> + '_ {
        self.entries.iter().map(|entry| entry.content)
    }

    /// Deletes the file under the snapshots that hold it: what they have not read is gone for them.
    pub(super) fn delete(&self) -> Result<(), StoreError> {
        match self.file.upgrade() {
            Some(file) => file.delete(),
            None => match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(StoreError::io("delete", &self.path)(error))
                }
                _ => Ok(()),
            },
        }
    }
}

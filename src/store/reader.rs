//! `SampleReader`: what a store holds, for a process beside the one that writes.

use super::error::StoreError;
use super::index::{Found, Index};
use super::outcome::{OpenReport, TaskCount};
use super::segment::HEADER_BYTES;
use super::snapshot::Snapshot;
use crate::store::config::StoreConfig;

/// A store as it was when this was opened. Takes no lock and changes nothing on disk, so that it can be used
/// while a pipeline writes: what is being appended at that moment is not seen, and a sample that the writer
/// evicts or forgets later is an error when it is read.
#[derive(Debug)]
pub struct SampleReader {
    index: Index,
    report: OpenReport,
}

impl SampleReader {
    /// Reads every segment of the folder `config.dir`, one after the other.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there is no such folder; [`StoreError::Io`];
    /// [`StoreError::NotASegment`].
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let dir = &config.dir;
        if !dir.is_dir() {
            return Err(StoreError::Missing { dir: dir.clone() });
        }
        let mut report = OpenReport::default();
        let index = Index::read(dir, &mut |_, path, found| {
            match found {
                Found::Segment(_, scan) => report.damaged += scan.damaged,
                // The writer has just made it.
                Found::Empty(_) => {}
                Found::Unreadable => {
                    let bytes = std::fs::metadata(path).map_or(0, |file| file.len());
                    report.unreadable += usize::from(bytes > HEADER_BYTES as u64);
                }
            }
            Ok(())
        })?;
        report.segments = index.segments.len();
        report.samples = index.places.len();
        Ok(Self { index, report })
    }

    /// What the store held.
    pub fn snapshot(&self) -> Snapshot {
        self.index.snapshot()
    }

    /// Samples by task and side, in that order.
    pub fn counts(&self) -> Vec<TaskCount> {
        self.index.counts()
    }

    /// What was found on disk. Torn ends are not counted: what the writer is appending looks like one.
    pub fn report(&self) -> OpenReport {
        self.report
    }
}

//! The sample store: labelled samples in append-only, CRC-checked segments.
//!
//! One folder, one process, one segment file being written per task. A sample that [`SampleStore::put`] reports as
//! durable survives kill -9 at any byte and a power cut; the record_offset of its record may be released. The index lives in
//! memory and is made anew from the segments at every start: a tail that a crash tore is cut off, a damaged record in
//! the middle is skipped and counted.
//!
//! - **Identity** is the content (audio, instruction, target): the same sample twice is stored once.
//! - **Sides**: a fixed share of recordings, chosen by hash, is held out; every sample of a recording is on its side,
//!   and stays there when the share changes.
//! - **Quotas**: when a task has more than `task_samples_max` samples, its oldest segment goes as a whole (new labels
//!   tell more than old ones); segments are closed at an eighth of the quota, so that at most so much goes at once.
//!   Above `bytes_max` the oldest segment of the task with the most bytes goes. Snapshots keep what they hold.
//! - **Consent**: a sample that may not be trained on is in no snapshot, and one that arrives again with that mark
//!   withdraws the earlier one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::info;

use crate::store::config::StoreConfig;

pub mod config;
mod error;
mod inner;
mod outcome;
mod recovery;
mod sample;
mod segment;
mod snapshot;

pub use error::StoreError;
pub use outcome::{OpenReport, Put, Refusal, TaskCount};
pub use sample::{ContentHash, Sample, SampleSource, Split, StoredSample};
pub use snapshot::{SampleRef, Snapshot};

use inner::{Inner, Segment};
use sample::Written;
use snapshot::Part;

/// Labelled samples on disk; calls block for as long as the disk takes.
#[derive(Debug)]
pub struct SampleStore {
    inner: Mutex<Inner>,
    report: OpenReport,
}

impl SampleStore {
    /// Opens the store in `config.dir`, or makes it.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it; [`StoreError::Io`]; [`StoreError::NotASegment`].
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let (inner, report) = recovery::open(config)?;
        info!(dir = %config.dir.display(), ?report, "sample store opened");
        Ok(Self {
            inner: Mutex::new(inner),
            report,
        })
    }

    /// Stores a sample, unless it is there already or cannot be kept.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the disk refuses; the sample is then not stored and may be put again.
    pub fn put(&self, sample: &Sample) -> Result<Put, StoreError> {
        let mut inner = self.inner();
        if let Err(refusal) = inner.check(sample) {
            return Ok(Put::Refused { refusal });
        }
        inner.put(Written::new(sample))
    }

    /// Makes sure that everything put so far survives a power cut.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn sync(&self) -> Result<(), StoreError> {
        self.inner().sync()
    }

    /// The same, when `fsync_interval_ms` have passed since the last time; returns whether it did anything.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn sync_if_due(&self) -> Result<bool, StoreError> {
        let mut inner = self.inner();
        if !inner.sync_is_due() {
            return Ok(false);
        }
        inner.sync().map(|()| true)
    }

    /// What the store holds now, for a training cycle; takes no copy of any audio.
    pub fn snapshot(&self) -> Snapshot {
        let part = |segment: &Segment| Part {
            task: segment.task.clone(),
            file: segment.file.clone(),
            entries: segment.entries.clone(),
        };
        Snapshot::new(self.inner().segments.values().map(part).collect())
    }

    /// Samples by task and side, in that order.
    pub fn counts(&self) -> Vec<TaskCount> {
        let inner = self.inner();
        let mut counts: BTreeMap<(Arc<str>, Split), TaskCount> = BTreeMap::new();
        for segment in inner.segments.values() {
            for entry in segment.entries.iter() {
                let key = (segment.task.clone(), entry.split);
                let count = counts.entry(key).or_insert_with(|| TaskCount {
                    task: segment.task.clone(),
                    split: entry.split,
                    samples: 0,
                    withheld: 0,
                    audio_seconds: 0.0,
                });
                if entry.may_train {
                    count.samples += 1;
                    count.audio_seconds += f64::from(entry.audio_seconds);
                } else {
                    count.withheld += 1;
                }
            }
        }
        counts.into_values().collect()
    }

    /// Samples in the store, withheld ones included.
    pub fn len(&self) -> usize {
        self.inner().places.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.inner().bytes()
    }

    /// What the start found on disk.
    pub fn open_report(&self) -> OpenReport {
        self.report
    }

    /// A panic inside leaves at worst a record on disk that the index does not know; the next start finds it.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;

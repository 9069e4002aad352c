//! The sample store: labelled samples in append-only, CRC-checked segments.
//!
//! One folder, one process, one segment file being written per task. A sample that [`SampleStore::put`]
//! reports as durable survives kill -9 at any byte and a power cut; the record_offset of its record may be
//! released. The index lives in memory and is made anew from the segments at every start: a tail that a crash
//! tore is cut off, a damaged record in the middle is skipped and counted.
//!
//! - **Identity** is the content (audio, instruction, target): the same sample twice is stored once.
//! - **Corrections**: of several answers to one question of one request (its `ce_source` and `ce_id`, the
//!   recording, the task, the instruction) the latest is in force; the earlier ones are superseded: they stay
//!   on disk, and are in no snapshot.
//! - **Sides**: a fixed share of recordings, chosen by hash, is held out; every sample of a recording is on
//!   its side, and stays there when the share changes.
//! - **Quotas**: when a task has more than `task_samples_max` samples, its oldest segment goes as a whole
//!   (new labels tell more than old ones); segments are closed at an eighth of the quota, so that at most so
//!   much goes at once. Above `bytes_max` the oldest segment of the task with the most bytes goes. Snapshots
//!   keep what they hold.
//! - **Consent**: a sample that may not be trained on is in no snapshot, and one that arrives again with that
//!   mark withdraws the earlier one.
//! - **Forgetting** ([`SampleStore::forget`]) takes samples out of the files, not only out of use.
//!
//! Beside the one process that writes, any number may read ([`SampleReader`]).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::info;

use crate::store::config::{FsyncPolicy, StoreConfig};

pub mod config;
mod error;
mod evicted;
mod flush;
mod forget;
mod index;
mod inner;
mod outcome;
mod reader;
mod recovery;
mod sample;
mod segment;
mod snapshot;

pub use error::StoreError;
pub use outcome::{Forgotten, OpenReport, Put, Refusal, TaskCount};
pub use reader::SampleReader;
pub use sample::{ContentHash, Sample, SampleSource, Split, StoredSample};
pub use snapshot::{SampleRef, SampleState, Snapshot};

use flush::Flusher;
use inner::Inner;
use sample::{Asked, request_id};

/// Labelled samples on disk; calls block for as long as the disk takes.
#[derive(Debug)]
pub struct SampleStore {
    inner: Arc<Mutex<Inner>>,
    /// Under `fsync = "interval"`; syncs a last time when the store is dropped.
    _flusher: Option<Flusher>,
    report: OpenReport,
    stored: AtomicU64,
}

impl SampleStore {
    /// Opens the store in `config.dir`, or makes it.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it; [`StoreError::Io`]; [`StoreError::NotASegment`].
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let (inner, report) = recovery::open(config)?;
        info!(dir = %config.dir.display(), ?report, "sample store opened");
        let inner = Arc::new(Mutex::new(inner));
        let flusher = match config.fsync {
            FsyncPolicy::EveryPut => None,
            FsyncPolicy::Interval => {
                let every = Duration::from_millis(config.fsync_interval_ms);
                let started = Flusher::start(Arc::clone(&inner), every);
                Some(started.map_err(StoreError::io("start the thread that syncs", &config.dir))?)
            }
        };
        Ok(Self {
            inner,
            _flusher: flusher,
            report,
            stored: AtomicU64::new(0),
        })
    }

    /// Stores a sample, unless it is there already or cannot be kept.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the disk refuses; the sample is then not stored and may be put again.
    pub fn put(&self, sample: &Sample) -> Result<Put, StoreError> {
        self.put_on(sample, None)
    }

    /// As [`SampleStore::put`]. Where no sample of the recording is here, it goes to the side `split`;
    /// without one its hash decides.
    ///
    /// # Errors
    /// As [`SampleStore::put`].
    pub fn put_on(&self, sample: &Sample, split: Option<Split>) -> Result<Put, StoreError> {
        let mut inner = self.inner();
        if let Err(refusal) = inner.check(sample) {
            return Ok(Put::Refused { refusal });
        }
        let put = inner.put(Asked::new(sample), split)?;
        if let Put::Stored { .. } = put {
            self.stored.fetch_add(1, Ordering::Relaxed);
        }
        Ok(put)
    }

    /// Samples that were stored since it was opened, also those that are evicted again.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// Makes sure that everything put so far survives a power cut.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn sync(&self) -> Result<(), StoreError> {
        self.inner().sync()
    }

    /// The sources of the requests with this id that have samples here, in order, each once.
    pub fn sources_of(&self, id: &str) -> Vec<String> {
        let wanted = request_id(id);
        let inner = self.inner();
        let of_id = inner
            .index
            .claims
            .values()
            .filter(|claim| claim.request == wanted);
        let sources: BTreeSet<&str> = of_id.map(|claim| &*claim.request_source).collect();
        sources.into_iter().map(str::to_owned).collect()
    }

    /// The latest sample of a request, unless it may not be trained on: what a later correction of the
    /// request starts from.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Damaged`]; [`StoreError::Forgotten`] when that happens meanwhile.
    pub fn of_request(&self, source: &str, id: &str) -> Result<Option<StoredSample>, StoreError> {
        let wanted = request_id(id);
        let (file, place, content) = {
            let inner = self.inner();
            let latest = (inner.index.claims.values())
                .filter(|claim| claim.request == wanted && &*claim.request_source == source)
                .max_by_key(|claim| claim.written_ms);
            let Some((content, entry)) =
                latest.and_then(|claim| Some((claim.content, inner.index.entry(claim.content)?)))
            else {
                return Ok(None);
            };
            let segment = (inner.index.places.get(&content)).and_then(|(id, _)| inner.index.segments.get(id));
            let Some(segment) = segment.filter(|_| entry.may_train) else {
                return Ok(None);
            };
            (Arc::clone(&segment.file), entry.place, content)
        };
        let mut stored = file.read(content, place)?.into_stored();
        stored.sample.request_source = source.to_owned();
        stored.sample.request_id = id.to_owned();
        Ok(Some(stored))
    }

    /// What the store holds now, for a training cycle; takes no copy of any audio.
    pub fn snapshot(&self) -> Snapshot {
        self.inner().index.snapshot()
    }

    /// Samples by task and side, in that order.
    pub fn counts(&self) -> Vec<TaskCount> {
        self.inner().index.counts()
    }

    /// Removes samples for good: their audio and texts are in no segment any more when this returns. Segments
    /// that hold one are written anew without it, and without what else in them is damaged; one that was
    /// evicted and that a snapshot still holds is deleted. Earlier snapshots cannot read it any more. An
    /// identity that is not in the store is passed over.
    ///
    /// What a forgotten sample had superseded stays superseded. Segments that hold nothing about the samples
    /// are not read. What was damaged when the store was opened has no identity: it stays, in its segment or
    /// in a file `….damaged`.
    ///
    /// # Errors
    /// [`StoreError`] when the disk refuses, [`StoreError::NotForgotten`]; some of the samples may be gone
    /// then, and the others can be forgotten again.
    pub fn forget(&self, ids: &[ContentHash]) -> Result<Forgotten, StoreError> {
        self.inner().forget(ids, &mut || {})
    }

    /// Samples in the store, withheld and superseded ones included.
    pub fn len(&self) -> usize {
        self.inner().index.places.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.inner().index.bytes()
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

#[cfg(test)]
mod correction_tests;

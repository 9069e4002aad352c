//! A snapshot: what the store held at one moment, for a training cycle to walk through.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::error::StoreError;
use super::sample::{ContentHash, RecordingHash, RequestId, SampleSource, Split, StoredSample, request_id};
use super::segment::{Place, SegmentFile};

/// What is known of a sample without reading it.
#[derive(Clone, Debug)]
pub(super) struct IndexEntry {
    pub(super) content: ContentHash,
    pub(super) recording: RecordingHash,
    /// The request that brought it.
    pub(super) request: RequestId,
    pub(super) place: Place,
    pub(super) split: Split,
    pub(super) may_train: bool,
    /// How many questions it is the answer to; 0: superseded.
    pub(super) claims: usize,
    pub(super) audio_seconds: f32,
    pub(super) received_ms: i64,
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) offset: i64,
}

impl IndexEntry {
    pub(super) fn state(&self) -> SampleState {
        match (self.may_train, self.claims) {
            (false, _) => SampleState::Withheld,
            (true, 0) => SampleState::Superseded,
            (true, _) => SampleState::InUse,
        }
    }

    /// Whether it may be trained on: allowed, and not superseded.
    pub(super) fn is_usable(&self) -> bool {
        self.state() == SampleState::InUse
    }
}

/// What may be done with a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SampleState {
    /// It may be trained on.
    InUse,
    /// A later answer to the same question of the same request is in force.
    Superseded,
    /// It may not be trained on.
    Withheld,
}

impl SampleState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::InUse, Self::Superseded, Self::Withheld];

    /// `in_use`, `superseded` or `withheld`.
    pub fn name(self) -> &'static str {
        match self {
            Self::InUse => "in_use",
            Self::Superseded => "superseded",
            Self::Withheld => "withheld",
        }
    }
}

/// A segment's share of a snapshot.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) task: Arc<str>,
    pub(super) file: Arc<SegmentFile>,
    pub(super) entries: Arc<Vec<IndexEntry>>,
}

/// A sample of a [`Snapshot`], to be read with [`Snapshot::load`]. Small: shuffle these, not the samples.
#[derive(Clone, Debug)]
pub struct SampleRef {
    /// Its identity.
    pub id: ContentHash,
    /// Identity of its recording: samples of one recording have the same.
    pub recording: [u8; 16],
    /// Its side.
    pub split: Split,
    /// Its task.
    pub task: Arc<str>,
    /// What may be done with it.
    pub state: SampleState,
    /// Length of its audio, seconds.
    pub audio_seconds: f32,
    /// When it was received, milliseconds since the Unix epoch.
    pub received_ms: i64,
    request: RequestId,
    part: usize,
    place: Place,
}

/// What the store held when it was taken: unchanged by later puts, withdrawals and evictions; only what is
/// forgotten later cannot be read any more, and with it what else was in a segment that had been evicted.
/// Holds index entries (about 170 bytes a sample), not audio; its files stay until it is dropped.
#[derive(Clone, Debug)]
pub struct Snapshot {
    parts: Vec<Part>,
    shared: BTreeSet<(RequestId, ContentHash)>,
}

impl Snapshot {
    pub(super) fn new(parts: Vec<Part>, shared: BTreeSet<(RequestId, ContentHash)>) -> Self {
        Self { parts, shared }
    }

    /// The samples of one side that may be trained on, oldest segment first.
    pub fn refs(&self, split: Split) -> impl Iterator<Item = SampleRef> + '_ {
        self.all()
            .filter(move |sample| sample.split == split && sample.state == SampleState::InUse)
    }

    /// All samples, also those that may not be trained on, oldest segment first.
    pub fn all(&self) -> impl Iterator<Item = SampleRef> + '_ {
        let entries = self.parts.iter().enumerate().flat_map(|(index, part)| {
            let of_part = part.entries.iter();
            of_part.map(move |entry| (index, part, entry))
        });
        entries.map(|(part, segment, entry)| SampleRef {
            id: entry.content,
            recording: entry.recording,
            split: entry.split,
            task: segment.task.clone(),
            state: entry.state(),
            audio_seconds: entry.audio_seconds,
            received_ms: entry.received_ms,
            request: entry.request,
            part,
            place: entry.place,
        })
    }

    /// Whether a request of this id brought a sample, be it that another one had brought the same before.
    pub fn is_of_request(&self, sample: &SampleRef, id: &str) -> bool {
        let wanted = request_id(id);
        sample.request == wanted || self.shared.contains(&(wanted, sample.id))
    }

    /// Reads one sample.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Damaged`] when the disk has changed it; [`StoreError::Forgotten`].
    ///
    /// # Panics
    /// When `sample` is of another snapshot that had more segments.
    pub fn load(&self, sample: &SampleRef) -> Result<StoredSample, StoreError> {
        let file = &self.parts[sample.part].file;
        Ok(file.read(sample.id, sample.place)?.into_stored())
    }

    /// Reads the samples of one side that may be trained on, one after the other, oldest segment first; one
    /// is in memory at a time.
    pub fn samples(&self, split: Split) -> impl Iterator<Item = Result<StoredSample, StoreError>> + '_ {
        self.refs(split).map(|sample| self.load(&sample))
    }

    /// How many samples are on one side.
    pub fn len(&self, split: Split) -> usize {
        self.usable().filter(|(_, entry)| entry.split == split).count()
    }

    /// Whether there is nothing to learn from.
    pub fn is_empty(&self) -> bool {
        self.len(Split::Train) == 0
    }

    /// Identity of the contents: SHA-256 over tasks, sides and identities, in an order of its own, so that
    /// two stores with the same samples agree.
    pub fn digest(&self) -> String {
        let mut all: Vec<(&str, Split, ContentHash)> = self
            .usable()
            .map(|(part, entry)| (part.task.as_ref(), entry.split, entry.content))
            .collect();
        all.sort_unstable();
        let mut digest = Sha256::new();
        for (task, split, content) in all {
            digest.update((task.len() as u64).to_le_bytes());
            digest.update(task.as_bytes());
            digest.update(split.name().as_bytes());
            digest.update(content.0);
        }
        ContentHash(digest.finalize().into()).to_string()
    }

    /// The topic records that the samples came from: lowest and highest offset per topic and partition.
    pub fn sources(&self) -> Vec<(SampleSource, SampleSource)> {
        let mut ranges: BTreeMap<(&str, i32), (i64, i64)> = BTreeMap::new();
        for (_, entry) in self.usable() {
            let range = ranges
                .entry((&entry.topic, entry.partition))
                .or_insert((entry.offset, entry.offset));
            *range = (range.0.min(entry.offset), range.1.max(entry.offset));
        }
        let source = |topic: &str, partition, offset| SampleSource {
            topic: topic.to_owned(),
            partition,
            offset,
        };
        ranges
            .into_iter()
            .map(|((topic, partition), (low, high))| {
                (source(topic, partition, low), source(topic, partition, high))
            })
            .collect()
    }

    fn usable(&self) -> impl Iterator<Item = (&Part, &IndexEntry)> {
        self.parts
            .iter()
            .flat_map(|part| part.entries.iter().map(move |entry| (part, entry)))
            .filter(|(_, entry)| entry.is_usable())
    }
}

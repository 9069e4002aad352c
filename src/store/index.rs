//! The index: what is known of the samples of a folder without reading them again, made from its segments.
//!
//! The store that writes and a reader beside it make it by the same code, so that they agree on sides,
//! withheld and superseded samples.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::StoreError;
use super::outcome::TaskCount;
use super::sample::{
    Asked, ClaimWritten, ContentHash, Entry, Question, RecordingHash, RequestId, Split, request_id,
};
use super::segment::{self, Place, Scan, SegmentFile};
use super::snapshot::{IndexEntry, Part, SampleState, Snapshot};

/// What the segments of a folder hold.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) segments: BTreeMap<u64, Segment>,
    /// Which segment holds a sample, and where in its index.
    pub(super) places: HashMap<ContentHash, (u64, usize)>,
    /// Side of each recording, and how many samples it has.
    pub(super) sides: HashMap<RecordingHash, (Split, usize)>,
    topics: HashMap<String, Arc<str>>,
    /// The answer in force to each question.
    pub(super) claims: HashMap<Question, Claim>,
    /// Requests that have a sample which another request brought first: the same content, sent by both.
    pub(super) shared: BTreeSet<(RequestId, ContentHash)>,
}

/// The answer in force to a question, and the record that said so.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) content: ContentHash,
    pub(super) request: RequestId,
    pub(super) request_source: Box<str>,
    pub(super) written_ms: i64,
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    pub(super) offset: i64,
}

/// A segment and what it holds.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) task: Arc<str>,
    pub(super) file: Arc<SegmentFile>,
    pub(super) entries: Arc<Vec<IndexEntry>>,
    /// Samples that other records of it are about, or may be: notes, and what was written again after an
    /// error that had not undone it.
    pub(super) mentions: HashSet<ContentHash>,
    pub(super) bytes: u64,
}

/// What a segment file turned out to be.
pub(super) enum Found {
    /// A segment of this task; its samples are in the index.
    Segment(Arc<str>, Scan),
    /// A segment without a whole record.
    Empty(Scan),
    /// A file in which nothing can be read.
    Unreadable,
}

type Claims = Vec<(ContentHash, ClaimWritten)>;

impl Index {
    /// Makes the index of a folder, oldest segment first; `found` is told what each file is. Files that are
    /// gone when they are opened are passed over: whoever writes has evicted them.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::NotASegment`]; those of `found`.
    pub(super) fn read(
        dir: &Path,
        found: &mut dyn FnMut(u64, &Path, Found) -> Result<(), StoreError>,
    ) -> Result<Self, StoreError> {
        let mut index = Self::default();
        let (mut claims, mut last) = (Claims::new(), None);
        loop {
            // Again at the end: what was read last may tell of a sample in a segment begun since.
            let paths = segment_paths(dir, last)?;
            if paths.is_empty() {
                break;
            }
            for (id, path) in paths {
                last = Some(id);
                match index.read_segment(id, &path, &mut claims) {
                    Ok(what) => found(id, &path, what)?,
                    Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        // All claims of a question are in segments of one task, so they are in order. The sample that one is
        // about may be in a segment of another task, which is why they come after all samples.
        for (content, claim) in claims {
            index.claim(content, claim);
        }
        Ok(index)
    }

    /// Takes what a segment holds into the index, but for the claims.
    fn read_segment(&mut self, id: u64, path: &Path, claims: &mut Claims) -> Result<Found, StoreError> {
        let mut task: Option<Arc<str>> = None;
        let mut entries: Vec<IndexEntry> = Vec::new();
        let (mut withdrawn, mut mentions) = (Vec::new(), HashSet::new());
        let scan = segment::scan(path, id, |place, entry| match entry {
            Entry::Withdrawn { content, task: of } => {
                task.get_or_insert_with(|| of.as_str().into());
                withdrawn.push(ContentHash(content));
                mentions.insert(ContentHash(content));
            }
            Entry::Claimed {
                content,
                task: of,
                claim,
            } => {
                task.get_or_insert_with(|| of.as_str().into());
                claims.push((ContentHash(content), *claim));
                mentions.insert(ContentHash(content));
            }
            sample => {
                let Some(asked) = sample.into_sample() else { return };
                task.get_or_insert_with(|| asked.sample.task.as_str().into());
                claims.push((ContentHash(asked.sample.content), asked.claim()));
                entries.push(index_entry(&mut self.topics, place, &asked));
            }
        })?;
        let Some(scan) = scan else {
            return Ok(Found::Unreadable);
        };
        let Some(task) = task else {
            return Ok(Found::Empty(scan));
        };
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            if self.places.contains_key(&entry.content) {
                mentions.insert(entry.content); // written again after an error that had not undone it
                continue;
            }
            self.places.insert(entry.content, (id, kept.len()));
            self.sides.entry(entry.recording).or_insert((entry.split, 0)).1 += 1;
            kept.push(entry);
        }
        let segment = Segment {
            task: task.clone(),
            file: scan.file.clone(),
            entries: Arc::new(kept),
            mentions,
            bytes: scan.end + scan.tail_bytes,
        };
        self.segments.insert(id, segment);
        for content in withdrawn {
            self.mark_withdrawn(content);
        }
        Ok(Found::Segment(task, scan))
    }

    /// Takes up a sample that was appended to a segment.
    pub(super) fn insert(&mut self, segment: u64, place: Place, asked: &Asked) {
        let Some(found) = self.segments.get_mut(&segment) else {
            return;
        };
        let entry = index_entry(&mut self.topics, place, asked);
        self.places.insert(entry.content, (segment, found.entries.len()));
        self.sides.entry(entry.recording).or_insert((entry.split, 0)).1 += 1;
        Arc::make_mut(&mut found.entries).push(entry);
    }

    /// Makes a sample the answer in force to a question; returns the one that was, if it is another.
    pub(super) fn claim(&mut self, content: ContentHash, claim: ClaimWritten) -> Option<ContentHash> {
        let before = self
            .claims
            .remove(&claim.question)
            .map(|standing| standing.content);
        if let Some(entry) = before.and_then(|before| self.entry_mut(before)) {
            entry.claims -= 1;
        }
        // A sample that was evicted answers nothing; what it had superseded stays so.
        if let Some(entry) = self.entry_mut(content) {
            entry.claims += 1;
            if entry.request != claim.request {
                self.shared.insert((claim.request, content));
            }
            let topic = interned(&mut self.topics, &claim.topic);
            let standing = Claim {
                content,
                request: claim.request,
                request_source: claim.request_source.into(),
                written_ms: claim.written_ms,
                topic,
                partition: claim.partition,
                offset: claim.offset,
            };
            self.claims.insert(claim.question, standing);
        }
        before.filter(|before| *before != content)
    }

    pub(super) fn entry(&self, content: ContentHash) -> Option<&IndexEntry> {
        let (segment, index) = self.places.get(&content)?;
        self.segments.get(segment)?.entries.get(*index)
    }

    fn entry_mut(&mut self, content: ContentHash) -> Option<&mut IndexEntry> {
        let (segment, index) = self.places.get(&content)?;
        let entries = &mut self.segments.get_mut(segment)?.entries;
        Arc::make_mut(entries).get_mut(*index)
    }

    pub(super) fn mark_withdrawn(&mut self, content: ContentHash) {
        if let Some(entry) = self.entry_mut(content) {
            entry.may_train = false;
        }
    }

    /// Takes a segment and all its samples out.
    pub(super) fn remove(&mut self, id: u64) -> Option<Segment> {
        let segment = self.segments.remove(&id)?;
        for entry in segment.entries.iter() {
            self.places.remove(&entry.content);
            self.leave_side(entry.recording);
        }
        self.drop_claims_of_absent();
        Some(segment)
    }

    /// Puts another file with other places in the place of a segment; samples that have none are taken out.
    pub(super) fn replace(
        &mut self,
        id: u64,
        file: Arc<SegmentFile>,
        bytes: u64,
        places: &HashMap<ContentHash, Place>,
    ) {
        let Some(mut segment) = self.segments.remove(&id) else {
            return;
        };
        let mut kept = Vec::with_capacity(segment.entries.len());
        for entry in segment.entries.iter() {
            match places.get(&entry.content) {
                Some(&place) => {
                    self.places.insert(entry.content, (id, kept.len()));
                    kept.push(IndexEntry {
                        place,
                        ..entry.clone()
                    });
                }
                None => {
                    self.places.remove(&entry.content);
                    self.leave_side(entry.recording);
                }
            }
        }
        segment.file = file;
        segment.entries = Arc::new(kept);
        segment.bytes = bytes;
        self.segments.insert(id, segment);
        self.drop_claims_of_absent();
    }

    fn leave_side(&mut self, recording: RecordingHash) {
        if let Some((_, samples)) = self.sides.get_mut(&recording) {
            *samples -= 1;
            if *samples == 0 {
                self.sides.remove(&recording);
            }
        }
    }

    fn drop_claims_of_absent(&mut self) {
        let places = &self.places;
        self.claims.retain(|_, claim| places.contains_key(&claim.content));
        self.shared.retain(|(_, content)| places.contains_key(content));
    }

    /// Bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    /// What there is now; takes no copy of any audio.
    pub(super) fn snapshot(&self) -> Snapshot {
        let part = |segment: &Segment| Part {
            task: segment.task.clone(),
            file: segment.file.clone(),
            entries: segment.entries.clone(),
        };
        Snapshot::new(self.segments.values().map(part).collect(), self.shared.clone())
    }

    /// Samples by task and side, in that order.
    pub(super) fn counts(&self) -> Vec<TaskCount> {
        let mut counts: BTreeMap<(Arc<str>, Split), TaskCount> = BTreeMap::new();
        for segment in self.segments.values() {
            for entry in segment.entries.iter() {
                let key = (segment.task.clone(), entry.split);
                let count = counts.entry(key).or_insert_with(|| TaskCount {
                    task: segment.task.clone(),
                    split: entry.split,
                    samples: 0,
                    withheld: 0,
                    superseded: 0,
                    audio_seconds: 0.0,
                });
                match entry.state() {
                    SampleState::Withheld => count.withheld += 1,
                    SampleState::Superseded => count.superseded += 1,
                    SampleState::InUse => {
                        count.samples += 1;
                        count.audio_seconds += f64::from(entry.audio_seconds);
                    }
                }
            }
        }
        counts.into_values().collect()
    }
}

/// Segment files of the folder with an id above `after`, oldest first.
fn segment_paths(dir: &Path, after: Option<u64>) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let mut paths = Vec::new();
    for file in std::fs::read_dir(dir).map_err(StoreError::io("read", dir))? {
        let path = file.map_err(StoreError::io("read", dir))?.path();
        if let Some(id) = segment::id_of(&path).filter(|id| after.is_none_or(|after| *id > after)) {
            paths.push((id, path));
        }
    }
    paths.sort();
    Ok(paths)
}

/// What the index keeps of a sample that answers nothing yet.
fn index_entry(topics: &mut HashMap<String, Arc<str>>, place: Place, asked: &Asked) -> IndexEntry {
    let written = &asked.sample;
    IndexEntry {
        content: ContentHash(written.content),
        recording: written.recording,
        request: request_id(&written.request_id),
        place,
        split: written.split(),
        may_train: written.may_train,
        claims: 0,
        audio_seconds: written.audio_seconds() as f32,
        received_ms: written.received_ms,
        topic: interned(topics, &written.topic),
        partition: written.partition,
        offset: written.offset,
    }
}

/// Names of topics are kept once.
fn interned(topics: &mut HashMap<String, Arc<str>>, name: &str) -> Arc<str> {
    if let Some(topic) = topics.get(name) {
        return topic.clone();
    }
    let topic: Arc<str> = name.into();
    topics.insert(name.to_owned(), topic.clone());
    topic
}

//! The store's state: appending, the index, quotas.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::error::StoreError;
use super::outcome::{Put, Refusal};
use super::sample::{self, ContentHash, Entry, RecordingHash, Sample, Split, Written};
use super::segment::{Appender, Place, SegmentFile};
use super::snapshot::IndexEntry;
use crate::store::config::{FsyncPolicy, StoreConfig};

/// A segment is closed when it holds this share of its task's quota.
const QUOTA_SEGMENTS: usize = 8;

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) config: StoreConfig,
    /// Held, not read: the lock goes with it.
    pub(super) _lock: File,
    pub(super) segments: BTreeMap<u64, Segment>,
    /// The segment that is written, per task.
    pub(super) active: HashMap<Arc<str>, (u64, Appender)>,
    /// Which segment holds a sample, and where in its index.
    pub(super) places: HashMap<ContentHash, (u64, usize)>,
    /// Side of each recording, and how many samples it has.
    pub(super) sides: HashMap<RecordingHash, (Split, usize)>,
    pub(super) topics: HashMap<String, Arc<str>>,
    pub(super) next_id: u64,
    pub(super) last_sync: Instant,
}

/// A segment and what it holds.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) task: Arc<str>,
    pub(super) file: Arc<SegmentFile>,
    pub(super) entries: Arc<Vec<IndexEntry>>,
    pub(super) bytes: u64,
}

impl Inner {
    pub(super) fn check(&self, sample: &Sample) -> Result<(), Refusal> {
        let samples = sample.audio.len();
        if samples == 0 {
            return Err(Refusal::NoAudio);
        }
        let samples_max = sample::samples_in(self.config.audio_seconds_max);
        if samples > samples_max {
            return Err(Refusal::TooLong { samples, samples_max });
        }
        if let Some((index, value)) = sample
            .audio
            .iter()
            .enumerate()
            .find(|(_, value)| !value.is_finite())
        {
            return Err(Refusal::NotFinite { index, value: *value });
        }
        let texts = [
            ("instruction", &sample.instruction),
            ("target", &sample.target),
            ("task name", &sample.task),
            ("request id", &sample.request_id),
            ("topic", &sample.source.topic),
        ];
        let bytes_max = self.config.text_bytes_max;
        for (text, content) in texts {
            let bytes = content.len();
            if bytes > bytes_max {
                return Err(Refusal::TextTooLong {
                    text,
                    bytes,
                    bytes_max,
                });
            }
        }
        let tasks_max = self.config.tasks_max;
        let mut tasks: Vec<&str> = self
            .segments
            .values()
            .map(|segment| segment.task.as_ref())
            .collect();
        tasks.sort_unstable();
        tasks.dedup();
        if tasks.len() >= tasks_max && !tasks.contains(&sample.task.as_str()) {
            let task = sample.task.clone();
            return Err(Refusal::TooManyTasks { task, tasks_max });
        }
        Ok(())
    }

    pub(super) fn put(&mut self, mut written: Written) -> Result<Put, StoreError> {
        let id = ContentHash(written.content);
        if let Some(&(segment, index)) = self.places.get(&id) {
            let withdrawn = !written.may_train && self.withdraw(segment, index)?;
            return Ok(Put::Duplicate { id, withdrawn });
        }
        written.held_out = match self.sides.get(&written.recording) {
            Some((split, _)) => *split == Split::HeldOut,
            None => sample::is_held_out(&written.recording, self.config.held_out_fraction),
        };
        let split = written.split();
        let task: Arc<str> = written.task.as_str().into();
        let entry = Entry::Sample(Box::new(written));
        let (segment, place, durable) = self.append(&task, &entry)?;
        if let Entry::Sample(written) = &entry {
            self.index(segment, place, written);
        }
        self.close_if_full(&task);
        self.enforce_quota(&task);
        self.enforce_bytes(Some(segment));
        Ok(Put::Stored { id, split, durable })
    }

    /// Marks a stored sample as not to be used, on disk and in the index; false when it is marked already.
    fn withdraw(&mut self, segment: u64, index: usize) -> Result<bool, StoreError> {
        let Some(found) = self.segments.get(&segment) else {
            return Ok(false);
        };
        let entry = &found.entries[index];
        if !entry.may_train {
            return Ok(false);
        }
        let (task, content) = (found.task.clone(), entry.content);
        let withdrawal = Entry::Withdrawn {
            content: content.0,
            task: task.to_string(),
        };
        self.append(&task, &withdrawal)?;
        self.mark_withdrawn(content);
        Ok(true)
    }

    pub(super) fn mark_withdrawn(&mut self, content: ContentHash) {
        if let Some(&(segment, index)) = self.places.get(&content)
            && let Some(found) = self.segments.get_mut(&segment)
        {
            Arc::make_mut(&mut found.entries)[index].may_train = false;
        }
    }

    /// Appends to the task's segment, and syncs as the settings say. An error closes the segment.
    fn append(&mut self, task: &Arc<str>, entry: &Entry) -> Result<(u64, Place, bool), StoreError> {
        if !self.active.contains_key(task) {
            let (appender, file) = Appender::create(&self.config.dir, self.next_id, task)?;
            let segment = Segment {
                task: task.clone(),
                file: Arc::new(file),
                entries: Arc::default(),
                bytes: appender.bytes(),
            };
            self.segments.insert(self.next_id, segment);
            self.active.insert(task.clone(), (self.next_id, appender));
            self.next_id += 1;
        }
        let every_put = self.config.fsync == FsyncPolicy::EveryPut;
        let now = every_put || self.sync_is_due();
        let (id, appender) = self.active.get_mut(task).expect("it was just put there");
        let id = *id;
        let appended = appender.append(entry).and_then(|place| {
            if every_put && let Err(error) = appender.sync() {
                appender.undo(place);
                return Err(error);
            }
            Ok(place)
        });
        let bytes = appender.bytes();
        if let Some(segment) = self.segments.get_mut(&id) {
            segment.bytes = bytes;
        }
        let place = match appended {
            Ok(place) => place,
            Err(error) => {
                self.active.remove(task); // what the disk holds after an error is for the next start to find out
                return Err(error);
            }
        };
        if now && !every_put {
            self.sync()?;
        }
        Ok((id, place, now))
    }

    pub(super) fn index(&mut self, segment: u64, place: Place, written: &Written) {
        let Some(found) = self.segments.get_mut(&segment) else {
            return;
        };
        let entry = index_entry(&mut self.topics, place, written);
        self.places.insert(entry.content, (segment, found.entries.len()));
        self.sides.entry(entry.recording).or_insert((entry.split, 0)).1 += 1;
        Arc::make_mut(&mut found.entries).push(entry);
    }

    pub(super) fn sync_is_due(&self) -> bool {
        self.last_sync.elapsed() >= Duration::from_millis(self.config.fsync_interval_ms)
    }

    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        for (_, appender) in self.active.values_mut() {
            appender.sync()?;
        }
        self.last_sync = Instant::now();
        Ok(())
    }

    /// Ends the task's segment when it is long enough, so that it can be evicted one day.
    pub(super) fn close_if_full(&mut self, task: &Arc<str>) {
        let Some((id, appender)) = self.active.get_mut(task) else {
            return;
        };
        let samples_max = (self.config.task_samples_max / QUOTA_SEGMENTS).max(1);
        let samples = self.segments.get(id).map_or(0, |segment| segment.entries.len());
        if appender.bytes() < self.config.segment_bytes_max && samples < samples_max {
            return;
        }
        if let Err(error) = appender.sync() {
            warn!(%error, "failed to sync a segment that is closed; a power cut may take its last samples");
        }
        self.active.remove(task);
    }

    pub(super) fn enforce_quota(&mut self, task: &Arc<str>) {
        loop {
            let of_task = self.segments.iter().filter(|(_, segment)| segment.task == *task);
            let samples: usize = of_task.clone().map(|(_, segment)| segment.entries.len()).sum();
            if samples <= self.config.task_samples_max {
                return;
            }
            let Some(oldest) = of_task.map(|(id, _)| *id).next() else {
                return;
            };
            self.evict(oldest, "the task has more samples than `store.task_samples_max`");
        }
    }

    /// Evicts until the store fits into `bytes_max`; `keep` is the segment that was just written.
    pub(super) fn enforce_bytes(&mut self, keep: Option<u64>) {
        while self.bytes() > self.config.bytes_max {
            let mut by_task: HashMap<&str, (u64, Option<u64>)> = HashMap::new();
            for (id, segment) in &self.segments {
                let (bytes, oldest) = by_task.entry(&segment.task).or_default();
                *bytes += segment.bytes;
                if Some(*id) != keep {
                    oldest.get_or_insert(*id);
                }
            }
            let evictable = by_task
                .values()
                .filter_map(|(bytes, oldest)| Some((*bytes, (*oldest)?)));
            let Some((_, oldest)) = evictable.max() else {
                return;
            };
            self.evict(oldest, "the store has more bytes than `store.bytes_max`");
        }
    }

    fn evict(&mut self, id: u64, reason: &'static str) {
        let Some(segment) = self.segments.remove(&id) else {
            return;
        };
        if self
            .active
            .get(&segment.task)
            .is_some_and(|(active, _)| *active == id)
        {
            self.active.remove(&segment.task);
        }
        for entry in segment.entries.iter() {
            self.places.remove(&entry.content);
            if let Some((_, samples)) = self.sides.get_mut(&entry.recording) {
                *samples -= 1;
                if *samples == 0 {
                    self.sides.remove(&entry.recording);
                }
            }
        }
        info!(
            path = %segment.file.path.display(), task = %segment.task, samples = segment.entries.len(), reason,
            "segment evicted"
        );
        segment.file.evict();
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }
}

/// What the index keeps of a sample; names of topics are kept once.
pub(super) fn index_entry(
    topics: &mut HashMap<String, Arc<str>>,
    place: Place,
    written: &Written,
) -> IndexEntry {
    let topic = match topics.get(&written.topic) {
        Some(topic) => topic.clone(),
        None => {
            let topic: Arc<str> = written.topic.as_str().into();
            topics.insert(written.topic.clone(), topic.clone());
            topic
        }
    };
    IndexEntry {
        content: ContentHash(written.content),
        recording: written.recording,
        place,
        split: written.split(),
        may_train: written.may_train,
        audio_seconds: written.audio_seconds() as f32,
        topic,
        partition: written.partition,
        offset: written.offset,
    }
}

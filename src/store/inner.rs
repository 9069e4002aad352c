//! The store's state: the index, what is appended to, quotas.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;

use tracing::{info, warn};

use super::error::StoreError;
use super::evicted::Evicted;
use super::index::{Index, Segment};
use super::outcome::{Put, Refusal};
use super::sample::{self, Asked, ClaimWritten, ContentHash, Entry, Sample, Split};
use super::segment::{Appender, Place};
use crate::store::config::{FsyncPolicy, StoreConfig};

/// Questions that one sample is known to answer; further ones are not noted down, so that a client that sends
/// the same sample again and again fills neither memory nor disk.
const CLAIMS_MAX: usize = 16;
/// A segment is closed when it holds this share of its task's quota.
const QUOTA_SEGMENTS: usize = 8;

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) config: StoreConfig,
    /// Held, not read: the lock goes with it.
    pub(super) _lock: File,
    pub(super) index: Index,
    /// The segment that is written, per task.
    pub(super) active: HashMap<Arc<str>, (u64, Appender)>,
    pub(super) next_id: u64,
    /// Segments that were evicted and that a snapshot held then.
    pub(super) evicted: Vec<Evicted>,
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
            ("request source", &sample.request_source),
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
        let labels: usize = sample.labels.iter().map(String::len).sum();
        let fields: usize = (sample.fields.iter())
            .map(|(name, value)| name.len() + value.len())
            .sum();
        for (text, bytes) in [("list of labels", labels), ("list of fields", fields)] {
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
            .index
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

    /// `side` is that of a recording that has no sample here; without one its hash decides.
    pub(super) fn put(&mut self, mut asked: Asked, side: Option<Split>) -> Result<Put, StoreError> {
        let id = ContentHash(asked.sample.content);
        let task: Arc<str> = asked.sample.task.as_str().into();
        let claim = asked.claim();
        let known = self.index.places.contains_key(&id);
        let withdrawn = known && !asked.sample.may_train && self.withdraw(id)?;
        if let Some(by) = self.outdated_by(&claim, id) {
            return Ok(match known {
                true => Put::Duplicate {
                    id,
                    withdrawn,
                    supersedes: None,
                },
                false => Put::Outdated { by },
            });
        }
        if known {
            let supersedes = self.claim_again(&task, id, claim)?;
            return Ok(Put::Duplicate {
                id,
                withdrawn,
                supersedes,
            });
        }
        let sides = self.index.sides.get(&asked.sample.recording);
        asked.sample.held_out = match (sides, side) {
            (Some((split, _)), _) => *split == Split::HeldOut,
            (None, Some(side)) => side == Split::HeldOut,
            (None, None) => sample::is_held_out(&asked.sample.recording, self.config.held_out_fraction),
        };
        let split = asked.sample.split();
        let entry = Entry::Asked(Box::new(asked));
        let (segment, place, durable) = self.append(&task, &entry)?;
        if let Entry::Asked(asked) = &entry {
            self.index.insert(segment, place, asked);
        }
        let supersedes = self.index.claim(id, claim);
        self.close_if_full(&task);
        self.enforce_quota(&task);
        self.enforce_bytes(Some(segment));
        Ok(Put::Stored {
            id,
            split,
            durable,
            supersedes,
        })
    }

    /// The answer in force, where it is another one and was written after `claim`: records come again after a
    /// crash, and those of several partitions are read in any order. In one partition a higher offset is
    /// later whatever the clocks say; a lower one is later by time alone, in a topic that was made anew.
    fn outdated_by(&self, claim: &ClaimWritten, content: ContentHash) -> Option<ContentHash> {
        let standing = self.index.claims.get(&claim.question)?;
        let same_partition =
            (&*standing.topic, standing.partition) == (claim.topic.as_str(), claim.partition);
        let outdated = match same_partition {
            true => claim.offset <= standing.offset && claim.written_ms <= standing.written_ms,
            false => claim.written_ms < standing.written_ms,
        };
        (outdated && standing.content != content).then_some(standing.content)
    }

    /// Makes a sample that is stored the answer to a further question, or to its own once more, on disk and
    /// in the index.
    fn claim_again(
        &mut self,
        task: &Arc<str>,
        content: ContentHash,
        claim: ClaimWritten,
    ) -> Result<Option<ContentHash>, StoreError> {
        match self.index.claims.get(&claim.question) {
            Some(standing) if standing.content == content => return Ok(self.index.claim(content, claim)),
            None if self
                .index
                .entry(content)
                .is_none_or(|entry| entry.claims >= CLAIMS_MAX) =>
            {
                return Ok(None);
            }
            _ => {}
        }
        let entry = Entry::Claimed {
            content: content.0,
            task: task.to_string(),
            claim: Box::new(claim.clone()),
        };
        let (segment, ..) = self.append(task, &entry)?;
        let supersedes = self.index.claim(content, claim);
        self.close_if_full(task);
        self.enforce_bytes(Some(segment));
        Ok(supersedes)
    }

    /// Marks a stored sample as not to be used, on disk and in the index; false when it is marked already.
    fn withdraw(&mut self, content: ContentHash) -> Result<bool, StoreError> {
        let Some((segment, _)) = self.index.places.get(&content) else {
            return Ok(false);
        };
        if self.index.entry(content).is_none_or(|entry| !entry.may_train) {
            return Ok(false);
        }
        let Some(task) = self
            .index
            .segments
            .get(segment)
            .map(|segment| segment.task.clone())
        else {
            return Ok(false);
        };
        let withdrawal = Entry::Withdrawn {
            content: content.0,
            task: task.to_string(),
        };
        self.append(&task, &withdrawal)?;
        self.index.mark_withdrawn(content);
        Ok(true)
    }

    /// Appends to the task's segment, and syncs as the settings say. An error closes the segment.
    fn append(&mut self, task: &Arc<str>, entry: &Entry) -> Result<(u64, Place, bool), StoreError> {
        if !self.active.contains_key(task) {
            let (appender, file) = Appender::create(&self.config.dir, self.next_id, task)?;
            let segment = Segment {
                task: task.clone(),
                file: Arc::new(file),
                entries: Arc::default(),
                mentions: HashSet::new(),
                bytes: appender.bytes(),
            };
            self.index.segments.insert(self.next_id, segment);
            self.active.insert(task.clone(), (self.next_id, appender));
            self.next_id += 1;
        }
        let every_put = self.config.fsync == FsyncPolicy::EveryPut;
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
        if let Some(segment) = self.index.segments.get_mut(&id) {
            segment.bytes = bytes;
            if entry.is_note() || appended.is_err() {
                segment.mentions.insert(ContentHash(entry.content()));
            }
        }
        let place = match appended {
            Ok(place) => place,
            Err(error) => {
                self.active.remove(task); // what the disk holds after an error is for the next start to find out
                return Err(error);
            }
        };
        Ok((id, place, every_put))
    }

    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        for (_, appender) in self.active.values_mut() {
            appender.sync()?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn has_unsynced(&self) -> bool {
        self.active.values().any(|(_, appender)| appender.has_unsynced())
    }

    /// Ends the task's segment when it is long enough, so that it can be evicted one day.
    pub(super) fn close_if_full(&mut self, task: &Arc<str>) {
        let Some((id, appender)) = self.active.get_mut(task) else {
            return;
        };
        let samples_max = (self.config.task_samples_max / QUOTA_SEGMENTS).max(1);
        let samples = self
            .index
            .segments
            .get(id)
            .map_or(0, |segment| segment.entries.len());
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
            let of_task = self
                .index
                .segments
                .iter()
                .filter(|(_, segment)| segment.task == *task);
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
        while self.index.bytes() > self.config.bytes_max {
            let mut by_task: HashMap<&str, (u64, Option<u64>)> = HashMap::new();
            for (id, segment) in &self.index.segments {
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
        let Some(segment) = self.index.remove(id) else {
            return;
        };
        if self
            .active
            .get(&segment.task)
            .is_some_and(|(active, _)| *active == id)
        {
            self.active.remove(&segment.task);
        }
        info!(
            path = %segment.file.path.display(), task = %segment.task, samples = segment.entries.len(), reason,
            "segment evicted"
        );
        segment.file.evict();
        self.evicted.push(Evicted::new(segment));
        self.evicted.retain(Evicted::is_on_disk);
    }
}

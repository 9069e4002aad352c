//! Forgetting: samples leave the files, and not only the index.
//!
//! Each segment that holds a record about a forgotten sample is written anew without it, under another name,
//! and takes the old one's place by a rename. So a crash leaves each segment as it was or as it is to be; the
//! next start removes what was unfinished. Segments that hold the samples come first: a crash behind them
//! leaves notes about samples that are gone (identities, the source of a request), which change nothing.
//!
//! Which segments those are, the index says, and not what can be read: a record that the disk has changed may
//! still hold audio.

use std::collections::{HashMap, HashSet};

use tracing::{info, warn};

use super::error::StoreError;
use super::evicted::Evicted;
use super::index::Segment;
use super::inner::Inner;
use super::outcome::Forgotten;
use super::sample::{ClaimWritten, ContentHash, Entry, Question, RecordingHash, RequestId};
use super::segment::{self, Kept, Place, Rewritten};
use super::snapshot::IndexEntry;

/// What is to be forgotten.
struct Forgetting {
    samples: HashSet<ContentHash>,
    /// Questions that they answer and that others may have answered before: those are not in force again, and
    /// a note on disk keeps them so.
    answered: HashSet<Question>,
}

impl Forgetting {
    /// What stays of a record; none: nothing.
    fn kept(&self, place: Place, entry: Entry) -> Option<Kept> {
        if !self.samples.contains(&ContentHash(entry.content())) {
            let sample = (!entry.is_note()).then(|| ContentHash(entry.content()));
            return Some(Kept::Record { place, sample });
        }
        let (task, question) = match entry {
            Entry::Withdrawn { .. } => return None,
            Entry::Claimed { task, claim, .. } => (task, claim.question),
            sample => {
                let asked = sample.into_sample()?;
                let question = asked.claim().question;
                (asked.sample.task, question)
            }
        };
        let is_needed = self.answered.contains(&question);
        is_needed.then(|| Kept::Instead(answered_by_nothing(task, question)))
    }
}

/// A note that nothing which answered a question before is in force: a claim of a sample that is not there.
fn answered_by_nothing(task: String, question: Question) -> Entry {
    Entry::Claimed {
        content: [0; 32],
        task,
        claim: Box::new(ClaimWritten {
            question,
            request: RequestId([0; 16]),
            request_source: String::new(),
            written_ms: 0,
            topic: String::new(),
            partition: 0,
            offset: 0,
        }),
    }
}

impl Inner {
    /// See [`SampleStore::forget`](super::SampleStore::forget); calls `changed` after each file.
    pub(super) fn forget(
        &mut self,
        ids: &[ContentHash],
        changed: &mut dyn FnMut(),
    ) -> Result<Forgotten, StoreError> {
        let wanted: HashSet<ContentHash> = ids.iter().copied().collect();
        let known = |id: &&ContentHash| self.index.places.contains_key(*id);
        let samples: HashSet<ContentHash> = wanted.iter().filter(known).copied().collect();
        let bytes_before = self.index.bytes();
        let (mut gone, mut segments) = (samples.clone(), 0);
        self.evicted.retain(Evicted::is_on_disk);
        for evicted in &self.evicted {
            let held: Vec<ContentHash> = evicted.samples().filter(|id| wanted.contains(id)).collect();
            if !held.is_empty() || !wanted.is_disjoint(&evicted.mentions) {
                evicted.delete()?;
                self.sync_folder()?;
                gone.extend(held);
                segments += 1;
                changed();
            }
        }
        let forgetting = Forgetting {
            answered: self.answered_by(&samples),
            samples,
        };
        for id in self.concerned_by(&forgetting.samples) {
            self.forget_in(id, &forgetting)?;
            segments += 1;
            changed();
        }
        let known = |id: &&ContentHash| self.index.places.contains_key(*id);
        let left = forgetting.samples.iter().filter(known).count();
        if left > 0 {
            return Err(StoreError::NotForgotten {
                samples: left,
                dir: self.config.dir.clone(),
            });
        }
        let forgotten = Forgotten {
            samples: gone.len(),
            segments,
            bytes: bytes_before.saturating_sub(self.index.bytes()),
        };
        info!(?forgotten, "samples forgotten");
        Ok(forgotten)
    }

    /// Segments with a record about one of these samples: those that hold one first, the oldest first of
    /// each.
    fn concerned_by(&self, samples: &HashSet<ContentHash>) -> Vec<u64> {
        let holds = |segment: &Segment| {
            segment
                .entries
                .iter()
                .any(|entry| samples.contains(&entry.content))
        };
        let mentions = |segment: &Segment| !samples.is_disjoint(&segment.mentions);
        let (holding, others): (Vec<_>, Vec<_>) = self.index.segments.iter().partition(|(_, it)| holds(it));
        let mentioning = others.into_iter().filter(|(_, it)| mentions(it));
        holding.into_iter().chain(mentioning).map(|(id, _)| *id).collect()
    }

    /// Questions that are answered by one of these samples where another sample of its recording stays, which
    /// may have answered them before.
    fn answered_by(&self, samples: &HashSet<ContentHash>) -> HashSet<Question> {
        let entries = (self.index.segments.values()).flat_map(|segment| segment.entries.iter());
        let staying: HashSet<RecordingHash> = entries
            .filter(|entry| !samples.contains(&entry.content))
            .map(|entry| entry.recording)
            .collect();
        let is_one = |content: ContentHash| {
            let entry = self.index.entry(content);
            samples.contains(&content) && entry.is_some_and(|entry| staying.contains(&entry.recording))
        };
        (self.index.claims.iter())
            .filter(|(_, claim)| is_one(claim.content))
            .map(|(question, _)| *question)
            .collect()
    }

    fn sync_folder(&self) -> Result<(), StoreError> {
        segment::sync_folder(&self.config.dir).map_err(StoreError::io("sync", &self.config.dir))
    }

    /// Writes a segment anew without what is to be forgotten, or removes it if nothing else is in it. On an
    /// error it is written to no more.
    fn forget_in(&mut self, id: u64, forgetting: &Forgetting) -> Result<(), StoreError> {
        let Some(segment) = self.index.segments.get_mut(&id) else {
            return Ok(());
        };
        let (task, old, entries) = (
            segment.task.clone(),
            segment.file.clone(),
            segment.entries.clone(),
        );
        let is_active = |(active, _): &(u64, _)| *active == id;
        let was_active = self.active.get(&task).is_some_and(is_active);
        if was_active && let Some((_, mut appender)) = self.active.remove(&task) {
            appender.sync()?;
        }
        let mut kept = Vec::new();
        old.for_each(|place, entry| kept.extend(forgetting.kept(place, entry)))?;
        let places = if kept.is_empty() {
            old.delete()?;
            self.index.remove(id);
            HashMap::new()
        } else {
            let Rewritten {
                appender,
                file,
                places,
            } = segment::rewrite(&old, &kept)?;
            segment.mentions.retain(|id| !forgetting.samples.contains(id));
            self.index.replace(id, file, appender.bytes(), &places);
            if was_active {
                self.active.insert(task, (id, appender));
            }
            places
        };
        let is_lost = |entry: &&IndexEntry| {
            !forgetting.samples.contains(&entry.content) && !places.contains_key(&entry.content)
        };
        let lost = entries.iter().filter(is_lost).count();
        if lost > 0 {
            warn!(path = %old.path.display(), samples = lost, "damaged samples went with those that were forgotten");
        }
        self.sync_folder()
    }
}

//! Forgetting: samples leave the files, and not only the index.
//!
//! Each segment that holds a record about a forgotten sample is written anew without it, under another name,
//! and takes the old one's place by a rename. So a crash leaves each segment as it was or as it is to be; the
//! next start removes what was unfinished. Segments that hold the samples come first: a crash behind them
//! leaves notes about samples that are gone (identities, the source of a request), which change nothing.

use std::collections::{BTreeSet, HashSet};

use tracing::info;

use super::error::StoreError;
use super::inner::Inner;
use super::outcome::Forgotten;
use super::sample::{ClaimWritten, ContentHash, Entry, Question, RecordingHash, RequestId};
use super::segment::{self, Kept, Place, Rewritten};

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
            return Some(Kept::Record(place));
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
    /// See [`SampleStore::forget`](super::SampleStore::forget).
    pub(super) fn forget(&mut self, ids: &[ContentHash]) -> Result<Forgotten, StoreError> {
        let known = |id: &&ContentHash| self.index.places.contains_key(*id);
        let samples: HashSet<ContentHash> = ids.iter().filter(known).copied().collect();
        if samples.is_empty() {
            return Ok(Forgotten::default());
        }
        let forgetting = Forgetting {
            answered: self.answered_by(&samples),
            samples,
        };
        let holding: BTreeSet<u64> = (forgetting.samples.iter())
            .filter_map(|id| self.index.places.get(id).map(|(segment, _)| *segment))
            .collect();
        let others = self.index.segments.keys().copied();
        let others: Vec<u64> = others.filter(|id| !holding.contains(id)).collect();
        let (samples_before, bytes_before) = (self.index.places.len(), self.index.bytes());
        let mut segments = 0;
        for id in holding.into_iter().chain(others) {
            segments += usize::from(self.forget_in(id, &forgetting)?);
        }
        let forgotten = Forgotten {
            samples: samples_before - self.index.places.len(),
            segments,
            bytes: bytes_before.saturating_sub(self.index.bytes()),
        };
        info!(?forgotten, "samples forgotten");
        Ok(forgotten)
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

    /// Writes a segment anew, or removes it, if it holds anything about what is to be forgotten.
    fn forget_in(&mut self, id: u64, forgetting: &Forgetting) -> Result<bool, StoreError> {
        let Some(segment) = self.index.segments.get(&id) else {
            return Ok(false);
        };
        let (task, old) = (segment.task.clone(), segment.file.clone());
        if let Some((active, appender)) = self.active.get_mut(&task)
            && *active == id
        {
            appender.sync()?;
        }
        let (mut kept, mut is_concerned) = (Vec::new(), false);
        segment::scan(&old.path, id, |place, entry| {
            let stays = forgetting.kept(place, entry);
            is_concerned |= !matches!(stays, Some(Kept::Record(_)));
            kept.extend(stays);
        })?;
        if !is_concerned {
            return Ok(false);
        }
        let was_active = self.active.get(&task).is_some_and(|(active, _)| *active == id);
        if was_active {
            self.active.remove(&task);
        }
        if kept.is_empty() {
            std::fs::remove_file(&old.path).map_err(StoreError::io("delete", &old.path))?;
            old.set_removed();
            self.index.remove(id);
        } else {
            let Rewritten {
                appender,
                file,
                places,
            } = segment::rewrite(&old, &kept)?;
            let place_of = |place: Place| places.get(&place.offset).copied();
            self.index.replace(id, file, appender.bytes(), &place_of);
            if was_active {
                self.active.insert(task, (id, appender));
            }
        }
        segment::sync_folder(&self.config.dir).map_err(StoreError::io("sync", &self.config.dir))?;
        Ok(true)
    }
}

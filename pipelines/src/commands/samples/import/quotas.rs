//! What an import costs the samples that were there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use speechverse::store::config::StoreConfig;
use speechverse::store::{ContentHash, SampleStore, Snapshot};
use speechverse::training::Example;

/// A millisecond of audio in the store: 16 samples of two bytes.
const BYTES_PER_MS: u128 = 16 * 2;

/// The store's quotas, and what it held before an import.
pub(super) struct Quotas<'c> {
    config: &'c StoreConfig,
    before: HashMap<ContentHash, Arc<str>>,
    bytes_before: u64,
}

impl<'c> Quotas<'c> {
    pub(super) fn new(store: &SampleStore, config: &'c StoreConfig) -> Self {
        let now = store.snapshot();
        Self {
            config,
            before: now.all().map(|sample| (sample.id, sample.task)).collect(),
            bytes_before: store.bytes(),
        }
    }

    /// Whether all examples fit in beside what is there; which of them are there already is not looked at.
    pub(super) fn check_room<'e>(&self, examples: impl Iterator<Item = &'e Example>) -> anyhow::Result<()> {
        const REMEDY: &str = "nothing was imported: raise the quota, import less, or let the oldest samples go with \
                              --evict (rows that the store has already count here, and take no room)";
        let (mut by_task, mut audio) = (BTreeMap::<&str, usize>::new(), Duration::ZERO);
        for example in examples {
            *by_task.entry(&example.task).or_default() += 1;
            audio += Duration::from_secs_f64(example.seconds);
        }
        let quota = self.config.task_samples_max;
        for (task, rows) in by_task {
            let there = self.before.values().filter(|of| ***of == *task).count();
            if there + rows > quota {
                bail!(
                    "task `{}` has {there} samples, and {rows} more are beyond the {quota} of \
                     `store.task_samples_max`; {REMEDY}",
                    task.escape_debug()
                );
            }
        }
        let (there, quota) = (self.bytes_before, self.config.bytes_max);
        let more = audio.as_millis() * BYTES_PER_MS;
        if u128::from(there) + more > u128::from(quota) {
            bail!(
                "the store has {there} bytes, and {more} more of audio are beyond the {quota} of `store.bytes_max`; \
                 {REMEDY}"
            );
        }
        Ok(())
    }

    /// In words, for each task, how many samples are not there any more and because of which quota.
    pub(super) fn evicted(&self, now: &Snapshot, stored: &HashMap<ContentHash, Arc<str>>) -> Vec<String> {
        let left: HashSet<ContentHash> = now.all().map(|sample| sample.id).collect();
        let mut of_tasks: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
        for (age, samples) in [&self.before, stored].into_iter().enumerate() {
            for (_, task) in samples.iter().filter(|(id, _)| !left.contains(id)) {
                of_tasks.entry(task).or_default()[age] += 1;
            }
        }
        let words = |(task, [older, imported]): (&str, [usize; 2])| {
            let of_task = self.before.values().chain(stored.values());
            let held = of_task.filter(|of| ***of == *task).count();
            let quota = match held > self.config.task_samples_max {
                true => format!("`store.task_samples_max` is {}", self.config.task_samples_max),
                false => format!("`store.bytes_max` is {}", self.config.bytes_max),
            };
            let task = task.escape_debug();
            format!(
                "{older} older samples of task `{task}` left the store, and {imported} of the imported: {quota}"
            )
        };
        of_tasks.into_iter().map(words).collect()
    }
}

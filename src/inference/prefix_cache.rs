//! `PrefixCache`: keys and values of the positions that prompts begin with alike, which is what a chat
//! template writes before the audio. They depend on the tokens and on the low-rank parts only.
//!
//! Source of the idea: prefix sharing, vLLM (Kwon et al., SOSP 2023, §4.4).

use std::sync::Arc;

use super::sequence::Sequence;
use crate::nn::kv_cache::{KvCache, KvPrefix};

/// Prefixes that are kept: one for each adapter version that answers.
const PREFIXES_MAX: usize = 4;

/// Prefixes of prompts that were read before, the latest last.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    kept: Vec<Kept>,
}

#[derive(Debug)]
struct Kept {
    lora: Option<u64>,
    ids: Arc<[i64]>,
    values: KvPrefix,
}

impl PrefixCache {
    /// Puts what is known of the only unread prompt into its empty slot, so that only the rest is left to
    /// read. Several prompts are read whole, in a pass that they share.
    pub(super) fn fill(&self, running: &[Sequence], cache: &mut KvCache) {
        let mut unread = running.iter().filter(|sequence| !sequence.started);
        let (Some(sequence), None) = (unread.next(), unread.next()) else {
            return;
        };
        let slot = sequence.slots[0];
        if cache.length(slot) == 0
            && let Some(kept) = self.find(sequence)
            && let Err(error) = cache.begin_with(slot, &kept.values)
        {
            tracing::warn!(%error, "a prompt is read from its beginning");
        }
    }

    /// Keeps the prefix of a prompt that is in the cache to its end, unless it is known.
    pub(super) fn keep(&mut self, sequence: &Sequence, cache: &KvCache) {
        let ids = &sequence.prompt.prefix;
        if ids.is_empty() || self.find(sequence).is_some() {
            return;
        }
        let count = i64::try_from(ids.len()).unwrap_or(i64::MAX);
        let Some(values) = cache.prefix(sequence.slots[0], count) else {
            return;
        };
        if self.kept.len() >= PREFIXES_MAX {
            self.kept.remove(0);
        }
        self.kept.push(Kept {
            lora: sequence.prompt.lora,
            ids: Arc::clone(ids),
            values,
        });
    }

    /// What is kept of a prompt, where the prompt goes on behind it.
    fn find(&self, sequence: &Sequence) -> Option<&Kept> {
        let prompt = &sequence.prompt;
        (self.kept.iter())
            .find(|kept| kept.lora == prompt.lora && kept.ids == prompt.prefix)
            .filter(|kept| kept.values.positions() < sequence.prompt_positions)
    }
}

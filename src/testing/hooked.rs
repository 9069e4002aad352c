//! A language model whose passes a test watches, and makes fail.

use tch::Tensor;

use crate::models::llms::llama::Llama;
use crate::models::{ChunkedPrefill, LanguageModel, LanguageModelInfo, ModelError};
use crate::nn::kv_cache::KvCache;
use crate::nn::lora::{LoraSet, LoraSite};

/// Where in a pass a [`HookedModel`] calls its hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassPoint {
    /// Before a prefill.
    BeforePrefill,
    /// After a prefill, whose keys and values are in the cache.
    AfterPrefill,
    /// Before a part of a prompt.
    BeforeChunk,
    /// After a part of a prompt, whose positions the cache has counted.
    AfterChunk,
    /// Before a decode step.
    BeforeStep,
    /// After a decode step, whose positions the cache has counted.
    AfterStep,
}

/// A pass as the hook sees it.
#[derive(Debug)]
pub struct Pass<'a> {
    /// Where it is.
    pub point: PassPoint,
    /// `[B, P, H]` of a prefill, or of a part of a prompt.
    pub embeds: Option<&'a Tensor>,
    /// Positions of each sequence: of its prompt in a prefill, in the cache before a part of a prompt or a
    /// step.
    pub lengths: &'a [i64],
    /// Slot of each sequence.
    pub slots: &'a [usize],
}

/// A Llama that calls `hook` before and after each pass. What the hook returns as an error, the pass returns;
/// a hook may also panic.
pub struct HookedModel<H> {
    /// The model.
    pub llm: Llama,
    /// Called with each pass.
    pub hook: H,
}

impl<H: Fn(&Pass<'_>) -> Result<(), ModelError> + Send> LanguageModel for HookedModel<H> {
    fn info(&self) -> LanguageModelInfo {
        self.llm.info()
    }

    fn lora_sites(&self) -> Vec<LoraSite> {
        self.llm.lora_sites()
    }

    fn embed(&self, ids: &[i64]) -> Result<Tensor, ModelError> {
        self.llm.embed(ids)
    }

    fn embedding_table(&self) -> Tensor {
        self.llm.embedding_table()
    }

    fn teacher_forced_logits(
        &self,
        prompts: &[Tensor],
        answers: &[&[i64]],
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError> {
        self.llm.teacher_forced_logits(prompts, answers, lora)
    }

    fn prompt_logits(&self, prompt: &Tensor, lora: Option<&LoraSet>) -> Result<Tensor, ModelError> {
        self.llm.prompt_logits(prompt, lora)
    }

    fn probe(&self, ids: &[i64], decoder_ids: Option<&[i64]>) -> Result<Vec<(String, Tensor)>, ModelError> {
        self.llm.probe(ids, decoder_ids)
    }

    fn new_cache(&self, slots: i64, prompt_positions: i64, answer_positions: i64) -> KvCache {
        self.llm.new_cache(slots, prompt_positions, answer_positions)
    }

    fn prefill(
        &self,
        embeds: &Tensor,
        lengths: &[i64],
        cache: &mut KvCache,
        slots: &[usize],
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError> {
        let pass = |point| Pass {
            point,
            embeds: Some(embeds),
            lengths,
            slots,
        };
        (self.hook)(&pass(PassPoint::BeforePrefill))?;
        let logits = self.llm.prefill(embeds, lengths, cache, slots, lora)?;
        (self.hook)(&pass(PassPoint::AfterPrefill))?;
        Ok(logits)
    }

    fn chunked_prefill(&self) -> Option<&dyn ChunkedPrefill> {
        Some(self)
    }

    fn step(
        &self,
        ids: &[i64],
        cache: &mut KvCache,
        slots: &[usize],
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError> {
        let lengths: Vec<i64> = slots.iter().map(|slot| cache.length(*slot)).collect();
        let pass = |point| Pass {
            point,
            embeds: None,
            lengths: &lengths,
            slots,
        };
        (self.hook)(&pass(PassPoint::BeforeStep))?;
        let logits = self.llm.step(ids, cache, slots, lora)?;
        (self.hook)(&pass(PassPoint::AfterStep))?;
        Ok(logits)
    }
}

impl<H: Fn(&Pass<'_>) -> Result<(), ModelError> + Send> ChunkedPrefill for HookedModel<H> {
    fn prefill_chunk(
        &self,
        embeds: &Tensor,
        last: i64,
        cache: &mut KvCache,
        slot: usize,
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError> {
        let rows = embeds.f_unsqueeze(0)?; // [1, P, H]
        let (lengths, slots) = ([cache.length(slot)], [slot]);
        let pass = |point| Pass {
            point,
            embeds: Some(&rows),
            lengths: &lengths,
            slots: &slots,
        };
        (self.hook)(&pass(PassPoint::BeforeChunk))?;
        let logits = self.llm.prefill_chunk(embeds, last, cache, slot, lora)?;
        (self.hook)(&pass(PassPoint::AfterChunk))?;
        Ok(logits)
    }
}

//! `Scheduler`: sequences are added, start when there are slots for them, advance together step by step, and
//! are removed when they are finished.
//!
//! One piece of code above every [`LanguageModel`]: it asks for *prefill* and *step over slots* and samples
//! tokens. A greedy or sampled answer takes one slot, a beam search as many as it has beams. An answer does
//! not depend on its neighbours, and neither does a failure: where a batch fails, by an error or by a panic,
//! its sequences are tried one by one, and only those at fault end.
//!
//! Where a CTC head has read the clip, what it reads behind an answer is fed along with the answer's last
//! token, so that one pass predicts what follows each of them: as far as the tokens chosen are those that
//! were read, they need no step of their own. Which tokens are chosen does not change, but for rounding.
//!
//! Sources of the ideas: continuous (iteration-level) batching, Orca (Yu et al., OSDI 2022); speculative
//! decoding (Leviathan, Kalman and Matias, ICML 2023), with the CTC head in place of a smaller model.

mod slots;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use tch::Tensor;

use super::Generation;
use super::prefill_plan::{PrefillPlan, Unread};
use super::prefix_cache::PrefixCache;
use super::sampling::likeliest;
use super::sequence::{Choice, Loras, PassOutput, Prompt, RequestId, Sequence};
use crate::models::{ChunkedPrefill, LanguageModel, ModelError};
use crate::nn::kv_cache::KvCache;
use crate::nn::lora::LoraSet;
use crate::telemetry::metrics;
use crate::text::TokenBytes;

/// Rows of a step up to which drafts are added: more leave the kernels for few rows.
const STEP_ROWS_MAX: usize = 24;

/// Sizes of a [`Scheduler`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerSizes {
    /// Sequences side by side; a beam search takes several.
    pub slots: usize,
    /// Positions of a slot for the prompt.
    pub prompt_positions: usize,
    /// Positions of a slot for the answer. Where the model keeps both in one buffer, one may be longer where
    /// the other is shorter.
    pub answer_positions: usize,
    /// Most positions of prompts that one step reads, padding included; 0 for no limit. A longer prompt is
    /// read in several steps, between which the running answers go on, where the model can do that; otherwise
    /// it takes a step for itself.
    pub prefill_positions_max: usize,
    /// Most tokens that a step checks ahead, of all sequences together: those that the CTC head reads behind
    /// the answers so far. 0: every step adds one token to each.
    pub draft_tokens_max: usize,
    /// Sets the cache's memory aside at the beginning. Otherwise it is made as large as what waits needs, and
    /// larger later where that is not enough.
    pub preallocate: bool,
}

/// What a step came to.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// Each sequence that advanced, with its tokens so far.
    pub advanced: Vec<(RequestId, usize)>,
    /// Each sequence that has ended: its answer, or why there is none.
    pub ended: Vec<(RequestId, Result<Generation, ModelError>)>,
}

/// Generates answers side by side. Belongs to one thread at a time.
#[derive(Debug)]
pub struct Scheduler {
    sizes: SchedulerSizes,
    /// A cache without slots: what a slot may hold at most.
    limits: KvCache,
    cache: KvCache,
    /// Positions that each slot of `cache` was made for: prompt, answer.
    capacity: (i64, i64),
    taken: Vec<bool>,
    prefixes: PrefixCache,
    /// In the order in which they were added.
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    end_ids: Vec<i64>,
    vocabulary: i64,
    width: i64,
}

/// Which of the model's passes.
#[derive(Clone, Copy)]
enum Pass<'m> {
    Prefill,
    /// So many positions of one sequence's prompt.
    Chunk(&'m dyn ChunkedPrefill, i64),
    Decode,
}

impl Scheduler {
    /// A scheduler for `model`; the same model must be given to every call.
    ///
    /// `end_ids` are the tokens that end an answer; ids from `vocabulary` on are never chosen, because a
    /// model's table may be larger than its tokenizer's vocabulary.
    pub fn new(model: &dyn LanguageModel, sizes: SchedulerSizes, end_ids: &[i64], vocabulary: i64) -> Self {
        let info = model.info();
        let capacity = match sizes.preallocate {
            true => (count(sizes.prompt_positions), count(sizes.answer_positions)),
            false => (0, 0),
        };
        let slots = if sizes.preallocate { count(sizes.slots) } else { 0 };
        Self {
            limits: model.new_cache(0, count(sizes.prompt_positions), count(sizes.answer_positions)),
            cache: model.new_cache(slots, capacity.0, capacity.1),
            capacity,
            taken: vec![false; sizes.slots],
            prefixes: PrefixCache::default(),
            sizes,
            waiting: VecDeque::new(),
            running: Vec::new(),
            end_ids: end_ids.to_vec(),
            vocabulary: vocabulary.clamp(1, info.vocab.max(1)),
            width: info.width,
        }
    }

    /// Slots that no sequence has reserved.
    pub fn free_slots(&self) -> usize {
        self.taken.iter().filter(|taken| !**taken).count()
    }

    /// Slots that hold a live sequence, or one whose prompt is to be read. A beam search reserves more than
    /// it uses at its beginning.
    pub fn slots_in_use(&self) -> usize {
        self.running.iter().map(Sequence::slots_in_use).sum()
    }

    /// Sequences that are generated.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait for slots.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a step has anything to do.
    pub fn has_unfinished(&self) -> bool {
        !(self.waiting.is_empty() && self.running.is_empty())
    }

    /// Whether `prompt` can ever fit a slot and leave positions for an answer of `tokens`, and for an allowed
    /// one where it is constrained.
    ///
    /// # Errors
    /// [`ModelError::TooManyPositions`] with the positions wanted and available; [`ModelError::Constraint`]
    /// where no allowed answer is as short as the prompt's options ask for.
    pub fn check(&self, prompt: &Prompt, tokens: usize) -> Result<(), ModelError> {
        prompt.options.validate()?;
        let mut answer = count(tokens);
        if let Some(grammar) = &prompt.grammar {
            grammar.check_tokens(prompt.options.tokens_max)?;
            answer = answer.max(self.limits.answer_positions(count(grammar.tokens_min())));
        }
        if prompt.options.slots() > self.taken.len() {
            return Err(ModelError::Decoding {
                option: "beams",
                found: prompt.options.slots().to_string(),
                expected: "no more than there are slots",
            });
        }
        match prompt.embeds.size().as_slice() {
            [positions, width] if *positions > 0 && *width == self.width => {
                Ok(self.limits.check_capacity(*positions, answer)?)
            }
            other => Err(ModelError::Shape {
                what: "a prompt",
                expected: format!("[P, {}]", self.width),
                found: other.to_vec(),
            }),
        }
    }

    /// Adds a sequence: it starts in a later step, when the slots that it takes are free. An answer whose
    /// prompt leaves fewer positions than it asks for is cut off there.
    ///
    /// # Errors
    /// [`ModelError`] when it does not fit an empty slot; it is not added then.
    pub fn add(&mut self, id: RequestId, prompt: Prompt) -> Result<(), ModelError> {
        self.go_on(id, prompt, Generation::default(), None)
    }

    /// As [`add`](Self::add), where the prompt ends with the answer's first tokens; greedy, without grammar.
    /// `token_bytes`: given where they end with a word; then the next token begins one, or ends the answer.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn go_on(
        &mut self,
        id: RequestId,
        prompt: Prompt,
        begun: Generation,
        token_bytes: Option<Arc<TokenBytes>>,
    ) -> Result<(), ModelError> {
        self.check(&prompt, 0)?;
        let most = self.limits.answer_tokens_max(prompt.embeds.size()[0]);
        let most = usize::try_from(most).unwrap_or(0).saturating_add(begun.ids.len());
        let most = prompt.options.tokens_max.min(most);
        let sequence = Sequence::new(id, prompt, most, begun, token_bytes);
        self.waiting.push_back(sequence);
        Ok(())
    }

    /// Starts what waits as far as there are slots, reads prompts in the order in which they were added, as
    /// far as [`SchedulerSizes::prefill_positions_max`] allows, and advances every other sequence by one
    /// token, or by several where they were drafted. A sequence gets its first token in the step in which its
    /// prompt is read to the end.
    ///
    /// A failure, a panic of the model included, ends only the sequences at fault; it is in the output.
    pub fn step(&mut self, model: &dyn LanguageModel, loras: Loras<'_>) -> StepOutput {
        let _no_grad = tch::no_grad_guard();
        let mut output = StepOutput::default();
        self.admit(model, &mut output);
        let is_started = |at: &usize| self.running[*at].started;
        let started: Vec<usize> = (0..self.running.len()).filter(is_started).collect();
        let chunked = model.chunked_prefill();
        let plan = self.plan_prefill(chunked.is_some());
        self.draft(&started, &plan);
        for group in self.group_by_lora(&plan.whole) {
            self.run(model, loras, &group, Pass::Prefill);
        }
        if let Some(chunked) = chunked {
            for (at, positions) in plan.chunks {
                self.run(model, loras, &[at], Pass::Chunk(chunked, positions));
            }
        }
        for group in self.group_by_lora(&started) {
            self.run(model, loras, &group, Pass::Decode);
        }
        self.remove_finished(&mut output);
        output
    }

    /// Gives a sequence up, whether it waits or runs; false where there is none of that id.
    pub fn abort(&mut self, id: RequestId) -> bool {
        if let Some(at) = self.waiting.iter().position(|sequence| sequence.id == id) {
            self.waiting.remove(at);
            return true;
        }
        let Some(at) = self.running.iter().position(|sequence| sequence.id == id) else {
            return false;
        };
        let sequence = self.running.remove(at);
        self.release(&sequence.slots);
        true
    }

    /// The answer of a running sequence so far; of a beam search, its best live hypothesis. None before its
    /// first token.
    pub fn partial(&self, id: RequestId) -> Option<Generation> {
        let sequence = self.running.iter().find(|sequence| sequence.id == id)?;
        sequence.partial()
    }

    /// Keys of the low-rank parts that unfinished sequences are pinned to.
    pub fn loras(&self) -> impl Iterator<Item = u64> {
        let all = self.running.iter().chain(&self.waiting);
        all.filter_map(|sequence| sequence.prompt.lora)
    }

    /// What the next pass over prompts is to read.
    fn plan_prefill(&mut self, chunked: bool) -> PrefillPlan {
        if chunked {
            self.prefixes.fill(&self.running, &mut self.cache);
        }
        let limit = self.sizes.prefill_positions_max;
        let positions_max = if limit == 0 { i64::MAX } else { count(limit) };
        let sequences = self.running.iter().enumerate();
        let unread = (sequences.filter(|(_, sequence)| !sequence.started)).map(|(at, sequence)| Unread {
            at,
            positions: sequence.prompt_positions,
            read: self.cache.length(sequence.slots[0]),
        });
        PrefillPlan::new(unread, positions_max, chunked)
    }

    /// Drafts tokens that the step is to check, as many for each sequence that can have some: those that
    /// run, and those whose prompts are read to the end by a part of their own.
    fn draft(&mut self, started: &[usize], plan: &PrefillPlan) {
        let unread = |(at, positions): &&(usize, i64)| {
            let sequence = &self.running[*at];
            self.cache.length(sequence.slots[0]) + positions >= sequence.prompt_positions
        };
        let ending = plan.chunks.iter().filter(unread).map(|(at, _)| at);
        let drafting = started.iter().chain(ending).copied();
        let drafting: Vec<usize> = drafting.filter(|at| self.running[*at].has_drafts()).collect();
        let rows: usize = started.iter().map(|at| self.running[*at].slots_in_use()).sum();
        let most = self
            .sizes
            .draft_tokens_max
            .min(STEP_ROWS_MAX.saturating_sub(rows));
        let (share, rest) = match drafting.len() {
            0 => return,
            count => (most / count, most % count),
        };
        for (place, at) in drafting.into_iter().enumerate() {
            let sequence = &mut self.running[at];
            let most = share + usize::from(place < rest);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| sequence.draft(most))) {
                sequence.failure = Some(ModelError::panicked("CTC head", &*panic));
            }
        }
    }

    /// Splits running sequences into groups that share one set of low-rank parts.
    fn group_by_lora(&self, sequences: &[usize]) -> Vec<Vec<usize>> {
        let mut groups: Vec<(Option<u64>, Vec<usize>)> = Vec::new();
        for sequence in sequences {
            let key = self.running[*sequence].prompt.lora;
            match groups.iter_mut().find(|(known, _)| *known == key) {
                Some((_, group)) => group.push(*sequence),
                None => groups.push((key, vec![*sequence])),
            }
        }
        groups.into_iter().map(|(_, group)| group).collect()
    }

    /// Runs one pass over a group and takes the next token of each sequence. Where the pass fails, each
    /// sequence is tried alone.
    fn run(&mut self, model: &dyn LanguageModel, loras: Loras<'_>, group: &[usize], pass: Pass<'_>) {
        let slots = group
            .iter()
            .flat_map(|at| self.running[*at].slots.iter().copied());
        let lengths: Vec<(usize, i64)> = slots.map(|slot| (slot, self.cache.length(slot))).collect();
        let found = catch_unwind(AssertUnwindSafe(|| self.forward(model, loras, group, pass)))
            .unwrap_or_else(|panic| Err(ModelError::panicked("language model", &*panic)));
        let error = match found {
            Ok(Some(output)) => return metrics::token_choice(|| self.advance(group, &output)),
            Ok(None) => return,
            Err(error) => error,
        };
        // A pass that failed halfway may have counted its positions already.
        for (slot, length) in lengths {
            match pass {
                Pass::Prefill => self.cache.clear(slot),
                Pass::Chunk(..) | Pass::Decode => self.cache.truncate(slot, length),
            }
        }
        match group {
            [one] => self.running[*one].failure = Some(error),
            _ => {
                tracing::warn!(%error, sequences = group.len(), "a batch failed, its sequences are tried one by one");
                for one in group {
                    self.run(model, loras, &[*one], pass);
                }
            }
        }
    }

    /// One pass; none where it has not read its prompt to the end.
    fn forward(
        &mut self,
        model: &dyn LanguageModel,
        loras: Loras<'_>,
        group: &[usize],
        pass: Pass<'_>,
    ) -> Result<Option<PassOutput>, ModelError> {
        let lora = self.lora_of(group[0], loras)?;
        let sequences = || group.iter().map(|at| &self.running[*at]);
        let plain_greedy = sequences().any(Sequence::is_plain_greedy);
        let (slots, logits) = match pass {
            Pass::Prefill => {
                let prompts: Vec<&Tensor> = sequences().map(|sequence| &sequence.prompt.embeds).collect();
                let lengths: Vec<i64> = sequences().map(|sequence| sequence.prompt_positions).collect();
                let slots: Vec<usize> = sequences().map(|sequence| sequence.slots[0]).collect();
                let embeds = Tensor::f_pad_sequence(&prompts, true, 0.0, "right")?; // [B, P, H]
                let began = Instant::now();
                let logits = model.prefill(&embeds, &lengths, &mut self.cache, &slots, lora)?;
                metrics::network_pass("prefill", began.elapsed());
                (slots, logits)
            }
            Pass::Chunk(chunked, positions) => {
                let sequence = &self.running[group[0]];
                let slot = sequence.slots[0];
                let read = self.cache.length(slot);
                let part = sequence.prompt.embeds.f_narrow(0, read, positions)?; // [P, H]
                let drafted = sequence.drafted();
                let embeds = match drafted {
                    [] => part,
                    ids => Tensor::f_cat(&[part, model.embed(ids)?], 0)?,
                };
                let predicted = 1 + drafted.len();
                let began = Instant::now();
                let logits = chunked.prefill_chunk(&embeds, count(predicted), &mut self.cache, slot, lora)?;
                metrics::network_pass("prefill", began.elapsed());
                if self.cache.length(slot) < sequence.prompt_positions {
                    return Ok(None);
                }
                (vec![slot; predicted], logits)
            }
            Pass::Decode => {
                // Neighbouring slots in order spare the cache copies.
                let mut rows: Vec<(usize, i64)> = sequences().flat_map(Sequence::feeds).collect();
                rows.sort_by_key(|(slot, _)| *slot);
                let (slots, ids): (Vec<usize>, Vec<i64>) = rows.into_iter().unzip();
                let began = Instant::now();
                let logits = model.step(&ids, &mut self.cache, &slots, lora)?;
                metrics::network_pass("step", began.elapsed());
                (slots, logits)
            }
        };
        let likeliest = plain_greedy.then(|| likeliest(&logits, self.vocabulary));
        Ok(Some(PassOutput {
            likeliest: likeliest.transpose()?.unwrap_or_default(),
            slots,
            logits,
        }))
    }

    fn lora_of<'l>(&self, sequence: usize, loras: Loras<'l>) -> Result<Option<&'l LoraSet>, ModelError> {
        let Some(key) = self.running[sequence].prompt.lora else {
            return Ok(None);
        };
        let found = loras.iter().find(|(known, _)| *known == key);
        found.map(|(_, set)| Some(*set)).ok_or(ModelError::NoLora { key })
    }

    /// Takes the next tokens of each sequence of a group; what fails here concerns one sequence alone.
    fn advance(&mut self, group: &[usize], output: &PassOutput) {
        let choice = Choice {
            vocabulary: self.vocabulary,
            end_ids: &self.end_ids,
        };
        for at in group {
            let sequence = &mut self.running[*at];
            let (cache, prefixes) = (&mut self.cache, &mut self.prefixes);
            let advanced = catch_unwind(AssertUnwindSafe(|| {
                if !sequence.started {
                    prefixes.keep(sequence, cache);
                    sequence.start();
                }
                sequence.advance(output, cache, choice)
            }))
            .unwrap_or_else(|panic| Err(ModelError::panicked("sampler", &*panic)));
            match advanced {
                Ok((drafted, taken)) => metrics::tokens_chosen(drafted, taken),
                Err(error) => sequence.failure = Some(error),
            }
        }
    }

    /// Takes out the sequences that are complete or have failed.
    fn remove_finished(&mut self, output: &mut StepOutput) {
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            if sequence.failure.is_none() {
                if sequence.started {
                    output.advanced.push((sequence.id, sequence.tokens()));
                }
                if !sequence.started || !sequence.is_complete() {
                    index += 1;
                    continue;
                }
            }
            let mut sequence = self.running.remove(index);
            self.release(&sequence.slots);
            let id = sequence.id;
            let found = match sequence.failure.take() {
                Some(error) => Err(error),
                None => Ok(sequence.finish()),
            };
            output.ended.push((id, found));
        }
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;

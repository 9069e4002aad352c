//! Keys and values of past positions, per layer and slot, in memory set aside beforehand.
//!
//! A slot is one sequence's place. Slots fill, grow and empty independently, so sequences join and leave a
//! running batch. A decoder-only model keeps prompt and answer in one buffer; an encoder–decoder has a second
//! buffer, for what its cross-attention reads: the prompt's keys and values, written once. On the CPU keys
//! and values stay f32 whatever the model computes in: attention of a single query is several times slower
//! there in bf16.

mod buffer;

use tch::{Device, Kind, Tensor};

pub use buffer::{ChunkPlan, KvCacheShape, StepPlan};
use buffer::{KvBuffer, View};

use super::NnError;
use super::cpu_kernels;

/// Keys and values of past positions.
#[derive(Debug)]
pub struct KvCache {
    /// Where steps append.
    own: KvBuffer,
    /// Encoder–decoders: what cross-attention reads.
    prompt: Option<KvBuffer>,
    /// How many sequences have begun.
    begun: u64,
}

/// Keys and values of the first positions of a prompt, outside the cache.
#[derive(Debug)]
pub struct KvPrefix {
    count: i64,
    /// `[N_kv, count, head_dim]` each, by layer.
    layers: Vec<(Tensor, Tensor)>,
}

impl KvPrefix {
    /// How many positions it is.
    pub fn positions(&self) -> i64 {
        self.count
    }
}

impl KvCache {
    /// An empty cache in `dtype` on `device`.
    pub fn new(shape: KvCacheShape, dtype: Kind, device: Device) -> Self {
        Self {
            own: KvBuffer::new(shape, shape.capacity, dtype, device),
            prompt: (shape.prompt_capacity).map(|capacity| KvBuffer::new(shape, capacity, dtype, device)),
            begun: 0,
        }
    }

    /// How many sequences have buffer.
    pub fn slots(&self) -> usize {
        self.own.lengths.len()
    }

    /// The dtype that keys and values are kept in.
    pub fn kind(&self) -> Kind {
        (self.own.layers.first()).map_or(Kind::Float, |(keys, _)| keys.kind())
    }

    /// Positions of each slot; an encoder–decoder's prompt is not among them.
    pub fn capacity(&self) -> i64 {
        self.own.capacity
    }

    /// Positions that `slot` holds, an encoder–decoder's prompt not counted; 0 for a slot that does not
    /// exist.
    pub fn length(&self, slot: usize) -> i64 {
        self.own.lengths.get(slot).copied().unwrap_or(0)
    }

    /// Positions that a slot can still take.
    pub fn remaining(&self, slot: usize) -> i64 {
        self.own.capacity - self.length(slot)
    }

    /// Most tokens of an answer behind a prompt of so many positions.
    pub fn answer_tokens_max(&self, prompt_positions: i64) -> i64 {
        match &self.prompt {
            // The first token is predicted by the prompt, the last one is not fed back.
            None => (self.own.capacity - prompt_positions + 1).max(0),
            // The first token is predicted by the start token, which takes a position.
            Some(_) => self.own.capacity,
        }
    }

    /// Positions that an answer of so many tokens takes.
    pub fn answer_positions(&self, tokens: i64) -> i64 {
        match &self.prompt {
            None => (tokens - 1).max(0),
            Some(_) => tokens,
        }
    }

    /// Whether a prompt of so many positions and an answer of so many tokens fit an empty slot.
    ///
    /// # Errors
    /// [`NnError::TooManyPositions`] with what is wanted and what there is.
    pub fn check_capacity(&self, prompt_positions: i64, answer_positions: i64) -> Result<(), NnError> {
        match &self.prompt {
            None => self.own.check(prompt_positions.saturating_add(answer_positions)),
            Some(prompt) => {
                prompt.check(prompt_positions)?;
                self.own.check(answer_positions)
            }
        }
    }

    /// Forgets a slot's sequence; the others do not notice.
    pub fn clear(&mut self, slot: usize) {
        for buffer in [Some(&mut self.own), self.prompt.as_mut()].into_iter().flatten() {
            if let Some(length) = buffer.lengths.get_mut(slot) {
                *length = 0;
            }
        }
    }

    /// Forgets what a slot holds from `length` on, an encoder–decoder's prompt not counted: a step that
    /// failed halfway, or tokens that were drafted and not taken.
    pub fn truncate(&mut self, slot: usize, length: i64) {
        if let Some(own) = self.own.lengths.get_mut(slot) {
            *own = length.min(*own);
        }
    }

    /// Memory of keys and values, bytes.
    pub fn bytes(&self) -> usize {
        self.own.bytes() + self.prompt.as_ref().map_or(0, KvBuffer::bytes)
    }

    /// Slots must exist and, where whole sequences begin or move, be named once.
    fn check_slots(&self, slots: &[usize], once: bool) -> Result<(), NnError> {
        for (row, slot) in slots.iter().enumerate() {
            if *slot >= self.slots() || (once && slots[..row].contains(slot)) {
                return Err(NnError::Shape {
                    what: "the list of cache slots",
                    expected: format!(
                        "slots below {}{}",
                        self.slots(),
                        if once { ", each once" } else { "" }
                    ),
                    found: slots.iter().map(|slot| *slot as i64).collect(),
                });
            }
        }
        Ok(())
    }

    /// Makes slots ready for new sequences, whose prompts have `lengths` positions: whatever was there is
    /// forgotten.
    ///
    /// # Errors
    /// [`NnError::Shape`] for a slot that does not exist or is named twice, [`NnError::TooManyPositions`]
    /// for a prompt that does not fit; nothing has changed then.
    pub fn begin(&mut self, slots: &[usize], lengths: &[i64]) -> Result<(), NnError> {
        self.check_slots(slots, true)?;
        for length in lengths {
            self.prompt.as_ref().unwrap_or(&self.own).check(*length)?;
        }
        for (slot, length) in slots.iter().zip(lengths) {
            self.begun += 1;
            match &mut self.prompt {
                None => self.own.begin(*slot, *length, self.begun),
                Some(prompt) => {
                    prompt.begin(*slot, *length, self.begun);
                    self.own.begin(*slot, 0, self.begun);
                }
            }
        }
        Ok(())
    }

    /// Stores a whole prompt of one layer, after [`KvCache::begin`].
    ///
    /// # Shapes
    /// `keys`, `values` `[B, N_kv, P, head_dim]`; of row `b` the first positions are kept, as many as
    /// `slots[b]` has.
    pub fn store(&mut self, layer: usize, slots: &[usize], keys: &Tensor, values: &Tensor) {
        let buffer = self.prompt.as_ref().unwrap_or(&self.own);
        buffer.store(layer, slots, keys, values);
    }

    /// Plans the next `count` positions of a slot's prompt, behind those that it holds; in an empty slot a
    /// new sequence begins, and whatever was there is forgotten. They count from [`KvCache::advance_chunk`]
    /// on.
    ///
    /// # Errors
    /// [`NnError::Shape`] for a slot that does not exist, for no position, and where prompts have a buffer of
    /// their own; [`NnError::TooManyPositions`] for more than the slot can take. Nothing has changed then.
    pub fn plan_chunk(&mut self, slot: usize, count: i64) -> Result<ChunkPlan, NnError> {
        self.check_slots(&[slot], true)?;
        if count < 1 || self.prompt.is_some() {
            return Err(NnError::Shape {
                what: "a part of a prompt",
                expected: "[P] with P > 0, in a cache that keeps prompt and answer in one buffer".to_owned(),
                found: vec![count],
            });
        }
        let first = self.own.lengths[slot];
        let end = first.saturating_add(count);
        self.own.check(end)?;
        if first == 0 {
            self.begun += 1;
            self.own.begin(slot, 0, self.begun);
        }
        // From here on, so that what a failed pass leaves behind is wiped before the slot's next sequence.
        self.own.written[slot] = self.own.written[slot].max(end);
        Ok(ChunkPlan { slot, first, end })
    }

    /// Writes one layer's keys and values of a chunk, `[1, N_kv, P, head_dim]`.
    pub fn store_chunk(&mut self, layer: usize, plan: &ChunkPlan, keys: &Tensor, values: &Tensor) {
        self.own.store_chunk(layer, plan, keys, values);
    }

    /// All keys and values of one layer that a chunk may look at, its own positions last:
    /// `[1, N_kv, plan.positions().end, head_dim]` each, sharing storage; after
    /// [`store_chunk`](Self::store_chunk).
    pub fn seen_by_chunk(&self, layer: usize, plan: &ChunkPlan) -> (Tensor, Tensor) {
        let (keys, values) = &self.own.layers[layer];
        let seen = |own: &Tensor| own.narrow(0, plan.slot as i64, 1).narrow(2, 0, plan.end);
        (seen(keys), seen(values))
    }

    /// Counts the positions of a chunk whose pass has finished.
    pub fn advance_chunk(&mut self, plan: &ChunkPlan) {
        self.own.lengths[plan.slot] = plan.end;
    }

    /// A copy of the first `count` positions of a slot; none where it does not hold as many, or where prompts
    /// have a buffer of their own.
    pub fn prefix(&self, slot: usize, count: i64) -> Option<KvPrefix> {
        let holds = count > 0 && self.prompt.is_none() && self.length(slot) >= count;
        holds.then(|| KvPrefix {
            count,
            layers: self.own.copied(slot, count),
        })
    }

    /// Begins a new sequence in `slot` whose first positions are `prefix`, of a cache of the same model;
    /// whatever was there is forgotten.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn begin_with(&mut self, slot: usize, prefix: &KvPrefix) -> Result<(), NnError> {
        self.begin(&[slot], &[prefix.count])?;
        self.own.write_first(slot, &prefix.layers);
        Ok(())
    }

    /// Slot `slots[i]` takes over the sequence that `sources[i]` held before the call, prompt included (beam
    /// search).
    ///
    /// A source may be named several times. A prompt that is there already, because both slots' sequences
    /// began as one, is not copied again.
    ///
    /// # Errors
    /// [`NnError::Shape`] for a slot that does not exist, for a target that is named twice, and when there is
    /// not one source per target; nothing has changed then.
    pub fn reorder(&mut self, slots: &[usize], sources: &[usize]) -> Result<(), NnError> {
        self.check_slots(slots, true)?;
        self.check_slots(sources, false)?;
        if slots.len() != sources.len() {
            return Err(NnError::Shape {
                what: "the list of source slots",
                expected: format!("[{}]", slots.len()),
                found: vec![sources.len() as i64],
            });
        }
        let moves: Vec<(usize, usize)> = (slots.iter().copied())
            .zip(sources.iter().copied())
            .filter(|(to, from)| to != from)
            .collect();
        if let Some(prompt) = &mut self.prompt {
            let others: Vec<(usize, usize)> = (moves.iter().copied())
                .filter(|(to, from)| {
                    prompt.sequence[*to] != prompt.sequence[*from]
                        || prompt.lengths[*to] != prompt.lengths[*from]
                })
                .collect();
            prompt.take_over(&others);
        }
        self.own.take_over(&moves);
        Ok(())
    }

    /// Plans a step that appends one position to each of `slots`; nothing changes until [`KvCache::advance`].
    /// To a slot that is named several times it appends as many, of which each sees those before it.
    ///
    /// # Errors
    /// [`NnError::Shape`] for a slot that does not exist; [`NnError::TooManyPositions`] for one that is full.
    pub fn plan_step(&self, slots: &[usize]) -> Result<StepPlan, NnError> {
        self.check_slots(slots, false)?;
        let before = |row: usize| slots[..row].iter().filter(|slot| **slot == slots[row]).count();
        let positions: Vec<i64> = (slots.iter().enumerate())
            .map(|(row, slot)| self.own.lengths[*slot] + before(row) as i64)
            .collect();
        let lengths: Vec<i64> = positions.iter().map(|position| position + 1).collect();
        for length in &lengths {
            self.own.check(*length)?;
        }
        let index: Vec<i64> = slots.iter().map(|slot| *slot as i64).collect();
        let neighbours = index.windows(2).all(|pair| pair[1] == pair[0] + 1);
        let device = self.own.device();
        let prompt = self.prompt.as_ref().map(|prompt| {
            let lengths: Vec<i64> = slots.iter().map(|slot| prompt.lengths[*slot]).collect();
            View::new(lengths, device)
        });
        Ok(StepPlan {
            slots: slots.to_vec(),
            slot_index: Tensor::from_slice(&index).to_device(device),
            position_index: Tensor::from_slice(&positions).to_device(device),
            positions,
            run: index.first().copied().filter(|_| neighbours),
            own: View::new(lengths, device),
            prompt,
        })
    }

    /// Writes one layer's new keys and values, `[B, N_kv, 1, head_dim]`.
    pub fn append(&mut self, layer: usize, plan: &StepPlan, keys: &Tensor, values: &Tensor) {
        // From here on, so that what a failed pass leaves behind is wiped before the slot's next sequence.
        for (slot, position) in plan.slots.iter().zip(&plan.positions) {
            self.own.written[*slot] = self.own.written[*slot].max(position + 1);
        }
        let (own_keys, own_values) = &mut self.own.layers[layer];
        for (own, new) in [(own_keys, keys), (own_values, values)] {
            // SAFETY: the buffer belongs to this cache alone, which is borrowed exclusively; the views of it
            // that attention makes do not outlive their call, and a cache lives on one thread at a time.
            if unsafe { cpu_kernels::append_kv(own, &plan.slots, &plan.positions, new) } {
                continue;
            }
            let place = [Some(&plan.slot_index), None, Some(&plan.position_index)];
            let _ = own.index_put_(&place, &new.squeeze_dim(2).to_kind(own.kind()), false);
        }
    }

    /// Attention of one new position of each row over its slot's positions, itself included: after
    /// [`append`](Self::append).
    ///
    /// # Shapes
    /// `queries` `[B, N, 1, head_dim]` → `[B, 1, N·head_dim]`, in the cache's dtype. `bias`, added to the
    /// scores, broadcasts to `[B, N, 1, longest]` and hides what a row may not see ([`StepPlan::mask`]).
    pub fn attend(
        &self,
        layer: usize,
        plan: &StepPlan,
        queries: &Tensor,
        scale: f64,
        bias: Option<&Tensor>,
    ) -> Tensor {
        self.own.attend(layer, plan, &plan.own, queries, scale, bias)
    }

    /// Encoder–decoders: the same over the prompts; none where the prompt has no buffer of its own.
    pub fn attend_prompt(
        &self,
        layer: usize,
        plan: &StepPlan,
        queries: &Tensor,
        scale: f64,
    ) -> Option<Tensor> {
        let (buffer, view) = (self.prompt.as_ref()?, plan.prompt.as_ref()?);
        Some(buffer.attend(layer, plan, view, queries, scale, None))
    }

    /// All that a step sees of one layer, `[B, N_kv, longest, head_dim]` each.
    #[cfg(test)]
    pub(crate) fn seen(&self, layer: usize, plan: &StepPlan) -> (Tensor, Tensor) {
        self.own.seen(layer, plan, &plan.own)
    }

    /// Counts the positions that a finished step has appended.
    pub fn advance(&mut self, plan: &StepPlan) {
        for slot in &plan.slots {
            self.own.lengths[*slot] += 1;
        }
    }
}

#[cfg(test)]
mod tests;

//! Keys and values of past positions, per layer and slot, in memory set aside beforehand.
//!
//! A slot is one sequence's place. Slots fill, grow and empty independently, so sequences join and leave a
//! running batch. A decoder-only model keeps prompt and answer in one buffer; an encoder–decoder has a second
//! buffer, for what its cross-attention reads: the prompt's keys and values, written once. On the CPU keys
//! and values stay f32 whatever the model computes in: attention of a single query is several times slower
//! there in bf16.

use tch::{Device, Kind, Tensor};

use super::NnError;
use super::cpu_kernels::{self, KvView};

/// Sizes of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCacheShape {
    /// Transformer layers.
    pub layers: i64,
    /// Sequences that have buffer at the same time.
    pub slots: i64,
    /// Key and value heads.
    pub heads: i64,
    /// Positions of each slot.
    pub capacity: i64,
    /// Encoder–decoders: positions of each slot's prompt, in a buffer of its own. Absent: the prompt stands
    /// before the answer in the one buffer.
    pub prompt_capacity: Option<i64>,
    /// Width of one head.
    pub head_dim: i64,
}

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

/// One place for each slot, in every layer.
#[derive(Debug)]
struct KvBuffer {
    /// Keys and values of each layer, both `[slots, N_kv, capacity, head_dim]`.
    layers: Vec<(Tensor, Tensor)>,
    /// Positions that each slot holds.
    lengths: Vec<i64>,
    /// Positions that each slot has ever held since they were last zero.
    written: Vec<i64>,
    /// Which sequence each slot holds: slots of the same number hold the same prompt.
    sequence: Vec<u64>,
    capacity: i64,
}

/// Where one step's new positions go and which past ones they see; the same for all layers.
#[derive(Debug)]
pub struct StepPlan {
    slots: Vec<usize>,
    /// `[B]` each.
    slot_index: Tensor,
    position_index: Tensor,
    positions: Vec<i64>,
    /// First slot, where the slots are neighbours in order: then nothing is copied.
    run: Option<i64>,
    /// What the step sees of the slots' own positions, the new one included.
    own: View,
    /// Encoder–decoders: what it sees of the prompts.
    prompt: Option<View>,
}

/// The part of a buffer that a step looks at.
#[derive(Debug)]
struct View {
    /// Positions that each row may look at.
    lengths: Vec<i64>,
    /// Longest sequence.
    longest: i64,
    /// `[B, 1, 1, longest]`, true where a row may look; none where all may look everywhere.
    mask: Option<Tensor>,
}

impl View {
    fn new(lengths: Vec<i64>, device: Device) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mask = lengths.iter().any(|length| *length < longest).then(|| {
            let lengths = Tensor::from_slice(&lengths).to_device(device).unsqueeze(1);
            Tensor::arange(longest, (Kind::Int64, device))
                .less_tensor(&lengths) // [B, longest]
                .view([-1, 1, 1, longest])
        });
        Self {
            lengths,
            longest,
            mask,
        }
    }
}

impl KvBuffer {
    fn new(shape: KvCacheShape, capacity: i64, dtype: Kind, device: Device) -> Self {
        let size = [shape.slots, shape.heads, capacity, shape.head_dim];
        let zeros = || Tensor::zeros(size, (dtype, device));
        let slots = usize::try_from(shape.slots).unwrap_or(0);
        Self {
            layers: (0..shape.layers).map(|_| (zeros(), zeros())).collect(),
            lengths: vec![0; slots],
            written: vec![0; slots],
            sequence: vec![0; slots],
            capacity,
        }
    }

    fn device(&self) -> Device {
        self.layers.first().map_or(Device::Cpu, |(keys, _)| keys.device())
    }

    fn bytes(&self) -> usize {
        let one = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        (self.layers.iter())
            .map(|(keys, values)| one(keys) + one(values))
            .sum()
    }

    fn check(&self, positions: i64) -> Result<(), NnError> {
        if positions > self.capacity {
            return Err(NnError::TooManyPositions {
                positions,
                positions_max: self.capacity,
            });
        }
        Ok(())
    }

    /// A slot now holds the first `length` positions of a sequence; what is behind them is zero.
    fn begin(&mut self, slot: usize, length: i64, sequence: u64) {
        // What a former sequence left behind is masked, but a value that is not finite would pass the mask.
        let stale = self.written[slot] - length;
        if stale > 0 {
            for (keys, values) in &self.layers {
                for side in [keys, values] {
                    let _ = side.get(slot as i64).narrow(1, length, stale).zero_();
                }
            }
        }
        self.lengths[slot] = length;
        self.written[slot] = length;
        self.sequence[slot] = sequence;
    }

    fn store(&self, layer: usize, slots: &[usize], keys: &Tensor, values: &Tensor) {
        let (own_keys, own_values) = &self.layers[layer];
        for (row, slot) in slots.iter().enumerate() {
            let length = self.lengths[*slot];
            for (own, new) in [(own_keys, keys), (own_values, values)] {
                own.get(*slot as i64)
                    .narrow(1, 0, length)
                    .copy_(&new.get(row as i64).narrow(1, 0, length));
            }
        }
    }

    /// The positions of `plan`'s slots that `view` shows, `[B, N_kv, longest, head_dim]` each.
    fn seen(&self, layer: usize, plan: &StepPlan, view: &View) -> (Tensor, Tensor) {
        let (keys, values) = &self.layers[layer];
        let rows = plan.slots.len() as i64;
        let seen = |own: &Tensor| match plan.run {
            Some(first) => own.narrow(0, first, rows).narrow(2, 0, view.longest),
            None => own.narrow(2, 0, view.longest).index_select(0, &plan.slot_index),
        };
        (seen(keys), seen(values))
    }

    fn attend(
        &self,
        layer: usize,
        plan: &StepPlan,
        view: &View,
        queries: &Tensor,
        scale: f64,
        bias: Option<&Tensor>,
    ) -> Tensor {
        let (keys, values) = &self.layers[layer];
        let seen = KvView {
            keys,
            values,
            slots: &plan.slots,
            lengths: &view.lengths,
        };
        cpu_kernels::decode_attention(queries, seen, scale, bias).unwrap_or_else(|| {
            let (keys, values) = self.seen(layer, plan, view);
            let size = queries.size();
            let (batch, heads, width) = (size[0], size[1], size[3]);
            let (kv_heads, dtype) = (keys.size()[1], keys.kind());
            // The query heads that share a key head stand where positions would: nothing has to be repeated.
            let grouped = [batch, kv_heads, heads / kv_heads, width];
            // A bias has one row per query head, a mask one for all.
            let bias = bias.map(|bias| {
                bias.to_kind(dtype).expand([batch, heads, 1, -1], false).reshape([
                    batch,
                    kv_heads,
                    heads / kv_heads,
                    -1,
                ])
            });
            let attended = Tensor::scaled_dot_product_attention(
                &queries.to_kind(dtype).reshape(grouped),
                &keys,
                &values,
                bias.as_ref().or(view.mask.as_ref()),
                0.0,
                false,
                Some(scale),
                false,
            ); // [B, N_kv, group, head_dim]
            attended.reshape([batch, 1, heads * width])
        })
    }

    /// Slot `to` takes over what slot `from` held before, for all `(to, from)` at once.
    fn take_over(&mut self, pairs: &[(usize, usize)]) {
        let Some(longest) = pairs.iter().map(|(_, from)| self.lengths[*from]).max() else {
            return;
        };
        let device = self.device();
        let index = |side: fn(&(usize, usize)) -> usize| {
            let slots: Vec<i64> = pairs.iter().map(|pair| side(pair) as i64).collect();
            Tensor::from_slice(&slots).to_device(device)
        };
        let (to, from) = (index(|pair| pair.0), index(|pair| pair.1));
        for (keys, values) in &self.layers {
            for side in [keys, values] {
                let mut held = side.narrow(2, 0, longest); // [slots, N_kv, longest, head_dim]
                let _ = held.index_copy_(0, &to, &held.index_select(0, &from));
            }
        }
        let new: Vec<(usize, i64, u64)> = (pairs.iter())
            .map(|(to, from)| (*to, self.lengths[*from], self.sequence[*from]))
            .collect();
        for (slot, length, sequence) in new {
            self.written[slot] = self.written[slot].max(longest);
            self.begin(slot, length, sequence);
        }
    }
}

impl KvCache {
    /// An empty cache in `kind` on `device`.
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

    /// The kind that keys and values are kept in.
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
    /// failed halfway.
    pub fn truncate(&mut self, slot: usize, length: i64) {
        if let Some(own) = self.own.lengths.get_mut(slot) {
            *own = length.min(*own);
        }
    }

    /// Memory of keys and values, bytes.
    pub fn bytes(&self) -> usize {
        self.own.bytes() + self.prompt.as_ref().map_or(0, KvBuffer::bytes)
    }

    /// Slots must exist and, where they are written, be named once.
    fn check_slots(&self, slots: &[usize], once: bool) -> Result<(), NnError> {
        for (row, slot) in slots.iter().enumerate() {
            if *slot >= self.slots() || (once && slots[..row].contains(slot)) {
                return Err(NnError::Shape {
                    what: "the list of cache slots",
                    expected: format!("different slots below {}", self.slots()),
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
    ///
    /// # Errors
    /// [`NnError::Shape`] for a slot that does not exist or is named twice; [`NnError::TooManyPositions`]
    /// for one that is full.
    pub fn plan_step(&self, slots: &[usize]) -> Result<StepPlan, NnError> {
        self.check_slots(slots, true)?;
        let positions: Vec<i64> = slots.iter().map(|slot| self.own.lengths[*slot]).collect();
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
    /// `queries` `[B, N, 1, head_dim]` → `[B, 1, N·head_dim]`, in the cache's kind. `bias`, added to the
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
            self.own.written[*slot] = self.own.written[*slot].max(self.own.lengths[*slot]);
        }
    }
}

impl StepPlan {
    /// The new positions, `[B]`.
    pub fn positions(&self) -> &Tensor {
        &self.position_index
    }

    /// Positions of the longest sequence, the new one included.
    pub fn longest(&self) -> i64 {
        self.own.longest
    }

    /// Which past positions each row may look at, `[B, 1, 1, longest]`; none where all may look everywhere.
    pub fn mask(&self) -> Option<&Tensor> {
        self.own.mask.as_ref()
    }
}

#[cfg(test)]
mod tests;

//! The memory of a cache: keys and values of every slot, and how a step looks at them.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::nn::NnError;
use crate::nn::cpu_kernels::{self, KvView};

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

/// One place for each slot, in every layer.
#[derive(Debug)]
pub(super) struct KvBuffer {
    /// Keys and values of each layer, both `[slots, N_kv, capacity, head_dim]`.
    pub(super) layers: Vec<(Tensor, Tensor)>,
    /// Positions that each slot holds.
    pub(super) lengths: Vec<i64>,
    /// Positions that each slot has ever held since they were last zero.
    pub(super) written: Vec<i64>,
    /// Which sequence each slot holds: slots of the same number hold the same prompt.
    pub(super) sequence: Vec<u64>,
    pub(super) capacity: i64,
}

/// Where one step's new positions go and which past ones they see; the same for all layers.
#[derive(Debug)]
pub struct StepPlan {
    pub(super) slots: Vec<usize>,
    /// `[B]` each.
    pub(super) slot_index: Tensor,
    pub(super) position_index: Tensor,
    pub(super) positions: Vec<i64>,
    /// First slot, where the slots are neighbours in order: then nothing is copied.
    pub(super) run: Option<i64>,
    /// What the step sees of the slots' own positions, the new one included.
    pub(super) own: View,
    /// Encoder–decoders: what it sees of the prompts.
    pub(super) prompt: Option<View>,
}

/// Where the next positions of one slot go; the same for all layers.
#[derive(Debug)]
pub struct ChunkPlan {
    pub(super) slot: usize,
    /// Positions that the slot holds already: the place of the first new one.
    pub(super) first: i64,
    /// Positions that it holds with the new ones.
    pub(super) end: i64,
}

/// The part of a buffer that a step looks at.
#[derive(Debug)]
pub(super) struct View {
    /// Positions that each row may look at.
    pub(super) lengths: Vec<i64>,
    /// Longest sequence.
    pub(super) longest: i64,
    /// `[B, 1, 1, longest]`, true where a row may look; none where all may look everywhere.
    pub(super) mask: Option<Tensor>,
}

impl View {
    pub(super) fn new(lengths: Vec<i64>, device: Device) -> Self {
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
    pub(super) fn new(shape: KvCacheShape, capacity: i64, dtype: Kind, device: Device) -> Self {
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

    pub(super) fn device(&self) -> Device {
        self.layers.first().map_or(Device::Cpu, |(keys, _)| keys.device())
    }

    pub(super) fn bytes(&self) -> usize {
        let one = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        (self.layers.iter())
            .map(|(keys, values)| one(keys) + one(values))
            .sum()
    }

    pub(super) fn check(&self, positions: i64) -> Result<(), NnError> {
        if positions > self.capacity {
            return Err(NnError::TooManyPositions {
                positions,
                positions_max: self.capacity,
            });
        }
        Ok(())
    }

    /// A slot now holds the first `length` positions of a sequence; what is behind them is zero.
    pub(super) fn begin(&mut self, slot: usize, length: i64, sequence: u64) {
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

    pub(super) fn store(&self, layer: usize, slots: &[usize], keys: &Tensor, values: &Tensor) {
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

    pub(super) fn store_chunk(&self, layer: usize, plan: &ChunkPlan, keys: &Tensor, values: &Tensor) {
        let (own_keys, own_values) = &self.layers[layer];
        for (own, new) in [(own_keys, keys), (own_values, values)] {
            own.get(plan.slot as i64)
                .narrow(1, plan.first, plan.end - plan.first)
                .copy_(&new.get(0));
        }
    }

    /// A copy of the first `count` positions of a slot: `[N_kv, count, head_dim]` each, by layer.
    pub(super) fn copied(&self, slot: usize, count: i64) -> Vec<(Tensor, Tensor)> {
        let copy = |own: &Tensor| own.get(slot as i64).narrow(1, 0, count).copy();
        (self.layers.iter())
            .map(|(keys, values)| (copy(keys), copy(values)))
            .collect()
    }

    /// Writes the positions that `begin` has counted: `[N_kv, length, head_dim]` each, by layer.
    pub(super) fn write_first(&self, slot: usize, layers: &[(Tensor, Tensor)]) {
        for ((own_keys, own_values), (keys, values)) in self.layers.iter().zip(layers) {
            for (own, new) in [(own_keys, keys), (own_values, values)] {
                own.get(slot as i64).narrow(1, 0, self.lengths[slot]).copy_(new);
            }
        }
    }

    /// The positions of `plan`'s slots that `view` shows, `[B, N_kv, longest, head_dim]` each.
    pub(super) fn seen(&self, layer: usize, plan: &StepPlan, view: &View) -> (Tensor, Tensor) {
        let (keys, values) = &self.layers[layer];
        let rows = plan.slots.len() as i64;
        let seen = |own: &Tensor| match plan.run {
            Some(first) => own.narrow(0, first, rows).narrow(2, 0, view.longest),
            None => own.narrow(2, 0, view.longest).index_select(0, &plan.slot_index),
        };
        (seen(keys), seen(values))
    }

    pub(super) fn attend(
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
    pub(super) fn take_over(&mut self, pairs: &[(usize, usize)]) {
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

impl ChunkPlan {
    /// The new positions: place of the first one, and of the one behind the last.
    pub fn positions(&self) -> Range<i64> {
        self.first..self.end
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

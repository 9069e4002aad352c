//! Keys and values of past positions, per layer and slot, in memory set aside beforehand.
//!
//! A slot is one sequence's place. Slots fill, grow and empty independently, so sequences join and leave a
//! running batch. On the CPU keys and values stay f32 whatever the model computes in: attention of a single
//! query is several times slower there in bf16.

use tch::{Device, Kind, Tensor};

use crate::models::ModelError;

/// Sizes of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCacheShape {
    /// Transformer layers.
    pub layers: i64,
    /// Sequences that have room at the same time.
    pub slots: i64,
    /// Key and value heads.
    pub heads: i64,
    /// Positions of each slot.
    pub capacity: i64,
    /// Width of one head.
    pub head_dim: i64,
}

/// Keys and values of past positions.
#[derive(Debug)]
pub struct KvCache {
    /// Keys and values of each layer, both `[slots, N_kv, capacity, head_dim]`.
    layers: Vec<(Tensor, Tensor)>,
    /// Positions that each slot holds.
    lengths: Vec<i64>,
    /// Positions that each slot has ever held since they were last zero.
    written: Vec<i64>,
    capacity: i64,
}

/// Where one step's new positions go and which past ones they see; the same for all layers.
#[derive(Debug)]
pub struct StepPlan {
    slots: Vec<usize>,
    /// `[B]` each.
    slot_index: Tensor,
    position_index: Tensor,
    /// First slot, where the slots are neighbours in order: then nothing is copied.
    run: Option<i64>,
    /// Longest sequence, the new position included.
    longest: i64,
    /// `[B, 1, 1, longest]`, true where a row may look; none where all may look everywhere.
    mask: Option<Tensor>,
}

impl KvCache {
    /// An empty cache in `kind` on `device`.
    pub fn new(shape: KvCacheShape, kind: Kind, device: Device) -> Self {
        let size = [shape.slots, shape.heads, shape.capacity, shape.head_dim];
        let zeros = || Tensor::zeros(size, (kind, device));
        let slots = usize::try_from(shape.slots).unwrap_or(0);
        Self {
            layers: (0..shape.layers).map(|_| (zeros(), zeros())).collect(),
            lengths: vec![0; slots],
            written: vec![0; slots],
            capacity: shape.capacity,
        }
    }

    /// How many sequences have room.
    pub fn slots(&self) -> usize {
        self.lengths.len()
    }

    /// Positions of each slot.
    pub fn capacity(&self) -> i64 {
        self.capacity
    }

    /// Positions that `slot` holds; 0 for a slot that does not exist.
    pub fn length(&self, slot: usize) -> i64 {
        self.lengths.get(slot).copied().unwrap_or(0)
    }

    /// Positions that a slot can still take.
    pub fn room(&self, slot: usize) -> i64 {
        self.capacity - self.length(slot)
    }

    /// Forgets a slot's sequence; the others do not notice.
    pub fn clear(&mut self, slot: usize) {
        if let Some(length) = self.lengths.get_mut(slot) {
            *length = 0;
        }
    }

    /// Memory of keys and values, bytes.
    pub fn bytes(&self) -> usize {
        let one = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        (self.layers.iter())
            .map(|(keys, values)| one(keys) + one(values))
            .sum()
    }

    /// Slots must exist and be named once; `each` is how many positions each must be able to hold.
    fn check(&self, slots: &[usize], needs: impl Fn(usize, usize) -> i64) -> Result<(), ModelError> {
        for (row, slot) in slots.iter().enumerate() {
            if *slot >= self.slots() || slots[..row].contains(slot) {
                return Err(ModelError::Shape {
                    what: "the list of cache slots",
                    expected: format!("different slots below {}", self.slots()),
                    found: slots.iter().map(|slot| *slot as i64).collect(),
                });
            }
            let positions = needs(row, *slot);
            if positions > self.capacity {
                return Err(ModelError::TooManyPositions {
                    positions,
                    positions_max: self.capacity,
                });
            }
        }
        Ok(())
    }

    /// Makes slots ready for new sequences of `lengths` positions: whatever was there is forgotten.
    ///
    /// # Errors
    /// [`ModelError::Shape`] for a slot that does not exist or is named twice, [`ModelError::TooManyPositions`]
    /// for a sequence that does not fit; nothing has changed then.
    pub fn begin(&mut self, slots: &[usize], lengths: &[i64]) -> Result<(), ModelError> {
        self.check(slots, |row, _| lengths[row])?;
        for (slot, length) in slots.iter().zip(lengths) {
            // What a former sequence left behind is masked, but a value that is not finite would pass the mask.
            let stale = self.written[*slot] - length;
            if stale > 0 {
                for (keys, values) in &self.layers {
                    for side in [keys, values] {
                        let _ = side.get(*slot as i64).narrow(1, *length, stale).zero_();
                    }
                }
            }
            self.lengths[*slot] = *length;
            self.written[*slot] = *length;
        }
        Ok(())
    }

    /// Stores a whole prompt of one layer, after [`KvCache::begin`].
    ///
    /// # Shapes
    /// `keys`, `values` `[B, N_kv, P, head_dim]`; of row `b` the first positions are kept, as many as `slots[b]` holds.
    pub fn store(&mut self, layer: usize, slots: &[usize], keys: &Tensor, values: &Tensor) {
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

    /// Plans a step that appends one position to each of `slots`; nothing changes until [`KvCache::advance`].
    ///
    /// # Errors
    /// [`ModelError::Shape`] for a slot that does not exist or is named twice; [`ModelError::TooManyPositions`]
    /// for one that is full.
    pub fn plan_step(&self, slots: &[usize]) -> Result<StepPlan, ModelError> {
        self.check(slots, |_, slot| self.lengths[slot] + 1)?;
        let positions: Vec<i64> = slots.iter().map(|slot| self.lengths[*slot]).collect();
        let longest = positions.iter().copied().max().unwrap_or(0) + 1;
        let index: Vec<i64> = slots.iter().map(|slot| *slot as i64).collect();
        let neighbours = index.windows(2).all(|pair| pair[1] == pair[0] + 1);
        let device = self.layers.first().map_or(Device::Cpu, |(keys, _)| keys.device());
        let position_index = Tensor::from_slice(&positions).to_device(device);
        let same_length = positions.iter().all(|position| position + 1 == longest);
        let mask = (!same_length).then(|| {
            Tensor::arange(longest, (Kind::Int64, device))
                .less_equal_tensor(&position_index.unsqueeze(1)) // [B, longest]
                .view([-1, 1, 1, longest])
        });
        Ok(StepPlan {
            slots: slots.to_vec(),
            slot_index: Tensor::from_slice(&index).to_device(device),
            position_index,
            run: index.first().copied().filter(|_| neighbours),
            longest,
            mask,
        })
    }

    /// Writes one layer's new keys and values and returns all that the step sees.
    ///
    /// # Shapes
    /// `keys`, `values` `[B, N_kv, 1, head_dim]` → both `[B, N_kv, longest, head_dim]`.
    pub fn append(
        &mut self,
        layer: usize,
        plan: &StepPlan,
        keys: &Tensor,
        values: &Tensor,
    ) -> (Tensor, Tensor) {
        let (own_keys, own_values) = &mut self.layers[layer];
        let place = [Some(&plan.slot_index), None, Some(&plan.position_index)];
        let kind = own_keys.kind();
        for (own, new) in [(&mut *own_keys, keys), (&mut *own_values, values)] {
            let _ = own.index_put_(&place, &new.squeeze_dim(2).to_kind(kind), false);
        }
        let rows = plan.slots.len() as i64;
        let seen = |own: &Tensor| match plan.run {
            Some(first) => own.narrow(0, first, rows).narrow(2, 0, plan.longest),
            None => own.narrow(2, 0, plan.longest).index_select(0, &plan.slot_index),
        };
        (seen(own_keys), seen(own_values))
    }

    /// Counts the positions that a finished step has appended.
    pub fn advance(&mut self, plan: &StepPlan) {
        for slot in &plan.slots {
            self.lengths[*slot] += 1;
            self.written[*slot] = self.written[*slot].max(self.lengths[*slot]);
        }
    }
}

impl StepPlan {
    /// The new positions, `[B]`.
    pub fn positions(&self) -> &Tensor {
        &self.position_index
    }

    /// Which past positions each row may look at, `[B, 1, 1, longest]`; none where all may look everywhere.
    pub fn mask(&self) -> Option<&Tensor> {
        self.mask.as_ref()
    }
}

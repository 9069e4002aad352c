//! Where the network's tensors come from: a checkpoint, frozen, or a variable store, learning. The network
//! declares its tensors once, by name and shape, and does not know which.

use tch::{Kind, Tensor, nn};

use crate::util::random::SplitMix;
use crate::weights::Loader;

/// First value of a variable that no checkpoint gives.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    /// All zeros: biases.
    Zeros,
    /// All ones: gains of norms.
    Ones,
    /// Uniform in `±sqrt(6 / (fan_in + fan_out))` (Xavier, Glorot).
    Xavier {
        /// Numbers that one output sums over.
        fan_in: i64,
        /// Numbers that one input goes to.
        fan_out: i64,
    },
}

/// Gives tensors by name.
pub(super) trait Variables {
    /// The tensor `name` of `shape`.
    fn take(&mut self, name: &str, shape: &[i64], start: Start) -> Tensor;
}

impl Variables for Loader<'_> {
    fn take(&mut self, name: &str, shape: &[i64], _start: Start) -> Tensor {
        Loader::take(self, name, shape)
    }
}

/// Makes trainable f32 variables in a store: from a checkpoint where there is one, else from a seed.
pub(super) struct Learning<'a, 'b> {
    store: &'a nn::VarStore,
    from: Option<&'a mut Loader<'b>>,
    seed: u64,
    made: u64,
}

impl<'a, 'b> Learning<'a, 'b> {
    /// Variables go to `store`; their values come from `from` (whose device must be the store's) or from
    /// `seed`.
    pub(super) fn new(store: &'a nn::VarStore, from: Option<&'a mut Loader<'b>>, seed: u64) -> Self {
        Self {
            store,
            from,
            seed,
            made: 0,
        }
    }
}

impl Variables for Learning<'_, '_> {
    fn take(&mut self, name: &str, shape: &[i64], start: Start) -> Tensor {
        self.made += 1;
        let value = match &mut self.from {
            Some(loader) => loader.take_as(name, shape, Kind::Float),
            None => fresh(shape, start, &[self.seed, self.made]),
        };
        // The store keeps dots for its own tree.
        let (parents, leaf) = name.rsplit_once('.').unwrap_or(("", name));
        let mut path = self.store.root();
        for part in parents.split('.').filter(|part| !part.is_empty()) {
            path = path / part;
        }
        path.var_copy(leaf, &value)
    }
}

/// A first value, the same for the same seeds on every machine.
pub(super) fn fresh(shape: &[i64], start: Start, seeds: &[u64]) -> Tensor {
    let cpu = (Kind::Float, tch::Device::Cpu);
    match start {
        Start::Zeros => Tensor::zeros(shape, cpu),
        Start::Ones => Tensor::ones(shape, cpu),
        Start::Xavier { fan_in, fan_out } => {
            #[expect(clippy::cast_precision_loss, reason = "widths")]
            let bound = (6.0 / (fan_in + fan_out) as f64).sqrt();
            let mut random = SplitMix::new(seeds);
            #[expect(clippy::cast_possible_truncation, reason = "f32 is what is wanted")]
            let values: Vec<f32> = (0..shape.iter().product::<i64>())
                .map(|_| random.between(-bound, bound) as f32)
                .collect();
            Tensor::from_slice(&values).view(shape)
        }
    }
}

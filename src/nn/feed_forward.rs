//! The feed-forward part of an encoder layer.

use tch::{Device, Tensor};

use super::linear::Linear;
use crate::weights::Loader;

/// Rows that pass at a time on the CPU: the wide intermediate result of so many stays in the cache.
const ROWS_AT_A_TIME: i64 = 512;

/// Widen, exact GELU, narrow.
#[derive(Debug)]
pub struct FeedForward {
    widen: Linear,
    narrow: Linear,
}

impl FeedForward {
    /// Takes the two maps under their names: `width` → `inner` → `width`.
    pub fn load(loader: &mut Loader<'_>, widen: &str, narrow: &str, width: i64, inner: i64) -> Self {
        Self {
            widen: Linear::load(loader, widen, width, inner),
            narrow: Linear::load(loader, narrow, inner, width),
        }
    }

    /// `[R, D]` → `[R, D]`.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        let rows = input.size()[0];
        if input.device() != Device::Cpu || rows <= ROWS_AT_A_TIME {
            return self.pass(input);
        }
        let passes: Vec<Tensor> = input
            .split(ROWS_AT_A_TIME, 0)
            .iter()
            .map(|rows| self.pass(rows))
            .collect();
        Tensor::cat(&passes, 0)
    }

    fn pass(&self, rows: &Tensor) -> Tensor {
        self.narrow.forward(&self.widen.forward(rows).gelu_("none"))
    }
}

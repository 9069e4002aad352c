//! Normalisation over the last dimension.

use tch::Tensor;

use crate::weights::Loader;

/// Layer normalisation with scale and shift.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Takes `{name}.weight` and `{name}.bias`, both `[width]`.
    pub fn load(loader: &mut Loader<'_>, name: &str, width: i64, eps: f64) -> Self {
        Self {
            weight: loader.take(&format!("{name}.weight"), &[width]),
            bias: loader.take(&format!("{name}.bias"), &[width]),
            eps,
        }
    }

    /// `[.., width]` → `[.., width]`.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        input.layer_norm(
            self.weight.size(),
            Some(&self.weight),
            Some(&self.bias),
            self.eps,
            false,
        )
    }
}

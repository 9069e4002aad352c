//! Affine maps of the last dimension.

use tch::Tensor;

use super::linear_weight::LinearWeight;
use crate::weights::Loader;

/// A frozen matrix with an optional bias.
#[derive(Debug)]
pub struct Linear {
    weight: LinearWeight,
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes `{name}.weight` `[output, input]` and `{name}.bias` `[output]`.
    pub fn load(loader: &mut Loader<'_>, name: &str, input: i64, output: i64) -> Self {
        let weight = loader.take(&format!("{name}.weight"), &[output, input]);
        let bias = loader.take(&format!("{name}.bias"), &[output]);
        Self::new(weight, Some(bias))
    }

    /// From tensors at hand: `weight` `[output, input]`, `bias` `[output]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self {
            weight: LinearWeight::new(weight),
            bias,
        }
    }

    /// `[.., input]` → `[.., output]`.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        self.weight.multiply(input, self.bias.as_ref())
    }
}

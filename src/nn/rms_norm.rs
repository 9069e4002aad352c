//! Root-mean-square normalisation over the last dimension.
//!
//! Source: Zhang and Sennrich, "Root mean square layer normalization" (arXiv 1910.07467).

use tch::Tensor;

use super::cpu_kernels;
use crate::weights::Loader;

/// `x / rms(x) · weight`, the variance in f32: no mean is subtracted, nothing is added.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    epsilon: f64,
}

impl RmsNorm {
    /// Takes `{name}.weight` `[width]`.
    pub fn load(loader: &mut Loader<'_>, name: &str, width: i64, epsilon: f64) -> Self {
        Self {
            weight: loader.take(&format!("{name}.weight"), &[width]),
            epsilon,
        }
    }

    /// `[.., width]` → `[.., width]`.
    pub fn forward(&self, hidden: &Tensor) -> Tensor {
        cpu_kernels::rms_norm(hidden, &self.weight, self.epsilon).unwrap_or_else(|| {
            // libtorch raises half precisions to f32 inside.
            hidden.rms_norm(self.weight.size(), Some(&self.weight), self.epsilon)
        })
    }
}

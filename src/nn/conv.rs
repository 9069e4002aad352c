//! Convolutions over time.

use tch::Tensor;

use crate::weights::Loader;

/// A frozen one-dimensional convolution of kernel 3 with one zero of padding on each side.
#[derive(Debug)]
pub struct Conv1d {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
}

/// Taps of every convolution here.
pub const KERNEL: i64 = 3;
const PADDING: i64 = 1;

impl Conv1d {
    /// Takes `{name}.weight` `[output, input, 3]` and `{name}.bias` `[output]`.
    pub fn load(loader: &mut Loader<'_>, name: &str, input: i64, output: i64, stride: i64) -> Self {
        Self {
            weight: loader.take(&format!("{name}.weight"), &[output, input, KERNEL]),
            bias: loader.take(&format!("{name}.bias"), &[output]),
            stride,
        }
    }

    /// `[B, input, T]` → `[B, output, ceil(T / stride)]`.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        input.conv1d(&self.weight, Some(&self.bias), self.stride, PADDING, 1, 1)
    }
}

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

/// A frozen convolution along time of frames laid out `[T, channels]`.
///
/// That is the layout of everything around it (norms over channels, projections), and the one in which
/// libtorch's CPU kernels are fastest: nothing is transposed on the way.
#[derive(Debug)]
pub struct FrameConv {
    /// `[output, input / groups, 1, taps]`, channels last.
    weight: Tensor,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
    groups: i64,
}

impl FrameConv {
    /// From tensors at hand: `weight` `[output, input / groups, taps]`, `bias` `[output]`; `padding` zeros on
    /// each side.
    pub fn new(weight: &Tensor, bias: Option<Tensor>, stride: i64, padding: i64, groups: i64) -> Self {
        let channels_last = weight
            .permute([0, 2, 1]) // [output, taps, input / groups]
            .contiguous()
            .unsqueeze(1)
            .permute([0, 3, 1, 2]); // [output, input / groups, 1, taps]
        Self {
            weight: channels_last,
            bias,
            stride,
            padding,
            groups,
        }
    }

    /// `[T, input]` → `[T', output]`, `T' = (T + 2·padding − taps) / stride + 1`.
    pub fn forward(&self, frames: &Tensor) -> Tensor {
        let image = frames.unsqueeze(0).unsqueeze(0).permute([0, 3, 1, 2]); // [1, input, 1, T]
        let out = image.conv2d(
            &self.weight,
            self.bias.as_ref(),
            [1, self.stride],
            [0, self.padding],
            [1, 1],
            self.groups,
        ); // [1, output, 1, T']
        out.permute([0, 2, 3, 1])
            .contiguous()
            .squeeze_dim(0)
            .squeeze_dim(0)
    }
}

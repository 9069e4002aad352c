//! The layers that an adapter is made of.

use tch::{Device, Kind, Tensor};

use crate::models::ModelError;

/// Layer norms' stabiliser.
const NORM_EPS: f64 = 1e-5;

/// Makes one position of a whole clip.
#[derive(Debug)]
pub(super) struct Summary {
    inner_weight: Tensor,
    inner_bias: Tensor,
    outer_weight: Tensor,
    outer_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
}

/// Makes an embedding of what is said in a whole clip.
#[derive(Debug)]
pub(super) struct Sentence(pub(super) ConvLayer);

/// Adds to each frame what its neighbours say about it.
#[derive(Debug)]
pub(super) struct ResidualBlock(pub(super) ConvLayer);

/// How a training pass computes a layer differently from serving.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compute {
    /// The dtype of products.
    pub(super) products: Kind,
    /// Share of a layer's inner values that are left out at random.
    pub(super) dropout: f64,
}

impl Compute {
    /// As in serving: products in f32, nothing left out.
    pub(super) const EXACT: Self = Self {
        products: Kind::Float,
        dropout: 0.0,
    };
}

/// A norm, a convolution in time that keeps the length, GELU; and the linear map that follows.
#[derive(Debug)]
pub(super) struct ConvLayer {
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor,
}

/// A convolution in time that may shorten, then a norm.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) conv_weight: Tensor,
    pub(super) conv_bias: Tensor,
    pub(super) norm_weight: Tensor,
    pub(super) norm_bias: Tensor,
    pub(super) stride: i64,
}

impl Block {
    /// Its tensors, each by its name within the block.
    pub(super) fn read(
        stride: i64,
        variable: impl Fn(&str) -> Result<Tensor, ModelError>,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            conv_weight: variable("conv.weight")?,
            conv_bias: variable("conv.bias")?,
            norm_weight: variable("norm.weight")?,
            norm_bias: variable("norm.bias")?,
            stride,
        })
    }
}

impl Summary {
    /// Its tensors, each by its name within the summary.
    pub(super) fn read(variable: impl Fn(&str) -> Result<Tensor, ModelError>) -> Result<Self, ModelError> {
        Ok(Self {
            inner_weight: variable("inner.linear.weight")?,
            inner_bias: variable("inner.linear.bias")?,
            outer_weight: variable("outer.linear.weight")?,
            outer_bias: variable("outer.linear.bias")?,
            norm_weight: variable("norm.weight")?,
            norm_bias: variable("norm.bias")?,
        })
    }

    /// `[B, L+1, 2D]` f32 → `[B, 1, H]` f32: each mean and each deviation brought to mean 0 and variance 1,
    /// a narrow layer, a linear map, a norm.
    pub(super) fn forward(&self, statistics: &Tensor) -> Result<Tensor, ModelError> {
        let [rows, states, both] = statistics.size()[..] else {
            unreachable!("the caller checked the shape")
        };
        let width = both / 2;
        let inner = statistics
            .f_view([rows, states, 2, width])?
            .f_layer_norm([width], None::<&Tensor>, None::<&Tensor>, NORM_EPS, false)?
            .f_view([rows, 1, states * both])?
            .f_linear(&self.inner_weight, Some(&self.inner_bias))?
            .f_gelu("none")?; // [B, 1, K]
        let outer = inner.f_linear(&self.outer_weight, Some(&self.outer_bias))?;
        layer_norm(&outer, &self.norm_weight, &self.norm_bias)
    }
}

impl Sentence {
    /// `[B, S, H]` f32 with valid `lengths`, 0 among them → `[B, H]` f32: a norm, a narrow convolution, GELU,
    /// the largest value (at least 0) and the mean of each channel, a linear map. What lies beyond a row's
    /// length has no part in it.
    pub(super) fn forward(
        &self,
        segments: &Tensor,
        lengths: &[i64],
        compute: Compute,
    ) -> Result<Tensor, ModelError> {
        let segments = match segments.size()[1] {
            0 => segments.f_constant_pad_nd([0, 0, 0, 1])?, // a convolution of nothing is an error
            _ => segments.shallow_clone(),
        };
        let mask = frame_mask(lengths, segments.size()[1], segments.device())?; // [B, S, 1]
        let inner = self.0.convolved(&segments, lengths, compute)?.f_mul(&mask)?; // [B, S, K]
        let largest = inner.f_amax([1i64].as_slice(), false)?.f_clamp_min(0.0)?;
        let count = mask
            .f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?
            .f_clamp_min(1.0)?; // [B, 1]
        let mean = inner
            .f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?
            .f_div(&count)?;
        let pooled = Tensor::f_cat(&[largest, mean], 1)?; // [B, 2K]
        self.0.linear(&pooled, compute)
    }
}

impl ResidualBlock {
    /// `[B, P, H]` f32 → the same shape; what lies beyond a row's length does not reach its frames.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        lengths: &[i64],
        compute: Compute,
    ) -> Result<Tensor, ModelError> {
        let added = self.0.linear(&self.0.convolved(x, lengths, compute)?, compute)?;
        Ok(x.f_add(&added)?)
    }
}

impl ConvLayer {
    /// Its tensors, each by its name within the layer.
    pub(super) fn read(variable: impl Fn(&str) -> Result<Tensor, ModelError>) -> Result<Self, ModelError> {
        Ok(Self {
            norm_weight: variable("norm.weight")?,
            norm_bias: variable("norm.bias")?,
            conv_weight: variable("conv.weight")?,
            conv_bias: variable("conv.bias")?,
            linear_weight: variable("linear.weight")?,
            linear_bias: variable("linear.bias")?,
        })
    }

    /// `[B, P, H]` f32 → `[B, P, K]`; what lies beyond a row's length does not reach its frames.
    fn convolved(&self, x: &Tensor, lengths: &[i64], compute: Compute) -> Result<Tensor, ModelError> {
        let inner = layer_norm(x, &self.norm_weight, &self.norm_bias)?;
        let inner = convolve(&inner, lengths, [&self.conv_weight, &self.conv_bias], 1, compute)?;
        dropout(inner.f_gelu("none")?, compute)
    }

    fn linear(&self, x: &Tensor, compute: Compute) -> Result<Tensor, ModelError> {
        let [x, weight, bias] = in_kind([x, &self.linear_weight, &self.linear_bias], compute.products)?;
        Ok(x.f_linear(&weight, Some(&bias))?.f_to_kind(Kind::Float)?)
    }
}

/// Leaves values out at random, and makes the others larger by as much.
pub(super) fn dropout(x: Tensor, compute: Compute) -> Result<Tensor, ModelError> {
    match compute.dropout > 0.0 {
        true => Ok(x.f_dropout(compute.dropout, true)?),
        false => Ok(x),
    }
}

/// The operands of a product in the dtype that it is computed in.
fn in_kind<const N: usize>(tensors: [&Tensor; N], kind: Kind) -> Result<[Tensor; N], ModelError> {
    let mut found = tensors.map(Tensor::shallow_clone);
    for tensor in &mut found {
        *tensor = tensor.f_to_kind(kind)?;
    }
    Ok(found)
}

/// A 1-D convolution in time, padded by zeros: `[B, T, C]` f32 with valid `lengths` → `[B, ceil(T / stride),
/// H]` f32.
pub(super) fn convolve(
    x: &Tensor,
    lengths: &[i64],
    [weight, bias]: [&Tensor; 2],
    stride: i64,
    compute: Compute,
) -> Result<Tensor, ModelError> {
    let frames = x.size()[1];
    let x = match lengths.iter().any(|length| *length < frames) {
        true => x * frame_mask(lengths, frames, x.device())?,
        false => x.shallow_clone(),
    };
    let padding = (weight.size()[2] - 1) / 2;
    let [x, weight, bias] = in_kind([&x, weight, bias], compute.products)?;
    Ok(x.f_transpose(1, 2)? // [B, C, T]
        .f_conv1d(&weight, Some(&bias), stride, padding, 1, 1)?
        .f_transpose(1, 2)?
        .f_contiguous()? // GELU's backward pass takes one value at a time where strides differ
        .f_to_kind(Kind::Float)?)
}

pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor, ModelError> {
    Ok(x.f_layer_norm(weight.size(), Some(weight), Some(bias), NORM_EPS, false)?)
}

/// 1 for valid frames, 0 for padding: `[B, T, 1]` f32.
fn frame_mask(lengths: &[i64], frames: i64, device: Device) -> Result<Tensor, ModelError> {
    let lengths = Tensor::f_from_slice(lengths)?
        .f_to_device(device)?
        .f_unsqueeze(1)?; // [B, 1]
    let at = Tensor::f_arange(frames, (Kind::Int64, device))?.f_unsqueeze(0)?; // [1, T]
    Ok(at.f_lt_tensor(&lengths)?.f_to_kind(Kind::Float)?.f_unsqueeze(2)?)
}

/// Root mean square of an embedding table `[V, H]`: the initial gain of the adapter's last norm.
///
/// # Errors
/// [`ModelError::Torch`] when libtorch fails.
pub fn embedding_rms(table: &Tensor) -> Result<f64, ModelError> {
    let _guard = tch::no_grad_guard();
    Ok(table
        .f_to_kind(Kind::Float)?
        .f_square()?
        .f_mean(Kind::Double)?
        .f_sqrt()?
        .f_double_value(&[])?)
}

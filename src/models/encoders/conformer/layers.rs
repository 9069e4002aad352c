//! One Conformer block: half a feed-forward part, self-attention with relative positions, convolution module,
//! the other half, LayerNorm. The same code serves frozen and learning tensors.
//!
//! Source: Gulati et al., "Conformer" (arXiv 2005.08100) §2.

use tch::{Device, Kind, Tensor};

use super::config::{ConformerConfig, ConvNorm};
use super::variables::{Start, Variables};
use crate::nn::linear::Linear;

/// Epsilon of every norm.
const NORM_EPS: f64 = 1e-5;

/// What all blocks of a forward pass share.
pub(super) struct Shared {
    /// bool `[B, 1, 1, T]`: true where attention must not look. Absent: it may look everywhere.
    pub(super) hidden_keys: Option<Tensor>,
    /// `[B, T, 1]`: 1 in valid frames, 0 beyond a row's end. Absent: all are valid.
    pub(super) valid: Option<Tensor>,
    /// Sinusoids of the relative positions `T-1` down to `-(T-1)`: `[2·T-1, D]`.
    pub(super) positions: Tensor,
    /// Probability of dropout; 0 when frozen.
    pub(super) dropout: f64,
}

impl Shared {
    /// Zeroes what lies beyond each row's end, in `[B, T, ..]`.
    pub(super) fn keep_valid(&self, states: Tensor) -> Tensor {
        match &self.valid {
            Some(valid) => states * valid,
            None => states,
        }
    }

    pub(super) fn drop(&self, states: Tensor) -> Tensor {
        if self.dropout > 0.0 {
            states.dropout(self.dropout, true)
        } else {
            states
        }
    }
}

/// LayerNorm over the last dimension.
#[derive(Debug)]
pub(super) struct Norm {
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    pub(super) fn declare(variables: &mut impl Variables, name: &str, width: i64) -> Self {
        Self {
            weight: variables.take(&format!("{name}.weight"), &[width], Start::Ones),
            bias: variables.take(&format!("{name}.bias"), &[width], Start::Zeros),
        }
    }

    pub(super) fn forward(&self, input: &Tensor) -> Tensor {
        input.layer_norm(
            self.weight.size(),
            Some(&self.weight),
            Some(&self.bias),
            NORM_EPS,
            false,
        )
    }
}

/// A matrix `[output, input]` with a bias that starts at zero.
fn linear(variables: &mut impl Variables, name: &str, input: i64, output: i64) -> Linear {
    let start = Start::Xavier {
        fan_in: input,
        fan_out: output,
    };
    let weight = variables.take(&format!("{name}.weight"), &[output, input], start);
    let bias = variables.take(&format!("{name}.bias"), &[output], Start::Zeros);
    Linear::new(weight, Some(bias))
}

/// Two matrices with swish between them.
#[derive(Debug)]
struct FeedForward {
    norm: Norm,
    widen: Linear,
    narrow: Linear,
}

impl FeedForward {
    fn declare(variables: &mut impl Variables, name: &str, config: &ConformerConfig) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            norm: Norm::declare(variables, &format!("{name}_layer_norm"), width),
            widen: linear(variables, &format!("{name}.intermediate_dense"), width, inner),
            narrow: linear(variables, &format!("{name}.output_dense"), inner, width),
        }
    }

    fn forward(&self, input: &Tensor, shared: &Shared) -> Tensor {
        let wide = shared.drop(self.widen.forward(&self.norm.forward(input)).silu());
        shared.drop(self.narrow.forward(&wide))
    }
}

/// Self-attention whose scores depend on content and on distance, each with a bias of its own
/// (Transformer-XL, arXiv 1901.02860, section 3.3).
#[derive(Debug)]
struct Attention {
    norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    /// `[D, D]`.
    position: Tensor,
    /// `[N, D/N]`.
    content_bias: Tensor,
    /// `[N, D/N]`.
    position_bias: Tensor,
    heads: i64,
    head_width: i64,
}

impl Attention {
    fn declare(variables: &mut impl Variables, name: &str, config: &ConformerConfig) -> Self {
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        let head_width = width / heads;
        let mut square = |part: &str| linear(variables, &format!("{name}.{part}"), width, width);
        let (query, key, value, out) = (
            square("linear_q"),
            square("linear_k"),
            square("linear_v"),
            square("linear_out"),
        );
        let start = Start::Xavier {
            fan_in: width,
            fan_out: width,
        };
        let position = variables.take(&format!("{name}.linear_pos.weight"), &[width, width], start);
        let mut bias =
            |part: &str| variables.take(&format!("{name}.{part}"), &[heads, head_width], Start::Zeros);
        let (content_bias, position_bias) = (bias("pos_bias_u"), bias("pos_bias_v"));
        Self {
            norm: Norm::declare(variables, &format!("{name}_layer_norm"), width),
            query,
            key,
            value,
            out,
            position,
            content_bias,
            position_bias,
            heads,
            head_width,
        }
    }

    /// `[B, T, D]` → `[B, T, D]`.
    fn forward(&self, input: &Tensor, shared: &Shared) -> Tensor {
        let (batch, time, width) = input.size3().expect("the network made it with three dimensions");
        let normed = self.norm.forward(input);
        let split = |projection: &Linear| {
            projection
                .forward(&normed)
                .view([batch, time, self.heads, self.head_width])
                .transpose(1, 2) // [B, N, T, D/N]
        };
        let (query, key, value) = (split(&self.query), split(&self.key), split(&self.value));
        #[expect(clippy::cast_precision_loss, reason = "a width")]
        let scale = 1.0 / (self.head_width as f64).sqrt();
        let places = shared
            .positions
            .matmul(&self.position.transpose(0, 1)) // [2·T-1, D]
            .view([2 * time - 1, self.heads, self.head_width])
            .permute([1, 2, 0]); // [N, D/N, 2·T-1]
        let by_distance = (&query + self.position_bias.unsqueeze(1)).matmul(&places); // [B, N, T, 2·T-1]
        let mut bias = skew(&by_distance) * scale; // [B, N, T, T]
        if let Some(hidden) = &shared.hidden_keys {
            bias = bias.masked_fill(hidden, f64::NEG_INFINITY);
        }
        let seen = Tensor::scaled_dot_product_attention(
            &(query + self.content_bias.unsqueeze(1)),
            &key,
            &value,
            Some(&bias),
            0.0,
            false,
            Some(scale),
            false,
        );
        let joined = seen.transpose(1, 2).reshape([batch, time, width]);
        shared.drop(self.out.forward(&joined))
    }
}

/// Column `c` of row `i` holds the score at distance `T-1-c`; column `j` of the result holds it at distance
/// `i-j`.
///
/// # Shapes
/// `[B, N, T, 2·T-1]` → `[B, N, T, T]`.
fn skew(scores: &Tensor) -> Tensor {
    let (batch, heads, time, distances) = scores.size4().expect("made with four dimensions");
    scores
        .constant_pad_nd([1, 0]) // [B, N, T, 2·T]
        .view([batch, heads, distances + 1, time])
        .narrow(2, 1, distances)
        .reshape([batch, heads, time, distances])
        .narrow(3, 0, time)
}

/// Sinusoids of the distances `T-1` down to `-(T-1)`, sines in even columns and cosines in odd ones.
///
/// # Shapes
/// f32 `[2·T-1, D]`.
pub(super) fn relative_positions(time: i64, width: i64, device: Device) -> Tensor {
    let options = (Kind::Float, device);
    #[expect(clippy::cast_precision_loss, reason = "a width")]
    let falling = -(10_000.0_f64.ln()) / width as f64;
    let rates = (Tensor::arange_start_step(0, width, 2, options) * falling).exp(); // [D/2]
    let distances = Tensor::arange_start_step(time - 1, -time, -1, options).unsqueeze(1); // [2·T-1, 1]
    let angles = distances * rates; // [2·T-1, D/2]
    Tensor::stack(&[angles.sin(), angles.cos()], 2).view([2 * time - 1, width])
}

/// The norm in the convolution module.
#[derive(Debug)]
enum MiddleNorm {
    Layer(Norm),
    /// Running statistics folded into one gain and one shift, each `[D]`.
    Batch {
        gain: Tensor,
        shift: Tensor,
    },
}

/// Pointwise, GLU, depthwise, norm, swish, pointwise; no biases.
#[derive(Debug)]
struct Convolution {
    norm: Norm,
    /// `[2·D, D, 1]`.
    widen: Tensor,
    /// `[D, 1, K]`.
    depthwise: Tensor,
    middle: MiddleNorm,
    /// `[D, D, 1]`.
    mix: Tensor,
}

impl Convolution {
    fn declare(variables: &mut impl Variables, name: &str, config: &ConformerConfig) -> Self {
        let (width, taps) = (config.hidden_size, config.conv_depthwise_kernel_size);
        let mut pointwise = |part: &str, output: i64| {
            let start = Start::Xavier {
                fan_in: width,
                fan_out: output,
            };
            variables.take(&format!("{name}.{part}.weight"), &[output, width, 1], start)
        };
        let (widen, mix) = (
            pointwise("pointwise_conv1", 2 * width),
            pointwise("pointwise_conv2", width),
        );
        let start = Start::Xavier {
            fan_in: taps,
            fan_out: taps,
        };
        let depthwise = variables.take(&format!("{name}.depthwise_conv.weight"), &[width, 1, taps], start);
        let middle = match config.conv_norm {
            ConvNorm::Layer => MiddleNorm::Layer(Norm::declare(
                variables,
                &format!("{name}.depthwise_layer_norm"),
                width,
            )),
            ConvNorm::Batch => {
                let mut part =
                    |part: &str, start| variables.take(&format!("{name}.batch_norm.{part}"), &[width], start);
                let (weight, bias) = (part("weight", Start::Ones), part("bias", Start::Zeros));
                let (mean, variance) = (
                    part("running_mean", Start::Zeros),
                    part("running_var", Start::Ones),
                );
                let gain = weight / (variance + NORM_EPS).sqrt();
                MiddleNorm::Batch {
                    shift: bias - mean * &gain,
                    gain,
                }
            }
        };
        Self {
            norm: Norm::declare(variables, &format!("{name}.layer_norm"), width),
            widen,
            depthwise,
            middle,
            mix,
        }
    }

    fn forward(&self, input: &Tensor, shared: &Shared) -> Tensor {
        let width = self.depthwise.size()[0];
        let padding = self.depthwise.size()[2] / 2;
        // Beyond a row's end must be what lies beyond a clip that stands alone: zeros.
        let gated = shared.keep_valid(pointwise(&self.norm.forward(input), &self.widen).glu(-1)); // [B, T, D]
        let spread = gated
            .transpose(1, 2)
            .conv1d(&self.depthwise, None::<Tensor>, 1, padding, 1, width)
            .transpose(1, 2); // [B, T, D]
        let normed = match &self.middle {
            MiddleNorm::Layer(norm) => norm.forward(&spread),
            MiddleNorm::Batch { gain, shift } => spread * gain + shift,
        };
        shared.drop(pointwise(&normed.silu(), &self.mix))
    }
}

/// A convolution of one tap: `[.., input]` by `[output, input, 1]` → `[.., output]`.
fn pointwise(input: &Tensor, weight: &Tensor) -> Tensor {
    input.linear(&weight.squeeze_dim(-1), None::<Tensor>)
}

/// One block.
#[derive(Debug)]
pub(super) struct Block {
    first: FeedForward,
    attention: Attention,
    convolution: Convolution,
    second: FeedForward,
    norm: Norm,
}

impl Block {
    pub(super) fn declare(variables: &mut impl Variables, name: &str, config: &ConformerConfig) -> Self {
        Self {
            first: FeedForward::declare(variables, &format!("{name}.ffn1"), config),
            attention: Attention::declare(variables, &format!("{name}.self_attn"), config),
            convolution: Convolution::declare(variables, &format!("{name}.conv_module"), config),
            second: FeedForward::declare(variables, &format!("{name}.ffn2"), config),
            norm: Norm::declare(variables, &format!("{name}.final_layer_norm"), config.hidden_size),
        }
    }

    /// `[B, T, D]` → `[B, T, D]`.
    pub(super) fn forward(&self, input: &Tensor, shared: &Shared) -> Tensor {
        let hidden = input + self.first.forward(input, shared) * 0.5;
        let hidden = &hidden + self.attention.forward(&hidden, shared);
        let hidden = &hidden + self.convolution.forward(&hidden, shared);
        let hidden = &hidden + self.second.forward(&hidden, shared) * 0.5;
        self.norm.forward(&hidden)
    }
}

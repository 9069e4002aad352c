//! The network from normalised mel frames to encoder frames: subsampling, blocks, final LayerNorm.

use tch::{Device, Kind, Tensor};

use super::config::{ConformerConfig, MELS_PER_FRAME};
use super::layers::{Block, Norm, Shared, relative_positions};
use super::variables::{Start, Variables};

/// Stride of each of the two subsampling convolutions.
const STRIDE: i64 = 2;

/// The Conformer between front end and user; frozen or learning, by where its tensors came from.
#[derive(Debug)]
pub struct Conformer {
    subsampling: Vec<Subsampling>,
    blocks: Vec<Block>,
    norm: Norm,
    width: i64,
}

/// A convolution of stride 2 whose output is gated (GLU).
#[derive(Debug)]
struct Subsampling {
    /// `[2·output, input, K]`.
    weight: Tensor,
    /// `[2·output]`.
    bias: Tensor,
}

impl Subsampling {
    fn declare(variables: &mut impl Variables, name: &str, input: i64, output: i64, taps: i64) -> Self {
        let start = Start::Xavier {
            fan_in: input * taps,
            fan_out: 2 * output * taps,
        };
        Self {
            weight: variables.take(&format!("{name}.weight"), &[2 * output, input, taps], start),
            bias: variables.take(&format!("{name}.bias"), &[2 * output], Start::Zeros),
        }
    }

    /// `[B, input, T]` → `[B, output, ceil(T / 2)]`.
    fn forward(&self, input: &Tensor) -> Tensor {
        let padding = self.weight.size()[2] / 2;
        input
            .conv1d(&self.weight, Some(&self.bias), STRIDE, padding, 1, 1)
            .glu(1)
    }
}

impl Conformer {
    /// Declares every tensor: `subsampler.conv_layers.N.*`, `encoder.layers.N.*`, `encoder.layer_norm.*`.
    pub(super) fn declare(variables: &mut impl Variables, config: &ConformerConfig) -> Self {
        let (width, taps) = (config.hidden_size, config.subsampling_kernel_size);
        let between = config.subsampling_channels / 2;
        let mut subsampling = |index: i64, input, output| {
            let name = format!("subsampler.conv_layers.{index}");
            Subsampling::declare(variables, &name, input, output, taps)
        };
        let subsampling = vec![
            subsampling(0, config.num_mel_bins, between),
            subsampling(1, between, width),
        ];
        let blocks = (0..config.num_hidden_layers)
            .map(|index| Block::declare(variables, &format!("encoder.layers.{index}"), config))
            .collect();
        let norm = Norm::declare(variables, "encoder.layer_norm", width);
        Self {
            subsampling,
            blocks,
            norm,
            width,
        }
    }

    /// Blocks `L`.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// Everything before the first block: hidden state 0, zero beyond a row's end, and the valid frames of
    /// each row.
    ///
    /// # Shapes
    /// `features` `[B, F, M]`, of which row `b` has `lengths[b]` mel frames → `[B, T, D]`, `T = ceil(F / 4)`.
    pub fn embed(&self, features: &Tensor, lengths: &[i64]) -> (Tensor, Vec<i64>) {
        let mut states = zero_beyond(&features.transpose(1, 2), lengths); // [B, M, F]
        let mut lengths = lengths.to_vec();
        for convolution in &self.subsampling {
            for length in &mut lengths {
                *length = (*length + STRIDE - 1) / STRIDE;
            }
            // Zeros beyond a row's end are also what a convolution pads a clip with that stands alone.
            states = zero_beyond(&convolution.forward(&states), &lengths);
        }
        (states.transpose(1, 2).contiguous(), lengths)
    }

    /// Runs the blocks and shows each one's input, hidden states 0 to L−1, to `visit`. Returns hidden state L
    /// and the output, which is the same after the final norm. What lies beyond a row's end means nothing in
    /// either.
    ///
    /// # Shapes
    /// `hidden` `[B, T, D]`, of which row `b` has `lengths[b]` frames → twice `[B, T, D]`.
    ///
    /// # Errors
    /// `visit`'s.
    pub fn run<E>(
        &self,
        hidden: Tensor,
        lengths: &[i64],
        dropout: f64,
        mut visit: impl FnMut(usize, &Tensor) -> Result<(), E>,
    ) -> Result<[Tensor; 2], E> {
        let (device, dtype, time) = (hidden.device(), hidden.kind(), hidden.size()[1]);
        let valid = valid_positions(lengths, time).map(|valid| valid.to_device(device)); // [B, T]
        let shared = Shared {
            hidden_keys: valid
                .as_ref()
                .map(|valid| valid.logical_not().unsqueeze(1).unsqueeze(1)),
            valid: valid.map(|valid| valid.unsqueeze(-1).to_kind(dtype)),
            positions: relative_positions(time, self.width, device).to_kind(dtype),
            dropout,
        };
        let mut hidden = shared.drop(hidden);
        for (index, block) in self.blocks.iter().enumerate() {
            visit(index, &hidden)?;
            hidden = block.forward(&hidden, &shared);
        }
        let output = self.norm.forward(&hidden);
        Ok([hidden, output])
    }

    /// From features to the output, differentiable; shapes as in [`embed`](Self::embed) and
    /// [`run`](Self::run).
    pub fn forward(&self, features: &Tensor, lengths: &[i64], dropout: f64) -> Tensor {
        let (hidden, lengths) = self.embed(features, lengths);
        let run: Result<_, std::convert::Infallible> = self.run(hidden, &lengths, dropout, |_, _| Ok(()));
        match run {
            Ok([_, output]) => output,
            Err(never) => match never {},
        }
    }
}

/// Which positions are valid: true at `[b, t]` where `t < lengths[b]`. `None` where all are.
///
/// # Shapes
/// `B` lengths → bool `[B, T]` on the CPU.
fn valid_positions(lengths: &[i64], time: i64) -> Option<Tensor> {
    if lengths.iter().all(|&length| length >= time) {
        return None;
    }
    let positions = Tensor::arange(time, (Kind::Int64, Device::Cpu)).unsqueeze(0); // [1, T]
    Some(positions.lt_tensor(&Tensor::from_slice(lengths).unsqueeze(1))) // [B, T]
}

/// Zeroes what lies beyond each row's end in `[B, C, T]`.
fn zero_beyond(states: &Tensor, lengths: &[i64]) -> Tensor {
    match valid_positions(lengths, states.size()[2]) {
        Some(valid) => {
            states
                * valid
                    .unsqueeze(1)
                    .to_device(states.device())
                    .to_kind(states.kind())
        }
        None => states.shallow_clone(),
    }
}

/// Numbers that the network of a configuration holds, counted without making it.
pub fn parameter_count(config: &ConformerConfig) -> i64 {
    struct Counting(i64);
    impl Variables for Counting {
        fn take(&mut self, _name: &str, shape: &[i64], _start: Start) -> Tensor {
            self.0 += shape.iter().product::<i64>();
            Tensor::zeros([1], (Kind::Float, Device::Cpu))
        }
    }
    let mut counting = Counting(0);
    let _ = Conformer::declare(&mut counting, config);
    counting.0
}

const _: () = assert!(STRIDE * STRIDE == MELS_PER_FRAME);

//! Self-attention that sees both ways, for encoders.

use tch::{Kind, Tensor};

use super::linear::Linear;
use crate::weights::Loader;

/// Multi-head self-attention over a whole sequence.
///
/// Checkpoint names: `{q,v,out}_proj.{weight,bias}` and `k_proj.weight`, as Whisper spells them. The three input projections
/// are joined into one matrix when they are loaded.
#[derive(Debug)]
pub struct SelfAttention {
    joined: Linear,
    out: Linear,
    heads: i64,
    head_width: i64,
}

impl SelfAttention {
    /// Takes the projections under `name`; `width` must be a multiple of `heads`.
    pub fn load(loader: &mut Loader<'_>, name: &str, width: i64, heads: i64) -> Self {
        let square = [width, width];
        let query = loader.take(&format!("{name}.q_proj.weight"), &square);
        let query_bias = loader.take(&format!("{name}.q_proj.bias"), &[width]);
        let key = loader.take(&format!("{name}.k_proj.weight"), &square);
        let value = loader.take(&format!("{name}.v_proj.weight"), &square);
        let value_bias = loader.take(&format!("{name}.v_proj.bias"), &[width]);
        let out = Linear::load(loader, &format!("{name}.out_proj"), width, width);
        let joined = Self::join(
            &[&query, &key, &value],
            &[&query_bias, &query_bias.zeros_like(), &value_bias],
        );
        Self {
            joined,
            out,
            heads,
            head_width: width / heads,
        }
    }

    /// Concatenates; where a placeholder makes that impossible, the load fails anyway and the first part will do.
    fn join(weights: &[&Tensor; 3], biases: &[&Tensor; 3]) -> Linear {
        let cat = |parts: &[&Tensor; 3]| Tensor::f_cat(parts, 0).unwrap_or_else(|_| parts[0].shallow_clone());
        Linear::new(cat(weights), Some(cat(biases)))
    }

    /// Attends among the valid positions.
    ///
    /// # Shapes
    /// `input` `[B, T, D]`, `mask` bool `[B, 1, 1, T]` (true: may be looked at) → `[B, T, D]`.
    pub fn forward(&self, input: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let (batch, time, _) = input.size3().expect("the encoder checked its input");
        let joined = self
            .joined
            .forward(input) // [B, T, 3·D]
            .view([batch, time, 3, self.heads, self.head_width])
            .permute([2, 0, 3, 1, 4]); // [3, B, N, T, D/N]
        let (query, key, value) = (joined.get(0), joined.get(1), joined.get(2));
        let seen =
            Tensor::scaled_dot_product_attention(&query, &key, &value, mask, 0.0, false, None::<f64>, false);
        let width = self.heads * self.head_width;
        self.out
            .forward(&seen.transpose(1, 2).reshape([batch, time, width]))
    }
}

/// Which positions are valid: true at `[b, t]` where `t < lengths[b]`. `None` where all are.
///
/// # Shapes
/// `B` lengths → bool `[B, T]` on the CPU.
pub fn valid_positions(lengths: &[i64], time: i64) -> Option<Tensor> {
    if lengths.iter().all(|&length| length >= time) {
        return None;
    }
    let positions = Tensor::arange(time, (Kind::Int64, tch::Device::Cpu)).unsqueeze(0); // [1, T]
    Some(positions.lt_tensor(&Tensor::from_slice(lengths).unsqueeze(1))) // [B, T]
}

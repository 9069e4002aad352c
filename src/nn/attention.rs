//! Self-attention that sees both ways, for encoders.
//!
//! Source: Vaswani et al. (arXiv 1706.03762) §3.2.

use tch::{Kind, Tensor};

use super::linear::Linear;
use super::packed::{join, row_ranges, rows_of};
use super::relative_bias::RelativeBias;
use crate::weights::Loader;

/// Numbers of gated bias held at a time; longer clips are attended to in blocks of queries.
const BIAS_NUMBERS_MAX: i64 = 1 << 22; // 16 MB

/// Multi-head self-attention over whole sequences.
///
/// Checkpoint names: `{q,k,v,out}_proj.{weight,bias}`; for the gate of a relative position bias also
/// `gru_rel_pos_linear.{weight,bias}` and `gru_rel_pos_const`, as WavLM spells them. Whatever is projected
/// from the input is joined into one matrix when it is loaded.
#[derive(Debug)]
pub struct SelfAttention {
    /// `D` → queries, keys, values, and with a gate its two halves: `3·D` or `3·D + 2·N`.
    joined: Linear,
    out: Linear,
    heads: i64,
    head_width: i64,
    gate: Option<GateConstant>,
}

/// WavLM's learnable scalar per head, `[N]` f32.
#[derive(Debug)]
struct GateConstant(Tensor);

/// Outputs of the gate's projection that are summed before each sigmoid.
const GATE_SUMMANDS: i64 = 4;

impl SelfAttention {
    /// Takes the projections under `name`; `width` must be a multiple of `heads`. Whisper's keys have no
    /// bias.
    pub fn load(loader: &mut Loader<'_>, name: &str, width: i64, heads: i64, key_bias: bool) -> Self {
        let (weight, bias) = take_projections(loader, name, width, key_bias);
        Self::assemble(loader, name, width, heads, (weight, bias), None)
    }

    /// As [`load`](Self::load), with the gate of a relative position bias.
    pub fn load_gated(loader: &mut Loader<'_>, name: &str, width: i64, heads: i64) -> Self {
        let (weight_qkv, bias_qkv) = take_projections(loader, name, width, true);
        let head_width = width / heads;
        let outputs = 2 * GATE_SUMMANDS;
        let weight = loader.take_as(
            &format!("{name}.gru_rel_pos_linear.weight"),
            &[outputs, head_width],
            Kind::Float,
        );
        let bias = loader.take_as(
            &format!("{name}.gru_rel_pos_linear.bias"),
            &[outputs],
            Kind::Float,
        );
        let constant = loader.take_as(
            &format!("{name}.gru_rel_pos_const"),
            &[1, heads, 1, 1],
            Kind::Float,
        );
        // The sums are linear, so they are taken here once; one row for each head, zero outside the head's
        // own slice.
        let summed =
            weight
                .view([2, GATE_SUMMANDS, head_width])
                .sum_dim_intlist([1].as_slice(), false, Kind::Float); // [2, D/N]
        let rows = Tensor::zeros([2, heads, heads, head_width], (Kind::Float, loader.device()));
        for head in 0..heads {
            rows.select(1, head).select(1, head).copy_(&summed);
        }
        let gate_weight = rows.view([2 * heads, width]).to_kind(loader.kind());
        let summed_bias = bias
            .view([2, GATE_SUMMANDS])
            .sum_dim_intlist([1].as_slice(), true, Kind::Float) // [2, 1]
            .expand([2, heads], false);
        let gate_bias = summed_bias.reshape([2 * heads]).to_kind(loader.kind());
        let gate = GateConstant(constant.view([heads]));
        let joined = (
            join_or_first(&[weight_qkv, gate_weight]),
            join_or_first(&[bias_qkv, gate_bias]),
        );
        Self::assemble(loader, name, width, heads, joined, Some(gate))
    }

    fn assemble(
        loader: &mut Loader<'_>,
        name: &str,
        width: i64,
        heads: i64,
        (weight, bias): (Tensor, Tensor),
        gate: Option<GateConstant>,
    ) -> Self {
        Self {
            joined: Linear::new(weight, Some(bias)),
            out: Linear::load(loader, &format!("{name}.out_proj"), width, width),
            heads,
            head_width: width / heads,
            gate,
        }
    }

    /// Attends within each sequence; with `bias`, which needs a gate, near and far weigh differently.
    ///
    /// # Shapes
    /// `input` `[R, D]`, the packed sequences of `lengths` → `[R, D]`.
    pub fn forward(&self, input: &Tensor, lengths: &[i64], bias: Option<&RelativeBias>) -> Tensor {
        let joined = self.joined.forward(input); // [R, 3·D (+ 2·N)]
        let seen: Vec<Tensor> = row_ranges(lengths)
            .map(|range| {
                let rows = rows_of(&joined, &range);
                match (&self.gate, bias) {
                    (Some(gate), Some(bias)) => self.attend_biased(&rows, gate, bias),
                    _ => self.attend(&rows),
                }
            })
            .collect();
        self.out.forward(&join(&seen))
    }

    /// One sequence: `[T, 3·D]` → `[T, D]`.
    fn attend(&self, rows: &Tensor) -> Tensor {
        let width = self.heads * self.head_width;
        let part = |at: i64| self.split_heads(&rows.narrow(1, at * width, width));
        let seen = attention(&part(0), &part(1), &part(2), None);
        self.merge_heads(&seen)
    }

    /// One sequence, with the gated bias: `[T, 3·D + 2·N]` → `[T, D]`.
    fn attend_biased(&self, rows: &Tensor, gate: &GateConstant, bias: &RelativeBias) -> Tensor {
        let width = self.heads * self.head_width;
        let time = rows.size()[0];
        let query = self.split_heads(&rows.narrow(1, 0, width)); // [1, N, T, D/N]
        // Last key first, as the bias is laid out; attention does not mind the order of keys.
        let reversed = rows.narrow(1, width, 2 * width).flip([0]); // [T, 2·D]
        let key = self.split_heads(&reversed.narrow(1, 0, width));
        let value = self.split_heads(&reversed.narrow(1, width, width));
        let halves = rows
            .narrow(1, 3 * width, 2 * self.heads)
            .to_kind(Kind::Float)
            .sigmoid(); // [T, 2·N]
        let (a, b) = (
            halves.narrow(1, 0, self.heads),
            halves.narrow(1, self.heads, self.heads),
        );
        let gate: Tensor = a * (b * &gate.0 - 1.0) + 2.0; // [T, N]
        let gate = gate.transpose(0, 1).contiguous().unsqueeze(-1); // [N, T, 1]
        let block = (BIAS_NUMBERS_MAX / (self.heads * time)).clamp(1, time);
        let blocks: Vec<Tensor> = (0..time)
            .step_by(block as usize)
            .map(|start| {
                let count = block.min(time - start);
                let gated = gate.narrow(1, start, count) * bias.of_queries(start, count, time); // [N, Q, T]
                let query = query.narrow(2, start, count);
                let seen = attention(&query, &key, &value, Some(&gated.unsqueeze(0)));
                self.merge_heads(&seen) // [Q, D]
            })
            .collect();
        join(&blocks)
    }

    /// `[T, D]` → `[1, N, T, D/N]`.
    fn split_heads(&self, rows: &Tensor) -> Tensor {
        rows.view([1, -1, self.heads, self.head_width]).transpose(1, 2)
    }

    /// `[1, N, T, D/N]` → `[T, D]`.
    fn merge_heads(&self, seen: &Tensor) -> Tensor {
        seen.transpose(1, 2).reshape([-1, self.heads * self.head_width])
    }
}

fn attention(query: &Tensor, key: &Tensor, value: &Tensor, bias: Option<&Tensor>) -> Tensor {
    Tensor::scaled_dot_product_attention(query, key, value, bias, 0.0, false, None::<f64>, false)
}

/// Queries, keys and values one below the other: weight `[3·D, D]` and bias `[3·D]`.
fn take_projections(loader: &mut Loader<'_>, name: &str, width: i64, key_bias: bool) -> (Tensor, Tensor) {
    let rows = |what: &str| {
        ["q_proj", "k_proj", "v_proj"].map(|projection| (format!("{name}.{projection}.{what}"), width))
    };
    let weight = loader.take_joined(&rows("weight"), Some(width));
    if key_bias {
        return (weight, loader.take_joined(&rows("bias"), None));
    }
    let [query, _, value] = rows("bias").map(|(name, _)| name);
    let (query, value) = (loader.take(&query, &[width]), loader.take(&value, &[width]));
    let key = query.zeros_like();
    (weight, join_or_first(&[query, key, value]))
}

/// Where a placeholder makes joining impossible, the load fails anyway and the first part will do.
fn join_or_first(parts: &[Tensor]) -> Tensor {
    Tensor::f_cat(parts, 0).unwrap_or_else(|_| parts[0].shallow_clone())
}

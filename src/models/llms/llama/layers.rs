//! One transformer layer of the Llama family: RMS norm, grouped attention, gated feed-forward.
//!
//! Source: LLaMA (arXiv 2302.13971) §2.2; grouped attention: Ainslie et al. (arXiv 2305.13245).

use tch::{Device, Kind, Tensor};

use super::config::LlamaConfig;
use crate::nn::lora::{LoraSet, LoraSite};
use crate::nn::projections::Projections;
use crate::nn::rms_norm::RmsNorm;
use crate::nn::rotary::Rotation;
use crate::weights::Loader;

/// One layer.
#[derive(Debug)]
pub(super) struct Layer {
    attention_norm: RmsNorm,
    qkv: Projections,
    output: Projections,
    feed_forward_norm: RmsNorm,
    gate_up: Projections,
    down: Projections,
    heads: i64,
    key_value_heads: i64,
    head_dim: i64,
    intermediate: i64,
}

/// Queries `[B, N, P, head]` and keys `[B, N_kv, P, head]`, turned and in f32, and values
/// `[B, N_kv, P, head]`.
pub(super) struct Heads {
    pub(super) queries: Tensor,
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
}

impl Layer {
    /// Takes the tensors of layer `index`.
    pub(super) fn load(loader: &mut Loader<'_>, index: i64, config: &LlamaConfig) -> Self {
        let prefix = format!("model.layers.{index}");
        let attention = format!("{prefix}.self_attn");
        let feed_forward = format!("{prefix}.mlp");
        let width = config.hidden_size;
        let query_width = config.heads * config.head_dim;
        let key_width = config.key_value_heads * config.head_dim;
        // Written by old versions of transformers; follows from `rope_theta`.
        loader.ignore(&format!("{attention}.rotary_emb.inv_freq"));
        Self {
            attention_norm: RmsNorm::load(
                loader,
                &format!("{prefix}.input_layernorm"),
                width,
                config.norm_epsilon,
            ),
            qkv: Projections::load(
                loader,
                &attention,
                width,
                &[
                    ("q_proj", query_width),
                    ("k_proj", key_width),
                    ("v_proj", key_width),
                ],
                config.qkv_bias,
            ),
            output: Projections::load(
                loader,
                &attention,
                query_width,
                &[("o_proj", width)],
                config.output_bias,
            ),
            feed_forward_norm: RmsNorm::load(
                loader,
                &format!("{prefix}.post_attention_layernorm"),
                width,
                config.norm_epsilon,
            ),
            gate_up: Projections::load(
                loader,
                &feed_forward,
                width,
                &[
                    ("gate_proj", config.intermediate_size),
                    ("up_proj", config.intermediate_size),
                ],
                false,
            ),
            down: Projections::load(
                loader,
                &feed_forward,
                config.intermediate_size,
                &[("down_proj", width)],
                false,
            ),
            heads: config.heads,
            key_value_heads: config.key_value_heads,
            head_dim: config.head_dim,
            intermediate: config.intermediate_size,
        }
    }

    /// Rounds the layer's matrices to 8-bit integers.
    pub(super) fn quantize(&mut self) {
        for projections in [&mut self.qkv, &mut self.output, &mut self.gate_up, &mut self.down] {
            projections.quantize();
        }
    }

    /// The projections that can carry a low-rank adapter.
    pub(super) fn lora_sites(&self) -> impl Iterator<Item = &LoraSite> {
        [&self.qkv, &self.output, &self.gate_up, &self.down]
            .into_iter()
            .flat_map(|projections| projections.sites())
    }

    /// The layer up to its attention: `[B, P, H]` → heads.
    pub(super) fn heads(&self, hidden: &Tensor, rotation: &Rotation, lora: Option<&LoraSet>) -> Heads {
        let (batch, positions) = (hidden.size()[0], hidden.size()[1]);
        let turned_heads = self.heads + self.key_value_heads;
        let all = self
            .qkv
            .forward(&self.attention_norm.forward(hidden), lora)
            .view([
                batch,
                positions,
                turned_heads + self.key_value_heads,
                self.head_dim,
            ])
            .transpose(1, 2); // [B, N + 2·N_kv, P, head]
        let turned = rotation.apply(&all.narrow(1, 0, turned_heads)); // [B, N + N_kv, P, head]
        Heads {
            queries: turned.narrow(1, 0, self.heads),
            keys: turned.narrow(1, self.heads, self.key_value_heads),
            values: all.narrow(1, turned_heads, self.key_value_heads),
        }
    }

    /// Causal attention over the rows' own positions: heads → `[B, P, N·head]`.
    ///
    /// Rows are padded on the right, so `is_causal` is all the masking there is to do: a valid position never
    /// looks at a later one, and what padding positions compute is read by nobody.
    pub(super) fn attend_causally(&self, heads: &Heads, dtype: Kind) -> Tensor {
        if heads.queries.requires_grad() && dtype == Kind::BFloat16 && heads.queries.device() == Device::Cpu {
            return self.attend_in_plain_products(heads, dtype);
        }
        self.attend(&heads.queries, &heads.keys, &heads.values, None, dtype)
    }

    /// Attention in `dtype`: queries `[B, N, P, head]`, keys and values `[B, N_kv, E, head]`
    /// → `[B, P, N·head]`. `mask` `[P, E]` is true where a query may look; without one, E is P and no query
    /// looks at a later position.
    pub(super) fn attend(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        mask: Option<&Tensor>,
        dtype: Kind,
    ) -> Tensor {
        let attended = Tensor::scaled_dot_product_attention(
            &queries.to_kind(dtype),
            &self.repeat_heads(&keys.to_kind(dtype)),
            &self.repeat_heads(&values.to_kind(dtype)),
            mask,
            0.0,
            mask.is_none(),
            None,
            false,
        ); // [B, N, P, head]
        attended.transpose(1, 2).flatten(2, 3) // [B, P, N·head]
    }

    /// The same attention as two matrix products and a softmax: its gradient takes an eighth of the time that
    /// the fused one takes in bf16 on a CPU (3.3 against 28 ms for 16 rows of 72 positions). For training
    /// alone; scores are rounded to `dtype`.
    fn attend_in_plain_products(&self, heads: &Heads, dtype: Kind) -> Tensor {
        let size = heads.queries.size();
        let (batch, positions) = (size[0], size[2]);
        let group = self.heads / self.key_value_heads;
        let shared = [batch * self.key_value_heads, positions, self.head_dim];
        let keys = heads.keys.to_kind(dtype).reshape(shared); // [B·N_kv, P, head]
        let values = heads.values.to_kind(dtype).reshape(shared);
        let scale = self.score_scale();
        // The query heads that share a key head stand one below the other: nothing has to be repeated.
        let queries = (&heads.queries * scale).to_kind(dtype).reshape([
            batch * self.key_value_heads,
            group * positions,
            self.head_dim,
        ]);
        let later = Tensor::full(
            [positions, positions],
            f64::NEG_INFINITY,
            (dtype, queries.device()),
        )
        .triu(1); // [P, P]
        let scores = queries
            .bmm(&keys.transpose(1, 2)) // [B·N_kv, group·P, P]
            .view([batch, self.heads, positions, positions])
            + later;
        scores
            .softmax(-1, dtype) // [B, N, P, P]
            .view([batch * self.key_value_heads, group * positions, positions])
            .bmm(&values) // [B·N_kv, group·P, head]
            .view([batch, self.heads, positions, self.head_dim])
            .transpose(1, 2)
            .flatten(2, 3) // [B, P, N·head]
    }

    /// `[B, N_kv, P, head]` → `[B, N, P, head]`: neighbouring query heads share a key head.
    fn repeat_heads(&self, heads: &Tensor) -> Tensor {
        let group = self.heads / self.key_value_heads;
        if group == 1 {
            return heads.shallow_clone();
        }
        heads
            .unsqueeze(2)
            .expand([-1, -1, group, -1, -1], false)
            .flatten(1, 2)
    }

    /// What scores are multiplied with.
    pub(super) fn score_scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// The layer from its attention on: `hidden` `[B, P, H]`, `attended` `[B, P, N·head]` → `[B, P, H]`.
    pub(super) fn finish(&self, hidden: &Tensor, attended: &Tensor, lora: Option<&LoraSet>) -> Tensor {
        let attended = attended.to_kind(hidden.kind());
        let hidden = hidden + self.output.forward(&attended, lora);
        let gate_up = self
            .gate_up
            .forward(&self.feed_forward_norm.forward(&hidden), lora); // [B, P, 2·I]
        // Split, not narrowed twice: its gradient is put together in one piece.
        let halves = gate_up.split(self.intermediate, -1);
        &hidden + self.down.forward(&(halves[0].silu() * &halves[1]), lora)
    }
}

//! The parts of a T5 block, all pre-norm with a residual around: attention, feed-forward.
//!
//! Source: Raffel et al. (arXiv 1910.10683) §2.1; gated feed-forward: Shazeer (arXiv 2002.05202).

use tch::{Device, Kind, Tensor};

use super::config::{Activation, T5Config};
use crate::nn::lora::{LoraSet, LoraSite};
use crate::nn::projections::Projections;
use crate::nn::rms_norm::RmsNorm;
use crate::weights::Loader;

/// What T5 multiplies scores with: its weights make up for the width of the heads.
pub(super) const SCORE_SCALE: f64 = 1.0;

/// Keys and values, `[B, N, P, head]` each.
pub(super) type KeysValues = (Tensor, Tensor);

/// Attention without biases, pre-norm with a residual around.
///
/// The projections are not joined into one matrix: large files are looked at where they lie, and joining
/// would copy them.
#[derive(Debug)]
pub(super) struct Attention {
    norm: RmsNorm,
    query: Projections,
    key: Projections,
    value: Projections,
    output: Projections,
    heads: i64,
    head_width: i64,
}

impl Attention {
    /// Takes `{prefix}.{name}.{q,k,v,o}` and `{prefix}.layer_norm`.
    pub(super) fn load(loader: &mut Loader<'_>, prefix: &str, name: &str, config: &T5Config) -> Self {
        let (width, inner) = (config.width, config.heads_width());
        let at = format!("{prefix}.{name}");
        Self {
            norm: take_norm(loader, prefix, config),
            query: Projections::one(loader, &at, "q", width, inner),
            key: Projections::one(loader, &at, "k", width, inner),
            value: Projections::one(loader, &at, "v", width, inner),
            output: Projections::one(loader, &at, "o", inner, width),
            heads: config.heads,
            head_width: config.head_width,
        }
    }

    /// Rounds the matrices to 8-bit integers; those of keys and values too where they are used in every step.
    pub(super) fn quantize(&mut self, keys_in_steps: bool) {
        self.query.quantize();
        self.output.quantize();
        if keys_in_steps {
            self.key.quantize();
            self.value.quantize();
        }
    }

    pub(super) fn sites(&self) -> impl Iterator<Item = &LoraSite> {
        [&self.query, &self.key, &self.value, &self.output]
            .into_iter()
            .flat_map(|projections| projections.sites())
    }

    /// What the queries, and in self-attention the keys and values, are made of: `[B, P, H]` → `[B, P, H]`.
    pub(super) fn normed(&self, hidden: &Tensor) -> Tensor {
        self.norm.forward(hidden)
    }

    /// `normed` `[B, P, H]` → `[B, N, P, head]`.
    pub(super) fn queries(&self, normed: &Tensor, lora: Option<&LoraSet>) -> Tensor {
        self.split(&self.query.forward(normed, lora))
    }

    /// `source` `[B, P, H]`: the normed input, or what the encoder made.
    pub(super) fn keys_values(&self, source: &Tensor, lora: Option<&LoraSet>) -> KeysValues {
        (
            self.split(&self.key.forward(source, lora)),
            self.split(&self.value.forward(source, lora)),
        )
    }

    /// `[B, P, N·head]` → `[B, N, P, head]`.
    fn split(&self, joined: &Tensor) -> Tensor {
        let size = joined.size();
        joined
            .view([size[0], size[1], self.heads, self.head_width])
            .transpose(1, 2)
    }

    /// Attends over whole sequences and adds the result to `hidden`.
    ///
    /// # Shapes
    /// `hidden`, `normed` `[B, P, H]`, keys and values `[B, N, T, head]`, `bias` added to the scores,
    /// broadcast to `[B, N, P, T]` → `[B, P, H]`.
    pub(super) fn attend(
        &self,
        hidden: &Tensor,
        normed: &Tensor,
        (keys, values): &KeysValues,
        bias: Option<&Tensor>,
        lora: Option<&LoraSet>,
    ) -> Tensor {
        let queries = self.queries(normed, lora);
        let learning = queries.requires_grad() || keys.requires_grad();
        let dtype = match keys.kind() {
            // On a CPU the gradient of attention is several times slower in bf16 than in f32.
            Kind::BFloat16 if learning && keys.device() == Device::Cpu => Kind::Float,
            dtype => dtype,
        };
        let attended = Tensor::scaled_dot_product_attention(
            &queries.to_kind(dtype),
            &keys.to_kind(dtype),
            &values.to_kind(dtype),
            bias.map(|bias| bias.to_kind(dtype)),
            0.0,
            false,
            Some(SCORE_SCALE),
            false,
        ); // [B, N, P, head]
        self.finish(hidden, &attended.transpose(1, 2).flatten(2, 3), lora)
    }

    /// Adds what was attended to, `[B, P, N·head]`, to `hidden`.
    pub(super) fn finish(&self, hidden: &Tensor, attended: &Tensor, lora: Option<&LoraSet>) -> Tensor {
        hidden + self.output.forward(&attended.to_kind(hidden.kind()), lora)
    }
}

fn take_norm(loader: &mut Loader<'_>, prefix: &str, config: &T5Config) -> RmsNorm {
    let name = format!("{prefix}.layer_norm");
    RmsNorm::load(loader, &name, config.width, config.norm_epsilon)
}

/// Two matrices with an activation between them, which may gate a third; pre-norm with a residual around.
#[derive(Debug)]
pub(super) struct FeedForward {
    norm: RmsNorm,
    /// What the activation acts on.
    input: Projections,
    gated: Option<Projections>,
    output: Projections,
    activation: Activation,
}

impl FeedForward {
    /// Takes `{prefix}.DenseReluDense.{wi,wo}` or `{wi_0,wi_1,wo}`, and `{prefix}.layer_norm`.
    pub(super) fn load(loader: &mut Loader<'_>, prefix: &str, config: &T5Config) -> Self {
        let (width, inner) = (config.width, config.inner_width);
        let at = format!("{prefix}.DenseReluDense");
        let first = if config.gated { "wi_0" } else { "wi" };
        Self {
            norm: take_norm(loader, prefix, config),
            input: Projections::one(loader, &at, first, width, inner),
            gated: (config.gated).then(|| Projections::one(loader, &at, "wi_1", width, inner)),
            output: Projections::one(loader, &at, "wo", inner, width),
            activation: config.activation,
        }
    }

    /// Rounds the matrices to 8-bit integers.
    pub(super) fn quantize(&mut self) {
        for projections in [Some(&mut self.input), self.gated.as_mut(), Some(&mut self.output)]
            .into_iter()
            .flatten()
        {
            projections.quantize();
        }
    }

    pub(super) fn sites(&self) -> impl Iterator<Item = &LoraSite> {
        [Some(&self.input), self.gated.as_ref(), Some(&self.output)]
            .into_iter()
            .flatten()
            .flat_map(|projections| projections.sites())
    }

    /// `[B, P, H]` → `[B, P, H]`, the input added.
    pub(super) fn forward(&self, hidden: &Tensor, lora: Option<&LoraSet>) -> Tensor {
        let normed = self.norm.forward(hidden);
        let active = self.activate(&self.input.forward(&normed, lora)); // [B, P, I]
        let inner = match &self.gated {
            Some(gated) => active * gated.forward(&normed, lora),
            None => active,
        };
        hidden + self.output.forward(&inner, lora)
    }

    fn activate(&self, inner: &Tensor) -> Tensor {
        match self.activation {
            Activation::Relu => inner.relu(),
            Activation::GeluTanh => inner.gelu("tanh"),
            Activation::Gelu => inner.gelu("none"),
            Activation::Silu => inner.silu(),
        }
    }
}

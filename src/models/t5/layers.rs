//! The parts of a T5 block, all pre-norm with a residual around: attention within a sequence, over the prompt, feed-forward.

use tch::{Device, Kind, Tensor};

use super::config::{Activation, T5Config};
use crate::nn::lora::{LoraSet, LoraSite};
use crate::nn::projections::Projections;
use crate::nn::rms_norm::RmsNorm;
use crate::weights::Loader;

/// Keys and values, `[B, N, P, head]` each.
pub(super) type KeysValues = (Tensor, Tensor);

/// How the numbers of one position are divided among heads.
#[derive(Clone, Copy, Debug)]
struct Heads {
    count: i64,
    width: i64,
}

impl Heads {
    fn of(config: &T5Config) -> Self {
        Self {
            count: config.heads,
            width: config.head_width,
        }
    }

    /// `[B, P, N·head]` → `[B, N, P, head]`.
    fn split(self, joined: &Tensor) -> Tensor {
        let size = joined.size();
        joined
            .view([size[0], size[1], self.count, self.width])
            .transpose(1, 2)
    }

    /// Attention over all of `keys` and `values`; scores are not divided by the root of the head's width.
    ///
    /// # Shapes
    /// `queries` `[B, N, P, head]`, `bias` added to the scores, broadcast to `[B, N, P, T]` → `[B, P, N·head]`.
    fn attend(self, queries: &Tensor, (keys, values): &KeysValues, bias: Option<&Tensor>) -> Tensor {
        let learning = queries.requires_grad() || keys.requires_grad();
        let kind = match keys.kind() {
            // On a CPU the gradient of attention is several times slower in bf16 than in f32.
            Kind::BFloat16 if learning && keys.device() == Device::Cpu => Kind::Float,
            kind => kind,
        };
        let attended = Tensor::scaled_dot_product_attention(
            &queries.to_kind(kind),
            &keys.to_kind(kind),
            &values.to_kind(kind),
            bias.map(|bias| bias.to_kind(kind)),
            0.0,
            false,
            Some(SCORE_SCALE),
            false,
        ); // [B, N, P, head]
        attended.transpose(1, 2).flatten(2, 3)
    }
}

/// What T5 multiplies scores with: its weights make up for the width of the heads.
pub(super) const SCORE_SCALE: f64 = 1.0;

/// Attention within a sequence, pre-norm with a residual around, without biases.
///
/// The projections are not joined into one matrix: large files are looked at where they lie, and joining would copy them.
#[derive(Debug)]
pub(super) struct SelfAttention {
    norm: RmsNorm,
    query: Projections,
    key: Projections,
    value: Projections,
    output: Projections,
    heads: Heads,
}

impl SelfAttention {
    /// Takes `{prefix}.SelfAttention.{q,k,v,o}` and `{prefix}.layer_norm`.
    pub(super) fn load(loader: &mut Loader<'_>, prefix: &str, config: &T5Config) -> Self {
        let (width, inner) = (config.width, config.heads_width());
        let at = format!("{prefix}.SelfAttention");
        Self {
            norm: take_norm(loader, prefix, config),
            query: Projections::one(loader, &at, "q", width, inner),
            key: Projections::one(loader, &at, "k", width, inner),
            value: Projections::one(loader, &at, "v", width, inner),
            output: Projections::one(loader, &at, "o", inner, width),
            heads: Heads::of(config),
        }
    }

    /// Rounds the matrices to 8-bit integers.
    pub(super) fn quantize(&mut self) {
        for projections in [&mut self.query, &mut self.key, &mut self.value, &mut self.output] {
            projections.quantize();
        }
    }

    pub(super) fn sites(&self) -> impl Iterator<Item = &LoraSite> {
        [&self.query, &self.key, &self.value, &self.output]
            .into_iter()
            .flat_map(|projections| projections.sites())
    }

    /// Queries, keys and values of `hidden` `[B, P, H]`, `[B, N, P, head]` each.
    pub(super) fn project(&self, hidden: &Tensor, lora: Option<&LoraSet>) -> (Tensor, KeysValues) {
        let normed = self.norm.forward(hidden);
        let [queries, keys, values] = [&self.query, &self.key, &self.value]
            .map(|projections| self.heads.split(&projections.forward(&normed, lora)));
        (queries, (keys, values))
    }

    /// Whole sequences: `hidden` `[B, P, H]`, `bias` broadcast to `[B, N, P, P]` → `[B, P, H]`.
    pub(super) fn forward(&self, hidden: &Tensor, bias: &Tensor, lora: Option<&LoraSet>) -> Tensor {
        let (queries, own) = self.project(hidden, lora);
        self.finish(hidden, &self.heads.attend(&queries, &own, Some(bias)), lora)
    }

    /// Adds what was attended to, `[B, P, N·head]`, to `hidden`.
    pub(super) fn finish(&self, hidden: &Tensor, attended: &Tensor, lora: Option<&LoraSet>) -> Tensor {
        hidden + self.output.forward(&attended.to_kind(hidden.kind()), lora)
    }
}

/// Attention of the decoder over the prompt, pre-norm with a residual around, without biases.
#[derive(Debug)]
pub(super) struct CrossAttention {
    norm: RmsNorm,
    query: Projections,
    key: Projections,
    value: Projections,
    output: Projections,
    heads: Heads,
}

impl CrossAttention {
    /// Takes `{prefix}.EncDecAttention.{q,k,v,o}` and `{prefix}.layer_norm`.
    pub(super) fn load(loader: &mut Loader<'_>, prefix: &str, config: &T5Config) -> Self {
        let (width, inner) = (config.width, config.heads_width());
        let at = format!("{prefix}.EncDecAttention");
        Self {
            norm: take_norm(loader, prefix, config),
            query: Projections::one(loader, &at, "q", width, inner),
            key: Projections::one(loader, &at, "k", width, inner),
            value: Projections::one(loader, &at, "v", width, inner),
            output: Projections::one(loader, &at, "o", inner, width),
            heads: Heads::of(config),
        }
    }

    /// Rounds the matrices that every step needs to 8-bit integers; keys and values are made once.
    pub(super) fn quantize(&mut self) {
        self.query.quantize();
        self.output.quantize();
    }

    pub(super) fn sites(&self) -> impl Iterator<Item = &LoraSite> {
        [&self.query, &self.key, &self.value, &self.output]
            .into_iter()
            .flat_map(|projections| projections.sites())
    }

    /// Of what the encoder made of the prompt, `[B, P, H]`.
    pub(super) fn keys_values(&self, encoded: &Tensor, lora: Option<&LoraSet>) -> KeysValues {
        let split = |projections: &Projections| self.heads.split(&projections.forward(encoded, lora));
        (split(&self.key), split(&self.value))
    }

    /// Queries of `hidden` `[B, P, H]`, `[B, N, P, head]`.
    pub(super) fn queries(&self, hidden: &Tensor, lora: Option<&LoraSet>) -> Tensor {
        let normed = self.norm.forward(hidden);
        self.heads.split(&self.query.forward(&normed, lora))
    }

    /// Whole sequences: `hidden` `[B, L, H]`, `encoded` `[B, P, H]`, `bias` broadcast to `[B, N, L, P]` → `[B, L, H]`.
    pub(super) fn forward(
        &self,
        hidden: &Tensor,
        encoded: &Tensor,
        bias: Option<&Tensor>,
        lora: Option<&LoraSet>,
    ) -> Tensor {
        let prompt = self.keys_values(encoded, lora);
        let attended = self.heads.attend(&self.queries(hidden, lora), &prompt, bias);
        self.finish(hidden, &attended, lora)
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

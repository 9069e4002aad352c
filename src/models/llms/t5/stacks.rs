//! The two stacks of T5: the encoder, which reads the prompt, and the decoder, which writes the answer.
//!
//! A stack's relative positions are learned in its first block and shared by all; they are looked up once per
//! pass.
//!
//! Source: Raffel et al. (arXiv 1910.10683) §2.1.

use tch::{Kind, Tensor};

use super::bias::RelativeBias;
use super::config::T5Config;
use super::layers::{Attention, FeedForward, SCORE_SCALE};
use crate::nn::kv_cache::{KvCache, StepPlan};
use crate::nn::lora::{LoraSet, LoraSite};
use crate::nn::rms_norm::RmsNorm;
use crate::weights::Loader;

/// Sees the input of every block.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&Tensor);

#[derive(Debug)]
struct EncoderBlock {
    attention: Attention,
    feed_forward: FeedForward,
}

/// Reads a whole sequence, looking both ways.
#[derive(Debug)]
pub(super) struct Encoder {
    blocks: Vec<EncoderBlock>,
    norm: RmsNorm,
    positions: Positions,
}

#[derive(Debug)]
struct DecoderBlock {
    attention: Attention,
    cross: Attention,
    feed_forward: FeedForward,
}

/// Reads the answer so far, looking back at it and all over the prompt.
#[derive(Debug)]
pub(super) struct Decoder {
    blocks: Vec<DecoderBlock>,
    norm: RmsNorm,
    positions: Positions,
}

/// Relative positions as they are in the file, and laid out for use.
#[derive(Debug)]
struct Positions {
    /// `[buckets, N]`.
    table: Tensor,
    bias: Option<RelativeBias>,
}

impl Positions {
    fn load(loader: &mut Loader<'_>, stack: &str, config: &T5Config) -> Self {
        let name = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        Self {
            table: loader.take(&name, &[config.buckets, config.heads]),
            bias: None,
        }
    }

    /// To be called once the load is known to be whole: a lying file cannot ask for memory then.
    fn lay_out(&mut self, config: &T5Config, both_ways: bool) {
        self.bias = Some(RelativeBias::new(&self.table, config.max_distance, both_ways));
    }

    fn bias(&self) -> &RelativeBias {
        self.bias.as_ref().expect("a model lays them out when it is made")
    }
}

/// `0` where a mask is true, `−∞` where it is not, in `dtype`.
fn additive(mask: &Tensor, dtype: Kind) -> Tensor {
    Tensor::zeros(mask.size(), (dtype, mask.device())).masked_fill(&mask.logical_not(), f64::NEG_INFINITY)
}

impl Encoder {
    pub(super) fn load(loader: &mut Loader<'_>, config: &T5Config) -> Self {
        let blocks = (0..config.encoder_layers).map(|index| {
            let at = |layer: i64| format!("encoder.block.{index}.layer.{layer}");
            EncoderBlock {
                attention: Attention::load(loader, &at(0), "SelfAttention", config),
                feed_forward: FeedForward::load(loader, &at(1), config),
            }
        });
        Self {
            blocks: blocks.collect(),
            norm: RmsNorm::load(
                loader,
                "encoder.final_layer_norm",
                config.width,
                config.norm_epsilon,
            ),
            positions: Positions::load(loader, "encoder", config),
        }
    }

    pub(super) fn lay_out(&mut self, config: &T5Config) {
        self.positions.lay_out(config, true);
    }

    pub(super) fn sites(&self) -> impl Iterator<Item = &LoraSite> {
        (self.blocks.iter()).flat_map(|block| block.attention.sites().chain(block.feed_forward.sites()))
    }

    /// `hidden` `[B, P, H]`, `valid` `[B, 1, 1, P]` where rows differ in length → `[B, P, H]`, final norm
    /// applied.
    pub(super) fn forward(
        &self,
        hidden: Tensor,
        valid: Option<&Tensor>,
        lora: Option<&LoraSet>,
        visit: Visit<'_>,
    ) -> Tensor {
        let dtype = hidden.kind();
        let bias = self.positions.bias().square(hidden.size()[1]).to_kind(dtype); // [1, N, P, P]
        let bias = match valid {
            Some(valid) => bias + additive(valid, dtype), // [B, N, P, P]
            None => bias,
        };
        let mut hidden = hidden;
        for block in &self.blocks {
            visit(&hidden);
            let normed = block.attention.normed(&hidden);
            let own = block.attention.keys_values(&normed, lora);
            hidden = block.attention.attend(&hidden, &normed, &own, Some(&bias), lora);
            hidden = block.feed_forward.forward(&hidden, lora);
        }
        self.norm.forward(&hidden)
    }
}

impl Decoder {
    pub(super) fn load(loader: &mut Loader<'_>, config: &T5Config) -> Self {
        let blocks = (0..config.decoder_layers).map(|index| {
            let at = |layer: i64| format!("decoder.block.{index}.layer.{layer}");
            // Left over in some published files; nothing reads it.
            loader.ignore(&format!(
                "{}.EncDecAttention.relative_attention_bias.weight",
                at(1)
            ));
            DecoderBlock {
                attention: Attention::load(loader, &at(0), "SelfAttention", config),
                cross: Attention::load(loader, &at(1), "EncDecAttention", config),
                feed_forward: FeedForward::load(loader, &at(2), config),
            }
        });
        Self {
            blocks: blocks.collect(),
            norm: RmsNorm::load(
                loader,
                "decoder.final_layer_norm",
                config.width,
                config.norm_epsilon,
            ),
            positions: Positions::load(loader, "decoder", config),
        }
    }

    pub(super) fn lay_out(&mut self, config: &T5Config) {
        self.positions.lay_out(config, false);
    }

    /// Rounds what every step needs to 8-bit integers.
    pub(super) fn quantize(&mut self) {
        for block in &mut self.blocks {
            block.attention.quantize(true);
            block.cross.quantize(false);
            block.feed_forward.quantize();
        }
    }

    pub(super) fn sites(&self) -> impl Iterator<Item = &LoraSite> {
        (self.blocks.iter()).flat_map(|block| {
            (block.attention.sites())
                .chain(block.cross.sites())
                .chain(block.feed_forward.sites())
        })
    }

    /// A whole answer at once.
    ///
    /// # Shapes
    /// `hidden` `[B, L, H]`, `encoded` `[B, P, H]`, `valid` `[B, 1, 1, P]` where prompts differ in length →
    /// `[B, L, H]`, final norm applied. What stands behind a row's end is seen by nobody before it.
    pub(super) fn forward(
        &self,
        hidden: Tensor,
        encoded: &Tensor,
        valid: Option<&Tensor>,
        lora: Option<&LoraSet>,
        visit: Visit<'_>,
    ) -> Tensor {
        let (dtype, length) = (hidden.kind(), hidden.size()[1]);
        let past = Tensor::ones([length, length], (Kind::Bool, hidden.device())).tril(0);
        let bias = self.positions.bias().square(length).to_kind(dtype) + additive(&past, dtype); // [1, N, L, L]
        let cross_bias = valid.map(|valid| additive(valid, dtype)); // [B, 1, 1, P]
        let mut hidden = hidden;
        for block in &self.blocks {
            visit(&hidden);
            let normed = block.attention.normed(&hidden);
            let own = block.attention.keys_values(&normed, lora);
            hidden = block.attention.attend(&hidden, &normed, &own, Some(&bias), lora);
            let normed = block.cross.normed(&hidden);
            let prompt = block.cross.keys_values(encoded, lora);
            hidden = block
                .cross
                .attend(&hidden, &normed, &prompt, cross_bias.as_ref(), lora);
            hidden = block.feed_forward.forward(&hidden, lora);
        }
        self.norm.forward(&hidden)
    }

    /// Keeps what cross-attention reads of the prompts in the cache, after [`KvCache::begin`].
    pub(super) fn remember(
        &self,
        encoded: &Tensor,
        cache: &mut KvCache,
        slots: &[usize],
        lora: Option<&LoraSet>,
    ) {
        for (index, block) in self.blocks.iter().enumerate() {
            let (keys, values) = block.cross.keys_values(encoded, lora);
            cache.store(index, slots, &keys, &values);
        }
    }

    /// One token of each slot: `hidden` `[B, 1, H]` → `[B, 1, H]`, final norm applied.
    pub(super) fn step(
        &self,
        hidden: Tensor,
        cache: &mut KvCache,
        plan: &StepPlan,
        lora: Option<&LoraSet>,
    ) -> Tensor {
        let dtype = cache.kind();
        let bias = (self.positions.bias())
            .row(plan.positions(), plan.longest())
            .to_kind(dtype); // [B, N, 1, longest]
        let bias = match plan.mask() {
            Some(mask) => bias + additive(mask, dtype),
            None => bias,
        };
        let mut hidden = hidden;
        for (index, block) in self.blocks.iter().enumerate() {
            let normed = block.attention.normed(&hidden);
            let queries = block.attention.queries(&normed, lora);
            let (keys, values) = block.attention.keys_values(&normed, lora);
            cache.append(index, plan, &keys, &values);
            let attended = cache.attend(index, plan, &queries, SCORE_SCALE, Some(&bias));
            hidden = block.attention.finish(&hidden, &attended, lora);
            let queries = block.cross.queries(&block.cross.normed(&hidden), lora);
            let attended = cache
                .attend_prompt(index, plan, &queries, SCORE_SCALE)
                .expect("a cache of this model has a buffer for prompts");
            hidden = block.cross.finish(&hidden, &attended, lora);
            hidden = block.feed_forward.forward(&hidden, lora);
        }
        self.norm.forward(&hidden)
    }
}

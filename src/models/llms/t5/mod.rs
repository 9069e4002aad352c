//! T5: an encoder–decoder with relative positions; the language model of the SpeechVerse paper is Flan-T5-XL.
//!
//! | | |
//! |---|---|
//! | members | T5 1.1 and Flan-T5 (gated GELU, untied head), T5 1.0 (ReLU, tied and scaled head) |
//! | source | transformers 5, `models/llms/t5/modeling_t5.py` |
//! | checkpoint | `shared`, `{encoder,decoder}.block.{i}.layer.{j}.{SelfAttention,EncDecAttention,DenseReluDense}`, `{encoder,decoder}.final_layer_norm`, and `lm_head` where embeddings are not tied |
//! | precision | f32 or bf16 for the matrices; the norms' variance always in f32; logits leave as f32. Not f16: its range is too small for what the feed-forward layers of T5 make |
//!
//! The encoder is fed with embeddings, so audio can stand before the instruction. Attention scores are not
//! scaled; a learned bias by relative position is added instead, which knows no last position.

mod bias;
mod config;
mod layers;
mod stacks;

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

pub use config::{Activation, T5Config};
use stacks::{Decoder, Encoder, Visit};

use super::batch;
use crate::models::{LanguageModel, LanguageModelInfo, ModelError};
use crate::nn::accel::{Placement, Precision};
use crate::nn::kv_cache::{KvCache, KvCacheShape};
use crate::nn::linear_weight::LinearWeight;
use crate::nn::lora::{LoraSet, LoraSite};
use crate::weights::{Checkpoint, Loader};

/// Relative positions have no end; this bounds what a sequence may ask of memory.
const POSITIONS_MAX: i64 = 1 << 14; // 16_384: 21 minutes of audio

/// A frozen T5.
#[derive(Debug)]
pub struct T5 {
    config: T5Config,
    parts: Parts,
    dtype: Kind,
    device: Device,
}

/// Everything that comes from the checkpoint.
#[derive(Debug)]
struct Parts {
    /// `[V, H]`.
    embeddings: Tensor,
    encoder: Encoder,
    decoder: Decoder,
    /// `[V, H]`; shares storage with `embeddings` where they are tied, unless it is quantised.
    head: LinearWeight,
}

/// All hidden states of one prompt and one answer, numbered as transformers does: a stack's embedded input
/// first, its output with the final norm last.
#[derive(Debug)]
pub struct T5States {
    /// `encoder layers + 1` tensors `[P, H]`.
    pub encoder: Vec<Tensor>,
    /// `decoder layers + 1` tensors `[L, H]`.
    pub decoder: Vec<Tensor>,
    /// f32 `[L, V]`.
    pub logits: Tensor,
}

impl Parts {
    fn take(loader: &mut Loader<'_>, config: &T5Config) -> Self {
        let table = [config.vocab_size, config.width];
        let names = [
            "shared.weight",
            "encoder.embed_tokens.weight",
            "decoder.embed_tokens.weight",
        ];
        // One table under up to three names; which of them a file has depends on what wrote it.
        let name = (names.into_iter())
            .find(|name| loader.contains(name))
            .unwrap_or(names[0]);
        let embeddings = loader.take(name, &table);
        for other in names.into_iter().filter(|other| *other != name) {
            loader.alias(other, name);
        }
        let encoder = Encoder::load(loader, config);
        let decoder = Decoder::load(loader, config);
        let head = if config.may_tie && !loader.contains("lm_head.weight") {
            embeddings.shallow_clone()
        } else {
            loader.take("lm_head.weight", &table)
        };
        Self {
            embeddings,
            encoder,
            decoder,
            head: LinearWeight::new(head),
        }
    }

    fn sites(&self) -> Vec<LoraSite> {
        (self.encoder.sites().chain(self.decoder.sites()))
            .cloned()
            .collect()
    }
}

impl T5 {
    /// Loads a model folder in the Hugging Face layout, exactly: every tensor found, none left over.
    ///
    /// `dtype` is what the matrices are kept and multiplied in ([`Kind::Float`] or [`Kind::BFloat16`]).
    ///
    /// # Errors
    /// [`ModelError`] when `config.json` cannot be used or the checkpoint does not fit it.
    pub fn open(folder: &Path, device: Device, dtype: Kind) -> Result<Self, ModelError> {
        let config = T5Config::open(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        Self::load(config, &checkpoint, device, dtype)
    }

    /// Loads a checkpoint that `config` describes.
    ///
    /// # Errors
    /// [`ModelError::Weights`] with every difference between the two; [`ModelError::Precision`] for f16.
    pub fn load(
        config: T5Config,
        checkpoint: &Checkpoint,
        device: Device,
        dtype: Kind,
    ) -> Result<Self, ModelError> {
        if dtype == Kind::Half {
            return Err(ModelError::Precision {
                model: "T5",
                found: "f16",
                reason: "its feed-forward layers overflow in it; use bf16 or f32",
            });
        }
        let _no_grad = tch::no_grad_guard();
        let mut loader = checkpoint.loader(device, dtype);
        let mut parts = Parts::take(&mut loader, &config);
        loader.finish()?;
        parts.encoder.lay_out(&config);
        parts.decoder.lay_out(&config);
        Ok(Self {
            config,
            parts,
            dtype,
            device,
        })
    }

    /// What a model of this configuration is made of, without making it: the name and shape of every tensor,
    /// and the projections that can carry a low-rank adapter.
    pub fn outline(config: &T5Config) -> (BTreeMap<String, Vec<i64>>, Vec<LoraSite>) {
        let nothing = Checkpoint::nothing();
        let mut loader = nothing.loader(Device::Cpu, Kind::Float);
        let parts = Parts::take(&mut loader, config);
        (loader.declared().clone(), parts.sites())
    }

    /// The sizes and constants it was built from.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Which of the first positions are valid, `[B, 1, 1, P]`; none where all are.
    fn valid(&self, lengths: &[i64], positions: i64) -> Option<Tensor> {
        lengths.iter().any(|length| *length < positions).then(|| {
            let lengths = Tensor::from_slice(lengths).to_device(self.device).unsqueeze(1);
            Tensor::arange(positions, (Kind::Int64, self.device))
                .less_tensor(&lengths) // [B, P]
                .view([-1, 1, 1, positions])
        })
    }

    /// Checks a padded batch and returns `(B, P)`.
    fn check_batch(&self, embeds: &Tensor, lengths: &[i64]) -> Result<(i64, i64), ModelError> {
        batch::check_padded(embeds, lengths, self.config.width, POSITIONS_MAX)
    }

    /// What the encoder makes of prompts: `embeds` `[B, P, H]`, right-padded → `[B, P, H]`, final norm
    /// applied.
    ///
    /// # Errors
    /// [`ModelError`] when shapes disagree.
    pub fn encode(
        &self,
        embeds: &Tensor,
        lengths: &[i64],
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError> {
        self.encode_visiting(embeds, lengths, lora, &mut |_| ())
    }

    fn encode_visiting(
        &self,
        embeds: &Tensor,
        lengths: &[i64],
        lora: Option<&LoraSet>,
        visit: Visit<'_>,
    ) -> Result<Tensor, ModelError> {
        let (_, positions) = self.check_batch(embeds, lengths)?;
        let embeds = embeds.to_device(self.device).to_kind(self.dtype);
        let valid = self.valid(lengths, positions);
        Ok((self.parts.encoder).forward(embeds, valid.as_ref(), lora, visit))
    }

    /// Output layer: `[.., H]` → f32 `[.., V]`.
    fn logits(&self, hidden: &Tensor) -> Tensor {
        let scaled = if self.config.scales_output {
            hidden * (self.config.width as f64).powf(-0.5)
        } else {
            hidden.shallow_clone()
        };
        self.parts.head.multiply(&scaled, None).to_kind(Kind::Float)
    }

    /// Rounds what each step of the decoder multiplies with to 8-bit integers; the encoder, which reads many
    /// positions at once and gains nothing by it, stays as it is.
    pub fn quantize(&mut self) {
        self.parts.decoder.quantize();
        self.parts.head.quantize();
    }

    /// All hidden states of a prompt of ids and an answer that has been read so far (the start token first).
    ///
    /// # Errors
    /// [`ModelError`] when an id does not exist, or there are none or too many.
    pub fn states(&self, ids: &[i64], decoder_ids: &[i64]) -> Result<T5States, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let (mut encoder, mut decoder) = (Vec::new(), Vec::new());
        let prompt = self.embed(ids)?.unsqueeze(0); // [1, P, H]
        let answer = self.embed(decoder_ids)?.unsqueeze(0); // [1, L, H]
        let encoded = self.encode_visiting(&prompt, &[ids.len() as i64], None, &mut |hidden| {
            encoder.push(hidden.get(0));
        })?;
        self.check_batch(&answer, &[decoder_ids.len() as i64])?;
        let decoded = (self.parts.decoder).forward(answer, &encoded, None, None, &mut |hidden| {
            decoder.push(hidden.get(0));
        });
        encoder.push(encoded.get(0));
        decoder.push(decoded.get(0));
        Ok(T5States {
            logits: self.logits(&decoded.get(0)),
            encoder,
            decoder,
        })
    }
}

impl T5 {
    /// As [`open`](Self::open), on a device and in a precision that were chosen for it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_for(folder: &Path, placement: &Placement) -> Result<Self, ModelError> {
        let mut model = Self::open(folder, placement.device, placement.kind())?;
        if placement.precision == Precision::Int8 {
            model.quantize();
        }
        Ok(model)
    }
}

impl LanguageModel for T5 {
    fn info(&self) -> LanguageModelInfo {
        LanguageModelInfo {
            width: self.config.width,
            vocab: self.config.vocab_size,
            layers: self.config.encoder_layers + self.config.decoder_layers,
            max_positions: POSITIONS_MAX,
        }
    }

    fn lora_sites(&self) -> Vec<LoraSite> {
        self.parts.sites()
    }

    fn embed(&self, ids: &[i64]) -> Result<Tensor, ModelError> {
        batch::embed(&self.parts.embeddings, ids)
    }

    fn embedding_table(&self) -> Tensor {
        self.parts.embeddings.shallow_clone()
    }

    fn teacher_forced_logits(
        &self,
        prompts: &[Tensor],
        answers: &[&[i64]],
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError> {
        batch::check_batch(prompts, answers, self.config.width)?;
        let lengths: Vec<i64> = prompts.iter().map(|prompt| prompt.size()[0]).collect();
        let embeds = Tensor::f_pad_sequence(prompts, true, 0.0, "right")?; // [B, P, H]
        let encoded = self.encode(&embeds, &lengths, lora)?;
        let valid = self.valid(&lengths, encoded.size()[1]);

        let longest = answers.iter().map(|answer| answer.len()).max().unwrap_or(0);
        let mut fed = Vec::with_capacity(answers.len() * longest);
        let mut at = Vec::new();
        for answer in answers {
            at.extend((fed.len() as i64..).take(answer.len()));
            // Shifted right: each token is predicted from those before it. What pads a row is seen by nobody.
            fed.push(self.config.start_id);
            fed.extend_from_slice(&answer[..answer.len() - 1]);
            fed.resize(fed.len() + longest - answer.len(), self.config.start_id);
        }
        // The last token is never fed, but must exist.
        for answer in answers {
            let vocabulary = self.config.vocab_size;
            if let Some(id) = answer.last().filter(|id| !(0..vocabulary).contains(*id)) {
                return Err(ModelError::TokenOutOfRange { id: *id, vocabulary });
            }
        }
        let size = [answers.len() as i64, longest as i64, self.config.width];
        let hidden = self.embed(&fed)?.f_view(size)?; // [B, L, H]
        self.check_batch(&hidden, &vec![longest as i64; answers.len()])?;
        let hidden = (self.parts.decoder).forward(hidden, &encoded, valid.as_ref(), lora, &mut |_| ());
        let at = Tensor::f_from_slice(&at)?.f_to_device(self.device)?;
        Ok(self.logits(&hidden.f_flatten(0, 1)?.f_index_select(0, &at)?)) // [Σ L_i, V]
    }

    fn prompt_logits(&self, prompt: &Tensor, lora: Option<&LoraSet>) -> Result<Tensor, ModelError> {
        self.teacher_forced_logits(&[prompt.shallow_clone()], &[&[self.config.start_id]], lora)
    }

    fn probe(&self, ids: &[i64], decoder_ids: Option<&[i64]>) -> Result<Vec<(String, Tensor)>, ModelError> {
        let states = self.states(ids, decoder_ids.unwrap_or(&[self.config.start_id]))?;
        let mut named = vec![("logits".to_owned(), states.logits)];
        if let Some(last) = states.encoder.last() {
            named.push(("encoder".to_owned(), last.copy()));
        }
        for (stack, states) in [("encoder", states.encoder), ("decoder", states.decoder)] {
            for (index, state) in states.into_iter().enumerate() {
                named.push((format!("{stack}.hidden.{index}"), state.to_kind(Kind::Float)));
            }
        }
        Ok(named)
    }

    fn new_cache(&self, slots: i64, prompt_positions: i64, answer_positions: i64) -> KvCache {
        let shape = KvCacheShape {
            layers: self.config.decoder_layers,
            slots: slots.max(0),
            heads: self.config.heads,
            capacity: answer_positions.clamp(1, POSITIONS_MAX),
            prompt_capacity: Some(prompt_positions.clamp(1, POSITIONS_MAX)),
            head_dim: self.config.head_width,
        };
        let dtype = match self.device {
            Device::Cpu if self.dtype == Kind::BFloat16 => Kind::Float,
            _ => self.dtype,
        };
        KvCache::new(shape, dtype, self.device)
    }

    fn prefill(
        &self,
        embeds: &Tensor,
        lengths: &[i64],
        cache: &mut KvCache,
        slots: &[usize],
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let (batch, _) = self.check_batch(embeds, lengths)?;
        batch::check_rows("`slots`", slots.len(), batch)?;
        cache.begin(slots, lengths)?;
        let encoded = self.encode(embeds, lengths, lora)?;
        self.parts.decoder.remember(&encoded, cache, slots, lora);
        self.step(&vec![self.config.start_id; slots.len()], cache, slots, lora)
    }

    fn step(
        &self,
        ids: &[i64],
        cache: &mut KvCache,
        slots: &[usize],
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError> {
        let _no_grad = tch::no_grad_guard();
        if ids.is_empty() {
            return Err(ModelError::EmptyBatch);
        }
        batch::check_rows("`slots`", slots.len(), ids.len() as i64)?;
        let hidden = self.embed(ids)?.unsqueeze(1); // [B, 1, H]
        let plan = cache.plan_step(slots)?;
        let hidden = self.parts.decoder.step(hidden, cache, &plan, lora);
        cache.advance(&plan);
        Ok(self.logits(&hidden.squeeze_dim(1)))
    }
}

#[cfg(test)]
mod tests;

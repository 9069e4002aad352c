//! The Llama family: decoder-only transformers with grouped heads and rotary positions.
//!
//! | | |
//! |---|---|
//! | members | Llama, SmolLM2 (`model_type` `llama`); Qwen2, Qwen2.5 (`qwen2`: biases on queries, keys and values) |
//! | source | transformers 5, `models/llms/llama/modeling_llama.py`, `models/qwen2/modeling_qwen2.py` |
//! | checkpoint | `model.embed_tokens`, `model.layers.{i}.{self_attn.{q,k,v,o}_proj, mlp.{gate,up,down}_proj, input_layernorm, post_attention_layernorm}`, `model.norm`, and `lm_head` where embeddings are not tied |
//! | precision | f32, bf16 or 8-bit integers for the matrices; rotary positions and the norms' variance always in f32; logits leave as f32 |

mod config;
mod layers;

use std::path::Path;

use tch::{Device, Kind, TchError, Tensor};

pub use config::{LlamaConfig, Variant};
use layers::{Heads, Layer};

use super::batch;
use crate::models::{ChunkedPrefill, LanguageModel, LanguageModelInfo, ModelError};
use crate::nn::accel::{Placement, Precision};
use crate::nn::kv_cache::{KvCache, KvCacheShape};
use crate::nn::linear_weight::LinearWeight;
use crate::nn::lora::{LoraSet, LoraSite};
use crate::nn::packed::{join, row_ranges};
use crate::nn::rms_norm::RmsNorm;
use crate::nn::rotary::Rotary;
use crate::weights::Checkpoint;

/// A frozen language model of the Llama family.
#[derive(Debug)]
pub struct Llama {
    config: LlamaConfig,
    /// `[V, H]`.
    embeddings: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
    /// `[V, H]`; shares storage with `embeddings` where they are tied, unless it is quantised.
    head: LinearWeight,
    rotary: Rotary,
    dtype: Kind,
    device: Device,
}

impl Llama {
    /// Loads a model folder in the Hugging Face layout, exactly: every tensor found, none left over.
    ///
    /// `dtype` is what the matrices are kept and multiplied in ([`Kind::Float`] or [`Kind::BFloat16`]).
    ///
    /// # Errors
    /// [`ModelError`] when `config.json` cannot be used or the checkpoint does not fit it.
    pub fn open(folder: &Path, device: Device, dtype: Kind) -> Result<Self, ModelError> {
        let config = LlamaConfig::open(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        Self::load(config, &checkpoint, device, dtype)
    }

    /// Loads a checkpoint that `config` describes.
    ///
    /// # Errors
    /// [`ModelError::Weights`] with every difference between the two.
    pub fn load(
        config: LlamaConfig,
        checkpoint: &Checkpoint,
        device: Device,
        dtype: Kind,
    ) -> Result<Self, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let mut loader = checkpoint.loader(device, dtype);
        let table = [config.vocab_size, config.hidden_size];
        let embeddings = loader.take("model.embed_tokens.weight", &table);
        let mut layers = Vec::new();
        for index in 0..config.layers {
            layers.push(Layer::load(&mut loader, index, &config));
        }
        let norm = RmsNorm::load(&mut loader, "model.norm", config.hidden_size, config.norm_epsilon);
        let head = if config.tied {
            // Some checkpoints store the shared matrix under both names.
            loader.ignore("lm_head.weight");
            embeddings.shallow_clone()
        } else {
            loader.take("lm_head.weight", &table)
        };
        loader.finish()?;
        Ok(Self {
            rotary: Rotary::new(config.head_dim, config.rope_theta, device),
            config,
            embeddings,
            layers,
            norm,
            head: LinearWeight::new(head),
            dtype,
            device,
        })
    }

    /// Rounds all matrices but the embedding table to 8-bit integers: up to four times faster for one
    /// sequence, at about 1 % of error in each product.
    pub fn quantize(&mut self) {
        for layer in &mut self.layers {
            layer.quantize();
        }
        self.head.quantize();
    }

    /// The sizes and constants it was built from.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Checks a padded batch and returns `(B, P)`.
    fn check_batch(&self, embeds: &Tensor, lengths: &[i64]) -> Result<(i64, i64), ModelError> {
        batch::check_padded(
            embeds,
            lengths,
            self.config.hidden_size,
            self.config.max_positions,
        )
    }

    /// All layers over whole sequences; `visit` sees each layer's input, and each layer's keys and values go
    /// to `cache` where there is one.
    fn run_whole(
        &self,
        embeds: &Tensor,
        lora: Option<&LoraSet>,
        mut cache: Option<(&mut KvCache, &[usize])>,
        mut visit: impl FnMut(&Tensor),
    ) -> Tensor {
        let positions = Tensor::arange(embeds.size()[1], (Kind::Int64, self.device));
        let rotation = self.rotary.at(&positions); // [P, head]
        let mut hidden = embeds.to_device(self.device).to_kind(self.dtype);
        for (index, layer) in self.layers.iter().enumerate() {
            visit(&hidden);
            let heads = layer.heads(&hidden, &rotation, lora);
            if let Some((cache, slots)) = cache.as_mut() {
                cache.store(index, slots, &heads.keys, &heads.values);
            }
            let attended = layer.attend_causally(&heads, self.dtype);
            hidden = layer.finish(&hidden, &attended, lora);
        }
        hidden
    }

    /// Final hidden states, without a cache, differentiable.
    ///
    /// # Shapes
    /// `embeds` `[B, P, H]`, right-padded to the longest of `lengths` → `[B, P, H]`, final norm applied.
    ///
    /// # Errors
    /// [`ModelError`] when shapes disagree or a length exceeds the model's positions.
    pub fn hidden(
        &self,
        embeds: &Tensor,
        lengths: &[i64],
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError> {
        self.check_batch(embeds, lengths)?;
        let hidden = self.run_whole(embeds, lora, None, |_| ());
        Ok(self.norm.forward(&hidden))
    }

    /// Final hidden states of sequences of different lengths, one after the other, without a cache and
    /// differentiable. Only attention sees padding: what works position by position, nearly all of the time,
    /// sees one matrix without it.
    ///
    /// # Shapes
    /// `[P_i, H]` each, `lengths` the `P_i` → `[R, H]` with `R = Σ P_i`, final norm applied.
    fn packed_hidden(
        &self,
        sequences: &[Tensor],
        lengths: &[i64],
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError> {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest > self.config.max_positions {
            return Err(ModelError::TooManyPositions {
                positions: longest,
                positions_max: self.config.max_positions,
            });
        }
        // Where each row of the padded batch is among the packed ones (padding: anywhere, nobody reads what
        // it computes), where each packed row is in the padded batch, and its position in its sequence.
        let (mut padded, mut packed, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        for (row, range) in (0i64..).zip(row_ranges(lengths)) {
            let length = range.end - range.start;
            padded.extend((0..longest).map(|at| range.start + at.min(length - 1)));
            packed.extend((0..length).map(|at| row * longest + at));
            positions.extend(0..length);
        }
        let index = |rows: &[i64]| -> Result<Tensor, TchError> {
            Tensor::f_from_slice(rows)?.f_to_device(self.device)
        };
        let (padded, packed, positions) = (index(&padded)?, index(&packed)?, index(&positions)?);
        let batch = lengths.len() as i64;
        let pad = |heads: &Tensor| -> Result<Tensor, TchError> {
            let size = heads.size(); // [1, N, R, head]
            heads
                .f_squeeze_dim(0)?
                .f_index_select(1, &padded)?
                .f_view([size[1], batch, longest, size[3]])?
                .f_transpose(0, 1) // [B, N, P, head]
        };
        let rotation = self.rotary.at(&positions); // [R, head]
        let mut hidden = join(sequences)
            .f_to_device(self.device)?
            .f_to_kind(self.dtype)?
            .f_unsqueeze(0)?; // [1, R, H]
        for layer in &self.layers {
            let heads = layer.heads(&hidden, &rotation, lora);
            let heads = Heads {
                queries: pad(&heads.queries)?,
                keys: pad(&heads.keys)?,
                values: pad(&heads.values)?,
            };
            let attended = layer.attend_causally(&heads, self.dtype); // [B, P, N·head]
            let attended = attended
                .f_flatten(0, 1)?
                .f_index_select(0, &packed)?
                .f_unsqueeze(0)?;
            hidden = layer.finish(&hidden, &attended, lora);
        }
        Ok(self.norm.forward(&hidden.f_squeeze_dim(0)?))
    }

    /// Output layer: `[.., H]` → f32 `[.., V]`.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        self.head
            .multiply(&hidden.to_kind(self.dtype), None)
            .to_kind(Kind::Float)
    }

    /// All hidden states of one sequence of ids, numbered as `hidden_states` of the transformers library: the
    /// embeddings, the output of every layer but the last, and last the final state with its norm.
    ///
    /// # Shapes
    /// `[L]` → `layers + 1` tensors `[L, H]`.
    ///
    /// # Errors
    /// [`ModelError`] when an id does not exist or there are none or too many.
    pub fn hidden_states(&self, ids: &[i64]) -> Result<Vec<Tensor>, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let embeds = self.embed(ids)?.unsqueeze(0); // [1, L, H]
        self.check_batch(&embeds, &[ids.len() as i64])?;
        let mut states = Vec::new();
        let last = self.run_whole(&embeds, None, None, |hidden| states.push(hidden.get(0)));
        states.push(self.norm.forward(&last).get(0));
        Ok(states)
    }
}

impl Llama {
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

impl LanguageModel for Llama {
    fn info(&self) -> LanguageModelInfo {
        LanguageModelInfo {
            width: self.config.hidden_size,
            vocab: self.config.vocab_size,
            layers: self.config.layers,
            max_positions: self.config.max_positions,
        }
    }

    fn lora_sites(&self) -> Vec<LoraSite> {
        (self.layers.iter())
            .flat_map(Layer::lora_sites)
            .cloned()
            .collect()
    }

    fn embed(&self, ids: &[i64]) -> Result<Tensor, ModelError> {
        batch::embed(&self.embeddings, ids)
    }

    fn embedding_table(&self) -> Tensor {
        self.embeddings.shallow_clone()
    }

    fn teacher_forced_logits(
        &self,
        prompts: &[Tensor],
        answers: &[&[i64]],
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError> {
        batch::check_batch(prompts, answers, self.config.hidden_size)?;
        let mut rows = Vec::with_capacity(prompts.len());
        let mut lengths = Vec::with_capacity(prompts.len());
        for (prompt, answer) in prompts.iter().zip(answers) {
            // The last token is only predicted, never fed.
            let fed = &answer[..answer.len() - 1];
            rows.push(if fed.is_empty() {
                prompt.shallow_clone()
            } else {
                Tensor::f_cat(&[prompt, &self.embed(fed)?], 0)?
            });
            lengths.push(rows[rows.len() - 1].size()[0]);
        }
        let hidden = self.packed_hidden(&rows, &lengths, lora)?; // [R, H]

        let mut at = Vec::new();
        for (range, (prompt, answer)) in row_ranges(&lengths).zip(prompts.iter().zip(answers)) {
            // The position before each answer token predicts it.
            let first = range.start + prompt.size()[0] - 1;
            at.extend((first..).take(answer.len()));
        }
        let at = Tensor::f_from_slice(&at)?.f_to_device(self.device)?;
        Ok(self.logits(&hidden.f_index_select(0, &at)?))
    }

    fn prompt_logits(&self, prompt: &Tensor, lora: Option<&LoraSet>) -> Result<Tensor, ModelError> {
        let length = prompt.size().first().copied().unwrap_or(0);
        let hidden = self.hidden(&prompt.f_unsqueeze(0)?, &[length], lora)?;
        Ok(self.logits(&hidden).get(0))
    }

    fn probe(&self, ids: &[i64], decoder_ids: Option<&[i64]>) -> Result<Vec<(String, Tensor)>, ModelError> {
        if let Some(decoder_ids) = decoder_ids {
            return Err(ModelError::Shape {
                what: "decoder ids",
                expected: "none: a decoder-only model has one sequence".to_owned(),
                found: vec![decoder_ids.len() as i64],
            });
        }
        if ids.is_empty() {
            return Err(ModelError::EmptyBatch);
        }
        let _no_grad = tch::no_grad_guard();
        let states = self.hidden_states(ids)?;
        let mut named = Vec::new();
        if let Some(last) = states.last() {
            named.push(("logits".to_owned(), self.logits(last)));
        }
        for (index, state) in states.into_iter().enumerate() {
            named.push((format!("hidden.{index}"), state.to_kind(Kind::Float)));
        }
        Ok(named)
    }

    fn new_cache(&self, slots: i64, prompt_positions: i64, answer_positions: i64) -> KvCache {
        let capacity = prompt_positions.saturating_add(answer_positions);
        let shape = KvCacheShape {
            layers: self.config.layers,
            slots: slots.max(0),
            heads: self.config.key_value_heads,
            capacity: capacity.clamp(1, self.config.max_positions),
            prompt_capacity: None,
            head_dim: self.config.head_dim,
        };
        let dtype = match self.device {
            Device::Cpu => Kind::Float,
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
        let hidden = self.run_whole(embeds, lora, Some((cache, slots)), |_| ());
        let last: Vec<i64> = lengths.iter().map(|length| length - 1).collect();
        let last = Tensor::from_slice(&last).to_device(self.device);
        let rows = Tensor::arange(batch, (Kind::Int64, self.device));
        let hidden = hidden.index(&[Some(rows), Some(last)]); // [B, H]
        Ok(self.logits(&self.norm.forward(&hidden)))
    }

    fn chunked_prefill(&self) -> Option<&dyn ChunkedPrefill> {
        Some(self)
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
        let mut hidden = self.embed(ids)?.unsqueeze(1); // [B, 1, H]
        let plan = cache.plan_step(slots)?;
        let positions = plan.positions().view([-1, 1, 1]);
        let rotation = self.rotary.at(&positions); // [B, 1, 1, head]
        for (index, layer) in self.layers.iter().enumerate() {
            let heads = layer.heads(&hidden, &rotation, lora);
            cache.append(index, &plan, &heads.keys, &heads.values);
            let attended = cache.attend(index, &plan, &heads.queries, layer.score_scale(), None);
            hidden = layer.finish(&hidden, &attended, lora);
        }
        cache.advance(&plan);
        Ok(self.logits(&self.norm.forward(&hidden).squeeze_dim(1)))
    }
}

impl ChunkedPrefill for Llama {
    fn prefill_chunk(
        &self,
        embeds: &Tensor,
        last: i64,
        cache: &mut KvCache,
        slot: usize,
        lora: Option<&LoraSet>,
    ) -> Result<Tensor, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let count = embeds.size().first().copied().unwrap_or(0);
        let embeds = embeds.f_unsqueeze(0)?; // [1, P, H]
        self.check_batch(&embeds, &[count])?;
        if last < 1 || last > count {
            return Err(ModelError::Shape {
                what: "the positions of a part of a prompt behind which something is predicted",
                expected: format!("1 to {count}"),
                found: vec![last],
            });
        }
        let plan = cache.plan_chunk(slot, count)?;
        let places = plan.positions();
        let positions = Tensor::arange_start(places.start, places.end, (Kind::Int64, self.device));
        let rotation = self.rotary.at(&positions); // [P, head]
        let mask = (places.start > 0).then(|| {
            Tensor::ones([count, places.end], (Kind::Bool, self.device)).tril(places.start) // [P, E]
        });
        let mut hidden = embeds.to_device(self.device).to_kind(self.dtype);
        for (index, layer) in self.layers.iter().enumerate() {
            let heads = layer.heads(&hidden, &rotation, lora);
            cache.store_chunk(index, &plan, &heads.keys, &heads.values);
            let (keys, values) = cache.seen_by_chunk(index, &plan);
            let attended = layer.attend(&heads.queries, &keys, &values, mask.as_ref(), self.dtype);
            hidden = layer.finish(&hidden, &attended, lora);
        }
        cache.advance_chunk(&plan);
        let hidden = hidden.get(0).narrow(0, count - last, last); // [last, H]
        Ok(self.logits(&self.norm.forward(&hidden)))
    }
}

#[cfg(test)]
mod tests;

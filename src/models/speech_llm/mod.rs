//! `SpeechLlm`: audio positions placed before an instruction inside the prompt of a frozen language model.
//!
//! The frozen part ([`SpeechLlm`]: language model, tokenizer, prompt layout) is apart from the learned part
//! ([`Learned`]: adapter and optional LoRA), because one language model serves several adapter versions at
//! once.
//!
//! Sequence: `[prefix ids][audio positions][suffix ids][answer]`. Source: SpeechVerse (arXiv 2405.08295)
//! §2.1, §2.2. An encoder–decoder reads `[audio positions][instruction]` with its encoder, as the paper's
//! does; for a decoder-only model the audio comes first inside the user's turn, the instruction after it.

use std::path::Path;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::adapter::{AdapterSnapshot, SpeechAdapter};
use super::decoding::{Constraint, DecodeOptions, Decoded, Loras, Prompt, decode_all};
use super::{LanguageModel, ModelError, open_language_model};
use crate::nn::accel::Placement;
use crate::nn::lora::LoraSet;
use crate::text::{AnswerPiece, AnswerShape, PromptLayout, TextError, Tokenizer, end_of_answer_ids};
use crate::weights::check_folder;

/// What can go wrong around a speech LLM: its network, or its text.
#[derive(Debug, thiserror::Error)]
pub enum SpeechLlmError {
    /// A network failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Tokenizer or prompt layout failed.
    #[error(transparent)]
    Text(#[from] TextError),
}

impl From<tch::TchError> for SpeechLlmError {
    fn from(error: tch::TchError) -> Self {
        Self::Model(error.into())
    }
}

/// The learned part: what an adapter version holds, as tensors of one device thread.
#[derive(Debug)]
pub struct Learned {
    /// Layer mix and downsampler.
    pub adapter: SpeechAdapter,
    /// Low-rank updates of the language model; absent before stage 2.
    pub lora: Option<LoraSet>,
}

impl Learned {
    /// An adapter version as tensors on `device`, frozen, for answers by `llm`.
    ///
    /// # Errors
    /// [`ModelError`] when its low-rank updates do not fit the language model.
    pub fn frozen(
        snapshot: &AdapterSnapshot,
        llm: &dyn LanguageModel,
        device: Device,
    ) -> Result<Self, ModelError> {
        let dtype = llm.embedding_table().kind();
        let lora = snapshot.lora();
        Ok(Self {
            adapter: SpeechAdapter::from_snapshot(snapshot, device, false)?,
            lora: lora
                .map(|lora| lora.to_set(&llm.lora_sites(), dtype, device))
                .transpose()?,
        })
    }
}

/// The frozen part: a language model with its tokenizer and prompt layout. Belongs to one thread at a time.
pub struct SpeechLlm {
    llm: Box<dyn LanguageModel>,
    tokenizer: Tokenizer,
    layout: PromptLayout,
    end_ids: Vec<i64>,
}

/// An answer with its text.
#[derive(Clone, Debug, PartialEq)]
pub struct SpokenAnswer {
    /// The text, special tokens left out, white space around it trimmed.
    pub text: String,
    /// Tokens, their log-probabilities, and whether it ended by itself.
    pub decoded: Decoded,
}

/// A batch's loss.
#[derive(Debug)]
pub struct TargetLoss {
    /// Mean negative log-likelihood of all answer tokens of the batch, f32 scalar.
    pub loss: Tensor,
    /// How many tokens that mean is over.
    pub tokens: i64,
}

impl SpeechLlm {
    /// Joins parts that are there already. `end_ids`: the tokens that end an answer; the first one is taught.
    ///
    /// # Errors
    /// [`ModelError::Shape`] when `end_ids` is empty; [`ModelError::TokenOutOfRange`] when one is no token.
    pub fn new(
        llm: Box<dyn LanguageModel>,
        tokenizer: Tokenizer,
        layout: PromptLayout,
        end_ids: Vec<i64>,
    ) -> Result<Self, ModelError> {
        let vocabulary = llm.info().vocab;
        if end_ids.is_empty() {
            return Err(ModelError::Shape {
                what: "ids that end an answer",
                expected: "at least one".into(),
                found: vec![0],
            });
        }
        if let Some(id) = end_ids.iter().find(|id| !(0..vocabulary).contains(*id)) {
            return Err(ModelError::TokenOutOfRange { id: *id, vocabulary });
        }
        Ok(Self {
            llm,
            tokenizer,
            layout,
            end_ids,
        })
    }

    /// Opens a model folder. `system` replaces the template's own system message; a model without chat
    /// template has none.
    ///
    /// # Errors
    /// [`SpeechLlmError`] when a file is missing or does not fit.
    pub fn open(folder: &Path, system: Option<&str>, placement: &Placement) -> Result<Self, SpeechLlmError> {
        check_folder(folder, true).map_err(ModelError::from)?;
        let llm = open_language_model(folder, placement)?;
        let tokenizer = Tokenizer::open(folder)?;
        let layout = PromptLayout::open(folder, &tokenizer, system)?;
        Ok(Self::new(llm, tokenizer, layout, end_of_answer_ids(folder)?)?)
    }

    /// The language model.
    pub fn llm(&self) -> &dyn LanguageModel {
        self.llm.as_ref()
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Ids that end an answer.
    pub fn end_ids(&self) -> &[i64] {
        &self.end_ids
    }

    /// The tokens that teach an answer: its own, then the end.
    ///
    /// # Errors
    /// [`TextError`] when the tokenizer refuses the text.
    pub fn answer_ids(&self, target: &str) -> Result<Vec<i64>, TextError> {
        let mut ids = self.tokenizer.encode_plain(target)?;
        ids.push(self.end_ids[0]);
        Ok(ids)
    }

    /// Prompts of a batch, ready for the language model and differentiable in the adapter.
    ///
    /// # Shapes
    /// `features` `[B, T, D]`, already mixed, `lengths` valid frames → B tensors `[P_i, H]` in the language
    /// model's kind.
    ///
    /// # Errors
    /// [`SpeechLlmError`] when shapes disagree, or there is not one instruction per row.
    pub fn prompts(
        &self,
        adapter: &SpeechAdapter,
        features: &Tensor,
        lengths: &[i64],
        instructions: &[&str],
    ) -> Result<Vec<Tensor>, SpeechLlmError> {
        let adapted = adapter.forward(features, lengths)?;
        self.prompts_around(&adapted.positions, &adapted.lengths, instructions)
    }

    /// Prompts around positions that the adapter has made already: `[B, P, H]` with valid `lengths` → B
    /// tensors `[P_i, H]`.
    ///
    /// # Errors
    /// [`SpeechLlmError`] when there is not one length and one instruction per row.
    pub fn prompts_around(
        &self,
        positions: &Tensor,
        lengths: &[i64],
        instructions: &[&str],
    ) -> Result<Vec<Tensor>, SpeechLlmError> {
        let rows = positions.size().first().copied().unwrap_or(0);
        let count = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
        if rows != count(lengths.len()) || rows != count(instructions.len()) {
            return Err(ModelError::Shape {
                what: "a batch of positions, lengths and instructions",
                expected: format!("{rows} of each"),
                found: vec![rows, count(lengths.len()), count(instructions.len())],
            }
            .into());
        }
        let table = self.llm.embedding_table();
        let positions = positions.f_to_device(table.device())?.f_to_kind(table.kind())?;
        let mut prompts = Vec::with_capacity(lengths.len());
        for (row, (length, instruction)) in lengths.iter().zip(instructions).enumerate() {
            let ids = self.layout.render(&self.tokenizer, instruction)?;
            let audio = positions.f_get(count(row))?.f_narrow(0, 0, *length)?; // [P, H]
            let parts = [self.llm.embed(&ids.prefix)?, audio, self.llm.embed(&ids.suffix)?];
            prompts.push(Tensor::f_cat(&parts, 0)?);
        }
        Ok(prompts)
    }

    /// Next-token loss of the answers, at answer tokens only; differentiable in what made the prompts, and in
    /// `lora`.
    ///
    /// # Shapes
    /// `prompts`: `[P_i, H]` each; `answers`: token ids of each, end included
    /// ([`answer_ids`](Self::answer_ids)).
    ///
    /// # Errors
    /// [`ModelError`] when there is not one non-empty answer per prompt, or a sequence is too long.
    pub fn loss(
        &self,
        prompts: &[Tensor],
        answers: &[&[i64]],
        lora: Option<&LoraSet>,
    ) -> Result<TargetLoss, ModelError> {
        let scores = self.llm.teach(prompts, answers, lora)?; // [N, V]
        let wanted = Tensor::f_from_slice(&answers.concat())?.f_to_device(scores.device())?;
        let scores = scores.f_log_softmax(-1, Kind::Float)?;
        let chosen = scores.f_gather(1, &wanted.f_unsqueeze(1)?, false)?; // [N, 1]
        Ok(TargetLoss {
            loss: -chosen.f_mean(Kind::Float)?,
            tokens: wanted.size()[0],
        })
    }

    /// What holds an answer to a shape; none where every text fits it.
    ///
    /// Listed texts are taken as the tokenizer writes them: some rewrite characters, or squeeze white space.
    ///
    /// # Errors
    /// [`SpeechLlmError`] when the tokenizer cannot say what its tokens spell, or cannot spell a listed text.
    pub fn constraint(&self, shape: &AnswerShape) -> Result<Option<Arc<Constraint>>, SpeechLlmError> {
        if shape.is_free() {
            return Ok(None);
        }
        let rewritten = |texts: &Arc<[String]>| -> Result<Arc<[String]>, TextError> {
            texts.iter().map(|text| self.rewritten(text)).collect()
        };
        let mut pieces = Vec::with_capacity(shape.pieces.len());
        for piece in &shape.pieces {
            pieces.push(match piece {
                AnswerPiece::Choice(texts) => AnswerPiece::Choice(rewritten(texts)?),
                AnswerPiece::Choices(texts) => AnswerPiece::Choices(rewritten(texts)?),
                AnswerPiece::Slots(texts) => AnswerPiece::Slots(rewritten(texts)?),
                other => other.clone(),
            });
        }
        let shape = AnswerShape { pieces };
        let spelling = self.tokenizer.spelling()?;
        Ok(Some(Arc::new(Constraint::new(&shape, spelling, &self.end_ids)?)))
    }

    /// A text as it comes back from its tokens, where they hold all of it.
    fn rewritten(&self, text: &str) -> Result<String, TextError> {
        let ids = self.tokenizer.encode_plain(text)?;
        let back = self.tokenizer.decode(&ids)?.trim().to_owned();
        let whole = !back.is_empty()
            && self.tokenizer.encode_plain(&back)? == self.tokenizer.encode_plain(text.trim())?;
        Ok(if whole { back } else { text.to_owned() })
    }

    /// Answers prompts, each in its own way. `slots`: most sequences in the batch at the same time.
    ///
    /// # Errors
    /// [`SpeechLlmError`] when shapes disagree, options make no sense, or a prompt is too long.
    pub fn decode(
        &self,
        prompts: Vec<Prompt>,
        slots: usize,
        loras: Loras<'_>,
    ) -> Result<Vec<SpokenAnswer>, SpeechLlmError> {
        let vocabulary = self.tokenizer.vocab_size();
        decode_all(
            self.llm.as_ref(),
            prompts,
            slots,
            &self.end_ids,
            vocabulary,
            loras,
        )?
        .into_iter()
        .map(|decoded| {
            let text = self.text(&decoded)?;
            Ok(SpokenAnswer { text, decoded })
        })
        .collect()
    }

    /// Greedy answers. `slots`: most prompts in the batch at the same time.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn greedy(
        &self,
        prompts: &[Tensor],
        tokens_max: usize,
        slots: usize,
        lora: Option<&LoraSet>,
    ) -> Result<Vec<SpokenAnswer>, SpeechLlmError> {
        const KEY: u64 = 0;
        let loras: Vec<(u64, &LoraSet)> = lora.map(|set| (KEY, set)).into_iter().collect();
        let prompts = (prompts.iter())
            .map(|embeds| Prompt {
                embeds: embeds.shallow_clone(),
                options: DecodeOptions::greedy(tokens_max),
                constraint: None,
                lora: lora.map(|_| KEY),
            })
            .collect();
        self.decode(prompts, slots, &loras)
    }

    /// The text of an answer, without control tokens and white space around it.
    ///
    /// # Errors
    /// [`TextError`] when the tokenizer refuses the ids.
    pub fn text(&self, decoded: &Decoded) -> Result<String, TextError> {
        Ok(self.tokenizer.decode(&decoded.ids)?.trim().to_owned())
    }
}

#[cfg(test)]
mod tests;

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

use super::grammar::CompiledGrammar;
use super::{Generation, InferenceError};
use crate::models::adapter::{AdapterSnapshot, LoraSnapshot, SpeechAdapter};
use crate::models::{LanguageModel, ModelError, open_language_model};
use crate::nn::accel::{Placement, many_rows_kind};
use crate::nn::lora::LoraSet;
use crate::text::{GrammarPiece, OutputGrammar, PromptLayout, TextError, Tokenizer, end_of_answer_ids};
use crate::weights::check_folder;

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
        let mut adapter = SpeechAdapter::from_snapshot(snapshot, device, false)?;
        adapter.bind_in(&llm.embedding_table(), many_rows_kind(dtype, device))?;
        Ok(Self {
            adapter,
            lora: lora
                .map(|lora| lora.to_set(&llm.lora_sites(), dtype, device))
                .transpose()?,
        })
    }

    /// An immutable copy of the present values, low-rank updates included.
    ///
    /// # Errors
    /// [`ModelError`] when libtorch fails, or a value is not finite.
    pub fn snapshot(&self, version: &str) -> Result<AdapterSnapshot, ModelError> {
        let snapshot = self.adapter.snapshot(version)?;
        match &self.lora {
            None => Ok(snapshot),
            Some(lora) => Ok(snapshot.with_lora(Some(LoraSnapshot::of(lora)?))),
        }
    }
}

/// The frozen part: a language model with its tokenizer and prompt layout. Belongs to one thread at a time.
pub struct SpeechLlm {
    llm: Box<dyn LanguageModel>,
    tokenizer: Tokenizer,
    layout: PromptLayout,
    end_ids: Vec<i64>,
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
    /// Joins parts that are there already. `end_ids`: the tokens that end an answer; the first one is a
    /// target.
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
    /// [`InferenceError`] when a file is missing or does not fit.
    pub fn open(folder: &Path, system: Option<&str>, placement: &Placement) -> Result<Self, InferenceError> {
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

    /// Ids before the audio, with which every prompt begins.
    pub fn prefix_ids(&self) -> Arc<[i64]> {
        self.layout.prefix()
    }

    /// Ids that end an answer.
    pub fn end_ids(&self) -> &[i64] {
        &self.end_ids
    }

    /// The target tokens of an answer: its own, then the end.
    ///
    /// # Errors
    /// [`TextError`] when the tokenizer refuses the text.
    pub fn answer_ids(&self, target: &str) -> Result<Vec<i64>, TextError> {
        let mut ids = self.tokenizer.encode_plain(target)?;
        ids.push(self.end_ids[0]);
        Ok(ids)
    }

    /// The tokens of what is said, as they look inside running text; none where nothing is said. The CTC
    /// head's targets, and those of a transcript, so that a position lies near the token that is to be
    /// written.
    ///
    /// # Errors
    /// [`TextError`] when the tokenizer refuses the text.
    pub fn spoken_ids(&self, transcript: &str) -> Result<Vec<i64>, TextError> {
        match transcript.trim() {
            "" => Ok(Vec::new()),
            said => self.tokenizer.encode_plain(&format!(" {said}")),
        }
    }

    /// Prompts around an adapter's positions, differentiable in these: `[B, P, H]` with valid `lengths` → B
    /// tensors `[P_i, H]` in the language model's kind.
    ///
    /// # Errors
    /// [`InferenceError`] when there is not one length and one instruction per row.
    pub fn prompts(
        &self,
        positions: &Tensor,
        lengths: &[i64],
        instructions: &[&str],
    ) -> Result<Vec<Tensor>, InferenceError> {
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

    /// Prompts with a text where audio would stand, for the model as published: one `[P, H]` for each text.
    ///
    /// # Errors
    /// [`InferenceError`] when the tokenizer refuses a text, or there is not one instruction for each.
    pub fn text_prompts(&self, texts: &[&str], instructions: &[&str]) -> Result<Vec<Tensor>, InferenceError> {
        let embedded: Vec<Tensor> = (texts.iter())
            .map(|text| Ok(self.llm.embed(&self.tokenizer.encode_plain(text)?)?))
            .collect::<Result<_, InferenceError>>()?;
        let lengths: Vec<i64> = embedded.iter().map(|text| text.size()[0]).collect();
        let positions = Tensor::f_pad_sequence(&embedded, true, 0.0, "right")?; // [B, P, H]
        self.prompts(&positions, &lengths, instructions)
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
        let scores = self.llm.teacher_forced_logits(prompts, answers, lora)?; // [N, V]
        let wanted = Tensor::f_from_slice(&answers.concat())?.f_to_device(scores.device())?;
        let scores = scores.f_log_softmax(-1, Kind::Float)?;
        let chosen = scores.f_gather(1, &wanted.f_unsqueeze(1)?, false)?; // [N, 1]
        Ok(TargetLoss {
            loss: -chosen.f_mean(Kind::Float)?,
            tokens: wanted.size()[0],
        })
    }

    /// Compiles an output grammar for this model's vocabulary; none where every text fits it.
    ///
    /// Listed texts are taken as the tokenizer writes them: some rewrite characters, or squeeze white space.
    ///
    /// # Errors
    /// [`InferenceError`] when the tokenizer cannot say which bytes its tokens are, or cannot spell a listed
    /// text.
    pub fn compile(&self, grammar: &OutputGrammar) -> Result<Option<Arc<CompiledGrammar>>, InferenceError> {
        if grammar.is_free() {
            return Ok(None);
        }
        let rewritten = |texts: &Arc<[String]>| -> Result<Arc<[String]>, TextError> {
            texts.iter().map(|text| self.rewritten(text)).collect()
        };
        let mut pieces = Vec::with_capacity(grammar.pieces.len());
        for piece in &grammar.pieces {
            pieces.push(match piece {
                GrammarPiece::Choice(texts) => GrammarPiece::Choice(rewritten(texts)?),
                GrammarPiece::Choices(texts) => GrammarPiece::Choices(rewritten(texts)?),
                GrammarPiece::Slots(texts) => GrammarPiece::Slots(rewritten(texts)?),
                other => other.clone(),
            });
        }
        let grammar = OutputGrammar { pieces };
        let token_bytes = self.tokenizer.token_bytes()?;
        Ok(Some(Arc::new(CompiledGrammar::new(
            &grammar,
            token_bytes,
            &self.end_ids,
        )?)))
    }

    /// A text as it comes back from its tokens, where they hold all of it.
    fn rewritten(&self, text: &str) -> Result<String, TextError> {
        let ids = self.tokenizer.encode_plain(text)?;
        let back = self.tokenizer.decode(&ids)?.trim().to_owned();
        let whole = !back.is_empty()
            && self.tokenizer.encode_plain(&back)? == self.tokenizer.encode_plain(text.trim())?;
        Ok(if whole { back } else { text.to_owned() })
    }

    /// The text of an answer, without control tokens and white space around it.
    ///
    /// # Errors
    /// [`TextError`] when the tokenizer refuses the ids.
    pub fn text(&self, generation: &Generation) -> Result<String, TextError> {
        Ok(self.tokenizer.decode(&generation.ids)?.trim().to_owned())
    }
}

#[cfg(test)]
mod tests;

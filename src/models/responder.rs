//! `Responder`: the speech LLM as a service uses it. Utterances with features come in, each pinned to an
//! adapter version; answers come out, generated side by side.

use std::collections::HashMap;
use std::sync::Arc;

use tch::{Device, Tensor};

use super::ModelError;
use super::adapter::{AdapterSnapshot, SpeechAdapter};
use super::decoding::{Constraint, DecodeOptions, Decoded, Prompt, SlotDecoder};
use super::speech_llm::{Learned, SpeechLlm, SpeechLlmError};
use crate::nn::lora::LoraSet;
use crate::text::AnswerShape;

/// Adapter versions kept ready on the device; utterances in flight rarely span more than two.
const VERSIONS_MAX: usize = 4;
/// Compiled answer shapes kept ready: a service has a few tasks.
const SHAPES_MAX: usize = 32;

/// Where less room than this is left beside the audio, the audio is at fault and not the instruction: the
/// settings promise room for a layout and a short one.
const SHORT_INSTRUCTION_TOKENS: i64 = 32;

/// What an utterance asks for.
#[derive(Clone, Debug)]
pub struct Question<'q> {
    /// Mixed encoder features, `[T, D]`, valid frames only.
    pub features: &'q Tensor,
    /// What to do with the audio.
    pub instruction: &'q str,
    /// What the answer may be; free text when absent.
    pub shape: Option<&'q AnswerShape>,
    /// Most answer tokens, instead of the responder's own. More than these are a wish: the answer gets as
    /// many of them as its slot has room for.
    pub tokens_max: Option<usize>,
}

/// Sizes of a [`Responder`].
#[derive(Clone, Debug, PartialEq)]
pub struct ResponderSizes {
    /// Sequences side by side; a beam search takes several.
    pub slots: usize,
    /// Positions of a slot, prompt and answer together; how strictly the two are told apart is the language
    /// model's affair, see [`LanguageModel::new_cache`](super::LanguageModel::new_cache).
    pub positions_max: usize,
    /// How many of them are the answer's.
    pub answer_positions: usize,
}

/// An adapter version on the device.
struct Version {
    /// When it was last asked for.
    used: u64,
    adapter: SpeechAdapter,
    /// Key of its low-rank parts.
    lora: Option<u64>,
}

/// A speech LLM with its slots and the adapter versions in use. Belongs to one thread at a time.
pub struct Responder<K> {
    model: SpeechLlm,
    device: Device,
    options: DecodeOptions,
    decoder: SlotDecoder<K>,
    versions: HashMap<String, Version>,
    loras: Vec<(u64, LoraSet)>,
    shapes: Vec<(AnswerShape, Option<Arc<Constraint>>)>,
    /// Counts questions, and numbers low-rank parts.
    clock: u64,
}

impl<K> Responder<K> {
    /// A responder that answers with `options`.
    pub fn new(model: SpeechLlm, device: Device, sizes: &ResponderSizes, options: DecodeOptions) -> Self {
        let decoder = SlotDecoder::new(
            model.llm(),
            sizes.slots,
            sizes.positions_max.saturating_sub(sizes.answer_positions),
            sizes.answer_positions,
            model.end_ids(),
            model.tokenizer().vocab_size(),
        );
        Self {
            model,
            device,
            options,
            decoder,
            versions: HashMap::new(),
            loras: Vec::new(),
            shapes: Vec::new(),
            clock: 0,
        }
    }

    /// Answers that can join now.
    pub fn free(&self) -> usize {
        self.decoder.free() / self.options.slots()
    }

    /// Slots in use.
    pub fn used(&self) -> usize {
        self.decoder.used()
    }

    /// The speech LLM itself.
    pub fn model(&self) -> &SpeechLlm {
        &self.model
    }

    /// Embeds a question with the given adapter version.
    ///
    /// # Errors
    /// [`SpeechLlmError`] when it does not fit a slot, the answer cannot be held to its shape, or the version
    /// does not fit the networks.
    pub fn prompt(
        &mut self,
        adapter: &AdapterSnapshot,
        question: &Question<'_>,
    ) -> Result<Prompt, SpeechLlmError> {
        let _no_grad = tch::no_grad_guard();
        let constraint = match question.shape {
            None => None,
            Some(shape) => self.constraint(shape)?,
        };
        self.load(adapter)?;
        let version = &self.versions[adapter.version()];
        let features = question.features.f_unsqueeze(0)?; // [1, T, D]
        let frames = [question.features.size()[0]];
        let mut prompts =
            self.model
                .prompts(&version.adapter, &features, &frames, &[question.instruction])?;
        let prompt = Prompt {
            embeds: prompts.swap_remove(0),
            options: DecodeOptions {
                tokens_max: question.tokens_max.unwrap_or(self.options.tokens_max),
                ..self.options
            },
            constraint,
            lora: version.lora,
        };
        let promised = prompt.options.tokens_max.min(self.options.tokens_max);
        let fits = self.decoder.check(&prompt, promised);
        fits.map_err(|error| self.blame(error, question.instruction))?;
        Ok(prompt)
    }

    /// Says that the instruction is too long, where the audio would have fitted beside a short one.
    fn blame(&self, error: ModelError, instruction: &str) -> ModelError {
        let ModelError::TooManyPositions {
            positions,
            positions_max,
        } = error
        else {
            return error;
        };
        let ids = self.model.tokenizer().encode_plain(instruction);
        let tokens = ids.map_or(0, |ids| i64::try_from(ids.len()).unwrap_or(i64::MAX));
        let tokens_max = positions_max - (positions - tokens);
        match tokens > tokens_max && tokens_max >= SHORT_INSTRUCTION_TOKENS {
            true => ModelError::InstructionTooLong { tokens, tokens_max },
            false => error,
        }
    }

    fn constraint(&mut self, shape: &AnswerShape) -> Result<Option<Arc<Constraint>>, SpeechLlmError> {
        if let Some(place) = self.shapes.iter().position(|(known, _)| known == shape) {
            // The one asked for last stands last.
            self.shapes[place..].rotate_left(1);
        } else {
            let made = self.model.constraint(shape)?;
            if self.shapes.len() >= SHAPES_MAX {
                self.shapes.remove(0);
            }
            self.shapes.push((shape.clone(), made));
        }
        Ok(self.shapes.last().and_then(|(_, made)| made.clone()))
    }

    /// Makes the version's tensors on this device, unless they are there; the one used longest ago makes
    /// room.
    fn load(&mut self, adapter: &AdapterSnapshot) -> Result<(), SpeechLlmError> {
        self.clock += 1;
        if let Some(version) = self.versions.get_mut(adapter.version()) {
            version.used = self.clock;
            return Ok(());
        }
        let learned = Learned::frozen(adapter, self.model.llm(), self.device)?;
        if self.versions.len() >= VERSIONS_MAX {
            let oldest = self.versions.iter().min_by_key(|(_, version)| version.used);
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.versions.remove(&name);
            }
        }
        let key = self.clock;
        let version = Version {
            used: key,
            adapter: learned.adapter,
            lora: learned.lora.is_some().then_some(key),
        };
        self.loras.extend(learned.lora.map(|set| (key, set)));
        self.versions.insert(adapter.version().to_owned(), version);
        Ok(())
    }

    /// Lets answers join; see [`SlotDecoder::join`].
    ///
    /// # Errors
    /// As [`SlotDecoder::join`].
    pub fn join(&mut self, arrivals: Vec<(K, Prompt)>) -> Result<Vec<(K, Decoded)>, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let loras: Vec<(u64, &LoraSet)> = self.loras.iter().map(|(key, set)| (*key, set)).collect();
        let finished = self.decoder.join(self.model.llm(), &loras, arrivals);
        // All prompts have joined: what neither a version at hand nor an answer under way needs can go.
        let (decoder, versions) = (&self.decoder, &self.versions);
        self.loras.retain(|(key, _)| {
            let at_hand = versions.values().any(|version| version.lora == Some(*key));
            at_hand || decoder.loras().any(|used| used == *key)
        });
        finished
    }

    /// Advances every answer by one token; see [`SlotDecoder::step`].
    ///
    /// # Errors
    /// As [`SlotDecoder::step`].
    pub fn step(&mut self) -> Result<Vec<(K, Decoded)>, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let loras: Vec<(u64, &LoraSet)> = self.loras.iter().map(|(key, set)| (*key, set)).collect();
        self.decoder.step(self.model.llm(), &loras)
    }

    /// The keys of the answers under way.
    pub fn active(&mut self) -> impl Iterator<Item = &mut K> {
        self.decoder.active()
    }

    /// The answers under way as they stand; of a beam search, the best one.
    pub fn so_far(&self) -> impl Iterator<Item = (&K, Decoded)> {
        self.decoder.so_far()
    }

    /// Gives every answer under way up.
    pub fn clear(&mut self) -> Vec<K> {
        self.decoder.clear()
    }

    /// The text of an answer, without control tokens and white space around it.
    ///
    /// # Errors
    /// When the tokenizer refuses the ids.
    pub fn text(&self, decoded: &Decoded) -> Result<String, SpeechLlmError> {
        Ok(self.model.text(decoded)?)
    }
}

#[cfg(test)]
mod tests;

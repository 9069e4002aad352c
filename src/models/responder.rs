//! `Responder`: the speech LLM as a service uses it. Utterances with features come in, each pinned to an adapter
//! version; answers come out, generated side by side.

use std::collections::HashMap;
use std::sync::Arc;

use tch::{Device, Tensor};

use super::ModelError;
use super::adapter::{AdapterSnapshot, SpeechAdapter};
use super::decoding::{Decoded, LabelTrie, LoraTable, Prompt, SlotDecoder};
use super::speech_llm::{SpeechLlm, SpeechLlmError};

/// Adapter versions kept ready on the device; utterances in flight rarely span more than two.
const VERSIONS_MAX: usize = 4;

/// What an utterance asks for.
#[derive(Clone, Debug)]
pub struct Question<'q> {
    /// Mixed encoder features, `[T, D]`, valid frames only.
    pub features: &'q Tensor,
    /// What to do with the audio.
    pub instruction: &'q str,
    /// Allowed answers; free text when absent.
    pub labels: Option<&'q [String]>,
    /// Most answer tokens.
    pub tokens_max: usize,
}

/// A speech LLM with its slots and the adapter versions in use. Belongs to one thread at a time.
pub struct Responder<K> {
    model: SpeechLlm,
    device: Device,
    decoder: SlotDecoder<K>,
    versions: HashMap<String, (u64, SpeechAdapter)>,
    clock: u64,
    loras: LoraTable,
}

impl<K> Responder<K> {
    /// A responder with `slots` places of `positions_max` positions each, `answer_positions` of them for the answer;
    /// how strictly the two are told apart is the language model's affair, see [`LanguageModel::new_cache`].
    ///
    /// [`LanguageModel::new_cache`]: super::LanguageModel::new_cache
    pub fn new(
        model: SpeechLlm,
        device: Device,
        slots: usize,
        positions_max: usize,
        answer_positions: usize,
    ) -> Self {
        let vocabulary = model.tokenizer().vocab_size();
        let decoder = SlotDecoder::new(
            model.llm(),
            slots,
            positions_max.saturating_sub(answer_positions),
            answer_positions,
            model.end_ids(),
            vocabulary,
        );
        Self {
            model,
            device,
            decoder,
            versions: HashMap::new(),
            clock: 0,
            loras: LoraTable::new(),
        }
    }

    /// Places that are free.
    pub fn free(&self) -> usize {
        self.decoder.free()
    }

    /// Places in use.
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
    /// [`SpeechLlmError`] when it does not fit a slot, or the adapter does not fit the networks.
    pub fn prompt(
        &mut self,
        adapter: &AdapterSnapshot,
        question: &Question<'_>,
    ) -> Result<Prompt, SpeechLlmError> {
        let _no_grad = tch::no_grad_guard();
        let labels = question.labels.map(|labels| self.trie(labels)).transpose()?;
        self.load(adapter)?;
        let (_, joint) = &self.versions[adapter.version()];
        let features = question.features.f_unsqueeze(0)?; // [1, T, D]
        let frames = [question.features.size()[0]];
        let mut prompts = self
            .model
            .prompts(joint, &features, &frames, &[question.instruction])?;
        let prompt = Prompt {
            embeds: prompts.swap_remove(0),
            tokens_max: question.tokens_max,
            labels,
            lora: None,
        };
        self.decoder.check(&prompt)?;
        Ok(prompt)
    }

    fn trie(&self, labels: &[String]) -> Result<Arc<LabelTrie>, SpeechLlmError> {
        let ids: Result<Vec<_>, _> = labels
            .iter()
            .map(|label| self.model.tokenizer().encode_plain(label))
            .collect();
        Ok(Arc::new(LabelTrie::new(&ids?)))
    }

    /// Makes the version's tensors on this device, unless they are there; the one used longest ago makes room.
    fn load(&mut self, adapter: &AdapterSnapshot) -> Result<(), SpeechLlmError> {
        self.clock += 1;
        if let Some((used, _)) = self.versions.get_mut(adapter.version()) {
            *used = self.clock;
            return Ok(());
        }
        if self.versions.len() >= VERSIONS_MAX {
            let oldest = self.versions.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.versions.remove(&name);
            }
        }
        let joint = SpeechAdapter::from_snapshot(adapter, self.device, false)?;
        self.versions
            .insert(adapter.version().to_owned(), (self.clock, joint));
        Ok(())
    }

    /// Lets answers join; see [`SlotDecoder::join`].
    ///
    /// # Errors
    /// As [`SlotDecoder::join`].
    pub fn join(&mut self, arrivals: Vec<(K, Prompt)>) -> Result<Vec<(K, Decoded)>, ModelError> {
        let _no_grad = tch::no_grad_guard();
        self.decoder.join(self.model.llm(), &self.loras, arrivals)
    }

    /// Advances every answer by one token; see [`SlotDecoder::step`].
    ///
    /// # Errors
    /// As [`SlotDecoder::step`].
    pub fn step(&mut self) -> Result<Vec<(K, Decoded)>, ModelError> {
        let _no_grad = tch::no_grad_guard();
        self.decoder.step(self.model.llm(), &self.loras)
    }

    /// The keys of the answers under way.
    pub fn active(&mut self) -> impl Iterator<Item = &mut K> {
        self.decoder.active().map(|(key, _)| key)
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
        Ok(self.model.tokenizer().decode(&decoded.ids)?.trim().to_owned())
    }
}

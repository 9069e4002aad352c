//! `Generator`: the second half of the engine. Requests with features come in, each pinned to an adapter
//! version; answers come out, generated side by side.

use std::borrow::Borrow;
use std::cell::OnceCell;
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use tch::Tensor;

use super::evidence::{AnswerPart, Evidence, no_speech, speech_labels};
use super::grammar::CompiledGrammar;
use super::speech_llm::{Learned, SpeechLlm};
use super::word_times::spoken_words;
use super::{
    DecodeOptions, EngineConfig, Event, Features, GenerateRequest, Generation, InferenceError, Input,
    JointCtc, Prompt, RequestId, Scheduler, Strategy, TranscriptPart,
};
use crate::models::ModelError;
use crate::models::adapter::{AdapterSnapshot, PrefixScorer, SpeechAdapter};
use crate::nn::lora::LoraSet;
use crate::telemetry::metrics;
use crate::text::OutputGrammar;
use crate::text::tasks::SPEECH_DETECTION;

mod warm_up;

/// Adapter versions kept ready on the device; requests in flight rarely span more than two.
const VERSIONS_MAX: usize = 4;
/// Compiled grammars kept ready: a service has a few tasks, a manifest rarely more lists of labels.
const GRAMMARS_MAX: usize = 64;
/// Where fewer positions than this are left beside the audio, the audio is at fault and not the instruction:
/// the settings reserve positions for a layout and a short one.
const SHORT_INSTRUCTION_TOKENS: i64 = 32;

/// An adapter version on the device.
struct Version {
    /// When it was last asked for.
    used: u64,
    adapter: SpeechAdapter,
    /// Key of its low-rank parts.
    lora: Option<u64>,
    /// Directions of the labels of speech and of none, where its summary is aligned with them.
    speech_labels: Option<Tensor>,
}

/// What a request became.
#[derive(Debug)]
enum Prepared {
    /// A prompt for the language model.
    Prompt(Box<Prompt>),
    /// A transcript of sound in which nothing is said.
    NothingSaid(Generation),
}

/// A request whose prompt is not made yet.
struct Waiting {
    id: RequestId,
    request: GenerateRequest,
    /// What its answer begins with.
    begun: Generation,
}

/// A speech LLM with its scheduler and the adapter versions in use; `L` owns the speech LLM or borrows it.
/// Belongs to one thread at a time.
pub struct Generator<L = SpeechLlm> {
    model: L,
    options: DecodeOptions,
    /// Prompt positions that are read between two tokens of running answers.
    prefill_positions_max: usize,
    scheduler: Scheduler,
    /// Requests whose prompts are not made yet.
    waiting: VecDeque<Waiting>,
    versions: HashMap<String, Version>,
    loras: Vec<(u64, LoraSet)>,
    grammars: Vec<(OutputGrammar, Option<Arc<CompiledGrammar>>)>,
    /// Counts prompts, and numbers low-rank parts.
    clock: u64,
}

impl<L: Borrow<SpeechLlm>> Generator<L> {
    /// A generator that answers as `config` says.
    pub fn new(model: L, config: &EngineConfig) -> Self {
        let speech_llm: &SpeechLlm = model.borrow();
        let sizes = config.scheduler_sizes();
        let limit = NonZeroUsize::new(sizes.prefill_positions_max);
        let scheduler = Scheduler::new(
            speech_llm.llm(),
            sizes,
            speech_llm.end_ids(),
            speech_llm.tokenizer().vocab_size(),
        );
        Self {
            model,
            options: config.options,
            prefill_positions_max: limit.map_or(usize::MAX, NonZeroUsize::get),
            scheduler,
            waiting: VecDeque::new(),
            versions: HashMap::new(),
            loras: Vec::new(),
            grammars: Vec::new(),
            clock: 0,
        }
    }

    /// The speech LLM itself.
    pub fn model(&self) -> &SpeechLlm {
        self.model.borrow()
    }

    /// Requests that would start in the next step if they were added now.
    pub fn free(&self) -> usize {
        let free = self.scheduler.free_slots() / self.options.slots();
        free.saturating_sub(self.waiting.len() + self.scheduler.waiting())
    }

    /// Requests that are generated.
    pub fn running(&self) -> usize {
        self.scheduler.running()
    }

    /// Slots that hold a live sequence; see [`Scheduler::slots_in_use`].
    pub fn slots_in_use(&self) -> usize {
        self.scheduler.slots_in_use()
    }

    /// Whether a step has anything to do.
    pub fn has_unfinished(&self) -> bool {
        !self.waiting.is_empty() || self.scheduler.has_unfinished()
    }

    /// Adds a request with features, or with text. What is wrong with it is reported by an event of a later
    /// step.
    pub fn add_request(&mut self, request: GenerateRequest) -> RequestId {
        let id = RequestId::next();
        self.add_request_as(id, request);
        id
    }

    pub(super) fn add_request_as(&mut self, id: RequestId, request: GenerateRequest) {
        let begun = Generation::default();
        self.waiting.push_back(Waiting { id, request, begun });
    }

    /// Whether [`go_on`](Self::go_on) can begin answers with given tokens: they are decoded greedily, by a
    /// model that reads them behind the prompt.
    pub fn can_go_on(&self) -> bool {
        let is_greedy = self.options.strategy == Strategy::Greedy;
        is_greedy && self.model().llm().chunked_prefill().is_some()
    }

    /// As [`add_request`](Self::add_request), for the transcript of which the first words are known: its
    /// answer begins with `begun`, their tokens and log-probabilities, and then another word begins. Where
    /// [`can_go_on`](Self::can_go_on) says no, or there is a grammar, or the request wants fewer tokens, it
    /// begins with nothing.
    pub fn go_on(&mut self, request: GenerateRequest, begun: Generation) -> RequestId {
        let wanted = request.tokens_max.unwrap_or(self.options.tokens_max);
        let fits = self.can_go_on() && request.grammar.is_none() && begun.ids.len() < wanted;
        let id = RequestId::next();
        self.waiting.push_back(Waiting {
            id,
            request,
            begun: if fits { begun } else { Generation::default() },
        });
        id
    }

    /// Gives a request up; false where it has ended, or never was.
    pub fn abort(&mut self, id: RequestId) -> bool {
        if let Some(at) = self.waiting.iter().position(|waiting| waiting.id == id) {
            self.waiting.remove(at);
            return true;
        }
        self.scheduler.abort(id)
    }

    /// The answer to a request so far; none before its first token and after its end.
    pub fn partial(&self, id: RequestId) -> Option<Generation> {
        self.scheduler.partial(id)
    }

    /// The text of an answer, without control tokens and white space around it.
    ///
    /// # Errors
    /// When the tokenizer refuses the ids.
    pub fn text(&self, generation: &Generation) -> Result<String, InferenceError> {
        Ok(self.model().text(generation)?)
    }

    /// Starts waiting requests as far as there are slots, and advances each answer by a token or more. What
    /// fails, a panic included, ends the request at fault with an event and no other.
    pub fn step(&mut self) -> Vec<Event> {
        let _no_grad = tch::no_grad_guard();
        let mut events = Vec::new();
        self.prepare_waiting(&mut events);
        let loras: Vec<(u64, &LoraSet)> = self.loras.iter().map(|(key, set)| (*key, set)).collect();
        let model: &SpeechLlm = self.model.borrow();
        let output = self.scheduler.step(model.llm(), &loras);
        let advanced = output.advanced.into_iter();
        events.extend(advanced.map(|(id, tokens)| Event::Token { id, tokens }));
        for (id, ended) in output.ended {
            let text = |mut generation: Generation| -> Result<(Generation, String), InferenceError> {
                let text = catch_unwind(AssertUnwindSafe(|| model.text(&generation)))
                    .map_err(|panic| ModelError::panicked("tokenizer", &*panic))??;
                if let Some((positions, count)) = generation.positions.take() {
                    let bytes = model.tokenizer().token_bytes()?;
                    let words = generation.transcript.clone().unwrap_or(0..generation.ids.len());
                    let words = &generation.ids[words];
                    let said = model.tokenizer().decode(words)?;
                    generation.words = spoken_words(words, &positions, count, &bytes, &said);
                }
                Ok((generation, text))
            };
            let found = ended.map_err(InferenceError::from).and_then(text);
            events.push(match found {
                Ok((generation, text)) => Event::Finished { id, generation, text },
                Err(error) => Event::Failed { id, error },
            });
        }
        events
    }

    /// Embeds the requests that can start now, and hands them to the scheduler; while answers run, no more
    /// positions of them than a step may read.
    fn prepare_waiting(&mut self, events: &mut Vec<Event>) {
        let slots = self.options.slots();
        let mut left = match self.scheduler.running() {
            0 => usize::MAX,
            _ => self.prefill_positions_max,
        };
        while left > 0 && self.scheduler.free_slots() / slots > self.scheduler.waiting() {
            let Some(Waiting { id, request, begun }) = self.waiting.pop_front() else {
                break;
            };
            left = left.saturating_sub(request.positions_about());
            let prompt = catch_unwind(AssertUnwindSafe(|| self.prompt(&request, &begun.ids)))
                .unwrap_or_else(|panic| Err(ModelError::panicked("speech adapter", &*panic).into()));
            let added = match prompt {
                Ok(Prepared::Prompt(prompt)) => {
                    let token_bytes = self.model().tokenizer().token_bytes().ok();
                    let added = self.scheduler.go_on(id, *prompt, begun, token_bytes);
                    added.map_err(InferenceError::from)
                }
                Ok(Prepared::NothingSaid(generation)) => {
                    let text = String::new();
                    events.push(Event::Finished { id, generation, text });
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = added {
                events.push(Event::Failed { id, error });
            }
        }
        self.drop_unused_loras();
    }

    /// Forgets what neither a version kept ready nor an unfinished answer needs.
    fn drop_unused_loras(&mut self) {
        let (scheduler, versions) = (&self.scheduler, &self.versions);
        self.loras.retain(|(key, _)| {
            let ready = versions.values().any(|version| version.lora == Some(*key));
            ready || scheduler.loras().any(|used| used == *key)
        });
    }

    /// Embeds a request, and what its answer begins with.
    ///
    /// # Errors
    /// [`InferenceError`] when it does not fit a slot, its grammar cannot be kept, or the version does not
    /// fit the networks.
    fn prompt(&mut self, request: &GenerateRequest, begun: &[i64]) -> Result<Prepared, InferenceError> {
        let _no_grad = tch::no_grad_guard();
        let grammar = match &request.grammar {
            None => None,
            Some(grammar) => self.grammar(grammar)?,
        };
        let instruction = [request.instruction.as_str()];
        let parts = AnswerPart::of(request, grammar.as_deref());
        let (mut joint, mut labels) = (None, Vec::new());
        let options = self.options;
        let (mut prompts, lora) = match &request.input {
            Input::Features { features, adapter } => {
                self.load(adapter)?;
                let version = &self.versions[adapter.version()];
                let frames = features.frames.f_unsqueeze(0)?; // [1, T, D]
                let length = [frames.size().get(1).copied().unwrap_or(0)];
                let began = Instant::now();
                let adapted = version.adapter.forward(&frames, &length)?; // [1, P, H]
                let (scores, scorer) = match version.adapter.trained_ctc_head() {
                    Some(head) if parts.iter().any(|part| part.needs_head(&options)) => {
                        let scores = head.log_probabilities(&adapted.positions)?; // [1, P, 1+C]
                        let scorer = PrefixScorer::of_scores(head, &scores, &adapted.lengths)?;
                        (Some(scores), scorer.into_iter().next())
                    }
                    _ => (None, None),
                };
                let summary = (version.adapter).summary(&features.statistics.f_unsqueeze(0)?)?;
                let paths = scorer.as_ref().map(|scorer| vec![scorer.path().to_vec()]);
                let known = scores.as_ref().zip(paths.as_deref());
                let positions = (version.adapter).positions_behind(summary.as_ref(), &adapted, known)?;
                metrics::network_pass("adapt", began.elapsed());
                let model = self.model();
                // Where there is a summary, it is the first position.
                let summary = positions.positions.f_get(0)?.f_get(0)?; // [H]
                let evidence = Evidence {
                    adapter: &version.adapter,
                    adapted: &adapted,
                    summary: &summary,
                    scorer: scorer.as_ref(),
                    read: known,
                    sentence: OnceCell::new(),
                };
                for part in &parts {
                    labels.extend(evidence.labels(model, part, &options)?);
                }
                if let (Some(part), Some(scorer)) =
                    (parts.first().filter(|part| part.is_transcript()), scorer)
                {
                    if options.nothing_said_above < 0.0
                        && begun.is_empty()
                        && part.heading().is_none()
                        && let Some(labels) = &version.speech_labels
                        && no_speech(labels, &scorer, &summary, options.nothing_said_above)? > 0.0
                    {
                        return Ok(Prepared::NothingSaid(Generation::of_nothing_said(&scorer)));
                    }
                    // Beams of free answers would win by leaving the heading out: words without it cost
                    // nothing.
                    let is_kept = grammar.is_some() || !matches!(options.strategy, Strategy::Beam(_));
                    // Where the tokenizer does not tell what its tokens spell, the language model is alone.
                    let within = (part.heading()).map(|name| TranscriptPart::new(model.tokenizer(), name));
                    joint = match within {
                        None => Some(JointCtc::new(scorer, options.ctc_weight, None)),
                        Some(Ok(within)) if is_kept => {
                            Some(JointCtc::new(scorer, options.ctc_weight, Some(within)))
                        }
                        Some(_) => None,
                    };
                }
                let prompts = model.prompts(&positions.positions, &positions.lengths, &instruction)?;
                (prompts, version.lora)
            }
            Input::Text { text, adapter } => {
                let lora = match adapter {
                    None => None,
                    Some(adapter) => {
                        self.load(adapter)?;
                        self.versions[adapter.version()].lora
                    }
                };
                (self.model().text_prompts(&[text], &instruction)?, lora)
            }
            Input::Audio { .. } => return Err(InferenceError::NoFeatures),
        };
        let mut embeds = prompts.swap_remove(0); // [P, H]
        if !begun.is_empty() {
            let begun = self.model().llm().embed(begun)?;
            embeds = Tensor::f_cat(&[embeds, begun], 0).map_err(ModelError::from)?;
        }
        let prompt = Prompt {
            embeds,
            prefix: self.model().prefix_ids(),
            options: DecodeOptions {
                tokens_max: request.tokens_max.unwrap_or(self.options.tokens_max),
                ..self.options
            },
            grammar,
            lora,
            joint,
            labels,
        };
        // More than the engine's own are an upper bound: the answer gets as many of them as its slot has
        // positions for.
        let promised = prompt.options.tokens_max.min(self.options.tokens_max);
        let promised = promised.saturating_sub(begun.len());
        let fits = self.scheduler.check(&prompt, promised);
        fits.map_err(|error| self.blame(error, &request.instruction))?;
        Ok(Prepared::Prompt(Box::new(prompt)))
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
        let ids = self.model().tokenizer().encode_plain(instruction);
        let tokens = ids.map_or(0, |ids| i64::try_from(ids.len()).unwrap_or(i64::MAX));
        let tokens_max = positions_max - (positions - tokens);
        match tokens > tokens_max && tokens_max >= SHORT_INSTRUCTION_TOKENS {
            true => ModelError::InstructionTooLong { tokens, tokens_max },
            false => error,
        }
    }

    fn grammar(&mut self, grammar: &OutputGrammar) -> Result<Option<Arc<CompiledGrammar>>, InferenceError> {
        if let Some(at) = self.grammars.iter().position(|(known, _)| known == grammar) {
            // The one asked for last stands last.
            self.grammars[at..].rotate_left(1);
        } else {
            let compiled = self.model().compile(grammar)?;
            if self.grammars.len() >= GRAMMARS_MAX {
                self.grammars.remove(0);
            }
            self.grammars.push((grammar.clone(), compiled));
        }
        Ok(self.grammars.last().and_then(|(_, compiled)| compiled.clone()))
    }

    /// The adapter of a version on the device.
    ///
    /// # Errors
    /// [`InferenceError`] when the version does not fit the networks.
    pub fn adapter(&mut self, adapter: &AdapterSnapshot) -> Result<&SpeechAdapter, InferenceError> {
        self.load(adapter)?;
        Ok(&self.versions[adapter.version()].adapter)
    }

    /// Makes the version's tensors on this device, unless they are there; the one used longest ago is
    /// dropped.
    fn load(&mut self, adapter: &AdapterSnapshot) -> Result<(), InferenceError> {
        self.clock += 1;
        if let Some(version) = self.versions.get_mut(adapter.version()) {
            version.used = self.clock;
            return Ok(());
        }
        let llm = self.model().llm();
        let learned = Learned::frozen(adapter, llm, llm.embedding_table().device())?;
        if self.versions.len() >= VERSIONS_MAX {
            let oldest = self.versions.iter().min_by_key(|(_, version)| version.used);
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.versions.remove(&name);
            }
        }
        let mut aligned = learned.adapter.config().summary_tasks.iter();
        let is_aligned = aligned.any(|task| task == SPEECH_DETECTION.0);
        let speech_labels = is_aligned.then(|| speech_labels(self.model())).transpose()?;
        let key = self.clock;
        let version = Version {
            used: key,
            speech_labels,
            adapter: learned.adapter,
            lora: learned.lora.is_some().then_some(key),
        };
        self.loras.extend(learned.lora.map(|set| (key, set)));
        self.versions.insert(adapter.version().to_owned(), version);
        Ok(())
    }

    /// What the CTC head reads in a clip, without the language model, where the transcript begins with the
    /// tokens `begun`; none where the version has no such head. A panic inside the network is an error like
    /// any other.
    ///
    /// # Errors
    /// [`InferenceError`] when the version does not fit the networks, or a network fails.
    pub fn read(
        &mut self,
        features: &Features,
        adapter: &AdapterSnapshot,
        begun: &[i64],
    ) -> Result<Option<String>, InferenceError> {
        let _no_grad = tch::no_grad_guard();
        self.load(adapter)?;
        let version = &self.versions[adapter.version()].adapter;
        let Some(head) = version.trained_ctc_head() else {
            return Ok(None);
        };
        let tokenizer = self.model().tokenizer();
        let read = || -> Result<String, InferenceError> {
            let frames = features.frames.f_unsqueeze(0).map_err(ModelError::from)?; // [1, T, D]
            let length = [frames.size().get(1).copied().unwrap_or(0)];
            let adapted = version.forward(&frames, &length)?;
            if begun.is_empty() {
                let ids = head.read(&adapted)?.swap_remove(0);
                return Ok(tokenizer.decode(&ids)?.trim().to_owned());
            }
            let scorer = PrefixScorer::new(head, &adapted)?.swap_remove(0);
            let behind = scorer.read_behind(&scorer.prefix(begun), usize::MAX);
            // `begun` ends with a word.
            let bytes = tokenizer.token_bytes()?;
            let rest = behind.into_iter().skip_while(|id| !bytes.begins_word(*id));
            let ids: Vec<i64> = begun.iter().copied().chain(rest).collect();
            Ok(tokenizer.decode(&ids)?.trim().to_owned())
        };
        catch_unwind(AssertUnwindSafe(read))
            .unwrap_or_else(|panic| Err(ModelError::panicked("CTC head", &*panic).into()))
            .map(Some)
    }
}

#[cfg(test)]
mod tests;

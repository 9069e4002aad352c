//! `Engine`: both halves together, from sound to answer.
//!
//! The Encoder and Decoder actors drive the two halves, [`FeatureExtractor`] and [`Generator`], each on its
//! own thread; `ask`, `eval`, validation and the promotion gate drive the whole. Either way an answer comes
//! from the same code.

use std::borrow::Borrow;
use std::collections::VecDeque;

use super::features::{Clip, FeatureExtractor, Features};
use super::scheduler::SchedulerSizes;
use super::speech_llm::SpeechLlm;
use super::{DecodeOptions, Generation, Generator, InferenceError, RequestId};
use crate::models::SpeechEncoder;
use crate::models::adapter::AdapterSnapshot;
use crate::text::OutputGrammar;

/// What an answer is about.
#[derive(Debug)]
pub enum Input {
    /// Sound.
    Audio {
        /// Mono, 16 kHz, in [-1, 1].
        samples: Vec<f32>,
        /// The adapter version that the answer is pinned to.
        adapter: AdapterSnapshot,
    },
    /// Sound that a [`FeatureExtractor`] has encoded.
    Features {
        /// What the encoder made of it.
        features: Features,
        /// The adapter version that the answer is pinned to.
        adapter: AdapterSnapshot,
    },
    /// Text that stands where sound would: for the language model as published, without adapter.
    Text(String),
}

/// One question.
#[derive(Debug)]
pub struct GenerateRequest {
    /// What it is about.
    pub input: Input,
    /// What to do with it.
    pub instruction: String,
    /// What the answer may be; free text when absent.
    pub grammar: Option<OutputGrammar>,
    /// Most answer tokens, instead of the engine's own. More than these are an upper bound: the answer gets
    /// as many of them as its slot has positions for.
    pub tokens_max: Option<usize>,
    /// Whether the answer should say what is heard, word for word: then the CTC head has a say in it, if the
    /// adapter has one and the grammar is free.
    pub verbatim: bool,
}

/// What a step tells about a request. A request ends with exactly one [`Event::Finished`] or
/// [`Event::Failed`], unless it is aborted.
#[derive(Debug)]
pub enum Event {
    /// The answer has advanced.
    Token {
        /// Which request.
        id: RequestId,
        /// Its tokens so far; see [`Generator::partial`] for what they are.
        tokens: usize,
    },
    /// The answer is complete.
    Finished {
        /// Which request.
        id: RequestId,
        /// Its tokens and their log-probabilities.
        generation: Generation,
        /// Its text, without control tokens and white space around it.
        text: String,
    },
    /// There is no answer.
    Failed {
        /// Which request.
        id: RequestId,
        /// Why.
        error: InferenceError,
    },
}

/// Sizes of an engine and how it answers.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Sequences side by side; a beam search takes several. At least one answer always has its slots.
    pub slots: usize,
    /// Positions of a slot, prompt and answer together. How strictly the two are told apart is the language
    /// model's affair, see [`LanguageModel::new_cache`](crate::models::LanguageModel::new_cache).
    pub positions_max: usize,
    /// How many of them are the answer's.
    pub answer_positions: usize,
    /// Most windows in one pass of the encoder.
    pub batch_windows_max: usize,
    /// How answers are generated.
    pub options: DecodeOptions,
    /// Sets the memory of all slots aside at the beginning, as a service must; otherwise it grows with what
    /// is asked.
    pub preallocate: bool,
}

impl EngineConfig {
    /// For work offline: `rows` clips or sequences at once, and as many positions as the language model has.
    pub fn offline(rows: usize, options: DecodeOptions) -> Self {
        Self {
            slots: rows.max(options.slots()),
            positions_max: usize::MAX >> 1,
            answer_positions: usize::MAX >> 2,
            batch_windows_max: rows.max(1),
            options,
            preallocate: false,
        }
    }

    pub(super) fn scheduler_sizes(&self) -> SchedulerSizes {
        SchedulerSizes {
            slots: self.slots.max(self.options.slots()),
            prompt_positions: self.positions_max.saturating_sub(self.answer_positions),
            answer_positions: self.answer_positions,
            preallocate: self.preallocate,
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Its text, without control tokens and white space around it.
    pub text: String,
    /// Its tokens and their log-probabilities.
    pub generation: Generation,
}

/// A speech encoder and a speech LLM that answer requests, owned (`Engine`) or borrowed ([`BorrowedEngine`]).
/// Belongs to one thread at a time.
pub struct Engine<E = Box<dyn SpeechEncoder>, L = SpeechLlm> {
    extractor: FeatureExtractor<E>,
    generator: Generator<L>,
    /// Requests whose sound is not encoded yet.
    waiting: VecDeque<(RequestId, Audio)>,
}

/// An engine over networks that belong to somebody else.
pub type BorrowedEngine<'n> = Engine<&'n (dyn SpeechEncoder + 'static), &'n SpeechLlm>;

/// A request with its sound.
struct Audio {
    samples: Vec<f32>,
    adapter: AdapterSnapshot,
    instruction: String,
    grammar: Option<OutputGrammar>,
    tokens_max: Option<usize>,
    verbatim: bool,
}

impl<E: Borrow<dyn SpeechEncoder>, L: Borrow<SpeechLlm>> Engine<E, L> {
    /// An engine that answers as `config` says.
    pub fn new(encoder: E, model: L, config: &EngineConfig) -> Self {
        Self {
            extractor: FeatureExtractor::new(encoder, config.batch_windows_max),
            generator: Generator::new(model, config),
            waiting: VecDeque::new(),
        }
    }

    /// Its first half.
    pub fn extractor(&self) -> &FeatureExtractor<E> {
        &self.extractor
    }

    /// Its second half.
    pub fn generator(&mut self) -> &mut Generator<L> {
        &mut self.generator
    }

    /// Adds a request. What is wrong with it is told by an event of a later step.
    pub fn add_request(&mut self, request: GenerateRequest) -> RequestId {
        let id = RequestId::next();
        let GenerateRequest {
            input,
            instruction,
            grammar,
            tokens_max,
            verbatim,
        } = request;
        match input {
            Input::Audio { samples, adapter } => {
                let audio = Audio {
                    samples,
                    adapter,
                    instruction,
                    grammar,
                    tokens_max,
                    verbatim,
                };
                self.waiting.push_back((id, audio));
            }
            input => self.generator.add_request_as(
                id,
                GenerateRequest {
                    input,
                    instruction,
                    grammar,
                    tokens_max,
                    verbatim,
                },
            ),
        }
        id
    }

    /// Whether a step has anything to do.
    pub fn has_unfinished(&self) -> bool {
        !self.waiting.is_empty() || self.generator.has_unfinished()
    }

    /// Encodes the sound of waiting requests as far as their answers can start, and advances each answer by
    /// one token.
    pub fn step(&mut self) -> Vec<Event> {
        let mut events = self.extract_waiting();
        events.extend(self.generator.step());
        events
    }

    /// Gives a request up; false where it has ended, or never was.
    pub fn abort(&mut self, id: RequestId) -> bool {
        if let Some(at) = self.waiting.iter().position(|(known, _)| *known == id) {
            self.waiting.remove(at);
            return true;
        }
        self.generator.abort(id)
    }

    fn extract_waiting(&mut self) -> Vec<Event> {
        let count = self.generator.free().min(self.waiting.len());
        let mut taken: Vec<Option<(RequestId, Audio)>> = self.waiting.drain(..count).map(Some).collect();
        let lengths: Vec<usize> = (taken.iter().flatten())
            .map(|(_, audio)| audio.samples.len())
            .collect();
        let mut events = Vec::new();
        for batch in self.extractor.batches(&lengths) {
            let batch: Vec<(RequestId, Audio)> =
                batch.into_iter().filter_map(|at| taken[at].take()).collect();
            let clips: Vec<Clip<'_>> = (batch.iter())
                .map(|(_, audio)| Clip {
                    samples: &audio.samples,
                    adapter: &audio.adapter,
                })
                .collect();
            let found = self.extractor.extract(&clips);
            for ((id, audio), features) in batch.into_iter().zip(found) {
                match features {
                    Ok(features) => self.generator.add_request_as(
                        id,
                        GenerateRequest {
                            input: Input::Features {
                                features,
                                adapter: audio.adapter,
                            },
                            instruction: audio.instruction,
                            grammar: audio.grammar,
                            tokens_max: audio.tokens_max,
                            verbatim: audio.verbatim,
                        },
                    ),
                    Err(error) => events.push(Event::Failed {
                        id,
                        error: error.into(),
                    }),
                }
            }
        }
        events
    }

    /// Answers all of these requests, side by side; in their order.
    pub fn generate(&mut self, requests: Vec<GenerateRequest>) -> Vec<Result<Output, InferenceError>> {
        let ids: Vec<RequestId> = requests
            .into_iter()
            .map(|request| self.add_request(request))
            .collect();
        let mut found: Vec<Option<Result<Output, InferenceError>>> = ids.iter().map(|_| None).collect();
        while self.has_unfinished() {
            for event in self.step() {
                let (id, outcome) = match event {
                    Event::Token { .. } => continue,
                    Event::Finished { id, generation, text } => (id, Ok(Output { text, generation })),
                    Event::Failed { id, error } => (id, Err(error)),
                };
                if let Some(at) = ids.iter().position(|known| *known == id) {
                    found[at] = Some(outcome);
                }
            }
        }
        let ended = found.into_iter();
        ended
            .map(|found| found.expect("a request that is not aborted ends"))
            .collect()
    }

    /// Runs one short request through each network; see [`FeatureExtractor::warm_up`] and
    /// [`Generator::warm_up`].
    ///
    /// # Errors
    /// What the request failed with.
    pub fn warm_up(&mut self, adapter: &AdapterSnapshot) -> Result<(), InferenceError> {
        self.extractor.warm_up(adapter)?;
        self.generator.warm_up(adapter)
    }
}

#[cfg(test)]
mod tests;

//! `Engine`: both halves together, from sound to answer.
//!
//! The Encoder and Decoder actors drive the two halves, [`FeatureExtractor`] and [`Generator`], each on its
//! own thread; `ask`, `eval`, validation and the promotion gate drive the whole. Either way an answer comes
//! from the same code.

use std::borrow::Borrow;
use std::collections::VecDeque;

use super::features::{Clip, FeatureExtractor};
use super::speech_llm::SpeechLlm;
use super::{EngineConfig, Event, GenerateRequest, Generation, Generator, InferenceError, Input, RequestId};
use crate::models::SpeechEncoder;
use crate::models::adapter::AdapterSnapshot;

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
    /// Requests about sound that is not encoded yet.
    waiting: VecDeque<(RequestId, GenerateRequest)>,
}

/// An engine over networks that belong to somebody else.
pub type BorrowedEngine<'n> = Engine<&'n (dyn SpeechEncoder + 'static), &'n SpeechLlm>;

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

    /// Adds a request. What is wrong with it is reported by an event of a later step.
    pub fn add_request(&mut self, request: GenerateRequest) -> RequestId {
        let id = RequestId::next();
        match &request.input {
            Input::Audio { .. } => self.waiting.push_back((id, request)),
            _ => self.generator.add_request_as(id, request),
        }
        id
    }

    /// Whether a step has anything to do.
    pub fn has_unfinished(&self) -> bool {
        !self.waiting.is_empty() || self.generator.has_unfinished()
    }

    /// Encodes the sound of waiting requests as far as their answers can start, and advances each answer by a
    /// token or more.
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
        let mut taken: Vec<Option<(RequestId, GenerateRequest)>> =
            self.waiting.drain(..count).map(Some).collect();
        let lengths: Vec<usize> = (taken.iter().flatten())
            .map(|(_, request)| clip(request).samples.len())
            .collect();
        let mut events = Vec::new();
        for batch in self.extractor.batches(&lengths) {
            let batch: Vec<_> = batch.into_iter().filter_map(|at| taken[at].take()).collect();
            let clips: Vec<Clip<'_>> = batch.iter().map(|(_, request)| clip(request)).collect();
            let found = self.extractor.extract(&clips);
            for ((id, mut request), features) in batch.into_iter().zip(found) {
                match features {
                    Ok(features) => {
                        let adapter = clip(&request).adapter.clone();
                        request.input = Input::Features { features, adapter };
                        self.generator.add_request_as(id, request);
                    }
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

/// The sound of a request that waits for its features.
fn clip(request: &GenerateRequest) -> Clip<'_> {
    match &request.input {
        Input::Audio { samples, adapter } => Clip { samples, adapter },
        Input::Features { .. } | Input::Text { .. } => unreachable!("only requests about sound wait"),
    }
}

#[cfg(test)]
mod tests;

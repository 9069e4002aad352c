//! Decoding: from a language model's scores to answers.
//!
//! | file | one thought |
//! |---|---|
//! | [`SlotDecoder`] | answers join, advance together one token a step, and leave: continuous batching above every [`LanguageModel`] |
//! | `beam` | beam search, equal to the transformers library's |
//! | `sample` | temperature, top-k, top-p, seeded draws |
//! | [`Constraint`] | what a constrained answer may go on with; `automaton` recognises it byte by byte |
//! | [`repeated_tail`] | answers caught in a loop; repetition penalties |
//!
//! Each prompt brings its own [`DecodeOptions`], constraint and low-rank parts, and its answer does not depend on its
//! neighbours. [`decode_all`] answers a list of prompts with one decoder.

mod automaton;
mod beam;
mod constraint;
mod repetition;
mod sample;
mod slots;

use std::sync::Arc;

use tch::Tensor;

pub use constraint::{Allowed, Constraint, Progress};
pub use repetition::repeated_tail;
pub use slots::SlotDecoder;

use super::{LanguageModel, ModelError};
use crate::nn::lora::LoraSet;

/// Widest beam search: each beam takes a slot.
pub const BEAMS_MAX: usize = 64;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Strategy {
    /// The likeliest one.
    #[default]
    Greedy,
    /// The likeliest answer among several that grow side by side.
    Beam(BeamSettings),
    /// Drawn by chance.
    Sample(Sampling),
}

/// Beam search, with the meaning that the transformers library gives to the same words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BeamSettings {
    /// Answers that grow side by side, 2 to [`BEAMS_MAX`]; each takes a slot.
    pub width: usize,
    /// An answer's score is the sum of its log-probabilities divided by its length to this power: above 0 favours long
    /// answers, below 0 short ones.
    pub length_penalty: f64,
    /// When the search ends.
    pub early_stopping: EarlyStopping,
}

/// When a beam search ends, given as many complete answers as it has beams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// `false`: when the best one under way, at its present length, is no better than the worst complete one.
    #[default]
    No,
    /// `true`: at once.
    Yes,
    /// `"never"`: when no answer under way can become better at any length.
    Never,
}

/// Sampling; see the transformers library's options of the same names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Above 1 flattens the distribution, below 1 sharpens it.
    pub temperature: f64,
    /// Draws from so many of the likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Draws from the likeliest tokens that make up this share, above 0 to 1.
    pub top_p: f64,
    /// The same seed, prompt and options give the same answer, whatever is answered beside it.
    pub seed: u64,
}

/// How one answer is generated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeOptions {
    /// How the next token is chosen.
    pub strategy: Strategy,
    /// Most tokens of the answer, the end token counted, at least 1; a constrained answer is written so that it comes to
    /// its end within them.
    pub tokens_max: usize,
    /// Ends an answer that repeats itself, and keeps one of the repeats; see [`repeated_tail`]. Where an answer is
    /// constrained, only free text can be caught.
    pub stop_loops: bool,
    /// Divides positive scores of tokens that the answer holds already, multiplies negative ones; 1 changes nothing.
    /// Constrained answers are left alone.
    pub repetition_penalty: f64,
    /// Sequences of so many tokens occur once in the answer; 0 for no such rule. Constrained answers are left alone.
    pub no_repeat_ngram_size: usize,
}

impl DecodeOptions {
    /// The likeliest token each time, with the guard against loops.
    pub fn greedy(tokens_max: usize) -> Self {
        Self {
            strategy: Strategy::Greedy,
            tokens_max,
            stop_loops: true,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
        }
    }

    /// Slots that one answer takes.
    pub fn slots(&self) -> usize {
        match &self.strategy {
            Strategy::Beam(beam) => beam.width,
            Strategy::Greedy | Strategy::Sample(_) => 1,
        }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// [`ModelError::Decoding`] with the option, what it is and what it may be.
    pub fn validate(&self) -> Result<(), ModelError> {
        let check = |good: bool, option, found: String, expected| {
            if good {
                Ok(())
            } else {
                Err(ModelError::Decoding {
                    option,
                    found,
                    expected,
                })
            }
        };
        let positive = |number: f64| number.is_finite() && number > 0.0;
        check(self.tokens_max > 0, "tokens_max", "0".to_owned(), "at least 1")?;
        check(
            positive(self.repetition_penalty),
            "repetition_penalty",
            self.repetition_penalty.to_string(),
            "a positive number",
        )?;
        match &self.strategy {
            Strategy::Greedy => Ok(()),
            Strategy::Beam(beam) => {
                let width = beam.width.to_string();
                check((2..=BEAMS_MAX).contains(&beam.width), "beams", width, "2 to 64")?;
                let penalty = beam.length_penalty;
                let expected = "a number from -10 to 10";
                check(
                    (-10.0..=10.0).contains(&penalty),
                    "length_penalty",
                    penalty.to_string(),
                    expected,
                )
            }
            Strategy::Sample(sampling) => {
                let (temperature, top_p) = (sampling.temperature, sampling.top_p);
                check(
                    positive(temperature),
                    "temperature",
                    temperature.to_string(),
                    "a positive number",
                )?;
                let expected = "above 0 to 1";
                check(top_p > 0.0 && top_p <= 1.0, "top_p", top_p.to_string(), expected)
            }
        }
    }
}

/// Low-rank parts by key, for answers that are pinned to different adapter versions.
pub type Loras<'l> = &'l [(u64, &'l LoraSet)];

/// What an answer needs to begin.
#[derive(Debug)]
pub struct Prompt {
    /// Embedded prompt, `[P, H]`.
    pub embeds: Tensor,
    /// How it is answered.
    pub options: DecodeOptions,
    /// What the answer may be; free text when absent.
    pub constraint: Option<Arc<Constraint>>,
    /// Key into [`Loras`]: the low-rank parts of the adapter version that the answer is pinned to.
    pub lora: Option<u64>,
}

/// A finished answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// Answer tokens, without the one that ended it.
    pub ids: Vec<i64>,
    /// Natural-log probability of each chosen token under the model's full distribution (whatever the temperature or the
    /// constraint), the end token's last where the answer ended by itself.
    pub log_probs: Vec<f64>,
    /// Whether the answer ended by itself; `false` means that it reached its most tokens or the model's last position.
    pub ended: bool,
    /// Whether it was ended because it repeated itself; one of the repeats is kept.
    pub looping: bool,
    /// Which allowed answer it is, where it is one of a list.
    pub label: Option<usize>,
    /// The score that a beam search chose it by.
    pub beam_score: Option<f32>,
}

impl Decoded {
    /// Mean log-probability of the chosen tokens; 0 for an answer without any.
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    pub fn score(&self) -> f64 {
        if self.log_probs.is_empty() {
            return 0.0;
        }
        self.log_probs.iter().sum::<f64>() / self.log_probs.len() as f64
    }
}

/// Answers every prompt, at most `slots` sequences side by side (more, where one answer needs more); in the order of the
/// prompts. An answer that the model has no more positions for is cut off there.
///
/// `end_ids` end an answer; ids from `vocabulary` on are never chosen.
///
/// # Errors
/// [`ModelError`] when a prompt is empty, too long or of another width, options make no sense, or the model fails.
pub fn decode_all(
    model: &dyn LanguageModel,
    prompts: Vec<Prompt>,
    slots: usize,
    end_ids: &[i64],
    vocabulary: i64,
    loras: Loras<'_>,
) -> Result<Vec<Decoded>, ModelError> {
    let _no_grad = tch::no_grad_guard();
    let mut answers = vec![Decoded::default(); prompts.len()];
    let widest = prompts
        .iter()
        .map(|prompt| prompt.options.slots())
        .max()
        .unwrap_or(1);
    let all: usize = prompts.iter().map(|prompt| prompt.options.slots()).sum();
    let longest = |of: &dyn Fn(&Prompt) -> usize| prompts.iter().map(of).max().unwrap_or(0);
    let positions = longest(&|prompt| prompt.embeds.size().first().map_or(0, |size| *size as usize));
    let tokens = longest(&|prompt| prompt.options.tokens_max);
    let slots = slots.min(all).max(widest);
    let mut decoder = SlotDecoder::new(model, slots, positions, tokens, end_ids, vocabulary);
    let mut waiting = prompts.into_iter().enumerate().peekable();
    loop {
        let mut finished = decoder.step(model, loras)?;
        let mut joining = Vec::new();
        let mut free = decoder.free();
        while let Some((number, prompt)) = waiting.next_if(|(_, prompt)| prompt.options.slots() <= free) {
            free -= prompt.options.slots();
            joining.push((number, prompt));
        }
        if !joining.is_empty() {
            finished.extend(decoder.join(model, loras, joining)?);
        }
        for (number, decoded) in finished {
            answers[number] = decoded;
        }
        if decoder.used() == 0 && waiting.peek().is_none() {
            return Ok(answers);
        }
    }
}

/// Answers every prompt `[P_i, H]` with the same options, freely, over the model's whole vocabulary; see [`decode_all`].
///
/// # Errors
/// As [`decode_all`].
pub fn decode_alike(
    model: &dyn LanguageModel,
    prompts: &[Tensor],
    options: DecodeOptions,
    slots: usize,
    end_ids: &[i64],
) -> Result<Vec<Decoded>, ModelError> {
    let prompts = (prompts.iter())
        .map(|embeds| Prompt {
            embeds: embeds.shallow_clone(),
            options,
            constraint: None,
            lora: None,
        })
        .collect();
    decode_all(model, prompts, slots, end_ids, model.info().vocab, &[])
}

#[cfg(test)]
mod tests;

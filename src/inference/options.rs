//! How answers are generated: strategy, limits, penalties.

use crate::models::ModelError;

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
    /// An answer's score is the sum of its log-probabilities divided by its length to this power: above 0
    /// favours long answers, below 0 short ones.
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
    /// Most tokens of the answer, the end token counted, at least 1; a constrained answer is written so that
    /// it comes to its end within them.
    pub tokens_max: usize,
    /// Ends an answer that repeats itself, and keeps one of the repeats; see
    /// [`repeated_tail`](super::repeated_tail). Where an answer is constrained, only free text can be caught.
    pub stop_loops: bool,
    /// Divides positive scores of tokens that the answer holds already, multiplies negative ones; 1 changes
    /// nothing. Constrained answers are left alone.
    pub repetition_penalty: f64,
    /// Sequences of so many tokens occur once in the answer; 0 for no such rule. Constrained answers are left
    /// alone.
    pub no_repeat_ngram_size: usize,
    /// Share of the CTC head's prefix scores in the choice of each token of a transcript, also of one with
    /// which the answer to several tasks begins, 0 to below 1; see [`JointCtc`](super::JointCtc). Means
    /// nothing for other answers, and for adapters without a CTC head.
    pub ctc_weight: f64,
    /// Share of the summary's scores in the choice of each token of a label, 0 to below 1, where the
    /// adapter's summary is aligned with the task and the answer is constrained to its labels; see
    /// [`JointLabels`](super::JointLabels).
    pub summary_weight: f64,
    /// Share of the CTC head's scores in the choice of each token of a label that is decided by what is said,
    /// 0 to below 1; see [`GenerateRequest::spoken`](super::GenerateRequest::spoken).
    pub spoken_weight: f64,
    /// Words count as said from these log-odds a token on: the CTC head's probability that they are.
    pub spoken_above: f64,
    /// Log-probability of no words, by the CTC head, from which on it speaks for no speech: half of what it
    /// is above or below this is added to the summary's log-odds of no speech. Where the sum is positive,
    /// `speech_detection` says so, and a transcript is empty, whatever the language model would write. 0:
    /// the head has no part in it, and no transcript is emptied.
    pub nothing_said_above: f64,
    /// As `summary_weight`, for the embedding of what is said and the tasks that it is aligned with.
    pub sentence_weight: f64,
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
            ctc_weight: 0.0,
            summary_weight: 0.0,
            spoken_weight: 0.0,
            spoken_above: 0.0,
            nothing_said_above: 0.0,
            sentence_weight: 0.0,
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
        for (option, share) in [
            ("ctc_weight", self.ctc_weight),
            ("summary_weight", self.summary_weight),
            ("spoken_weight", self.spoken_weight),
            ("sentence_weight", self.sentence_weight),
        ] {
            let good = (0.0..1.0).contains(&share);
            check(good, option, share.to_string(), "0 to below 1")?;
        }
        for (option, limit, highest, expected) in [
            ("spoken_above", self.spoken_above, 100.0, "-100 to 100"),
            ("nothing_said_above", self.nothing_said_above, 0.0, "-100 to 0"),
        ] {
            let good = (-100.0..=highest).contains(&limit);
            check(good, option, limit.to_string(), expected)?;
        }
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

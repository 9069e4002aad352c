//! Beam search for one prompt: the arithmetic, apart from networks and caches.
//!
//! Equal, token for token, to transformers 5 (`GenerationMixin._beam_search`): of the `2 · width` likeliest
//! continuations (more, where several tokens end an answer) those among the first `width` that end are
//! complete, with their score divided by length to the power of `length_penalty`; the best `width` of the
//! others go on. Scores are f32 as there.

use super::repetition::repeated_tail;
use crate::inference::grammar::GrammarState;
use crate::inference::{BeamSettings, EarlyStopping};

/// Answers under way or complete.
#[derive(Clone, Debug)]
pub(in crate::inference) struct Hypothesis {
    /// Its tokens, the one that ended it left out.
    pub(in crate::inference) ids: Vec<i64>,
    /// Natural-log probability of each chosen token, the end token's included.
    pub(in crate::inference) log_probs: Vec<f64>,
    /// Under way: sum of scores. Complete: with the length penalty.
    pub(in crate::inference) score: f32,
    pub(in crate::inference) ended: bool,
    pub(in crate::inference) looping: bool,
    /// Where it is in its output grammar, if it has one.
    pub(in crate::inference) progress: Option<GrammarState>,
}

/// A possible continuation.
#[derive(Clone, Copy, Debug)]
pub(in crate::inference) struct Candidate {
    /// Which of the hypotheses under way it continues.
    pub(in crate::inference) source: usize,
    pub(in crate::inference) id: i64,
    /// Sum of scores with the new token.
    pub(in crate::inference) score: f32,
    /// Natural-log probability of the new token under the full distribution.
    pub(in crate::inference) log_prob: f64,
}

/// A beam search under way.
#[derive(Debug)]
pub(in crate::inference) struct BeamSearch {
    settings: BeamSettings,
    tokens_max: usize,
    /// Whether a hypothesis that repeats itself is complete.
    stop_loops: bool,
    /// Under way, best first.
    live: Vec<Hypothesis>,
    /// Complete, best first, at most `width`.
    complete: Vec<Hypothesis>,
}

impl BeamSearch {
    pub(in crate::inference) fn new(
        settings: BeamSettings,
        tokens_max: usize,
        stop_loops: bool,
        progress: Option<GrammarState>,
    ) -> Self {
        Self {
            settings,
            tokens_max,
            stop_loops,
            live: vec![Hypothesis::new(progress)],
            complete: Vec::new(),
        }
    }

    /// Hypotheses under way, best first.
    pub(in crate::inference) fn live(&self) -> &[Hypothesis] {
        &self.live
    }

    /// How many continuations [`advance`](Self::advance) wants to see.
    pub(in crate::inference) fn candidates(&self, end_ids: usize) -> usize {
        self.settings.width * (1 + end_ids).max(2)
    }

    /// Takes the best continuations of all hypotheses, best first, and returns, for each hypothesis that goes
    /// on, which one it continues; none when the search is over.
    ///
    /// `advance_grammar` gives the grammar state after one more token.
    pub(in crate::inference) fn advance(
        &mut self,
        candidates: &[Candidate],
        end_ids: &[i64],
        advance_grammar: impl Fn(&GrammarState, i64) -> Option<GrammarState>,
    ) -> Option<Vec<usize>> {
        let width = self.settings.width;
        let length = self.live.first()?.log_probs.len() + 1;
        let last = length >= self.tokens_max;
        let mut live = Vec::with_capacity(width);
        let mut sources = Vec::with_capacity(width);
        for (rank, candidate) in candidates.iter().enumerate() {
            let ended = end_ids.contains(&candidate.id);
            let full = match ended || last {
                true => rank >= width,
                false => live.len() >= width,
            };
            if full {
                continue;
            }
            let mut hypothesis = self.live[candidate.source].clone();
            hypothesis.log_probs.push(candidate.log_prob);
            hypothesis.score = candidate.score;
            hypothesis.ended = ended;
            if !ended {
                hypothesis.ids.push(candidate.id);
                if let Some(progress) = &hypothesis.progress {
                    hypothesis.progress = advance_grammar(progress, candidate.id);
                }
            }
            let extra = repeated_tail(&hypothesis.ids).filter(|_| self.stop_loops && !ended);
            if ended || last || extra.is_some() {
                hypothesis.score /= self.penalty(length);
                if let Some(extra) = extra {
                    hypothesis.looping = true;
                    hypothesis.ids.truncate(hypothesis.ids.len() - extra);
                    hypothesis.log_probs.truncate(hypothesis.ids.len());
                }
                self.complete.push(hypothesis);
            } else {
                live.push(hypothesis);
                sources.push(candidate.source);
            }
        }
        // Stable: of equals, the earlier one stays before.
        self.complete.sort_by(|left, right| {
            let doubts = left.is_doubtful().cmp(&right.is_doubtful());
            doubts.then(right.score.total_cmp(&left.score))
        });
        self.complete.truncate(width);
        self.live = live;
        (!self.is_over(length)).then_some(sources)
    }

    /// Length to the power of the penalty, as a divisor.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "scores are f32 in the original"
    )]
    fn penalty(&self, length: usize) -> f32 {
        (length as f64).powf(self.settings.length_penalty) as f32
    }

    /// Whether nothing can change the best answer any more, as far as the settings care.
    fn is_over(&self, length: usize) -> bool {
        let Some(best) = self.live.first() else {
            return true;
        };
        if self.complete.len() < self.settings.width {
            return false;
        }
        let worst = self.complete[self.complete.len() - 1].score;
        let at_best = match self.settings.early_stopping {
            EarlyStopping::Yes => return true,
            EarlyStopping::Never if self.settings.length_penalty > 0.0 => self.tokens_max,
            EarlyStopping::Never | EarlyStopping::No => length,
        };
        best.score / self.penalty(at_best) <= worst
    }

    /// The best answer.
    pub(in crate::inference) fn finish(mut self) -> Hypothesis {
        self.complete.append(&mut self.live);
        let best = self.complete.into_iter().next();
        best.unwrap_or_else(|| Hypothesis::new(None))
    }
}

impl Hypothesis {
    /// Whether any answer that ended by itself comes before it: it repeated itself, so that its score means
    /// little.
    fn is_doubtful(&self) -> bool {
        self.looping
    }

    /// An answer without tokens.
    fn new(progress: Option<GrammarState>) -> Self {
        Self {
            ids: Vec::new(),
            log_probs: Vec::new(),
            score: 0.0,
            ended: false,
            looping: false,
            progress,
        }
    }
}

//! A generated answer and what speaks for it.

use std::ops::Range;

use super::SpokenWord;
use crate::models::adapter::PrefixScorer;
use crate::text::{WindowText, join_words};

/// How much the language model's mean log-probability counts beside the agreement in [`Generation::support`].
const SUPPORT_SCORE_WEIGHT: f64 = 0.3;

/// A generated answer, complete or so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generation {
    /// Answer tokens, without the one that ended it.
    pub ids: Vec<i64>,
    /// Natural-log probability of each chosen token under the model's full distribution (whatever the
    /// temperature or the grammar), the end token's last where the answer ended by itself.
    pub log_probs: Vec<f64>,
    /// Whether the answer ended by itself; `false`: it reached its most tokens or the model's last position.
    pub ended: bool,
    /// Whether it was ended because it repeated itself; one of the repeats is kept.
    pub looping: bool,
    /// Which allowed answer it is, where it is one of a list.
    pub label: Option<usize>,
    /// The score that a beam search chose it by.
    pub beam_score: Option<f32>,
    /// Which tokens are the transcript; absent where there is none, or the adapter has no CTC head, and of
    /// windows that were joined, which are all transcript.
    pub transcript: Option<Range<usize>>,
    /// How well the transcript agrees with what the CTC head reads, 0 to 1 ([`PrefixScorer::agreement`]);
    /// absent where there is none, or the adapter has no such head.
    pub agreement: Option<f64>,
    /// Of the answer to several windows, the lowest mean log-probability of one.
    pub lowest_score: Option<f64>,
    /// Mean probability of the CTC head's blank: near 1 where nothing is said. Absent as `agreement`.
    pub blank_share: Option<f64>,
    /// Positions of the sound in which the CTC head finds each token of the transcript, of so many; absent as
    /// `agreement`, and where it does not find them.
    pub positions: Option<(Vec<Range<usize>>, usize)>,
    /// The words of a transcript and when they are said; empty where `positions` is absent.
    pub words: Vec<SpokenWord>,
    /// Whether there is no transcript because nothing is said: the language model was not asked.
    pub nothing_said: bool,
}

impl Generation {
    /// Mean log-probability of the chosen tokens; 0 for an answer without any.
    pub fn score(&self) -> f64 {
        mean(&self.log_probs)
    }

    /// How much speaks for a transcript: its agreement, plus `SUPPORT_SCORE_WEIGHT` (0.3) times the mean
    /// log-probability of its tokens, of the window where that is lowest (decision 28). Absent as the
    /// agreement.
    pub fn support(&self) -> Option<f64> {
        let score = self.lowest_score.unwrap_or_else(|| match &self.transcript {
            // The token that ends the transcript counts too.
            Some(range) => {
                let end = self.log_probs.len().min(range.end + 1);
                mean(self.log_probs.get(range.start..end).unwrap_or_default())
            }
            None => self.score(),
        });
        self.agreement
            .map(|agreement| agreement + SUPPORT_SCORE_WEIGHT * score)
    }

    /// Leaves the first so many tokens of an answer so far.
    pub fn truncate(&mut self, tokens: usize) {
        self.ids.truncate(tokens);
        self.log_probs.truncate(tokens);
    }

    /// Gives the times of its words in seconds, of sound that begins at `begin_seconds` of a recording and
    /// lasts `seconds`; before, they are shares of the sound.
    pub fn place_words(&mut self, begin_seconds: f64, seconds: f64) {
        for word in &mut self.words {
            word.begin = begin_seconds + word.begin * seconds;
            word.end = begin_seconds + word.end * seconds;
        }
    }

    /// The transcript of sound in which nothing is said.
    pub(super) fn of_nothing_said(scorer: &PrefixScorer) -> Self {
        Self {
            ended: true,
            agreement: Some(scorer.agreement(&[])),
            blank_share: Some(scorer.blank_share()),
            nothing_said: true,
            ..Self::default()
        }
    }

    /// The answers to the windows of one recording, their texts, and whether each begins inside the one
    /// before, as one: the words of [`join_words`], all tokens, and of everything else the worst.
    pub fn join_windows(windows: Vec<(Self, String, bool)>) -> (Self, String) {
        let joined = join_words(windows.iter().map(|(_, text, overlaps)| WindowText {
            text,
            overlaps: *overlaps,
        }));
        let places = joined.words.iter();
        let words: Option<Vec<SpokenWord>> = places
            .map(|(window, word)| windows[*window].0.words.get(*word).cloned())
            .collect();
        let whole = Self {
            words: words.unwrap_or_default(),
            ..Self::join(windows.into_iter().map(|(generation, ..)| generation))
        };
        (whole, joined.text)
    }

    /// All tokens, and of everything else the worst.
    fn join(windows: impl IntoIterator<Item = Self>) -> Self {
        let mut whole = Self {
            ended: true,
            ..Self::default()
        };
        let (mut blank_shares, mut count) = (0.0, 0.0);
        let mut windows = windows.into_iter().peekable();
        whole.nothing_said = windows.peek().is_some();
        for window in windows {
            whole.nothing_said &= window.nothing_said;
            let score = window.lowest_score.unwrap_or_else(|| window.score());
            whole.lowest_score = Some(whole.lowest_score.map_or(score, |lowest| lowest.min(score)));
            whole.ids.extend(window.ids);
            whole.log_probs.extend(window.log_probs);
            whole.ended &= window.ended;
            whole.looping |= window.looping;
            whole.agreement = match (whole.agreement, window.agreement) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
            if let Some(share) = window.blank_share {
                blank_shares += share;
                count += 1.0;
            }
        }
        whole.blank_share = (count > 0.0).then(|| blank_shares / count);
        whole
    }
}

/// The mean; 0 of nothing.
#[expect(clippy::cast_precision_loss, reason = "a small count")]
fn mean(log_probs: &[f64]) -> f64 {
    log_probs.iter().sum::<f64>() / log_probs.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(log_probs: &[f64], agreement: f64) -> Generation {
        Generation {
            ids: vec![5; log_probs.len()],
            log_probs: log_probs.to_vec(),
            ended: true,
            agreement: Some(agreement),
            ..Generation::default()
        }
    }

    #[test]
    fn agreement_and_score_support_a_transcript() {
        let close = |found: Option<f64>, wanted: f64| (found.unwrap() - wanted).abs() < 1e-12;

        assert!(close(transcript(&[-1.0, -3.0], 0.8).support(), 0.8 - 0.6));
        assert!(close(transcript(&[], 0.4).support(), 0.4));
        assert_eq!(Generation::default().support(), None, "no transcript");
    }

    #[test]
    fn of_an_answer_of_several_parts_the_transcript_and_its_end_count() {
        let whole = transcript(&[-9.0, -9.0, -1.0, -2.0, -3.0, -9.0, -9.0], 0.8);
        let part = Generation {
            transcript: Some(2..4),
            ..whole.clone()
        };
        let outside = Generation {
            transcript: Some(7..9),
            ..whole
        };

        assert!((part.support().unwrap() - (0.8 - 0.6)).abs() < 1e-12);
        assert!((outside.support().unwrap() - 0.8).abs() < 1e-12);
    }

    #[test]
    fn of_several_windows_the_worst_agreement_and_the_worst_score_count() {
        let windows = || {
            [
                transcript(&[-0.1; 30], 0.9),
                transcript(&[-4.0], 0.7),
                transcript(&[-0.5], 0.6),
            ]
        };

        let whole = Generation::join(windows());

        assert_eq!(whole.lowest_score, Some(-4.0));
        assert!((whole.support().unwrap() - (0.6 - 1.2)).abs() < 1e-12);
        assert!(whole.score() > -0.3, "its score is of all tokens");
        let again = Generation::join([Generation::join(windows()), transcript(&[-0.1], 0.95)]);
        assert_eq!(again.lowest_score, Some(-4.0));
    }

    #[test]
    fn an_answer_is_cut_with_its_log_probabilities() {
        let mut answer = transcript(&[-0.1, -0.2, -0.3], 0.9);

        answer.truncate(2);

        assert_eq!((answer.ids.len(), &answer.log_probs[..]), (2, &[-0.1, -0.2][..]));
    }

    #[test]
    fn words_of_windows_that_overlap_are_those_of_the_joined_text() {
        let window = |text: &str, begin: f64| {
            let words = text.split(' ').zip(0..).map(|(word, at)| SpokenWord {
                text: word.to_owned(),
                begin: begin + f64::from(at),
                end: begin + f64::from(at) + 0.5,
            });
            let generation = Generation {
                words: words.collect(),
                ..transcript(&[-0.1], 0.9)
            };
            (generation, text.to_owned(), begin > 0.0)
        };

        let (whole, text) = Generation::join_windows(vec![
            window("along the river until the ev", 0.0),
            window("until the evening came", 3.0),
        ]);

        assert_eq!(text, "along the river until the evening came");
        let words = whole.words.iter();
        let begins: Vec<(&str, f64)> = words.map(|word| (word.text.as_str(), word.begin)).collect();
        assert_eq!(begins.last(), Some(&("came", 6.0)));
        assert_eq!((begins.len(), begins[5]), (7, ("evening", 5.0)));
    }
}

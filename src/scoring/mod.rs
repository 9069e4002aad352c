//! Scores of answers against references: pure functions, each with its definition and its oracle.
//!
//! | file | one thought | equal to |
//! |---|---|---|
//! | [`errors`] | word and character error rates | `jiwer` |
//! | [`bleu`] | corpus BLEU of translations | `sacrebleu` |
//! | [`chrf`] | character n-gram F score of translations | `sacrebleu` |
//! | [`classes`] | accuracy, unweighted average recall, macro F1 of class answers | `scikit-learn` |
//! | [`overlap`] | keyword F1 and token F1 | the definition, written down in Python |
//! | [`slots`] | SLURP's SLU-F1 and slot-label F1 | the definition, written down in Python |
//! | [`tally`] | what each utterance adds to a score; bootstrap intervals and comparisons | |
//! | [`metric`] | the metrics by name, and a tally of answers for each | |
//!
//! Oracles and cases: `scripts/fixtures/scoring.py`, `tests/fixtures/scoring.json`. A score of nothing is
//! absent, never NaN; what each function makes of empty references is in its comment.

pub mod bleu;
pub mod chrf;
pub mod classes;
pub mod errors;
pub mod metric;
pub mod overlap;
pub mod slots;
pub mod tally;

pub use errors::{EditErrors, character_errors, corpus_errors, word_errors};
pub use metric::{Metric, Pair};
pub use tally::{Comparison, Interval, Tally};

use crate::text::normalize::{is_space, words};

#[cfg(test)]
mod tests;

/// F1 of counts: `2·hits / (answered + wanted)`; absent where nothing was wanted and nothing answered.
fn f1(hits: f64, answered: f64, wanted: f64) -> Option<f64> {
    let both = answered + wanted;
    (both > 0.0).then(|| 2.0 * hits / both)
}

//! Word and character error rates: how many units must be substituted, deleted or inserted to turn what was
//! said into what was recognised, over how many units were said.
//!
//! Definition (SpeechVerse §9 leaves it open): Levenshtein distance with unit costs, summed over the corpus
//! before the division, so that every word (character) weighs the same. Words are what white space separates;
//! characters are Unicode scalar values, white space at both ends left out, white space between words
//! counted. Bring both sides into one form first, see [`crate::text::normalize`]. Where several shortest
//! alignments exist, the split into substitutions, deletions and insertions is that of the `jiwer` library;
//! the rate never depends on it.
//!
//! Nothing said: the rate is 0 when nothing was recognised, else the number of units recognised, as in
//! `jiwer`.

use std::ops::AddAssign;

use super::{is_space, words};

/// Counted errors of one sentence or of a corpus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EditErrors {
    /// Units recognised as another unit.
    pub substitutions: u64,
    /// Units that were said and not recognised.
    pub deletions: u64,
    /// Units that were recognised and not said.
    pub insertions: u64,
    /// Units that were said.
    pub length: u64,
}

impl EditErrors {
    /// All errors together.
    pub fn errors(&self) -> u64 {
        self.substitutions + self.deletions + self.insertions
    }

    /// Errors per unit said, 0 to infinity. Where nothing was said, 0 when nothing was recognised, else the
    /// number of units recognised.
    pub fn rate(&self) -> f64 {
        self.errors() as f64 / self.length.max(1) as f64
    }
}

impl AddAssign for EditErrors {
    fn add_assign(&mut self, other: Self) {
        self.substitutions += other.substitutions;
        self.deletions += other.deletions;
        self.insertions += other.insertions;
        self.length += other.length;
    }
}

/// Counts the word errors of one sentence. Takes time in proportion to the product of both lengths.
pub fn word_errors(reference: &str, hypothesis: &str) -> EditErrors {
    let reference: Vec<&str> = words(reference).collect();
    let hypothesis: Vec<&str> = words(hypothesis).collect();
    align(&reference, &hypothesis)
}

/// Counts the character errors of one sentence, white space at both ends left out.
pub fn character_errors(reference: &str, hypothesis: &str) -> EditErrors {
    let reference: Vec<char> = reference.trim_matches(is_space).chars().collect();
    let hypothesis: Vec<char> = hypothesis.trim_matches(is_space).chars().collect();
    align(&reference, &hypothesis)
}

/// Counts the word errors of a corpus of (reference, hypothesis) pairs; its rate weighs every word the same.
pub fn corpus_errors<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> EditErrors {
    let mut total = EditErrors::default();
    for (reference, hypothesis) in pairs {
        total += word_errors(reference, hypothesis);
    }
    total
}

/// A cell of the alignment: the distance so far, and what it is made of on the path that is preferred.
#[derive(Clone, Copy, Default)]
struct Cell {
    distance: u64,
    errors: EditErrors,
}

fn align<T: PartialEq>(reference: &[T], hypothesis: &[T]) -> EditErrors {
    let length = reference.len() as u64;
    let alike = |pair: &(&T, &T)| pair.0 == pair.1;
    let prefix = reference.iter().zip(hypothesis).take_while(alike).count();
    let (reference, hypothesis) = (&reference[prefix..], &hypothesis[prefix..]);
    let suffix = (reference.iter().rev())
        .zip(hypothesis.iter().rev())
        .take_while(alike)
        .count();
    let reference = &reference[..reference.len() - suffix];
    let hypothesis = &hypothesis[..hypothesis.len() - suffix];

    // One row per hypothesis word, one column per reference word; two rows are enough, because which way led
    // into a cell is decided by its neighbours' distances alone.
    let mut above: Vec<Cell> = Vec::with_capacity(reference.len() + 1);
    for column in 0..=reference.len() as u64 {
        let errors = EditErrors {
            deletions: column,
            ..EditErrors::default()
        };
        above.push(Cell {
            distance: column,
            errors,
        });
    }
    for unit in hypothesis {
        let mut row = Vec::with_capacity(above.len());
        let mut first = above[0];
        first.distance += 1;
        first.errors.insertions += 1;
        row.push(first);
        for (column, said) in reference.iter().enumerate() {
            let (left, up, diagonal) = (row[column], above[column + 1], above[column]);
            let differs = u64::from(said != unit);
            let distance = (left.distance + 1)
                .min(up.distance + 1)
                .min(diagonal.distance + differs);
            let mut errors;
            if distance == left.distance + 1 {
                errors = left.errors;
                errors.deletions += 1;
            } else if up.distance + 1 == diagonal.distance {
                errors = up.errors;
                errors.insertions += 1;
            } else {
                errors = diagonal.errors;
                errors.substitutions += differs;
            }
            row.push(Cell { distance, errors });
        }
        above = row;
    }
    let mut errors = above.last().copied().unwrap_or_default().errors;
    errors.length = length;
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(serde::Deserialize)]
    struct Case {
        reference: String,
        hypothesis: String,
        substitutions: u64,
        deletions: u64,
        insertions: u64,
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        cases: Vec<Case>,
        corpus_rate: f64,
    }

    #[test]
    fn counts_and_corpus_rate_equal_jiwers() {
        let golden: Golden =
            serde_json::from_str(include_str!("../../tests/fixtures/llama_wer.json")).unwrap();
        assert!(golden.cases.len() >= 300);

        for case in &golden.cases {
            let errors = word_errors(&case.reference, &case.hypothesis);
            assert_eq!(
                (errors.substitutions, errors.deletions, errors.insertions),
                (case.substitutions, case.deletions, case.insertions),
                "{:?} against {:?}",
                case.reference,
                case.hypothesis
            );
        }
        let pairs = golden
            .cases
            .iter()
            .map(|case| (case.reference.as_str(), case.hypothesis.as_str()));
        let rate = corpus_errors(pairs).rate();
        assert!((rate - golden.corpus_rate).abs() < 1e-12, "{rate}");
    }

    #[test]
    fn silence_recognised_as_silence_is_no_error() {
        assert_eq!(word_errors("", "  ").rate(), 0.0);
        assert_eq!(word_errors("", "a b").errors(), 2);
        assert_eq!(word_errors("a b", "").rate(), 1.0);
    }

    proptest! {
        #[test]
        fn counts_are_consistent(a in "[ab ]{0,20}", b in "[ab ]{0,20}") {
            let errors = word_errors(&a, &b);
            let (n, m) = (a.split_whitespace().count() as u64, b.split_whitespace().count() as u64);
            prop_assert_eq!(errors.length, n);
            prop_assert_eq!(n + errors.insertions, m + errors.deletions);
            prop_assert!(errors.errors() <= n.max(m));
            prop_assert_eq!(word_errors(&b, &a).errors(), errors.errors());
        }
    }
}

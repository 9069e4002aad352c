//! chrF and chrF++ with the defaults of sacreBLEU.
//!
//! Definition: Popović 2015 (chrF) and 2017 (chrF++). Character n-grams of orders 1 to 6 of the text without
//! white space; chrF++ adds word n-grams of orders 1 and 2, a punctuation mark at one end of a word being a
//! word of its own. Matches are clipped per utterance and summed over the corpus; precision and recall are
//! averaged over the orders that both sides have; F with beta 2, so recall counts four times as much. Case
//! kept, no epsilon smoothing. On the scale 0 to 100.
//!
//! 0 where nothing matches, and where a side has no characters. An utterance whose reference lacks an order
//! adds no answered n-grams of that order.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::AddAssign;

use super::{is_space, words};

/// Longest character n-gram.
pub const CHARACTER_ORDER: usize = 6;
/// Longest word n-gram of chrF++.
pub const WORD_ORDER: usize = 2;
/// Orders in the counts: characters first, then words.
pub const ORDERS: usize = CHARACTER_ORDER + WORD_ORDER;

/// sacreBLEU's signature of chrF; `version` names the library it was checked against.
pub const SIGNATURE: &str = "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0";
/// The signature of chrF++.
pub const SIGNATURE_PLUS_PLUS: &str = "nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:2.6.0";

/// What one utterance, or a sum of them, adds to chrF and chrF++: answered, wanted and common n-grams by
/// order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChrfCounts {
    /// Per order: answered, wanted, in both.
    pub orders: [[u64; 3]; ORDERS],
}

impl ChrfCounts {
    /// Counts one utterance.
    pub fn of(reference: &str, hypothesis: &str) -> Self {
        let mut counts = Self::default();
        let letters = |text: &str| -> Vec<char> { text.chars().filter(|c| !is_space(*c)).collect() };
        let (wanted, answered) = (letters(reference), letters(hypothesis));
        for order in 1..=CHARACTER_ORDER {
            counts.orders[order - 1] = matches(&wanted, &answered, order);
        }
        let (wanted, answered) = (apart(reference), apart(hypothesis));
        for order in 1..=WORD_ORDER {
            counts.orders[CHARACTER_ORDER + order - 1] = matches(&wanted, &answered, order);
        }
        counts
    }

    /// chrF of these counts (chrF++ with `plus_plus`), 0 to 100.
    pub fn score(&self, plus_plus: bool) -> f64 {
        const FACTOR: f64 = 4.0; // beta²
        let orders = if plus_plus { ORDERS } else { CHARACTER_ORDER };
        let (mut precision, mut recall, mut used) = (0.0, 0.0, 0.0);
        for [answered, wanted, common] in &self.orders[..orders] {
            if *answered > 0 && *wanted > 0 {
                precision += *common as f64 / *answered as f64;
                recall += *common as f64 / *wanted as f64;
                used += 1.0;
            }
        }
        if precision + recall == 0.0 {
            return 0.0;
        }
        let (precision, recall) = (precision / used, recall / used);
        100.0 * (1.0 + FACTOR) * precision * recall / (FACTOR * precision + recall)
    }
}

impl AddAssign for ChrfCounts {
    fn add_assign(&mut self, other: Self) {
        for (mine, others) in self.orders.iter_mut().zip(other.orders) {
            for (mine, others) in mine.iter_mut().zip(others) {
                *mine += others;
            }
        }
    }
}

/// Corpus chrF (chrF++ with `plus_plus`) of (reference, hypothesis) pairs, 0 to 100; 0 for no pairs.
pub fn corpus_chrf<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>, plus_plus: bool) -> f64 {
    let mut sum = ChrfCounts::default();
    for (reference, hypothesis) in pairs {
        sum += ChrfCounts::of(reference, hypothesis);
    }
    sum.score(plus_plus)
}

fn matches<T: Eq + Hash>(wanted: &[T], answered: &[T], order: usize) -> [u64; 3] {
    let count = |units: &[T]| (units.len() + 1).saturating_sub(order) as u64;
    let grams = |units| {
        let mut counts: HashMap<&[T], u64> = HashMap::new();
        for gram in <[T]>::windows(units, order) {
            *counts.entry(gram).or_insert(0) += 1;
        }
        counts
    };
    let known = grams(wanted);
    let common = grams(answered)
        .into_iter()
        .map(|(gram, times)| times.min(known.get(gram).copied().unwrap_or(0)))
        .sum();
    let answered = if known.is_empty() { 0 } else { count(answered) };
    [answered, count(wanted), common]
}

/// Words, one ASCII punctuation mark at the end (else at the beginning) of a longer word set apart.
fn apart(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for word in words(text) {
        let mark = |c: Option<char>| c.filter(char::is_ascii_punctuation).is_some();
        if word.chars().nth(1).is_none() {
            found.push(word);
        } else if mark(word.chars().next_back()) {
            let (head, tail) = word.split_at(word.len() - 1);
            found.extend([head, tail]);
        } else if mark(word.chars().next()) {
            let (head, tail) = word.split_at(1);
            found.extend([head, tail]);
        } else {
            found.push(word);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_scores_nothing_and_all_scores_a_hundred() {
        for plus_plus in [false, true] {
            assert_eq!(corpus_chrf([], plus_plus), 0.0);
            assert_eq!(corpus_chrf([("", "")], plus_plus), 0.0);
            assert_eq!(corpus_chrf([("", "a")], plus_plus), 0.0);
            assert!((corpus_chrf([("ab c", "ab c")], plus_plus) - 100.0).abs() < 1e-9);
        }
    }

    #[test]
    fn one_punctuation_mark_of_a_word_is_set_apart() {
        assert_eq!(
            apart("(hi) 'yes no! - ?!"),
            ["(hi", ")", "'", "yes", "no", "!", "-", "?", "!"]
        );
    }

    proptest! {
        #[test]
        fn any_text_gives_a_score_between_0_and_100(a in any::<String>(), b in any::<String>()) {
            let score = corpus_chrf([(a.as_str(), b.as_str())], true);
            prop_assert!((0.0..=100.0 + 1e-9).contains(&score));
        }
    }
}

//! chrF with the defaults of sacreBLEU.
//!
//! Definition: Popović 2015. Character n-grams of orders 1 to 6 of the text without white space. Matches are
//! clipped per utterance and summed over the corpus; precision and recall are averaged over the orders that
//! both sides have; F with beta 2, so recall counts four times as much. Case kept, no epsilon smoothing. On
//! the scale 0 to 100.
//!
//! 0 where nothing matches, and where a side has no characters. An utterance whose reference lacks an order
//! adds no answered n-grams of that order.

use std::collections::HashMap;

use super::is_space;

/// Longest character n-gram.
pub const ORDERS: usize = 6;

/// sacreBLEU's signature of chrF; `version` names the library it was checked against.
pub const SIGNATURE: &str = "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0";

/// What one utterance, or a sum of them, adds to chrF: answered, wanted and common n-grams by order.
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
        for order in 1..=ORDERS {
            counts.orders[order - 1] = matches(&wanted, &answered, order);
        }
        counts
    }

    /// chrF of these counts, 0 to 100.
    pub fn score(&self) -> f64 {
        const FACTOR: f64 = 4.0; // beta²
        let (mut precision, mut recall, mut used) = (0.0, 0.0, 0.0);
        for [answered, wanted, common] in &self.orders {
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

fn matches(wanted: &[char], answered: &[char], order: usize) -> [u64; 3] {
    let count = |units: &[char]| (units.len() + 1).saturating_sub(order) as u64;
    let grams = |units| {
        let mut counts: HashMap<&[char], u64> = HashMap::new();
        for gram in <[char]>::windows(units, order) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_scores_nothing_and_all_scores_a_hundred() {
        assert_eq!(ChrfCounts::default().score(), 0.0);
        assert_eq!(ChrfCounts::of("", "").score(), 0.0);
        assert_eq!(ChrfCounts::of("", "a").score(), 0.0);
        assert!((ChrfCounts::of("ab c", "ab c").score() - 100.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn any_text_gives_a_score_between_0_and_100(a in any::<String>(), b in any::<String>()) {
            let score = ChrfCounts::of(&a, &b).score();
            prop_assert!((0.0..=100.0 + 1e-9).contains(&score));
        }
    }
}

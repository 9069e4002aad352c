//! Corpus BLEU with the defaults of sacreBLEU.
//!
//! Definition (SpeechVerse §9 names no variant): Papineni et al. 2002 with one reference; n-grams up to order
//! 4 of tokens made by the rules of `mteval-v13a` ("13a"), case kept unless asked otherwise, counts clipped
//! per utterance and summed over the corpus, exponential smoothing (the k-th order without a hit counts as
//! `1 / 2^k` hits), no effective order, brevity penalty from the summed lengths. On the scale 0 to 100.
//!
//! A corpus without a single common word scores 0, and so does one in which no answer has four tokens: an
//! order without n-grams makes the geometric mean 0, as sacreBLEU has it with `effective_order` off. Empty
//! texts have no tokens.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

use super::{is_space, words};

/// Longest n-gram.
pub const ORDER: usize = 4;

/// sacreBLEU's signature of this score, for reports; `version` names the library it was checked against.
pub const SIGNATURE: &str = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0";
/// The signature with both sides in lower case.
pub const SIGNATURE_LOWERCASE: &str = "nrefs:1|case:lc|eff:no|tok:13a|smooth:exp|version:2.6.0";

/// What one utterance, or a sum of them, adds to corpus BLEU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BleuCounts {
    /// Tokens answered.
    pub hypothesis: u64,
    /// Tokens of the reference.
    pub reference: u64,
    /// Answered n-grams that the reference has too, by order.
    pub hits: [u64; ORDER],
    /// Answered n-grams, by order.
    pub totals: [u64; ORDER],
}

impl BleuCounts {
    /// Counts one utterance.
    pub fn of(reference: &str, hypothesis: &str, lowercase: bool) -> Self {
        let prepare = |text: &str| {
            if lowercase {
                tokenize_13a(&text.to_lowercase())
            } else {
                tokenize_13a(text)
            }
        };
        let (reference, hypothesis) = (prepare(reference), prepare(hypothesis));
        let mut counts = Self {
            hypothesis: hypothesis.len() as u64,
            reference: reference.len() as u64,
            ..Self::default()
        };
        for order in 1..=ORDER {
            let wanted = grams(&reference, order);
            for (gram, times) in grams(&hypothesis, order) {
                counts.totals[order - 1] += times;
                counts.hits[order - 1] += times.min(wanted.get(gram).copied().unwrap_or(0));
            }
        }
        counts
    }

    /// BLEU of these counts, 0 to 100.
    pub fn score(&self) -> f64 {
        if self.hits.iter().all(|hits| *hits == 0) || self.totals.contains(&0) {
            return 0.0;
        }
        let mut smoothing = 1.0;
        let mut logarithms = 0.0;
        for (hits, total) in self.hits.iter().zip(self.totals) {
            let hits = if *hits == 0 {
                smoothing *= 2.0;
                1.0 / smoothing
            } else {
                *hits as f64
            };
            logarithms += (100.0 * hits / total as f64).ln();
        }
        let brevity = if self.hypothesis < self.reference {
            (1.0 - self.reference as f64 / self.hypothesis as f64).exp()
        } else {
            1.0
        };
        brevity * (logarithms / ORDER as f64).exp()
    }
}

fn grams(tokens: &[String], order: usize) -> HashMap<&[String], u64> {
    let mut counts = HashMap::new();
    for gram in tokens.windows(order) {
        *counts.entry(gram).or_insert(0) += 1;
    }
    counts
}

/// Full stops and commas are words of their own unless digits are on both sides; a hyphen is one after a
/// digit.
static SPLITS: LazyLock<[(Regex, &str); 3]> = LazyLock::new(|| {
    let compile = |pattern| Regex::new(pattern).expect("a constant pattern");
    [
        (compile(r"([^0-9])([.,])"), "$1 $2 "),
        (compile(r"([.,])([^0-9])"), " $1 $2"),
        (compile("([0-9])-"), "$1 - "),
    ]
});

/// Tokens of a text by the rules of `mteval-v13a`, as sacreBLEU applies them: four XML entities are read,
/// ASCII symbols stand alone (not the apostrophe), full stops, commas and hyphens do where no number needs
/// them.
pub fn tokenize_13a(text: &str) -> Vec<String> {
    let mut text = text.trim_end_matches(is_space).replace("<skipped>", "");
    text = text.replace("-\n", "").replace('\n', " ");
    for (entity, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        text = text.replace(entity, character);
    }
    let mut spaced = String::with_capacity(2 * text.len() + 2);
    spaced.push(' ');
    for character in text.chars() {
        if character.is_ascii_punctuation() && !matches!(character, '\'' | ',' | '-' | '.') {
            spaced.extend([' ', character, ' ']);
        } else {
            spaced.push(character);
        }
    }
    spaced.push(' ');
    for (pattern, replacement) in SPLITS.iter() {
        spaced = pattern.replace_all(&spaced, *replacement).into_owned();
    }
    words(&spaced).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_keep_their_points_and_sentences_do_not() {
        assert_eq!(
            tokenize_13a("It's 3,500.5 &quot;km&quot; - really. 1990-95,"),
            [
                "It's", "3,500.5", "\"", "km", "\"", "-", "really", ".", "1990", "-", "95", ","
            ]
        );
        assert!(tokenize_13a(" \n\t").is_empty());
    }

    #[test]
    fn nothing_scores_nothing() {
        assert_eq!(BleuCounts::default().score(), 0.0);
        for (reference, hypothesis) in [("", ""), ("", "a b c d e"), ("a b c d e", ""), ("a b", "a b")] {
            assert_eq!(BleuCounts::of(reference, hypothesis, false).score(), 0.0);
        }
    }

    proptest! {
        #[test]
        fn an_answer_equal_to_its_reference_scores_a_hundred(text in "[a-z]{1,5}( [a-z]{1,5}){3,9}") {
            prop_assert!((BleuCounts::of(&text, &text, false).score() - 100.0).abs() < 1e-9);
        }

        #[test]
        fn any_text_gives_a_score_between_0_and_100(a in any::<String>(), b in any::<String>()) {
            let score = BleuCounts::of(&a, &b, true).score();
            prop_assert!((0.0..=100.0 + 1e-9).contains(&score));
        }
    }
}

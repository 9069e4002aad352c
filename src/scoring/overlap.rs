//! What two short answers share: keyword F1 and token F1.
//!
//! Definitions (SpeechVerse §9: the paper says "F1" and leaves the unit open): F1 of each utterance, averaged
//! over utterances.
//! - *Keyword F1*: between the sets of keywords; keywords are separated by commas, trimmed, lower-cased,
//!   empty ones dropped, repeats counted once.
//! - *Token F1*: between the bags of words in plain spelling ([`crate::text::normalize::plain`]), repeats
//!   counted as often as they occur; articles stay, unlike in SQuAD's evaluation.
//!
//! Where reference and answer are both empty the utterance scores 1, where only one is, 0.

use std::collections::{BTreeMap, BTreeSet};

use super::{f1, is_space};
use crate::text::normalize::plain;

/// The keywords of an answer.
pub fn keywords(text: &str) -> BTreeSet<String> {
    text.split(',')
        .map(|keyword| keyword.trim_matches(is_space).to_lowercase())
        .filter(|keyword| !keyword.is_empty())
        .collect()
}

/// F1 between two answers' keywords, 0 to 1.
pub fn keyword_f1(reference: &str, hypothesis: &str) -> f64 {
    let (wanted, answered) = (keywords(reference), keywords(hypothesis));
    let hits = wanted.intersection(&answered).count();
    f1(hits as f64, answered.len() as f64, wanted.len() as f64).unwrap_or(1.0)
}

/// F1 between two answers' words, 0 to 1.
pub fn token_f1(reference: &str, hypothesis: &str) -> f64 {
    let (reference, hypothesis) = (plain(reference), plain(hypothesis));
    let mut left: BTreeMap<&str, u64> = BTreeMap::new();
    let mut wanted = 0u64;
    for word in reference.split_whitespace() {
        *left.entry(word).or_default() += 1;
        wanted += 1;
    }
    let (mut hits, mut answered) = (0u64, 0u64);
    for word in hypothesis.split_whitespace() {
        answered += 1;
        if let Some(times) = left.get_mut(word).filter(|times| **times > 0) {
            *times -= 1;
            hits += 1;
        }
    }
    f1(hits as f64, answered as f64, wanted as f64).unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_are_a_set_and_words_are_a_bag() {
        assert_eq!(keyword_f1("radio, Music", "music,music, ,tea"), 0.5);
        assert_eq!(keyword_f1("", " , "), 1.0);
        assert_eq!(keyword_f1("a", ""), 0.0);
        assert_eq!(token_f1("The cat, the dog", "the the the"), 4.0 / 7.0);
        assert_eq!(token_f1("", "?"), 1.0);
    }
}

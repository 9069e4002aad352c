//! When the words of a transcript are said, by the CTC head.

use std::ops::Range;

use crate::text::TokenBytes;

/// A word of a transcript.
#[derive(Clone, Debug, PartialEq)]
pub struct SpokenWord {
    /// The word, with the punctuation at it.
    pub text: String,
    /// Where it begins in the sound: 0 is the begin and 1 the end, until
    /// [`place_words`](super::Generation::place_words) makes it seconds.
    pub begin: f64,
    /// Where it ends, likewise.
    pub end: f64,
}

/// The words of an answer whose tokens are found in these of so many positions; empty where they are not
/// those of `text`.
pub(super) fn spoken_words(
    ids: &[i64],
    positions: &[Range<usize>],
    count: usize,
    bytes: &TokenBytes,
    text: &str,
) -> Vec<SpokenWord> {
    let mut found: Vec<(Vec<u8>, Range<usize>)> = Vec::new();
    for (id, at) in ids.iter().zip(positions) {
        let Some(spelt) = bytes.bytes(*id) else { continue };
        if found.is_empty() || bytes.begins_word(*id) {
            found.push((Vec::new(), at.clone()));
        }
        if let Some((word, covered)) = found.last_mut() {
            word.extend_from_slice(spelt);
            if covered.start == covered.end {
                *covered = at.clone();
            } else {
                covered.end = covered.end.max(at.end);
            }
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    let share = |position: usize| position as f64 / count.max(1) as f64;
    let words: Vec<SpokenWord> = (found.into_iter())
        .map(|(word, at)| SpokenWord {
            text: String::from_utf8_lossy(&word).trim().to_owned(),
            begin: share(at.start),
            end: share(at.end),
        })
        .filter(|word| !word.text.is_empty())
        .collect();
    let are_those = words
        .iter()
        .map(|word| word.text.as_str())
        .eq(text.split_whitespace());
    if are_those { words } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tokens_of_a_word_are_one_word_from_the_first_to_the_last() {
        let spelt = [" ri", "ver", "!", " ", "bank", " so"];
        let tokens = (1..)
            .zip(spelt)
            .map(|(id, spelt)| (spelt.as_bytes().into(), id))
            .collect();
        let bytes = TokenBytes::new(tokens, 10);
        let words = |ids: &[i64], positions: &[Range<usize>], text: &str| {
            let found = spoken_words(ids, positions, 10, &bytes, text);
            found
                .into_iter()
                .map(|word| (word.text, word.begin, word.end))
                .collect::<Vec<_>>()
        };

        let found = words(
            &[1, 2, 3, 4, 5, 6],
            &[1..2, 3..4, 4..4, 5..5, 6..7, 9..10],
            "river! bank so",
        );

        let expected = [("river!", 0.1, 0.4), ("bank", 0.6, 0.7), ("so", 0.9, 1.0)];
        assert_eq!(
            found,
            expected.map(|(text, begin, end)| (text.to_owned(), begin, end))
        );
        assert_eq!(words(&[], &[], ""), []);
        assert_eq!(
            words(&[1, 2], &[1..2, 3..4], "rivers"),
            [],
            "not the words of the text"
        );
    }
}

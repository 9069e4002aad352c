//! When the words of a transcript are said, by the CTC head.

use std::ops::Range;

use crate::text::TokenBytes;

/// How far before its first token a word begins, positions (0.16 s at 12.5 a second). A CTC head spells a
/// token when it has heard enough of it: beside the word times of Whisper base, first tokens were 0.17 s
/// late in the median, last tokens 0.03 s early (881 words of LibriSpeech, validation).
const LEAD: usize = 2;

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
/// those of `text`. A word begins up to [`LEAD`] positions before its first token, and not before the end of
/// the word before it.
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
    let mut ended = 0;
    for (_, at) in found.iter_mut().filter(|(_, at)| !at.is_empty()) {
        at.start = at.start.saturating_sub(LEAD).max(ended).min(at.start);
        ended = at.end;
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
    fn a_word_begins_a_little_before_its_first_token_and_ends_with_its_last() {
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

        let expected = [("river!", 0.0, 0.4), ("bank", 0.4, 0.7), ("so", 0.7, 1.0)];
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

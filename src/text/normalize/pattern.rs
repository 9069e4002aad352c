//! Patterns that read Unicode as the reference does: its word characters and white space are not those of the
//! `regex` crate.
//!
//! A word character is a letter, a number of any script or the underscore; combining marks are none. White
//! space is also the four information separators U+001C to U+001F. Digits are the same in both.

use regex::{Captures, Regex, Replacer};

use std::sync::LazyLock;

static WORD: LazyLock<Regex> = LazyLock::new(|| compile(r"^[\p{L}\p{N}_]$"));
static DIGIT: LazyLock<Regex> = LazyLock::new(|| compile(r"^\d$"));

fn compile(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns of this folder are constants and well formed")
}

fn is(class: &Regex, character: char) -> bool {
    class.is_match(character.encode_utf8(&mut [0; 4]))
}

fn is_word(character: char) -> bool {
    match character.is_ascii() {
        true => character == '_' || character.is_ascii_alphanumeric(),
        false => is(&WORD, character),
    }
}

/// What a decimal digit of any script counts. The ten digits of a script follow each other, and no script's
/// digits follow another's, but for mathematical ones, which NFKD makes ASCII.
pub(super) fn digit(character: char) -> Option<u8> {
    let is_digit = |code: u32| char::from_u32(code).is_some_and(|character| is(&DIGIT, character));
    let code = u32::from(character);
    match character.is_ascii() {
        true => character.to_digit(10).map(|digit| digit as u8),
        false => is_digit(code).then(|| (1..10).take_while(|before| is_digit(code - before)).count() as u8),
    }
}

/// A pattern that never matches nothing. `\b` may stand at its ends only; since a match that is not at the
/// edge of a word is not tried again at another length, alternatives before a `\b` go from long to short.
#[derive(Debug)]
pub(super) struct Pattern {
    regex: Regex,
    starts_at_edge: bool,
    ends_at_edge: bool,
}

impl Pattern {
    pub(super) fn new(pattern: &str) -> Self {
        let inner = pattern.strip_prefix(r"\b");
        let (inner, starts_at_edge) = (inner.unwrap_or(pattern), inner.is_some());
        let bare = inner.strip_suffix(r"\b");
        Self {
            regex: compile(&bare.unwrap_or(inner).replace(r"\s", r"[\s\x1c-\x1f]")),
            starts_at_edge,
            ends_at_edge: bare.is_some(),
        }
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.find(text, 0).is_some()
    }

    /// The text between matches.
    pub(super) fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut parts = Vec::new();
        let mut from = 0;
        while let Some(found) = self.find(text, from) {
            let whole = found.get_match();
            parts.push(&text[from..whole.start()]);
            from = whole.end();
        }
        parts.push(&text[from..]);
        parts
    }

    /// The text with every match replaced, from left to right.
    pub(super) fn replace_all(&self, text: String, mut with: impl Replacer) -> String {
        let mut out = String::new();
        let mut from = 0;
        while let Some(found) = self.find(&text, from) {
            let whole = found.get_match();
            out.push_str(&text[from..whole.start()]);
            with.replace_append(&found, &mut out);
            from = whole.end();
        }
        if from == 0 {
            return text;
        }
        out.push_str(&text[from..]);
        out
    }

    /// The first match at or behind a place.
    fn find<'t>(&self, text: &'t str, mut from: usize) -> Option<Captures<'t>> {
        loop {
            let found = self.regex.captures_at(text, from)?;
            let whole = found.get_match();
            if (!self.starts_at_edge || is_edge(text, whole.start()))
                && (!self.ends_at_edge || is_edge(text, whole.end()))
            {
                return Some(found);
            }
            from = whole.start() + whole.as_str().chars().next().map_or(1, char::len_utf8);
        }
    }
}

/// Whether a word begins or ends at a place.
fn is_edge(text: &str, at: usize) -> bool {
    let before = text[..at].chars().next_back().is_some_and(is_word);
    let behind = text[at..].chars().next().is_some_and(is_word);
    before != behind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_joiners_end_words_and_numbers_do_not() {
        let pattern = Pattern::new(r"\b(mmm|mm)\b");
        let replaced = |text: &str| pattern.replace_all(text.to_owned(), "-");

        assert_eq!(replaced("mm,mmm mmmm amm mma"), "-,- mmmm amm mma");
        assert_eq!(
            replaced("mm\u{301} mm\u{200d} mm\u{203f}"),
            "-\u{301} -\u{200d} -\u{203f}"
        );
        assert_eq!(replaced("mm² ❶mm mm_ ⅷmm"), "mm² ❶mm mm_ ⅷmm");
    }

    #[test]
    fn digits_of_every_script_count_what_they_count() {
        assert_eq!(
            ['0', '7', '٣', '९', '０', 'x', '²', '三'].map(digit),
            [Some(0), Some(7), Some(3), Some(9), Some(0), None, None, None]
        );
    }
}

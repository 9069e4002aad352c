//! Normalisation: what two spellings of one sentence have in common, so that a score counts words and not
//! punctuation.
//!
//! [`plain`] is for every language; [`english()`] also unifies English contractions, numbers and spelling,
//! as published English word error rates do.

mod english;
mod english_numbers;
pub(crate) mod number_words;
mod pattern;

pub use english::english;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Lower case, no punctuation, one space between words.
///
/// Apostrophes vanish (`don't` becomes `dont`), all other punctuation and symbols separate words. Letters,
/// digits and marks of every script stay; compatible forms are unified (NFKC).
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.nfkc().flat_map(char::to_lowercase) {
        if character.is_alphanumeric() || is_combining_mark(character) {
            out.push(character);
        } else if !matches!(character, '\'' | '\u{2019}' | '\u{2018}' | '\u{02bc}') && !out.ends_with(' ') {
            out.push(' ');
        }
    }
    out.trim().to_owned()
}

/// What Python's `str.split()` makes of a text: the white space of the Unicode property, and the four
/// information separators.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

pub(crate) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn case_and_punctuation_vanish() {
        assert_eq!(
            plain("  Don’t turn-on \"THE\" light, please!\n"),
            "dont turn on the light please"
        );
        assert_eq!(plain("Ça coûte 3,50 €"), "ça coûte 3 50");
        assert_eq!(plain("?!…"), "");
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(text in any::<String>()) {
            let once = plain(&text);
            prop_assert_eq!(plain(&once), once.clone());
            prop_assert!(!once.contains("  "));
        }
    }
}

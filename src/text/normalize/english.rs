//! English text in one spelling: the normalisation that English word error rates are usually reported with.
//!
//! Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022, appendix C.
//! Equal, character by character, to `EnglishTextNormalizer` of `openai-whisper` 20250625 on the cases that
//! `scripts/fixtures/english.py` makes (it also writes `american/spellings.txt`, and reads other seeds), for
//! characters that both know: which are letters, marks and digits depends on the version of Unicode.
//!
//! Numbers of more than 4,300 digits stay as they are; the reference stops at them.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Captures;
use unicode_normalization::UnicodeNormalization;

use super::pattern::Pattern;
use super::{english_numbers, words};

/// What is replaced before symbols go, in this order.
const REPLACEMENTS: &[(&str, &str)] = &[
    (r"[<\[][^>\]]*[>\]]", ""),
    (r"\(([^)]+?)\)", ""),
    (r"\b(hmm|mmm|mhm|mm|uh|um)\b", ""),
    (r"\s+'", "'"),
    // Contractions with words of their own.
    (r"\bwon't\b", "will not"),
    (r"\bcan't\b", "can not"),
    (r"\blet's\b", "let us"),
    (r"\bain't\b", "aint"),
    (r"\by'all\b", "you all"),
    (r"\bwanna\b", "want to"),
    (r"\bgotta\b", "got to"),
    (r"\bgonna\b", "going to"),
    (r"\bi'ma\b", "i am going to"),
    (r"\bimma\b", "i am going to"),
    (r"\bwoulda\b", "would have"),
    (r"\bcoulda\b", "could have"),
    (r"\bshoulda\b", "should have"),
    (r"\bma'am\b", "madam"),
    // Titles.
    (r"\bmr\b", "mister "),
    (r"\bmrs\b", "missus "),
    (r"\bst\b", "saint "),
    (r"\bdr\b", "doctor "),
    (r"\bprof\b", "professor "),
    (r"\bcapt\b", "captain "),
    (r"\bgov\b", "governor "),
    (r"\bald\b", "alderman "),
    (r"\bgen\b", "general "),
    (r"\bsen\b", "senator "),
    (r"\brep\b", "representative "),
    (r"\bpres\b", "president "),
    (r"\brev\b", "reverend "),
    (r"\bhon\b", "honorable "),
    (r"\basst\b", "assistant "),
    (r"\bassoc\b", "associate "),
    (r"\blt\b", "lieutenant "),
    (r"\bcol\b", "colonel "),
    (r"\bjr\b", "junior "),
    (r"\bsr\b", "senior "),
    (r"\besq\b", "esquire "),
    // Perfect tenses, before the endings that look like them.
    (r"'d been\b", " had been"),
    (r"'s been\b", " has been"),
    (r"'d gone\b", " had gone"),
    (r"'s gone\b", " has gone"),
    (r"'d done\b", " had done"),
    (r"'s got\b", " has got"),
    // Endings.
    (r"n't\b", " not"),
    (r"'re\b", " are"),
    (r"'s\b", " is"),
    (r"'d\b", " would"),
    (r"'ll\b", " will"),
    (r"'t\b", " not"),
    (r"'ve\b", " have"),
    (r"'m\b", " am"),
    // Commas within numbers, full stops that are not decimal points.
    (r"(\d),(\d)", "${1}${2}"),
    (r"\.([^0-9]|$)", " ${1}"),
];

/// Symbols that numbers need are kept at first and dropped here where no number is beside them.
const AFTER_NUMBERS: &[(&str, &str)] = &[
    (r"[.$¢€£]([^0-9])", " ${1}"),
    (r"([^0-9])%", "${1} "),
    (r"\s+", " "),
];

type Rules = Vec<(Pattern, &'static str)>;

fn compile(rules: &[(&str, &'static str)]) -> Rules {
    rules
        .iter()
        .map(|(pattern, with)| (Pattern::new(pattern), *with))
        .collect()
}

static BEFORE: LazyLock<Rules> = LazyLock::new(|| compile(REPLACEMENTS));
static AFTER: LazyLock<Rules> = LazyLock::new(|| compile(AFTER_NUMBERS));
/// Marks, symbols and punctuation, but for what numbers need; combining marks are captured.
static SYMBOLS: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(r"(\p{Mn})|[[\p{M}\p{S}\p{P}]--[.%$¢€£]]"));
/// British words and what Americans write: one pair on each line.
static SPELLINGS: LazyLock<HashMap<&str, &str>> = LazyLock::new(|| {
    include_str!("american/spellings.txt")
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect()
});

/// Brings English text into one spelling: lower case, contractions written out, numbers in digits, American
/// spelling, no punctuation and no fillers. As in the reference a blank may be left at either end.
pub fn english(text: &str) -> String {
    let text = replace_all(text.to_lowercase(), &BEFORE);
    let text = drop_symbols(&text);
    let text = english_numbers::normalize(text);
    let words: Vec<&str> = words(&text)
        .map(|word| SPELLINGS.get(word).copied().unwrap_or(word))
        .collect();
    replace_all(words.join(" "), &AFTER)
}

fn replace_all(text: String, rules: &Rules) -> String {
    rules
        .iter()
        .fold(text, |text, (pattern, with)| pattern.replace_all(text, *with))
}

/// Letters without their diacritics, symbols as blanks, but for those that numbers need.
fn drop_symbols(text: &str) -> String {
    let mut decomposed = String::with_capacity(text.len());
    for character in text.nfkd() {
        match character {
            'œ' => decomposed.push_str("oe"),
            'ø' => decomposed.push('o'),
            'æ' => decomposed.push_str("ae"),
            // A capital is what some modifier letters decompose into, behind the lower-casing.
            'Æ' => decomposed.push_str("AE"),
            'ß' => decomposed.push_str("ss"),
            'đ' | 'ð' => decomposed.push('d'),
            'þ' => decomposed.push_str("th"),
            'ł' => decomposed.push('l'),
            other => decomposed.push(other),
        }
    }
    SYMBOLS.replace_all(
        decomposed,
        |found: &Captures<'_>| {
            if found.get(1).is_some() { "" } else { " " }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(cases: &str) {
        let cases: Vec<(String, String)> = serde_json::from_str(cases).unwrap();
        assert!(cases.len() >= 500);

        let wrong: Vec<_> = (cases.iter())
            .map(|(text, reference)| (text, reference, english(text)))
            .filter(|(_, reference, found)| *reference != found)
            .take(20)
            .collect();

        assert!(wrong.is_empty(), "of {}: {wrong:#?}", cases.len());
    }

    #[test]
    fn cases_equal_the_reference() {
        check(include_str!("../../../tests/fixtures/english.json"));
    }

    #[test]
    fn cases_by_hand_equal_the_reference() {
        if let Some(path) = std::env::var_os("SPEECHVERSE_ENGLISH") {
            check(&std::fs::read_to_string(path).unwrap());
        }
    }

    #[test]
    fn british_and_american_spelling_meet() {
        assert_eq!(SPELLINGS.len(), 1738);
        assert_eq!(
            english("The grey theatre's travellers realised their favourite colour."),
            english("the gray theater's travelers realized their favorite color")
        );
        assert_eq!(english("four hours or our flour"), "4 hours or our flour");
    }

    #[test]
    fn numbers_have_no_largest_value() {
        let nines = "9".repeat(4000);

        assert_eq!(english(&"one ".repeat(50_000)), "1".repeat(50_000));
        // Only the last group is multiplied: 99…9000 + 999 · 1000.
        let product = format!("1{}998000th", "0".repeat(3994));
        assert_eq!(
            english(&format!("{nines} and {nines} thousandth")),
            format!("{nines} and {product}")
        );
        // Beyond what the reference reads: a number of 5,000 digits stays, and is not multiplied.
        let longer = "9".repeat(5000);
        assert_eq!(english(&format!("{longer} hundred")), format!("{longer} 100"));
    }

    proptest! {
        #[test]
        fn no_text_can_panic(text in any::<String>()) {
            prop_assert!(!english(&text).contains("  "));
        }

        #[test]
        fn no_row_of_number_words_can_panic(picks in prop::collection::vec(0usize..30, 0..24)) {
            let words = ["zero", "oh", "one", "nine", "twelve", "twenty", "ninety", "hundred", "thousand", "decillion",
                "first", "twelfths", "twentieth", "millionth", "thousands", "and", "double", "triple", "point", "minus",
                "dollars", "cents", "percent", "per cent", "007", "3.50", "$12", "٣.٥", "0",
                "99999999999999999999999999999999999999999999"];
            let text: Vec<&str> = picks.iter().map(|pick| words[*pick]).collect();
            prop_assert!(!english(&text.join(" ")).contains("  "));
        }
    }
}

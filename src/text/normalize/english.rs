//! English text in one spelling: the normalisation that English word error rates are usually reported with.
//!
//! Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022, appendix C; checked
//! against `EnglishTextNormalizer` of transformers 5 on the cases in `tests/fixtures/llama_english.json`.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use unicode_normalization::UnicodeNormalization;

use super::english_numbers::NumberNormalizer;

/// What is replaced before symbols go, in this order.
const REPLACEMENTS: &[(&str, &str)] = &[
    (r"[<\[][^>\]]*[>\]]", ""),
    (r"\(([^)]+?)\)", ""),
    (r"\b(hmm|mm|mhm|mmm|uh|um)\b", ""),
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

type Rules = Vec<(Regex, &'static str)>;

fn compile(rules: &[(&str, &'static str)]) -> Rules {
    let compiled = |pattern: &str| Regex::new(pattern).expect("the patterns above are well formed");
    rules
        .iter()
        .map(|(pattern, with)| (compiled(pattern), *with))
        .collect()
}

static BEFORE: LazyLock<Rules> = LazyLock::new(|| compile(REPLACEMENTS));
static AFTER: LazyLock<Rules> = LazyLock::new(|| compile(AFTER_NUMBERS));
/// Marks, symbols and punctuation; marks that take no room are captured.
static SYMBOLS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(\p{Mn})|[\p{M}\p{S}\p{P}]").expect("the pattern is well formed"));

/// Brings English text into one spelling: lower case, contractions written out, numbers in digits, American
/// spelling, no punctuation and no fillers.
#[derive(Clone, Debug)]
pub struct EnglishNormalizer {
    spellings: HashMap<String, String>,
    numbers: NumberNormalizer,
}

impl Default for EnglishNormalizer {
    /// With the spelling rules of this program, which cover common words only.
    fn default() -> Self {
        Self::new(american_spellings())
    }
}

impl EnglishNormalizer {
    /// With a spelling map of one's own, word for word, such as the `normalizer.json` of a Whisper model.
    pub fn new(spellings: HashMap<String, String>) -> Self {
        Self {
            spellings,
            numbers: NumberNormalizer::new(),
        }
    }

    /// The text in its one spelling.
    pub fn normalize(&self, text: &str) -> String {
        let text = replace_all(text.to_lowercase(), &BEFORE);
        let text = drop_symbols(&text);
        let text = self.numbers.normalize(&text);
        let words: Vec<&str> = (text.split_whitespace())
            .map(|word| self.spellings.get(word).map_or(word, String::as_str))
            .collect();
        replace_all(words.join(" "), &AFTER).trim().to_owned()
    }
}

fn replace_all(mut text: String, rules: &Rules) -> String {
    for (pattern, with) in rules {
        if let std::borrow::Cow::Owned(replaced) = pattern.replace_all(&text, *with) {
            text = replaced;
        }
    }
    text
}

/// Letters without their diacritics, symbols as spaces, but for those that numbers need.
fn drop_symbols(text: &str) -> String {
    let mut decomposed = String::with_capacity(text.len());
    for character in text.nfkd() {
        match character {
            'œ' => decomposed.push_str("oe"),
            'ø' => decomposed.push('o'),
            'æ' => decomposed.push_str("ae"),
            'ß' => decomposed.push_str("ss"),
            'đ' | 'ð' => decomposed.push('d'),
            'þ' => decomposed.push_str("th"),
            'ł' => decomposed.push('l'),
            other => decomposed.push(other),
        }
    }
    let replace = |found: &Captures<'_>| match &found[0] {
        kept @ ("." | "%" | "$" | "¢" | "€" | "£") => kept.to_owned(),
        _ if found.get(1).is_some() => String::new(),
        _ => " ".to_owned(),
    };
    SYMBOLS.replace_all(&decomposed, replace).into_owned()
}

/// British to American spelling of common words, made from a few rules.
fn american_spellings() -> HashMap<String, String> {
    let mut map = HashMap::new();
    let mut add = |british: String, american: String| {
        map.insert(british, american);
    };
    let our = [
        "col", "fav", "hon", "behavi", "neighb", "lab", "harb", "hum", "flav", "rum", "sav", "vap", "arm",
        "endeav", "od", "parl", "rig", "splend", "tum", "val", "vig", "clam", "ard", "cand", "ranc", "dem",
    ];
    for stem in our {
        for ending in [
            "", "s", "ed", "ing", "ful", "less", "able", "ably", "ite", "ites", "hood", "hoods", "al",
        ] {
            add(format!("{stem}our{ending}"), format!("{stem}or{ending}"));
        }
    }
    let ise = [
        "real",
        "organ",
        "recogn",
        "apolog",
        "critic",
        "emphas",
        "special",
        "general",
        "memor",
        "minim",
        "maxim",
        "optim",
        "priorit",
        "summar",
        "symbol",
        "author",
        "civil",
        "character",
        "custom",
        "dramat",
        "econom",
        "famil",
        "final",
        "global",
        "harmon",
        "hospital",
        "ideal",
        "industrial",
        "item",
        "legal",
        "modern",
        "mobil",
        "normal",
        "patron",
        "penal",
        "popular",
        "real",
        "revolution",
        "standard",
        "stabil",
        "sympath",
        "synchron",
        "terror",
        "util",
        "visual",
        "agon",
        "anal",
        "paral",
        "catal",
    ];
    for stem in ise {
        let (british, american) = match stem {
            "anal" | "paral" | "catal" => ("ys", "yz"),
            _ => ("is", "iz"),
        };
        for ending in ["e", "es", "ed", "ing", "er", "ers", "ation", "ations"] {
            add(
                format!("{stem}{british}{ending}"),
                format!("{stem}{american}{ending}"),
            );
        }
    }
    for stem in [
        "cent", "theat", "met", "lit", "fib", "kilomet", "centimet", "millimet", "spect", "somb", "lust",
        "calib",
    ] {
        for ending in ["", "s"] {
            add(format!("{stem}re{ending}"), format!("{stem}er{ending}"));
        }
    }
    for stem in [
        "travel", "cancel", "label", "model", "signal", "level", "fuel", "counsel", "marvel", "quarrel",
        "tunnel",
    ] {
        for ending in ["ed", "ing", "er", "ers", "or", "ors", "ous"] {
            add(format!("{stem}l{ending}"), format!("{stem}{ending}"));
        }
    }
    for (british, american) in [
        ("grey", "gray"),
        ("tyre", "tire"),
        ("programme", "program"),
        ("catalogue", "catalog"),
        ("dialogue", "dialog"),
        ("cheque", "check"),
        ("defence", "defense"),
        ("offence", "offense"),
        ("licence", "license"),
        ("pretence", "pretense"),
        ("plough", "plow"),
        ("mould", "mold"),
        ("kerb", "curb"),
        ("aeroplane", "airplane"),
        ("moustache", "mustache"),
        ("sceptic", "skeptic"),
        ("storey", "story"),
        ("enquiry", "inquiry"),
        ("aluminium", "aluminum"),
        ("jewellery", "jewelry"),
        ("pyjama", "pajama"),
        ("axe", "ax"),
    ] {
        for ending in ["", "s"] {
            add(format!("{british}{ending}"), format!("{american}{ending}"));
        }
    }
    add("centred".to_owned(), "centered".to_owned());
    add("axes".to_owned(), "axes".to_owned());
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cases_equal_the_reference() {
        let cases: Vec<(String, String)> =
            serde_json::from_str(include_str!("../../../tests/fixtures/llama_english.json")).unwrap();
        assert!(cases.len() >= 600);
        let normalizer = EnglishNormalizer::new(HashMap::new());

        let wrong: Vec<_> = (cases.iter())
            .map(|(text, reference)| (text, reference, normalizer.normalize(text)))
            .filter(|(_, reference, found)| *reference != found)
            .collect();

        assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), cases.len());
    }

    #[test]
    fn british_and_american_spelling_meet() {
        let normalizer = EnglishNormalizer::default();

        assert_eq!(
            normalizer.normalize("The grey theatre's travellers realised their favourite colour."),
            normalizer.normalize("the gray theater's travelers realized their favorite color")
        );
        assert_eq!(
            normalizer.normalize("four hours or our flour"),
            "4 hours or our flour"
        );
    }

    proptest! {
        #[test]
        fn no_text_can_panic(text in any::<String>()) {
            let normalized = EnglishNormalizer::default().normalize(&text);
            prop_assert!(!normalized.contains("  "));
        }

        #[test]
        fn no_row_of_number_words_can_panic(picks in prop::collection::vec(0usize..28, 0..24)) {
            let words = ["zero", "oh", "one", "nine", "twelve", "twenty", "ninety", "hundred", "thousand", "decillion",
                "first", "twelfths", "twentieth", "millionth", "thousands", "and", "double", "triple", "point", "minus",
                "dollars", "cents", "percent", "per cent", "007", "3.50", "$12", "99999999999999999999999999999999999999999999"];
            let text: Vec<&str> = picks.iter().map(|pick| words[*pick]).collect();
            let _ = EnglishNormalizer::default().normalize(&text.join(" "));
        }
    }
}

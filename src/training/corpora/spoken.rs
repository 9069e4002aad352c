//! The normal form of a sentence: what its speaker says, in lower-case English words.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::text::normalize::number_words::{ONES, TENS};
use crate::text::normalize::plain;
use crate::text::tasks::{TASK_SEPARATOR, TRANSCRIPT};

/// What separates words and is dropped.
const SEPARATORS: &str = "-\u{2013}\u{2014}/.,!?;:\"()\u{201c}\u{201d}\u{2026}*_";

/// A number below ten thousand in words, without `and`.
fn number_words(number: usize) -> String {
    let with_rest = |head: String, rest: usize| match rest {
        0 => head,
        rest => format!("{head} {}", number_words(rest)),
    };
    match number {
        0 => "zero".to_owned(),
        1..20 => ONES[number - 1].to_owned(),
        20..100 => with_rest(TENS[number / 10 - 2].to_owned(), number % 10),
        100..1000 => with_rest(format!("{} hundred", ONES[number / 100 - 1]), number % 100),
        _ => with_rest(format!("{} thousand", number_words(number / 1000)), number % 1000),
    }
}

/// Lower case, no punctuation, apostrophes inside words kept, whole numbers of up to four digits in words;
/// none when something else than English letters remains.
///
/// The same as `normalise` of `scripts/data/text.py`.
pub fn spoken_form(text: &str) -> Option<String> {
    let text: String = text
        .chars()
        .flat_map(char::to_lowercase)
        .map(|c| match c {
            '\u{2018}' | '\u{2019}' => '\'',
            c if SEPARATORS.contains(c) => ' ',
            c => c,
        })
        .collect();
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let word = word.trim_matches('\'');
        if word.is_empty() {
            continue;
        }
        let is_number = word.len() <= 4 && word.bytes().all(|byte| byte.is_ascii_digit());
        match word.parse() {
            Ok(number) if is_number => words.push(number_words(number)),
            _ => words.push(word.to_owned()),
        }
    }
    let english = |word: &String| {
        word.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'\'' || byte == b' ')
    };
    (!words.is_empty() && words.iter().all(english)).then(|| words.join(" "))
}

/// The form in which sentences are compared: [`spoken_form`], and for what has none (other letters than
/// English ones, symbols, long numbers) lower case without punctuation. None when no word remains.
pub fn compared_form(text: &str) -> Option<String> {
    spoken_form(text).or_else(|| Some(plain(text)).filter(|text| !text.is_empty()))
}

/// What a manifest's row says of its words; the same keys as
/// [`read_manifest`](crate::training::manifest::read_manifest) reads.
pub(super) struct RowWords<'l> {
    pub(super) text: Option<&'l str>,
    pub(super) task: Option<&'l str>,
    pub(super) target: Option<&'l str>,
    pub(super) targets: &'l BTreeMap<String, Value>,
}

impl RowWords<'_> {
    /// The sentences that the row teaches or tests, in the form in which they are compared: `text`, and the
    /// transcript among its answers. A row without a task is for transcription.
    ///
    /// # Errors
    /// Why the transcript cannot be found.
    pub(super) fn sentences(&self) -> Result<BTreeSet<String>, String> {
        let of_targets = self.targets.get(TRANSCRIPT).and_then(Value::as_str);
        let task = self.task.unwrap_or(TRANSCRIPT);
        let tasks: Vec<&str> = task.split(TASK_SEPARATOR).map(str::trim).collect();
        let is_joint = tasks.len() > 1 && tasks.contains(&TRANSCRIPT);
        if is_joint && self.target.is_some() && self.text.is_none() {
            return Err(format!(
                "has the answers of several tasks (`{task}`) in one `target`: write them as `targets`, or the \
                 transcript as `text`, so that it can be compared"
            ));
        }
        let of_target = self.target.filter(|_| tasks == [TRANSCRIPT]);
        let all = [self.text, of_target, of_targets];
        Ok(all.into_iter().flatten().filter_map(compared_form).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_that_have_no_spoken_form_are_compared_without_case_and_punctuation() {
        for (one, other) in [
            ("The café is closed.", "the café is closed"),
            ("The cafe\u{301} is closed", "THE CAFÉ, is closed!"),
            ("Now 20 % off.", "now 20% off"),
            ("Good morning!", "good morning"),
        ] {
            let form = compared_form(one);
            assert!(form.is_some() && form == compared_form(other), "{one}: {form:?}");
        }
        assert_eq!(compared_form(" ?! "), None);
    }

    #[test]
    fn sentences_get_the_form_of_the_scripts() {
        for (text, form) in [
            (
                "Can I have a 16-ounce, dark\u{2019}s \u{201c}Latte\u{201d}?",
                Some("can i have a sixteen ounce dark's latte"),
            ),
            ("'tis U M six", Some("tis u m six")),
            (
                "1999 and 0 and 20 and 305",
                Some("one thousand nine hundred ninety nine and zero and twenty and three hundred five"),
            ),
            ("12345", None),
            ("Fünf", None),
            ("20%", None),
            (" ' ", None),
            ("", None),
        ] {
            assert_eq!(spoken_form(text).as_deref(), form, "{text}");
        }
    }
}

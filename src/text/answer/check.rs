//! Whether a target is an answer that its grammar allows.

use super::{AnswerFormat, GrammarPiece, NONE, OutputGrammar};
use crate::text::error::shown;

/// Longest list of allowed answers in a message, characters.
const LISTED_CHARS_MAX: usize = 1_500;

impl OutputGrammar {
    /// Checks a target of one task against the labels in force, compared trimmed and in lower case. Free text
    /// allows everything.
    ///
    /// # Errors
    /// What is not allowed, and what is.
    pub fn check(&self, target: &str) -> Result<(), String> {
        let (format, labels) = match self.pieces.as_slice() {
            [GrammarPiece::Choice(labels)] => (AnswerFormat::Label, labels),
            [GrammarPiece::Choices(labels)] => (AnswerFormat::Labels, labels),
            [GrammarPiece::Slots(labels)] => (AnswerFormat::Slots, labels),
            _ => return Ok(()),
        };
        let parsed = format.parse(target);
        let found = parsed.labels();
        if found.is_empty() && target.trim().to_lowercase() != NONE {
            return Err(format!(
                "`{}` is no answer of the form `{}`; {}",
                shown(target),
                if format == AnswerFormat::Slots {
                    "slot = value;"
                } else {
                    "label, label"
                },
                listed(labels)
            ));
        }
        let allowed = |found: &str| labels.iter().any(|label| label.trim().to_lowercase() == found);
        match found.into_iter().find(|found| !allowed(found)) {
            None => Ok(()),
            Some(other) => Err(format!(
                "`{}` is none of the allowed answers; {}",
                shown(other),
                listed(labels)
            )),
        }
    }
}

/// `allowed are: a, b, c`, or as many of them as a message can hold.
fn listed(labels: &[String]) -> String {
    let mut text = String::from("allowed are: ");
    for (at, label) in labels.iter().enumerate() {
        if text.chars().count() + label.chars().count() > LISTED_CHARS_MAX {
            text.push_str(&format!(" and {} more", labels.len() - at));
            break;
        }
        if at > 0 {
            text.push_str(", ");
        }
        text.extend(label.chars().flat_map(char::escape_debug));
    }
    text
}

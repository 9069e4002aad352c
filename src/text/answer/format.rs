//! `AnswerFormat`: how the answers of a task are written, and read back.
//!
//! Reading never fails: a model may write anything, and what cannot be understood is left out. Writing is the
//! inverse: whatever was read, written again and read again, is the same.

use std::fmt::{self, Display, Write};

use serde::{Deserialize, Serialize};

use super::{GrammarPiece, NONE, OutputGrammar};

/// How answers of a task are written (`[answer] format` of a task file).
///
/// Yes or no is a label, of two.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum AnswerFormat {
    /// Free text.
    #[default]
    Text,
    /// One label.
    Label,
    /// Labels, `, ` between them; `none` where none applies.
    Labels,
    /// Free words or phrases, `, ` between them.
    Keywords,
    /// `slot = value;` for each, a space between them; `none` where there is none.
    Slots,
}

/// One slot and what fills it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotLabel {
    /// The slot's label, in lower case.
    pub name: String,
    /// The words that fill it, in lower case, single spaces between them.
    pub value: String,
}

/// An answer that was read. Displays as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParsedAnswer {
    /// Free text, without white space around it.
    Text(String),
    /// One label in lower case; not necessarily a listed one.
    Label(String),
    /// Labels in lower case, each once, in order.
    Labels(Vec<String>),
    /// Keywords in lower case, each once, in order.
    Keywords(Vec<String>),
    /// Slots in order; one may come several times.
    Slots(Vec<SlotLabel>),
}

impl AnswerFormat {
    /// Its name in task files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Label => "label",
            Self::Labels => "labels",
            Self::Keywords => "keywords",
            Self::Slots => "slots",
        }
    }

    /// Whether answers are made of labels from a list.
    pub fn takes_labels(self) -> bool {
        matches!(self, Self::Label | Self::Labels | Self::Slots)
    }

    /// Reads what a model wrote, or a target.
    ///
    /// - `label`: trimmed, in lower case, nothing else changed, so that it can be compared exactly;
    /// - `labels`, `keywords`: split at commas, each trimmed and in lower case, empty and repeated ones left
    ///   out;
    /// - `slots`: split at `;`, each at its first `=`; parts without `=`, without a name or without a value
    ///   are left out;
    /// - `labels`, `slots`: `none` alone is an empty list.
    pub fn parse(self, text: &str) -> ParsedAnswer {
        match self {
            Self::Text => ParsedAnswer::Text(text.trim().to_owned()),
            Self::Label => ParsedAnswer::Label(lower(text)),
            Self::Labels => {
                let mut labels = list(text);
                if labels == [NONE] {
                    labels.clear();
                }
                ParsedAnswer::Labels(labels)
            }
            Self::Keywords => ParsedAnswer::Keywords(list(text)),
            Self::Slots => ParsedAnswer::Slots(text.split(';').filter_map(slot).collect()),
        }
    }

    /// A target in the spelling of training: as it is read, but labels spelled as in `labels`.
    pub fn canonical(self, target: &str, labels: &[String]) -> String {
        let spelled = |found: String| {
            let listed = labels.iter().find(|label| lower(label) == found);
            listed.cloned().unwrap_or(found)
        };
        match self.parse(target) {
            ParsedAnswer::Label(label) => spelled(label),
            ParsedAnswer::Labels(found) => {
                ParsedAnswer::Labels(found.into_iter().map(spelled).collect()).to_string()
            }
            ParsedAnswer::Slots(mut slots) => {
                for slot in &mut slots {
                    slot.name = spelled(std::mem::take(&mut slot.name));
                }
                ParsedAnswer::Slots(slots).to_string()
            }
            other => other.to_string(),
        }
    }

    /// What answers may look like when only these labels are allowed. Free text where `labels` is empty or
    /// means nothing to the format.
    pub fn grammar(self, labels: &[String]) -> OutputGrammar {
        if labels.is_empty() {
            return OutputGrammar::free();
        }
        OutputGrammar::of(match self {
            Self::Text | Self::Keywords => GrammarPiece::Free { stop: None },
            Self::Label => GrammarPiece::Choice(labels.into()),
            Self::Labels => GrammarPiece::Choices(labels.into()),
            Self::Slots => GrammarPiece::Slots(labels.into()),
        })
    }
}

impl Display for ParsedAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) | Self::Label(text) => f.write_str(text),
            Self::Labels(labels) if labels.is_empty() => f.write_str(NONE),
            Self::Labels(words) | Self::Keywords(words) => f.write_str(&words.join(", ")),
            Self::Slots(slots) if slots.is_empty() => f.write_str(NONE),
            Self::Slots(slots) => {
                for (at, SlotLabel { name, value }) in slots.iter().enumerate() {
                    if at > 0 {
                        f.write_char(' ')?;
                    }
                    write!(f, "{name} = {value};")?;
                }
                Ok(())
            }
        }
    }
}

impl ParsedAnswer {
    /// The labels in it: one, several, or the slots' names; empty for free words.
    pub fn labels(&self) -> Vec<&str> {
        match self {
            Self::Text(_) | Self::Keywords(_) => Vec::new(),
            Self::Label(label) => vec![label],
            Self::Labels(labels) => labels.iter().map(String::as_str).collect(),
            Self::Slots(slots) => slots.iter().map(|slot| slot.name.as_str()).collect(),
        }
    }
}

fn lower(text: &str) -> String {
    text.trim().to_lowercase()
}

fn list(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for part in text.split(',').map(lower).filter(|part| !part.is_empty()) {
        if seen.insert(part.clone()) {
            found.push(part);
        }
    }
    found
}

fn slot(part: &str) -> Option<SlotLabel> {
    let (name, value) = part.split_once('=')?;
    let value: Vec<&str> = value.split_whitespace().collect();
    let slot = SlotLabel {
        name: lower(name),
        value: value.join(" ").to_lowercase(),
    };
    (!slot.name.is_empty() && !slot.value.is_empty()).then_some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [AnswerFormat; 5] = [
        AnswerFormat::Text,
        AnswerFormat::Label,
        AnswerFormat::Labels,
        AnswerFormat::Keywords,
        AnswerFormat::Slots,
    ];

    fn slots(text: &str) -> Vec<(String, String)> {
        let ParsedAnswer::Slots(slots) = AnswerFormat::Slots.parse(text) else {
            panic!("slots");
        };
        slots.into_iter().map(|slot| (slot.name, slot.value)).collect()
    }

    #[test]
    fn a_label_is_trimmed_and_in_lower_case_and_nothing_else_is_forgiven() {
        let label = |text| AnswerFormat::Label.parse(text).to_string();

        assert_eq!(label(" Play_Radio\n"), "play_radio");
        assert_eq!(label("play_radio."), "play_radio.");
    }

    #[test]
    fn keywords_are_split_at_commas_each_once() {
        let found = AnswerFormat::Keywords.parse(" Radio, news ,radio,, The End ");

        assert_eq!(
            found,
            ParsedAnswer::Keywords(["radio", "news", "the end"].map(str::to_owned).to_vec())
        );
        assert_eq!(found.to_string(), "radio, news, the end");
    }

    #[test]
    fn the_papers_slot_answer_is_read_and_written() {
        assert_eq!(slots("time = now;"), [("time".into(), "now".into())]);
        assert_eq!(
            AnswerFormat::Slots
                .parse("date=Next  Monday;time = now")
                .to_string(),
            "date = next monday; time = now;"
        );
    }

    #[test]
    fn malformed_slots_leave_out_what_is_malformed_and_nothing_else() {
        let good = [("date".to_owned(), "a = b".to_owned())];
        for text in [
            "date = a = b; time; = x; place = ; ;;",
            "nonsense; date = a = b",
            "none; date = a = b;",
        ] {
            assert_eq!(slots(text), good, "{text}");
        }
        assert_eq!(slots(NONE), []);
        assert_eq!(AnswerFormat::Slots.parse("").to_string(), NONE);
    }

    #[test]
    fn several_labels_may_be_none_and_keywords_may_hold_that_word() {
        let read = |format: AnswerFormat| format.parse("none");

        assert_eq!(read(AnswerFormat::Labels), ParsedAnswer::Labels(Vec::new()));
        assert_eq!(
            read(AnswerFormat::Keywords),
            ParsedAnswer::Keywords(vec!["none".into()])
        );
    }

    #[test]
    fn a_target_is_trained_in_the_spelling_of_its_list() {
        let labels = ["Date".to_owned(), "place_name".to_owned()];

        let slots = AnswerFormat::Slots.canonical("DATE=Monday;other = x", &labels);

        assert_eq!(slots, "Date = monday; other = x;");
        assert_eq!(AnswerFormat::Label.canonical("date ", &labels), "Date");
        assert_eq!(
            AnswerFormat::Labels.canonical("place_NAME,date,", &labels),
            "place_name, Date"
        );
        assert_eq!(AnswerFormat::Text.canonical(" As it Is ", &labels), "As it Is");
    }

    #[test]
    fn only_listed_labels_shape_an_answer() {
        let labels = ["a".to_owned()];

        for format in ALL {
            assert!(format.grammar(&[]).is_free());
            assert_eq!(format.grammar(&labels).is_free(), !format.takes_labels());
        }
        assert_eq!(AnswerFormat::Label.grammar(&labels).choice(), Some(&labels[..]));
    }

    /// Lower-casing twice changes some strings once more (`İ`), which no round trip can survive.
    fn stable(text: &str) -> bool {
        text.to_lowercase().to_lowercase() == text.to_lowercase()
    }

    proptest! {
        #[test]
        fn whatever_was_read_is_read_the_same_after_writing(
            text in "\\PC{0,60}|([a-c =;,|\\\\A-C\n]|none|ß|É){0,30}", which in 0usize..5
        ) {
            prop_assume!(stable(&text));
            let format = ALL[which];
            let once = format.parse(&text);
            prop_assert_eq!(format.parse(&once.to_string()), once);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>(), which in 0usize..5) {
            let _ = ALL[which].parse(&text).to_string();
        }

        #[test]
        fn slots_survive_writing_and_reading(
            pairs in proptest::collection::vec(("[a-z_]{1,8}", "[a-z0-9=]{1,5}( [a-z0-9]{1,5}){0,3}"), 0..6)
        ) {
            let slots = pairs.into_iter().map(|(name, value)| SlotLabel { name, value }).collect();
            let answer = ParsedAnswer::Slots(slots);
            prop_assert_eq!(AnswerFormat::Slots.parse(&answer.to_string()), answer);
        }
    }
}

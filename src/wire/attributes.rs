//! Header names: which attributes are read, how else they are written, and what is refused as a misspelling
//! of one.
//!
//! CloudEvents' Kafka binding writes an attribute as `ce_name`. Clients also write `ce-name` (the HTTP
//! binding), `ceName`, `cloudEvents:name`, or leave the prefix out; those are understood. A name that is
//! almost one of ours is refused, because a request whose instruction is passed over is answered with another
//! one. Any other header belongs to somebody else.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::rejection::{Reason, Rejection, Stage};

/// The header that names the type of the data.
const CONTENT_TYPE: &str = "content-type";
/// Attributes of requests and labels, with the header that carries each. They are understood without a prefix
/// too.
const OURS: &[(&str, &str)] = &[
    ("instruction", "ce_instruction"),
    ("task", "ce_task"),
    ("labels", "ce_labels"),
    ("fields", "ce_fields"),
    ("constrain", "ce_constrain"),
    ("jsonschema", "ce_jsonschema"),
    ("regex", "ce_regex"),
    ("grammar", "ce_grammar"),
    ("maxtokens", "ce_maxtokens"),
    ("deadline", "ce_deadline"),
    ("partials", "ce_partials"),
    ("wordtimes", "ce_wordtimes"),
    ("session", "ce_session"),
    ("sequence", "ce_sequence"),
    ("final", "ce_final"),
    ("train", "ce_train"),
    ("target", "ce_target"),
    ("subjectsource", "ce_subjectsource"),
    ("replytopic", "ce_replytopic"),
    ("bargein", "ce_bargein"),
];
/// Attributes of CloudEvents itself, and of ours, whose names are too usual to be taken for them without a
/// prefix.
const PREFIXED: &[(&str, &str)] = &[
    ("id", "ce_id"),
    ("source", "ce_source"),
    ("type", "ce_type"),
    ("subject", "ce_subject"),
    ("priority", "ce_priority"),
];
/// Headers without the prefix that some clients write with it.
const PLAIN: &[(&str, &str)] = &[
    ("contenttype", CONTENT_TYPE),
    ("datacontenttype", CONTENT_TYPE),
    ("traceparent", "traceparent"),
    ("tracestate", "tracestate"),
];
/// What is written for an attribute and is further from its name than a misspelling.
const MISTAKEN: &[(&str, &str)] = &[
    ("prompt", "ce_instruction"),
    ("maxnewtokens", "ce_maxtokens"),
    ("tokensmax", "ce_maxtokens"),
    ("schema", "ce_jsonschema"),
    ("responseformat", "ce_jsonschema"),
    ("lark", "ce_grammar"),
];
/// Beginnings of a header name that say "an attribute of the event follows".
const PREFIXES: &[&str] = &[
    "ce_",
    "ce-",
    "ce:",
    "ce.",
    "x-ce-",
    "cloudevents:",
    "cloudevents_",
    "cloudevents-",
];
/// Longer names are nobody's misspelling of ours.
const NAME_BYTES_MAX: usize = 64;
/// Without a prefix, only words of this length are looked at for misspellings.
const LONG_WORD: usize = 8;

/// Every header that is read, in the usual spelling.
#[cfg(test)]
pub(super) fn headers() -> impl Iterator<Item = &'static str> {
    [OURS, PREFIXED, PLAIN]
        .into_iter()
        .flatten()
        .map(|(_, header)| *header)
}

/// What a header's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// It is not for us.
    Foreign,
    /// The header of this name, in the usual spelling.
    Usual(&'static str),
    /// The header of this name, spelt as other clients do.
    Other(&'static str),
    /// Almost the header of this name.
    Near(&'static str),
}

/// The headers of a record, or the attributes of a structured event, that are read here: by their usual
/// names, each once.
#[derive(Debug, Default)]
pub(super) struct Known(BTreeMap<&'static str, Entry>);

#[derive(Debug)]
struct Entry {
    /// As the sender wrote it.
    name: String,
    usual: bool,
    value: Option<Bytes>,
}

impl Known {
    /// Takes a header of a record. Of a repeated name the last one counts.
    ///
    /// # Errors
    /// A [`Rejection`] for a name that is almost known, and for two spellings of one name that say different
    /// things.
    pub(super) fn header(&mut self, name: &str, value: Option<Bytes>) -> Result<(), Rejection> {
        self.take(meaning(name), name, value)
    }

    /// Takes an attribute of a structured event, which has no prefix.
    ///
    /// # Errors
    /// As [`header`](Self::header).
    pub(super) fn attribute(&mut self, name: &str, value: Bytes) -> Result<(), Rejection> {
        let meaning = match prefixed(&squeezed(name)) {
            Meaning::Foreign => meaning(name), // the prefix was written all the same
            Meaning::Other(header) => Meaning::Usual(header),
            other => other,
        };
        self.take(meaning, name, Some(value))
    }

    fn take(&mut self, meaning: Meaning, name: &str, value: Option<Bytes>) -> Result<(), Rejection> {
        let (header, usual) = match meaning {
            Meaning::Foreign => return Ok(()),
            Meaning::Usual(header) => (header, true),
            Meaning::Other(header) => (header, false),
            Meaning::Near(header) => {
                return Err(refused(format!(
                    "header `{}` is not known, `{header}` is: correct its name, or leave it out",
                    shown(name)
                )));
            }
        };
        let entry = Entry {
            name: name.to_owned(),
            usual,
            value,
        };
        let Some(before) = self.0.get(header) else {
            self.0.insert(header, entry);
            return Ok(());
        };
        let repeated = (before.usual && usual) || before.name == entry.name;
        if !repeated && before.value != entry.value {
            return Err(refused(format!(
                "headers `{}` and `{}` are the same one and say different things: leave one out",
                shown(&before.name),
                shown(name)
            )));
        }
        if repeated || usual {
            self.0.insert(header, entry);
        }
        Ok(())
    }

    /// Forgets the type of the data: the event says it itself.
    pub(super) fn without_content_type(mut self) -> Self {
        self.0.remove(CONTENT_TYPE);
        self
    }

    /// Under their usual names.
    pub(super) fn into_headers(self) -> Vec<(String, Option<Bytes>)> {
        let named = |(header, entry): (&str, Entry)| (header.to_owned(), entry.value);
        self.0.into_iter().map(named).collect()
    }

    /// The bytes of `content-type`.
    pub(super) fn content_type(&self) -> Option<&[u8]> {
        self.0.get(CONTENT_TYPE)?.value.as_deref()
    }
}

fn refused(message: String) -> Rejection {
    Rejection::new(Reason::InvalidHeader, Stage::Ingest, message)
}

/// A sender's name, short and printable.
fn shown(name: &str) -> String {
    let short: String = name.chars().take(NAME_BYTES_MAX).collect();
    short.escape_debug().to_string()
}

fn meaning(name: &str) -> Meaning {
    if name.len() > NAME_BYTES_MAX {
        return Meaning::Foreign;
    }
    let lower = name.trim().to_ascii_lowercase();
    let headers = [OURS, PREFIXED, PLAIN].concat();
    if let Some((_, header)) = headers.iter().find(|(_, header)| *header == lower) {
        return Meaning::Usual(header);
    }
    if let Some(attribute) = PREFIXES.iter().find_map(|prefix| lower.strip_prefix(prefix)) {
        return prefixed(&squeezed(attribute));
    }
    let word = squeezed(&lower);
    if word == "contenttype" {
        return Meaning::Other(CONTENT_TYPE);
    }
    let whole = |table: &[(&str, &'static str)], word: &str| {
        let found = table.iter().find(|(attribute, _)| *attribute == word);
        found.map(|(_, header)| *header)
    };
    let joined = word
        .strip_prefix("ce")
        .and_then(|rest| whole(OURS, rest).or_else(|| whole(PREFIXED, rest)));
    if let Some(header) = joined.or_else(|| whole(OURS, &word)) {
        return Meaning::Other(header);
    }
    if let Some(header) = word
        .strip_prefix("speechverse")
        .and_then(|rest| whole(OURS, rest))
    {
        return Meaning::Near(header);
    }
    let near = OURS
        .iter()
        .find(|(attribute, _)| attribute.len() >= LONG_WORD && differ_by(&word, attribute, 1));
    near.map_or(Meaning::Foreign, |(_, header)| Meaning::Near(header))
}

/// What an attribute says whose prefix is gone.
fn prefixed(attribute: &str) -> Meaning {
    let all = [OURS, PREFIXED, PLAIN].concat();
    if let Some((_, header)) = all.iter().find(|(known, _)| *known == attribute) {
        return Meaning::Other(header);
    }
    let longer = |known: &str| {
        let rest = attribute.strip_prefix(known);
        rest.is_some_and(|rest| ["s", "id", "name", "text"].contains(&rest))
    };
    let near = |table: &[(&str, &'static str)], longer: &dyn Fn(&str) -> bool| {
        let misspelt = |known: &str| {
            let edits = match known.len() {
                0..=3 => 0,
                4..=7 => 1,
                _ => 2,
            };
            differ_by(attribute, known, edits) || longer(known)
        };
        table
            .iter()
            .find(|(known, _)| misspelt(known))
            .map(|(_, header)| *header)
    };
    near(OURS, &longer)
        .or_else(|| near(PREFIXED, &|_| false))
        .or_else(|| {
            MISTAKEN
                .iter()
                .find(|(known, _)| *known == attribute)
                .map(|(_, header)| *header)
        })
        .map_or(Meaning::Foreign, Meaning::Near)
}

/// Letters and digits only, in lower case.
fn squeezed(name: &str) -> String {
    name.chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|letter| letter.to_ascii_lowercase())
        .collect()
}

/// Whether at most `edits` letters were added, left out, changed, or exchanged with their neighbour (optimal
/// string alignment distance).
fn differ_by(found: &str, known: &str, edits: usize) -> bool {
    let (found, known) = (found.as_bytes(), known.as_bytes());
    if found.len().abs_diff(known.len()) > edits {
        return false;
    }
    let mut rows = vec![(0..=known.len()).collect::<Vec<usize>>()];
    for i in 1..=found.len() {
        let mut row = vec![i];
        for j in 1..=known.len() {
            let changed = rows[i - 1][j - 1] + usize::from(found[i - 1] != known[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            let exchanged = i > 1 && j > 1 && found[i - 1] == known[j - 2] && found[i - 2] == known[j - 1];
            if exchanged {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[found.len()][known.len()] <= edits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_understood_refused_or_somebody_else_s() {
        for (name, expected) in [
            ("ce_instruction", Meaning::Usual("ce_instruction")),
            ("CE_Instruction", Meaning::Usual("ce_instruction")),
            ("Content-Type", Meaning::Usual("content-type")),
            ("ce-instruction", Meaning::Other("ce_instruction")),
            ("CE-Instruction", Meaning::Other("ce_instruction")),
            ("instruction", Meaning::Other("ce_instruction")),
            ("Instruction", Meaning::Other("ce_instruction")),
            ("ceInstruction", Meaning::Other("ce_instruction")),
            ("ce__instruction", Meaning::Other("ce_instruction")),
            ("cloudEvents:instruction", Meaning::Other("ce_instruction")),
            ("x-ce-task", Meaning::Other("ce_task")),
            ("ce_max_tokens", Meaning::Other("ce_maxtokens")),
            ("ce-maxTokens", Meaning::Other("ce_maxtokens")),
            ("max-tokens", Meaning::Other("ce_maxtokens")),
            ("ce-id", Meaning::Other("ce_id")),
            ("ce_traceparent", Meaning::Other("traceparent")),
            ("ce-datacontenttype", Meaning::Other("content-type")),
            ("contentType", Meaning::Other("content-type")),
            ("ce_instructions", Meaning::Near("ce_instruction")),
            ("ce-instructions", Meaning::Near("ce_instruction")),
            ("ce_instuction", Meaning::Near("ce_instruction")),
            ("ce_isntruction", Meaning::Near("ce_instruction")),
            ("instructions", Meaning::Near("ce_instruction")),
            ("speechverse_instruction", Meaning::Near("ce_instruction")),
            ("ce_prompt", Meaning::Near("ce_instruction")),
            ("ce_label", Meaning::Near("ce_labels")),
            ("ce_lables", Meaning::Near("ce_labels")),
            ("ce_session_id", Meaning::Near("ce_session")),
            ("ce_tasks", Meaning::Near("ce_task")),
            ("ce_sorce", Meaning::Near("ce_source")),
            ("ce_max_new_tokens", Meaning::Near("ce_maxtokens")),
        ] {
            assert_eq!(meaning(name), expected, "{name}");
        }
        let long = "ce_instruction".repeat(20);
        for name in [
            "",
            "ce_",
            "id",
            "type",
            "source",
            "timestamp",
            "spring_json_header_types",
            "correlationId",
            "sequenceNumber",
            "speechverse_reason",
            "__connect.errors.topic",
            "ce_specversion",
            "ce_time",
            "ce_dataschema",
            "ce_partitionkey",
            "ce_sequencetype",
            "ce_version",
            "ce_tenant",
            "center",
            "certain",
            "x-request-id",
            "ce_\u{e9}\u{1f600}",
            &long,
        ] {
            assert_eq!(meaning(name), Meaning::Foreign, "{name}");
        }
    }

    #[test]
    fn two_spellings_may_agree_and_must_not_differ() {
        let value = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
        let mut known = Known::default();
        known.header("ce-task", value("asr")).unwrap();
        known.header("ce_task", value("asr")).unwrap();
        known.header("task", value("asr")).unwrap();
        known.header("CE_TASK", value("intent")).unwrap();

        let refusal = known.header("task", value("asr")).unwrap_err();

        assert_eq!(refusal.reason, Reason::InvalidHeader);
        assert!(refusal.message.contains("`CE_TASK` and `task`"), "{refusal}");
        assert_eq!(known.into_headers(), [("ce_task".to_owned(), value("intent"))]);
    }

    #[test]
    fn letters_that_differ_are_counted() {
        assert!(differ_by("labels", "labels", 0));
        assert!(differ_by("lables", "labels", 1));
        assert!(differ_by("label", "labels", 1));
        assert!(!differ_by("labl", "labels", 1));
        assert!(differ_by("labl", "labels", 2));
        assert!(!differ_by("", "task", 3));
    }
}

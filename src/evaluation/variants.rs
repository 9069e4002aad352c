//! Variants: the rows of the tables, and which of them are wanted.

use serde::{Deserialize, Serialize};

/// The task whose prompt asks for a transcript.
pub const ASR: &str = "asr";

/// The task whose answer is whether the field [`KEYWORD`] is said.
pub const KEYWORD_SEARCH: &str = "keyword_search";

/// The field that is searched for.
pub const KEYWORD: &str = "keyword";

/// The field that names the language of an answer.
pub const TARGET_LANG: &str = "target_lang";

/// A table of the report.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// Variants against each other (the paper's tables 2 and 3).
    #[default]
    #[serde(rename = "systems")]
    Variants,
    /// Prompts that were trained on against new ones (table 5).
    Prompts,
    /// Label descriptions and constrained decoding, with and without (table 7).
    Constraint,
    /// Joint decoding, with and without (table 9).
    Joint,
}

impl Table {
    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Variants => "Systems",
            Self::Prompts => "Prompts: trained on, and new",
            Self::Constraint => "Label descriptions and constrained decoding",
            Self::Joint => "Joint decoding",
        }
    }

    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Variants => "systems",
            Self::Prompts => "prompts",
            Self::Constraint => "constraint",
            Self::Joint => "joint",
        }
    }
}

/// What stands before the instruction.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The recording, through encoder and adapter.
    Audio,
    /// What the same model transcribed, as text, for the language model without adapter.
    Transcript,
    /// What was said, as text, for the language model without adapter.
    Reference,
    /// What was said, as text, for the language model with the adapter's low-rank parts.
    TaughtReference,
    /// What the same model transcribed, searched for the keyword: no question but that for the transcript.
    Search,
}

/// Which of a task's prompts.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptSource {
    /// The row's own instruction, else the task's default.
    Given,
    /// The task's default, the first prompt used in training.
    Trained,
    /// The nth prompt that was kept out of training.
    HeldOut(usize),
}

/// One way of asking: a row of a table.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Variant {
    /// The table.
    #[serde(rename = "study")]
    pub table: Table,
    /// The row's name.
    pub name: String,
    /// What is listened to, or read.
    pub source: Source,
    /// In which words it asks.
    pub prompt: PromptSource,
    /// Whether lists of labels carry descriptions.
    pub descriptions: bool,
    /// Whether answers are constrained to the labels in force; absent: where serving constrains them.
    pub constrained: Option<bool>,
    /// Whether the transcript is asked for first, in the same answer.
    pub joint: bool,
}

/// Which prompts to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptChoice {
    /// P1, the prompt trained on.
    Seen,
    /// P2, P3 …, those kept out of training.
    HeldOut,
    /// All of them.
    All,
}

/// What a report shall hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// Whether answers are constrained to the labels in force, where a task has some; absent: where serving
    /// constrains them.
    pub constrained: Option<bool>,
    /// The language model on transcripts and on reference texts; for keyword search, text search in
    /// transcripts.
    pub cascade: bool,
    /// Prompts against each other.
    pub prompts: Option<PromptChoice>,
    /// Label descriptions and constraint, with and without.
    pub grid: bool,
    /// Joint decoding, with and without.
    pub joint: bool,
}

impl Choices {
    /// The variants; the first of each table is what the others are compared with. `held_out` is the largest
    /// number of prompts that a task keeps out of training.
    pub fn variants(&self, held_out: usize) -> Vec<Variant> {
        let base = |table, name: &str| Variant {
            table,
            name: name.to_owned(),
            source: Source::Audio,
            prompt: PromptSource::Given,
            descriptions: true,
            constrained: self.constrained,
            joint: false,
        };
        let mut variants = vec![base(Table::Variants, "speech LLM")];
        if self.cascade {
            for (name, source) in [
                ("cascade: transcript → LLM", Source::Transcript),
                ("oracle: reference text → LLM", Source::Reference),
                ("oracle: reference text → LLM with LoRA", Source::TaughtReference),
                ("search: keyword in transcript", Source::Search),
            ] {
                variants.push(Variant {
                    source,
                    ..base(Table::Variants, name)
                });
            }
        }
        if let Some(choice) = self.prompts {
            let trained = (PromptSource::Trained, "P1, trained on".to_owned());
            let new = (0..held_out).map(|at| (PromptSource::HeldOut(at), format!("P{}, new", at + 2)));
            for (prompt, name) in std::iter::once(trained).chain(new) {
                let wanted = match choice {
                    PromptChoice::Seen => prompt == PromptSource::Trained,
                    PromptChoice::HeldOut => prompt != PromptSource::Trained,
                    PromptChoice::All => true,
                };
                if wanted {
                    variants.push(Variant {
                        prompt,
                        ..base(Table::Prompts, &name)
                    });
                }
            }
        }
        if self.grid {
            let yes_no = |yes| if yes { "yes" } else { "no" };
            for (descriptions, constrained) in [(false, false), (false, true), (true, false), (true, true)] {
                let name = format!(
                    "descriptions {}, constrained {}",
                    yes_no(descriptions),
                    yes_no(constrained)
                );
                variants.push(Variant {
                    prompt: PromptSource::Trained,
                    descriptions,
                    constrained: Some(constrained),
                    ..base(Table::Constraint, &name)
                });
            }
        }
        if self.joint {
            for (joint, name) in [(false, "without"), (true, "with")] {
                variants.push(Variant {
                    joint,
                    ..base(Table::Joint, name)
                });
            }
        }
        variants
    }
}

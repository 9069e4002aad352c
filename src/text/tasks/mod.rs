//! Tasks: what the program is asked to do, one TOML file each (`configs/tasks/*.toml`).
//!
//! A task gives a request that only names it its default instruction, gives training many variants of the
//! same request, keeps some variants back to see whether the model follows words it was not trained on, and
//! says how its answers are written and scored. How to add one: `docs/TASKS.md`.

mod spoken;
mod table;
mod template;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::TextError;
use super::answer::{AnswerFormat, OutputGrammar};

pub use spoken::Spoken;
pub use table::{ResolvedPrompt, TaskTable};
pub use template::{LABEL_NAMES, LABELS, TemplateVariables};

/// Between the names of tasks that are asked at once (joint decoding): `asr,intent`.
pub const TASK_SEPARATOR: char = ',';
/// The task of transcripts: the words that are said, and nothing else.
pub const TRANSCRIPT: &str = "asr";
/// The task of telling speech from other sound, and its two labels.
pub const SPEECH_DETECTION: (&str, [&str; 2]) = ("speech_detection", ["speech", "non-speech"]);

/// How answers of a task are scored.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TaskMetric {
    /// Word error rate over the corpus; lower is better.
    Wer,
    /// Character error rate over the corpus; lower is better.
    Cer,
    /// Corpus BLEU as sacreBLEU computes it; higher is better.
    Bleu,
    /// Corpus chrF as sacreBLEU computes it; higher is better.
    Chrf,
    /// Share of answers equal to the target; higher is better.
    Accuracy,
    /// Unweighted average recall: the mean of the recalls of the classes; higher is better.
    Uar,
    /// Mean of the F1 of the classes; higher is better.
    MacroF1,
    /// F1 of the set of keywords, mean over utterances; higher is better.
    KeywordF1,
    /// SLURP's SLU-F1 of slots and their values; higher is better.
    SluF1,
    /// F1 of the slots' labels, values ignored; higher is better.
    SdF1,
    /// F1 of the words of a short free answer; higher is better.
    TokenF1,
}

/// One allowed answer of a task.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TaskLabel {
    /// The answer, as the model shall write it.
    pub name: String,
    /// What it means, in words that can go into an instruction.
    #[serde(default)]
    pub description: String,
}

/// The `[answer]` table of a task.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct TaskAnswer {
    /// How answers are written.
    pub format: AnswerFormat,
    /// Heading of this answer among others (joint decoding): `Intent` gives `ASR: … | Intent: … |`. Empty:
    /// the task's name.
    pub heading: String,
    /// What has to be said for a label: `labels`: the label itself; the name of a field: its value for the
    /// first label of two, and not its value for the second. Absent: a label is not about words that are
    /// said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spoken: Option<String>,
}

/// A `[fields.NAME]` table of a task: a placeholder in its prompts, written `{NAME}`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TaskField {
    /// What goes there, for people.
    pub description: String,
    /// A value to show the prompts with.
    pub example: String,
    /// Another key under which requests and manifest rows may give the value.
    #[serde(default)]
    pub key: String,
    /// Values written out: `de = "German"`. A value that is not here goes in as it is.
    #[serde(default)]
    pub names: BTreeMap<String, String>,
}

/// One task.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Name, as in the `ce_task` header; also the file's name.
    pub name: String,
    /// What the task is, for people.
    pub description: String,
    /// Instruction used when a request only names the task; the first of the variants used in training.
    pub instruction: String,
    /// Further variants used in training.
    #[serde(default)]
    pub prompts: Vec<String>,
    /// Prompts kept out of training.
    #[serde(default)]
    pub held_out_prompts: Vec<String>,
    /// How answers are scored.
    pub metric: TaskMetric,
    /// How answers are written.
    #[serde(default)]
    pub answer: TaskAnswer,
    /// Placeholders in the prompts besides `{labels}` and `{label_names}`.
    #[serde(default)]
    pub fields: BTreeMap<String, TaskField>,
    /// Allowed answers; empty for free text.
    #[serde(default)]
    pub labels: Vec<TaskLabel>,
}

impl Task {
    /// The heading of this task's answer among others.
    pub fn heading(&self) -> &str {
        match self.answer.heading.as_str() {
            "" => &self.name,
            heading => heading,
        }
    }

    /// The variants used in training, the default instruction first, each once.
    pub fn training_prompts(&self) -> impl Iterator<Item = &str> {
        let others = self
            .prompts
            .iter()
            .filter(|variant| **variant != self.instruction);
        std::iter::once(self.instruction.as_str()).chain(others.map(String::as_str))
    }

    /// A template with every placeholder of these variants once, nothing else: what fills it fills them all.
    ///
    /// # Errors
    /// [`TextError::Placeholder`] for a variant that is no template, or names a placeholder that the task
    /// does not have.
    pub fn every_placeholder<'w>(
        &self,
        variants: impl IntoIterator<Item = &'w str>,
    ) -> Result<String, TextError> {
        let wrong = |reason| TextError::Placeholder {
            task: self.name.clone(),
            reason,
        };
        let mut placeholders = BTreeSet::new();
        for variant in variants {
            placeholders.extend(template::placeholders(variant).map_err(wrong)?);
        }
        if let Some(unknown) = placeholders
            .iter()
            .find(|placeholder| !self.has_place(placeholder))
        {
            return Err(wrong(format!("`{{{unknown}}}` is not among its `[fields]`")));
        }
        Ok(placeholders
            .iter()
            .map(|placeholder| format!("{{{placeholder}}}"))
            .collect())
    }

    fn has_place(&self, name: &str) -> bool {
        [LABELS, LABEL_NAMES].contains(&name) || self.fields.contains_key(name)
    }

    /// The labels in force: the variables's, described by the task where it knows them, else the task's own.
    ///
    /// # Errors
    /// [`TextError::Label`] for a label that would break the answer's layout.
    pub fn labels_in<'t>(&'t self, variables: &'t TemplateVariables) -> Result<Vec<TaskLabel>, TextError> {
        let Some(given) = &variables.labels else {
            return Ok(self.labels.clone());
        };
        check_labels(self.answer.format, given).map_err(|reason| TextError::Label {
            task: self.name.clone(),
            reason,
        })?;
        let described = |label: &TaskLabel| match self.labels.iter().find(|known| known.name == label.name) {
            Some(known) if label.description.is_empty() => known.clone(),
            _ => label.clone(),
        };
        Ok(given.iter().map(described).collect())
    }

    /// Fills the placeholders of one of this task's variants.
    ///
    /// # Errors
    /// [`TextError::Placeholder`] when a placeholder has no value; [`TextError::Label`] as
    /// [`Task::labels_in`].
    pub fn fill(&self, variant: &str, variables: &TemplateVariables) -> Result<String, TextError> {
        let labels = self.labels_in(variables)?;
        let value = |name: &str| match name {
            LABELS | LABEL_NAMES if labels.is_empty() => Err(format!(
                "`{{{name}}}`: the task lists no labels and none are given"
            )),
            LABELS => Ok(template::bullets(&labels, variables.bare_labels)),
            LABEL_NAMES => Ok(template::in_one_line(&labels)),
            name => self.value_of(name, variables),
        };
        template::fill(variant, &value).map_err(|reason| TextError::Placeholder {
            task: self.name.clone(),
            reason,
        })
    }

    fn value_of(&self, name: &str, variables: &TemplateVariables) -> Result<String, String> {
        let field =
            (self.fields.get(name)).ok_or_else(|| format!("`{{{name}}}` is not among its `[fields]`"))?;
        let found = variables
            .fields
            .get(name)
            .or_else(|| variables.fields.get(&field.key));
        let value = found
            .map(|value| value.trim())
            .filter(|value| !value.is_empty())
            .ok_or_else(|| {
                let other = match field.key.as_str() {
                    "" => String::new(),
                    key => format!(" or `{key}`"),
                };
                format!(
                    "`{{{name}}}` has no value: give field `{name}`{other} ({})",
                    field.description
                )
            })?;
        Ok(field.names.get(value).map_or(value, String::as_str).to_owned())
    }

    /// What an answer may look like when it is constrained to the labels in force. Labels that are given to a
    /// task of free text are the only answers to choose from.
    ///
    /// # Errors
    /// [`TextError::Label`] as [`Task::labels_in`].
    pub fn grammar(&self, variables: &TemplateVariables) -> Result<OutputGrammar, TextError> {
        let names = self.labels_in(variables)?.into_iter().map(|label| label.name);
        if variables.labels.is_some() && !self.answer.format.takes_labels() {
            return Ok(OutputGrammar::one_of(names));
        }
        Ok(self.answer.format.grammar(&names.collect::<Vec<_>>()))
    }

    /// What has to be said for the labels in force, where the task says so and there are as many of them as
    /// that takes.
    ///
    /// # Errors
    /// As [`Task::fill`].
    pub fn spoken(&self, variables: &TemplateVariables) -> Result<Option<Spoken>, TextError> {
        let Some(source) = &self.answer.spoken else {
            return Ok(None);
        };
        if source == LABELS {
            return Ok(Some(Spoken::Labels));
        }
        let labels = self.labels_in(variables)?;
        let [said, unsaid] = labels.as_slice() else {
            return Ok(None);
        };
        let (mut said, mut unsaid) = (said, unsaid);
        // A request may list the task's own labels the other way round.
        let is = |one: &TaskLabel, other: &TaskLabel| {
            one.name.trim().to_lowercase() == other.name.trim().to_lowercase()
        };
        if let [first, second] = self.labels.as_slice()
            && is(said, second)
            && is(unsaid, first)
        {
            (said, unsaid) = (unsaid, said);
        }
        // A request with its own instruction need not give the field.
        Ok(self.value_of(source, variables).ok().map(|words| Spoken::Words {
            words,
            said: said.name.clone(),
            unsaid: unsaid.name.clone(),
        }))
    }

    /// Every field at its example: for showing and checking prompts.
    pub fn example_variables(&self) -> TemplateVariables {
        let example = |(name, field): (&String, &TaskField)| (name.clone(), field.example.clone());
        TemplateVariables {
            fields: self.fields.iter().map(example).collect(),
            ..TemplateVariables::default()
        }
    }

    /// Checks what the file format cannot: names, repeats, placeholders, variants both trained on and held
    /// out.
    fn validate(&self) -> Result<(), String> {
        let good_name = !self.name.is_empty()
            && self.name.len() <= 64
            && (self.name.bytes())
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte));
        if !good_name {
            return Err(format!(
                "name `{}` must be 1 to 64 of the characters a-z, 0-9, `_` and `-`",
                self.name
            ));
        }
        let heading = self.heading();
        let good_heading = heading.len() <= 64
            && heading.trim() == heading
            && (heading.chars()).all(|c| c.is_alphanumeric() || " _-".contains(c));
        if !good_heading {
            return Err(format!(
                "`answer.heading` is `{heading}`, expected at most 64 bytes of letters, digits, `_`, `-` and spaces between them"
            ));
        }
        self.validate_wordings()?;
        check_labels(self.answer.format, &self.labels)?;
        if let Some(source) = &self.answer.spoken {
            let fits = source == LABELS || (self.fields.contains_key(source) && self.labels.len() == 2);
            if self.answer.format != AnswerFormat::Label || !fits {
                return Err(format!(
                    "`answer.spoken` is `{source}`, expected `{LABELS}`, or the name of one of the task's `[fields]` in a task of two labels; and `format` is `label`"
                ));
            }
        }
        for (name, field) in &self.fields {
            if !template::is_field_name(name) || [LABELS, LABEL_NAMES].contains(&name.as_str()) {
                return Err(format!(
                    "`[fields.{name}]`: the name must be of a-z, 0-9 and `_`, and neither `{LABELS}` nor `{LABEL_NAMES}`"
                ));
            }
            if field.example.trim().is_empty() || field.description.trim().is_empty() {
                return Err(format!(
                    "`[fields.{name}]` has an empty `description` or `example`"
                ));
            }
        }
        Ok(())
    }

    fn validate_wordings(&self) -> Result<(), String> {
        if self.held_out_prompts.contains(&self.instruction) {
            return Err(format!(
                "the default instruction `{}` is held out; it is used in training",
                self.instruction
            ));
        }
        let mut seen = BTreeSet::new();
        let default = std::slice::from_ref(&self.instruction);
        for (list, variants) in [
            ("instruction", default),
            ("prompts", &self.prompts),
            ("held_out_prompts", &self.held_out_prompts),
        ] {
            for variant in variants {
                if variant.trim().is_empty() {
                    return Err(format!("`{list}` is empty or holds an empty variant"));
                }
                if list != "instruction" && !seen.insert(variant) {
                    return Err(format!(
                        "`{variant}` in `{list}` is there twice; held-out variants must not be trained on"
                    ));
                }
                for placeholder in
                    template::placeholders(variant).map_err(|reason| format!("`{list}`: {reason}"))?
                {
                    if !self.has_place(placeholder) {
                        let declared: Vec<&str> = self.fields.keys().map(String::as_str).collect();
                        return Err(format!(
                            "`{list}`: unknown placeholder `{{{placeholder}}}` in `{variant}`; known are `{LABELS}`, `{LABEL_NAMES}` and the task's `[fields]`: {}",
                            declared.join(", ")
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether answers made of these labels can be read back.
fn check_labels(format: AnswerFormat, labels: &[TaskLabel]) -> Result<(), String> {
    let separators = match format {
        AnswerFormat::Labels => ",",
        AnswerFormat::Slots => "=;",
        AnswerFormat::Text | AnswerFormat::Label | AnswerFormat::Keywords => "",
    };
    let mut names = BTreeSet::new();
    for TaskLabel { name, .. } in labels {
        if name.trim().is_empty() || !names.insert(name.trim().to_lowercase()) {
            return Err(format!("label `{}` is empty or there twice", name.escape_debug()));
        }
        if name.contains(|c: char| separators.contains(c) || c.is_control()) {
            return Err(format!(
                "label `{}` holds a control character, or one of the separators `{separators}` of format `{}`",
                name.escape_debug(),
                format.as_str()
            ));
        }
        if format == AnswerFormat::Labels && name.trim().eq_ignore_ascii_case(super::answer::NONE) {
            return Err(format!(
                "label `{name}` would read as no label at all; call it otherwise"
            ));
        }
    }
    Ok(())
}

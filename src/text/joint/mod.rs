//! `JointLayout`: several tasks asked at once and answered in one text (joint decoding).
//!
//! The prompt names the tasks in order, each under a heading of its own, and ends with the layout of the
//! answer; the answer is `ASR: turn on the radio | Intent: play_radio |`. With the transcript first, the
//! later answers can lean on it.
//!
//! **Separators inside values.** A value's `|` is written `\|` and its `\` is written `\\`. Reading undoes
//! both, takes any other `\` as it is, and gives a part that follows a bare `|` without a known heading to
//! the value before it, so that a model that forgets to escape loses nothing.
//!
//! # Source
//! arXiv 2405.08295, section 4.3.2 and table 8; the variant is ours.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

use super::TextError;
use super::answer::{AnswerFormat, GrammarPiece, OutputGrammar};
use super::tasks::{Spoken, TASK_SEPARATOR, Task, TemplateVariables};

/// Stands after every value.
pub(crate) const SEPARATOR: char = '|';
pub(crate) const ESCAPE: char = '\\';

/// First lines of a compound prompt.
const OPENINGS: [&str; 4] = [
    "Work through these tasks on the recording, one after the other.",
    "The audio is to be used for several things. Do them in the order given.",
    "Here is more than one task for the same recording; complete each of them in turn.",
    "Listen once and then answer all of the following, from first to last.",
];

/// Last lines of a compound prompt; the layout of the answer follows.
const CLOSINGS: [&str; 4] = [
    "Put all results into one line of this form:",
    "Reply in exactly this layout:",
    "Your answer has to look as follows:",
    "Give the results together, arranged like this:",
];

/// One task of several, and where its answer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JointField {
    /// The task's name.
    pub task: String,
    /// The heading of its answer.
    pub heading: String,
    /// How its answer is written.
    pub format: AnswerFormat,
    /// Labels in force; empty for free text.
    pub labels: Vec<String>,
    /// What has to be said for them; absent where the task does not say so.
    pub spoken: Option<Spoken>,
}

/// How the answers of several tasks are laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JointLayout {
    fields: Vec<JointField>,
}

/// Shares out what a request gives among the tasks that it names: each gets the fields, and the one task that
/// takes labels gets the labels.
///
/// # Errors
/// [`TextError::TaskList`] when labels are given and none or several of the tasks take labels.
pub fn share_out<'f>(
    tasks: &[&Task],
    variables: &'f TemplateVariables,
) -> Result<Vec<Cow<'f, TemplateVariables>>, TextError> {
    if variables.labels.is_none() || tasks.len() == 1 {
        return Ok(tasks.iter().map(|_| Cow::Borrowed(variables)).collect());
    }
    let takers = tasks
        .iter()
        .filter(|task| task.answer.format.takes_labels())
        .count();
    if takers != 1 {
        return Err(TextError::TaskList {
            list: names(tasks),
            reason: format!("labels are given and {takers} of the tasks take labels, expected 1"),
        });
    }
    let share = |task: &&Task| match task.answer.format.takes_labels() {
        true => Cow::Borrowed(variables),
        false => Cow::Owned(TemplateVariables {
            labels: None,
            ..variables.clone()
        }),
    };
    Ok(tasks.iter().map(share).collect())
}

fn names(tasks: &[&Task]) -> String {
    let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
    names.join(&TASK_SEPARATOR.to_string())
}

impl JointLayout {
    /// Different frames that [`JointLayout::instruction`] can put around the tasks.
    pub const VARIANTS: usize = OPENINGS.len() * CLOSINGS.len();

    /// The layout of these tasks, with the labels in force for each.
    ///
    /// # Errors
    /// [`TextError::Label`] for a label that cannot stand in the layout.
    pub fn new(tasks: &[&Task], variables: &TemplateVariables) -> Result<Self, TextError> {
        let mut fields = Vec::with_capacity(tasks.len());
        for (task, variables) in tasks.iter().zip(share_out(tasks, variables)?) {
            let spoken = task.spoken(&variables)?;
            let mut labels = Vec::new();
            if task.answer.format.takes_labels() {
                labels = task
                    .labels_in(&variables)?
                    .into_iter()
                    .map(|label| label.name)
                    .collect();
            }
            if let Some(bad) = labels.iter().find(|label| label.contains([SEPARATOR, ESCAPE])) {
                return Err(TextError::Label {
                    task: task.name.clone(),
                    reason: format!(
                        "label `{bad}` holds `|` or `\\`, which separate the answers of several tasks"
                    ),
                });
            }
            fields.push(JointField {
                task: task.name.clone(),
                heading: task.heading().to_owned(),
                format: task.answer.format,
                labels,
                spoken,
            });
        }
        Ok(Self { fields })
    }

    /// The tasks, in the order in which they are answered.
    pub fn fields(&self) -> &[JointField] {
        &self.fields
    }

    /// The compound prompt around one instruction per task. `variant` picks one of
    /// [`JointLayout::VARIANTS`] frames, counted round.
    pub fn instruction(&self, parts: &[impl AsRef<str>], variant: usize) -> String {
        let opening = OPENINGS[variant % OPENINGS.len()];
        let closing = CLOSINGS[variant / OPENINGS.len() % CLOSINGS.len()];
        let mut text = format!("{opening}\n");
        for (field, part) in self.fields.iter().zip(parts) {
            let _ = writeln!(text, "=== Task: {} ===\n{}", field.heading, part.as_ref().trim());
        }
        text.push_str(closing);
        for field in &self.fields {
            let _ = write!(text, " {}: ... {SEPARATOR}", field.heading);
        }
        text
    }

    /// The target of training: one value per task, in order.
    pub fn write(&self, values: &[impl AsRef<str>]) -> String {
        let mut text = String::new();
        for (field, value) in self.fields.iter().zip(values) {
            if !text.is_empty() {
                text.push(' ');
            }
            let value = escaped(value.as_ref().trim());
            let gap = if value.is_empty() { "" } else { " " };
            let _ = write!(text, "{}:{gap}{value} {SEPARATOR}", field.heading);
        }
        text
    }

    /// Reads an answer: a value for each task, in order; `None` where the answer has none.
    ///
    /// Headings are found whatever their case and order; of a repeated heading the first counts; empty parts
    /// and what stands before the first heading are passed over.
    pub fn read(&self, text: &str) -> Vec<Option<String>> {
        let mut found: Vec<Option<String>> = vec![None; self.fields.len()];
        let mut current = None;
        for part in split(text) {
            let part = part.trim();
            if let Some((at, value)) = self.heading(part) {
                current = found[at].is_none().then_some(at);
                if current.is_some() {
                    found[at] = Some(value.trim().to_owned());
                }
            } else if let Some(value) = current.and_then(|at: usize| found[at].as_mut())
                && !part.is_empty()
            {
                if !value.is_empty() {
                    value.push_str(" | ");
                }
                value.push_str(part);
            }
        }
        found
    }

    /// An answer's values by task; empty text where the answer has none.
    pub fn by_task(&self, text: &str) -> BTreeMap<String, String> {
        let names = self.fields.iter().map(|field| field.task.clone());
        names
            .zip(self.read(text).into_iter().map(Option::unwrap_or_default))
            .collect()
    }

    fn heading<'p>(&self, part: &'p str) -> Option<(usize, &'p str)> {
        let (heading, value) = part.split_once(':')?;
        let heading = heading.trim().to_lowercase();
        let at = (self.fields.iter()).position(|field| field.heading.to_lowercase() == heading)?;
        Some((at, value))
    }

    /// What the answer may look like when each part is constrained to its labels. The blanks around free text
    /// are its own, because an empty value is written with one of them and not with two.
    pub fn grammar(&self) -> OutputGrammar {
        let mut pieces = Vec::with_capacity(2 * self.fields.len() + 1);
        let mut before = String::new();
        for field in &self.fields {
            let mut value = field.format.grammar(&field.labels);
            let is_free = value.is_free();
            if is_free {
                value = OutputGrammar::of(GrammarPiece::Free {
                    stop: Some(SEPARATOR),
                });
            }
            let blank = if is_free { "" } else { " " };
            let heading = format!("{before}{}:{blank}", field.heading);
            pieces.push(GrammarPiece::Literal(heading.into()));
            pieces.append(&mut value.pieces);
            before = format!("{blank}{SEPARATOR} ");
        }
        pieces.push(GrammarPiece::Literal(before.trim_end().into()));
        OutputGrammar { pieces }
    }
}

fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for character in value.chars() {
        if [SEPARATOR, ESCAPE].contains(&character) {
            text.push(ESCAPE);
        }
        text.push(character);
    }
    text
}

/// Splits at bare separators and undoes the escapes.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            SEPARATOR => parts.push(String::new()),
            ESCAPE if matches!(characters.peek(), Some(&(SEPARATOR | ESCAPE))) => {
                parts.last_mut().expect("never empty").extend(characters.next());
            }
            other => parts.last_mut().expect("never empty").push(other),
        }
    }
    parts
}

#[cfg(test)]
mod tests;

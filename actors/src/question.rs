//! What a stored sample asks, as serving asks it: a correction must be one of the answers that it allows, and
//! the promotion gate judges the answers to it.

use speechverse::store::Sample;
use speechverse::text::tasks::TRANSCRIPT;
use speechverse::text::{ResolvedPrompt, TaskLabel, TemplateVariables, TextError};

/// Task of a sample that names none, and whose instruction is not the default one: whatever the instruction
/// asks for, which need not be what is said.
pub const OPEN_TASK: &str = "instruction";

/// What the request of a sample gave to the prompts of its task.
pub(crate) fn variables_of(sample: &Sample) -> TemplateVariables {
    let variables = TemplateVariables {
        fields: sample.fields.clone(),
        ..TemplateVariables::default()
    };
    match sample.labels.as_slice() {
        [] => variables,
        labels => variables.with_labels(labels),
    }
}

/// The question that an instruction asks for a task, or for several (`asr,intent`); `of_task` finds what
/// named tasks ask for.
///
/// # Errors
/// Those of `of_task`.
pub fn question(
    task: &str,
    instruction: &str,
    variables: &TemplateVariables,
    of_task: impl FnOnce(&str, &TemplateVariables, Option<&str>) -> Result<ResolvedPrompt, TextError>,
) -> Result<ResolvedPrompt, TextError> {
    if [TRANSCRIPT, OPEN_TASK].contains(&task) {
        let names = |labels: &Vec<TaskLabel>| -> Vec<String> {
            labels.iter().map(|label| label.name.clone()).collect()
        };
        let labels = variables.labels.as_ref().map(names);
        return Ok(ResolvedPrompt::plain(instruction.to_owned(), labels.as_deref()));
    }
    of_task(task, variables, Some(instruction))
}

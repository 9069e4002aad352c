//! The questions that the promotion gate asks about held-out samples: those that serving asks.

use speechverse::scoring::Metric;
use speechverse::text::TaskTable;
use speechverse::training::prepare::Sample;
use tracing::warn;

use crate::question::{OPEN_TASK, question};

/// What the scores of samples without a task are called where they list the answers to choose from. They are
/// judged by accuracy, the other ones as words, so they have a score of their own.
const OPEN_CHOICE: &str = "instruction_labels";

/// Takes grammar, labels by what is said, layout and metrics of a held-out sample from its question as
/// serving asks it; `constrained` says whether serving constrains its answer. The answer to several tasks is
/// judged for each. A question that serving could not ask any more (its task is gone, its labels do not fit)
/// is judged as free text.
pub(super) fn ask_as_serving(sample: &mut Sample, constrained: bool, tasks: &TaskTable) {
    let example = &sample.example;
    let task = example.task.as_str();
    let instruction = example.instruction.as_deref().unwrap_or_default();
    let asked = question(task, instruction, &example.variables, |names, variables, own| {
        tasks.ask(names, variables, own)
    });
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => {
            warn!(id = %example.id, %error, "serving cannot ask a held-out sample any more, it is judged as free text");
            sample.metrics = vec![(task.to_owned(), Metric::Wer)];
            return;
        }
    };
    let with_metric = |name: &str| {
        let metric = tasks
            .get(name)
            .map_or(Metric::Wer, |task| Metric::of_task(task.metric)[0]);
        (name.to_owned(), metric)
    };
    let metrics = match &asked.joint {
        Some(layout) => (layout.fields().iter())
            .map(|field| with_metric(&field.task))
            .collect(),
        None if task == OPEN_TASK && example.variables.labels.is_some() => {
            vec![(OPEN_CHOICE.to_owned(), Metric::Accuracy)]
        }
        None if task == OPEN_TASK => vec![(task.to_owned(), Metric::Wer)],
        None => vec![with_metric(task)],
    };
    if let Some(grammar) = asked.form(Some(constrained)) {
        sample.grammar = grammar;
    }
    sample.metrics = metrics;
    sample.spoken = asked.spoken;
    sample.variants = (sample.variants.clone()).answered_in(asked.joint);
}

#[cfg(test)]
mod tests;

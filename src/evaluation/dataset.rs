//! Datasets: what is read from a manifest, one task a recording.

use std::path::PathBuf;
use std::sync::Arc;

use super::variants::{ASR, TARGET_LANG};
use crate::text::tasks::TASK_SEPARATOR;
use crate::text::{JointLayout, Task, TaskTable};
use crate::training::{Example, TrainingError, read_manifest};

/// A dataset of recordings: a manifest.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Its name in tables.
    pub name: String,
    /// Its recordings.
    pub examples: Vec<Example>,
    /// Rows that are no recordings: how many, then which and why for the first of them.
    pub refused: (usize, Vec<String>),
}

impl Dataset {
    /// Reads manifests; each has its file's name in tables, numbered where two have the same. `limit` keeps
    /// the first rows of each. A row with answers to several tasks becomes one recording for each of them.
    ///
    /// # Errors
    /// As [`read_manifest`].
    pub fn read(
        paths: &[PathBuf],
        limit: Option<usize>,
        tasks: &TaskTable,
    ) -> Result<Vec<Self>, TrainingError> {
        let mut datasets: Vec<Self> = Vec::with_capacity(paths.len());
        for path in paths {
            let manifest = read_manifest(path, None)?;
            let (mut examples, mut refused) = (manifest.examples, (manifest.refused, manifest.reasons));
            examples.truncate(limit.unwrap_or(usize::MAX));
            let stem = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let name = untaken(stem, &|name| datasets.iter().any(|dataset| dataset.name == name));
            let apart = examples.into_iter().flat_map(|example| apart(example, tasks));
            let (examples, blank): (Vec<Example>, Vec<Example>) =
                apart.partition(|example| !lacks_label(example, tasks));
            refused.0 += blank.len();
            refused.1.extend(blank.iter().map(|example| {
                format!(
                    "{}: the target is empty, and task `{}` has labels",
                    example.id, example.task
                )
            }));
            datasets.push(Self {
                name,
                examples,
                refused,
            });
        }
        Ok(datasets)
    }
}

/// A name that is not taken: numbered where it is.
pub(super) fn untaken(name: String, taken: &dyn Fn(&str) -> bool) -> String {
    let numbered = (2..).map(|number| format!("{name} {number}"));
    std::iter::once(name.clone())
        .chain(numbered)
        .find(|name| !taken(name))
        .expect("numbers do not end")
}

/// Whether an example has no target though its task's answers are labels. Without labels, it says that
/// nothing is said.
fn lacks_label(example: &Example, tasks: &TaskTable) -> bool {
    let takes_labels = |task: &Task| task.answer.format.takes_labels();
    example.target.trim().is_empty() && tasks.get(&example.task).is_ok_and(takes_labels)
}

/// A row's examples: one for each of its targets. Several tasks answered in one text are taken apart by their
/// layout.
fn apart(mut example: Example, tasks: &TaskTable) -> Vec<Example> {
    let mut targets = std::mem::take(&mut example.targets);
    if targets.is_empty() && example.task.contains(TASK_SEPARATOR) {
        let layout = tasks
            .list(&example.task)
            .and_then(|list| JointLayout::new(&list, &example.variables));
        if let Ok(layout) = layout {
            targets = layout.by_task(&example.target);
        }
    }
    if targets.is_empty() {
        return vec![example];
    }
    let text = example.text.take().or_else(|| targets.get(ASR).cloned());
    let several = targets.len() > 1;
    let one = |(name, target): (String, String)| {
        let mut variables = (*example.variables).clone();
        if several && name == ASR {
            variables.fields.remove(TARGET_LANG); // it is of the other answers
        }
        if tasks
            .get(&name)
            .is_ok_and(|task| !task.answer.format.takes_labels())
        {
            variables.labels = None;
        }
        Example {
            task: name,
            target,
            text: text.clone(),
            instruction: None,
            variables: Arc::new(variables),
            ..example.clone()
        }
    };
    targets.into_iter().map(one).collect()
}

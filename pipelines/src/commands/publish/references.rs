//! The right answers of `publish --references`: the rows of each file, and a table and scores of what came.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use speechverse::scoring::Metric;
use speechverse::text::tasks::TASK_SEPARATOR;
use speechverse::text::{JointLayout, TaskMetric, TaskTable};
use speechverse::training::example::{AudioSource, Example};
use speechverse::training::manifest::read_manifest;

use super::{Outcome, Sent};
use crate::commands::clients::flags_of;
use crate::output::{self, OutputError, clipped};

/// What is asked about a file, and what is right.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Reference {
    /// The task, or several with commas between them.
    pub(super) task: String,
    /// The right answers, by task.
    pub(super) answers: BTreeMap<String, String>,
    /// The labels that the row declares.
    pub(super) labels: Vec<String>,
    /// The fields that the row declares.
    pub(super) fields: Vec<(String, String)>,
}

/// The rows of manifests, by audio file.
pub(super) struct References {
    rows: HashMap<PathBuf, Vec<Reference>>,
    tasks: TaskTable,
}

impl References {
    /// Reads manifests. A row with `targets` and no `task` becomes a reference for each of its targets. Rows
    /// that are pieces of files (`offset`) are left out with a warning, because files are published whole.
    pub(super) fn read(manifests: &[PathBuf], tasks: TaskTable) -> anyhow::Result<Self> {
        let mut rows: HashMap<PathBuf, Vec<Reference>> = HashMap::new();
        for manifest in manifests {
            let mut pieces = 0;
            for example in read_manifest(manifest, None)?.warned() {
                let AudioSource::Clip(clip) = &example.audio else {
                    continue;
                };
                if clip.offset.is_some() {
                    pieces += 1;
                    continue;
                }
                let of_file = rows.entry(whole(&clip.path)).or_default();
                of_file.extend(references(example, &tasks));
            }
            if pieces > 0 {
                tracing::warn!(
                    rows = pieces,
                    manifest = %manifest.display(),
                    "left out rows with `offset`: files are published whole, not in pieces"
                );
            }
        }
        Ok(Self { rows, tasks })
    }

    /// The rows of a file; where `task` is named and some are for it, these.
    pub(super) fn of(&self, file: &Path, task: Option<&str>) -> Vec<&Reference> {
        let rows = self.rows.get(&whole(file)).map_or(&[][..], Vec::as_slice);
        let for_task: Vec<&Reference> = rows
            .iter()
            .filter(|row| task == Some(row.task.as_str()))
            .collect();
        match for_task.is_empty() {
            true => rows.iter().collect(),
            false => for_task,
        }
    }
}

/// A path by which two names of one file are equal.
fn whole(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// The references of a row.
fn references(example: Example, tasks: &TaskTable) -> Vec<Reference> {
    let variables = &example.variables;
    let labels = variables.labels.iter().flatten();
    let row = Reference {
        labels: labels.map(|label| label.name.clone()).collect(),
        fields: variables.fields.clone().into_iter().collect(),
        ..Reference::default()
    };
    if example.task.is_empty() {
        let of_target = |(task, target): (String, String)| {
            let mut one = row.clone();
            // The row's labels are for those of its tasks that take some.
            if !(tasks.get(&task)).is_ok_and(|task| task.answer.format.takes_labels()) {
                one.labels.clear();
            }
            one.answers.insert(task.clone(), target);
            one.task = task;
            one
        };
        return example.targets.into_iter().map(of_target).collect();
    }
    vec![Reference {
        answers: answers(&example, tasks),
        task: example.task,
        ..row
    }]
}

/// The right answers of a row that names its task or tasks.
fn answers(example: &Example, tasks: &TaskTable) -> BTreeMap<String, String> {
    if !example.targets.is_empty() {
        let names: Vec<&str> = example.task.split(TASK_SEPARATOR).map(str::trim).collect();
        let named = (example.targets.iter()).filter(|(task, _)| names.contains(&task.as_str()));
        return named
            .map(|(task, target)| (task.clone(), target.clone()))
            .collect();
    }
    if example.task.contains(TASK_SEPARATOR) {
        let layout = tasks
            .list(&example.task)
            .and_then(|list| JointLayout::new(&list, &example.variables));
        if let Ok(layout) = layout {
            return layout.by_task(&example.target);
        }
    }
    [(example.task.clone(), example.target.clone())].into()
}

/// What was answered about a task; absent where no answer came.
fn answer_to<'o>(outcome: Option<&'o Outcome>, task: &str) -> Option<&'o str> {
    match outcome {
        Some(Outcome::Answer(answer, _)) => Some(answer.fields.get(task).unwrap_or(&answer.text)),
        Some(Outcome::DeadLetter(_)) | None => None,
    }
}

/// Right and given answers, by task.
type Pairs = BTreeMap<String, Vec<(String, String)>>;

/// Right answers beside those that came, by task. A request that was not answered counts as an empty answer.
fn pairs(sent: &HashMap<String, Sent>, outcomes: &HashMap<String, Outcome>) -> Pairs {
    let mut pairs = Pairs::new();
    for (id, request) in sent {
        for (task, right) in request.reference.iter().flat_map(|row| &row.answers) {
            let answer = answer_to(outcomes.get(id), task).unwrap_or_default();
            let of_task = pairs.entry(task.clone()).or_default();
            of_task.push((right.clone(), answer.to_owned()));
        }
    }
    pairs
}

/// A table of what was asked, answered and right, and the score of each task.
pub(super) fn report(
    sent: &HashMap<String, Sent>,
    outcomes: &HashMap<String, Outcome>,
    references: &References,
) -> Result<(), OutputError> {
    let mut requests: Vec<(&String, &Sent)> = sent.iter().collect();
    requests.sort_by_key(|(_, request)| (&request.name, request.number));
    let heading = [
        "clip",
        "task",
        "answer",
        "reference",
        "flags",
        "audio s",
        "latency s",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let mut adapters = BTreeSet::new();
    let mut answered = 0;
    for (id, request) in requests {
        let outcome = outcomes.get(id);
        let (mut flags, mut audio, mut latency) = (String::new(), String::new(), String::new());
        if let Some(Outcome::Answer(answer, waited)) = outcome {
            answered += 1;
            adapters.insert(answer.adapter.clone());
            flags = flags_of(answer);
            audio = format!("{:.1}", answer.audio_seconds);
            latency = format!("{:.2}", waited.as_secs_f64());
        }
        let answers = request.reference.iter().flat_map(|row| &row.answers);
        let mut answers: Vec<(&str, &str)> = answers
            .map(|(task, right)| (task.as_str(), right.as_str()))
            .collect();
        if answers.is_empty() {
            answers.push(("", ""));
        }
        for (task, right) in answers {
            let text = match (answer_to(outcome, task), outcome) {
                (Some(answer), _) => answer.to_owned(),
                (None, Some(Outcome::DeadLetter(reason))) => format!("(dead letter) {reason}"),
                (None, _) => "(no answer)".to_owned(),
            };
            rows.push(vec![
                request.name.clone(),
                clipped(task, 24),
                clipped(&text, 60),
                clipped(right, 60),
                flags.clone(),
                audio.clone(),
                latency.clone(),
            ]);
        }
    }
    output::table(&rows, &[5, 6])?;
    let unanswered = match sent.len() - answered {
        0 => String::new(),
        count => format!("; {count} not answered, which count as empty answers"),
    };
    output::line(format!(
        "{} requests, {answered} answered by {}{unanswered}",
        sent.len(),
        adapters.into_iter().collect::<Vec<_>>().join(", ")
    ))?;
    for (task, pairs) in &pairs(sent, outcomes) {
        let own = (references.tasks.get(task)).map_or(TaskMetric::Wer, |task| task.metric);
        // Transcripts in plain spelling: lower case, no punctuation.
        let metric = match Metric::of_task(own)[0] {
            Metric::Wer => Metric::WerPlain,
            metric => metric,
        };
        let pairs: Vec<(&str, &str)> = pairs
            .iter()
            .map(|(one, other)| (one.as_str(), other.as_str()))
            .collect();
        let score = metric.tally(&pairs).score();
        let score = score.map_or_else(|| "not defined".to_owned(), |score| format!("{score:.1}"));
        output::line(format!(
            "{task}: {} {score} over {} clips",
            metric.title(),
            pairs.len()
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

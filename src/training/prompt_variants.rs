//! How samples are asked: the instructions that can be drawn for each, and the compound examples that rows
//! with several targets make.
//!
//! A sample's own instruction counts before `[prompts]` of the settings, and these before the prompts of the
//! task's file. Prompts with places are kept as they are and filled when one is drawn, so that a million
//! samples share them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::warn;

use super::TrainingError;
use super::example::Example;
use crate::scoring::Metric;
use crate::text::tasks::TASK_SEPARATOR;
pub(super) use crate::text::tasks::TRANSCRIPT;
use crate::text::{JointLayout, Task, TaskMetric, TaskTable, TemplateVariables, TextError};
use crate::training::config::TrainingConfig;
use crate::util::random::SplitMix;

/// How transcripts are asked for where neither settings nor task files say.
const TRANSCRIBE: &str = "Transcribe the speech.";

/// Every way in which one sample can be asked.
#[derive(Clone, Debug)]
pub struct PromptVariants {
    /// One part per task.
    parts: Vec<Part>,
    /// Of several tasks.
    joint: Option<Arc<JointLayout>>,
}

#[derive(Clone, Debug)]
struct Part {
    variants: Arc<[String]>,
    /// Fills the variants' places; absent: they are taken word for word.
    template: Option<(Arc<Task>, Arc<TemplateVariables>)>,
}

impl Part {
    fn render(&self, at: usize) -> String {
        let variant = &self.variants[at];
        match &self.template {
            None => variant.clone(),
            Some((task, variables)) => task
                .fill(variant, variables)
                .expect("every place was filled once when the sample was prepared"),
        }
    }
}

impl PromptVariants {
    /// These instructions, word for word.
    ///
    /// # Panics
    /// When there is none.
    pub fn verbatim(variants: Arc<[String]>) -> Self {
        assert!(!variants.is_empty(), "a sample can be asked in at least one way");
        let part = Part {
            variants,
            template: None,
        };
        Self {
            parts: vec![part],
            joint: None,
        }
    }

    /// The same instructions, whose answers are laid out like this.
    pub fn answered_in(mut self, layout: Option<Arc<JointLayout>>) -> Self {
        self.joint = layout;
        self
    }

    /// How the answers of several tasks are laid out; absent for one task.
    pub fn layout(&self) -> Option<&Arc<JointLayout>> {
        self.joint.as_ref()
    }

    /// The first way: the default instruction.
    pub fn first(&self) -> String {
        let parts: Vec<String> = self.parts.iter().map(|part| part.render(0)).collect();
        self.join(parts, 0)
    }

    /// One way of all, each as likely as the others.
    pub fn draw(&self, random: &mut SplitMix) -> String {
        let parts = (self.parts.iter())
            .map(|part| part.render(random.below(part.variants.len())))
            .collect();
        let frame = match self.parts.len() {
            1 => 0,
            _ => random.below(JointLayout::VARIANTS),
        };
        self.join(parts, frame)
    }

    fn join(&self, mut parts: Vec<String>, frame: usize) -> String {
        match &self.joint {
            Some(layout) if parts.len() > 1 => layout.instruction(&parts, frame),
            _ => parts.swap_remove(0), // an instruction of its own names all tasks
        }
    }
}

/// A task as training uses it.
struct CatalogTask {
    /// Absent: only the settings' prompts know it.
    task: Option<Arc<Task>>,
    variants: Arc<[String]>,
    every_placeholder: String,
}

/// The tasks of a run: settings' prompts and task files together.
pub(super) struct TaskCatalog {
    table: Option<TaskTable>,
    tasks: BTreeMap<String, CatalogTask>,
}

impl TaskCatalog {
    /// Reads the task files that the settings name, if they do.
    ///
    /// # Errors
    /// [`TrainingError::Text`] as [`TaskTable::load`], or when a prompt of the settings has an unknown place.
    pub(super) fn load(config: &TrainingConfig) -> Result<Self, TrainingError> {
        let table = (config.tasks_dir.as_deref()).map(TaskTable::load).transpose()?;
        let mut tasks = BTreeMap::new();
        for task in table.iter().flat_map(TaskTable::iter) {
            let variants: Arc<[String]> = match config.prompts.get(&task.name) {
                Some(own) => own.as_slice().into(),
                None => task.training_prompts().map(str::to_owned).collect(),
            };
            let known = CatalogTask {
                every_placeholder: task.every_placeholder(variants.iter().map(String::as_str))?,
                task: Some(Arc::new(task.clone())),
                variants,
            };
            tasks.insert(task.name.clone(), known);
        }
        let transcribe = (TRANSCRIPT.to_owned(), vec![TRANSCRIBE.to_owned()]);
        for (name, prompts) in config.prompts.iter().chain([(&transcribe.0, &transcribe.1)]) {
            tasks.entry(name.clone()).or_insert_with(|| CatalogTask {
                task: None,
                variants: prompts.as_slice().into(),
                every_placeholder: String::new(),
            });
        }
        Ok(Self { table, tasks })
    }

    /// See [`expand`], with share and seed of the settings.
    pub(super) fn expand(
        &self,
        examples: Vec<Example>,
        config: &TrainingConfig,
    ) -> Result<Vec<Example>, TrainingError> {
        expand(
            examples,
            self.table.as_ref(),
            config.data.compound_share,
            config.seed,
        )
    }

    /// The task files' entry of a single task.
    pub(super) fn file_of(&self, name: &str) -> Option<&Task> {
        self.tasks.get(name)?.task.as_deref()
    }

    /// The metric that a task's answers are judged by: that of its file; word error rate where there is none.
    pub(super) fn metric_of(&self, name: &str) -> Metric {
        let metric = self.file_of(name).map_or(TaskMetric::Wer, |task| task.metric);
        Metric::of_task(metric)[0]
    }

    /// The layout of a compound example; absent for a single task, and where a sample with an instruction and
    /// a target of its own names tasks that no file describes (any more), or lists labels that do not fit
    /// them: it is trained as it stands.
    ///
    /// # Errors
    /// For other samples: [`TrainingError::Settings`] without task files, or for labels that do not fit;
    /// [`TrainingError::Text`] for unknown tasks.
    pub(super) fn layout_of(&self, example: &Example) -> Result<Option<JointLayout>, TrainingError> {
        if !example.task.contains(TASK_SEPARATOR) {
            return Ok(None);
        }
        let Some(table) = &self.table else {
            return match example.instruction {
                Some(_) => Ok(None),
                None => Err(no_files(example)),
            };
        };
        let layout = (table.list(&example.task).map_err(TrainingError::from)).and_then(|tasks| {
            JointLayout::new(&tasks, &example.variables).map_err(|error| in_sample(example, &error))
        });
        match layout {
            Err(error) if example.instruction.is_some() && example.targets.is_empty() => {
                warn!(id = %example.id, %error, "a sample is trained as one text: its tasks have no layout");
                Ok(None)
            }
            layout => layout.map(Some),
        }
    }

    /// Every way in which an example can be asked; all its prompts' places can be filled.
    ///
    /// # Errors
    /// [`TrainingError::Settings`] that names the sample and what it lacks.
    pub(super) fn variants_of(
        &self,
        example: &Example,
        layout: Option<JointLayout>,
    ) -> Result<PromptVariants, TrainingError> {
        if let Some(own) = &example.instruction {
            return Ok(PromptVariants::verbatim(vec![own.clone()].into()));
        }
        let names = match &layout {
            Some(layout) => layout.fields().iter().map(|field| field.task.as_str()).collect(),
            None => vec![example.task.as_str()],
        };
        let parts: Result<Vec<Part>, TrainingError> = names
            .iter()
            .map(|name| self.part(name, example, names.len()))
            .collect();
        Ok(PromptVariants {
            parts: parts?,
            joint: layout.map(Arc::new),
        })
    }

    fn part(&self, name: &str, example: &Example, tasks: usize) -> Result<Part, TrainingError> {
        let known = self.tasks.get(name).ok_or_else(|| TrainingError::Settings {
            problem: format!(
                "sample `{}` has task `{name}`, for which neither `[prompts]` nor a file in `tasks_dir` has instructions",
                example.id
            ),
        })?;
        let template = match &known.task {
            Some(task) => {
                let mut variables = Arc::clone(&example.variables);
                // Given labels are those of the one task that takes some; the layout has checked that there
                // is one.
                if tasks > 1 && variables.labels.is_some() && !task.answer.format.takes_labels() {
                    Arc::make_mut(&mut variables).labels = None;
                }
                task.fill(&known.every_placeholder, &variables)
                    .map_err(|error| in_sample(example, &error))?;
                Some((Arc::clone(task), variables))
            }
            None => None,
        };
        Ok(Part {
            variants: Arc::clone(&known.variants),
            template,
        })
    }
}

/// Turns rows that carry several targets into examples: one for each target, and for the share
/// `compound_share` of them, drawn by seed and id, a compound one of the transcript and another target (of
/// two targets where there is no transcript). Other examples pass as they are.
///
/// # Errors
/// [`TrainingError::Settings`] when a row gives labels and not exactly one of its targets is made of labels.
pub fn expand(
    examples: Vec<Example>,
    tasks: Option<&TaskTable>,
    compound_share: f64,
    seed: u64,
) -> Result<Vec<Example>, TrainingError> {
    let takes_labels = |name: &str| {
        let task = tasks.and_then(|tasks| tasks.get(name).ok());
        task.is_none_or(|task| task.answer.format.takes_labels())
    };
    let mut expanded = Vec::with_capacity(examples.len());
    for example in examples {
        if example.targets.is_empty() || !example.task.is_empty() {
            expanded.push(example);
            continue;
        }
        let takers = example.targets.keys().filter(|name| takes_labels(name)).count();
        if example.variables.labels.is_some() && takers != 1 {
            return Err(TrainingError::Settings {
                problem: format!(
                    "sample `{}` gives `labels`, and {takers} of its `targets` take labels, expected 1",
                    example.id
                ),
            });
        }
        for (name, target) in &example.targets {
            let mut single = Example {
                id: format!("{}/{name}", example.id),
                task: name.clone(),
                target: target.clone(),
                targets: BTreeMap::new(),
                ..example.clone()
            };
            if single.variables.labels.is_some() && !takes_labels(name) {
                Arc::make_mut(&mut single.variables).labels = None;
            }
            expanded.push(single);
        }
        let mut random = SplitMix::new(&[seed, hash(&example.id)]);
        if example.targets.len() > 1 && random.chance(compound_share) {
            expanded.push(compound(example, &mut random, &takes_labels));
        }
    }
    Ok(expanded)
}

/// Two of an example's targets: the transcript first, where there is one.
fn compound(mut example: Example, random: &mut SplitMix, takes_labels: &dyn Fn(&str) -> bool) -> Example {
    let mut names: Vec<String> = example.targets.keys().cloned().collect();
    let first = match names.iter().position(|name| name == TRANSCRIPT) {
        Some(at) => names.remove(at),
        None => names.remove(random.below(names.len())),
    };
    let second = names.swap_remove(random.below(names.len()));
    if example.variables.labels.is_some() && !takes_labels(&first) && !takes_labels(&second) {
        Arc::make_mut(&mut example.variables).labels = None;
    }
    example
        .targets
        .retain(|name, _| *name == first || *name == second);
    example.task = format!("{first}{TASK_SEPARATOR}{second}");
    example.id = format!("{}/{}", example.id, example.task);
    example
}

/// FNV-1a, so that a choice depends on an id and not on its place among others.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn no_files(example: &Example) -> TrainingError {
    TrainingError::Settings {
        problem: format!(
            "sample `{}` has several tasks (`{}`): `tasks_dir` must name the folder of task files",
            example.id, example.task
        ),
    }
}

fn in_sample(example: &Example, error: &TextError) -> TrainingError {
    TrainingError::Settings {
        problem: format!("sample `{}`: {error}", example.id),
    }
}

#[cfg(test)]
mod tests;

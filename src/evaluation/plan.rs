//! Variants, and what each asks about each recording.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::text::tasks::{LABELS, TASK_SEPARATOR};
use crate::text::{JointLayout, OutputGrammar, Task, TaskTable, TextError};
use crate::training::evaluate::EvalPrompt;
use crate::training::{Example, TrainingError, read_manifest};

/// The task whose prompt asks for a transcript.
pub const ASR: &str = "asr";
/// The task whose answer is whether the field [`KEYWORD`] is said.
pub const KEYWORD_SEARCH: &str = "keyword_search";
/// The field that is searched for.
pub const KEYWORD: &str = "keyword";

/// A table of the report.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// Variants against each other (the paper's tables 2 and 3).
    #[default]
    #[serde(rename = "systems")]
    Variants,
    /// Wordings that were trained on against new ones (table 5).
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
            Self::Prompts => "Wordings: trained on, and new",
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
    /// Whether answers are constrained to the labels in force.
    pub constrained: bool,
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
    /// Constrains answers to the labels in force, where a task has some.
    pub constrained: bool,
    /// The language model on transcripts and on reference texts; for keyword search, text search in
    /// transcripts.
    pub cascade: bool,
    /// Wordings against each other.
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
                    constrained,
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
    let one = |(name, target): (String, String)| {
        let mut variables = (*example.variables).clone();
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

/// An answer that a variant wants about a recording.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Which variant.
    pub variant: usize,
    /// Which recording.
    pub recording: usize,
    /// Which of the recording's questions.
    pub question: usize,
    /// How to find the task's answer in a joint one.
    pub layout: Option<Arc<JointLayout>>,
}

/// A recording and everything that is asked about it.
#[derive(Debug)]
pub struct Recording<'s> {
    /// Its dataset.
    pub dataset: &'s Dataset,
    /// What it is.
    pub example: &'s Example,
    /// What is asked, each question once.
    pub questions: Vec<(Source, EvalPrompt)>,
    /// The question whose answer is the transcript, where one is needed.
    pub transcript: Option<usize>,
}

impl Recording<'_> {
    fn question(&mut self, source: Source, prompt: EvalPrompt) -> usize {
        let known = self
            .questions
            .iter()
            .position(|(from, other)| *from == source && *other == prompt);
        known.unwrap_or_else(|| {
            self.questions.push((source, prompt));
            self.questions.len() - 1
        })
    }
}

/// Everything that is asked.
#[derive(Debug)]
pub struct Plan<'s> {
    /// The rows of all tables.
    pub variants: Vec<Variant>,
    /// All recordings with their questions.
    pub recordings: Vec<Recording<'s>>,
    /// What each variant wants.
    pub wanted: Vec<Wanted>,
    /// Why a variant leaves recordings out, and how many: not a fault.
    left_out: BTreeMap<(usize, String), usize>,
    /// Rows that cannot be asked at all, which and why: a fault of the manifest or the tasks.
    pub problems: Vec<String>,
}

/// Why there is no question.
enum No {
    /// The table does not concern the row.
    NotConcerned(&'static str),
    /// The row cannot be asked.
    Fault(TextError),
}

impl From<TextError> for No {
    fn from(error: TextError) -> Self {
        Self::Fault(error)
    }
}

impl<'s> Plan<'s> {
    /// What variants leave out, for people.
    pub fn left_out(&self) -> Vec<String> {
        self.left_out
            .iter()
            .map(|((variant, reason), count)| {
                let variant = &self.variants[*variant];
                format!(
                    "{} / {}: {count} rows, {reason}",
                    variant.table.title(),
                    variant.name
                )
            })
            .collect()
    }

    /// Plans every question about every recording of the datasets.
    pub fn new(datasets: &'s [Dataset], tasks: &TaskTable, choices: &Choices) -> Self {
        let named = datasets
            .iter()
            .flat_map(|dataset| &dataset.examples)
            .map(|example| &example.task);
        let held_out = named
            .filter_map(|name| tasks.get(name).ok())
            .map(|task| task.held_out_prompts.len())
            .max();
        let mut variants = choices.variants(held_out.unwrap_or(0));
        let mut examples = datasets.iter().flat_map(|dataset| &dataset.examples);
        if examples.all(|example| example.task != KEYWORD_SEARCH) {
            variants.retain(|variant| variant.source != Source::Search);
        }
        let mut plan = Self {
            variants,
            recordings: Vec::new(),
            wanted: Vec::new(),
            left_out: BTreeMap::new(),
            problems: Vec::new(),
        };
        for dataset in datasets {
            let (refused, reasons) = &dataset.refused;
            plan.problems.extend(reasons.iter().cloned());
            if *refused > reasons.len() {
                plan.problems.push(format!(
                    "{}: {} further rows",
                    dataset.name,
                    refused - reasons.len()
                ));
            }
            for example in &dataset.examples {
                let mut recording = Recording {
                    dataset,
                    example,
                    questions: Vec::new(),
                    transcript: None,
                };
                let at = plan.recordings.len();
                let mut fault = None;
                for (number, variant) in plan.variants.iter().enumerate() {
                    match question(variant, example, tasks) {
                        Ok((prompt, layout)) => {
                            if variant.source == Source::Transcript && recording.transcript.is_none() {
                                let Ok(asr) = transcription(tasks) else { continue };
                                recording.transcript = Some(recording.question(Source::Audio, asr));
                            }
                            let source = match variant.source {
                                Source::Search => Source::Audio,
                                source => source,
                            };
                            let question = recording.question(source, prompt);
                            plan.wanted.push(Wanted {
                                variant: number,
                                recording: at,
                                question,
                                layout,
                            });
                        }
                        Err(No::NotConcerned(reason)) => {
                            *plan.left_out.entry((number, reason.to_owned())).or_default() += 1;
                        }
                        Err(No::Fault(error)) => fault = Some(format!("{}: {error}", example.id)),
                    }
                }
                plan.problems.extend(fault);
                plan.recordings.push(recording);
            }
        }
        plan
    }
}

/// The question for a transcript: what the cascade begins with.
fn transcription(tasks: &TaskTable) -> Result<EvalPrompt, TextError> {
    Ok(EvalPrompt::transcript(tasks.get(ASR)?.instruction.clone()))
}

fn question(
    variant: &Variant,
    example: &Example,
    tasks: &TaskTable,
) -> Result<(EvalPrompt, Option<Arc<JointLayout>>), No> {
    let list = tasks.list(&example.task)?;
    let [task] = *list.as_slice() else {
        // Taken apart already, were there a layout for them: why there is none.
        JointLayout::new(&list, &example.variables)?;
        return Err(No::NotConcerned(
            "the row has several tasks and no answers to them",
        ));
    };
    let mut variables = (*example.variables).clone();
    variables.bare_labels = !variant.descriptions;
    if variant.table == Table::Constraint
        && (!task.answer.format.takes_labels() || task.labels_in(&variables)?.is_empty())
    {
        return Err(No::NotConcerned("the task has no labels"));
    }
    if (variant.source != Source::Audio || variant.table == Table::Joint) && task.name == ASR {
        return Err(No::NotConcerned("the task is the transcription itself"));
    }
    if variant.source == Source::Transcript {
        transcription(tasks)?;
    }
    if variant.source == Source::Search {
        return match variables.fields.contains_key(KEYWORD) && task.name == KEYWORD_SEARCH {
            true => Ok((transcription(tasks)?, None)),
            false => Err(No::NotConcerned("the task is not to find a keyword")),
        };
    }
    if variant.source == Source::Reference && example.text.is_none() {
        return Err(No::NotConcerned("the manifest has no `text`"));
    }
    let instruction = match (variant.prompt, &example.instruction) {
        (PromptSource::Given, Some(own)) => own.clone(),
        (PromptSource::HeldOut(at), _) => {
            let prompt = task.held_out_prompts.get(at);
            let prompt = prompt.ok_or(No::NotConcerned("the task keeps no such prompt"))?;
            task.fill(prompt, &variables)?
        }
        _ if variant.table == Table::Constraint => task.fill(prompt_with_labels(task), &variables)?,
        _ => task.fill(&task.instruction, &variables)?,
    };
    if !variant.joint {
        let grammar = if variant.constrained {
            task.grammar(&variables)?
        } else {
            OutputGrammar::free()
        };
        let verbatim = task.name == ASR;
        let prompt = EvalPrompt {
            instruction,
            grammar,
            verbatim,
        };
        return Ok((prompt, None));
    }
    let asr = tasks.get(ASR)?;
    let layout = JointLayout::new(&[asr, task], &variables)?;
    let instruction = layout.instruction(&[asr.instruction.as_str(), &instruction], 0);
    let grammar = if variant.constrained {
        layout.grammar()
    } else {
        OutputGrammar::free()
    };
    let prompt = EvalPrompt {
        instruction,
        grammar,
        verbatim: false,
    };
    Ok((prompt, Some(Arc::new(layout))))
}

/// The first prompt used in training that lists the labels, else the default one.
fn prompt_with_labels(task: &Task) -> &str {
    let lists = |prompt: &&str| prompt.contains(&format!("{{{}}}", LABELS));
    task.training_prompts().find(lists).unwrap_or(&task.instruction)
}

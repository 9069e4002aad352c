//! Systems, and what each asks about each recording.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::text::tasks::{LABELS, TASK_SEPARATOR};
use crate::text::{AnswerShape, JointLayout, Task, TaskTable, TextError};
use crate::training::evaluate::Ask;
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
pub enum Study {
    /// Systems against each other (the paper's tables 2 and 3).
    #[default]
    Systems,
    /// Wordings that were trained on against new ones (table 5).
    Prompts,
    /// Label descriptions and constrained decoding, with and without (table 7).
    Constraint,
    /// Joint decoding, with and without (table 9).
    Joint,
}

impl Study {
    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Systems => "Systems",
            Self::Prompts => "Wordings: trained on, and new",
            Self::Constraint => "Label descriptions and constrained decoding",
            Self::Joint => "Joint decoding",
        }
    }

    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Systems => "systems",
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

/// Which wording of a task's wish.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wording {
    /// The row's own instruction, else the task's default.
    Given,
    /// The task's default, the first wording used in training.
    Trained,
    /// The nth wording that was kept out of training.
    HeldOut(usize),
}

/// One way of asking: a row of a table.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct System {
    /// The table.
    pub study: Study,
    /// The row's name.
    pub name: String,
    /// What is listened to, or read.
    pub source: Source,
    /// In which words it asks.
    pub wording: Wording,
    /// Whether lists of labels carry descriptions.
    pub descriptions: bool,
    /// Whether answers are held to the labels in force.
    pub constrained: bool,
    /// Whether the transcript is asked for first, in the same answer.
    pub joint: bool,
}

/// Which wordings to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptChoice {
    /// P1, the wording trained on.
    Seen,
    /// P2, P3 …, those kept out of training.
    HeldOut,
    /// All of them.
    All,
}

/// What a report shall hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// Holds answers to the labels in force, where a task has some.
    pub constrained: bool,
    /// The language model on transcripts and on reference texts; for keyword search, text search in transcripts.
    pub cascade: bool,
    /// Wordings against each other.
    pub prompts: Option<PromptChoice>,
    /// Label descriptions and constraint, with and without.
    pub grid: bool,
    /// Joint decoding, with and without.
    pub joint: bool,
}

impl Choices {
    /// The systems; the first of each study is what the others are compared with. `held_out` is the largest number of
    /// wordings that a task keeps out of training.
    pub fn systems(&self, held_out: usize) -> Vec<System> {
        let base = |study, name: &str| System {
            study,
            name: name.to_owned(),
            source: Source::Audio,
            wording: Wording::Given,
            descriptions: true,
            constrained: self.constrained,
            joint: false,
        };
        let mut systems = vec![base(Study::Systems, "speech LLM")];
        if self.cascade {
            for (name, source) in [
                ("cascade: transcript → LLM", Source::Transcript),
                ("oracle: reference text → LLM", Source::Reference),
                ("search: keyword in transcript", Source::Search),
            ] {
                systems.push(System {
                    source,
                    ..base(Study::Systems, name)
                });
            }
        }
        if let Some(choice) = self.prompts {
            let trained = (Wording::Trained, "P1, trained on".to_owned());
            let new = (0..held_out).map(|at| (Wording::HeldOut(at), format!("P{}, new", at + 2)));
            for (wording, name) in std::iter::once(trained).chain(new) {
                let wanted = match choice {
                    PromptChoice::Seen => wording == Wording::Trained,
                    PromptChoice::HeldOut => wording != Wording::Trained,
                    PromptChoice::All => true,
                };
                if wanted {
                    systems.push(System {
                        wording,
                        ..base(Study::Prompts, &name)
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
                systems.push(System {
                    wording: Wording::Trained,
                    descriptions,
                    constrained,
                    ..base(Study::Constraint, &name)
                });
            }
        }
        if self.joint {
            for (joint, name) in [(false, "without"), (true, "with")] {
                systems.push(System {
                    joint,
                    ..base(Study::Joint, name)
                });
            }
        }
        systems
    }
}

/// A set of recordings: a manifest.
#[derive(Clone, Debug)]
pub struct Set {
    /// Its name in tables.
    pub name: String,
    /// Its recordings.
    pub examples: Vec<Example>,
}

impl Set {
    /// Reads manifests; each has its file's name in tables, numbered where two have the same. `limit` keeps the first rows
    /// of each. A row with answers to several tasks becomes one recording for each of them.
    ///
    /// # Errors
    /// As [`read_manifest`].
    pub fn read(
        paths: &[PathBuf],
        limit: Option<usize>,
        tasks: &TaskTable,
    ) -> Result<Vec<Self>, TrainingError> {
        let mut sets: Vec<Self> = Vec::with_capacity(paths.len());
        for path in paths {
            let mut examples = read_manifest(path, None)?;
            examples.truncate(limit.unwrap_or(usize::MAX));
            let stem = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let name = untaken(stem, &|name| sets.iter().any(|set| set.name == name));
            sets.push(Self {
                name,
                examples: examples
                    .into_iter()
                    .flat_map(|example| apart(example, tasks))
                    .collect(),
            });
        }
        Ok(sets)
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

/// A row's examples: one for each of its targets. Several tasks answered in one text are taken apart by their layout.
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

/// An answer that a system wants about a recording.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Which system.
    pub system: usize,
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
    /// Its set.
    pub set: &'s Set,
    /// What it is.
    pub example: &'s Example,
    /// What is asked, each question once.
    pub questions: Vec<(Source, Ask)>,
    /// The question whose answer is the transcript, where one is needed.
    pub transcript: Option<usize>,
}

impl Recording<'_> {
    fn question(&mut self, source: Source, ask: Ask) -> usize {
        let known = self
            .questions
            .iter()
            .position(|(from, other)| *from == source && *other == ask);
        known.unwrap_or_else(|| {
            self.questions.push((source, ask));
            self.questions.len() - 1
        })
    }
}

/// Everything that is asked.
#[derive(Debug)]
pub struct Plan<'s> {
    /// The rows of all tables.
    pub systems: Vec<System>,
    /// All recordings with their questions.
    pub recordings: Vec<Recording<'s>>,
    /// What each system wants.
    pub wanted: Vec<Wanted>,
    /// Why a system leaves recordings out, and how many: not a fault.
    left_out: BTreeMap<(usize, String), usize>,
    /// Rows that cannot be asked at all, which and why: a fault of the manifest or the tasks.
    pub problems: Vec<String>,
}

/// Why there is no question.
enum No {
    /// The study does not concern the row.
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
    /// What systems leave out, for people.
    pub fn left_out(&self) -> Vec<String> {
        self.left_out
            .iter()
            .map(|((system, reason), count)| {
                let system = &self.systems[*system];
                format!(
                    "{} / {}: {count} rows, {reason}",
                    system.study.title(),
                    system.name
                )
            })
            .collect()
    }

    /// Plans every question about every recording of the sets.
    pub fn new(sets: &'s [Set], tasks: &TaskTable, choices: &Choices) -> Self {
        let named = sets
            .iter()
            .flat_map(|set| &set.examples)
            .map(|example| &example.task);
        let held_out = named
            .filter_map(|name| tasks.get(name).ok())
            .map(|task| task.held_out_prompts.len())
            .max();
        let mut systems = choices.systems(held_out.unwrap_or(0));
        let mut examples = sets.iter().flat_map(|set| &set.examples);
        if examples.all(|example| example.task != KEYWORD_SEARCH) {
            systems.retain(|system| system.source != Source::Search);
        }
        let mut plan = Self {
            systems,
            recordings: Vec::new(),
            wanted: Vec::new(),
            left_out: BTreeMap::new(),
            problems: Vec::new(),
        };
        for set in sets {
            for example in &set.examples {
                let mut recording = Recording {
                    set,
                    example,
                    questions: Vec::new(),
                    transcript: None,
                };
                let at = plan.recordings.len();
                let mut fault = None;
                for (number, system) in plan.systems.iter().enumerate() {
                    match question(system, example, tasks) {
                        Ok((ask, layout)) => {
                            if system.source == Source::Transcript && recording.transcript.is_none() {
                                let Ok(asr) = transcription(tasks) else { continue };
                                recording.transcript = Some(recording.question(Source::Audio, asr));
                            }
                            let source = match system.source {
                                Source::Search => Source::Audio,
                                source => source,
                            };
                            let question = recording.question(source, ask);
                            plan.wanted.push(Wanted {
                                system: number,
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
fn transcription(tasks: &TaskTable) -> Result<Ask, TextError> {
    Ok(Ask::free(tasks.get(ASR)?.instruction.clone()))
}

fn question(
    system: &System,
    example: &Example,
    tasks: &TaskTable,
) -> Result<(Ask, Option<Arc<JointLayout>>), No> {
    let list = tasks.list(&example.task)?;
    let [task] = *list.as_slice() else {
        // Taken apart already, were there a layout for them: why there is none.
        JointLayout::new(&list, &example.variables)?;
        return Err(No::NotConcerned(
            "the row has several tasks and no answers to them",
        ));
    };
    let mut variables = (*example.variables).clone();
    variables.bare_labels = !system.descriptions;
    if system.study == Study::Constraint
        && (!task.answer.format.takes_labels() || task.labels_in(&variables)?.is_empty())
    {
        return Err(No::NotConcerned("the task has no labels"));
    }
    if (system.source != Source::Audio || system.study == Study::Joint) && task.name == ASR {
        return Err(No::NotConcerned("the task is the transcription itself"));
    }
    if system.source == Source::Transcript {
        transcription(tasks)?;
    }
    if system.source == Source::Search {
        return match variables.fields.contains_key(KEYWORD) && task.name == KEYWORD_SEARCH {
            true => Ok((transcription(tasks)?, None)),
            false => Err(No::NotConcerned("the task is not to find a keyword")),
        };
    }
    if system.source == Source::Reference && example.text.is_none() {
        return Err(No::NotConcerned("the manifest has no `text`"));
    }
    let instruction = match (system.wording, &example.instruction) {
        (Wording::Given, Some(own)) => own.clone(),
        (Wording::HeldOut(at), _) => {
            let wording = task.held_out_prompts.get(at);
            let wording = wording.ok_or(No::NotConcerned("the task keeps no such wording"))?;
            task.fill(wording, &variables)?
        }
        _ if system.study == Study::Constraint => task.fill(wording_with_labels(task), &variables)?,
        _ => task.fill(&task.instruction, &variables)?,
    };
    if !system.joint {
        let shape = if system.constrained {
            task.shape(&variables)?
        } else {
            AnswerShape::free()
        };
        return Ok((Ask { instruction, shape }, None));
    }
    let asr = tasks.get(ASR)?;
    let layout = JointLayout::new(&[asr, task], &variables)?;
    let instruction = layout.instruction(&[asr.instruction.as_str(), &instruction], 0);
    let shape = if system.constrained {
        layout.shape()
    } else {
        AnswerShape::free()
    };
    Ok((Ask { instruction, shape }, Some(Arc::new(layout))))
}

/// The first wording used in training that lists the labels, else the default one.
fn wording_with_labels(task: &Task) -> &str {
    let lists = |wording: &&str| wording.contains(&format!("{{{}}}", LABELS));
    task.training_prompts().find(lists).unwrap_or(&task.instruction)
}

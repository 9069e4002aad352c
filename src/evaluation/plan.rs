//! What each variant asks about each recording.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::dataset::Dataset;
use super::variants::{ASR, Choices, KEYWORD, KEYWORD_SEARCH, PromptSource, Source, Table, Variant};
use crate::text::tasks::LABELS;
use crate::text::{JointLayout, OutputGrammar, Task, TaskTable, TextError};
use crate::training::Example;
use crate::training::evaluate::EvalPrompt;

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
enum NotAsked {
    /// The variant does not apply to the row.
    DoesNotApply(&'static str),
    /// The row cannot be asked.
    Fault(TextError),
}

impl From<TextError> for NotAsked {
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
                        Err(NotAsked::DoesNotApply(reason)) => {
                            *plan.left_out.entry((number, reason.to_owned())).or_default() += 1;
                        }
                        Err(NotAsked::Fault(error)) => fault = Some(format!("{}: {error}", example.id)),
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
) -> Result<(EvalPrompt, Option<Arc<JointLayout>>), NotAsked> {
    let list = tasks.list(&example.task)?;
    let [task] = *list.as_slice() else {
        // Taken apart already, were there a layout for them: why there is none.
        JointLayout::new(&list, &example.variables)?;
        return Err(NotAsked::DoesNotApply(
            "the row has several tasks and no answers to them",
        ));
    };
    let mut variables = (*example.variables).clone();
    variables.bare_labels = !variant.descriptions;
    if variant.table == Table::Constraint
        && (!task.answer.format.takes_labels() || task.labels_in(&variables)?.is_empty())
    {
        return Err(NotAsked::DoesNotApply("the task has no labels"));
    }
    if (variant.source != Source::Audio || variant.table == Table::Joint) && task.name == ASR {
        return Err(NotAsked::DoesNotApply("the task is the transcription itself"));
    }
    if variant.source == Source::Transcript {
        transcription(tasks)?;
    }
    if variant.source == Source::Search {
        return match variables.fields.contains_key(KEYWORD) && task.name == KEYWORD_SEARCH {
            true => Ok((transcription(tasks)?, None)),
            false => Err(NotAsked::DoesNotApply("the task is not to find a keyword")),
        };
    }
    let reads_reference = matches!(variant.source, Source::Reference | Source::TaughtReference);
    if reads_reference && example.text.is_none() {
        return Err(NotAsked::DoesNotApply("the manifest has no `text`"));
    }
    let instruction = match (variant.prompt, &example.instruction) {
        (PromptSource::Given, Some(own)) => own.clone(),
        (PromptSource::HeldOut(at), _) => {
            let prompt = task.held_out_prompts.get(at);
            let prompt = prompt.ok_or(NotAsked::DoesNotApply("the task keeps no such prompt"))?;
            task.fill(prompt, &variables)?
        }
        _ if variant.table == Table::Constraint => task.fill(prompt_with_labels(task), &variables)?,
        _ => task.fill(&task.instruction, &variables)?,
    };
    let is_own = variant.prompt == PromptSource::Given && example.instruction.is_some();
    let constrained = (variant.constrained).unwrap_or(!is_own || variables.labels.is_some());
    if !variant.joint {
        let grammar = if constrained {
            task.grammar(&variables)?
        } else {
            OutputGrammar::free()
        };
        let prompt = EvalPrompt {
            instruction,
            grammar,
            task: Some(task.name.clone()),
            spoken: task.spoken(&variables)?,
            joint: None,
        };
        return Ok((prompt, None));
    }
    let asr = tasks.get(ASR)?;
    let layout = Arc::new(JointLayout::new(&[asr, task], &variables)?);
    let instruction = layout.instruction(&[asr.instruction.as_str(), &instruction], 0);
    let grammar = if constrained {
        layout.grammar()
    } else {
        OutputGrammar::free()
    };
    let prompt = EvalPrompt {
        instruction,
        grammar,
        task: None,
        spoken: None,
        joint: Some(Arc::clone(&layout)),
    };
    Ok((prompt, Some(layout)))
}

/// The first prompt used in training that lists the labels, else the default one.
fn prompt_with_labels(task: &Task) -> &str {
    let lists = |prompt: &&str| prompt.contains(&format!("{{{}}}", LABELS));
    task.training_prompts().find(lists).unwrap_or(&task.instruction)
}

//! From labelled recordings to samples: targets in their final spelling, as tokens; what does not fit is left
//! out and counted.

use std::collections::BTreeMap;

use super::TrainingError;
use super::example::Example;
use super::label_loss::LabelTarget;
use super::prompt_variants::{PromptVariants, TRANSCRIPT, TaskCatalog};
use crate::inference::speech_llm::SpeechLlm;
use crate::scoring::Metric;
use crate::text::{AnswerFormat, JointLayout, OutputGrammar, Spoken};
use crate::training::config::TrainingConfig;

/// A sample ready for both losses.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Where it comes from; its target is in the final spelling.
    pub example: Example,
    /// Answer tokens, end included.
    pub answer: Vec<i64>,
    /// Tokens for CTC: those of what was said, none of them where nothing was; absent where it is not known.
    pub ctc: Option<Vec<i64>>,
    /// Its answer among the labels of its task, where it is one label.
    pub label: Option<LabelTarget>,
    /// The ways in which it can be asked.
    pub variants: PromptVariants,
    /// Its tasks, each with the metric that its answers are judged by.
    pub metrics: Vec<(String, Metric)>,
    /// What its answers are constrained to in evaluation; free unless the caller says otherwise.
    pub grammar: OutputGrammar,
    /// What has to be said for the labels of a constrained answer; none unless the caller says otherwise.
    pub spoken: Option<Spoken>,
}

/// Samples, and how many recordings were left out, by reason.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    /// What is left.
    pub samples: Vec<Sample>,
    /// What is not.
    pub left_out: BTreeMap<&'static str, usize>,
}

/// Lower case; letters, digits and apostrophes stay, everything else separates words: the paper's spelling of
/// transcripts.
pub fn plain_target(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars().flat_map(char::to_lowercase) {
        match character {
            '\u{2018}' | '\u{2019}' | '\u{02bc}' => out.push('\''),
            '\'' => out.push('\''),
            _ if character.is_alphanumeric() => out.push(character),
            _ if !out.ends_with(' ') => out.push(' '),
            _ => {}
        }
    }
    out.trim().to_owned()
}

/// Prepares recordings for training or validation.
///
/// # Errors
/// [`TrainingError::Settings`] when a task has no instructions, or a row lacks what its task's prompts need;
/// [`TrainingError::Text`] for task files that do not load.
pub fn prepare(
    examples: Vec<Example>,
    config: &TrainingConfig,
    llm: &SpeechLlm,
) -> Result<Prepared, TrainingError> {
    let tasks = TaskCatalog::load(config)?;
    let mut prepared = Prepared::default();
    for mut example in tasks.expand(examples, config)? {
        let mut leave_out = |reason| *prepared.left_out.entry(reason).or_insert(0) += 1;
        if example.seconds > config.data.seconds_max {
            leave_out("longer than data.seconds_max");
            continue;
        }
        if example.seconds < config.data.seconds_min {
            leave_out("shorter than data.seconds_min");
            continue;
        }
        let layout = tasks.layout_of(&example)?;
        match final_spelling(&example, layout.as_ref(), &tasks, config) {
            Ok(target) => example.target = target,
            Err(reason) => {
                leave_out(reason);
                continue;
            }
        }
        let answer = match example.task.as_str() {
            TRANSCRIPT => [llm.spoken_ids(&example.target)?, vec![llm.end_ids()[0]]].concat(),
            _ => llm.answer_ids(&example.target)?,
        };
        if answer.len() > config.data.target_tokens_max {
            leave_out("more tokens than data.target_tokens_max");
            continue;
        }
        let said = match example.task.as_str() {
            TRANSCRIPT => Some(example.target.clone()),
            _ => example.text.as_deref().map(plain_target),
        };
        let ctc = said.map(|said| llm.spoken_ids(&said)).transpose()?;
        let label = label_target(&example, &tasks, llm)?;
        let metrics = match &layout {
            None => vec![(example.task.clone(), tasks.metric_of(&example.task))],
            Some(layout) => (layout.fields().iter())
                .map(|field| (field.task.clone(), tasks.metric_of(&field.task)))
                .collect(),
        };
        let variants = tasks.variants_of(&example, layout)?;
        prepared.samples.push(Sample {
            example,
            answer,
            ctc,
            label,
            variants,
            metrics,
            grammar: OutputGrammar::free(),
            spoken: None,
        });
    }
    weigh_labels(&mut prepared.samples);
    Ok(prepared)
}

/// Makes all answers of a task weigh the same together, and its samples 1 on average.
#[expect(clippy::cast_precision_loss, reason = "counts of samples")]
fn weigh_labels(samples: &mut [Sample]) {
    let mut counts: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.label.is_some()) {
        let of_task = counts.entry(sample.example.task.clone()).or_default();
        *of_task.entry(sample.example.target.clone()).or_default() += 1;
    }
    for sample in samples {
        if let (Some(label), Some(of_task)) = (&mut sample.label, counts.get(&sample.example.task)) {
            let all: usize = of_task.values().sum();
            let own = of_task.get(&sample.example.target).copied().unwrap_or(1);
            label.weight = all as f64 / (of_task.len() * own) as f64;
        }
    }
}

/// A sample's answer among its labels, as tokens; none where the task's answer is no single label.
fn label_target(
    example: &Example,
    tasks: &TaskCatalog,
    llm: &SpeechLlm,
) -> Result<Option<LabelTarget>, TrainingError> {
    let Some(task) = (tasks.file_of(&example.task)).filter(|task| task.answer.format == AnswerFormat::Label)
    else {
        return Ok(None);
    };
    let labels = example.variables.labels.as_ref().unwrap_or(&task.labels);
    let right = (labels.iter()).position(|label| label.name.to_lowercase() == example.target);
    let tokens = (labels.iter())
        .map(|label| llm.spoken_ids(&label.name))
        .collect::<Result<Vec<_>, _>>()?;
    let usable = tokens.iter().all(|tokens| !tokens.is_empty());
    Ok(right.filter(|_| usable).map(|right| LabelTarget {
        labels: tokens,
        right,
        weight: 1.0,
    }))
}

/// The answer as training takes it, or why there is none.
fn final_spelling(
    example: &Example,
    layout: Option<&JointLayout>,
    tasks: &TaskCatalog,
    config: &TrainingConfig,
) -> Result<String, &'static str> {
    let spell = |task: &str, format: AnswerFormat, labels: &[String], given: &str| {
        let target = match config.data.plain_targets && task == TRANSCRIPT {
            true => plain_target(given),
            false => format.canonical(given, labels),
        };
        if target.is_empty() {
            // Nothing said is trained as an empty answer; what has no words that can be trained is not the
            // same.
            return match given.trim().is_empty() && format == AnswerFormat::Text {
                true => Ok(target),
                false => Err("empty target"),
            };
        }
        let answered = format.parse(&target);
        let listed = |label: &&str| labels.iter().any(|known| known.to_lowercase() == **label);
        match labels.is_empty() || answered.labels().iter().all(listed) {
            true => Ok(target),
            false => Err("an answer that is not among the labels"),
        }
    };
    let Some(layout) = layout else {
        let Some(task) = tasks.file_of(&example.task) else {
            return spell(&example.task, AnswerFormat::Text, &[], &example.target);
        };
        let labels: Vec<String> = (example.variables.labels.as_ref().unwrap_or(&task.labels).iter())
            .map(|label| label.name.clone())
            .collect();
        let labels = if task.answer.format.takes_labels() {
            labels
        } else {
            Vec::new()
        };
        return spell(&task.name, task.answer.format, &labels, &example.target);
    };
    let read = layout.read(&example.target);
    let values: Result<Vec<String>, _> = (layout.fields().iter().zip(read))
        .map(|(field, read)| {
            let given = example.targets.get(&field.task).cloned().or(read);
            let target = given.ok_or("no target for one of its tasks")?;
            spell(&field.task, field.format, &field.labels, &target)
        })
        .collect();
    Ok(layout.write(&values?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_target_keeps_words_and_apostrophes() {
        assert_eq!(
            plain_target("  It’s 7:30 — Don't \"wait\"!"),
            "it's 7 30 don't wait"
        );
        assert_eq!(plain_target("Straße, naïve"), "straße naïve");
        assert_eq!(plain_target("?!"), "");
    }
}

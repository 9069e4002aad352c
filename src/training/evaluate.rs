//! Evaluation: greedy answers over labelled recordings, and their word error rates.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::TrainingError;
use super::control::Control;
use super::ctc::CtcTable;
use super::networks::Networks;
use super::prepare::Sample;
use crate::models::speech_llm::Learned;
use crate::text::normalize::plain;
use crate::text::wer::{WordErrors, word_errors};

/// How to evaluate.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluateOptions {
    /// Rows of a batch.
    pub batch_rows: usize,
    /// Longest answer in tokens.
    pub new_tokens_max: usize,
    /// Reads the CTC head instead of asking the language model.
    pub by_ctc: bool,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        Self {
            batch_rows: 16,
            new_tokens_max: 64,
            by_ctc: false,
        }
    }
}

/// One evaluated recording.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EvaluatedRow {
    /// Which recording.
    pub id: String,
    /// Its task.
    pub task: String,
    /// Its group.
    pub domain: Option<String>,
    /// Its length, seconds.
    pub seconds: f64,
    /// What was wanted, as in the manifest.
    pub reference: String,
    /// What was answered.
    pub hypothesis: String,
    /// Mean token log-probability of the answer; absent for an empty answer or a CTC reading.
    pub score: Option<f32>,
    /// Whether the answer ended by itself.
    pub finished: bool,
    /// Word errors, case and punctuation not counted.
    pub errors: u64,
    /// Words of the reference.
    pub words: u64,
}

/// An evaluation's sums.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    /// Every recording, in the order given.
    pub rows: Vec<EvaluatedRow>,
    /// Word errors of all.
    pub errors: WordErrors,
    /// Word errors by group (`domain`, or the task where there is none).
    pub by_domain: BTreeMap<String, WordErrors>,
    /// Recordings that could not be read: which and why. They are not in any sum.
    pub unreadable: Vec<String>,
    /// Audio evaluated, seconds.
    pub audio_seconds: f64,
    /// Time taken, seconds.
    pub seconds: f64,
}

impl Evaluation {
    /// Word error rate of all, 0 to infinity.
    pub fn wer(&self) -> f64 {
        self.errors.rate()
    }
}

/// Answers every sample greedily, in batches of similar length; `on_row` sees each row as it comes. Stops early, with what there is, when `control` is stopped.
///
/// Each sample is asked its first instruction.
///
/// # Errors
/// [`TrainingError`] when a network fails, or `by_ctc` is asked of an adapter without CTC head.
pub fn evaluate(
    networks: &Networks,
    learned: &Learned,
    samples: &[Sample],
    options: &EvaluateOptions,
    control: &Control,
    on_row: &mut dyn FnMut(&EvaluatedRow),
) -> Result<Evaluation, TrainingError> {
    let _guard = tch::no_grad_guard();
    let start = Instant::now();
    let table = match (options.by_ctc, learned.adapter.ctc_head()) {
        (false, _) => None,
        (true, Some(head)) => Some((
            head,
            CtcTable::new(head, &networks.speech_llm.llm().embedding_table())?,
        )),
        (true, None) => {
            return Err(TrainingError::Settings {
                problem: "this adapter has no CTC head to read".into(),
            });
        }
    };
    let mut order: Vec<usize> = (0..samples.len()).collect();
    order.sort_by(|a, b| {
        samples[*a]
            .example
            .seconds
            .total_cmp(&samples[*b].example.seconds)
    });
    let mut found: Vec<Option<EvaluatedRow>> = vec![None; samples.len()];
    let mut evaluation = Evaluation::default();
    for chunk in order.chunks(options.batch_rows.max(1)) {
        control.wait();
        if control.is_stopped() {
            break;
        }
        let mut rows = Vec::with_capacity(chunk.len());
        let mut clips = Vec::with_capacity(chunk.len());
        for index in chunk.iter().copied() {
            match samples[index].example.audio.load() {
                Ok(clip)
                    if networks
                        .encoder
                        .info()
                        .max_samples
                        .is_some_and(|max| clip.len() > max) =>
                {
                    let id = &samples[index].example.id;
                    evaluation.unreadable.push(format!(
                        "{id}: has {} samples, the encoder takes fewer",
                        clip.len()
                    ));
                }
                Ok(clip) => {
                    rows.push(index);
                    clips.push(clip);
                }
                Err(reason) => evaluation
                    .unreadable
                    .push(format!("{}: {reason}", samples[index].example.id)),
            }
        }
        if rows.is_empty() {
            continue;
        }
        let clips: Vec<&[f32]> = clips.iter().map(Vec::as_slice).collect();
        let hidden = networks.encoder.hidden_states(&clips)?;
        let features = learned.adapter.mix(&hidden)?;
        let adapted = learned.adapter.forward(&features, &hidden.lengths)?;
        let answers: Vec<(String, Option<f32>, bool)> = match &table {
            Some((head, table)) => table
                .read(head, &adapted)?
                .iter()
                .map(|ids| {
                    Ok((
                        networks.speech_llm.tokenizer().decode(ids)?.trim().to_owned(),
                        None,
                        true,
                    ))
                })
                .collect::<Result<_, TrainingError>>()?,
            None => {
                let instructions: Vec<&str> = rows
                    .iter()
                    .map(|row| samples[*row].instructions[0].as_str())
                    .collect();
                let prompts = networks.speech_llm.prompts_around(
                    &adapted.positions,
                    &adapted.lengths,
                    &instructions,
                )?;
                networks
                    .speech_llm
                    .greedy(
                        &prompts,
                        options.new_tokens_max,
                        options.batch_rows,
                        learned.lora.as_ref(),
                    )?
                    .into_iter()
                    .map(|answer| {
                        let decoded = answer.decoded;
                        let score = (!decoded.log_probs.is_empty()).then(|| decoded.score() as f32);
                        (answer.text, score, decoded.ended)
                    })
                    .collect()
            }
        };
        for ((index, clip), (hypothesis, score, finished)) in rows.into_iter().zip(clips).zip(answers) {
            let example = &samples[index].example;
            let errors = word_errors(&plain(&example.target), &plain(&hypothesis));
            #[expect(clippy::cast_precision_loss, reason = "a sample count")]
            let seconds = clip.len() as f64 / 16_000.0;
            let row = EvaluatedRow {
                id: example.id.clone(),
                task: example.task.clone(),
                domain: example.domain.clone(),
                seconds,
                reference: example.target.clone(),
                hypothesis,
                score,
                finished,
                errors: errors.errors(),
                words: errors.words,
            };
            on_row(&row);
            evaluation.audio_seconds += seconds;
            evaluation.errors += errors;
            let group = example.domain.clone().unwrap_or_else(|| example.task.clone());
            *evaluation.by_domain.entry(group).or_default() += errors;
            found[index] = Some(row);
        }
    }
    evaluation.rows = found.into_iter().flatten().collect();
    evaluation.seconds = start.elapsed().as_secs_f64();
    Ok(evaluation)
}

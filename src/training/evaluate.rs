//! Evaluation: questions about labelled recordings, answered in batches; and, for validation, word error rates.
//!
//! Each recording is read and encoded once, however many questions are asked about it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::TrainingError;
use super::control::Control;
use super::ctc::CtcTable;
use super::example::Example;
use super::networks::Networks;
use super::prepare::Sample;
use crate::models::decoding::{Constraint, DecodeOptions, Prompt};
use crate::models::speech_llm::{Learned, SpeechLlm, SpeechLlmError};
use crate::nn::lora::LoraSet;
use crate::scoring::{EditErrors, word_errors};
use crate::text::AnswerShape;
use crate::text::normalize::plain;

/// How to evaluate.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluateOptions {
    /// Recordings of a batch, and answers written side by side.
    pub batch_rows: usize,
    /// How answers are generated.
    pub decoding: DecodeOptions,
    /// Reads the CTC head instead of asking the language model.
    pub by_ctc: bool,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        Self {
            batch_rows: 16,
            decoding: DecodeOptions::greedy(64),
            by_ctc: false,
        }
    }
}

/// One question: what is wished, and what the answer may look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// What to do with what comes before it.
    pub instruction: String,
    /// What the answer is held to.
    pub shape: AnswerShape,
}

impl Ask {
    /// A question with a free answer.
    pub fn free(instruction: impl Into<String>) -> Self {
        Self {
            instruction: instruction.into(),
            shape: AnswerShape::free(),
        }
    }
}

/// An answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Reply {
    /// Its text, white space around it trimmed.
    pub text: String,
    /// Mean token log-probability; absent for an empty answer or a CTC reading.
    pub score: Option<f32>,
    /// Whether it ended by itself.
    pub finished: bool,
}

/// What answering recordings took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heard {
    /// Recordings that could not be read: which (by index) and why.
    pub unreadable: Vec<(usize, String)>,
    /// Audio that was read, seconds, each recording once.
    pub audio_seconds: f64,
}

/// Answers the questions about each recording, in batches of similar length; `on_reply` sees recording, question and
/// reply (or why there is none) as they come. Stops early, with what there is, when `control` is stopped.
///
/// # Errors
/// [`TrainingError`] when a network fails, or `by_ctc` is asked of an adapter without CTC head.
pub fn answer_recordings(
    networks: &Networks,
    learned: &Learned,
    recordings: &[(&Example, Vec<Ask>)],
    options: &EvaluateOptions,
    control: &Control,
    on_reply: &mut dyn FnMut(usize, usize, Result<Reply, String>),
) -> Result<Heard, TrainingError> {
    let _guard = tch::no_grad_guard();
    let llm = &networks.speech_llm;
    let table = match (options.by_ctc, learned.adapter.ctc_head()) {
        (false, _) => None,
        (true, Some(head)) => Some((head, CtcTable::new(head, &llm.llm().embedding_table())?)),
        (true, None) => {
            return Err(TrainingError::Settings {
                problem: "this adapter has no CTC head to read".into(),
            });
        }
    };
    let mut order: Vec<usize> = (0..recordings.len())
        .filter(|at| !recordings[*at].1.is_empty())
        .collect();
    order.sort_by(|a, b| recordings[*a].0.seconds.total_cmp(&recordings[*b].0.seconds));
    let longest = networks.encoder.info().max_samples.unwrap_or(usize::MAX);
    let mut heard = Heard::default();
    let mut shapes = Shapes::new();
    for chunk in order.chunks(options.batch_rows.max(1)) {
        control.wait();
        if control.is_stopped() {
            break;
        }
        let (mut rows, mut clips) = (Vec::with_capacity(chunk.len()), Vec::with_capacity(chunk.len()));
        for at in chunk.iter().copied() {
            match recordings[at].0.audio.load() {
                Ok(clip) if clip.len() > longest => {
                    let reason = format!("has {} samples, the encoder takes at most {longest}", clip.len());
                    heard.unreadable.push((at, reason));
                }
                Ok(clip) => {
                    #[expect(clippy::cast_precision_loss, reason = "a sample count")]
                    let seconds = clip.len() as f64 / 16_000.0;
                    heard.audio_seconds += seconds;
                    rows.push(at);
                    clips.push(clip);
                }
                Err(reason) => heard.unreadable.push((at, reason)),
            }
        }
        if rows.is_empty() {
            continue;
        }
        let clips: Vec<&[f32]> = clips.iter().map(Vec::as_slice).collect();
        let hidden = networks.encoder.hidden_states(&clips)?;
        let features = learned.adapter.mix(&hidden)?;
        let adapted = learned.adapter.forward(&features, &hidden.lengths)?;
        if let Some((head, table)) = &table {
            for (at, ids) in rows.iter().zip(table.read(head, &adapted)?) {
                let text = llm.tokenizer().decode(&ids)?.trim().to_owned();
                for ask in 0..recordings[*at].1.len() {
                    let text = text.clone();
                    let (score, finished) = (None, true);
                    on_reply(
                        *at,
                        ask,
                        Ok(Reply {
                            text,
                            score,
                            finished,
                        }),
                    );
                }
            }
            continue;
        }
        // Question by question, so that what else is asked does not change a batch: in bf16 that shows in the answers.
        let questions = rows.iter().map(|at| recordings[*at].1.len()).max().unwrap_or(0);
        for number in 0..questions {
            let (mut asked, mut asks, mut prompts) = (Vec::new(), Vec::new(), Vec::new());
            for (row, at) in rows.iter().enumerate() {
                let Some(ask) = recordings[*at].1.get(number) else {
                    continue;
                };
                #[expect(clippy::cast_possible_wrap, reason = "a row of a batch")]
                let positions = adapted.positions.f_narrow(0, row as i64, 1)?; // [1, P, H]
                let length = &adapted.lengths[row..=row];
                prompts.append(&mut llm.prompts_around(&positions, length, &[&ask.instruction])?);
                asked.push(*at);
                asks.push(ask);
            }
            let replies = decode(llm, &mut shapes, prompts, &asks, options, learned.lora.as_ref())?;
            for (at, reply) in asked.into_iter().zip(replies) {
                on_reply(at, number, reply);
            }
        }
    }
    Ok(heard)
}

/// Answers questions about texts that stand where audio would: the language model as published, without adapter.
///
/// # Errors
/// [`TrainingError`] when a network fails.
pub fn answer_texts(
    llm: &SpeechLlm,
    texts: &[(&str, Ask)],
    options: &EvaluateOptions,
    control: &Control,
) -> Result<Vec<Result<Reply, String>>, TrainingError> {
    let _guard = tch::no_grad_guard();
    let mut replies = Vec::with_capacity(texts.len());
    let mut shapes = Shapes::new();
    for chunk in texts.chunks(options.batch_rows.max(1)) {
        control.wait();
        if control.is_stopped() {
            break;
        }
        let mut prompts = Vec::with_capacity(chunk.len());
        for (text, ask) in chunk {
            let embedded = llm.llm().embed(&llm.tokenizer().encode_plain(text)?)?; // [P, H]
            let length = [embedded.size()[0]];
            prompts.append(&mut llm.prompts_around(
                &embedded.f_unsqueeze(0)?,
                &length,
                &[&ask.instruction],
            )?);
        }
        let asks: Vec<&Ask> = chunk.iter().map(|(_, ask)| ask).collect();
        replies.append(&mut decode(llm, &mut shapes, prompts, &asks, options, None)?);
    }
    Ok(replies)
}

/// Most shapes kept compiled; a manifest rarely has more lists of labels than that.
const SHAPES_MAX: usize = 64;

/// Constraints by shape: recordings of a task share one.
type Shapes = Vec<(AnswerShape, Option<Arc<Constraint>>)>;

fn constraint(
    llm: &SpeechLlm,
    shapes: &mut Shapes,
    shape: &AnswerShape,
) -> Result<Option<Arc<Constraint>>, SpeechLlmError> {
    if let Some((_, known)) = shapes.iter().find(|(known, _)| known == shape) {
        return Ok(known.clone());
    }
    let made = llm.constraint(shape)?;
    if shapes.len() >= SHAPES_MAX {
        shapes.remove(0);
    }
    shapes.push((shape.clone(), made.clone()));
    Ok(made)
}

/// Answers prompts side by side. A prompt that the model has no room for, or whose answer cannot be held to its shape,
/// gets a reason instead of an answer.
fn decode(
    llm: &SpeechLlm,
    shapes: &mut Shapes,
    prompts: Vec<Tensor>,
    asks: &[&Ask],
    options: &EvaluateOptions,
    lora: Option<&LoraSet>,
) -> Result<Vec<Result<Reply, String>>, TrainingError> {
    const KEY: u64 = 0;
    let loras: Vec<(u64, &LoraSet)> = lora.map(|set| (KEY, set)).into_iter().collect();
    let room = llm.llm().info().max_positions;
    let tokens = i64::try_from(options.decoding.tokens_max).unwrap_or(i64::MAX);
    let (mut fitting, mut refused) = (Vec::new(), Vec::new());
    for (ask, embeds) in asks.iter().zip(prompts) {
        let positions = embeds.size()[0].saturating_add(tokens);
        let held = constraint(llm, shapes, &ask.shape).and_then(|held| {
            if let Some(held) = &held {
                held.check_tokens(options.decoding.tokens_max)?;
            }
            Ok(held)
        });
        refused.push(match (&held, positions > room) {
            (Err(error), _) => Some(error.to_string()),
            (Ok(_), true) => Some(format!(
                "prompt and answer take {positions} positions, the language model has {room}"
            )),
            (Ok(_), false) => None,
        });
        if let (Ok(constraint), true) = (held, positions <= room) {
            fitting.push(Prompt {
                embeds,
                options: options.decoding,
                constraint,
                lora: lora.map(|_| KEY),
            });
        }
    }
    let mut answers = llm
        .decode(fitting, options.batch_rows.max(1), &loras)?
        .into_iter();
    let mut replies = Vec::with_capacity(refused.len());
    for reason in refused {
        replies.push(match reason {
            Some(reason) => Err(reason),
            None => {
                let answer = answers.next().expect("one answer for each prompt that fits");
                let decoded = answer.decoded;
                Ok(Reply {
                    text: answer.text,
                    #[expect(clippy::cast_possible_truncation, reason = "a log-probability")]
                    score: (!decoded.ids.is_empty()).then(|| decoded.score() as f32),
                    finished: decoded.ended,
                })
            }
        });
    }
    Ok(replies)
}

/// One evaluated recording.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EvaluatedRow {
    /// Which recording.
    pub id: String,
    /// Its group.
    pub domain: Option<String>,
    /// What was wanted, as in the manifest.
    pub reference: String,
    /// What was answered.
    pub hypothesis: String,
    /// Mean token log-probability of the answer; absent for an empty answer or a CTC reading.
    pub score: Option<f32>,
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
    pub errors: EditErrors,
    /// Word errors by group (`domain`, or the task where there is none).
    pub by_domain: BTreeMap<String, EditErrors>,
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

/// Asks every sample its first instruction and counts word errors; `on_row` sees each row as it comes.
///
/// # Errors
/// As [`answer_recordings`].
pub fn evaluate(
    networks: &Networks,
    learned: &Learned,
    samples: &[Sample],
    options: &EvaluateOptions,
    control: &Control,
    on_row: &mut dyn FnMut(&EvaluatedRow),
) -> Result<Evaluation, TrainingError> {
    let start = Instant::now();
    let recordings: Vec<(&Example, Vec<Ask>)> = samples
        .iter()
        .map(|sample| (&sample.example, vec![Ask::free(sample.variants.first())]))
        .collect();
    let mut found: Vec<Option<EvaluatedRow>> = vec![None; samples.len()];
    let mut evaluation = Evaluation::default();
    let heard = answer_recordings(
        networks,
        learned,
        &recordings,
        options,
        control,
        &mut |at, _, reply| {
            let example = recordings[at].0;
            let reply = match reply {
                Ok(reply) => reply,
                Err(reason) => return evaluation.unreadable.push(format!("{}: {reason}", example.id)),
            };
            let errors = word_errors(&plain(&example.target), &plain(&reply.text));
            let row = EvaluatedRow {
                id: example.id.clone(),
                domain: example.domain.clone(),
                reference: example.target.clone(),
                hypothesis: reply.text,
                score: reply.score,
                errors: errors.errors(),
                words: errors.length,
            };
            on_row(&row);
            evaluation.errors += errors;
            let group = example.domain.clone().unwrap_or_else(|| example.task.clone());
            *evaluation.by_domain.entry(group).or_default() += errors;
            found[at] = Some(row);
        },
    )?;
    for (at, reason) in heard.unreadable {
        evaluation
            .unreadable
            .push(format!("{}: {reason}", recordings[at].0.id));
    }
    evaluation.rows = found.into_iter().flatten().collect();
    evaluation.audio_seconds = heard.audio_seconds;
    evaluation.seconds = start.elapsed().as_secs_f64();
    Ok(evaluation)
}

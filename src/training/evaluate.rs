//! Evaluation: prompts about labelled recordings, answered by the inference engine; and, for validation and
//! the promotion gate, each task's answers scored by the task's own metric.
//!
//! Each recording is read and encoded once, however many prompts there are about it, and as serving answers
//! it: transcripts of long sound are made window by window, other clips longer than the encoder's window are
//! joined behind the encoder.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::TrainingError;
use super::control::Control;
use super::eval_rows::{Part, Windows, encode};
use super::example::Example;
use super::networks::Networks;
use super::prepare::Sample;
use super::prompt_variants::TRANSCRIPT;
use crate::inference::speech_llm::Learned;
use crate::inference::{EngineConfig, GenerateRequest, InferenceError, Input, Output};
use crate::models::ModelError;
use crate::models::adapter::AdapterSnapshot;
use crate::scoring::Metric;
use crate::text::{JointLayout, OutputGrammar, Spoken, WindowText, join_windows};

/// How to evaluate.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluateOptions {
    /// The engine that answers; recordings are taken up in batches of its slots.
    pub engine: EngineConfig,
    /// Reads the CTC head instead of asking the language model.
    pub by_ctc: bool,
}

/// A prompt about a recording: what to do, and what the answer may look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalPrompt {
    /// What to do with what comes before it.
    pub instruction: String,
    /// What the answer is constrained to.
    pub grammar: OutputGrammar,
    /// The task that it asks for, where it is one alone; see [`GenerateRequest::task`].
    pub task: Option<String>,
    /// What has to be said for its labels; see [`GenerateRequest::spoken`].
    pub spoken: Option<Spoken>,
    /// How the answers of several tasks are laid out.
    pub joint: Option<Arc<JointLayout>>,
}

impl EvalPrompt {
    /// A prompt with a free answer.
    pub fn free(instruction: impl Into<String>) -> Self {
        Self {
            instruction: instruction.into(),
            grammar: OutputGrammar::free(),
            task: None,
            spoken: None,
            joint: None,
        }
    }

    /// A prompt for a transcript.
    pub fn transcript(instruction: impl Into<String>) -> Self {
        Self {
            task: Some(TRANSCRIPT.to_owned()),
            ..Self::free(instruction)
        }
    }

    fn request(&self, input: Input) -> GenerateRequest {
        GenerateRequest {
            input,
            instruction: self.instruction.clone(),
            grammar: Some(self.grammar.clone()).filter(|grammar| !grammar.is_free()),
            tokens_max: None,
            task: self.task.clone(),
            spoken: self.spoken.clone(),
            joint: self.joint.clone(),
        }
    }
}

/// An answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EvalAnswer {
    /// Its text, white space around it trimmed.
    pub text: String,
    /// Mean token log-probability; absent for an empty answer or a CTC reading.
    pub score: Option<f32>,
    /// How well a transcript agrees with what the CTC head reads, 0 to 1; absent where the answer holds none,
    /// and without such a head.
    pub agreement: Option<f64>,
    /// How much speaks for a transcript ([`Generation::support`](crate::inference::Generation::support));
    /// absent as `agreement`.
    pub support: Option<f64>,
    /// Whether it ended by itself.
    pub finished: bool,
}

impl From<Output> for EvalAnswer {
    fn from(output: Output) -> Self {
        let Output { text, generation } = output;
        Self {
            text,
            #[expect(clippy::cast_possible_truncation, reason = "a log-probability")]
            score: (!generation.ids.is_empty()).then(|| generation.score() as f32),
            agreement: generation.agreement,
            support: generation.support(),
            finished: generation.ended,
        }
    }
}

/// What answering recordings took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvalSummary {
    /// Recordings that could not be read or encoded: which (by index) and why.
    pub unreadable: Vec<(usize, String)>,
    /// Audio that was read, seconds, each recording once.
    pub audio_seconds: f64,
}

/// Answers the prompts about each recording, in batches of similar length; `on_answer` sees recording, prompt
/// and answer (or why there is none) as they come. Stops early, with what there is, when `control` is
/// stopped.
///
/// # Errors
/// [`TrainingError`] when the adapter does not fit the networks, or `by_ctc` is asked of one without CTC
/// head.
pub fn answer_recordings(
    networks: &Networks,
    adapter: &AdapterSnapshot,
    recordings: &[(&Example, Vec<EvalPrompt>)],
    options: &EvaluateOptions,
    control: &Control,
    on_answer: &mut dyn FnMut(usize, usize, Result<EvalAnswer, String>),
) -> Result<EvalSummary, TrainingError> {
    let _guard = tch::no_grad_guard();
    let mut engine = networks.engine(&options.engine);
    let reader = options
        .by_ctc
        .then(|| CtcReader::new(networks, adapter))
        .transpose()?;
    engine.generator().adapter(adapter)?; // one that does not fit is the run's fault, not each recording's
    let windows = options.engine.by_window.as_ref().map(Windows::new);
    let mut order: Vec<usize> = (0..recordings.len())
        .filter(|at| !recordings[*at].1.is_empty())
        .collect();
    order.sort_by(|a, b| recordings[*a].0.seconds.total_cmp(&recordings[*b].0.seconds));
    let mut summary = EvalSummary::default();
    for chunk in order.chunks(options.engine.slots.max(1)) {
        control.wait();
        if control.is_stopped() {
            break;
        }
        let chunk: Vec<(usize, &Example, bool)> = (chunk.iter())
            .map(|at| (*at, recordings[*at].0, are_transcripts(&recordings[*at].1)))
            .collect();
        let encoded = encode(&engine, windows.as_ref(), adapter, &chunk);
        summary.audio_seconds += encoded.audio_seconds;
        summary.unreadable.extend(encoded.unreadable);
        let rows = encoded.rows;
        if let Some(reader) = &reader {
            for row in &rows {
                let answer = reader.read(networks, &row.parts)?;
                for number in 0..recordings[row.at].1.len() {
                    on_answer(row.at, number, Ok(answer.clone()));
                }
            }
            continue;
        }
        // Prompt by prompt, so that what else is asked does not change a batch: in bf16 that shows in the
        // answers.
        let prompts = rows
            .iter()
            .map(|row| recordings[row.at].1.len())
            .max()
            .unwrap_or(0);
        for number in 0..prompts {
            let (mut asked, mut requests) = (Vec::new(), Vec::new());
            for row in &rows {
                let Some(prompt) = recordings[row.at].1.get(number) else {
                    continue;
                };
                asked.push(row);
                for part in &row.parts {
                    requests.push(prompt.request(Input::Features {
                        features: part.features.shallow_clone(),
                        adapter: adapter.clone(),
                    }));
                }
            }
            let mut outputs = engine.generate(requests).into_iter();
            for row in asked {
                on_answer(row.at, number, answer_of(row.join(&mut outputs)));
            }
        }
    }
    Ok(summary)
}

/// Whether what is said is asked for, in any words, and nothing else.
fn are_transcripts(prompts: &[EvalPrompt]) -> bool {
    prompts
        .iter()
        .all(|prompt| prompt.task.as_deref() == Some(TRANSCRIPT) && prompt.grammar.is_free())
}

fn answer_of(output: Result<Output, InferenceError>) -> Result<EvalAnswer, String> {
    output.map(EvalAnswer::from).map_err(|error| error.to_string())
}

/// Transcripts by an adapter's CTC head.
struct CtcReader {
    learned: Learned,
}

impl CtcReader {
    fn new(networks: &Networks, adapter: &AdapterSnapshot) -> Result<Self, TrainingError> {
        let llm = networks.speech_llm.llm();
        let learned = Learned::frozen(adapter, llm, networks.placement.device)?;
        if learned.adapter.ctc_head().is_none() {
            return Err(TrainingError::Settings {
                problem: "this adapter has no CTC head to read".into(),
            });
        }
        Ok(Self { learned })
    }

    /// What the head reads in a recording, of which the parts are given.
    fn read(&self, networks: &Networks, parts: &[Part]) -> Result<EvalAnswer, TrainingError> {
        let head = self.learned.adapter.ctc_head().expect("`new` found one");
        let mut texts = Vec::with_capacity(parts.len());
        for part in parts {
            let length = [part.features.frames.size()[0]];
            let frames = part.features.frames.f_unsqueeze(0).map_err(ModelError::from)?; // [1, T, D]
            let adapted = self.learned.adapter.forward(&frames, &length)?;
            let ids = head.read(&adapted)?.swap_remove(0);
            texts.push(networks.speech_llm.tokenizer().decode(&ids)?.trim().to_owned());
        }
        Ok(EvalAnswer {
            text: join_windows(texts.iter().zip(parts).map(|(text, part)| WindowText {
                text,
                overlaps: part.overlaps,
            })),
            score: None,
            agreement: None,
            support: None,
            finished: true,
        })
    }
}

/// Answers prompts about texts that stand where audio would: the language model with the low-rank parts of
/// the adapter where one is given, else as published.
pub fn answer_texts(
    networks: &Networks,
    texts: &[(&str, Option<&AdapterSnapshot>, EvalPrompt)],
    options: &EvaluateOptions,
    control: &Control,
) -> Vec<Result<EvalAnswer, String>> {
    let mut engine = networks.engine(&options.engine);
    let mut answers = Vec::with_capacity(texts.len());
    for chunk in texts.chunks(options.engine.slots.max(1)) {
        control.wait();
        if control.is_stopped() {
            break;
        }
        let requests = (chunk.iter())
            .map(|(text, adapter, prompt)| {
                prompt.request(Input::Text {
                    text: (*text).to_owned(),
                    adapter: adapter.cloned(),
                })
            })
            .collect();
        answers.extend(engine.generate(requests).into_iter().map(answer_of));
    }
    answers
}

/// One evaluated recording.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EvaluatedRow {
    /// Which recording.
    pub id: String,
    /// Its task.
    pub task: String,
    /// What was wanted, as in the manifest.
    pub reference: String,
    /// What was answered.
    pub hypothesis: String,
    /// Mean token log-probability of the answer; absent for an empty answer or a CTC reading.
    pub score: Option<f32>,
}

/// How well the answers of a task are.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TaskScore {
    /// The task.
    pub task: String,
    /// Its own metric.
    pub metric: Metric,
    /// The score, 0 to 100 (error rates may exceed 100).
    pub score: f64,
    /// Answers behind it.
    pub answers: usize,
}

impl TaskScore {
    /// The score as an error from 0 (nothing is wrong) to 1, above it for error rates beyond 100: lower is
    /// better.
    pub fn error(&self) -> f64 {
        let share = self.score / 100.0;
        if self.metric.lower_is_better() {
            share
        } else {
            1.0 - share
        }
    }
}

/// An evaluation's rows and scores.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    /// Every recording with an answer, in the order given.
    pub rows: Vec<EvaluatedRow>,
    /// A score for each task that has answers, in order of name.
    pub scores: Vec<TaskScore>,
    /// Recordings without an answer: which and why. They are in no score.
    pub unreadable: Vec<String>,
    /// Audio evaluated, seconds.
    pub audio_seconds: f64,
    /// Time taken, seconds.
    pub seconds: f64,
}

impl Evaluation {
    /// The score of a task.
    pub fn score_of(&self, task: &str) -> Option<&TaskScore> {
        self.scores.iter().find(|score| score.task == task)
    }
}

/// Asks every sample its first instruction and scores each task by its own metric; `on_row` sees each row as
/// it comes.
///
/// # Errors
/// As [`answer_recordings`].
pub fn evaluate(
    networks: &Networks,
    adapter: &AdapterSnapshot,
    samples: &[Sample],
    options: &EvaluateOptions,
    control: &Control,
    on_row: &mut dyn FnMut(&EvaluatedRow),
) -> Result<Evaluation, TrainingError> {
    let start = Instant::now();
    let recordings: Vec<(&Example, Vec<EvalPrompt>)> = samples
        .iter()
        .map(|sample| {
            let prompt = EvalPrompt {
                instruction: sample.variants.first(),
                grammar: sample.grammar.clone(),
                task: Some(sample.example.task.clone()),
                spoken: sample.spoken.clone(),
                joint: sample.variants.layout().cloned(),
            };
            (&sample.example, vec![prompt])
        })
        .collect();
    let mut found: Vec<Option<EvaluatedRow>> = vec![None; samples.len()];
    let mut evaluation = Evaluation::default();
    let summary = answer_recordings(
        networks,
        adapter,
        &recordings,
        options,
        control,
        &mut |at, _, answer| {
            let example = recordings[at].0;
            let answer = match answer {
                Ok(answer) => answer,
                Err(reason) => return evaluation.unreadable.push(format!("{}: {reason}", example.id)),
            };
            let row = EvaluatedRow {
                id: example.id.clone(),
                task: example.task.clone(),
                reference: example.target.clone(),
                hypothesis: answer.text,
                score: answer.score,
            };
            on_row(&row);
            found[at] = Some(row);
        },
    )?;
    for (at, reason) in summary.unreadable {
        evaluation
            .unreadable
            .push(format!("{}: {reason}", recordings[at].0.id));
    }
    evaluation.scores = scores(samples, &found);
    evaluation.rows = found.into_iter().flatten().collect();
    evaluation.audio_seconds = summary.audio_seconds;
    evaluation.seconds = start.elapsed().as_secs_f64();
    Ok(evaluation)
}

/// The score of each task; answers to several tasks at once are taken apart and count for each.
pub(super) fn scores(samples: &[Sample], rows: &[Option<EvaluatedRow>]) -> Vec<TaskScore> {
    let mut pairs: BTreeMap<(&str, Metric), Vec<(String, String)>> = BTreeMap::new();
    for (sample, row) in samples.iter().zip(rows) {
        let Some(row) = row else { continue };
        match sample.variants.layout() {
            None => {
                let [(task, metric), ..] = sample.metrics.as_slice() else {
                    continue;
                };
                let pair = (row.reference.clone(), row.hypothesis.clone());
                pairs.entry((task, *metric)).or_default().push(pair);
            }
            Some(layout) => {
                let (mut wanted, mut answered) =
                    (layout.by_task(&row.reference), layout.by_task(&row.hypothesis));
                for (task, metric) in &sample.metrics {
                    let pair = (
                        wanted.remove(task).unwrap_or_default(),
                        answered.remove(task).unwrap_or_default(),
                    );
                    pairs.entry((task, *metric)).or_default().push(pair);
                }
            }
        }
    }
    let scored = pairs.into_iter().filter_map(|((task, metric), pairs)| {
        let borrowed: Vec<(&str, &str)> = (pairs.iter())
            .map(|(reference, hypothesis)| (reference.as_str(), hypothesis.as_str()))
            .collect();
        let nothing_wrong = match metric {
            // No slot is wanted and none is answered. Without a score, the task would not be judged at all.
            Metric::SluF1 | Metric::SdF1 => Some(100.0),
            _ => None,
        };
        Some(TaskScore {
            task: task.to_owned(),
            metric,
            score: metric.tally(&borrowed).score().or(nothing_wrong)?,
            answers: pairs.len(),
        })
    });
    scored.collect()
}

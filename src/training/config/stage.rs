//! `[[stage]]`: a stage of the curriculum.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::range::within;
use crate::text::tasks::TASK_SEPARATOR;

/// What a stage trains, and by which loss.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageKind {
    /// CTC against the language model's own embedding table: adapter and CTC head; the language model does
    /// not run.
    CtcAlign,
    /// The summary of a clip against the labels of `summary_tasks`, and nothing else: the language model and
    /// the frames' adapter do not run.
    SummaryAlign,
    /// The embedding of what is said against the labels of `sentence_tasks`, and nothing else: the language
    /// model does not run, the frames' adapter only forward. Belongs behind the stages in which that learns.
    SentenceAlign,
    /// The paper's stage 1: next-token loss on transcription; adapter only, no LoRA in the model.
    Asr,
    /// The paper's stage 2a: as stage 1, with freshly made LoRA learning too.
    LoraWarmup,
    /// The paper's stage 2b: all tasks; adapter and LoRA learn.
    Multitask,
}

impl StageKind {
    /// Its name in settings and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::CtcAlign => "ctc_align",
            Self::SummaryAlign => "summary_align",
            Self::SentenceAlign => "sentence_align",
            Self::Asr => "asr",
            Self::LoraWarmup => "lora_warmup",
            Self::Multitask => "multitask",
        }
    }

    /// Whether it aligns an embedding of the whole clip with labels, and nothing else.
    pub fn aligns_labels(self) -> bool {
        matches!(self, Self::SummaryAlign | Self::SentenceAlign)
    }

    /// Whether LoRA is in the model.
    pub fn has_lora(self) -> bool {
        matches!(self, Self::LoraWarmup | Self::Multitask)
    }
}

/// Shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Stays.
    Constant,
    /// Falls in a straight line to `final_rate_fraction`.
    #[default]
    Linear,
    /// Falls along half a cosine to `final_rate_fraction`.
    Cosine,
    /// The original transformer schedule: falls with the root of the steps, `sqrt(warmup_steps / step)`, and
    /// never ends.
    Transformer,
}

/// One `[[stage]]` of the curriculum.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// What is trained.
    pub kind: StageKind,
    /// Optimiser steps at most; this or `minutes_max` or `patience` must be given.
    #[serde(default)]
    pub steps_max: Option<u64>,
    /// Training time at most, minutes, validation not counted.
    #[serde(default)]
    pub minutes_max: Option<f64>,
    /// Validations without a better loss after which the stage ends; absent: never.
    #[serde(default)]
    pub patience: Option<u32>,
    /// Rows of a batch at most.
    #[serde(default = "StageConfig::default_batch_rows")]
    pub batch_rows: usize,
    /// Audio of a batch at most, padding included, seconds.
    #[serde(default = "StageConfig::default_batch_seconds_max")]
    pub batch_seconds_max: f64,
    /// Batches whose gradients are averaged into one step.
    #[serde(default = "StageConfig::default_accumulate")]
    pub accumulate: u64,
    /// Learning rate of the downsampler after warm-up.
    pub learning_rate: f64,
    /// Factor on it for the layer mix and the CTC scale.
    #[serde(default = "StageConfig::default_scalar_rate_factor")]
    pub scalar_rate_factor: f64,
    /// Factor on it for what no alignment has readied: LoRA, and the summary of a clip.
    #[serde(default = "StageConfig::default_lora_rate_factor")]
    pub lora_rate_factor: f64,
    /// Steps of linear warm-up.
    #[serde(default)]
    pub warmup_steps: u64,
    /// What follows warm-up.
    #[serde(default)]
    pub decay: Decay,
    /// Where the decay ends, as a fraction of `learning_rate`.
    #[serde(default = "StageConfig::default_final_rate_fraction")]
    pub final_rate_fraction: f64,
    /// Largest global gradient norm.
    #[serde(default = "StageConfig::default_clip_norm")]
    pub clip_norm: f64,
    /// AdamW's first decay.
    #[serde(default = "StageConfig::default_beta1")]
    pub beta1: f64,
    /// AdamW's second decay.
    #[serde(default = "StageConfig::default_beta2")]
    pub beta2: f64,
    /// AdamW's weight decay.
    #[serde(default = "StageConfig::default_weight_decay")]
    pub weight_decay: f64,
    /// Weight of the CTC loss beside the next-token loss; 0: none. Means nothing in a `ctc_align` stage.
    #[serde(default)]
    pub ctc_weight: f64,
    /// Tasks whose right label the summary of a clip is aligned with, by a loss of its own
    /// ([`label_loss`](crate::training::label_loss)): all that a `summary_align` stage learns, beside the
    /// next-token loss in the others, where a summary that was aligned before is frozen if they name none.
    /// Means nothing in a `ctc_align` stage, which refuses it.
    #[serde(default)]
    pub summary_tasks: Vec<String>,
    /// Tasks whose right label the embedding of what is said is aligned with, in a `sentence_align` stage.
    #[serde(default)]
    pub sentence_tasks: Vec<String>,
    /// Share of a clip's segments that are left out at random in each step of a `sentence_align` stage.
    #[serde(default = "StageConfig::default_segment_dropout")]
    pub segment_dropout: f64,
    /// Share of the inner values of the adapter's convolutional layers that are left out at random in each
    /// step.
    #[serde(default)]
    pub dropout: f64,
    /// In a `summary_align` stage: so many units of the summary's inner layer learn, and nothing that changes
    /// the answers of tasks that the summary was aligned with before
    /// ([`summary_units`](crate::training::summary_units)); absent: all of the summary learns.
    #[serde(default)]
    pub summary_units: Option<usize>,
    /// Whether training audio is augmented as `[augment]` says.
    #[serde(default = "StageConfig::default_augment")]
    pub augment: bool,
    /// Whether clips are encoded once and their features kept in `[feature_cache]`. The layer mix does not
    /// learn in such a stage: it stays as the stage before or the adapter to start from left it (fresh: the
    /// mean of the layers).
    #[serde(default)]
    pub cached: bool,
    /// Whether the adapter's and the CTC head's products are computed in bf16 where the frozen networks are;
    /// what learns, sums and losses stay f32. About 1.8 times as fast in a `ctc_align` stage on cached
    /// features.
    #[serde(default = "StageConfig::default_mixed_precision")]
    pub mixed_precision: bool,
    /// Tasks taken from the manifests; absent: `asr` alone, all tasks in a `multitask` stage, `summary_tasks`
    /// in a `summary_align` stage, `sentence_tasks` in a `sentence_align` stage.
    #[serde(default)]
    pub tasks: Option<Vec<String>>,
    /// How often a task's samples are seen per epoch; 1 where absent, 0.5 takes each sample every second
    /// epoch on average.
    #[serde(default)]
    pub weights: BTreeMap<String, f64>,
}

impl StageConfig {
    /// A stage of `kind` at `learning_rate`, everything else at its default; `steps_max` must still be given.
    pub fn new(kind: StageKind, learning_rate: f64) -> Self {
        Self {
            kind,
            steps_max: None,
            minutes_max: None,
            patience: None,
            batch_rows: Self::default_batch_rows(),
            batch_seconds_max: Self::default_batch_seconds_max(),
            accumulate: Self::default_accumulate(),
            learning_rate,
            scalar_rate_factor: Self::default_scalar_rate_factor(),
            lora_rate_factor: Self::default_lora_rate_factor(),
            warmup_steps: 0,
            decay: Decay::default(),
            final_rate_fraction: Self::default_final_rate_fraction(),
            clip_norm: Self::default_clip_norm(),
            beta1: Self::default_beta1(),
            beta2: Self::default_beta2(),
            weight_decay: Self::default_weight_decay(),
            ctc_weight: 0.0,
            summary_tasks: Vec::new(),
            sentence_tasks: Vec::new(),
            segment_dropout: Self::default_segment_dropout(),
            dropout: 0.0,
            summary_units: None,
            augment: Self::default_augment(),
            cached: false,
            mixed_precision: Self::default_mixed_precision(),
            tasks: None,
            weights: BTreeMap::new(),
        }
    }

    fn default_mixed_precision() -> bool {
        true
    }
    fn default_batch_rows() -> usize {
        16
    }
    fn default_batch_seconds_max() -> f64 {
        160.0
    }
    fn default_accumulate() -> u64 {
        1
    }
    fn default_scalar_rate_factor() -> f64 {
        10.0
    }
    fn default_lora_rate_factor() -> f64 {
        1.0
    }
    fn default_final_rate_fraction() -> f64 {
        0.05
    }
    fn default_clip_norm() -> f64 {
        1.0
    }
    fn default_beta1() -> f64 {
        0.9
    }
    fn default_beta2() -> f64 {
        0.98
    }
    fn default_weight_decay() -> f64 {
        0.01
    }
    fn default_segment_dropout() -> f64 {
        0.1
    }
    fn default_augment() -> bool {
        true
    }

    /// Whether samples of `task` belong to this stage. A compound one (`asr,intent`) does when all its tasks
    /// do.
    pub fn takes(&self, task: &str) -> bool {
        match (&self.tasks, self.kind) {
            (Some(tasks), _) => {
                let taken = |name: &str| tasks.iter().any(|taken| taken == name);
                taken(task) || task.split(TASK_SEPARATOR).all(taken)
            }
            (None, StageKind::Multitask) => true,
            (None, kind) if kind.aligns_labels() => self.aligned_tasks().iter().any(|taken| taken == task),
            (None, _) => task == "asr",
        }
    }

    /// Tasks whose right label an embedding of the clip is aligned with.
    pub fn aligned_tasks(&self) -> &[String] {
        match self.kind {
            StageKind::SentenceAlign => &self.sentence_tasks,
            _ => &self.summary_tasks,
        }
    }

    pub(super) fn validate(&self, at: usize) -> Result<(), String> {
        let key = |name: &str| format!("`stage[{at}].{name}` ({})", self.kind.name());
        if self.steps_max.is_none() && self.minutes_max.is_none() && self.patience.is_none() {
            return Err(format!(
                "{} is absent, and so are `minutes_max` and `patience`: the stage would never end",
                key("steps_max")
            ));
        }
        within(
            &key("steps_max"),
            self.steps_max.map_or(1.0, |steps| steps as f64),
            1.0,
            1e9,
        )?;
        within(&key("minutes_max"), self.minutes_max.unwrap_or(1.0), 1e-3, 1e6)?;
        within(&key("batch_rows"), self.batch_rows as f64, 1.0, 65_536.0)?;
        within(&key("batch_seconds_max"), self.batch_seconds_max, 1.0, 1e6)?;
        within(&key("accumulate"), self.accumulate as f64, 1.0, 1e5)?;
        within(&key("learning_rate"), self.learning_rate, 1e-9, 1.0)?;
        within(&key("scalar_rate_factor"), self.scalar_rate_factor, 0.0, 1e4)?;
        within(&key("lora_rate_factor"), self.lora_rate_factor, 0.0, 1e4)?;
        within(&key("final_rate_fraction"), self.final_rate_fraction, 0.0, 1.0)?;
        within(&key("clip_norm"), self.clip_norm, 1e-6, 1e9)?;
        within(&key("beta1"), self.beta1, 0.0, 0.999_999)?;
        within(&key("beta2"), self.beta2, 0.0, 0.999_999)?;
        within(&key("weight_decay"), self.weight_decay, 0.0, 1.0)?;
        within(&key("ctc_weight"), self.ctc_weight, 0.0, 100.0)?;
        within(&key("segment_dropout"), self.segment_dropout, 0.0, 0.9)?;
        within(&key("dropout"), self.dropout, 0.0, 0.9)?;
        let summary_serves = !matches!(self.kind, StageKind::CtcAlign | StageKind::SentenceAlign);
        let sentence_serves = self.kind == StageKind::SentenceAlign;
        for (name, tasks, serves, stage) in [
            (
                "summary_tasks",
                &self.summary_tasks,
                summary_serves,
                StageKind::SummaryAlign,
            ),
            (
                "sentence_tasks",
                &self.sentence_tasks,
                sentence_serves,
                StageKind::SentenceAlign,
            ),
        ] {
            if self.kind == stage && tasks.is_empty() {
                return Err(format!("{} names no task to align with", key(name)));
            }
            if !serves && !tasks.is_empty() {
                return Err(format!(
                    "{} means nothing here: it belongs to a `{}` stage",
                    key(name),
                    stage.name()
                ));
            }
        }
        if let Some(units) = self.summary_units {
            if self.kind != StageKind::SummaryAlign {
                return Err(format!(
                    "{} means nothing here, only in a `summary_align` stage",
                    key("summary_units")
                ));
            }
            within(&key("summary_units"), units as f64, 1.0, 65_536.0)?;
        }
        for (task, weight) in &self.weights {
            within(&key(&format!("weights.{task}")), *weight, 0.0, 1000.0)?;
        }
        Ok(())
    }
}

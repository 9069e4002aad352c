//! A training run as data: models, manifests, augmentation, and the curriculum's stages (`train --config
//! FILE`).
//!
//! Relative paths are relative to the folder in which the program runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::models::config::{AdapterSettings, ModelConfig};
use crate::nn::lora::LoraConfig;
use crate::text::tasks::TASK_SEPARATOR;

/// A setting is wrong, or its file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TrainingConfigError {
    /// The file cannot be read.
    #[error("cannot read the training settings `{}`: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be: syntax, a misspelt key, a wrong type.
    #[error("training settings `{}`: {source}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Line, column and key.
        source: Box<toml::de::Error>,
    },
    /// A value is out of its range, or does not go with another.
    #[error("training settings: {problem}")]
    Invalid {
        /// Key, value, and what was expected.
        problem: String,
    },
}

/// Everything about one training run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingConfig {
    /// Name of the run: letters, digits, `-`, `_`, `.`.
    pub run: String,
    /// Folder of the run: log, plot, checkpoints.
    pub output: PathBuf,
    /// Seed of every random choice: order, prompts, augmentation, initial values.
    pub seed: u64,
    /// An adapter file or version folder to start from instead of fresh values; empty: fresh.
    pub start_from: Option<PathBuf>,
    /// Wall-clock limit of the whole run, minutes; absent: none. The stage at hand is cut short, the best is
    /// kept.
    pub minutes_max: Option<f64>,
    /// The frozen networks.
    pub model: ModelConfig,
    /// The learnable joint.
    pub adapter: AdapterSettings,
    /// LoRA of the stages that have one.
    pub lora: LoraConfig,
    /// Manifests and limits on samples.
    pub data: DataConfig,
    /// Random changes to training audio.
    pub augment: AugmentConfig,
    /// Where features of the frozen encoder are kept between epochs and runs.
    pub feature_cache: FeatureCacheConfig,
    /// When and on how much to validate.
    pub validation: ValidationConfig,
    /// When to save, what to publish.
    pub checkpoint: CheckpointConfig,
    /// Folder of task files (`*.toml`): their prompts, answer formats and labels. Absent: only `prompts` are
    /// known.
    pub tasks_dir: Option<PathBuf>,
    /// Instructions per task, instead of those of its file; one is drawn uniformly for each sample without an
    /// instruction of its own. Without both, `asr` has one.
    pub prompts: BTreeMap<String, Vec<String>>,
    /// The curriculum, in order.
    #[serde(rename = "stage")]
    pub stages: Vec<StageConfig>,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            run: "run".into(),
            output: PathBuf::from("runs/run"),
            seed: 17,
            start_from: None,
            minutes_max: None,
            model: ModelConfig::default(),
            adapter: AdapterSettings::default(),
            lora: LoraConfig::default(),
            data: DataConfig::default(),
            augment: AugmentConfig::default(),
            feature_cache: FeatureCacheConfig::default(),
            validation: ValidationConfig::default(),
            checkpoint: CheckpointConfig::default(),
            tasks_dir: None,
            prompts: BTreeMap::new(),
            stages: Vec::new(),
        }
    }
}

/// The `[data]` table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Manifests (JSON lines) to train on.
    pub train: Vec<PathBuf>,
    /// Manifests to validate on during training.
    pub valid: Vec<PathBuf>,
    /// Manifests of recordings without speech, two hours at most, kept in memory. Where there are some, three
    /// in four of the noises that `[augment]` adds are cut out of them; the others, and all where there are
    /// none, are white or pink.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub noise: Vec<PathBuf>,
    /// Longer clips are left out of training, and counted.
    pub seconds_max: f64,
    /// Shorter clips are left out of training, and counted.
    pub seconds_min: f64,
    /// Targets with more tokens are left out of training, and counted.
    pub target_tokens_max: usize,
    /// Targets are brought to lower case without punctuation, as in the paper.
    pub plain_targets: bool,
    /// Share of the rows with several `targets` that also make a compound example (joint decoding), beside
    /// one example for each target.
    pub compound_share: f64,
    /// Batches decoded ahead of the training step.
    pub prefetch_batches: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: Vec::new(),
            valid: Vec::new(),
            noise: Vec::new(),
            seconds_max: 15.0,
            seconds_min: 0.2,
            target_tokens_max: 200,
            plain_targets: true,
            compound_share: 0.0,
            prefetch_batches: 3,
        }
    }
}

/// The `[augment]` table: probabilities are per clip and independent.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Probability of a random gain.
    pub gain: f64,
    /// Largest gain or attenuation, decibels.
    pub gain_db_max: f64,
    /// Probability of a change of speed (pitch moves along).
    pub speed: f64,
    /// Largest relative change of speed; 0.1 means 0.9 to 1.1.
    pub speed_change_max: f64,
    /// Probability of added white or pink noise.
    pub noise: f64,
    /// Lowest signal-to-noise ratio, decibels.
    pub noise_db_min: f64,
    /// Highest signal-to-noise ratio, decibels.
    pub noise_db_max: f64,
    /// Probability of a telephone band, 300 to 3400 Hz.
    pub telephone: f64,
    /// Spans of time that are set to zero in each clip's features (SpecAugment, arXiv 1904.08779, on the
    /// encoder's output); drawn anew each time, also for features from the cache.
    pub time_masks: usize,
    /// Longest span, encoder frames; never more than a tenth of the clip.
    pub time_mask_frames_max: i64,
    /// Spans of the features' width that are set to zero in each clip.
    pub feature_masks: usize,
    /// Widest span of it.
    pub feature_mask_width_max: i64,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self {
            gain: 0.0,
            gain_db_max: 9.0,
            speed: 0.0,
            speed_change_max: 0.1,
            noise: 0.0,
            noise_db_min: 10.0,
            noise_db_max: 30.0,
            telephone: 0.0,
            time_masks: 0,
            time_mask_frames_max: 20,
            feature_masks: 0,
            feature_mask_width_max: 32,
        }
    }
}

impl AugmentConfig {
    pub(super) fn validate(&self) -> Result<(), String> {
        for (name, value, low, high) in [
            ("gain", self.gain, 0.0, 1.0),
            ("speed", self.speed, 0.0, 1.0),
            ("noise", self.noise, 0.0, 1.0),
            ("telephone", self.telephone, 0.0, 1.0),
            ("gain_db_max", self.gain_db_max, 0.0, 40.0),
            ("speed_change_max", self.speed_change_max, 0.0, 0.5),
            ("noise_db_min", self.noise_db_min, -20.0, 100.0),
            ("noise_db_max", self.noise_db_max, self.noise_db_min, 100.0),
            ("time_masks", self.time_masks as f64, 0.0, 100.0),
            ("time_mask_frames_max", self.time_mask_frames_max as f64, 1.0, 1e4),
            ("feature_masks", self.feature_masks as f64, 0.0, 100.0),
            (
                "feature_mask_width_max",
                self.feature_mask_width_max as f64,
                1.0,
                1e5,
            ),
        ] {
            within(&format!("`augment.{name}`"), value, low, high)?;
        }
        Ok(())
    }
}

/// The `[feature_cache]` table: features of the frozen encoder, layers mixed, on disk, so that a clip is
/// encoded once for many epochs, stages and runs. Used by stages that say `cached`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct FeatureCacheConfig {
    /// Its folder, which several runs may share; absent: no stage may be `cached`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Bytes that it may take on the disk; beyond them clips are encoded again each time. An hour takes some
    /// 190 MB of Whisper-base's features, for each variant.
    pub bytes_max: u64,
    /// Augmented variants of each clip, taken in turn from epoch to epoch, at least 1.
    pub variants: u64,
}

impl Default for FeatureCacheConfig {
    fn default() -> Self {
        Self {
            dir: None,
            bytes_max: 20 << 30, // 20 GiB
            variants: 2,
        }
    }
}

/// The `[validation]` table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidationConfig {
    /// Optimiser steps between validations.
    pub every_steps: u64,
    /// Clips used for the loss.
    pub clips_max: usize,
    /// Clips among them that are also answered, for each task's score by its own metric.
    pub transcribed_clips_max: usize,
    /// Rows of one validation batch.
    pub batch_rows: usize,
    /// Longest answer in tokens.
    pub new_tokens_max: usize,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self {
            every_steps: 250,
            clips_max: 128,
            transcribed_clips_max: 64,
            batch_rows: 16,
            new_tokens_max: 64,
        }
    }
}

/// The `[checkpoint]` table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Optimiser steps between checkpoints that `--resume` continues from.
    pub every_steps: u64,
    /// Registry that receives the best weights at the end; absent: nothing is published.
    pub registry: Option<PathBuf>,
    /// First part of the version's name: `demo` gives `demo-0001`, `demo-0002` and so on.
    pub prefix: String,
    /// Makes the published version the current one.
    pub promote: bool,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            every_steps: 250,
            registry: None,
            prefix: "adapter".into(),
            promote: true,
        }
    }
}

/// What a stage trains, and by which loss.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageKind {
    /// CTC against the language model's own embedding table: adapter and CTC head; the language model does
    /// not run.
    CtcAlign,
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
            Self::Asr => "asr",
            Self::LoraWarmup => "lora_warmup",
            Self::Multitask => "multitask",
        }
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
    /// Whether training audio is augmented as `[augment]` says.
    #[serde(default = "StageConfig::default_augment")]
    pub augment: bool,
    /// Whether clips are encoded once and their features kept in `[feature_cache]`. The layer mix does not
    /// learn in such a stage: it stays as the stage before or the adapter to start from left it (fresh: the
    /// mean of the layers).
    #[serde(default)]
    pub cached: bool,
    /// Tasks taken from the manifests; absent: `asr` alone, or all tasks in a `multitask` stage.
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
            augment: Self::default_augment(),
            cached: false,
            tasks: None,
            weights: BTreeMap::new(),
        }
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
            (None, _) => task == "asr",
        }
    }

    fn validate(&self, at: usize) -> Result<(), String> {
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
        for (task, weight) in &self.weights {
            within(&key(&format!("weights.{task}")), *weight, 0.0, 1000.0)?;
        }
        Ok(())
    }
}

impl TrainingConfig {
    /// Reads and validates a settings file.
    ///
    /// # Errors
    /// [`TrainingConfigError`]: unreadable, misspelt keys, wrong types, values out of range.
    pub fn load(path: &Path) -> Result<Self, TrainingConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| TrainingConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let config: Self = toml::from_str(&text).map_err(|source| TrainingConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        config.validate()?;
        Ok(config)
    }

    /// The rules within and between fields.
    ///
    /// # Errors
    /// [`TrainingConfigError::Invalid`] with the key, its value and what was expected.
    pub fn validate(&self) -> Result<(), TrainingConfigError> {
        self.check()
            .map_err(|problem| TrainingConfigError::Invalid { problem })
    }

    fn check(&self) -> Result<(), String> {
        if self.run.is_empty()
            || !self
                .run
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        {
            return Err(format!(
                "`run` is `{}`, expected letters, digits, `-`, `_`, `.`",
                self.run
            ));
        }
        self.adapter.validate()?;
        self.lora.validate().map_err(|error| error.to_string())?;
        within("`minutes_max`", self.minutes_max.unwrap_or(1.0), 1e-3, 1e6)?;
        within("`data.seconds_min`", self.data.seconds_min, 0.0, 60.0)?;
        within(
            "`data.seconds_max`",
            self.data.seconds_max,
            self.data.seconds_min,
            3600.0,
        )?;
        within(
            "`data.target_tokens_max`",
            self.data.target_tokens_max as f64,
            1.0,
            100_000.0,
        )?;
        within("`data.compound_share`", self.data.compound_share, 0.0, 1.0)?;
        within(
            "`data.prefetch_batches`",
            self.data.prefetch_batches as f64,
            1.0,
            1000.0,
        )?;
        self.augment.validate()?;
        within(
            "`feature_cache.variants`",
            self.feature_cache.variants as f64,
            1.0,
            1000.0,
        )?;
        if let (None, Some(at)) = (
            &self.feature_cache.dir,
            self.stages.iter().position(|stage| stage.cached),
        ) {
            return Err(format!(
                "`stage[{at}].cached` is set and `feature_cache.dir` is not: name a folder for the features"
            ));
        }
        within(
            "`validation.every_steps`",
            self.validation.every_steps as f64,
            1.0,
            1e9,
        )?;
        within(
            "`validation.batch_rows`",
            self.validation.batch_rows as f64,
            1.0,
            4096.0,
        )?;
        within(
            "`validation.new_tokens_max`",
            self.validation.new_tokens_max as f64,
            1.0,
            10_000.0,
        )?;
        within(
            "`checkpoint.every_steps`",
            self.checkpoint.every_steps as f64,
            1.0,
            1e9,
        )?;
        for (task, prompts) in &self.prompts {
            if prompts.is_empty() || prompts.iter().any(|prompt| prompt.trim().is_empty()) {
                return Err(format!("`prompts.{task}` is empty or holds an empty instruction"));
            }
        }
        if self.stages.is_empty() {
            return Err("there is no `[[stage]]`: nothing would be trained".into());
        }
        for (at, stage) in self.stages.iter().enumerate() {
            stage.validate(at)?;
        }
        Ok(())
    }
}

pub(super) fn within(key: &str, value: f64, low: f64, high: f64) -> Result<(), String> {
    if value.is_finite() && (low..=high).contains(&value) {
        Ok(())
    } else {
        Err(format!("{key} is {value}, expected {low} to {high}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TrainingConfig, String> {
        let config: TrainingConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn a_misspelt_key_is_an_error_that_names_the_key() {
        let error = parse("[[stage]]\nkind = \"asr\"\nlearning_rat = 0.1\n").unwrap_err();

        assert!(error.contains("learning_rat"), "{error}");
    }

    #[test]
    fn a_stage_without_an_end_is_refused() {
        let error = parse("[[stage]]\nkind = \"asr\"\nlearning_rate = 0.1\n").unwrap_err();

        assert!(error.contains("never end"), "{error}");
    }

    #[test]
    fn the_shipped_curricula_parse_and_validate() {
        for name in ["demo", "demo-longer", "demo-tasks", "paper"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("configs/curriculum/{name}.toml"));
            let config = TrainingConfig::load(&path).unwrap();

            assert!(!config.stages.is_empty(), "{name}");
        }
    }

    #[test]
    fn a_cached_stage_needs_a_folder_for_the_features() {
        let stage = "[[stage]]\nkind = \"ctc_align\"\nlearning_rate = 0.1\nsteps_max = 1\ncached = true\n";

        let error = parse(stage).unwrap_err();

        assert!(error.contains("feature_cache.dir"), "{error}");
        parse(&format!("[feature_cache]\ndir = \"f\"\n{stage}")).unwrap();
    }

    #[test]
    fn settings_survive_being_written_and_read_again() {
        let stage = StageConfig {
            steps_max: Some(3),
            ..StageConfig::new(StageKind::CtcAlign, 1e-3)
        };
        let config = TrainingConfig {
            stages: vec![stage],
            ..TrainingConfig::default()
        };

        let again: TrainingConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();

        assert_eq!(again, config);
    }

    #[test]
    fn only_a_multitask_stage_takes_every_task_by_default() {
        let asr = StageConfig::new(StageKind::Asr, 1e-3);
        let multitask = StageConfig::new(StageKind::Multitask, 1e-3);

        assert!(asr.takes("asr") && !asr.takes("intent"));
        assert!(multitask.takes("asr") && multitask.takes("intent"));
        assert!(multitask.takes("asr,intent") && !asr.takes("asr,intent"));
    }
}

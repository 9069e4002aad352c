//! A training run as data: models, manifests, augmentation, and the curriculum's stages (`train --config
//! FILE`).
//!
//! Relative paths are relative to the folder in which the program runs.

mod data;
mod range;
mod stage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use data::{AugmentConfig, DataConfig, MIX_SECONDS_MIN, SPEAKERS_MAX, SpeakerMixConfig, TelephoneCodec};
pub(super) use range::within;
use serde::{Deserialize, Serialize};
pub use stage::{Decay, StageConfig, StageKind};

use crate::models::config::{AdapterSettings, ModelConfig};
use crate::nn::lora::LoraConfig;
use crate::registry::check_prefix;

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
    /// Wall-clock limit of the whole run, minutes; absent: none. The current stage is cut short, the best is
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

    /// Whether the low-rank updates of an adapter to start from are in the result too: a stage learns them,
    /// or none changes what they work on, because the summary or the sentence embedding alone learns.
    pub fn keeps_lora(&self) -> bool {
        let mut kinds = self.stages.iter().map(|stage| stage.kind);
        kinds.clone().any(StageKind::has_lora) || kinds.all(StageKind::aligns_labels)
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
        self.data.speaker_mixes.validate()?;
        if self.data.speaker_mixes.clips > 0 && self.data.seconds_max < MIX_SECONDS_MIN {
            return Err(format!(
                "`data.seconds_max` is {}, and mixes of speakers (`data.speaker_mixes`) last {MIX_SECONDS_MIN} s at least",
                self.data.seconds_max
            ));
        }
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
        if self.checkpoint.registry.is_some() {
            check_prefix(&self.checkpoint.prefix).map_err(|error| format!("`checkpoint.prefix`: {error}"))?;
        }
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

#[cfg(test)]
mod tests;

//! A pre-training run as data: the encoder's shape, labels, masks, recordings, optimiser
//! (`pretrain --config FILE`).
//!
//! The defaults are the paper's where it gives a number (SpeechVerse, arXiv 2405.08295, appendix A.1).
//! Relative paths are relative to the folder in which the program runs.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::models::encoders::conformer::{ConformerConfig, ConvNorm, QuantizerConfig, parameter_count};
use crate::nn::accel::DeviceChoice;
use crate::training::config::{AugmentConfig, Decay, TrainingConfigError, within};

/// Most parameters of a network that is trained here: more are taken for a mistake in the settings.
const PARAMETERS_MAX: i64 = 20_000_000_000;

/// Everything about one pre-training run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainConfig {
    /// Name of the run: letters, digits, `-`, `_`, `.`.
    pub run: String,
    /// Folder of the run: `log.jsonl`, `loss.svg`, `checkpoint/`, and `encoder/`, which is what
    /// `model.encoder` takes.
    pub output: PathBuf,
    /// Seed of every random choice: initial values, labels' projections and codebooks, order, masks, noise.
    pub seed: u64,
    /// `auto`, `cpu` or `cuda:N`. Pre-training computes in f32.
    pub device: DeviceChoice,
    /// CPU threads of one tensor operation; 0 takes as many as there are cores.
    pub threads: usize,
    /// Wall-clock limit of the run, minutes; absent: none. The run then ends as if its steps were done.
    pub minutes_max: Option<f64>,
    /// Shape of the encoder, as its `config.json` will say it.
    pub model: ModelShape,
    /// The maker of labels.
    pub quantizer: QuantizerConfig,
    /// What is hidden from the encoder.
    pub mask: MaskConfig,
    /// Manifests and limits on clips.
    pub data: PretrainDataConfig,
    /// Random changes to training audio.
    pub augment: AugmentConfig,
    /// Steps, rates, batches.
    pub optimizer: PretrainOptimizerConfig,
    /// When and on how much to validate.
    pub validation: PretrainValidationConfig,
    /// Optimiser steps between checkpoints that `--resume` continues from.
    pub checkpoint_every_steps: u64,
}

impl Default for PretrainConfig {
    fn default() -> Self {
        Self {
            run: "bestrq".into(),
            output: PathBuf::from("data/runs/bestrq"),
            seed: 17,
            device: DeviceChoice::Auto,
            threads: 0,
            minutes_max: None,
            model: ModelShape::default(),
            quantizer: QuantizerConfig::default(),
            mask: MaskConfig::default(),
            data: PretrainDataConfig::default(),
            augment: AugmentConfig::default(),
            optimizer: PretrainOptimizerConfig::default(),
            validation: PretrainValidationConfig::default(),
            checkpoint_every_steps: 1000,
        }
    }
}

/// The `[model]` table: what may be chosen about the encoder. Keys are those of its `config.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelShape {
    /// Width `D`.
    pub hidden_size: i64,
    /// Conformer blocks `L`.
    pub num_hidden_layers: i64,
    /// Heads.
    pub num_attention_heads: i64,
    /// Width inside each of a block's two feed-forward parts.
    pub intermediate_size: i64,
    /// Taps of the depthwise convolution, odd.
    pub conv_depthwise_kernel_size: i64,
    /// Mel bins.
    pub num_mel_bins: i64,
    /// `utterance` or `global`.
    pub normalize: crate::models::encoders::conformer::Normalization,
    /// Channels of the first subsampling convolution before its gate halves them.
    pub subsampling_channels: i64,
    /// Taps of both subsampling convolutions, odd.
    pub subsampling_kernel_size: i64,
    /// Most encoder frames of one clip; 25 are a second.
    pub max_source_positions: i64,
}

impl Default for ModelShape {
    fn default() -> Self {
        let config = ConformerConfig::default();
        Self {
            hidden_size: config.hidden_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            intermediate_size: config.intermediate_size,
            conv_depthwise_kernel_size: config.conv_depthwise_kernel_size,
            num_mel_bins: config.num_mel_bins,
            normalize: config.normalize,
            subsampling_channels: config.subsampling_channels,
            subsampling_kernel_size: config.subsampling_kernel_size,
            max_source_positions: config.max_source_positions,
        }
    }
}

impl ModelShape {
    /// The encoder's whole configuration.
    pub fn conformer(&self) -> ConformerConfig {
        ConformerConfig {
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            intermediate_size: self.intermediate_size,
            conv_depthwise_kernel_size: self.conv_depthwise_kernel_size,
            conv_norm: ConvNorm::Layer,
            num_mel_bins: self.num_mel_bins,
            normalize: self.normalize,
            subsampling_channels: self.subsampling_channels,
            subsampling_kernel_size: self.subsampling_kernel_size,
            max_source_positions: self.max_source_positions,
            ..ConformerConfig::default()
        }
    }
}

/// What a mask's span is counted in.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskUnit {
    /// Encoder frames of 40 ms: a span of 10 is 400 ms, the length of BEST-RQ's own masks. The default.
    #[default]
    Encoder,
    /// Mel frames of 10 ms. A label counts as hidden when all four of its mel frames are.
    Mel,
}

/// The `[mask]` table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskConfig {
    /// Length of one masked span, in `unit`s.
    pub span: usize,
    /// `encoder` or `mel`; the paper does not say which.
    pub unit: MaskUnit,
    /// Expected share of units masked; spans may overlap, and begin anywhere with the probability that gives
    /// this share.
    pub share: f64,
    /// Spread of the Gaussian noise (mean 0) that stands in place of masked mel frames, in units of
    /// normalised features.
    pub noise: f64,
}

impl Default for MaskConfig {
    fn default() -> Self {
        Self {
            span: 10,
            unit: MaskUnit::Encoder,
            share: 0.4,
            noise: 0.1,
        }
    }
}

/// The `[data]` table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainDataConfig {
    /// Manifests (JSON lines with `audio_filepath` and `duration`; other keys are not read) to learn from.
    pub train: Vec<PathBuf>,
    /// Manifests to validate on.
    pub valid: Vec<PathBuf>,
    /// Longer clips are left out, and counted.
    pub seconds_max: f64,
    /// Shorter clips are left out, and counted.
    pub seconds_min: f64,
    /// Batches decoded ahead of the training step.
    pub prefetch_batches: usize,
}

impl Default for PretrainDataConfig {
    fn default() -> Self {
        Self {
            train: Vec::new(),
            valid: Vec::new(),
            seconds_max: 30.0,
            seconds_min: 0.5,
            prefetch_batches: 3,
        }
    }
}

/// The `[optimizer]` table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainOptimizerConfig {
    /// Optimiser steps of the run.
    pub steps_max: u64,
    /// Learning rate at its peak, after warm-up.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// What follows warm-up; `transformer` is the original transformer schedule.
    pub decay: Decay,
    /// Where `linear` and `cosine` end, as a fraction of `learning_rate`.
    pub final_rate_fraction: f64,
    /// Rows of a batch at most.
    pub batch_rows: usize,
    /// Audio of a batch at most, padding included, seconds.
    pub batch_seconds_max: f64,
    /// Batches whose gradients are averaged into one step.
    pub accumulate: u64,
    /// Largest global gradient norm.
    pub clip_norm: f64,
    /// AdamW's first decay.
    pub beta1: f64,
    /// AdamW's second decay.
    pub beta2: f64,
    /// AdamW's weight decay; matrices only.
    pub weight_decay: f64,
    /// Probability of dropout after each part of a block.
    pub dropout: f64,
}

impl Default for PretrainOptimizerConfig {
    fn default() -> Self {
        Self {
            steps_max: 500_000,
            learning_rate: 5e-4,
            warmup_steps: 50_000,
            decay: Decay::Transformer,
            final_rate_fraction: 0.0,
            batch_rows: 64,
            batch_seconds_max: 600.0,
            accumulate: 1,
            clip_norm: 1.0,
            beta1: 0.9,
            beta2: 0.98,
            weight_decay: 0.01,
            dropout: 0.1,
        }
    }
}

/// The `[validation]` table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainValidationConfig {
    /// Optimiser steps between validations; there is one before the first step, too.
    pub every_steps: u64,
    /// Clips used, the first of the manifests.
    pub clips_max: usize,
}

impl Default for PretrainValidationConfig {
    fn default() -> Self {
        Self {
            every_steps: 1000,
            clips_max: 256,
        }
    }
}

impl PretrainConfig {
    /// Reads and validates a settings file.
    ///
    /// # Errors
    /// [`TrainingConfigError`]: unreadable, misspelt keys, wrong types, values out of range.
    pub fn load(path: &Path) -> Result<Self, TrainingConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| TrainingConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// As [`load`](Self::load), from text at hand; `path` is for messages.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str, path: &Path) -> Result<Self, TrainingConfigError> {
        let config: Self = toml::from_str(text).map_err(|source| TrainingConfigError::Parse {
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

    #[expect(clippy::cast_precision_loss, reason = "counts, compared with round limits")]
    fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.run.is_empty() || !self.run.chars().all(plain) {
            return Err(format!(
                "`run` is `{}`, expected letters, digits, `-`, `_`, `.`",
                self.run
            ));
        }
        let shape = self.model.conformer();
        if let Some((key, found, expected)) = shape.problem() {
            return Err(format!("`model.{key}` is {found}, expected {expected}"));
        }
        let QuantizerConfig {
            codebooks,
            codes,
            width,
        } = self.quantizer;
        within("`quantizer.codebooks`", codebooks as f64, 1.0, 256.0)?;
        within("`quantizer.codes`", codes as f64, 2.0, 65_536.0)?;
        within("`quantizer.width`", width as f64, 1.0, 1024.0)?;
        let parameters = parameter_count(&shape) + codebooks * codes * (shape.hidden_size + 1);
        if parameters > PARAMETERS_MAX {
            return Err(format!(
                "`model` and `quantizer` together have {parameters} parameters, expected at most {PARAMETERS_MAX}"
            ));
        }
        within("`mask.span`", self.mask.span as f64, 1.0, 1000.0)?;
        within("`mask.share`", self.mask.share, 0.01, 0.95)?;
        within("`mask.noise`", self.mask.noise, 0.0, 100.0)?;
        within("`minutes_max`", self.minutes_max.unwrap_or(1.0), 1e-3, 1e6)?;
        within("`data.seconds_min`", self.data.seconds_min, 0.0, 60.0)?;
        let seconds_max = shape.max_source_positions as f64 / 25.0;
        within(
            "`data.seconds_max`",
            self.data.seconds_max,
            self.data.seconds_min,
            seconds_max,
        )?;
        let prefetch = self.data.prefetch_batches as f64;
        within("`data.prefetch_batches`", prefetch, 1.0, 1000.0)?;
        self.augment.validate()?;
        let optimizer = &self.optimizer;
        for (key, value, low, high) in [
            ("steps_max", optimizer.steps_max as f64, 1.0, 1e9),
            ("learning_rate", optimizer.learning_rate, 1e-9, 1.0),
            ("warmup_steps", optimizer.warmup_steps as f64, 0.0, 1e9),
            ("final_rate_fraction", optimizer.final_rate_fraction, 0.0, 1.0),
            ("batch_rows", optimizer.batch_rows as f64, 1.0, 65_536.0),
            ("batch_seconds_max", optimizer.batch_seconds_max, 1.0, 1e6),
            ("accumulate", optimizer.accumulate as f64, 1.0, 1e5),
            ("clip_norm", optimizer.clip_norm, 1e-6, 1e9),
            ("beta1", optimizer.beta1, 0.0, 0.999_999),
            ("beta2", optimizer.beta2, 0.0, 0.999_999),
            ("weight_decay", optimizer.weight_decay, 0.0, 1.0),
            ("dropout", optimizer.dropout, 0.0, 0.9),
        ] {
            within(&format!("`optimizer.{key}`"), value, low, high)?;
        }
        let every = self.validation.every_steps as f64;
        within("`validation.every_steps`", every, 1.0, 1e9)?;
        let clips = self.validation.clips_max as f64;
        within("`validation.clips_max`", clips, 1.0, 1e6)?;
        let every = self.checkpoint_every_steps as f64;
        within("`checkpoint_every_steps`", every, 1.0, 1e9)
    }
}

#[cfg(test)]
mod tests;

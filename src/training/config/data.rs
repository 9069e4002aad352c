//! `[data]` and `[augment]`: recordings, and what is done to them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::range::within;

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
    /// Probability that such a clip is also rounded to 8 bits, as G.711 does.
    pub companding: f64,
    /// Probability of a room's reverberation.
    pub reverberation: f64,
    /// Longest time in which it falls by 60 dB, seconds.
    pub reverberation_seconds_max: f64,
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
            companding: 0.0,
            reverberation: 0.0,
            reverberation_seconds_max: 0.6,
            time_masks: 0,
            time_mask_frames_max: 20,
            feature_masks: 0,
            feature_mask_width_max: 32,
        }
    }
}

impl AugmentConfig {
    pub(in crate::training) fn validate(&self) -> Result<(), String> {
        for (name, value, low, high) in [
            ("gain", self.gain, 0.0, 1.0),
            ("speed", self.speed, 0.0, 1.0),
            ("noise", self.noise, 0.0, 1.0),
            ("telephone", self.telephone, 0.0, 1.0),
            ("companding", self.companding, 0.0, 1.0),
            ("reverberation", self.reverberation, 0.0, 1.0),
            (
                "reverberation_seconds_max",
                self.reverberation_seconds_max,
                0.1,
                2.0,
            ),
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

//! The `[trainer]` table: how a serving process learns from what passes by.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::util::ConfigError;

/// The `[trainer]` table: when a training cycle runs, on what, and what it takes to be promoted.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct TrainerConfig {
    /// Whether this process trains at all; when not, `retrain` is refused.
    pub enabled: bool,
    /// The curriculum of a cycle (a training settings file; its data tables are filled from the sample
    /// store).
    pub curriculum: PathBuf,
    /// Folder for the cycles' logs and checkpoints.
    pub runs_dir: PathBuf,
    /// Fewer samples than this and a cycle is refused.
    pub samples_min: usize,
    /// Start a cycle by itself when so many new samples have arrived since the last one; 0: only on order.
    pub new_samples_trigger: usize,
    /// Start a cycle by itself every so many minutes, if there is anything new; 0: only on order.
    pub interval_minutes: u64,
    /// Fewer held-out samples than this and the verdict on a candidate is `undecided`: it is not promoted by
    /// itself.
    pub held_out_samples_min: usize,
    /// A candidate is promoted when its error on all held-out samples, by each task's own metric, is lower
    /// than the incumbent's by more than so much (0.02 is two words in a hundred of a word error rate, two
    /// points of an accuracy); at 0 an equal one is not. Below 0, which is for trying the loop out, an equal
    /// one or a slightly worse one is.
    pub improvement_min: f64,
    /// In no task may a candidate's error be higher than the incumbent's by more than so much.
    pub regression_max: f64,
    /// Wait between training steps while utterances are in flight, so that answers stay quick.
    pub yield_to_serving: bool,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            curriculum: "configs/curriculum/online.toml".into(),
            runs_dir: "data/runs".into(),
            samples_min: 20,
            new_samples_trigger: 0,
            interval_minutes: 0,
            held_out_samples_min: 30,
            improvement_min: 0.0,
            regression_max: 0.02,
            yield_to_serving: true,
        }
    }
}

impl TrainerConfig {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("trainer.samples_min", self.samples_min, 1, 100_000_000)?;
        ConfigError::range(
            "trainer.held_out_samples_min",
            self.held_out_samples_min,
            1,
            100_000_000,
        )?;
        ConfigError::range("trainer.improvement_min", self.improvement_min, -1.0, 1.0)?;
        ConfigError::range("trainer.regression_max", self.regression_max, 0.0, 1.0)
    }
}

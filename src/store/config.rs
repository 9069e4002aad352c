//! The `[store]` table: labelled samples kept for training.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::util::ConfigError;

/// The `[store]` table.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// Folder of the store; made when it is missing. One process at a time may have it open.
    pub dir: PathBuf,
    /// When a sample counts as stored: `every_put` after its own fsync (survives a power cut), `interval`
    /// after the write (survives kill -9; a power cut may take the last `fsync_interval_ms`).
    pub fsync: FsyncPolicy,
    /// Longest that a correction waits for its request, milliseconds: the two topics are read side by side,
    /// so it may come first. 0: not at all.
    pub correction_wait_ms: u64,
    /// Corrections that may wait at once; beyond it the one that has waited longest is refused. Well below
    /// `kafka.in_flight_records_max`, so that corrections of unknown requests do not hold up the labels
    /// behind them.
    pub corrections_waiting_max: usize,
    /// Requests that are remembered for corrections: audio (f32) and texts of all together, bytes. The oldest
    /// go first. 64 MiB hold 17 minutes of speech.
    pub remembered_bytes_max: usize,
    /// Longest that written samples stay without fsync under `fsync = "interval"`, milliseconds.
    pub fsync_interval_ms: u64,
    /// Share of new recordings that go to the held-out side, 0 to 0.9. All samples of one recording are on
    /// one side, and a stored sample stays on its side when this changes.
    pub held_out_fraction: f64,
    /// Samples kept per task; above it the task's oldest segment is dropped.
    pub task_samples_max: usize,
    /// Tasks that may have samples; a sample of one more is refused.
    pub tasks_max: usize,
    /// Bytes on disk; above it the oldest segment of the task with the most bytes is dropped.
    pub bytes_max: u64,
    /// A segment file is closed and a new one begun above so many bytes.
    pub segment_bytes_max: u64,
    /// Longest recording that is kept, seconds; a sample with a longer one is refused.
    pub audio_seconds_max: f64,
    /// Longest instruction or target text that is kept, bytes; a sample with a longer one is refused.
    pub text_bytes_max: usize,
}

/// When a sample counts as stored.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum FsyncPolicy {
    /// After its own fsync.
    #[default]
    EveryPut,
    /// After the write; fsync follows every `fsync_interval_ms`.
    Interval,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            dir: "data/samples".into(),
            fsync: FsyncPolicy::EveryPut,
            correction_wait_ms: 5_000,
            corrections_waiting_max: 256,
            remembered_bytes_max: 64 * 1024 * 1024, // 64 MiB
            fsync_interval_ms: 1_000,
            held_out_fraction: 0.1,
            task_samples_max: 50_000,
            tasks_max: 64,
            bytes_max: 10 * 1024 * 1024 * 1024, // 10 GiB: about 90 hours of speech
            segment_bytes_max: 64 * 1024 * 1024, // 64 MiB
            audio_seconds_max: 120.0,
            text_bytes_max: 64 * 1024, // 64 KiB
        }
    }
}

impl StoreConfig {
    /// Checks ranges and the rules between settings.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] for the first rule that does not hold.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.dir.as_os_str().is_empty() {
            return Err(ConfigError::invalid("store.dir", "must name a folder"));
        }
        ConfigError::range("store.fsync_interval_ms", self.fsync_interval_ms, 1, 3_600_000)?;
        ConfigError::range("store.correction_wait_ms", self.correction_wait_ms, 0, 3_600_000)?;
        ConfigError::range(
            "store.corrections_waiting_max",
            self.corrections_waiting_max,
            1,
            1_000_000,
        )?;
        ConfigError::range(
            "store.remembered_bytes_max",
            self.remembered_bytes_max,
            0,
            1 << 40,
        )?;
        ConfigError::range("store.held_out_fraction", self.held_out_fraction, 0.0, 0.9)?;
        ConfigError::range("store.task_samples_max", self.task_samples_max, 8, 10_000_000)?;
        ConfigError::range("store.tasks_max", self.tasks_max, 1, 1_024)?;
        ConfigError::range("store.segment_bytes_max", self.segment_bytes_max, 4_096, 1 << 30)?;
        ConfigError::range("store.audio_seconds_max", self.audio_seconds_max, 0.01, 3_600.0)?;
        ConfigError::range("store.text_bytes_max", self.text_bytes_max, 1, 4 * 1024 * 1024)?;
        let enough = self.segment_bytes_max.saturating_mul(2);
        if self.bytes_max < enough {
            return Err(ConfigError::invalid(
                "store.bytes_max",
                format!("{} is less than two segments; {enough} is enough", self.bytes_max),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        StoreConfig::default().validate().unwrap();
    }

    #[test]
    fn a_misspelt_key_is_an_error_that_names_the_key() {
        let error = toml::from_str::<StoreConfig>("fsink = \"interval\"").unwrap_err();

        assert!(error.to_string().contains("fsink"), "{error}");
    }

    #[test]
    fn values_out_of_range_name_the_setting() {
        for (text, key) in [
            ("held_out_fraction = 1.0", "held_out_fraction"),
            ("held_out_fraction = nan", "held_out_fraction"),
            ("task_samples_max = 0", "task_samples_max"),
            ("bytes_max = 10", "bytes_max"),
            ("dir = \"\"", "store.dir"),
        ] {
            let config: StoreConfig = toml::from_str(text).unwrap();

            let error = config.validate().unwrap_err().to_string();

            assert!(error.contains(key), "{error}");
        }
    }
}

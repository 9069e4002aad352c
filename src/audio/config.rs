//! The `[audio]` and `[speech]` tables: what a value may be before it is refused, how speech is found in it,
//! and where it is cut.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::audio::{AudioLimits, WindowLimits, samples_of};
use crate::util::ConfigError;

/// The `[audio]` table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AudioConfig {
    /// Longest sound that is accepted, seconds. Longer values become dead letters; nothing is cut.
    pub seconds_max: f64,
    /// Longest sound that anything but a transcript is asked about, seconds: it has to fit into one prompt.
    pub whole_seconds_max: f64,
    /// Largest record value that is looked at, bytes. The topic's `max.message.bytes` should not be larger.
    pub value_bytes_max: usize,
    /// Most samples (frames times channels) that are decoded from one value before it is given up as a
    /// decompression bomb.
    pub decoded_samples_max: u64,
    /// Most channels; they are averaged into one.
    pub channels_max: u16,
    /// Lowest sample rate that is accepted, hertz.
    pub rate_hz_min: u32,
    /// Highest sample rate that is accepted, hertz.
    pub rate_hz_max: u32,
    /// Largest share of a sound that may be missing or undecodable, 0 to 1. Up to it the rest is decoded, and
    /// the answer says `audio_repaired` or `truncated` and how many seconds were not; above it the value
    /// becomes a dead letter.
    pub unheard_share_max: f64,
    /// An answer is flagged `no_speech` when every 30 ms of its sound are below this level, dB of full scale.
    /// That finds silence and dead microphones without a voice activity detector (`speech.detector`).
    pub no_speech_below_dbfs: f64,
}

impl Default for AudioConfig {
    fn default() -> Self {
        Self {
            seconds_max: 7_200.0,
            whole_seconds_max: 120.0,
            value_bytes_max: 16 * 1024 * 1024,
            decoded_samples_max: 1 << 30, // two hours in stereo at 48 kHz are 0.7 · 2^30
            channels_max: 64,
            rate_hz_min: 1_000,
            rate_hz_max: 768_000,
            unheard_share_max: 0.5,
            no_speech_below_dbfs: -60.0,
        }
    }
}

/// A setting of the `[audio]` table that cannot work.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("`audio.{key}` is {found}, expected {expected}")]
pub struct AudioConfigError {
    /// The key, without its table.
    pub key: &'static str,
    /// The value that was found.
    pub found: String,
    /// What it must be.
    pub expected: String,
}

impl AudioConfig {
    /// Checks every value and the rules between them.
    ///
    /// # Errors
    /// The first key that cannot work, with the value found and the one expected.
    pub fn validate(&self) -> Result<(), AudioConfigError> {
        let wrong = |key, found: String, expected: &str| {
            Err(AudioConfigError {
                key,
                found,
                expected: expected.to_owned(),
            })
        };
        let day = 86_400.0;
        if !(self.seconds_max > 0.0 && self.seconds_max <= day) {
            return wrong(
                "seconds_max",
                self.seconds_max.to_string(),
                "more than 0 and at most 86400",
            );
        }
        if !(self.whole_seconds_max > 0.0 && self.whole_seconds_max <= day) {
            return wrong(
                "whole_seconds_max",
                self.whole_seconds_max.to_string(),
                "more than 0 and at most 86400",
            );
        }
        if !(1..=1 << 30).contains(&self.value_bytes_max) {
            return wrong(
                "value_bytes_max",
                self.value_bytes_max.to_string(),
                "1 to 1073741824",
            );
        }
        if self.decoded_samples_max == 0 {
            return wrong("decoded_samples_max", "0".to_owned(), "at least 1");
        }
        if !(1..=256).contains(&self.channels_max) {
            return wrong("channels_max", self.channels_max.to_string(), "1 to 256");
        }
        if self.rate_hz_min == 0 {
            return wrong("rate_hz_min", "0".to_owned(), "at least 1");
        }
        if self.rate_hz_max < self.rate_hz_min || self.rate_hz_max > 1_000_000 {
            return wrong(
                "rate_hz_max",
                self.rate_hz_max.to_string(),
                "`audio.rate_hz_min` to 1000000",
            );
        }
        if !(0.0..=1.0).contains(&self.unheard_share_max) {
            let found = self.unheard_share_max.to_string();
            return wrong("unheard_share_max", found, "0 to 1");
        }
        if !(-200.0..=0.0).contains(&self.no_speech_below_dbfs) {
            let found = self.no_speech_below_dbfs.to_string();
            return wrong("no_speech_below_dbfs", found, "-200 to 0");
        }
        Ok(())
    }

    /// The limits that [`crate::audio::decode`] takes.
    pub fn limits(&self) -> AudioLimits {
        AudioLimits {
            seconds_max: self.seconds_max,
            value_bytes_max: self.value_bytes_max,
            decoded_samples_max: self.decoded_samples_max,
            channels_max: self.channels_max,
            rate_hz_min: self.rate_hz_min,
            rate_hz_max: self.rate_hz_max,
            unheard_share_max: self.unheard_share_max,
        }
    }
}

/// The `[speech]` table: how speech is found, where long sound is cut, what chunked sessions may be.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpeechConfig {
    /// Folder of the voice activity detector (Silero VAD). Where it is not there, or this is empty, loud is
    /// taken for speech.
    pub detector: PathBuf,
    /// Probability of speech from which on 32 ms of sound are speech.
    pub speech_above: f64,
    /// Longest piece of sound that a transcript is made of at once, seconds. What is longer is cut in its
    /// pauses and answered piece by piece.
    pub window_seconds_max: f64,
    /// What two pieces share where there is no pause to cut in, seconds.
    pub window_overlap_seconds: f64,
    /// Pieces of one recording that may be worked on at once.
    pub windows_in_flight_max: usize,
    /// Recordings longer than `audio.whole_seconds_max` that may be worked on at once, of each priority;
    /// others wait.
    pub long_recordings_max: usize,
    /// Silence that ends an utterance of a stream, milliseconds.
    pub utterance_pause_ms: u64,
    /// A stream with `ce_partials` is read so often, milliseconds of its sound.
    pub partial_interval_ms: u64,
    /// Of such a stream, the language model reads so often what is spoken, milliseconds of its sound: words
    /// in which two of its readings agree are confirmed.
    pub confirm_interval_ms: u64,
    /// Streams that may be unfinished at once.
    pub sessions_max: usize,
    /// A stream without a chunk for so long is given up, seconds.
    pub session_idle_seconds_max: u64,
}

impl Default for SpeechConfig {
    fn default() -> Self {
        Self {
            detector: PathBuf::from("models/silero-vad"),
            speech_above: 0.5,
            window_seconds_max: 15.0,
            window_overlap_seconds: 2.0,
            windows_in_flight_max: 4,
            long_recordings_max: 2,
            utterance_pause_ms: 500,
            partial_interval_ms: 320,
            confirm_interval_ms: 960,
            sessions_max: 256,
            session_idle_seconds_max: 60,
        }
    }
}

impl SpeechConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] that names the key, what was found and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("speech.speech_above", self.speech_above, 0.2, 0.95)?;
        ConfigError::range("speech.window_seconds_max", self.window_seconds_max, 2.0, 30.0)?;
        let overlap_max = self.window_seconds_max / 2.0;
        ConfigError::range(
            "speech.window_overlap_seconds",
            self.window_overlap_seconds,
            0.0,
            overlap_max,
        )?;
        ConfigError::range("speech.windows_in_flight_max", self.windows_in_flight_max, 1, 256)?;
        ConfigError::range("speech.long_recordings_max", self.long_recordings_max, 1, 64)?;
        ConfigError::range("speech.utterance_pause_ms", self.utterance_pause_ms, 200, 10_000)?;
        ConfigError::range(
            "speech.partial_interval_ms",
            self.partial_interval_ms,
            100,
            10_000,
        )?;
        ConfigError::range(
            "speech.confirm_interval_ms",
            self.confirm_interval_ms,
            self.partial_interval_ms,
            10_000,
        )?;
        ConfigError::range("speech.sessions_max", self.sessions_max, 1, 65_536)?;
        ConfigError::range(
            "speech.session_idle_seconds_max",
            self.session_idle_seconds_max,
            1,
            86_400,
        )
    }

    /// Longest window, samples.
    pub fn window_samples_max(&self) -> usize {
        samples_of(self.window_seconds_max)
    }

    /// How windows are cut: those of a stream, `by_utterance`, at every pause that ends an utterance.
    pub fn windows(&self, by_utterance: bool) -> WindowLimits {
        let pause = samples_of(self.utterance_pause_ms as f64 / 1e3);
        WindowLimits {
            samples_max: self.window_samples_max(),
            overlap_samples: samples_of(self.window_overlap_seconds),
            utterance_pause_samples: by_utterance.then_some(pause),
            speech_above: self.speech_above as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(AudioConfig::default().validate(), Ok(()));
    }

    #[test]
    fn a_misspelt_key_is_an_error_that_names_the_key() {
        let error = toml::from_str::<AudioConfig>("second_max = 3").unwrap_err();

        assert!(error.to_string().contains("second_max"), "{error}");
    }

    #[test]
    fn keys_that_are_absent_keep_their_default() {
        let config: AudioConfig = toml::from_str("seconds_max = 3").unwrap();

        assert_eq!(
            config,
            AudioConfig {
                seconds_max: 3.0,
                ..AudioConfig::default()
            }
        );
    }

    #[test]
    fn values_that_cannot_work_are_refused_by_name() {
        let good = AudioConfig::default();
        let cases = [
            (
                "seconds_max",
                AudioConfig {
                    seconds_max: f64::NAN,
                    ..good.clone()
                },
            ),
            (
                "seconds_max",
                AudioConfig {
                    seconds_max: 0.0,
                    ..good.clone()
                },
            ),
            (
                "whole_seconds_max",
                AudioConfig {
                    whole_seconds_max: f64::INFINITY,
                    ..good.clone()
                },
            ),
            (
                "value_bytes_max",
                AudioConfig {
                    value_bytes_max: 0,
                    ..good.clone()
                },
            ),
            (
                "decoded_samples_max",
                AudioConfig {
                    decoded_samples_max: 0,
                    ..good.clone()
                },
            ),
            (
                "channels_max",
                AudioConfig {
                    channels_max: 0,
                    ..good.clone()
                },
            ),
            (
                "rate_hz_min",
                AudioConfig {
                    rate_hz_min: 0,
                    ..good.clone()
                },
            ),
            (
                "rate_hz_max",
                AudioConfig {
                    rate_hz_max: 10,
                    ..good.clone()
                },
            ),
            (
                "unheard_share_max",
                AudioConfig {
                    unheard_share_max: 1.5,
                    ..good.clone()
                },
            ),
            (
                "no_speech_below_dbfs",
                AudioConfig {
                    no_speech_below_dbfs: f64::NAN,
                    ..good
                },
            ),
        ];

        for (key, config) in cases {
            assert_eq!(config.validate().unwrap_err().key, key);
        }
    }

    #[test]
    fn what_makes_no_sense_in_the_speech_table_is_refused_by_name() {
        for (text, key) in [
            ("speech_above = 1.0", "speech.speech_above"),
            ("speech_above = nan", "speech.speech_above"),
            ("window_seconds_max = 31.0", "speech.window_seconds_max"),
            (
                "window_seconds_max = 2.0\nwindow_overlap_seconds = 1.1",
                "speech.window_overlap_seconds",
            ),
            ("windows_in_flight_max = 0", "speech.windows_in_flight_max"),
            ("sessions_max = 0", "speech.sessions_max"),
            ("utterance_pause_ms = 100", "speech.utterance_pause_ms"),
        ] {
            let config: SpeechConfig = toml::from_str(text).unwrap();
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
        SpeechConfig::default().validate().unwrap();
    }
}

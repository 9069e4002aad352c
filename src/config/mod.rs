//! Settings that people write: load, overlay, validate.
//!
//! A setting comes from the TOML file, or from an environment variable that overrides it: `[kafka] bootstrap`
//! is `SPEECHVERSE__KAFKA__BOOTSTRAP`; a property of librdkafka, `[kafka.client] "sasl.password"`, is
//! `SPEECHVERSE__KAFKA__CLIENT__SASL_PASSWORD`. Misspelt keys are errors that name the key. Relative paths
//! are relative to the working directory.

use std::path::{Path, PathBuf};

use embedded_broker::BrokerConfig;
use serde::{Deserialize, Serialize};

mod environment;
pub mod service;

use crate::audio::config::{AudioConfig, SpeechConfig};
use crate::inference::config::{DecoderConfig, DecodingConfig, EncoderConfig};
use crate::inference::{ByWindow, EngineConfig};
use crate::kafka::config::KafkaConfig;
use crate::models::config::ModelConfig;
use crate::registry::config::AdaptersConfig;
use crate::store::config::StoreConfig;
use crate::telemetry::config::{LogConfig, TraceConfig};
use crate::telemetry::logs;
use crate::training::trainer_config::TrainerConfig;
use crate::util::ConfigError;
use environment::Variable;
use service::{AdmissionConfig, HttpConfig, ServiceConfig};

/// Everything that `serve` needs to know; each table has its own page.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The process as a whole.
    pub service: ServiceConfig,
    /// How much is worked on at once, and who goes first.
    pub admission: AdmissionConfig,
    /// Which networks, where they run, and which adapter.
    pub model: ModelConfig,
    /// Broker, topics, delivery.
    pub kafka: KafkaConfig,
    /// The embedded broker, when it is used.
    pub broker: BrokerConfig,
    /// Limits and windows of incoming sound.
    pub audio: AudioConfig,
    /// How speech is found in it, and where it is cut.
    pub speech: SpeechConfig,
    /// Batching in front of the speech encoder.
    pub encoder: EncoderConfig,
    /// Generation of answers.
    pub decoder: DecoderConfig,
    /// How the next token is chosen.
    pub decoding: DecodingConfig,
    /// Where adapter versions live.
    pub adapters: AdaptersConfig,
    /// Labelled samples kept for training.
    pub store: StoreConfig,
    /// Training cycles.
    pub trainer: TrainerConfig,
    /// Metrics and health.
    pub http: HttpConfig,
    /// Logs.
    pub log: LogConfig,
    /// Export of traces.
    pub trace: TraceConfig,
}

impl Settings {
    /// The inference engine that serving, `ask`, `eval` and the promotion gate have in common: the
    /// `[encoder]`, `[decoder]` and `[decoding]` tables. Its memory grows with what is asked, and prompts are
    /// read whole; serving sets all memory aside at the start, and limits how long prompts hold answers up.
    pub fn engine(&self) -> EngineConfig {
        EngineConfig {
            slots: self.decoder.slots,
            positions_max: self.decoder.positions_max,
            answer_positions: self.decoder.tokens_max,
            batch_windows_max: self.encoder.batch_windows_max,
            options: self.decoding.options(self.decoder.tokens_max),
            by_window: Some(ByWindow {
                speech: self.speech.clone(),
                audio: self.audio.clone(),
            }),
            prefill_positions_max: 0,
            draft_tokens_max: self.decoder.draft_tokens_max,
            preallocate: false,
        }
    }

    /// Reads the file, applies the environment, and checks the rules between settings.
    ///
    /// # Errors
    /// [`ConfigError`], which names the file, the key and what is allowed.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let env = environment::of_process(std::env::vars_os())?;
        let settings = Self::parse(&text, env.iter().cloned()).map_err(|error| match error {
            ConfigError::Parse { message, .. } => ConfigError::Parse {
                path: path.to_owned(),
                message,
            },
            other => other,
        })?;
        let variables = Variable::all(env)?;
        settings
            .validate()
            .map_err(|error| environment::blame(error, &variables))?;
        Ok(settings)
    }

    /// Parses settings text and overlays `SPEECHVERSE__TABLE__KEY` pairs; does not validate.
    ///
    /// # Errors
    /// [`ConfigError::Parse`] or [`ConfigError::Environment`].
    pub fn parse(text: &str, env: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let parse_error = |error: toml::de::Error| ConfigError::Parse {
            path: PathBuf::new(),
            message: error.to_string(),
        };
        let from_file: Self = toml::from_str(text).map_err(parse_error)?;
        let variables = Variable::all(env)?;
        if variables.is_empty() {
            return Ok(from_file);
        }
        environment::overlay(toml::from_str(text).map_err(parse_error)?, &variables)
    }

    /// Settings from a table; an error in one line.
    fn try_from(table: toml::Table) -> Result<Self, String> {
        let words =
            |error: toml::de::Error| error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        table.try_into().map_err(words)
    }

    /// Checks ranges and the rules between settings.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] for the first rule that does not hold.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.kafka.validate()?;
        self.broker
            .validate()
            .map_err(|error| ConfigError::invalid("broker", error.to_string()))?;
        self.audio
            .validate()
            .map_err(|error| ConfigError::invalid("audio", error.to_string()))?;
        self.speech.validate()?;
        self.service.validate()?;
        self.admission.validate()?;
        self.encoder.validate()?;
        self.decoder.validate()?;
        self.decoding.validate(self.decoder.slots)?;
        self.adapters.validate()?;
        self.store.validate()?;
        self.trainer.validate()?;
        self.http.validate()?;
        logs::check_filter(&self.log.level).map_err(|why| ConfigError::invalid("log.level", why))?;
        if self.service.drain_ms_max >= self.kafka.session_timeout_ms {
            return Err(ConfigError::invalid(
                "service.drain_ms_max",
                format!(
                    "{} must be less than `kafka.session_timeout_ms` ({}), or the group hands the partitions on \
                     before the drain ends",
                    self.service.drain_ms_max, self.kafka.session_timeout_ms
                ),
            ));
        }
        if self.store.correction_wait_ms >= self.service.drain_ms_max {
            return Err(ConfigError::invalid(
                "store.correction_wait_ms",
                format!(
                    "{} must be less than `service.drain_ms_max` ({}), or a shutdown cannot finish the corrections that wait",
                    self.store.correction_wait_ms, self.service.drain_ms_max
                ),
            ));
        }
        // Whisper's 50 frames a second through strides [2, 2], and positions for the chat layout and a short
        // instruction.
        let whole_seconds_max = self.audio.whole_seconds_max.max(self.speech.window_seconds_max);
        let seconds_max = whole_seconds_max.min(self.audio.seconds_max);
        let positions = seconds_max * 12.5 + self.decoder.tokens_max as f64 + 64.0;
        if positions > self.decoder.positions_max as f64 {
            return Err(ConfigError::invalid(
                "decoder.positions_max",
                format!(
                    "{} is too few for {seconds_max} s of sound (`audio.whole_seconds_max`; 12.5 positions a second) and `decoder.tokens_max` = {}: \
                     at least {positions:.0} are needed",
                    self.decoder.positions_max, self.decoder.tokens_max
                ),
            ));
        }
        if self.service.default_instruction.trim().is_empty() {
            return Err(ConfigError::invalid(
                "service.default_instruction",
                "must not be empty",
            ));
        }
        Ok(())
    }

    /// The effective settings as TOML, with secrets hidden.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).unwrap_or_else(|error| format!("# cannot be shown as TOML: {error}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_an_error_that_names_the_key() {
        let error = Settings::parse("[encoder]\nbatch_window_max = 4\n", []).unwrap_err();

        assert!(error.to_string().contains("batch_window_max"), "{error}");
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let env = [
            (
                "SPEECHVERSE__ENCODER__BATCH_WINDOWS_MAX".to_owned(),
                "3".to_owned(),
            ),
            (
                "SPEECHVERSE__KAFKA__BOOTSTRAP".to_owned(),
                "127.0.0.1:9092".to_owned(),
            ),
        ];

        let settings = Settings::parse("[encoder]\nbatch_windows_max = 4\n", env).unwrap();

        assert_eq!(settings.encoder.batch_windows_max, 3);
        assert_eq!(settings.kafka.bootstrap, "127.0.0.1:9092");
    }

    #[test]
    fn a_misspelt_variable_is_an_error() {
        let env = [("SPEECHVERSE__ENCODER__BATCH".to_owned(), "3".to_owned())];

        let error = Settings::parse("", env).unwrap_err();

        assert!(matches!(error, ConfigError::Environment { .. }), "{error}");
    }

    #[test]
    fn an_empty_file_is_valid_and_its_toml_reads_back() {
        let settings = Settings::parse("", []).unwrap();
        settings.validate().unwrap();

        let again = Settings::parse(&settings.to_toml(), []).unwrap();

        assert_eq!(again.encoder, settings.encoder);
        assert_eq!(again.decoder, settings.decoder);
    }

    #[test]
    fn a_value_out_of_range_names_the_key_and_the_range() {
        let mut settings = Settings::default();
        settings.encoder.batch_windows_max = 0;

        let error = settings.validate().unwrap_err();

        assert_eq!(
            error.to_string(),
            "setting `encoder.batch_windows_max`: 0 is outside 1..=256"
        );
    }
}

//! The `[encoder]`, `[decoder]`, `[http]` and `[service]` tables.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::util::ConfigError;

/// The `[encoder]` table: how utterances are gathered for the speech encoder.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderConfig {
    /// Largest number of windows in one forward pass. Larger: more throughput, more latency and memory.
    pub batch_windows_max: usize,
    /// Longest an utterance waits for company, milliseconds.
    pub batch_wait_ms_max: u64,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self {
            batch_windows_max: 8,
            batch_wait_ms_max: 5,
        }
    }
}

/// The `[decoder]` table: how answers are generated.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct DecoderConfig {
    /// Answers generated side by side; utterances join and leave between steps.
    pub slots: usize,
    /// Positions that a slot can hold: prompt, audio (12.5 a second) and answer together. An encoder–decoder keeps
    /// `tokens_max` of them for the answer.
    pub positions_max: usize,
    /// Answer tokens, when the request does not say; every slot has room for them, or the audio is too long. A request
    /// for more gets as many as its slot has room for. An answer that reaches its most tokens is flagged `truncated`.
    pub tokens_max: usize,
    /// A request with `ce_partials` gets the text so far whenever so many tokens have been added.
    pub partial_tokens: usize,
    /// Mean token log-probability under which an answer is flagged `low_confidence`.
    pub low_confidence_below: f64,
    /// Natural-log probability of a transcript under the CTC head, per token, under which it is flagged `unsupported`: the
    /// sound does not say it. For adapters that have such a head.
    pub unsupported_below: f64,
    /// Mean probability of the CTC head's blank above which nothing was said: a transcript is flagged `no_speech`.
    pub no_speech_above: f64,
}

impl Default for DecoderConfig {
    fn default() -> Self {
        Self {
            slots: 8,
            positions_max: 2048,
            tokens_max: 128,
            partial_tokens: 8,
            low_confidence_below: -1.0,
            unsupported_below: -3.0,
            no_speech_above: 0.98,
        }
    }
}

/// The `[http]` table: metrics and health.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Address to listen on; loopback unless you say otherwise. Port 0 takes a free one and logs it.
    pub listen: SocketAddr,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9464)),
        }
    }
}

/// The `[service]` table: what concerns the process as a whole.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceConfig {
    /// Longest a shutdown waits for answers in flight, milliseconds; what is left then is read again after a restart.
    pub drain_ms_max: u64,
    /// Instruction for a request that names neither an instruction nor a task.
    pub default_instruction: String,
    /// Folder of task files (`*.toml`).
    pub tasks_dir: std::path::PathBuf,
    /// Value of the `ce_source` header of everything this process publishes.
    pub source: String,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            drain_ms_max: 10_000,
            default_instruction: "Transcribe the speech.".to_owned(),
            tasks_dir: "configs/tasks".into(),
            source: "/speechverse".to_owned(),
        }
    }
}

impl EncoderConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("encoder.batch_windows_max", self.batch_windows_max, 1, 256)?;
        ConfigError::range("encoder.batch_wait_ms_max", self.batch_wait_ms_max, 0, 10_000)
    }
}

impl DecoderConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("decoder.slots", self.slots, 1, 256)?;
        ConfigError::range("decoder.positions_max", self.positions_max, 64, 131_072)?;
        ConfigError::range("decoder.partial_tokens", self.partial_tokens, 2, 1_024)?;
        ConfigError::range("decoder.tokens_max", self.tokens_max, 1, self.positions_max / 2)
    }
}

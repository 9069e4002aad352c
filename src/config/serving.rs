//! The `[encoder]`, `[decoder]`, `[http]` and `[service]` tables.

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
    /// Positions that a slot can hold: prompt, audio (12.5 a second) and answer together. An encoder–decoder
    /// keeps `tokens_max` of them for the answer.
    pub positions_max: usize,
    /// Answer tokens, when the request does not say; every slot has room for them, or the audio is too long.
    /// A request for more gets as many as its slot has room for. An answer that reaches its most tokens is
    /// flagged `truncated`.
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
    /// Address or name, and port, to listen on; loopback unless you say otherwise. Port 0 takes a free one
    /// and logs it.
    pub listen: String,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9464".to_owned(),
        }
    }
}

/// The `[service]` table: what concerns the process as a whole.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceConfig {
    /// Longest a shutdown waits for answers in flight, milliseconds; what is left then is read again after a
    /// restart.
    pub drain_ms_max: u64,
    /// Instruction for a request that names neither an instruction nor a task.
    pub default_instruction: String,
    /// Folder of task files (`*.toml`).
    pub tasks_dir: std::path::PathBuf,
    /// Value of the `ce_source` header of everything this process publishes.
    pub source: String,
    /// An order of the control topic that was written longer ago is not obeyed, seconds.
    pub order_age_seconds_max: u64,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            drain_ms_max: 10_000,
            default_instruction: "Transcribe the speech.".to_owned(),
            tasks_dir: "configs/tasks".into(),
            source: "/speechverse".to_owned(),
            order_age_seconds_max: 600,
        }
    }
}

impl HttpConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let fits = self.listen.rsplit_once(':').is_some_and(|(host, port)| {
            let bare = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
            !host.is_empty() && bare && !host.contains(char::is_whitespace) && port.parse::<u16>().is_ok()
        });
        match fits {
            true => Ok(()),
            false => Err(ConfigError::invalid(
                "http.listen",
                format!(
                    "`{}` is not `host:port`, such as 127.0.0.1:9464, localhost:9464 or [::1]:9464",
                    self.listen.escape_debug()
                ),
            )),
        }
    }
}

impl ServiceConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        const YEAR_SECONDS: u64 = 365 * 24 * 3600;
        ConfigError::range(
            "service.order_age_seconds_max",
            self.order_age_seconds_max,
            1,
            YEAR_SECONDS,
        )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_listen_on_is_a_host_and_a_port() {
        let check = |listen: &str| {
            let listen = listen.to_owned();
            HttpConfig { listen }.validate()
        };

        for good in [
            "127.0.0.1:9464",
            "localhost:9464",
            "[::1]:0",
            "0.0.0.0:80",
            "metrics.example:9464",
        ] {
            check(good).unwrap();
        }
        for bad in [
            "",
            "9464",
            ":9464",
            "localhost",
            "localhost:",
            "localhost:99999",
            "::1:9464",
            "a b:1",
        ] {
            let error = check(bad).unwrap_err().to_string();
            assert!(error.contains("http.listen"), "{error}");
        }
    }
}

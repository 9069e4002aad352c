//! The `[http]`, `[service]` and `[admission]` tables.

use serde::{Deserialize, Serialize};

use crate::util::ConfigError;

/// The `[http]` table: metrics and health.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Address or name, and port, to listen on; loopback unless you say otherwise. Port 0 takes a free one
    /// and logs it.
    pub listen: String,
}

/// The `[admission]` table: how much is worked on at once, and who goes first.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct AdmissionConfig {
    /// Seconds of audio read and not yet answered; above it nothing is read. One busy partition gets half of
    /// it, so that the others are read on.
    pub audio_seconds_max: f64,
    /// Share of the audio seconds that bulk requests (`ce_priority: bulk`) get while interactive ones wait
    /// too, 0 to below 1; 0: only when no interactive one waits.
    pub bulk_share: f64,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            audio_seconds_max: 600.0, // 38 MB of samples
            bulk_share: 0.1,
        }
    }
}

impl AdmissionConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if !(1.0..=1e6).contains(&self.audio_seconds_max) {
            return Err(ConfigError::invalid(
                "admission.audio_seconds_max",
                format!("{} is not 1 to 1000000 seconds", self.audio_seconds_max),
            ));
        }
        if !(0.0..1.0).contains(&self.bulk_share) {
            return Err(ConfigError::invalid(
                "admission.bulk_share",
                format!("{} is not 0 to below 1", self.bulk_share),
            ));
        }
        Ok(())
    }
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
    /// An order of the control topic that was written longer ago is not carried out, seconds.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admission_has_bounds() {
        AdmissionConfig::default().validate().unwrap();
        for (audio_seconds_max, bulk_share, key) in [
            (0.0, 0.1, "audio_seconds_max"),
            (f64::NAN, 0.1, "audio_seconds_max"),
            (60.0, 1.0, "bulk_share"),
            (60.0, -0.1, "bulk_share"),
        ] {
            let config = AdmissionConfig {
                audio_seconds_max,
                bulk_share,
            };
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

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

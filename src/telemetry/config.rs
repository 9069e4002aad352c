//! The `[log]` and `[trace]` tables.

use serde::{Deserialize, Serialize};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One line of text for a person.
    #[default]
    Text,
    /// One JSON object a line, for a log collector.
    Json,
}

/// The `[log]` table.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Filter in the syntax of `RUST_LOG`, which overrides it.
    pub level: String,
    /// `text` for people, `json` for collectors.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info,librdkafka=warn,kameo=warn".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// The `[trace]` table: where the spans of requests go. Needs a build with the feature `otlp`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct TraceConfig {
    /// Address of an OTLP collector that takes protobuf over HTTP, for example `http://127.0.0.1:4318`;
    /// empty: the variable `OTEL_EXPORTER_OTLP_ENDPOINT`, and without that no export.
    pub otlp_endpoint: String,
    /// Name of this service in traces.
    pub service_name: String,
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self {
            otlp_endpoint: String::new(),
            service_name: "speechverse".to_owned(),
        }
    }
}

impl TraceConfig {
    /// The collector's address: the setting, else the standard variable.
    pub fn endpoint(&self) -> Option<String> {
        let standard = || std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").unwrap_or_default();
        Some(self.otlp_endpoint.clone())
            .filter(|endpoint| !endpoint.is_empty())
            .or_else(|| Some(standard()).filter(|endpoint| !endpoint.is_empty()))
    }
}

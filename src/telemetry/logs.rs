//! Logs go to standard error; answers and tables go to standard output.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

use super::config::{LogConfig, LogFormat, TraceConfig};

/// Keeps the export of traces alive; dropped at the end of the process, so that the last spans are sent.
#[derive(Debug, Default)]
#[must_use = "traces are exported while this lives"]
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    _export: Option<super::otlp::TraceExport>,
}

/// Installs the log writer for the whole process; later calls change nothing.
///
/// The level comes from `RUST_LOG` when that is set, else from the settings (`info`, `debug`, or a filter
/// such as `speechverse=debug,rdkafka=warn`).
pub fn init_lines(log: &LogConfig) {
    let (filter, complaint) = chosen(log);
    let _ = tracing_subscriber::registry().with(lines(log, filter)).try_init();
    complain(complaint);
}

/// As [`init_lines`], and exports spans where `trace` names a collector.
///
/// # Errors
/// In words, when a collector is named and this build cannot export traces, or its address is no URL.
pub fn init(log: &LogConfig, trace: &TraceConfig) -> Result<Telemetry, String> {
    let Some(endpoint) = trace.endpoint() else {
        init_lines(log);
        return Ok(Telemetry::default());
    };
    export_to(&endpoint, log, trace)
}

#[cfg(feature = "otlp")]
fn export_to(endpoint: &str, log: &LogConfig, trace: &TraceConfig) -> Result<Telemetry, String> {
    let export = super::otlp::TraceExport::new(endpoint, &trace.service_name)
        .map_err(|error| format!("cannot export traces to `{endpoint}` (`trace.otlp_endpoint`): {error}"))?;
    // Only our own spans, or the exporter would trace its own requests.
    let own = tracing_subscriber::filter::filter_fn(|metadata| {
        metadata.is_span() && metadata.target().starts_with("speechverse")
    });
    let spans = tracing_opentelemetry::layer().with_tracer(export.tracer());
    let (filter, complaint) = chosen(log);
    let _ = tracing_subscriber::registry()
        .with(lines(log, filter))
        .with(spans.with_filter(own))
        .try_init();
    complain(complaint);
    Ok(Telemetry {
        _export: Some(export),
    })
}

#[cfg(not(feature = "otlp"))]
fn export_to(endpoint: &str, _: &LogConfig, _: &TraceConfig) -> Result<Telemetry, String> {
    Err(format!(
        "traces are to go to `{endpoint}`, but this build cannot export them: build with `--features otlp`, or unset \
         `trace.otlp_endpoint` and OTEL_EXPORTER_OTLP_ENDPOINT"
    ))
}

/// Checks a filter of log lines.
///
/// # Errors
/// What is wrong with it.
pub fn check_filter(text: &str) -> Result<(), String> {
    filter(text).map(|_| ())
}

/// A filter of log lines.
///
/// # Errors
/// What is wrong with it. A word alone that is no level is refused: it would be read as the name of a target,
/// and everything else, errors included, would be silent.
fn filter(text: &str) -> Result<EnvFilter, String> {
    let directives = text.split(',').map(str::trim);
    let alone = directives.filter(|directive| !directive.is_empty() && !directive.contains(['=', '[', '}']));
    for word in alone {
        if word.parse::<LevelFilter>().is_err() {
            return Err(format!(
                "`{word}` is no level: off, error, warn, info, debug or trace; that of one target is `target=level`"
            ));
        }
    }
    EnvFilter::try_new(text).map_err(|error| error.to_string())
}

/// The filter of `RUST_LOG`, else of the settings; and why `RUST_LOG` is not used, where it is set.
fn chosen(log: &LogConfig) -> (EnvFilter, Option<String>) {
    let of_settings = || filter(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) if !text.trim().is_empty() => match filter(&text) {
            Ok(filter) => (filter, None),
            Err(why) => (of_settings(), Some(why)),
        },
        _ => (of_settings(), None),
    }
}

fn complain(about_environment: Option<String>) {
    if let Some(why) = about_environment {
        tracing::warn!("{} is not used: {why}", EnvFilter::DEFAULT_ENV);
    }
}

/// The layer that writes log lines to standard error.
fn lines<S>(log: &LogConfig, filter: EnvFilter) -> impl Layer<S> + use<S>
where
    S: tracing::Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span>,
{
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .log_internal_errors(false) // it would write to the standard error that cannot be written, and panic
        .with_target(false);
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    lines.with_filter(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused_and_silences_nothing() {
        for text in ["warning", "WARNING", "info,librdkafka", "speechverse=loud", ",=["] {
            assert!(filter(text).is_err(), "{text}");
        }
        for text in [
            "",
            "info",
            "WARN",
            "off",
            "speechverse=debug,rdkafka=warn",
            "[request{id=1}]=trace,info",
        ] {
            filter(text).unwrap();
        }
    }
}

//! Logs go to standard error; answers and tables go to standard output.

use std::io::IsTerminal as _;

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
    let _ = tracing_subscriber::registry().with(lines(log)).try_init();
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
    let _ = tracing_subscriber::registry()
        .with(lines(log))
        .with(spans.with_filter(own))
        .try_init();
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

/// The layer that writes log lines to standard error.
fn lines<S>(log: &LogConfig) -> impl Layer<S> + use<S>
where
    S: tracing::Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span>,
{
    let filter = EnvFilter::try_from_default_env()
        .or_else(|_| EnvFilter::try_new(&log.level))
        .unwrap_or_else(|_| EnvFilter::new("info"));
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

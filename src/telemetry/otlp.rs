//! Export of spans by OTLP: protobuf over HTTP, in batches, from a thread of its own.

use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

/// Longest that the last spans are waited for at the end of the process.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

/// Sends the spans that still wait when it is dropped.
#[derive(Debug)]
pub struct TraceExport {
    provider: SdkTracerProvider,
}

impl TraceExport {
    /// An exporter to the collector at `endpoint` (`http://HOST:PORT`; `/v1/traces` is added).
    ///
    /// # Errors
    /// [`ExporterBuildError`] when the endpoint is no URL.
    pub fn new(endpoint: &str, service_name: &str) -> Result<Self, ExporterBuildError> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .build()?;
        let resource = Resource::builder()
            .with_service_name(service_name.to_owned())
            .build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_batch_exporter(exporter)
            .build();
        Ok(Self { provider })
    }

    /// The tracer that spans are handed to.
    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer("speechverse")
    }
}

impl Drop for TraceExport {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown_with_timeout(SHUTDOWN_WAIT) {
            tracing::debug!(%error, "the last spans were not exported");
        }
    }
}

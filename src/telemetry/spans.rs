//! The span of a request: every log line of a request is inside it, and where traces are exported it
//! continues the trace that the request came with.

use tracing::Span;

/// What identifies a request in logs and traces.
#[derive(Clone, Copy, Debug)]
pub struct RequestIdentity<'r> {
    /// Id of the request, unique within its source.
    pub request_id: &'r str,
    /// Id of the stream it belongs to.
    pub session: Option<&'r str>,
    /// Topic that its record was read from.
    pub topic: &'r str,
    /// Partition of that topic.
    pub partition: i32,
    /// Offset of its record.
    pub offset: i64,
}

/// The trace that a request belongs to, as its `traceparent` header says (W3C Trace Context, level 1).
#[derive(Clone, Copy, Debug)]
pub struct RemoteParent<'r> {
    /// 32 hexadecimal digits.
    pub trace_id: &'r str,
    /// 16 hexadecimal digits: the span that the request's span is a child of.
    pub span_id: &'r str,
    /// Trace flags; bit 0 says sampled.
    pub flags: u8,
}

/// Begins the span of a request, as a child of `parent` where traces are exported.
pub fn request_span(identity: RequestIdentity<'_>, parent: RemoteParent<'_>) -> Span {
    let span = tracing::info_span!(
        "request",
        otel.kind = "consumer",
        request_id = identity.request_id,
        session = identity.session,
        topic = identity.topic,
        partition = identity.partition,
        offset = identity.offset,
    );
    set_parent(&span, parent);
    span
}

#[cfg(feature = "otlp")]
fn set_parent(span: &Span, parent: RemoteParent<'_>) {
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;

    let (Ok(trace_id), Ok(span_id)) = (
        TraceId::from_hex(parent.trace_id),
        SpanId::from_hex(parent.span_id),
    ) else {
        return; // headers were checked where they were parsed
    };
    let flags = TraceFlags::new(parent.flags);
    let remote = SpanContext::new(trace_id, span_id, flags, true, TraceState::default());
    // Refused where no exporter is installed: the span is then one for logs only.
    let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(remote));
}

#[cfg(not(feature = "otlp"))]
fn set_parent(_: &Span, _: RemoteParent<'_>) {}

/// The id of a span as traces name it, 16 hexadecimal digits; absent where traces are not exported.
#[cfg(feature = "otlp")]
pub fn span_id(span: &Span) -> Option<String> {
    use opentelemetry::trace::TraceContextExt as _;
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;

    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| context.span_id().to_string())
}

/// The id of a span as traces name it; this build does not export traces.
#[cfg(not(feature = "otlp"))]
pub fn span_id(_: &Span) -> Option<String> {
    None
}

//! W3C trace context: continued when a record brings one, begun when it does not.

use std::fmt;
use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;

use super::headers::{Headers, header};

/// Longest `tracestate` that is passed on, bytes; W3C asks for at least 512.
const STATE_BYTES_MAX: usize = 1024;

/// A span of a trace, in the sense of <https://www.w3.org/TR/trace-context/>.
///
/// [`fmt::Display`] writes the `traceparent` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
    state: Option<String>,
}

impl TraceContext {
    /// Begins a trace, sampled.
    pub fn begin() -> Self {
        let trace_id = u128::from(random()) << 64 | u128::from(random());
        Self {
            trace_id,
            span_id: random(),
            flags: 1,
            state: None,
        }
    }

    /// The span of the sender, from a `traceparent` value; `None` when it is malformed.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let lower_hex = |text: &str| {
            text.bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
                .then_some(())
        };
        let (known, later) = traceparent.split_at_checked(55)?;
        let (version, rest) = known.split_once('-')?;
        let (trace_id, rest) = rest.split_once('-')?;
        let (span_id, flags) = rest.split_once('-')?;
        if (version.len(), trace_id.len(), span_id.len(), flags.len()) != (2, 32, 16, 2) {
            return None;
        }
        [version, trace_id, span_id, flags]
            .into_iter()
            .try_for_each(lower_hex)?;
        // Later versions may append fields; version 0 may not, and 255 is no version.
        if version == "ff" || !(later.is_empty() || (version != "00" && later.starts_with('-'))) {
            return None;
        }
        let trace_id = u128::from_str_radix(trace_id, 16).ok()?;
        let span_id = u64::from_str_radix(span_id, 16).ok()?;
        let flags = u8::from_str_radix(flags, 16).ok()? & 1;
        (trace_id != 0 && span_id != 0).then_some(Self {
            trace_id,
            span_id,
            flags,
            state: None,
        })
    }

    /// The span that the headers `traceparent` and `tracestate` name. A malformed one counts as none: a trace is never
    /// worth a dead letter.
    pub fn from_headers(headers: Headers<'_>) -> Option<Self> {
        let parent = headers
            .text("traceparent")
            .ok()
            .flatten()
            .and_then(Self::parse)?;
        let state = headers.text("tracestate").ok().flatten();
        Some(parent.with_state(state))
    }

    /// This context with a `tracestate`; one that is empty, too long or not printable is left out.
    #[must_use]
    pub fn with_state(mut self, state: Option<&str>) -> Self {
        self.state = state
            .filter(|state| (1..=STATE_BYTES_MAX).contains(&state.len()))
            .filter(|state| state.bytes().all(|byte| (0x20..0x7f).contains(&byte)))
            .map(str::to_owned);
        self
    }

    /// A new span in the same trace, whose parent is this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            span_id: random(),
            ..self.clone()
        }
    }

    /// The trace id, 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// The span id, 16 hexadecimal digits.
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span_id)
    }

    /// The headers `traceparent` and, when there is one, `tracestate`.
    pub fn to_headers(&self) -> Vec<(String, Option<Bytes>)> {
        let mut headers = vec![header("traceparent", self.to_string())];
        headers.extend(
            self.state
                .as_ref()
                .map(|state| header("tracestate", state.clone())),
        );
        headers
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id, self.span_id, self.flags
        )
    }
}

/// A number that is not zero, from the random keys that the standard library gives its hash maps; ids need to be
/// different, not secret.
fn random() -> u64 {
    RandomState::new()
        .hash_one(std::thread::current().id())
        .max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_trace_is_continued_with_a_new_span() {
        let parent = TraceContext::parse(EXAMPLE)
            .unwrap()
            .with_state(Some("vendor=1"));

        let child = parent.child();

        assert_eq!(parent.to_string(), EXAMPLE);
        assert_eq!(child.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_ne!(child.span_id(), parent.span_id());
        assert_eq!(child.to_headers()[1], header("tracestate", "vendor=1"));
    }

    #[test]
    fn what_is_malformed_is_no_trace() {
        for text in [
            "",
            "00",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
        ] {
            assert_eq!(TraceContext::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";

        assert_eq!(TraceContext::parse(later), TraceContext::parse(EXAMPLE));
    }

    #[test]
    fn traces_begun_one_after_the_other_differ() {
        let mut ids: Vec<String> = (0..1_000)
            .map(|_| TraceContext::begin().to_string())
            .collect();
        ids.sort();
        ids.dedup();

        assert_eq!(ids.len(), 1_000);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(trace_id in 1_u128.., span_id in 1_u64.., flags in 0_u8..2) {
            let context = TraceContext { trace_id, span_id, flags, state: None };

            prop_assert_eq!(TraceContext::parse(&context.to_string()), Some(context));
        }

        #[test]
        fn random_text_never_panics(text in "\\PC{0,80}|[0-9a-f-]{50,60}") {
            let _ = TraceContext::parse(&text);
        }
    }
}

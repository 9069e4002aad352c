//! W3C trace context: continued where a record carries one, begun where not.

use sha2::{Digest, Sha256};

use super::RecordOffset;
use super::headers::Headers;
use crate::util::hex;

/// Identity of a trace and of the span that our work is a child of.
///
/// Source: W3C Trace Context, level 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// 16 bytes in lower-case hexadecimal digits, not all zero.
    pub trace_id: String,
    /// 8 bytes in lower-case hexadecimal digits, not all zero.
    pub parent_id: String,
    /// Trace flags; bit 0 says sampled.
    pub flags: u8,
    /// Vendors' entries, carried through.
    pub state: Option<String>,
    /// Whether it was begun here, because the record named none.
    pub is_new: bool,
    /// Our own span in it, 8 bytes in lower-case hexadecimal digits, where traces are exported.
    pub own_span: Option<String>,
}

impl TraceContext {
    /// Continues the record's trace; a missing or malformed one begins a new trace, derived from where the
    /// record stands, so that a repeat after a crash has the same.
    pub fn of(headers: Headers<'_>, record_offset: &RecordOffset) -> Self {
        const STATE_BYTES_MAX: usize = 512; // what the standard asks a vendor to propagate at least
        headers
            .text("traceparent", 256)
            .ok()
            .flatten()
            .and_then(Self::parse)
            .map(|context| Self {
                state: headers
                    .text("tracestate", STATE_BYTES_MAX)
                    .ok()
                    .flatten()
                    .map(str::to_owned),
                ..context
            })
            .unwrap_or_else(|| Self::begin(record_offset))
    }

    /// Reads a `traceparent`; `None` when it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let (version, trace_id, parent_id, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_hex = |text: &str, digits: usize| {
            text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let some = |text: &str| text.bytes().any(|byte| byte != b'0');
        let known = is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        let valid =
            known && is_hex(trace_id, 32) && some(trace_id) && is_hex(parent_id, 16) && some(parent_id);
        if !valid || !is_hex(flags, 2) {
            return None;
        }
        Some(Self {
            trace_id: trace_id.to_owned(),
            parent_id: parent_id.to_owned(),
            flags: u8::from_str_radix(flags, 16).ok()?,
            state: None,
            is_new: false,
            own_span: None,
        })
    }

    fn begin(record_offset: &RecordOffset) -> Self {
        let seed = format!(
            "{}/{}/{}",
            record_offset.topic, record_offset.partition, record_offset.offset
        );
        let digits = hex(&Sha256::digest(seed.as_bytes()));
        Self {
            trace_id: digits[..32].to_owned(),
            parent_id: digits[32..48].to_owned(),
            flags: 0,
            state: None,
            is_new: true,
            own_span: None,
        }
    }

    /// The flags for our own span: a trace that was begun here is sampled, another as its beginning decided.
    pub fn span_flags(&self) -> u8 {
        self.flags | u8::from(self.is_new)
    }

    /// The `traceparent` of a record that we write: same trace, and our span, or where traces are not
    /// exported one derived from `name`, so that a repeat after a crash has the same.
    pub fn child(&self, name: &str) -> String {
        if let Some(span) = &self.own_span {
            return format!("00-{}-{span}-{:02x}", self.trace_id, self.span_flags());
        }
        let seed = format!("{}/{}/{name}", self.trace_id, self.parent_id);
        let span = hex(&Sha256::digest(seed.as_bytes())[..8]);
        format!("00-{}-{span}-{:02x}", self.trace_id, self.flags)
    }
}

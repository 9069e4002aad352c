//! Kafka headers, read as the untrusted text they are.

use bytes::Bytes;

use super::rejection::{Reason, Rejection, Stage};

/// What the types of this program begin with.
const OWN_TYPES: &str = "speechverse.";

/// Headers by name. Of a repeated header the last one counts, as for Kafka's own `lastHeader`.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'r>(&'r [(String, Option<Bytes>)]);

impl<'r> Headers<'r> {
    /// A view of a record's headers.
    pub fn new(headers: &'r [(String, Option<Bytes>)]) -> Self {
        Self(headers)
    }

    /// The bytes of a header; `None` when it is absent, or present with no value.
    pub fn bytes(&self, name: &str) -> Option<&'r [u8]> {
        let (_, value) = self
            .0
            .iter()
            .rev()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        value.as_deref()
    }

    /// The text of a header, at most `bytes_max` bytes of UTF-8, without a byte order mark.
    ///
    /// # Errors
    /// A [`Rejection`] that names the header, when it is longer or not UTF-8.
    pub fn text(&self, name: &str, bytes_max: usize) -> Result<Option<&'r str>, Rejection> {
        let Some(bytes) = self.bytes(name) else {
            return Ok(None);
        };
        if bytes.len() > bytes_max {
            let message = format!(
                "header `{name}` has {} bytes, at most {bytes_max} are allowed",
                bytes.len()
            );
            return Err(Rejection::new(Reason::HeaderTooLarge, Stage::Ingest, message));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let utf16 = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
            let hint = if utf16 {
                " (it begins with a byte order mark of UTF-16)"
            } else {
                ""
            };
            let message = format!("header `{name}` is not UTF-8{hint}: {error}");
            Rejection::new(Reason::InvalidHeader, Stage::Ingest, message)
        })?;
        Ok(Some(text.strip_prefix('\u{feff}').unwrap_or(text)))
    }

    /// A header's text read as a value; `expected` says what would have been right.
    ///
    /// # Errors
    /// A [`Rejection`] that names the header, what was found and what was expected.
    pub fn parsed<T: std::str::FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, Rejection> {
        /// Longest text of a number, a flag or a time.
        const VALUE_BYTES_MAX: usize = 128;
        let Some(text) = self.text(name, VALUE_BYTES_MAX)? else {
            return Ok(None);
        };
        text.trim()
            .parse()
            .map(Some)
            .map_err(|_| invalid(name, text, expected))
    }

    /// A header that says yes or no: `true`, `yes`, `1`, `false`, `no`, `0`.
    ///
    /// # Errors
    /// A [`Rejection`] for any other text.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Rejection> {
        let Some(text) = self.text(name, 16)? else {
            return Ok(None);
        };
        match text.trim().to_ascii_lowercase().as_str() {
            "true" | "yes" | "1" => Ok(Some(true)),
            "false" | "no" | "0" => Ok(Some(false)),
            _ => Err(invalid(name, text, "`true` or `false`")),
        }
    }
}

/// The refusal of a header's value.
pub(crate) fn invalid(name: &str, found: &str, expected: &str) -> Rejection {
    let found: String = found.chars().take(64).collect();
    let message = format!(
        "header `{name}` is `{}`, expected {expected}",
        found.escape_debug()
    );
    Rejection::new(Reason::InvalidHeader, Stage::Ingest, message)
}

/// Refuses a `ce_type` of ours that is none of `known`: what a later version of a type means is not guessed.
/// A record without a type passes, and one of somebody else's.
pub(crate) fn refuse_unknown_type(
    headers: Headers<'_>,
    known: &[&str],
    stage: Stage,
) -> Result<(), Rejection> {
    let found = headers.bytes("ce_type").unwrap_or_default();
    if !found.starts_with(OWN_TYPES.as_bytes()) || known.iter().any(|known| known.as_bytes() == found) {
        return Ok(());
    }
    let found: String = String::from_utf8_lossy(found).chars().take(64).collect();
    let known = known.join("` or `");
    let message = format!(
        "`ce_type` is `{}`, expected `{known}` or none",
        found.escape_debug()
    );
    Err(Rejection::new(Reason::UnsupportedType, stage, message))
}

/// A header of an outgoing record.
pub(crate) fn header(name: &str, value: impl Into<String>) -> (String, Option<Bytes>) {
    (name.to_owned(), Some(Bytes::from(value.into())))
}

//! What is left out of a record that the broker refuses.

use bytes::Bytes;
use speechverse::wire::OutgoingRecord;
use speechverse::wire::dead_letter::{HEADERS_OMITTED_HEADER, KEY_OMITTED_HEADER, VALUE_OMITTED_HEADER};

/// Headers that we add ourselves, at most; a dead letter's stand behind those of its record.
const OWN_HEADERS_MAX: usize = 16;
/// Longest header that we add ourselves, name and value together.
const OWN_HEADER_BYTES_MAX: usize = 2_048;

/// Takes away what the record can best do without, and says so in a header; `false` when nothing is left to
/// take.
pub(super) fn shorten(outgoing: &mut OutgoingRecord) -> bool {
    let count = |name: &str, number: usize| (name.to_owned(), Some(Bytes::from(number.to_string())));
    let headers = &mut outgoing.headers;
    if let Some(value) = outgoing.value.take() {
        headers.push(count(VALUE_OMITTED_HEADER, value.len()));
        return true;
    }
    let before = headers.len();
    if before > OWN_HEADERS_MAX {
        headers.drain(..=before - OWN_HEADERS_MAX); // ours come last; one place is for the note below
    }
    headers.retain(|(name, value)| {
        name.len() + value.as_ref().map_or(0, |value| value.len()) <= OWN_HEADER_BYTES_MAX
    });
    let gone = before - headers.len();
    if gone > 0 {
        headers.push(count(HEADERS_OMITTED_HEADER, gone));
        return true;
    }
    let Some(key) = outgoing.key.take() else {
        return false;
    };
    headers.push(count(KEY_OMITTED_HEADER, key.len()));
    true
}

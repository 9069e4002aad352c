//! The record of a request that cannot be answered, with the reason in its headers.

use std::sync::Arc;

use jiff::Timestamp;

use super::headers::{Headers, header};
pub use super::rejection::{Reason, Rejection, Stage};
use super::{OutgoingRecord, Record};

/// Header that holds the [`Reason`].
pub const REASON_HEADER: &str = "speechverse_reason";
/// Header that says how often the record was tried; on a record of an input topic, which attempt it is.
/// Absent: the first.
pub const ATTEMPTS_HEADER: &str = "speechverse_attempts";
/// Header that says from when on trying again makes sense (RFC 3339), where the reason
/// [can heal](Reason::can_heal).
pub const RETRY_AFTER_HEADER: &str = "speechverse_retry_after";
/// Header that says for how many earlier chunks of its stream a dead letter stands without holding them.
pub const EARLIER_CHUNKS_HEADER: &str = "speechverse_earlier_chunks";
/// Header that says which request such a dead letter is about: answers to the stream have the id of its first
/// chunk.
pub const REQUEST_ID_HEADER: &str = "speechverse_request_id";
/// Header of a record whose value the broker refuses: how many bytes it had.
pub const VALUE_OMITTED_HEADER: &str = "speechverse_value_omitted";
/// Header of a record that the broker refuses even so: how many headers were left out.
pub const HEADERS_OMITTED_HEADER: &str = "speechverse_headers_omitted";
/// Header of a record that the broker refuses even so: how many bytes its key had.
pub const KEY_OMITTED_HEADER: &str = "speechverse_key_omitted";

/// Beginning of the names of Kafka Connect's headers about a record that could not be worked on.
pub(super) const CONNECT_PREFIX: &str = "__connect.errors.";
/// Longest message in a header, bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Which attempt a record is, from 1.
pub fn attempts(headers: &[(String, Option<bytes::Bytes>)]) -> u32 {
    let found = Headers::new(headers).parsed(ATTEMPTS_HEADER, "a number");
    found.ok().flatten().unwrap_or(1)
}

/// The dead letter of a record at `time`: key, value and headers byte for byte, then the reason in Kafka
/// Connect's headers and ours. `earlier_chunks` further records share its fate, the earlier chunks of its
/// stream, whose request is `request_id`.
///
/// A record that already was a dead letter keeps its old headers; ours come last, and the last of a name
/// counts.
pub fn dead_letter(
    record: &Record,
    rejection: &Rejection,
    earlier_chunks: usize,
    request_id: Option<&str>,
    topic: Arc<str>,
    time: Timestamp,
) -> OutgoingRecord {
    let mut headers = record.headers.clone();
    let record_offset = &record.record_offset;
    let mut end = rejection.message.len().min(MESSAGE_BYTES_MAX);
    while !rejection.message.is_char_boundary(end) {
        end -= 1;
    }
    let attempts = attempts(&record.headers);
    let connect = |name: &str| format!("{CONNECT_PREFIX}{name}");
    headers.extend([
        header(&connect("topic"), &*record_offset.topic),
        header(&connect("partition"), record_offset.partition.to_string()),
        header(&connect("offset"), record_offset.offset.to_string()),
        header(&connect("stage"), rejection.stage.as_str()),
        header(&connect("class.name"), "speechverse"),
        header(&connect("exception.class.name"), rejection.reason.as_str()),
        header(&connect("exception.message"), &rejection.message[..end]),
        header(REASON_HEADER, rejection.reason.as_str()),
        header(ATTEMPTS_HEADER, attempts.to_string()),
    ]);
    let retry_after = rejection.reason.back_off(attempts).map(|wait| time + wait);
    headers.extend(retry_after.map(|time| header(RETRY_AFTER_HEADER, time.to_string())));
    if earlier_chunks > 0 {
        headers.push(header(EARLIER_CHUNKS_HEADER, earlier_chunks.to_string()));
        headers.extend(request_id.map(|id| header(REQUEST_ID_HEADER, id)));
    }
    OutgoingRecord {
        topic,
        key: record.key.clone(),
        value: record.value.clone(),
        headers,
    }
}

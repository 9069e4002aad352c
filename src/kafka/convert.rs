//! librdkafka's messages to our records and back.

use std::ffi::CStr;
use std::ptr;
use std::sync::Arc;

use bytes::Bytes;
use rdkafka::bindings;
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::offset_tracker::{Position, TopicPartition};
use crate::wire::{OutgoingRecord, Record, RecordOffset};

/// What a record costs besides its bytes: itself, its record_offset, its place in queues.
const RECORD_OVERHEAD_BYTES: u64 = 512;

/// Copies a message out of librdkafka's memory.
pub(super) fn record(message: &BorrowedMessage<'_>, topic: Arc<str>, epoch: u64) -> Record {
    Record {
        record_offset: RecordOffset {
            topic,
            partition: message.partition(),
            offset: message.offset(),
            epoch,
        },
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers: headers(message),
        timestamp_ms: message.timestamp().to_millis(),
    }
}

/// Headers in order; a name that is not UTF-8 has its bad bytes replaced by U+FFFD.
///
/// rdkafka's own iterator panics on such a name, which anybody may send, so this asks librdkafka itself.
fn headers(message: &BorrowedMessage<'_>) -> Vec<(String, Option<Bytes>)> {
    let mut native = ptr::null_mut();
    // SAFETY: `message.ptr()` is a live message for as long as `message` is borrowed; librdkafka writes the
    // pointer of its headers, which live as long as the message, or an error and no pointer.
    let found = unsafe { bindings::rd_kafka_message_headers(message.ptr(), &mut native) };
    if found != bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || native.is_null() {
        return Vec::new();
    }
    let mut headers = Vec::new();
    loop {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: `native` is live (above); an index past the end is answered with an error and leaves the
        // rest alone.
        let found = unsafe {
            bindings::rd_kafka_header_get_all(native, headers.len(), &mut name, &mut value, &mut size)
        };
        if found != bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || name.is_null() {
            return headers;
        }
        // SAFETY: librdkafka keeps the name with a zero byte behind it; it lives as long as the message.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        let value = (!value.is_null()).then(|| {
            // SAFETY: librdkafka says that `size` bytes are there; they live as long as the message and are
            // copied.
            Bytes::copy_from_slice(unsafe { std::slice::from_raw_parts(value.cast::<u8>(), size) })
        });
        headers.push((name, value));
    }
}

/// Size of what a record carries, bytes.
pub(super) fn payload_bytes(
    key: Option<&Bytes>,
    value: Option<&Bytes>,
    headers: &[(String, Option<Bytes>)],
) -> usize {
    let length = |bytes: Option<&Bytes>| bytes.map_or(0, Bytes::len);
    let of_header = |(name, value): &(String, Option<Bytes>)| name.len() + length(value.as_ref());
    length(key) + length(value) + headers.iter().map(of_header).sum::<usize>()
}

/// Bytes that a record that was read takes while it is in flight.
pub(super) fn weight(record: &Record) -> u64 {
    payload_bytes(record.key.as_ref(), record.value.as_ref(), &record.headers) as u64 + RECORD_OVERHEAD_BYTES
}

/// Positions as librdkafka wants them, each with its memory as metadata.
pub(super) fn position_list(positions: &[Position]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for position in positions {
        let mut element = list.add_partition(&position.partition.topic, position.partition.partition);
        if !position.memory.is_empty() {
            element.set_metadata(&position.memory);
        }
        element
            .set_offset(Offset::Offset(position.offset))
            .expect("offsets of records are not negative");
    }
    list
}

/// A partition with the offset that its group has committed and the metadata of that offset, if any.
pub(super) type Committed = (TopicPartition, Option<(i64, String)>);

/// What a group has committed, with the metadata; `None` for partitions of which it has nothing.
///
/// rdkafka's own accessor panics on metadata that is not UTF-8, which anybody may commit; such metadata is
/// not ours and reads as none.
pub(super) fn committed(list: &TopicPartitionList) -> Vec<Committed> {
    let metadata = |index: usize| {
        // SAFETY: `list` has `count` elements for as long as it is borrowed, and `index` is below that.
        let (text, bytes) = unsafe {
            let element = &*(*list.ptr()).elems.add(index);
            (element.metadata.cast::<u8>(), element.metadata_size)
        };
        if text.is_null() || bytes == 0 {
            return String::new();
        }
        // SAFETY: librdkafka says that `bytes` are there; they live as long as the list and are copied.
        let bytes = unsafe { std::slice::from_raw_parts(text, bytes) };
        std::str::from_utf8(bytes).unwrap_or_default().to_owned()
    };
    let elements = list.elements();
    let committed = elements.iter().enumerate().map(|(index, element)| {
        let offset = match element.offset() {
            Offset::Offset(offset) => Some((offset, metadata(index))),
            _ => None,
        };
        (TopicPartition::new(element.topic(), element.partition()), offset)
    });
    committed.collect()
}

/// Headers for librdkafka; `Err` is the name that holds a zero byte, which librdkafka cannot carry.
pub(super) fn native_headers(record: &OutgoingRecord) -> Result<OwnedHeaders, String> {
    let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
    for (name, value) in &record.headers {
        if name.contains('\0') {
            return Err(name.clone());
        }
        headers = headers.insert(Header {
            key: name,
            value: value.as_deref(),
        });
    }
    Ok(headers)
}

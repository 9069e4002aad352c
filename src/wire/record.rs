//! Records as they come from and go to a topic, free of any client library.

use std::sync::Arc;

use bytes::Bytes;

/// Where a record came from; given back to the offset tracker once its answer (or its dead letter) is
/// acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RecordOffset {
    /// Topic the record was read from.
    pub topic: Arc<str>,
    /// Partition of that topic.
    pub partition: i32,
    /// Offset of the record itself (not of the one after it).
    pub offset: i64,
    /// Which assignment of the partition the record was read under; a record_offset of an older one is void.
    pub epoch: u64,
}

/// A record read from a topic.
#[derive(Clone, Debug)]
pub struct Record {
    /// Where it came from.
    pub record_offset: RecordOffset,
    /// Key, byte for byte.
    pub key: Option<Bytes>,
    /// Value, byte for byte; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers in order, byte for byte; names may repeat.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Milliseconds since the Unix epoch, when the record carries a time.
    pub timestamp_ms: Option<i64>,
}

/// A record to be written to a topic.
#[derive(Clone, Debug)]
pub struct OutgoingRecord {
    /// Topic to write to.
    pub topic: Arc<str>,
    /// Key, byte for byte.
    pub key: Option<Bytes>,
    /// Value, byte for byte; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers in order.
    pub headers: Vec<(String, Option<Bytes>)>,
}

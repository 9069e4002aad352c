//! A record batch: its header, the checks a producer's batch must pass, and the places that are patched.
//!
//! Layout (Kafka's message format 2): base offset 8, length 4, leader epoch 4, magic 1, CRC 4, attributes 2,
//! last offset delta 4, first time 8, largest time 8, producer 8, epoch 2, first sequence 4, count 4,
//! records. The CRC covers everything after itself, so base offset and leader epoch can be written in place.

use bytes::{Bytes, BytesMut};
use kafka_protocol::error::ResponseError;

/// Bytes before the first record.
pub(crate) const HEADER_BYTES: usize = 61;
/// Bytes before the part that the batch's own length counts.
const LENGTH_PREFIX_BYTES: usize = 12;
/// Where the CRC's coverage starts.
pub(super) const CRC_FROM: usize = 21;

const COMPRESSION_MASK: i16 = 0x07;
const COMPRESSION_LARGEST: i16 = 4; // zstd
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// What the header of a batch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// Offset of the last record, counted from the first.
    pub(crate) last_offset_delta: i32,
    /// Time of the first record, milliseconds since the epoch.
    pub(crate) first_timestamp: i64,
    /// Largest time of any record.
    pub(crate) max_timestamp: i64,
    /// Who wrote it; negative when the producer is not idempotent.
    pub(crate) producer_id: i64,
    /// Which life of that producer.
    pub(crate) producer_epoch: i16,
    /// Sequence number of the first record.
    pub(crate) base_sequence: i32,
    /// Records inside.
    pub(crate) count: i32,
    attributes: i16,
}

impl BatchHeader {
    /// Reads the header; `None` when there are too few bytes.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEADER_BYTES {
            return None;
        }
        Some(Self {
            attributes: i16_at(bytes, 21)?,
            last_offset_delta: i32_at(bytes, 23)?,
            first_timestamp: i64_at(bytes, 27)?,
            max_timestamp: i64_at(bytes, 35)?,
            producer_id: i64_at(bytes, 43)?,
            producer_epoch: i16_at(bytes, 51)?,
            base_sequence: i32_at(bytes, 53)?,
            count: i32_at(bytes, 57)?,
        })
    }

    /// Whether a transaction decides about these records.
    pub(crate) fn transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether the producer numbers its batches.
    pub(crate) fn idempotent(&self) -> bool {
        self.producer_id >= 0
    }

    fn compressed(&self) -> bool {
        self.attributes & COMPRESSION_MASK != 0
    }
}

/// A producer's batch that passed every check; the bytes are a copy of its own.
#[derive(Clone, Debug)]
pub(crate) struct CheckedBatch {
    pub(crate) header: BatchHeader,
    pub(super) bytes: BytesMut,
}

impl CheckedBatch {
    /// Bytes of the whole batch.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// Checks what a producer sent for one partition.
///
/// # Errors
/// The Kafka error that says what is wrong: not exactly one batch, a broken CRC, an old format, a lying
/// count.
pub(crate) fn check(records: &Bytes) -> Result<CheckedBatch, ResponseError> {
    let bytes = &records[..];
    let header = BatchHeader::read(bytes).ok_or(ResponseError::CorruptMessage)?;
    let length = i32_at(bytes, 8).and_then(|length| usize::try_from(length).ok());
    // Versions since 3 carry exactly one batch per partition.
    if length.and_then(|length| length.checked_add(LENGTH_PREFIX_BYTES)) != Some(bytes.len()) {
        return Err(ResponseError::CorruptMessage);
    }
    if bytes[16] != 2 {
        return Err(ResponseError::UnsupportedForMessageFormat);
    }
    let crc = u32::from_be_bytes([bytes[17], bytes[18], bytes[19], bytes[20]]);
    if crc != crc32c::crc32c(&bytes[CRC_FROM..]) {
        return Err(ResponseError::CorruptMessage);
    }
    check_header(&header)?;
    if !header.compressed() && !records_fill(&bytes[HEADER_BYTES..], header.count) {
        return Err(ResponseError::InvalidRecord);
    }
    Ok(CheckedBatch {
        header,
        bytes: BytesMut::from(bytes),
    })
}

fn check_header(header: &BatchHeader) -> Result<(), ResponseError> {
    if header.attributes & COMPRESSION_MASK > COMPRESSION_LARGEST {
        return Err(ResponseError::UnsupportedCompressionType);
    }
    if header.attributes & LOG_APPEND_TIME != 0 {
        return Err(ResponseError::InvalidTimestamp);
    }
    let counted = header.count > 0 && header.last_offset_delta == header.count - 1;
    let numbered = !header.idempotent() || (header.producer_epoch >= 0 && header.base_sequence >= 0);
    let owned = !header.transactional() || header.idempotent();
    let control = header.attributes & CONTROL != 0; // markers are the broker's own
    if counted && numbered && owned && !control {
        Ok(())
    } else {
        Err(ResponseError::InvalidRecord)
    }
}

/// A batch in the log: its offsets are known and its bytes will not change.
#[derive(Clone, Debug)]
pub(crate) struct StoredBatch {
    /// Offset of the first record.
    pub(crate) base_offset: i64,
    /// Offset of the last record.
    pub(crate) last_offset: i64,
    /// Largest time of any record, milliseconds since the epoch.
    pub(crate) max_timestamp: i64,
    /// How many batches its topic had taken before, whatever the partition.
    pub(crate) order: u64,
    /// The batch as it goes to consumers.
    pub(crate) bytes: Bytes,
}

impl StoredBatch {
    /// Writes offset and leader epoch into a batch, which is then final.
    pub(super) fn seal(mut bytes: BytesMut, header: &BatchHeader, base_offset: i64, order: u64) -> Self {
        bytes[0..8].copy_from_slice(&base_offset.to_be_bytes());
        bytes[12..16].copy_from_slice(&0i32.to_be_bytes());
        Self {
            base_offset,
            last_offset: base_offset + i64::from(header.last_offset_delta),
            max_timestamp: header.max_timestamp,
            order,
            bytes: bytes.freeze(),
        }
    }

    /// Offset and time of the first record not older than `timestamp`.
    ///
    /// Of a compressed batch, which is not opened, the batch's first offset: never too late, at most a batch
    /// early.
    pub(crate) fn find_time(&self, timestamp: i64) -> (i64, i64) {
        let whole = (self.base_offset, self.max_timestamp);
        let Some(header) = BatchHeader::read(&self.bytes).filter(|header| !header.compressed()) else {
            return whole;
        };
        let mut rest = &self.bytes[HEADER_BYTES..];
        for _ in 0..header.count {
            let Some(record) = Record::take(&mut rest) else {
                return whole;
            };
            let time = header.first_timestamp.saturating_add(record.timestamp_delta);
            if time >= timestamp {
                return (self.base_offset + record.offset_delta, time);
            }
        }
        whole
    }
}

/// Whether `count` records, numbered from 0, fill these bytes exactly.
fn records_fill(mut bytes: &[u8], count: i32) -> bool {
    for number in 0..count {
        match Record::take(&mut bytes) {
            Some(record) if record.offset_delta == i64::from(number) => {}
            _ => return false,
        }
    }
    bytes.is_empty()
}

/// What of a record matters to a broker.
struct Record {
    timestamp_delta: i64,
    offset_delta: i64,
}

impl Record {
    /// Takes one record off the front; `None` when its lengths do not fit.
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let length = usize::try_from(varint(bytes)?).ok()?;
        let (mut record, rest) = bytes.split_at_checked(length)?;
        *bytes = rest;
        let (_attributes, after) = record.split_first()?;
        record = after;
        let taken = Self {
            timestamp_delta: varint(&mut record)?,
            offset_delta: varint(&mut record)?,
        };
        skip_nullable(&mut record)?; // key
        skip_nullable(&mut record)?; // value
        let headers = usize::try_from(varint(&mut record)?).ok()?;
        for _ in 0..headers {
            let name = usize::try_from(varint(&mut record)?).ok()?;
            record = record.get(name..)?;
            skip_nullable(&mut record)?;
        }
        record.is_empty().then_some(taken)
    }
}

/// Skips bytes with their length in front; a length of -1 means null.
fn skip_nullable(bytes: &mut &[u8]) -> Option<()> {
    match varint(bytes)? {
        -1 => Some(()),
        length => {
            *bytes = bytes.get(usize::try_from(length).ok()?..)?;
            Some(())
        }
    }
}

/// Takes a zigzag-encoded number off the front.
fn varint(bytes: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for place in 0..10 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * place);
        if *byte < 0x80 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

fn i16_at(bytes: &[u8], at: usize) -> Option<i16> {
    Some(i16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn i64_at(bytes: &[u8], at: usize) -> Option<i64> {
    Some(i64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

//! The marker that ends a transaction in a partition: a batch of one control record, written by the broker.

use bytes::{BufMut, BytesMut};

use super::batch::{BatchHeader, CRC_FROM};

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its records count.
    Committed,
    /// Its records are skipped by readers of committed records.
    Aborted,
}

/// Builds the marker batch of one transaction.
pub(super) fn marker(
    producer_id: i64,
    producer_epoch: i16,
    outcome: Outcome,
    now_ms: i64,
) -> (BatchHeader, BytesMut) {
    const TRANSACTIONAL_CONTROL: i16 = 0x30;
    const NO_SEQUENCE: i32 = -1;
    let kind: i16 = match outcome {
        Outcome::Aborted => 0,
        Outcome::Committed => 1,
    };

    let mut record = BytesMut::new();
    record.put_u8(0); // attributes
    record.put_u8(0); // time, as a difference
    record.put_u8(0); // offset, as a difference
    record.put_u8(zigzag(4)); // key: version, kind
    record.put_i16(0);
    record.put_i16(kind);
    record.put_u8(zigzag(6)); // value: version, coordinator epoch
    record.put_i16(0);
    record.put_i32(0);
    record.put_u8(0); // no headers

    let mut covered = BytesMut::new(); // by the CRC
    covered.put_i16(TRANSACTIONAL_CONTROL);
    covered.put_i32(0); // last offset delta
    covered.put_i64(now_ms);
    covered.put_i64(now_ms);
    covered.put_i64(producer_id);
    covered.put_i16(producer_epoch);
    covered.put_i32(NO_SEQUENCE);
    covered.put_i32(1); // one record
    covered.put_u8(zigzag(record.len() as u8));
    covered.extend_from_slice(&record);

    const LENGTH_PREFIX_BYTES: usize = 12;
    let mut batch = BytesMut::new();
    batch.put_i64(0); // base offset, written when stored
    batch.put_i32((CRC_FROM - LENGTH_PREFIX_BYTES + covered.len()) as i32);
    batch.put_i32(0); // leader epoch
    batch.put_u8(2); // magic
    batch.put_u32(crc32c::crc32c(&covered));
    batch.extend_from_slice(&covered);
    let header = BatchHeader::read(&batch).expect("the batch was just built with a whole header");
    (header, batch)
}

/// A small number as Kafka's variable-length encoding writes it.
fn zigzag(number: u8) -> u8 {
    debug_assert!(number < 64, "fits one byte");
    number << 1
}

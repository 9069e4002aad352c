//! One partition: batches in order, what open transactions hold back, what aborted ones spoilt.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use kafka_protocol::error::ResponseError;

use super::batch::{CheckedBatch, StoredBatch};
use super::control::{Outcome, marker};
use super::producers::{Admission, Producers};
use crate::broker::limits::BATCH_OVERHEAD_BYTES;

/// The records of one aborted transaction in this partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AbortedRange {
    /// Whose transaction.
    pub(crate) producer_id: i64,
    /// Offset of its first record.
    pub(crate) first_offset: i64,
    /// Offset of its marker.
    pub(crate) last_offset: i64,
}

/// What a read found.
#[derive(Debug, Default)]
pub(crate) struct Slice {
    /// Whole batches in order; the first may begin before the offset that was asked for.
    pub(crate) batches: Vec<Bytes>,
    /// Their bytes.
    pub(crate) len: usize,
    /// Aborted transactions among them.
    pub(crate) aborted: Vec<AbortedRange>,
}

/// An in-memory log.
#[derive(Debug, Default)]
pub(crate) struct PartitionLog {
    start_offset: i64,
    end_offset: i64,
    bytes: u64,
    batches: VecDeque<StoredBatch>,
    producers: Producers,
    /// First offset of each open transaction, by producer.
    open: BTreeMap<i64, i64>,
    aborted: VecDeque<AbortedRange>,
}

impl PartitionLog {
    /// Offset of the oldest record that is still here.
    pub(crate) fn start_offset(&self) -> i64 {
        self.start_offset
    }

    /// Offset of the next record to come.
    pub(crate) fn end_offset(&self) -> i64 {
        self.end_offset
    }

    /// Up to where every transaction is decided.
    pub(crate) fn last_stable_offset(&self) -> i64 {
        let first_open = self.open.values().min().copied().unwrap_or(self.end_offset);
        first_open.max(self.start_offset) // the oldest batches may be gone before their transaction ends
    }

    /// Bytes held, book-keeping included.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Batches held.
    pub(crate) fn batch_count(&self) -> usize {
        self.batches.len()
    }

    /// The oldest batch.
    pub(crate) fn oldest(&self) -> Option<&StoredBatch> {
        self.batches.front()
    }

    /// Adds a producer's batch; answers its offset. A repeat is answered with the offset it already has.
    ///
    /// # Errors
    /// The Kafka error for a batch from an earlier life of its producer or out of order.
    pub(crate) fn append(&mut self, batch: CheckedBatch, order: u64) -> Result<i64, ResponseError> {
        let header = batch.header;
        if header.idempotent()
            && let Admission::Repeat { base_offset } = self.producers.admit(&header)?
        {
            return Ok(base_offset);
        }
        let base_offset = self.end_offset;
        self.push(StoredBatch::seal(batch.bytes, &header, base_offset, order));
        if header.idempotent() {
            let open = &self.open;
            self.producers
                .remember(&header, base_offset, |id| open.contains_key(&id));
        }
        if header.transactional() {
            self.open.entry(header.producer_id).or_insert(base_offset);
        }
        Ok(base_offset)
    }

    /// Writes the end of a transaction.
    pub(crate) fn end_transaction(
        &mut self,
        producer_id: i64,
        epoch: i16,
        outcome: Outcome,
        now_ms: i64,
        order: u64,
    ) {
        let (header, bytes) = marker(producer_id, epoch, outcome, now_ms);
        let base_offset = self.end_offset;
        self.push(StoredBatch::seal(bytes, &header, base_offset, order));
        self.producers.fence(producer_id, epoch);
        let first = self.open.remove(&producer_id);
        if let (Outcome::Aborted, Some(first_offset)) = (outcome, first) {
            self.aborted.push_back(AbortedRange {
                producer_id,
                first_offset,
                last_offset: base_offset,
            });
        }
    }

    /// Reads whole batches from `offset` on, at most `bytes_max`, except that with `at_least_one` the first
    /// batch comes whatever its size: otherwise a batch larger than a client's limit would stop it for ever.
    ///
    /// # Errors
    /// `OffsetOutOfRange` when the offset is not in the log.
    pub(crate) fn read(
        &self,
        offset: i64,
        committed_only: bool,
        bytes_max: usize,
        at_least_one: bool,
    ) -> Result<Slice, ResponseError> {
        let limit = self.readable_until(offset, committed_only)?;
        let mut slice = Slice::default();
        let mut last_offset = offset;
        for batch in self.batches.range(self.position(offset)..) {
            let fits =
                slice.len + batch.bytes.len() <= bytes_max || (at_least_one && slice.batches.is_empty());
            if batch.base_offset >= limit || !fits {
                break;
            }
            slice.len += batch.bytes.len();
            slice.batches.push(batch.bytes.clone());
            last_offset = batch.last_offset;
        }
        if committed_only {
            let touched =
                |range: &&AbortedRange| range.last_offset >= offset && range.first_offset <= last_offset;
            slice.aborted = self.aborted.iter().filter(touched).copied().collect();
        }
        Ok(slice)
    }

    /// Bytes that [`read`](Self::read) could give, counted up to `enough`.
    ///
    /// # Errors
    /// `OffsetOutOfRange` when the offset is not in the log.
    pub(crate) fn readable(
        &self,
        offset: i64,
        committed_only: bool,
        enough: usize,
    ) -> Result<usize, ResponseError> {
        let limit = self.readable_until(offset, committed_only)?;
        let mut bytes = 0;
        for batch in self.batches.range(self.position(offset)..) {
            if batch.base_offset >= limit || bytes >= enough {
                break;
            }
            bytes += batch.bytes.len();
        }
        Ok(bytes)
    }

    /// Offset and time of the first record not older than `timestamp`.
    pub(crate) fn find_time(&self, timestamp: i64) -> Option<(i64, i64)> {
        let batch = self
            .batches
            .iter()
            .find(|batch| batch.max_timestamp >= timestamp)?;
        Some(batch.find_time(timestamp))
    }

    /// Lets the oldest batch go.
    pub(crate) fn drop_oldest(&mut self) {
        let Some(batch) = self.batches.pop_front() else {
            return;
        };
        self.bytes -= batch.bytes.len() as u64 + BATCH_OVERHEAD_BYTES;
        self.start_offset = batch.last_offset + 1;
        while self
            .aborted
            .front()
            .is_some_and(|range| range.last_offset < self.start_offset)
        {
            self.aborted.pop_front();
        }
    }

    fn push(&mut self, batch: StoredBatch) {
        self.bytes += batch.bytes.len() as u64 + BATCH_OVERHEAD_BYTES;
        self.end_offset = batch.last_offset + 1;
        self.batches.push_back(batch);
    }

    fn readable_until(&self, offset: i64, committed_only: bool) -> Result<i64, ResponseError> {
        if offset < self.start_offset || offset > self.end_offset {
            return Err(ResponseError::OffsetOutOfRange);
        }
        Ok(if committed_only {
            self.last_stable_offset()
        } else {
            self.end_offset
        })
    }

    fn position(&self, offset: i64) -> usize {
        self.batches.partition_point(|batch| batch.last_offset < offset)
    }
}

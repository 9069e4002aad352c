//! What a partition remembers of its idempotent producers: enough to recognise repeats, gaps and the dead.

use std::collections::{HashMap, VecDeque};

use kafka_protocol::error::ResponseError;

use super::batch::BatchHeader;
use crate::broker::limits::{PRODUCERS_PER_PARTITION_MAX, REPEATS_PER_PRODUCER};

/// Whether a numbered batch is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// The next one in order, or the first that this partition gets of its producer.
    New,
    /// Stored before, at this offset.
    Repeat { base_offset: i64 },
}

#[derive(Debug)]
struct Accepted {
    first_sequence: i32,
    last_sequence: i32,
    base_offset: i64,
}

#[derive(Debug)]
struct Producer {
    epoch: i16,
    recent: VecDeque<Accepted>,
    last_contact: u64,
}

/// The producers of one partition.
#[derive(Debug, Default)]
pub(super) struct Producers {
    by_id: HashMap<i64, Producer>,
    clock: u64,
}

impl Producers {
    /// Decides about a numbered batch.
    ///
    /// # Errors
    /// `InvalidProducerEpoch` from an earlier life, `OutOfOrderSequenceNumber` when something is missing.
    pub(super) fn admit(&self, header: &BatchHeader) -> Result<Admission, ResponseError> {
        let Some(producer) = self.by_id.get(&header.producer_id) else {
            // Never seen, or forgotten: the log may be younger than its producer, so any number may come
            // first.
            return Ok(Admission::New);
        };
        if header.producer_epoch < producer.epoch {
            return Err(ResponseError::InvalidProducerEpoch);
        }
        if header.producer_epoch > producer.epoch {
            return match header.base_sequence {
                0 => Ok(Admission::New),
                _ => Err(ResponseError::OutOfOrderSequenceNumber),
            };
        }
        let last_sequence = last_sequence(header);
        let repeat = producer
            .recent
            .iter()
            .find(|seen| seen.first_sequence == header.base_sequence && seen.last_sequence == last_sequence);
        if let Some(seen) = repeat {
            return Ok(Admission::Repeat {
                base_offset: seen.base_offset,
            });
        }
        match producer.recent.back() {
            Some(seen) if add(seen.last_sequence, 1) != header.base_sequence => {
                Err(ResponseError::OutOfOrderSequenceNumber)
            }
            _ => Ok(Admission::New),
        }
    }

    /// Remembers an admitted batch. `busy` says which producers must not be forgotten.
    pub(super) fn remember(&mut self, header: &BatchHeader, base_offset: i64, busy: impl Fn(i64) -> bool) {
        self.clock += 1;
        let producer = self.by_id.entry(header.producer_id).or_insert_with(|| Producer {
            epoch: header.producer_epoch,
            recent: VecDeque::new(),
            last_contact: 0,
        });
        if producer.epoch != header.producer_epoch {
            producer.epoch = header.producer_epoch;
            producer.recent.clear();
        }
        producer.last_contact = self.clock;
        producer.recent.push_back(Accepted {
            first_sequence: header.base_sequence,
            last_sequence: last_sequence(header),
            base_offset,
        });
        if producer.recent.len() > REPEATS_PER_PRODUCER {
            producer.recent.pop_front();
        }
        if self.by_id.len() > PRODUCERS_PER_PARTITION_MAX {
            let silent = self
                .by_id
                .iter()
                .filter(|(id, _)| !busy(**id))
                .min_by_key(|(_, producer)| producer.last_contact);
            if let Some(id) = silent.map(|(id, _)| *id) {
                self.by_id.remove(&id);
            }
        }
    }

    /// Shuts out earlier lives of a producer whose epoch moved on.
    pub(super) fn fence(&mut self, producer_id: i64, epoch: i16) {
        if let Some(producer) = self.by_id.get_mut(&producer_id)
            && producer.epoch < epoch
        {
            producer.epoch = epoch;
            producer.recent.clear();
        }
    }
}

fn last_sequence(header: &BatchHeader) -> i32 {
    add(header.base_sequence, header.last_offset_delta)
}

/// Sequence numbers start again at 0 after the largest.
fn add(sequence: i32, more: i32) -> i32 {
    const NUMBERS: i64 = i32::MAX as i64 + 1;
    ((i64::from(sequence) + i64::from(more)) % NUMBERS) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_start_again_after_the_largest() {
        assert_eq!(add(i32::MAX, 1), 0);
        assert_eq!(add(i32::MAX - 1, 3), 1);
        assert_eq!(add(7, 0), 7);
    }
}

//! A partition behaves like a list of records, whatever happens to it.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

use super::batch::{BatchHeader, HEADER_BYTES, check};
use super::control::Outcome;
use super::partition::PartitionLog;

const NO_PRODUCER: (i64, i16, i32) = (-1, -1, -1);
const TRANSACTIONAL: i16 = 0x10;

/// Builds a batch of `count` records of one byte each, `value`, at times `time`, `time + 1`, …
fn batch(
    value: u8,
    count: u8,
    time: i64,
    (producer, epoch, sequence): (i64, i16, i32),
    attributes: i16,
) -> Bytes {
    let mut records = BytesMut::new();
    for number in 0..count {
        const RECORD_BYTES: u8 = 7;
        records.put_u8(RECORD_BYTES << 1);
        records.put_u8(0); // attributes
        records.put_u8(number << 1); // time
        records.put_u8(number << 1); // offset
        records.put_u8(1); // no key
        records.put_u8(1 << 1); // value
        records.put_u8(value);
        records.put_u8(0); // no headers
    }
    let mut covered = BytesMut::new();
    covered.put_i16(attributes);
    covered.put_i32(i32::from(count) - 1);
    covered.put_i64(time);
    covered.put_i64(time + i64::from(count) - 1);
    covered.put_i64(producer);
    covered.put_i16(epoch);
    covered.put_i32(sequence);
    covered.put_i32(i32::from(count));
    covered.extend_from_slice(&records);
    let mut batch = BytesMut::new();
    batch.put_i64(0);
    batch.put_i32(9 + covered.len() as i32);
    batch.put_i32(-1);
    batch.put_u8(2);
    batch.put_u32(crc32c::crc32c(&covered));
    batch.extend_from_slice(&covered);
    batch.freeze()
}

/// Reads back what [`batch`] wrote: offset and value of each record at or after `from`.
fn records(batches: &[Bytes], from: i64) -> Vec<(i64, u8)> {
    let mut all = Vec::new();
    for batch in batches {
        let base = i64::from_be_bytes(*batch.first_chunk().unwrap());
        let header = BatchHeader::read(batch).unwrap();
        const CONTROL: u8 = 0x20;
        if batch[22] & CONTROL != 0 {
            continue;
        }
        for number in 0..header.count {
            const RECORD_BYTES: usize = 8;
            const VALUE_AT: usize = 6;
            let offset = base + i64::from(number);
            all.push((
                offset,
                batch[HEADER_BYTES + number as usize * RECORD_BYTES + VALUE_AT],
            ));
        }
    }
    all.retain(|(offset, _)| *offset >= from);
    all
}

#[derive(Clone, Debug)]
enum Step {
    /// Records outside any transaction.
    Plain {
        value: u8,
        count: u8,
    },
    /// Records of a producer's transaction, which they may open.
    Inside {
        producer: u8,
        value: u8,
        count: u8,
    },
    End {
        producer: u8,
        commit: bool,
    },
    DropOldest,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (any::<u8>(), 1u8..5).prop_map(|(value, count)| Step::Plain { value, count }),
        4 => (0u8..3, any::<u8>(), 1u8..5).prop_map(|(producer, value, count)| Step::Inside { producer, value, count }),
        2 => (0u8..3, any::<bool>()).prop_map(|(producer, commit)| Step::End { producer, commit }),
        1 => Just(Step::DropOldest),
    ]
}

/// A record as the model knows it.
#[derive(Clone, Debug)]
struct Known {
    offset: i64,
    value: u8,
    producer: Option<u8>,
    outcome: Option<Outcome>,
}

/// The model: every record ever written, and where each batch ends.
#[derive(Default)]
struct Model {
    records: Vec<Known>,
    /// First and last offset of each batch that is still there.
    batches: Vec<(i64, i64)>,
    end: i64,
    sequences: [i32; 3],
    open: [Option<i64>; 3],
}

impl Model {
    fn add(&mut self, value: u8, count: u8, producer: Option<u8>) {
        self.batches.push((self.end, self.end + i64::from(count) - 1));
        for _ in 0..count {
            let outcome = producer.is_none().then_some(Outcome::Committed);
            self.records.push(Known {
                offset: self.end,
                value,
                producer,
                outcome,
            });
            self.end += 1;
        }
    }

    fn start(&self) -> i64 {
        self.batches.first().map_or(self.end, |(first, _)| *first)
    }

    fn stable(&self) -> i64 {
        self.open
            .iter()
            .flatten()
            .min()
            .copied()
            .unwrap_or(self.end)
            .max(self.start())
    }
}

fn apply(step: &Step, log: &mut PartitionLog, model: &mut Model) {
    const TIME: i64 = 1_000;
    match *step {
        Step::Plain { value, count } => {
            let base = log
                .append(check(&batch(value, count, TIME, NO_PRODUCER, 0)).unwrap(), 0)
                .unwrap();
            assert_eq!(base, model.end);
            model.add(value, count, None);
        }
        Step::Inside {
            producer,
            value,
            count,
        } => {
            let sequence = model.sequences[usize::from(producer)];
            let writer = (i64::from(producer), 0, sequence);
            let bytes = batch(value, count, TIME, writer, TRANSACTIONAL);
            let base = log.append(check(&bytes).unwrap(), 0).unwrap();
            let repeated = log.append(check(&bytes).unwrap(), 0).unwrap();
            assert_eq!(
                (base, repeated),
                (model.end, model.end),
                "a repeat is not stored again"
            );
            model.sequences[usize::from(producer)] += i32::from(count);
            model.open[usize::from(producer)].get_or_insert(model.end);
            model.add(value, count, Some(producer));
        }
        Step::End { producer, commit } => {
            let outcome = if commit {
                Outcome::Committed
            } else {
                Outcome::Aborted
            };
            log.end_transaction(i64::from(producer), 0, outcome, TIME, 0);
            model.batches.push((model.end, model.end));
            model.end += 1;
            model.open[usize::from(producer)] = None;
            for record in model
                .records
                .iter_mut()
                .filter(|record| record.producer == Some(producer))
            {
                record.outcome.get_or_insert(outcome);
            }
        }
        Step::DropOldest => {
            log.drop_oldest();
            if !model.batches.is_empty() {
                model.batches.remove(0);
            }
            let start = model.start();
            model.records.retain(|record| record.offset >= start);
        }
    }
}

/// Reads with the client's part played: skips aborted records as librdkafka does.
fn read_committed(log: &PartitionLog, from: i64, bytes_max: usize) -> Vec<(i64, u8)> {
    let (mut all, mut offset) = (Vec::new(), from);
    while offset < log.last_stable_offset() {
        let slice = log.read(offset, true, bytes_max, true).unwrap();
        let last = slice.batches.last().expect("there is always at least one batch");
        let next = i64::from_be_bytes(*last.first_chunk().unwrap())
            + i64::from(BatchHeader::read(last).unwrap().last_offset_delta)
            + 1;
        let mut aborted = slice.aborted.clone();
        aborted.sort_by_key(|range| range.first_offset);
        for batch in &slice.batches {
            let base = i64::from_be_bytes(*batch.first_chunk().unwrap());
            let header = BatchHeader::read(batch).unwrap();
            let spoilt = aborted.iter().any(|range| {
                header.transactional()
                    && range.producer_id == header.producer_id
                    && (range.first_offset..=range.last_offset).contains(&base)
            });
            if !spoilt {
                all.extend(records(std::slice::from_ref(batch), offset));
            }
        }
        assert!(next > offset, "each read gets further");
        offset = next;
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_log_holds_what_was_written_and_readers_of_committed_records_see_only_those(
        steps in prop::collection::vec(step(), 1..40),
        bytes_max in 1usize..400,
    ) {
        let (mut log, mut model) = (PartitionLog::default(), Model::default());
        for step in &steps {
            apply(step, &mut log, &mut model);

            prop_assert_eq!(log.start_offset(), model.start());
            prop_assert_eq!(log.end_offset(), model.end);
            prop_assert_eq!(log.last_stable_offset(), model.stable());
        }

        let everything = log.read(log.start_offset(), false, usize::MAX, true).unwrap();
        let expected: Vec<_> = model.records.iter().map(|record| (record.offset, record.value)).collect();
        prop_assert_eq!(records(&everything.batches, 0), expected);

        let counts = |record: &&Known| record.outcome == Some(Outcome::Committed) && record.offset < model.stable();
        let committed: Vec<_> = model.records.iter().filter(counts).map(|r| (r.offset, r.value)).collect();
        prop_assert_eq!(read_committed(&log, log.start_offset(), bytes_max), committed);
    }

    #[test]
    fn a_batch_with_any_byte_changed_is_refused(at in 8usize..100, bit in 0u8..8) {
        let mut bytes = BytesMut::from(&batch(7, 4, 1_000, NO_PRODUCER, 0)[..]);
        let at = at % bytes.len();
        prop_assume!(!(12..16).contains(&at) && at >= 8); // the leader epoch is the broker's to write

        bytes[at] ^= 1 << bit;

        prop_assert!(check(&bytes.freeze()).is_err());
    }

    #[test]
    fn no_bytes_with_a_good_crc_make_the_checks_panic(mut bytes in prop::collection::vec(any::<u8>(), 61..300)) {
        let length = bytes.len() as i32 - 12;
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        bytes[16] = 2;
        bytes[21] = 0;
        bytes[22] &= TRANSACTIONAL as u8;
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());

        let _ = check(&Bytes::from(bytes));
    }
}

#[test]
fn a_time_finds_the_very_record_inside_an_open_batch() {
    let mut log = PartitionLog::default();
    log.append(check(&batch(1, 5, 1_000, NO_PRODUCER, 0)).unwrap(), 0)
        .unwrap();
    log.append(check(&batch(2, 5, 2_000, NO_PRODUCER, 0)).unwrap(), 1)
        .unwrap();

    assert_eq!(log.find_time(0), Some((0, 1_000)));
    assert_eq!(log.find_time(1_003), Some((3, 1_003)));
    assert_eq!(log.find_time(1_005), Some((5, 2_000)));
    assert_eq!(log.find_time(2_005), None);
}

#[test]
fn a_compressed_batch_is_not_opened_and_a_time_finds_its_start() {
    const GZIP: i16 = 1;
    let mut log = PartitionLog::default();
    log.append(check(&batch(1, 5, 1_000, NO_PRODUCER, GZIP)).unwrap(), 0)
        .unwrap();

    assert_eq!(log.find_time(1_003), Some((0, 1_004)));
}

#[test]
fn a_batch_larger_than_the_reader_wants_comes_all_the_same_but_only_as_the_first() {
    let mut log = PartitionLog::default();
    log.append(check(&batch(1, 5, 1_000, NO_PRODUCER, 0)).unwrap(), 0)
        .unwrap();
    log.append(check(&batch(2, 5, 1_000, NO_PRODUCER, 0)).unwrap(), 1)
        .unwrap();

    let first = log.read(0, false, 1, true).unwrap();
    let later = log.read(0, false, 1, false).unwrap();

    assert_eq!((first.batches.len(), later.batches.len()), (1, 0));
}

#[test]
fn a_producer_of_an_earlier_life_is_shut_out_by_the_marker_of_the_next() {
    use kafka_protocol::error::ResponseError;
    let mut log = PartitionLog::default();
    log.append(check(&batch(1, 1, 1_000, (9, 0, 0), TRANSACTIONAL)).unwrap(), 0)
        .unwrap();

    log.end_transaction(9, 1, Outcome::Aborted, 1_000, 1);
    let zombie = log.append(check(&batch(1, 1, 1_000, (9, 0, 1), 0)).unwrap(), 2);
    let heir = log.append(check(&batch(1, 1, 1_000, (9, 1, 0), 0)).unwrap(), 3);

    assert_eq!(zombie, Err(ResponseError::InvalidProducerEpoch));
    assert_eq!(heir, Ok(2));
}

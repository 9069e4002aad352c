//! The records of a stream's chunks, and what is kept of those that were taken up.
//!
//! A stream may last for hours, so its earlier chunks must not take memory for whatever their senders put
//! into them: of a chunk that is let go, a few numbers stay, and its dead letter is made of these. The first
//! chunk loses its value only, because its headers say what the whole stream is about.

use std::collections::VecDeque;

use bytes::Bytes;
use speechverse::wire::dead_letter::{HEADERS_OMITTED_HEADER, KEY_OMITTED_HEADER, VALUE_OMITTED_HEADER};
use speechverse::wire::request::CHUNK_TYPE;
use speechverse::wire::{Record, RecordOffset};

/// Memory that a record takes besides its bytes, roughly.
const RECORD_BYTES: usize = 512;
/// Memory that a header takes besides its bytes, roughly.
const HEADER_BYTES: usize = 64;

/// Who sends a stream, and its name there.
pub type StreamName = (Option<String>, String);

/// The records of one stream, in the order of its chunks. Iterating over them takes them out; a record of
/// which only numbers are kept is made anew then, without its value and its own headers.
#[derive(Debug, Default)]
pub struct StreamRecords {
    name: StreamName,
    /// The first one's.
    key: Option<Bytes>,
    first: Option<Record>,
    is_first_whole: bool,
    /// Those behind the first that were let go.
    gone: VecDeque<Gone>,
    /// How many of them are taken out.
    gone_taken: u64,
    /// Those behind them.
    kept: VecDeque<Record>,
    /// Memory of the records that are whole, bytes.
    whole_bytes: usize,
    /// Where records were read that are gone: topic, partition and epoch of each.
    places: Vec<RecordOffset>,
}

/// What is kept of a record that was let go.
#[derive(Debug)]
struct Gone {
    offset: i64,
    /// Which of the places it was read from.
    place: usize,
    value_bytes: u32,
    headers: u32,
    /// Length of its key, where that is not the first one's.
    other_key_bytes: Option<u32>,
}

impl StreamRecords {
    pub(super) fn new(name: StreamName) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// A single record, whatever its stream.
    pub(super) fn of(record: Record) -> Self {
        let mut records = Self::default();
        records.push(record);
        records
    }

    /// Adds the record of the next chunk.
    pub(super) fn push(&mut self, record: Record) {
        self.whole_bytes += memory_of(&record);
        if self.len() == 0 {
            self.key.clone_from(&record.key);
            self.first = Some(record);
            self.is_first_whole = true;
        } else {
            self.kept.push_back(record);
        }
    }

    /// Takes the record of the last chunk out.
    pub(super) fn pop(&mut self) -> Option<Record> {
        if let Some(last) = self.kept.pop_back() {
            self.whole_bytes -= memory_of(&last);
            return Some(last);
        }
        match self.gone.pop_back() {
            Some(gone) => Some(self.made_anew(&gone, self.gone_taken + self.gone.len() as u64 + 1)),
            None => self.first.take(),
        }
    }

    /// The record of the first chunk.
    pub(super) fn first(&self) -> Option<&Record> {
        self.first.as_ref()
    }

    /// Where the records stand.
    pub fn offsets(&self) -> impl Iterator<Item = RecordOffset> {
        let whole = |record: &Record| record.record_offset.clone();
        let gone = self.gone.iter().map(|gone| self.offset_of(gone));
        self.first
            .iter()
            .map(whole)
            .chain(gone)
            .chain(self.kept.iter().map(whole))
    }

    /// Lets records go, the first ones first, until those that are whole take at most `bytes_max` of memory.
    /// Their places, and how many bytes of each stay in memory at most.
    pub(super) fn let_go(&mut self, bytes_max: usize) -> Vec<(RecordOffset, u64)> {
        let mut gone = Vec::new();
        while self.whole_bytes > bytes_max
            && let Some(next) = self.let_go_next()
        {
            gone.push(next);
        }
        gone
    }

    fn let_go_next(&mut self) -> Option<(RecordOffset, u64)> {
        if self.is_first_whole
            && let Some(first) = &mut self.first
        {
            self.is_first_whole = false;
            self.whole_bytes -= memory_of(first);
            let bytes = first.value.take().map_or(0, |value| value.len());
            // Behind the record's own headers, as in a dead letter.
            first
                .headers
                .push(header(VALUE_OMITTED_HEADER, bytes.to_string()));
            return Some((first.record_offset.clone(), memory_of(first) as u64));
        }
        let record = self.kept.pop_front()?;
        self.whole_bytes -= memory_of(&record);
        let bytes = |bytes: &Option<Bytes>| number(bytes.as_ref().map_or(0, Bytes::len));
        let gone = Gone {
            offset: record.record_offset.offset,
            place: self.place_of(&record.record_offset),
            value_bytes: bytes(&record.value),
            headers: number(record.headers.len()),
            other_key_bytes: (record.key != self.key).then(|| bytes(&record.key)),
        };
        self.gone.push_back(gone);
        Some((record.record_offset, 0))
    }

    fn place_of(&mut self, record_offset: &RecordOffset) -> usize {
        let of = |place: &RecordOffset| (place.topic.clone(), place.partition, place.epoch);
        let known = self
            .places
            .iter()
            .rposition(|place| of(place) == of(record_offset));
        known.unwrap_or_else(|| {
            self.places.push(record_offset.clone());
            self.places.len() - 1
        })
    }

    fn offset_of(&self, gone: &Gone) -> RecordOffset {
        RecordOffset {
            offset: gone.offset,
            ..self.places[gone.place].clone()
        }
    }

    /// The record of chunk `sequence`, which was let go.
    fn made_anew(&self, gone: &Gone, sequence: u64) -> Record {
        let (source, session) = &self.name;
        let omitted = |name: &str, number: u32| (number > 0).then(|| header(name, number.to_string()));
        let headers = [
            Some(header("ce_type", CHUNK_TYPE)),
            source.as_ref().map(|source| header("ce_source", source.clone())),
            Some(header("ce_session", session.clone())),
            Some(header("ce_sequence", sequence.to_string())),
            Some(header(VALUE_OMITTED_HEADER, gone.value_bytes.to_string())),
            omitted(HEADERS_OMITTED_HEADER, gone.headers),
            omitted(KEY_OMITTED_HEADER, gone.other_key_bytes.unwrap_or_default()),
        ];
        Record {
            record_offset: self.offset_of(gone),
            key: self.key.clone().filter(|_| gone.other_key_bytes.is_none()),
            value: None,
            headers: headers.into_iter().flatten().collect(),
            timestamp_ms: None,
        }
    }
}

impl Iterator for StreamRecords {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        if let Some(gone) = self.gone.pop_front() {
            self.gone_taken += 1;
            return Some(self.made_anew(&gone, self.gone_taken));
        }
        self.kept.pop_front()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let records = usize::from(self.first.is_some()) + self.gone.len() + self.kept.len();
        (records, Some(records))
    }
}

impl ExactSizeIterator for StreamRecords {}

/// Memory that a record takes, bytes.
fn memory_of(record: &Record) -> usize {
    let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
    let of_header = |(name, value): &(String, Option<Bytes>)| {
        HEADER_BYTES + name.len() + value.as_ref().map_or(0, Bytes::len)
    };
    let headers: usize = record.headers.iter().map(of_header).sum();
    RECORD_BYTES + length(&record.key) + length(&record.value) + headers
}

fn header(name: &str, value: impl Into<Bytes>) -> (String, Option<Bytes>) {
    (name.to_owned(), Some(value.into()))
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

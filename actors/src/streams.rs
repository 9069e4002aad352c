//! Chunked streams: chunks in order become one recording.
//!
//! Chunks of a stream share a key, so they come from one partition in order. A chunk that arrives again as it
//! was (a producer that was unsure sends twice) is passed over, also for a while after the last one. A chunk
//! that is missing, or that comes again with other sound, breaks its stream: everything of it becomes dead
//! letters, up to and including its last chunk.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use speechverse::kafka::TopicPartition;
use speechverse::util::Clock;
use speechverse::wire::Record;
use speechverse::wire::dead_letter::{Reason, Rejection, Stage};
use speechverse::wire::request::Request;

/// A stream that is silent for so long is given up; one that is complete is remembered for as long.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Streams that may be unfinished at once, and complete ones that are remembered.
const STREAMS_MAX: usize = 1_024;
/// Chunks of complete streams that are remembered.
const REMEMBERED_CHUNKS_MAX: usize = 65_536; // 32 bytes each

/// What a chunk led to.
#[derive(Debug)]
pub enum Assembled {
    /// More chunks are awaited.
    Waiting,
    /// It was had before, as it is: its record is finished.
    Repeated(Record),
    /// It was the last one.
    Whole(Box<Whole>),
    /// The stream is broken: these records cannot be answered.
    Broken(Vec<Record>, Rejection),
}

/// A recording whose chunks are all there.
#[derive(Debug)]
pub struct Whole {
    /// The record of the last chunk.
    pub record: Record,
    /// The first chunk's request with the audio of all.
    pub request: Request,
    /// Records of the chunks before.
    pub earlier: Vec<Record>,
}

/// Who sends a stream, and its name there.
type Name = (Option<String>, String);

#[derive(Debug)]
struct Stream {
    first: Request,
    records: Vec<Record>,
    /// Audio of each chunk, as its envelope had it.
    audio: Vec<Bytes>,
    bytes: usize,
    last_chunk: Instant,
}

/// What is left of a complete stream: enough to know its chunks again.
#[derive(Debug)]
struct Complete {
    name: Name,
    partition: TopicPartition,
    /// Offset of its last chunk. What comes from there or before is the stream itself, read again after a
    /// failure.
    end: i64,
    digests: Vec<[u8; 32]>,
    since: Instant,
}

/// Unfinished streams, bounded in number and bytes.
#[derive(Debug)]
pub struct Streams {
    clock: Clock,
    bytes_max: usize,
    streams: HashMap<Name, Stream>,
    /// The oldest first.
    complete: VecDeque<Complete>,
}

impl Streams {
    /// No streams yet; each may have `bytes_max` bytes. Their silence is measured by `clock`.
    pub fn new(bytes_max: usize, clock: Clock) -> Self {
        Self {
            clock,
            bytes_max,
            streams: HashMap::new(),
            complete: VecDeque::new(),
        }
    }

    /// How many are unfinished.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether none is unfinished.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Takes a chunk. The request must be one of a chunk, with its session.
    pub fn take(&mut self, record: Record, request: Request) -> Assembled {
        let (Some(chunk), Some(session)) = (request.chunk, request.session.clone()) else {
            return Assembled::Broken(vec![record], broken("a chunk without session or number"));
        };
        let shown = session.escape_debug().to_string();
        let name = (request.source.clone(), session);
        self.forget_reread(&name, &record);
        let (expected, before) = match self.streams.get(&name) {
            Some(stream) => (stream.records.len() as u64, audio_of(stream, chunk.sequence)),
            None => (0, None),
        };
        let had = match before {
            Some(audio) => *audio == request.audio && !chunk.is_final,
            None => chunk.sequence != expected && self.was_complete(&name, &record, &request),
        };
        if had {
            return Assembled::Repeated(record);
        }
        if chunk.sequence != expected {
            let found = chunk.sequence;
            let what = match before {
                Some(_) => "came again, and not as it was,",
                None => "came",
            };
            let message =
                format!("stream `{shown}`: chunk {found} {what} where chunk {expected} was expected");
            let stream = self.streams.remove(&name);
            let mut records = stream.map_or_else(Vec::new, |stream| stream.records);
            records.push(record);
            return Assembled::Broken(records, broken(message));
        }
        if expected == 0 && self.streams.len() >= STREAMS_MAX {
            let message = format!("{STREAMS_MAX} streams are unfinished already");
            return Assembled::Broken(vec![record], broken(message));
        }
        let audio = request.audio.clone();
        let now = self.clock.now();
        let stream = self.streams.entry(name.clone()).or_insert_with(|| Stream {
            first: request,
            records: Vec::new(),
            audio: Vec::new(),
            bytes: 0,
            last_chunk: now,
        });
        stream.last_chunk = now;
        stream.bytes += audio.len();
        stream.audio.push(audio);
        stream.records.push(record);
        let too_large = stream.bytes > self.bytes_max;
        if !chunk.is_final && !too_large {
            return Assembled::Waiting;
        }
        let stream = self.streams.remove(&name).expect("it was entered above");
        if too_large {
            let message = format!("stream `{shown}` has more than {} bytes", self.bytes_max);
            let rejection = Rejection::new(Reason::ValueTooLarge, Stage::Ingest, message);
            return Assembled::Broken(stream.records, rejection);
        }
        self.remember(name, &stream);
        let Stream {
            first,
            mut records,
            audio,
            ..
        } = stream;
        let request = Request {
            audio: join(&audio),
            ..first
        };
        let record = records.pop().expect("the last chunk was pushed above");
        Assembled::Whole(Box::new(Whole {
            record,
            request,
            earlier: records,
        }))
    }

    /// Drops what is had of a stream whose chunk is read again from its own place: after a failure its
    /// records begin anew under another epoch, and what was had before counts no more.
    fn forget_reread(&mut self, name: &Name, record: &Record) {
        let reread = self.streams.get(name).is_some_and(|stream| {
            stream.records.iter().any(|had| {
                let (had, now) = (&had.record_offset, &record.record_offset);
                TopicPartition::of(had) == TopicPartition::of(now) && had.epoch != now.epoch
            })
        });
        if reread {
            self.streams.remove(name);
        }
    }

    /// Whether a stream that is complete had the chunk as it is. Never asked for a chunk 0, which begins
    /// another stream.
    fn was_complete(&self, name: &Name, record: &Record, request: &Request) -> bool {
        let Some(chunk) = request.chunk else { return false };
        let partition = TopicPartition::of(&record.record_offset);
        let found = self.complete.iter().rev().find(|stream| stream.name == *name);
        found.is_some_and(|stream| {
            let place = usize::try_from(chunk.sequence).unwrap_or(usize::MAX);
            stream.partition == partition
                && record.record_offset.offset > stream.end
                && stream.digests.get(place) == Some(&digest(&request.audio))
                && chunk.is_final == (place + 1 == stream.digests.len())
        })
    }

    fn remember(&mut self, name: Name, stream: &Stream) {
        let Some(last) = stream.records.last() else { return };
        let now = self.clock.now();
        self.complete.push_back(Complete {
            name,
            partition: TopicPartition::of(&last.record_offset),
            end: last.record_offset.offset,
            digests: stream.audio.iter().map(digest).collect(),
            since: now,
        });
        let mut chunks: usize = self.complete.iter().map(|complete| complete.digests.len()).sum();
        while let Some(oldest) = self.complete.front() {
            let many = self.complete.len() > STREAMS_MAX || chunks > REMEMBERED_CHUNKS_MAX;
            if !many && now - oldest.since <= SILENCE_MAX {
                break;
            }
            chunks -= oldest.digests.len();
            self.complete.pop_front();
        }
    }

    /// Streams that were silent for too long, taken out.
    pub fn expired(&mut self) -> Vec<(Vec<Record>, Rejection)> {
        let now = self.clock.now();
        let old: Vec<Name> = self
            .streams
            .iter()
            .filter(|(_, stream)| now - stream.last_chunk > SILENCE_MAX)
            .map(|(name, _)| name.clone())
            .collect();
        old.into_iter()
            .filter_map(|name| {
                let stream = self.streams.remove(&name)?;
                let message = format!(
                    "stream `{}` ended without a last chunk: {} chunks, then {} s of silence",
                    name.1.escape_debug(),
                    stream.records.len(),
                    SILENCE_MAX.as_secs()
                );
                Some((stream.records, broken(message)))
            })
            .collect()
    }

    /// Every record of every unfinished stream, taken out.
    pub fn take_all(&mut self) -> Vec<Record> {
        self.streams
            .drain()
            .flat_map(|(_, stream)| stream.records)
            .collect()
    }

    /// Drops streams of partitions that were taken away; whoever gets them reads the chunks again.
    pub fn forget(&mut self, partitions: &[TopicPartition]) {
        self.streams.retain(|_, stream| {
            !stream
                .records
                .iter()
                .any(|record| partitions.contains(&TopicPartition::of(&record.record_offset)))
        });
    }
}

/// The sound of a chunk that a stream has.
fn audio_of(stream: &Stream, sequence: u64) -> Option<&Bytes> {
    stream.audio.get(usize::try_from(sequence).ok()?)
}

fn digest(audio: &Bytes) -> [u8; 32] {
    Sha256::digest(audio).into()
}

fn broken(message: impl Into<String>) -> Rejection {
    Rejection::new(Reason::BrokenStream, Stage::Ingest, message)
}

fn join(parts: &[Bytes]) -> Bytes {
    let mut audio = BytesMut::new();
    for part in parts {
        audio.extend_from_slice(part);
    }
    audio.freeze()
}

#[cfg(test)]
mod tests;

//! Chunked streams: which chunk is the next, and what becomes of those that are not.
//!
//! Chunks of a stream share a key, so they come from one partition in order. A chunk that arrives again as it
//! was (a producer that was unsure sends twice) is passed over, also for a while after the last one. A chunk
//! that is missing, or that comes again with other sound, breaks its stream: everything of it becomes dead
//! letters, up to and including its last chunk.
//!
//! What becomes of the audio in the chunks is another matter: `S`, which whoever takes the chunks keeps here.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use speechverse::kafka::TopicPartition;
use speechverse::util::Clock;
use speechverse::wire::dead_letter::{Reason, Rejection, Stage};
use speechverse::wire::request::Request;
use speechverse::wire::{Record, RecordOffset};

mod records;

pub use records::{StreamName, StreamRecords};

/// Complete streams that are remembered.
const COMPLETE_MAX: usize = 1_024;
/// Chunks of complete streams that are remembered: five hours in pieces of 20 ms.
const REMEMBERED_CHUNKS_MAX: usize = 1 << 20; // 16 bytes each
/// Records of a stream that are kept for its dead letters once they are taken up, bytes.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// How many streams there may be, and how long they may be silent.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Streams that may be unfinished at once.
    pub streams_max: usize,
    /// A stream that is silent for so long is given up; one that is complete is remembered for as long.
    pub idle: Duration,
    /// Records of all streams together that are kept for dead letters once they are taken up, bytes.
    pub kept_bytes_max: usize,
    /// Chunks of all unfinished streams together. Where there are more, a stream that has its share of them
    /// is broken by its next one. Of a chunk that was let go, about 100 bytes stay in memory, here and in the
    /// offset tracker.
    pub chunks_max: usize,
}

/// What a chunk led to.
#[derive(Debug)]
pub enum Taken {
    /// It is the next one of its stream.
    Next(Next),
    /// It was had before, as it is: its record is finished.
    Repeated(Record),
    /// The stream is broken: these records cannot be answered.
    Broken(Box<StreamRecords>, Rejection),
}

/// The next chunk of a stream.
#[derive(Debug)]
pub struct Next {
    /// The stream.
    pub name: StreamName,
    /// Where its record stands.
    pub record_offset: RecordOffset,
    /// Its sound.
    pub audio: Bytes,
    /// Whether it is the last one.
    pub is_final: bool,
    /// Present when it is the first one: its request, without sound.
    pub first: Option<Box<Request>>,
}

/// A stream whose chunks are all there.
#[derive(Debug)]
pub struct Complete<S> {
    /// The record of the last chunk.
    pub record: Record,
    /// The first chunk's request, without sound.
    pub request: Request,
    /// Records of the chunks before.
    pub earlier: StreamRecords,
    /// What was kept of it.
    pub state: S,
}

/// By which the sound of a chunk is known again: half of its SHA-256.
type ChunkDigest = [u8; 16];

#[derive(Debug)]
struct Stream<S> {
    request: Request,
    records: StreamRecords,
    digests: Vec<ChunkDigest>,
    last_chunk: Instant,
    state: Option<S>,
}

/// What is left of a complete stream: enough to know its chunks again.
#[derive(Debug)]
struct Remembered {
    name: StreamName,
    partition: TopicPartition,
    /// Offset of its last chunk. What comes from there or before is the stream itself, read again after a
    /// failure.
    end: i64,
    /// What its first chunk is called.
    id: String,
    digests: Vec<ChunkDigest>,
    since: Instant,
}

/// Unfinished streams, bounded in number.
#[derive(Debug)]
pub struct Streams<S> {
    clock: Clock,
    limits: StreamLimits,
    streams: HashMap<StreamName, Stream<S>>,
    /// The oldest first.
    complete: VecDeque<Remembered>,
}

impl<S> Streams<S> {
    /// No streams yet. Their silence is measured by `clock`.
    pub fn new(limits: StreamLimits, clock: Clock) -> Self {
        Self {
            clock,
            limits,
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
    pub fn take(&mut self, record: Record, request: Request) -> Taken {
        let (Some(chunk), Some(session)) = (request.chunk, request.session.clone()) else {
            return Taken::Broken(
                Box::new(StreamRecords::of(record)),
                broken("a chunk without session or number"),
            );
        };
        let shown = session.escape_debug().to_string();
        let name = (request.source.clone(), session);
        self.forget_reread(&name, &record);
        let digest = digest(&request.audio);
        let (expected, before) = match self.streams.get(&name) {
            Some(stream) => (stream.records.len() as u64, digest_of(stream, chunk.sequence)),
            None => (0, None),
        };
        let is_had = before.is_some_and(|before| *before == digest && !chunk.is_final);
        // A first chunk is known again by its id too: the next stream of the session may sound as it does.
        let may_be_late = chunk.sequence != expected || chunk.sequence == 0;
        if is_had || (may_be_late && self.was_complete(&name, &record, &request, &digest)) {
            return Taken::Repeated(record);
        }
        if chunk.sequence != expected {
            let found = chunk.sequence;
            let what = match before {
                Some(_) => "came again, and not as it was,",
                None => "came",
            };
            let message =
                format!("stream `{shown}`: chunk {found} {what} where chunk {expected} was expected");
            return self.break_off(&name, Some(record), broken(message));
        }
        let streams_max = self.limits.streams_max;
        if expected == 0 && self.streams.len() >= streams_max {
            let message = format!("{streams_max} streams are unfinished already (`speech.sessions_max`)");
            return Taken::Broken(Box::new(StreamRecords::of(record)), broken(message));
        }
        let chunks: usize = self.streams.values().map(|stream| stream.digests.len()).sum();
        let share = self.limits.chunks_max / self.streams.len().max(1);
        if chunks >= self.limits.chunks_max && expected as usize >= share {
            let message = format!(
                "stream `{shown}` has {expected} chunks and all unfinished streams {chunks}, more than are kept \
                 (`kafka.in_flight_bytes_max`): send longer chunks"
            );
            return self.break_off(&name, Some(record), broken(message));
        }
        let audio = request.audio.clone();
        let now = self.clock.now();
        let mut first = None;
        let stream = self.streams.entry(name.clone()).or_insert_with(|| {
            let request = Request {
                audio: Bytes::new(),
                ..request
            };
            first = Some(Box::new(request.clone()));
            Stream {
                request,
                records: StreamRecords::new(name.clone()),
                digests: Vec::new(),
                last_chunk: now,
                state: None,
            }
        });
        stream.last_chunk = now;
        let record_offset = record.record_offset.clone();
        stream.records.push(record);
        stream.digests.push(digest);
        Taken::Next(Next {
            name,
            record_offset,
            audio,
            is_final: chunk.is_final,
            first,
        })
    }

    /// The record of a stream's first chunk.
    pub fn first(&self, name: &StreamName) -> Option<&Record> {
        self.streams.get(name)?.records.first()
    }

    /// What is kept of a stream.
    pub fn state(&mut self, name: &StreamName) -> Option<&mut Option<S>> {
        self.streams.get_mut(name).map(|stream| &mut stream.state)
    }

    /// The stream of which most is kept, by what `bytes_of` says, where of all together more than `most` is.
    pub fn largest(&self, most: usize, bytes_of: impl Fn(&S) -> usize) -> Option<StreamName> {
        let kept = |(name, stream): (_, &Stream<S>)| Some((bytes_of(stream.state.as_ref()?), name));
        let kept = self.streams.iter().filter_map(kept);
        let (sum, largest) = kept.fold((0, None), |(sum, most), next| {
            (sum + next.0, most.max(Some(next)))
        });
        let (_, name): (usize, &StreamName) = largest.filter(|_| sum > most)?;
        Some(name.clone())
    }

    /// Lets go of records that are taken up, but for the last ones; their places, and how many bytes of each
    /// stay in memory at most.
    pub fn let_go(&mut self, name: &StreamName) -> Vec<(RecordOffset, u64)> {
        let share = self.limits.kept_bytes_max / self.streams.len().max(1);
        let stream = self.streams.get_mut(name);
        stream.map_or_else(Vec::new, |stream| {
            stream.records.let_go(share.min(KEPT_BYTES_MAX))
        })
    }

    /// Takes a stream out whose last chunk has come, and remembers it.
    pub fn complete(&mut self, name: &StreamName) -> Option<Complete<S>> {
        let mut stream = self.streams.remove(name)?;
        let record = stream.records.pop()?;
        self.remember(name.clone(), &record, stream.request.id.clone(), stream.digests);
        Some(Complete {
            record,
            request: stream.request,
            earlier: stream.records,
            state: stream.state?,
        })
    }

    /// Takes a stream out that cannot be answered.
    pub fn break_off(&mut self, name: &StreamName, last: Option<Record>, why: Rejection) -> Taken {
        let stream = self.streams.remove(name);
        let mut records = stream.map_or_else(StreamRecords::default, |stream| stream.records);
        if let Some(last) = last {
            records.push(last);
        }
        Taken::Broken(Box::new(records), why)
    }

    /// Drops what is had of a stream whose chunk is read again from its own place: after a failure its
    /// records begin anew under another epoch, and what was had before counts no more.
    fn forget_reread(&mut self, name: &StreamName, record: &Record) {
        let reread = self.streams.get(name).is_some_and(|stream| {
            stream.records.first().is_some_and(|had| {
                let (had, now) = (&had.record_offset, &record.record_offset);
                TopicPartition::of(had) == TopicPartition::of(now) && had.epoch != now.epoch
            })
        });
        if reread {
            self.streams.remove(name);
        }
    }

    /// Whether a stream that is complete had the chunk as it is: a first chunk one that it began under the
    /// same id, any other one the session's last.
    fn was_complete(
        &self,
        name: &StreamName,
        record: &Record,
        request: &Request,
        digest: &ChunkDigest,
    ) -> bool {
        let Some(chunk) = request.chunk else { return false };
        let partition = TopicPartition::of(&record.record_offset);
        let mut of_session = self.complete.iter().rev().filter(|stream| stream.name == *name);
        let found = of_session.find(|stream| chunk.sequence > 0 || stream.id == request.id);
        let now = self.clock.now();
        found.is_some_and(|stream| {
            let place = usize::try_from(chunk.sequence).unwrap_or(usize::MAX);
            now - stream.since <= self.limits.idle
                && stream.partition == partition
                && record.record_offset.offset > stream.end
                && stream.digests.get(place) == Some(digest)
                && chunk.is_final == (place + 1 == stream.digests.len())
        })
    }

    fn remember(&mut self, name: StreamName, last: &Record, id: String, mut digests: Vec<ChunkDigest>) {
        digests.shrink_to_fit();
        let now = self.clock.now();
        self.complete.push_back(Remembered {
            name,
            partition: TopicPartition::of(&last.record_offset),
            end: last.record_offset.offset,
            id,
            digests,
            since: now,
        });
        let mut chunks: usize = self.complete.iter().map(|complete| complete.digests.len()).sum();
        while let Some(oldest) = self.complete.front() {
            let many = self.complete.len() > COMPLETE_MAX || chunks > REMEMBERED_CHUNKS_MAX;
            if !many && now - oldest.since <= self.limits.idle {
                break;
            }
            chunks -= oldest.digests.len();
            self.complete.pop_front();
        }
    }

    /// Streams of these partitions were silent for so long because nothing was read: that does not count.
    pub fn excuse(&mut self, silence: Duration, of: impl Fn(&TopicPartition) -> bool) {
        let now = self.clock.now();
        for stream in self.streams.values_mut() {
            let first = stream.records.first();
            if first.is_some_and(|record| of(&TopicPartition::of(&record.record_offset))) {
                stream.last_chunk = (stream.last_chunk + silence).min(now);
            }
        }
    }

    /// Streams that were silent for too long, taken out.
    pub fn expired(&mut self) -> Vec<(StreamRecords, Rejection)> {
        let (now, idle) = (self.clock.now(), self.limits.idle);
        let old: Vec<StreamName> = self
            .streams
            .iter()
            .filter(|(_, stream)| now - stream.last_chunk > idle)
            .map(|(name, _)| name.clone())
            .collect();
        old.into_iter()
            .filter_map(|name| {
                let stream = self.streams.remove(&name)?;
                let message = format!(
                    "stream `{}` ended without a last chunk: {} chunks, then {} s of silence",
                    name.1.escape_debug(),
                    stream.records.len(),
                    idle.as_secs()
                );
                Some((stream.records, broken(message)))
            })
            .collect()
    }

    /// Every record of every unfinished stream, taken out.
    pub fn take_all(&mut self) -> impl Iterator<Item = Record> {
        self.streams.drain().flat_map(|(_, stream)| stream.records)
    }

    /// Drops streams of partitions that were taken away; whoever gets them reads the chunks again.
    pub fn forget(&mut self, partitions: &[TopicPartition]) {
        self.streams.retain(|_, stream| {
            !stream
                .records
                .first()
                .is_some_and(|record| partitions.contains(&TopicPartition::of(&record.record_offset)))
        });
    }
}

/// The digest of a chunk that a stream has.
fn digest_of<S>(stream: &Stream<S>, sequence: u64) -> Option<&ChunkDigest> {
    stream.digests.get(usize::try_from(sequence).ok()?)
}

fn digest(audio: &Bytes) -> ChunkDigest {
    Sha256::digest(audio).first_chunk().copied().unwrap_or_default()
}

/// The rejection of a stream whose chunks do not fit together.
pub fn broken(message: impl Into<String>) -> Rejection {
    Rejection::new(Reason::BrokenStream, Stage::Ingest, message)
}

#[cfg(test)]
mod tests;

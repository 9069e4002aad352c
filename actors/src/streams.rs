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
    heard: Instant,
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
            heard: now,
        });
        stream.heard = now;
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
            .filter(|(_, stream)| now - stream.heard > SILENCE_MAX)
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
mod tests {
    use std::sync::Arc;

    use speechverse::text::{ResolvedPrompt, TaskTable, TemplateVariables, TextError};
    use speechverse::wire::RecordOffset;
    use speechverse::wire::request::{Instructions, RequestLimits};

    use super::*;

    struct Words;

    impl Instructions for Words {
        fn of_task(
            &self,
            names: &str,
            variables: &TemplateVariables,
            own: Option<&str>,
        ) -> Result<ResolvedPrompt, TextError> {
            TaskTable::default().ask(names, variables, own)
        }
        fn default_instruction(&self) -> String {
            "Transcribe the speech.".into()
        }
    }

    fn chunk(session: &str, sequence: u64, is_final: bool, audio: &'static [u8]) -> (Record, Request) {
        let header = |name: &str, value: String| (name.to_owned(), Some(Bytes::from(value)));
        let record = Record {
            record_offset: RecordOffset {
                topic: Arc::from("requests"),
                partition: 0,
                offset: sequence as i64,
                epoch: 1,
            },
            key: None,
            value: Some(Bytes::from_static(audio)),
            headers: vec![
                header("ce_type", "speechverse.chunk.v1".into()),
                header("ce_session", session.into()),
                header("ce_sequence", sequence.to_string()),
                header("ce_final", is_final.to_string()),
            ],
            timestamp_ms: None,
        };
        let request = Request::parse(&record, &RequestLimits::default(), &Words).unwrap();
        (record, request)
    }

    fn take(streams: &mut Streams, (record, request): (Record, Request)) -> Assembled {
        streams.take(record, request)
    }

    #[test]
    fn chunks_in_order_become_one_recording() {
        let mut streams = Streams::new(100, Clock::system());

        assert!(matches!(
            take(&mut streams, chunk("a", 0, false, b"12")),
            Assembled::Waiting
        ));
        assert!(matches!(
            take(&mut streams, chunk("b", 0, false, b"xx")),
            Assembled::Waiting
        ));
        assert!(matches!(
            take(&mut streams, chunk("a", 1, false, b"34")),
            Assembled::Waiting
        ));
        let Assembled::Whole(whole) = take(&mut streams, chunk("a", 2, true, b"56")) else {
            panic!("the last chunk completes the stream")
        };

        assert_eq!(&whole.request.audio[..], b"123456");
        assert_eq!(whole.earlier.len(), 2);
        assert_eq!(whole.record.record_offset.offset, 2);
        assert_eq!(streams.len(), 1);
    }

    #[test]
    fn a_missing_chunk_breaks_its_stream_and_no_other() {
        let mut streams = Streams::new(100, Clock::system());
        take(&mut streams, chunk("a", 0, false, b"12"));
        take(&mut streams, chunk("b", 0, false, b"12"));

        let Assembled::Broken(records, rejection) = take(&mut streams, chunk("a", 2, true, b"56")) else {
            panic!("chunk 1 is missing")
        };

        assert_eq!(records.len(), 2);
        assert_eq!(rejection.reason, Reason::BrokenStream);
        assert!(
            rejection.message.contains("chunk 2 came where chunk 1"),
            "{}",
            rejection.message
        );
        assert_eq!(streams.len(), 1);
    }

    /// The same chunk as a later record.
    fn later((record, request): (Record, Request), offset: i64) -> (Record, Request) {
        let record_offset = RecordOffset {
            offset,
            ..record.record_offset
        };
        (
            Record {
                record_offset,
                ..record
            },
            request,
        )
    }

    #[test]
    fn a_chunk_that_comes_again_as_it_was_is_passed_over() {
        let mut streams = Streams::new(100, Clock::system());
        take(&mut streams, chunk("a", 0, false, b"12"));
        take(&mut streams, later(chunk("a", 1, false, b"34"), 1));

        for (repeat, offset) in [(chunk("a", 1, false, b"34"), 2), (chunk("a", 0, false, b"12"), 3)] {
            let taken = take(&mut streams, later(repeat, offset));

            assert!(
                matches!(&taken, Assembled::Repeated(record) if record.record_offset.offset == offset),
                "{taken:?}"
            );
        }
        let Assembled::Whole(whole) = take(&mut streams, later(chunk("a", 2, true, b"56"), 4)) else {
            panic!("the last chunk completes the stream")
        };
        assert_eq!(&whole.request.audio[..], b"123456");
        assert_eq!(whole.earlier.len(), 2, "a repeat has been finished already");
    }

    #[test]
    fn a_chunk_that_comes_again_after_the_last_one_is_passed_over() {
        let mut streams = Streams::new(100, Clock::system());
        take(&mut streams, chunk("a", 0, false, b"12"));
        take(&mut streams, later(chunk("a", 1, false, b"34"), 1));
        take(&mut streams, later(chunk("a", 2, true, b"56"), 2));

        for (repeat, offset) in [(chunk("a", 1, false, b"34"), 3), (chunk("a", 2, true, b"56"), 4)] {
            assert!(matches!(
                take(&mut streams, later(repeat, offset)),
                Assembled::Repeated(_)
            ));
        }
        for (other, offset) in [(chunk("a", 2, true, b"57"), 5), (chunk("a", 2, false, b"56"), 6)] {
            assert!(matches!(
                take(&mut streams, later(other, offset)),
                Assembled::Broken(..)
            ));
        }
    }

    #[test]
    fn a_second_stream_of_a_session_keeps_chunks_that_sound_like_the_first_one_s() {
        let mut streams = Streams::new(100, Clock::system());
        for (sequence, offset) in [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4)] {
            take(
                &mut streams,
                later(chunk("a", sequence, sequence == 2, b"00"), offset),
            );
        }

        let Assembled::Whole(whole) = take(&mut streams, later(chunk("a", 2, true, b"00"), 5)) else {
            panic!("the second stream is complete too")
        };

        assert_eq!(&whole.request.audio[..], b"000000");
        assert_eq!(whole.record.record_offset.offset, 5);
    }

    #[test]
    fn a_chunk_that_is_read_again_after_a_failure_begins_its_stream_anew() {
        let mut streams = Streams::new(100, Clock::system());
        let again = |(mut record, request): (Record, Request)| {
            record.record_offset.epoch = 2;
            (record, request)
        };
        take(&mut streams, chunk("a", 0, false, b"12"));
        take(&mut streams, later(chunk("a", 1, false, b"34"), 1));

        assert!(matches!(
            take(&mut streams, again(chunk("a", 0, false, b"12"))),
            Assembled::Waiting
        ));
        take(&mut streams, again(later(chunk("a", 1, false, b"34"), 1)));
        let Assembled::Whole(whole) = take(&mut streams, again(later(chunk("a", 2, true, b"56"), 2))) else {
            panic!("all of it was read again")
        };

        assert_eq!(whole.earlier.len(), 2);
        assert!(whole.earlier.iter().all(|record| record.record_offset.epoch == 2));
        // And once more, after it was complete and its answer was lost.
        take(&mut streams, chunk("a", 0, false, b"12"));
        assert!(matches!(
            take(&mut streams, later(chunk("a", 1, false, b"34"), 1)),
            Assembled::Waiting
        ));
    }

    #[test]
    fn a_chunk_that_comes_again_with_other_sound_breaks_its_stream() {
        let mut streams = Streams::new(100, Clock::system());
        take(&mut streams, chunk("a", 0, false, b"12"));

        let taken = take(&mut streams, later(chunk("a", 0, false, b"21"), 1));

        let Assembled::Broken(records, rejection) = taken else {
            panic!("{taken:?}")
        };
        assert_eq!(records.len(), 2);
        assert!(
            rejection.message.contains("came again, and not as it was"),
            "{rejection}"
        );
    }

    #[test]
    fn sessions_of_two_sources_are_two_streams() {
        let mut streams = Streams::new(100, Clock::system());
        let from = |source: &str, (record, request): (Record, Request)| {
            let source = Some(source.to_owned());
            (record, Request { source, ..request })
        };
        take(&mut streams, from("/one", chunk("a", 0, false, b"12")));

        let other = take(&mut streams, from("/two", chunk("a", 0, false, b"xx")));

        assert!(matches!(other, Assembled::Waiting), "{other:?}");
        assert_eq!(streams.len(), 2);
    }

    #[test]
    fn what_is_remembered_of_complete_streams_is_bounded() {
        let mut streams = Streams::new(100, Clock::system());
        for number in 0..STREAMS_MAX as i64 + 10 {
            take(
                &mut streams,
                later(chunk(&number.to_string(), 0, true, b"12"), number),
            );
        }

        assert_eq!(streams.complete.len(), STREAMS_MAX);
    }

    #[test]
    fn a_stream_that_grows_too_large_is_refused_whole() {
        let mut streams = Streams::new(3, Clock::system());
        take(&mut streams, chunk("a", 0, false, b"12"));

        let Assembled::Broken(records, rejection) = take(&mut streams, chunk("a", 1, false, b"34")) else {
            panic!("four bytes are too many")
        };

        assert_eq!(records.len(), 2);
        assert_eq!(rejection.reason, Reason::ValueTooLarge);
        assert!(streams.is_empty());
    }
}

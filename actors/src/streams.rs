//! Chunked streams: chunks in order become one recording.
//!
//! Chunks of a stream share a key, so they come from one partition in order. A chunk that is missing or doubled breaks
//! its stream: everything of it becomes dead letters, up to and including its last chunk.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use speechverse::kafka::TopicPartition;
use speechverse::wire::Record;
use speechverse::wire::dead_letter::{Reason, Rejection, Stage};
use speechverse::wire::request::Request;

/// A stream that is silent for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Streams that may be unfinished at once.
const STREAMS_MAX: usize = 1_024;

/// What a chunk led to.
#[derive(Debug)]
pub enum Assembled {
    /// More chunks are awaited.
    Waiting,
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

#[derive(Debug)]
struct Stream {
    first: Request,
    records: Vec<Record>,
    /// Audio of each chunk, as its envelope had it.
    audio: Vec<Bytes>,
    bytes: usize,
    heard: Instant,
}

/// Unfinished streams, bounded in number and bytes.
#[derive(Debug)]
pub struct Streams {
    bytes_max: usize,
    streams: HashMap<String, Stream>,
}

impl Streams {
    /// No streams yet; each may have `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            streams: HashMap::new(),
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
        let expected = self
            .streams
            .get(&session)
            .map_or(0, |stream| stream.records.len() as u64);
        if chunk.sequence != expected {
            let found = chunk.sequence;
            let message = format!(
                "stream `{}`: chunk {found} came where chunk {expected} was expected",
                session.escape_debug()
            );
            let mut records = self
                .streams
                .remove(&session)
                .map_or_else(Vec::new, |stream| stream.records);
            records.push(record);
            return Assembled::Broken(records, broken(message));
        }
        if expected == 0 && self.streams.len() >= STREAMS_MAX {
            let message = format!("{STREAMS_MAX} streams are unfinished already");
            return Assembled::Broken(vec![record], broken(message));
        }
        let audio = request.audio.clone();
        let stream = self.streams.entry(session.clone()).or_insert_with(|| Stream {
            first: request,
            records: Vec::new(),
            audio: Vec::new(),
            bytes: 0,
            heard: Instant::now(),
        });
        stream.heard = Instant::now();
        stream.bytes += audio.len();
        stream.audio.push(audio);
        stream.records.push(record);
        let too_large = stream.bytes > self.bytes_max;
        if !chunk.is_final && !too_large {
            return Assembled::Waiting;
        }
        let stream = self.streams.remove(&session).expect("it was entered above");
        if too_large {
            let message = format!(
                "stream `{}` has more than {} bytes",
                session.escape_debug(),
                self.bytes_max
            );
            let rejection = Rejection::new(Reason::ValueTooLarge, Stage::Ingest, message);
            return Assembled::Broken(stream.records, rejection);
        }
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

    /// Streams that were silent for too long, taken out.
    pub fn expired(&mut self) -> Vec<(Vec<Record>, Rejection)> {
        let old: Vec<String> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.heard.elapsed() > SILENCE_MAX)
            .map(|(session, _)| session.clone())
            .collect();
        old.into_iter()
            .filter_map(|session| {
                let stream = self.streams.remove(&session)?;
                let message = format!(
                    "stream `{}` ended without a last chunk: {} chunks, then {} s of silence",
                    session.escape_debug(),
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
        let mut streams = Streams::new(100);

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
        let mut streams = Streams::new(100);
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

    #[test]
    fn a_doubled_chunk_breaks_its_stream() {
        let mut streams = Streams::new(100);
        take(&mut streams, chunk("a", 0, false, b"12"));

        assert!(
            matches!(take(&mut streams, chunk("a", 0, false, b"12")), Assembled::Broken(records, _) if records.len() == 2)
        );
    }

    #[test]
    fn a_stream_that_grows_too_large_is_refused_whole() {
        let mut streams = Streams::new(3);
        take(&mut streams, chunk("a", 0, false, b"12"));

        let Assembled::Broken(records, rejection) = take(&mut streams, chunk("a", 1, false, b"34")) else {
            panic!("four bytes are too many")
        };

        assert_eq!(records.len(), 2);
        assert_eq!(rejection.reason, Reason::ValueTooLarge);
        assert!(streams.is_empty());
    }
}

use std::sync::Arc;

use speechverse::wire::RecordOffset;
use speechverse::wire::request::RequestLimits;

use super::*;
use crate::ingest::TaskInstructions;

mod memory;

fn instructions() -> TaskInstructions {
    TaskInstructions {
        tasks: Arc::default(),
        default: "Transcribe the speech.".into(),
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
    let request = Request::parse(&record, &RequestLimits::default(), &instructions()).unwrap();
    (record, request)
}

const LIMITS: StreamLimits = StreamLimits {
    streams_max: 2_000,
    idle: Duration::from_secs(60),
    kept_bytes_max: 4 << 20,
    chunks_max: 1 << 20,
};

/// Streams that remember the audio of them as bytes.
fn streams() -> Streams<Vec<u8>> {
    Streams::new(LIMITS, Clock::system())
}

/// Takes a chunk and keeps its audio.
fn take_up(streams: &mut Streams<Vec<u8>>, (record, request): (Record, Request)) -> Taken {
    let taken = streams.take(record, request);
    if let Taken::Next(next) = &taken {
        let kept = streams.state(&next.name).unwrap();
        assert_eq!(kept.is_none(), next.first.is_some());
        kept.get_or_insert_default().extend_from_slice(&next.audio);
    }
    taken
}

/// As [`take_up`]; a stream that is complete is taken out.
fn take(streams: &mut Streams<Vec<u8>>, chunk: (Record, Request)) -> Taken {
    let taken = take_up(streams, chunk);
    if let Taken::Next(next) = &taken
        && next.is_final
    {
        streams.complete(&next.name).unwrap();
    }
    taken
}

/// The stream that a chunk completes.
fn whole(streams: &mut Streams<Vec<u8>>, chunk: (Record, Request)) -> Complete<Vec<u8>> {
    let Taken::Next(next) = take_up(streams, chunk) else {
        panic!("the next chunk")
    };
    assert!(next.is_final);
    streams.complete(&next.name).unwrap()
}

#[test]
fn chunks_in_order_become_one_recording() {
    let mut streams = streams();

    assert!(matches!(
        take(&mut streams, chunk("a", 0, false, b"12")),
        Taken::Next(_)
    ));
    assert!(matches!(
        take(&mut streams, chunk("b", 0, false, b"xx")),
        Taken::Next(_)
    ));
    assert!(matches!(
        take(&mut streams, chunk("a", 1, false, b"34")),
        Taken::Next(_)
    ));
    let whole = whole(&mut streams, chunk("a", 2, true, b"56"));

    assert_eq!(whole.state, b"123456");
    assert_eq!(whole.earlier.len(), 2);
    assert_eq!(whole.record.record_offset.offset, 2);
    assert_eq!(streams.len(), 1);
}

#[test]
fn a_missing_chunk_breaks_its_stream_and_no_other() {
    let mut streams = streams();
    take(&mut streams, chunk("a", 0, false, b"12"));
    take(&mut streams, chunk("b", 0, false, b"12"));

    let Taken::Broken(records, rejection) = take(&mut streams, chunk("a", 2, true, b"56")) else {
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
    let id = format!("requests/0/{offset}");
    (
        Record {
            record_offset,
            ..record
        },
        Request { id, ..request },
    )
}

#[test]
fn a_chunk_that_comes_again_as_it_was_is_passed_over() {
    let mut streams = streams();
    take(&mut streams, chunk("a", 0, false, b"12"));
    take(&mut streams, later(chunk("a", 1, false, b"34"), 1));

    for (repeat, offset) in [(chunk("a", 1, false, b"34"), 2), (chunk("a", 0, false, b"12"), 3)] {
        let taken = take(&mut streams, later(repeat, offset));

        assert!(
            matches!(&taken, Taken::Repeated(record) if record.record_offset.offset == offset),
            "{taken:?}"
        );
    }
    let whole = whole(&mut streams, later(chunk("a", 2, true, b"56"), 4));
    assert_eq!(whole.state, b"123456");
    assert_eq!(whole.earlier.len(), 2, "a repeat has been finished already");
}

#[test]
fn a_chunk_that_comes_again_after_the_last_one_is_passed_over() {
    let mut streams = streams();
    take(&mut streams, chunk("a", 0, false, b"12"));
    take(&mut streams, later(chunk("a", 1, false, b"34"), 1));
    take(&mut streams, later(chunk("a", 2, true, b"56"), 2));

    for (repeat, offset) in [(chunk("a", 1, false, b"34"), 3), (chunk("a", 2, true, b"56"), 4)] {
        assert!(matches!(
            take(&mut streams, later(repeat, offset)),
            Taken::Repeated(_)
        ));
    }
    for (other, offset) in [(chunk("a", 2, true, b"57"), 5), (chunk("a", 2, false, b"56"), 6)] {
        assert!(matches!(
            take(&mut streams, later(other, offset)),
            Taken::Broken(..)
        ));
    }
}

#[test]
fn a_second_stream_of_a_session_keeps_chunks_that_sound_like_the_first_one_s() {
    let mut streams = streams();
    for (sequence, offset) in [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4)] {
        take(
            &mut streams,
            later(chunk("a", sequence, sequence == 2, b"00"), offset),
        );
    }

    let whole = whole(&mut streams, later(chunk("a", 2, true, b"00"), 5));

    assert_eq!(whole.state, b"000000");
    assert_eq!(whole.record.record_offset.offset, 5);
}

#[test]
fn a_chunk_that_is_read_again_after_a_failure_begins_its_stream_anew() {
    let mut streams = streams();
    let again = |(mut record, request): (Record, Request)| {
        record.record_offset.epoch = 2;
        (record, request)
    };
    take(&mut streams, chunk("a", 0, false, b"12"));
    take(&mut streams, later(chunk("a", 1, false, b"34"), 1));

    assert!(matches!(
        take(&mut streams, again(chunk("a", 0, false, b"12"))),
        Taken::Next(_)
    ));
    take(&mut streams, again(later(chunk("a", 1, false, b"34"), 1)));
    let whole = whole(&mut streams, again(later(chunk("a", 2, true, b"56"), 2)));

    assert_eq!(whole.earlier.len(), 2);
    assert!(whole.earlier.offsets().all(|place| place.epoch == 2));
    // And once more, after it was complete and its answer was lost.
    take(&mut streams, chunk("a", 0, false, b"12"));
    assert!(matches!(
        take(&mut streams, later(chunk("a", 1, false, b"34"), 1)),
        Taken::Next(_)
    ));
}

#[test]
fn a_chunk_that_comes_again_with_other_sound_breaks_its_stream() {
    let mut streams = streams();
    take(&mut streams, chunk("a", 0, false, b"12"));

    let taken = take(&mut streams, later(chunk("a", 0, false, b"21"), 1));

    let Taken::Broken(records, rejection) = taken else {
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
    let mut streams = streams();
    let from = |source: &str, (record, request): (Record, Request)| {
        let source = Some(source.to_owned());
        (record, Request { source, ..request })
    };
    take(&mut streams, from("/one", chunk("a", 0, false, b"12")));

    let other = take(&mut streams, from("/two", chunk("a", 0, false, b"xx")));

    assert!(matches!(other, Taken::Next(_)), "{other:?}");
    assert_eq!(streams.len(), 2);
}

#[test]
fn what_is_remembered_of_complete_streams_is_bounded() {
    let mut streams = streams();
    for number in 0..COMPLETE_MAX as i64 + 10 {
        take(
            &mut streams,
            later(chunk(&number.to_string(), 0, true, b"12"), number),
        );
    }

    assert_eq!(streams.complete.len(), COMPLETE_MAX);
}

#[test]
fn more_streams_than_there_may_be_are_refused() {
    let mut streams = streams();
    for number in 0..2_000 {
        take(&mut streams, chunk(&number.to_string(), 0, false, b"12"));
    }

    let Taken::Broken(records, rejection) = take(&mut streams, chunk("more", 0, false, b"12")) else {
        panic!("2,000 are enough")
    };

    assert_eq!(records.len(), 1);
    assert!(rejection.message.contains("speech.sessions_max"), "{rejection}");
    assert!(matches!(
        take(&mut streams, chunk("7", 1, true, b"34")),
        Taken::Next(_)
    ));
}

/// The chunk as one of a request with this id.
fn called(id: &str, (record, request): (Record, Request)) -> (Record, Request) {
    let id = id.to_owned();
    (record, Request { id, ..request })
}

/// Streams of which one is complete: two chunks of the request `one`, at offsets 0 and 1.
fn one_complete(clock: Clock) -> Streams<Vec<u8>> {
    let mut streams = Streams::new(LIMITS, clock);
    take(&mut streams, called("one", chunk("a", 0, false, b"12")));
    take(&mut streams, called("one", later(chunk("a", 1, true, b"34"), 1)));
    streams
}

#[test]
fn a_first_chunk_that_comes_again_after_the_last_one_begins_no_stream() {
    let mut streams = one_complete(Clock::system());

    let repeat = called("one", later(chunk("a", 0, false, b"12"), 2));
    assert!(matches!(take(&mut streams, repeat), Taken::Repeated(_)));
    assert_eq!(streams.len(), 0);

    for (id, audio) in [("two", &b"12"[..]), ("one", b"other")] {
        let mut streams = one_complete(Clock::system());
        let next = called(id, later(chunk("a", 0, false, audio), 2));
        assert!(matches!(take(&mut streams, next), Taken::Next(_)), "{id}");
    }
}

#[test]
fn chunks_of_the_stream_before_do_not_break_the_session_s_next_one() {
    let mut streams = one_complete(Clock::system());
    take(&mut streams, called("two", later(chunk("a", 0, false, b"56"), 2)));
    take(&mut streams, later(chunk("a", 1, false, b"78"), 3));

    for repeat in [chunk("a", 0, false, b"12"), chunk("a", 1, true, b"34")] {
        let taken = take(&mut streams, called("one", later(repeat, 4)));
        assert!(matches!(taken, Taken::Repeated(_)), "{taken:?}");
    }
    let whole = whole(&mut streams, later(chunk("a", 2, true, b"90"), 5));

    assert_eq!(whole.state, b"567890");
}

#[test]
fn a_request_that_is_sent_again_later_is_a_request() {
    let clock = Clock::manual();
    let mut streams = one_complete(clock.clone());

    clock.advance(Duration::from_secs(61));

    let again = called("one", later(chunk("a", 0, false, b"12"), 2));
    assert!(matches!(take(&mut streams, again), Taken::Next(_)));
}

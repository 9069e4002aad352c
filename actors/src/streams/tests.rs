use std::sync::Arc;

use speechverse::wire::RecordOffset;
use speechverse::wire::request::RequestLimits;

use super::*;
use crate::ingest::TaskInstructions;

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

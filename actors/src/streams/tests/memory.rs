//! What of streams stays in memory, and how many chunks they may have.

use speechverse::wire::dead_letter::VALUE_OMITTED_HEADER;
use speechverse::wire::headers::Headers;
use speechverse::wire::request::Chunk;

use super::*;

#[test]
fn the_more_streams_there_are_the_less_is_kept_of_each() {
    static AUDIO: [u8; 300_000] = [1; 300_000];
    let mut streams = streams();
    let mut kept = [0; 8];
    for sequence in 0..4 {
        for (at, kept) in kept.iter_mut().enumerate() {
            let chunk = chunk(&at.to_string(), sequence, false, &AUDIO);
            let Taken::Next(next) = take(&mut streams, chunk) else {
                panic!("the next one")
            };
            *kept += 1;
            *kept -= streams.let_go(&next.name).len();
        }
    }

    // 4 MiB among eight streams.
    assert_eq!(kept, [1; 8]);
}

#[test]
fn values_of_a_long_stream_are_let_go_but_for_the_last_ones() {
    static AUDIO: [u8; 300_000] = [1; 300_000];
    let mut streams = streams();
    let (mut name, mut gone) = (None, Vec::new());
    for sequence in 0..10 {
        let Taken::Next(next) = take(&mut streams, chunk("a", sequence, false, &AUDIO)) else {
            panic!("the next one")
        };
        gone.extend(
            streams
                .let_go(&next.name)
                .into_iter()
                .map(|(place, _)| place.offset),
        );
        name = Some(next.name);
    }
    let why = broken("it ends here");

    let Taken::Broken(records, _) = streams.break_off(&name.unwrap(), None, why) else {
        panic!("broken off")
    };

    assert_eq!(gone, [0, 1, 2, 3, 4, 5, 6]);
    for (at, record) in records.enumerate() {
        assert_eq!(record.value.is_some(), at > 6, "chunk {at}");
        let omitted = record
            .headers
            .iter()
            .find(|(name, _)| name == VALUE_OMITTED_HEADER);
        let bytes = omitted.and_then(|(_, value)| value.as_deref());
        assert_eq!(bytes, (at <= 6).then_some(&b"300000"[..]), "chunk {at}");
    }
}

/// A chunk whose sender put a megabyte into a header of its own.
fn with_a_large_header(sequence: u64) -> (Record, Request) {
    static FOREIGN: [u8; 1 << 20] = [b'x'; 1 << 20];
    let (mut record, request) = chunk("a", sequence, false, b"12");
    record.key = Some(Bytes::from_static(if sequence == 2 { b"other" } else { b"key" }));
    let foreign = Some(Bytes::from_static(&FOREIGN));
    record.headers.push(("foreign".to_owned(), foreign));
    let source = Some("/phone".to_owned());
    (record, Request { source, ..request })
}

#[test]
fn of_a_chunk_that_was_let_go_only_what_its_dead_letter_needs_is_kept() {
    let mut streams = streams();
    let (mut name, mut gone) = (None, Vec::new());
    for sequence in 0..5 {
        let Taken::Next(next) = take(&mut streams, with_a_large_header(sequence)) else {
            panic!("the next one")
        };
        gone.extend(streams.let_go(&next.name).into_iter().map(|(_, bytes)| bytes));
        name = Some(next.name);
    }
    // The first one says what the stream is about.
    assert!((1 << 20..2 << 20).contains(&gone[0]), "{gone:?}");
    assert_eq!(gone[1..], [0; 4]);

    let Taken::Broken(records, _) = streams.break_off(&name.unwrap(), None, broken("it ends here")) else {
        panic!("broken off")
    };

    let kept = |record: &Record, header: &str| {
        let bytes = Headers::new(&record.headers).bytes(header)?;
        Some(String::from_utf8(bytes.to_vec()).unwrap())
    };
    let records: Vec<Record> = records.collect();
    assert!(kept(&records[0], "foreign").is_some());
    for (at, record) in records.iter().enumerate().skip(1) {
        assert_eq!(record.record_offset.offset, at as i64);
        assert_eq!(record.key.as_deref(), (at != 2).then_some(&b"key"[..]));
        let found = [
            "ce_type",
            "ce_source",
            "ce_session",
            "ce_sequence",
            VALUE_OMITTED_HEADER,
            "speechverse_headers_omitted",
        ];
        let number = at.to_string();
        let expected = ["speechverse.chunk.v1", "/phone", "a", &number, "2", "5"];
        assert_eq!(
            found.map(|header| kept(record, header).unwrap()),
            expected,
            "chunk {at}"
        );
        assert_eq!(
            kept(record, "speechverse_key_omitted").as_deref(),
            (at == 2).then_some("5")
        );
        assert_eq!(record.headers.len(), 6 + usize::from(at == 2));
    }
}

/// Takes chunks of a stream up to number `chunks`; the first outcome that is not the next one.
fn take_many(streams: &mut Streams<Vec<u8>>, session: &str, chunks: u64) -> Option<Taken> {
    let (record, request) = chunk(session, 0, false, b"12");
    (0..chunks).find_map(|sequence| {
        let is_final = false;
        let place = Some(Chunk { sequence, is_final });
        let request = Request {
            chunk: place,
            ..request.clone()
        };
        let taken = streams.take(record.clone(), request);
        match taken {
            Taken::Next(next) => {
                streams.let_go(&next.name);
                None
            }
            other => Some(other),
        }
    })
}

#[test]
fn a_stream_has_no_limit_of_its_own() {
    assert!(take_many(&mut streams(), "a", 100_000).is_none());
}

#[test]
fn where_there_are_too_many_chunks_a_stream_with_its_share_of_them_is_broken() {
    let limits = StreamLimits {
        chunks_max: 100,
        ..LIMITS
    };
    let mut streams = Streams::new(limits, Clock::system());
    assert!(take_many(&mut streams, "small", 10).is_none());

    let Some(Taken::Broken(records, rejection)) = take_many(&mut streams, "large", 1_000) else {
        panic!("too many")
    };
    assert_eq!(records.len(), 91);
    assert!(
        rejection.message.contains("kafka.in_flight_bytes_max"),
        "{rejection}"
    );
    assert_eq!(streams.len(), 1);
    assert!(matches!(
        take(&mut streams, chunk("other", 0, false, b"12")),
        Taken::Next(_)
    ));
}

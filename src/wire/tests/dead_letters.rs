//! Dead letters, written and read back.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::wire::dead_letter::{
    ATTEMPTS_HEADER, EARLIER_CHUNKS_HEADER, HEADERS_OMITTED_HEADER, REASON_HEADER, RETRY_AFTER_HEADER,
    VALUE_OMITTED_HEADER,
};
use crate::wire::redrive::{DeadLetter, Place, RedriveMark, RedriveState};

const NOW: &str = "2030-01-01T00:00:00Z";

fn letter(record: &Record, reason: Reason) -> OutgoingRecord {
    let rejection = Rejection::new(reason, Stage::Ingest, "the value is text");
    dead_letter(record, &rejection, 0, None, "dead".into(), NOW.parse().unwrap())
}

/// A record of ours as somebody else reads it.
fn as_read(written: &OutgoingRecord) -> Record {
    Record {
        key: written.key.clone(),
        value: written.value.clone(),
        headers: written.headers.clone(),
        ..record(b"", &[])
    }
}

#[test]
fn a_dead_letter_holds_the_original_and_says_why() {
    let original = record(b"not audio", &[("ce_id", b"a"), ("ce_id", b"\xff")]);

    let letter = letter(&original, Reason::NotAudio);

    assert_eq!((&letter.key, &letter.value), (&original.key, &original.value));
    assert_eq!(letter.headers[..2], original.headers);
    let added = OutgoingRecord {
        headers: letter.headers[2..].to_vec(),
        ..letter
    };
    assert_eq!(
        texts(&added),
        [
            ("__connect.errors.topic", "speechverse.requests"),
            ("__connect.errors.partition", "2"),
            ("__connect.errors.offset", "17"),
            ("__connect.errors.stage", "ingest"),
            ("__connect.errors.class.name", "speechverse"),
            ("__connect.errors.exception.class.name", "not_audio"),
            ("__connect.errors.exception.message", "the value is text"),
            ("speechverse_reason", "not_audio"),
            ("speechverse_attempts", "1"),
        ]
    );
}

#[test]
fn of_two_dead_letters_the_last_one_counts() {
    let first = letter(&record(b"a", &[]), Reason::UnknownTask);
    let again = as_read(&first);

    let second = letter(&again, Reason::InvalidLabels);

    assert_eq!(second.headers[..first.headers.len()], first.headers);
    let read = DeadLetter::read(&as_read(&second)).unwrap();
    assert_eq!(read.reason, "invalid_labels");
    let original = read.original(&as_read(&second)).unwrap();
    let kept = first.headers.iter().filter(|(name, _)| name != ATTEMPTS_HEADER);
    assert!(original.headers.iter().take(8).eq(kept), "{:?}", original.headers);
}

#[test]
fn only_what_can_heal_has_a_time_to_try_again_which_moves_away_with_every_attempt() {
    for reason in Reason::ALL {
        let first = letter(&record(b"a", &[]), *reason);
        let after = Headers::new(&first.headers).text(RETRY_AFTER_HEADER, 64).unwrap();
        assert_eq!(after.is_some(), reason.can_heal(), "{}", reason.as_str());
        assert_eq!(reason.back_off(1).is_some(), reason.can_heal());
    }
    let waits =
        [0, 1, 2, 3, 7, 40, u32::MAX].map(|attempts| Reason::InternalError.back_off(attempts).unwrap());
    assert_eq!(
        waits.map(|wait| wait.as_secs()),
        [60, 60, 120, 240, 3_600, 3_600, 3_600]
    );
    let third = letter(&record(b"a", &[(ATTEMPTS_HEADER, b"3")]), Reason::InternalError);
    let read = DeadLetter::read(&as_read(&third)).unwrap();
    let now: Timestamp = NOW.parse().unwrap();
    assert_eq!(read.retry_after, Some(now + Duration::from_secs(240)));
}

#[test]
fn a_dead_letter_is_published_again_as_it_came_with_its_next_attempt() {
    let own: &[(&str, &[u8])] = &[("ce_id", b"a"), ("x", b"\xff\x00"), ("ce_id", b"b")];
    let mut original = record(b"\x00sound\xff", own);
    original.headers.push(("empty".to_owned(), None));
    let mut attempt = original.clone();
    for number in 1..=3_u32 {
        let written = letter(&attempt, Reason::InternalError);
        let read = DeadLetter::read(&as_read(&written)).unwrap();
        assert_eq!((read.attempts, read.id.as_str()), (number, "b"));
        let again = read.original(&as_read(&written)).unwrap();

        assert_eq!(&*again.topic, "speechverse.requests");
        assert_eq!((&again.key, &again.value), (&original.key, &original.value));
        let (last, rest) = again.headers.split_last().unwrap();
        assert_eq!(rest, original.headers);
        assert_eq!(
            *last,
            (
                ATTEMPTS_HEADER.to_owned(),
                Some(Bytes::from((number + 1).to_string()))
            )
        );
        attempt = Record {
            headers: again.headers,
            ..attempt
        };
    }
}

#[test]
fn a_dead_letter_that_does_not_hold_its_whole_record_says_what_is_missing() {
    let mut shortened = letter(&record(b"a", &[]), Reason::AnswerRefused);
    shortened.value = None;
    shortened
        .headers
        .push((VALUE_OMITTED_HEADER.to_owned(), Some(Bytes::from_static(b"1"))));
    let rejection = Rejection::new(Reason::InternalError, Stage::Decode, "no luck");
    let chunk = dead_letter(
        &record(b"a", &[]),
        &rejection,
        7,
        Some("the first one's"),
        "dead".into(),
        NOW.parse().unwrap(),
    );
    assert_eq!(
        Headers::new(&chunk.headers).bytes(EARLIER_CHUNKS_HEADER),
        Some(&b"7"[..])
    );
    let read = DeadLetter::read(&as_read(&chunk)).unwrap();
    assert_eq!(read.id, "the first one's", "that of the answers to the stream");

    let omitted: &[(&str, &[u8])] = &[(VALUE_OMITTED_HEADER, b"300000"), (HEADERS_OMITTED_HEADER, b"5")];
    let mut let_go = record(b"", omitted); // by its stream
    let_go.value = None;
    let let_go = letter(&let_go, Reason::InternalError);

    for (letter, missing) in [
        (shortened, "value"),
        (chunk, "7 before"),
        (let_go, "value, headers"),
    ] {
        let record = as_read(&letter);
        let obstacle = DeadLetter::read(&record).unwrap().original(&record).unwrap_err();
        assert!(obstacle.contains(missing), "{obstacle}");
    }
}

#[test]
fn a_request_without_an_id_keeps_the_one_that_it_was_answered_to() {
    let structured =
        br#"{"specversion":"1.0","type":"speechverse.request.v1","id":"a","source":"/s","data_base64":""}"#;
    let json: &[(&str, &[u8])] = &[("content-type", b"application/cloudevents+json")];
    for (original, id, added) in [
        (record(b"a", &[]), "speechverse.requests/2/17", true),
        (record(b"a", &[("ce-id", b"b")]), "b", false),
        (record(structured, json), "a", false),
    ] {
        let written = as_read(&letter(&original, Reason::InternalError));

        let read = DeadLetter::read(&written).unwrap();

        assert_eq!((read.id.as_str(), &read.session), (id, &None));
        let again = read.original(&written).unwrap();
        let is_id = |(name, _): &&(String, Option<Bytes>)| name == "ce_id";
        let found = again.headers.iter().find(is_id);
        assert_eq!(
            found.and_then(|(_, value)| value.as_deref()),
            added.then_some(id.as_bytes())
        );
    }
    let chunk: &[(&str, &[u8])] = &[("ce_type", b"speechverse.chunk.v1"), ("ce_session", b"call")];
    let written = as_read(&letter(&record(b"a", chunk), Reason::InternalError));
    assert_eq!(
        DeadLetter::read(&written).unwrap().session.as_deref(),
        Some("call")
    );
}

#[test]
fn a_mark_is_read_back_and_is_neither_a_dead_letter_nor_taken_from_one() {
    let mark = RedriveMark {
        record: Place {
            topic: "speechverse.requests".to_owned(),
            partition: 2,
            offset: 17,
        },
        state: RedriveState::Begun,
    };

    let written = as_read(&mark.to_record("dead".into(), None, "/test"));

    assert_eq!(
        written.value.as_deref(),
        Some(
            &br#"{"record":{"topic":"speechverse.requests","partition":2,"offset":17},"state":"begun"}"#[..]
        )
    );
    assert_eq!(RedriveMark::read(&written), Some(mark));
    assert_eq!(DeadLetter::read(&written), None);
    let forged = letter(&written, Reason::UnsupportedType);
    assert_eq!(RedriveMark::read(&as_read(&forged)), None);
}

/// Rows of the table in `docs/TOPICS.md`: reason, and whether it can heal.
#[test]
fn the_page_on_topics_lists_every_reason_and_whether_it_can_heal() {
    let page = include_str!("../../../docs/TOPICS.md");
    let (_, section) = page
        .split_once("## Dead letters")
        .expect("the page has such a section");
    let section = section.split("\n## ").next().unwrap();
    let listed: BTreeMap<&str, bool> = section
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let name = cells.first()?.strip_prefix('`')?.strip_suffix('`')?;
            Some((name, cells.get(2)? == &"yes"))
        })
        .filter(|(name, _)| !name.contains("__") && !name.starts_with("speechverse_"))
        .collect();

    let known = Reason::ALL
        .iter()
        .map(|reason| (reason.as_str(), reason.can_heal()));
    assert_eq!(listed, known.collect());
    assert!(section.contains(REASON_HEADER));
}

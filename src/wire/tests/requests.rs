//! Requests: what each header says, and every way in which it can be wrong.

use super::*;

#[test]
fn the_smallest_request_is_a_value_and_nothing_else() {
    let request = request(b"audio", &[]).unwrap();

    assert_eq!(
        request,
        Request {
            source: None,
            id: "speechverse.requests/2/17".to_owned(),
            session: None,
            chunk: None,
            task: None,
            instruction: "Listen.".to_owned(),
            labels: None,
            fields: BTreeMap::new(),
            grammar: None,
            joint: None,
            spoken: None,
            max_tokens: None,
            deadline: None,
            priority: Priority::Interactive,
            reply_topic: None,
            partials: false,
            word_times: false,
            barge_in: false,
            train: None,
            content_type: None,
            audio: Bytes::from_static(b"audio"),
            trace: request.trace.clone(),
        }
    );
}

#[test]
fn every_header_of_the_contract_is_read() {
    let request = request(
        b"audio",
        &[
            ("content-type", b"audio/wav"),
            ("ce_specversion", b"1.0"),
            ("ce_id", b"r-1"),
            ("ce_source", b"/me"),
            ("ce_type", b"speechverse.chunk.v1"),
            ("ce_instruction", "Schreibe auf, was gesagt wird: äöü.".as_bytes()),
            ("ce_task", b"asr"),
            ("ce_labels", br#"["yes","no"]"#),
            ("ce_maxtokens", b"12"),
            ("ce_deadline", b"2030-01-01T01:00:00+00:30"),
            ("ce_priority", b"bulk"),
            ("ce_partials", b"true"),
            ("ce_wordtimes", b"true"),
            ("ce_session", b"s"),
            ("ce_sequence", b"3"),
            ("ce_final", b"true"),
            ("ce_train", b"no"),
            ("traceparent", PARENT.as_bytes()),
            ("tracestate", b"a=b"),
        ],
    )
    .unwrap();

    assert_eq!(
        request,
        Request {
            source: Some("/me".to_owned()),
            id: "r-1".to_owned(),
            session: Some("s".to_owned()),
            chunk: Some(Chunk {
                sequence: 3,
                is_final: true
            }),
            task: Some("asr".to_owned()),
            instruction: "Schreibe auf, was gesagt wird: äöü.".to_owned(),
            labels: Some(vec!["yes".to_owned(), "no".to_owned()]),
            fields: BTreeMap::new(),
            grammar: Some(OutputGrammar::one_of(["yes", "no"])),
            joint: None,
            spoken: None,
            max_tokens: Some(12),
            deadline: Some("2030-01-01T00:30:00Z".parse().unwrap()),
            priority: Priority::Bulk,
            reply_topic: None,
            partials: true,
            word_times: true,
            barge_in: false,
            train: Some(false),
            content_type: Some("audio/wav".to_owned()),
            audio: Bytes::from_static(b"audio"),
            trace: TraceContext {
                state: Some("a=b".to_owned()),
                ..TraceContext::parse(PARENT).unwrap()
            },
        }
    );
}

#[test]
fn an_answer_may_be_asked_for_on_a_topic_that_the_operator_lists_and_on_no_other() {
    let limits = RequestLimits {
        reply_topics: vec!["team-a.answers".into()],
        ..RequestLimits::default()
    };
    let asked = |topic: &[u8]| {
        let record = record(b"audio", &[("ce_replytopic", topic)]);
        Request::parse(&record, &limits, &Configured)
    };

    assert_eq!(
        asked(b"team-a.answers").unwrap().reply_topic.as_deref(),
        Some("team-a.answers")
    );
    for topic in [&b"speechverse.requests"[..], b"team-b.answers", b"Team-A.answers"] {
        let refusal = asked(topic).unwrap_err();
        assert_eq!(refusal.reason, Reason::InvalidHeader);
        assert!(refusal.message.contains("kafka.topics.replies"), "{refusal}");
    }
}

#[test]
fn a_structured_event_says_the_same_as_a_binary_one() {
    let event = br#"{"specversion":"1.0","type":"speechverse.request.v1","id":"r-2","source":"/me","task":null,
        "datacontenttype":"audio/flac","instruction":"Write.","labels":["a","b"],"maxtokens":5,"partials":true,
        "train":"no","subject":"ignored","data_base64":"AAEC/w==",
        "traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;

    let request = request(
        event,
        &[("Content-Type", b"Application/CloudEvents+JSON; charset=utf-8")],
    )
    .unwrap();

    assert_eq!(
        (request.id.as_str(), request.instruction.as_str()),
        ("r-2", "Write.")
    );
    assert_eq!(request.content_type.as_deref(), Some("audio/flac"));
    assert_eq!(request.audio, Bytes::from_static(&[0, 1, 2, 255]));
    assert_eq!(request.labels, Some(vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(
        (request.max_tokens, request.partials, request.train),
        (Some(5), true, Some(false))
    );
    assert_eq!(request.trace, TraceContext::parse(PARENT).unwrap());
}

#[test]
fn the_places_of_a_tasks_prompt_are_filled_from_the_request() {
    let german = request(
        b"a",
        &[
            ("ce_task", b"translation"),
            ("ce_fields", br#"{"target_lang":"de"}"#),
        ],
    )
    .unwrap();
    let event =
        br#"{"specversion":"1.0","id":"r","source":"/me","task":"keyword_search","data_base64":"AAEC",
        "fields":{"keyword":"radio"}}"#;
    let structured = request(event, &[("content-type", b"application/cloudevents+json")]).unwrap();

    assert_eq!(german.instruction, "Translate the speech into German.");
    assert_eq!((german.grammar, german.joint), (None, None));
    assert_eq!(
        structured.instruction,
        "Is the word \"radio\" used in the audio? Answer yes or no."
    );
}

#[test]
fn several_tasks_are_one_request_with_a_layout() {
    let headers: &[(&str, &[u8])] = &[
        ("ce_task", b"asr,intent"),
        ("ce_labels", br#"["play_radio","other"]"#),
    ];

    let held = request(b"a", headers).unwrap();
    let free = request(b"a", &[headers, &[("ce_constrain", b"no")]].concat()).unwrap();

    assert_eq!(held.task.as_deref(), Some("asr,intent"));
    assert!(held.instruction.contains("=== Task: Intent ===") && held.instruction.contains("- other;"));
    let joint = held.joint.unwrap();
    assert_eq!(held.grammar, Some(joint.grammar()));
    assert_eq!(joint.by_task("ASR: a | Intent: other |")["intent"], "other");
    assert_eq!((free.grammar, free.joint), (None, Some(joint)));
}

#[test]
fn an_answer_is_constrained_to_the_tasks_own_labels_unless_the_request_says_otherwise() {
    let grammar = |headers: &[(&str, &[u8])]| request(b"a", headers).unwrap().grammar;

    let counts = Some(OutputGrammar::one_of(["one", "two", "three"]));
    let (task, own) = (
        ("ce_task", &b"speaker_count"[..]),
        ("ce_instruction", &b"Who speaks?"[..]),
    );
    assert_eq!(grammar(&[task]), counts);
    assert_eq!(grammar(&[task, ("ce_constrain", b"no")]), None);
    assert_eq!(grammar(&[task, own]), None);
    assert_eq!(grammar(&[task, own, ("ce_constrain", b"yes")]), counts);
    assert_eq!(
        grammar(&[task, own, ("ce_labels", br#"["two"]"#)]),
        Some(OutputGrammar::one_of(["two"]))
    );
    assert_eq!(grammar(&[("ce_task", b"asr")]), None);
    assert_eq!(grammar(&[("ce_task", b"asr"), ("ce_constrain", b"yes")]), None);
}

#[test]
fn a_task_brings_its_instruction_and_the_request_may_bring_another() {
    let of_task = request(b"a", &[("ce_task", b"asr")]).unwrap();
    let own = request(b"a", &[("ce_task", b"asr"), ("ce_instruction", b"Whistle.")]).unwrap();

    assert_eq!(of_task.instruction, "Transcribe the speech.");
    assert_eq!(
        (own.instruction.as_str(), own.task.as_deref()),
        ("Whistle.", Some("asr"))
    );
}

#[test]
fn a_number_in_a_stream_makes_a_chunk_even_when_no_type_is_sent() {
    let chunk = request(b"a", &[("ce_session", b"s"), ("ce_sequence", b"0")]).unwrap();
    let whole = request(b"a", &[("ce_session", b"s")]).unwrap();

    assert_eq!(
        chunk.chunk,
        Some(Chunk {
            sequence: 0,
            is_final: false
        })
    );
    assert_eq!((whole.chunk, whole.session.as_deref()), (None, Some("s")));
}

#[test]
fn every_bad_header_has_its_reason() {
    type Case<'a> = (Reason, &'a [u8], &'a [(&'a str, &'a [u8])]);
    let long = vec![b'x'; 1_000_000];
    let many = serde_json::to_vec(&(0..1_001).map(|n| n.to_string()).collect::<Vec<_>>()).unwrap();
    let structured = ("content-type", &b"application/cloudevents+json"[..]);
    let cases: [Case<'_>; 41] = [
        (Reason::HeaderTooLarge, b"a", &[("ce_instruction", &long)]),
        (Reason::InvalidHeader, b"a", &[("ce_instruction", b"\xff\xfe")]),
        (Reason::InvalidHeader, b"a", &[("ce_instruction", b" ")]),
        (Reason::UnknownTask, b"a", &[("ce_task", b"juggle")]),
        (Reason::InvalidHeader, b"a", &[("ce_task", b"\xff")]),
        (Reason::UnknownTask, b"a", &[("ce_task", b"asr,juggle")]),
        (Reason::UnknownTask, b"a", &[("ce_task", b"asr,")]),
        (Reason::InvalidHeader, b"a", &[("ce_task", b"asr,asr")]),
        (Reason::InvalidHeader, b"a", &[("ce_task", b"translation")]),
        (Reason::InvalidHeader, b"a", &[("ce_fields", b"German")]),
        (Reason::InvalidHeader, b"a", &[("ce_fields", br#"{"a":1}"#)]),
        (Reason::InvalidHeader, b"a", &[("ce_constrain", b"perhaps")]),
        (
            Reason::InvalidLabels,
            b"a",
            &[("ce_task", b"slots"), ("ce_labels", br#"["a;b"]"#)],
        ),
        (Reason::HeaderTooLarge, b"a", &[("ce_id", &long)]),
        (Reason::InvalidHeader, b"a", &[("ce_id", b"")]),
        (Reason::InvalidHeader, b"a", &[("ce_source", b" ")]),
        (Reason::HeaderTooLarge, b"a", &[("ce_source", &long)]),
        (Reason::InvalidHeader, b"a", &[("ce_id", b"\xc3\x28")]),
        (Reason::InvalidHeader, b"a", &[("content-type", b"\xff")]),
        (
            Reason::UnsupportedType,
            b"a",
            &[("ce_type", b"com.example.other")],
        ),
        (Reason::InvalidLabels, b"a", &[("ce_labels", b"yes,no")]),
        (Reason::InvalidLabels, b"a", &[("ce_labels", b"[]")]),
        (Reason::InvalidLabels, b"a", &[("ce_labels", b"[1,2]")]),
        (Reason::InvalidLabels, b"a", &[("ce_labels", br#"["a","a"]"#)]),
        (Reason::InvalidLabels, b"a", &[("ce_labels", br#"["a"," "]"#)]),
        (Reason::InvalidLabels, b"a", &[("ce_labels", &many)]),
        (Reason::HeaderTooLarge, b"a", &[("ce_labels", &long)]),
        (Reason::InvalidHeader, b"a", &[("ce_maxtokens", b"0")]),
        (Reason::InvalidHeader, b"a", &[("ce_maxtokens", b"-3")]),
        (Reason::InvalidHeader, b"a", &[("ce_maxtokens", b"99999")]),
        (Reason::InvalidHeader, b"a", &[("ce_deadline", b"tomorrow")]),
        (Reason::InvalidHeader, b"a", &[("ce_partials", b"maybe")]),
        (Reason::InvalidHeader, b"a", &[("ce_train", b"later")]),
        (
            Reason::InvalidHeader,
            b"a",
            &[("ce_type", b"speechverse.chunk.v1")],
        ),
        (Reason::InvalidHeader, b"a", &[("ce_sequence", b"1")]),
        (
            Reason::InvalidHeader,
            b"a",
            &[("ce_session", b"s"), ("ce_sequence", b"-1")],
        ),
        (Reason::InvalidEnvelope, b"not json", &[structured]),
        (Reason::InvalidEnvelope, b"[1]", &[structured]),
        (Reason::InvalidEnvelope, br#"{"data_base64":"*"}"#, &[structured]),
        (Reason::InvalidEnvelope, br#"{"data_base64":1234}"#, &[structured]),
        (
            Reason::InvalidEnvelope,
            br#"{"data_base64":"AA==","data":1}"#,
            &[structured],
        ),
    ];

    for (expected, value, headers) in cases {
        let rejection = request(value, headers).expect_err("the record is bad");

        let name = headers.first().map(|(name, value)| (name, value.len().min(20)));
        assert_eq!(
            (rejection.reason, rejection.stage),
            (expected, Stage::Ingest),
            "{name:?}: {rejection}"
        );
    }
}

#[test]
fn an_envelope_over_the_limit_is_refused_unread() {
    let limits = RequestLimits {
        envelope_bytes_max: 10,
        ..RequestLimits::default()
    };
    let record = record(
        b"not even json",
        &[("content-type", b"application/cloudevents+json")],
    );

    let rejection = Request::parse(&record, &limits, &Configured).unwrap_err();

    assert_eq!(rejection.reason, Reason::ValueTooLarge);
}

#[test]
fn the_last_header_of_a_name_counts_and_one_without_a_value_takes_it_back() {
    let mut record = record(
        b"a",
        &[("ce_id", b"first"), ("CE_ID", b"second"), ("ce_task", b"asr")],
    );
    record.headers.push(("ce_task".to_owned(), None));

    let request = Request::parse(&record, &RequestLimits::default(), &Configured).unwrap();

    assert_eq!((request.id.as_str(), request.task), ("second", None));
}

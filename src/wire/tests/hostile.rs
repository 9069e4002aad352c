//! Records from hostile senders: whatever the bytes are, an outcome, no panic, and no more memory than the
//! record's own.

use proptest::prelude::*;

use super::super::control::Order;
use super::super::dead_letter::ATTEMPTS_HEADER;
use super::super::redrive::DeadLetter;
use super::*;

/// Pieces that meet in header names: prefixes, attributes, letters that are no ASCII.
fn header_name() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "content-type",
        "ce_id",
        "ce_source",
        "ce_type",
        "ce_instruction",
        "ce_task",
        "ce_labels",
        "ce_fields",
        "ce_constrain",
        "ce_maxtokens",
        "ce_deadline",
        "ce_partials",
        "ce_session",
        "ce_sequence",
        "ce_final",
        "ce_train",
        "traceparent",
        "tracestate",
        "ce_target",
        "ce_subject",
        "ce_subjectsource",
        "ce-instruction",
        "instruction",
    ]);
    prop_oneof![
        3 => known.prop_map(str::to_owned),
        1 => "(ce|CE|cloudEvents|x-ce|)[_:. -]{0,2}[a-zA-Z_\u{e4}\u{1f600}-]{0,14}",
        1 => "\\PC{0,80}",
    ]
}

fn header_value() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop::option::of(prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        "[ -~]{0,40}".prop_map(String::into_bytes),
        "\u{feff}?[ -~]{0,9}".prop_map(String::into_bytes),
        prop::sample::select(vec![
            "application/cloudevents+json",
            "application/cloudevents-batch+json",
            "application/json",
            "true",
            "1",
            "[\"a\"]",
            "asr",
            PARENT
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ])
}

/// JSON as an event might have it, with mistakes.
fn event() -> impl Strategy<Value = Vec<u8>> {
    let scalar = prop_oneof![
        "\"[a-zA-Z0-9+/=_\\- ]{0,12}\"",
        "-?[0-9]{1,20}(\\.[0-9]{1,3})?(e[0-9]{1,3})?",
        "true|false|null",
    ];
    let value = scalar.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec(("[a-z]{0,4}", inner), 0..4).prop_map(|items| {
                let items: Vec<String> = items
                    .iter()
                    .map(|(name, item)| format!("\"{name}\":{item}"))
                    .collect();
                format!("{{{}}}", items.join(","))
            }),
        ]
    });
    let name = prop_oneof![
        prop::sample::select(vec![
            "id",
            "data_base64",
            "dataBase64",
            "data",
            "labels",
            "fields",
            "specversion"
        ])
        .prop_map(str::to_owned),
        "[a-zA-Z_]{0,14}",
    ];
    let attributes = prop::collection::vec((name, value), 0..6);
    (attributes, "(\u{feff})?", any::<bool>(), 0..40_usize).prop_map(|(attributes, mark, whole, cut)| {
        let attributes: Vec<String> = (attributes.iter())
            .map(|(name, value)| format!("\"{name}\":{value}"))
            .collect();
        let mut bytes = format!("{mark}{{{}}}", attributes.join(",")).into_bytes();
        if !whole {
            bytes.truncate(cut);
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn hostile_records_never_panic_and_can_always_become_dead_letters(
        headers in prop::collection::vec((header_name(), header_value()), 0..8),
        value in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..60),
            "\\{\"[a-z_]{0,9}\":[0-9\"a-z]{0,9}\\}".prop_map(String::into_bytes),
            event(),
        ],
        message in ".{0,1500}",
    ) {
        let mut record = record(&value, &[]);
        record.headers = headers.into_iter().map(|(name, value)| (name, value.map(Bytes::from))).collect();

        let limits = RequestLimits::default();
        let _ = Request::parse(&record, &limits, &Configured);
        let _ = Label::parse(&record, &limits, &Configured);
        let _ = Order::parse(&record);
        let rejection = Rejection::new(Reason::NotAudio, Stage::Ingest, message);
        let letter = dead_letter(&record, &rejection, 0, None, "d".into(), Timestamp::now());

        prop_assert_eq!(&letter.headers[..record.headers.len()], &record.headers[..]);
        prop_assert_eq!(letter.headers.len(), record.headers.len() + 9);
        let read = Record { headers: letter.headers, ..record.clone() };
        let again = DeadLetter::read(&read).expect("it is a dead letter").original(&read).expect("it is whole");
        let own = record.headers.iter().filter(|(name, _)| name != ATTEMPTS_HEADER);
        let count = own.clone().count();
        prop_assert!(again.headers.iter().take(count).eq(own));
        let added = again.headers[count..].iter().map(|(name, _)| name.as_str());
        prop_assert!(added.rev().eq([ATTEMPTS_HEADER, "ce_id"].into_iter().take(again.headers.len() - count)));
    }

    #[test]
    fn an_event_of_any_shape_has_an_outcome_whose_message_is_short(value in event()) {
        let outcome = request(&value, &[("content-type", b"application/cloudevents+json")]);

        match outcome {
            Ok(request) => prop_assert!(request.audio.len() <= value.len()),
            Err(rejection) => prop_assert!(rejection.message.len() < 600, "{}", rejection),
        }
    }

    #[test]
    fn a_header_name_is_understood_or_refused_or_another_s(name in header_name(), text in "[a-z]{1,9}") {
        let outcome = request(b"a", &[(&name, text.as_bytes())]);

        let folded: String = name.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
        if folded == "instruction" || folded == "ceinstruction" {
            prop_assert_eq!(outcome.unwrap().instruction, text);
        } else if folded == "instructions" || folded == "ceinstructions" {
            prop_assert_eq!(outcome.unwrap_err().reason, Reason::InvalidHeader);
        }
    }
}

#[test]
fn a_hundred_thousand_headers_are_read_in_moderate_time() {
    let mut record = record(b"a", &[]);
    let value = Some(Bytes::from_static(b"x"));
    record.headers = (0..100_000)
        .map(|number| (format!("ce_xtraction{number}"), value.clone()))
        .collect();
    record
        .headers
        .extend((0..100_000).map(|_| ("ce-task".to_owned(), Some(Bytes::from_static(b"asr")))));
    let started = std::time::Instant::now();

    let request = Request::parse(&record, &RequestLimits::default(), &Configured).unwrap();

    assert_eq!(request.task.as_deref(), Some("asr"));
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

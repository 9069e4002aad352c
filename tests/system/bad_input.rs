//! Records that cannot be answered: each a dead letter with its reason, and the record behind it is answered.

use bytes::Bytes;

use crate::harness::{Header, Sandbox, header, tone};

fn wav_of(format: u16, bits: u16, data: &[u8]) -> Bytes {
    let align = bits / 8;
    let mut bytes = Vec::new();
    bytes.extend(b"RIFF");
    bytes.extend((36 + data.len() as u32).to_le_bytes());
    bytes.extend(b"WAVEfmt ");
    bytes.extend(16_u32.to_le_bytes());
    bytes.extend(format.to_le_bytes());
    bytes.extend(1_u16.to_le_bytes());
    bytes.extend(16_000_u32.to_le_bytes());
    bytes.extend((16_000 * u32::from(align)).to_le_bytes());
    bytes.extend(align.to_le_bytes());
    bytes.extend(bits.to_le_bytes());
    bytes.extend(b"data");
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    Bytes::from(bytes)
}

/// Name, value, headers, and the reason that must be given.
fn cases() -> Vec<(&'static str, Bytes, Vec<Header>, &'static str)> {
    let good = tone(0.5, 200.0);
    let with = |name: &'static str, headers: Vec<Header>, reason| (name, tone(0.5, 200.0), headers, reason);
    let nan: Vec<u8> = (0..800).flat_map(|_| f32::NAN.to_le_bytes()).collect();
    let chunk = |sequence: &str| {
        vec![
            header("ce_type", "speechverse.chunk.v1"),
            header("ce_session", format!("s{sequence}")),
            header("ce_sequence", sequence.to_owned()),
        ]
    };
    vec![
        (
            "no audio",
            Bytes::from_static(b"this is not audio, whatever the header says"),
            vec![header("content-type", "audio/wav")],
            "not_audio",
        ),
        ("empty", Bytes::new(), vec![], "empty_value"),
        (
            "truncated",
            good.slice(..good.len() / 2),
            vec![],
            "truncated_audio",
        ),
        ("no samples", wav_of(1, 16, &[]), vec![], "no_samples"),
        ("NaN", wav_of(3, 32, &nan), vec![], "non_finite_samples"),
        ("too long", tone(41.0, 100.0), vec![], "audio_too_long"),
        with(
            "huge instruction",
            vec![header("ce_instruction", vec![b'x'; 1_000_000])],
            "header_too_large",
        ),
        with(
            "instruction not UTF-8",
            vec![header("ce_instruction", vec![0xff, 0xfe])],
            "invalid_header",
        ),
        with(
            "blank instruction",
            vec![header("ce_instruction", "  ")],
            "invalid_header",
        ),
        with(
            "unknown task",
            vec![header("ce_task", "juggling")],
            "unknown_task",
        ),
        with(
            "labels that are no JSON",
            vec![header("ce_labels", "[yes, no]")],
            "invalid_labels",
        ),
        with("no labels", vec![header("ce_labels", "[]")], "invalid_labels"),
        with(
            "a label twice",
            vec![header("ce_labels", "[\"a\", \"a\"]")],
            "invalid_labels",
        ),
        with(
            "a schema that is no JSON",
            vec![header("ce_jsonschema", "{type: string}")],
            "invalid_structure",
        ),
        with(
            "a regular expression that is none",
            vec![header("ce_regex", "(a")],
            "invalid_structure",
        ),
        with(
            "a form that no answer so short has",
            vec![header("ce_regex", "[a-z]{200}"), header("ce_maxtokens", "4")],
            "invalid_structure",
        ),
        with(
            "tokens below one",
            vec![header("ce_maxtokens", "0")],
            "invalid_header",
        ),
        with(
            "deadline past",
            vec![header("ce_deadline", "2001-01-01T00:00:00Z")],
            "deadline_exceeded",
        ),
        with(
            "deadline that is no time",
            vec![header("ce_deadline", "tomorrow")],
            "invalid_header",
        ),
        with(
            "another type",
            vec![header("ce_type", "com.example.other")],
            "unsupported_type",
        ),
        with(
            "content type that is none",
            vec![header("content-type", "audio/L16;rate=many")],
            "invalid_content_type",
        ),
        (
            "broken envelope",
            Bytes::from_static(b"{\"id\":"),
            vec![header("content-type", "application/cloudevents+json")],
            "invalid_envelope",
        ),
        with("a chunk out of order", chunk("3"), "broken_stream"),
        with(
            "more positions than a slot",
            vec![header("ce_instruction", vec![b'x'; 2_000])],
            "instruction_too_long",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_record_is_a_dead_letter_with_its_reason_and_the_next_record_is_answered() {
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;
    let cases = cases();

    for (name, value, headers, _) in &cases {
        client.request(name, "k", value.clone(), headers.clone()).await;
        client
            .request(&format!("after {name}"), "k", tone(0.4, 150.0), Vec::new())
            .await;
    }

    let mut letters = std::collections::BTreeMap::new();
    for _ in &cases {
        let (id, reason, record) = client.dead_letter().await;
        letters.insert(id, (reason, record));
    }
    let answers = client.answers(cases.len()).await;
    for (name, value, headers, reason) in &cases {
        let (found, record) = letters
            .get(*name)
            .unwrap_or_else(|| panic!("`{name}` is no dead letter"));
        assert_eq!(found, reason, "{name}");
        assert_eq!(
            record.value.clone().unwrap_or_default(),
            *value,
            "{name}: the value is kept byte for byte"
        );
        assert_eq!(
            record.headers[..headers.len()],
            headers[..],
            "{name}: the headers are kept byte for byte"
        );
        assert!(
            answers.contains_key(&format!("after {name}")),
            "the record after `{name}` was not answered"
        );
    }
    sandbox.end(pipeline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_labels_and_orders_are_dead_letters_too() {
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;

    client
        .label(Some(tone(0.5, 100.0)), vec![header("ce_id", "no target")])
        .await;
    client
        .label(None, vec![header("ce_id", "nothing"), header("ce_target", "x")])
        .await;
    client
        .label(
            None,
            vec![
                header("ce_id", "unknown"),
                header("ce_subject", "never-came"),
                header("ce_target", "x"),
            ],
        )
        .await;
    client
        .label(
            Some(Bytes::from_static(b"noise")),
            vec![header("ce_id", "no audio"), header("ce_target", "x")],
        )
        .await;
    client.order("{\"command\": \"explode\"}").await;

    let mut found = std::collections::BTreeMap::new();
    for _ in 0..5 {
        let (id, reason, _) = client.dead_letter().await;
        found.insert(id, reason);
    }
    let expected = [
        ("", "invalid_command"),
        ("no audio", "not_audio"),
        ("no target", "invalid_sample"),
        ("nothing", "invalid_sample"),
        ("unknown", "unknown_subject"),
    ];
    let found: Vec<(&str, &str)> = found
        .iter()
        .map(|(id, reason)| (id.as_str(), reason.as_str()))
        .collect();
    assert_eq!(found, expected);
    sandbox.end(pipeline).await;
}

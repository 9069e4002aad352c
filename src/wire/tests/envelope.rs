//! Near misses: header names and event formats that other clients write are understood, or refused by what
//! they are.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE};

use super::*;

const STRUCTURED: (&str, &[u8]) = ("content-type", b"application/cloudevents+json");

fn event(rest: &str) -> Result<Request, Rejection> {
    event_bytes(format!(r#"{{"specversion":"1.0","source":"/me","id":"r",{rest}}}"#).as_bytes())
}

fn event_bytes(value: &[u8]) -> Result<Request, Rejection> {
    request(value, &[STRUCTURED])
}

fn refusal(outcome: Result<Request, Rejection>, reason: Reason, words: &[&str]) {
    let rejection = outcome.expect_err(words[0]);
    assert_eq!(rejection.reason, reason, "{rejection}");
    for word in words {
        assert!(rejection.message.contains(word), "{word}: {rejection}");
    }
}

#[test]
fn an_instruction_under_another_spelling_of_its_header_is_followed() {
    for name in [
        "ce_instruction",
        "ce-instruction",
        "Ce-Instruction",
        "instruction",
        "ceInstruction",
        "cloudEvents:instruction",
    ] {
        assert_eq!(
            request(b"a", &[(name, b"Count.")]).unwrap().instruction,
            "Count.",
            "{name}"
        );
    }
    let hyphens = request(
        b"a",
        &[
            ("ce-id", b"r-1"),
            ("ce-source", b"/me"),
            ("ce-task", b"asr"),
            ("ce-max-tokens", b"3"),
            ("contentType", b"audio/wav"),
            ("ce_traceparent", PARENT.as_bytes()),
        ],
    )
    .unwrap();
    assert_eq!(
        (hyphens.id.as_str(), hyphens.source.as_deref()),
        ("r-1", Some("/me"))
    );
    assert_eq!(
        (hyphens.task.as_deref(), hyphens.max_tokens),
        (Some("asr"), Some(3))
    );
    assert_eq!(hyphens.content_type.as_deref(), Some("audio/wav"));
    assert_eq!(Some(hyphens.trace), TraceContext::parse(PARENT));
}

#[test]
fn a_header_that_is_almost_known_is_refused_with_the_name_that_is() {
    for (name, known) in [
        ("ce_instructions", "`ce_instruction`"),
        ("ce-instructions", "`ce_instruction`"),
        ("instructions", "`ce_instruction`"),
        ("ce_prompt", "`ce_instruction`"),
        ("ce_lables", "`ce_labels`"),
        ("ce_tsak", "`ce_task`"),
    ] {
        refusal(
            request(b"a", &[(name, b"x")]),
            Reason::InvalidHeader,
            &[name, known],
        );
        let rejection = label(b"a", &[(name, b"x"), ("ce_target", b"x")]).unwrap_err();
        assert_eq!(
            (rejection.reason, rejection.stage),
            (Reason::InvalidHeader, Stage::Collect)
        );
    }
    refusal(
        event(r#""instructions":"Count.""#),
        Reason::InvalidHeader,
        &["`instructions`", "`ce_instruction`"],
    );
}

#[test]
fn two_spellings_of_one_header_must_not_disagree() {
    let both = |other: &[u8]| request(b"a", &[("ce_instruction", b"Count."), ("ce-instruction", other)]);

    assert_eq!(both(b"Count.").unwrap().instruction, "Count.");
    refusal(
        both(b"Listen."),
        Reason::InvalidHeader,
        &["`ce_instruction` and `ce-instruction`"],
    );
}

#[test]
fn headers_of_others_pass() {
    let request = request(
        b"a",
        &[
            ("id", b"4711"),
            ("type", b"java.lang.String"),
            ("ce_partitionkey", b"k"),
            ("ce_tenant", b"t"),
            ("spring_json_header_types", b"{}"),
            ("x-request-id", b"\xff"),
        ],
    )
    .unwrap();

    assert_eq!(
        (request.id.as_str(), request.instruction.as_str()),
        ("speechverse.requests/2/17", "Listen.")
    );
}

#[test]
fn an_event_may_write_its_attributes_in_other_ways_too() {
    let request = event(
        r#""maxTokens":3,"ce_task":"asr","contentType":"audio/wav","dataBase64":"AAEC","fields":{"a":"b"},"labels":["x",1e2]"#,
    );
    refusal(request, Reason::InvalidLabels, &["`ce_labels`"]);

    let request =
        event(r#""maxTokens":3,"ce_task":"asr","contentType":"audio/wav","dataBase64":"AAEC""#).unwrap();
    assert_eq!(
        (request.task.as_deref(), request.max_tokens),
        (Some("asr"), Some(3))
    );
    assert_eq!(request.content_type.as_deref(), Some("audio/wav"));
    assert_eq!(request.audio, Bytes::from_static(&[0, 1, 2]));
}

#[test]
fn base64_is_taken_in_lines_and_without_padding() {
    let sound: Vec<u8> = (0..=255).cycle().take(1_000).collect();
    let line = BASE64_STANDARD.encode(&sound);
    let lines: Vec<&str> = line
        .as_bytes()
        .chunks(76)
        .map(|part| std::str::from_utf8(part).unwrap())
        .collect();

    for text in [
        line.clone(),
        lines.join("\n"),
        lines.join("\r\n") + "\r\n",
        format!("  {line}\t"),
        BASE64_STANDARD_NO_PAD.encode(&sound),
    ] {
        let json = serde_json::to_string(&text).unwrap();

        let request = event(&format!(r#""data_base64":{json}"#)).unwrap();

        assert_eq!(request.audio, sound);
    }
}

#[test]
fn what_is_no_base64_of_the_standard_alphabet_is_called_what_it_is() {
    let url = BASE64_URL_SAFE.encode([0xff; 30]);
    let data = |text: &str| event(&format!(r#""data_base64":"{text}""#));

    refusal(data(&url), Reason::InvalidEnvelope, &["URL-safe base64"]);
    refusal(
        data("data:audio/wav;base64,AAEC"),
        Reason::InvalidEnvelope,
        &["a data URL"],
    );
    refusal(
        data("Data:audio/wav;base64,AAEC"),
        Reason::InvalidEnvelope,
        &["a data URL"],
    );
    refusal(data("AA=A"), Reason::InvalidEnvelope, &["no base64"]);
    refusal(
        data("\u{e4}\u{e4}\u{e4}"),
        Reason::InvalidEnvelope,
        &["no base64"],
    );
}

#[test]
fn batches_and_other_formats_of_events_are_refused_by_name() {
    let whole = br#"{"specversion":"1.0","source":"/me","id":"r","data_base64":"AAEC"}"#;
    let batch = [b"[", &whole[..], b"]"].concat();
    let typed = |value: &[u8], content_type: &'static str| {
        request(value, &[("content-type", content_type.as_bytes())])
    };

    refusal(
        event_bytes(&batch),
        Reason::InvalidEnvelope,
        &["batch", "record of its own"],
    );
    refusal(
        typed(&batch, "application/cloudevents-batch+json"),
        Reason::InvalidEnvelope,
        &["a batch of CloudEvents"],
    );
    refusal(
        typed(b"\x00\x01", "application/cloudevents+avro"),
        Reason::InvalidEnvelope,
        &["cloudevents+avro"],
    );
    refusal(
        typed(whole, "application/json"),
        Reason::InvalidEnvelope,
        &["application/cloudevents+json"],
    );
    refusal(
        request(&batch, &[]),
        Reason::InvalidEnvelope,
        &["one event a record"],
    );
    assert_eq!(
        typed(whole, "application/cloudevents+json;charset=utf-8")
            .unwrap()
            .audio,
        Bytes::from_static(&[0, 1, 2])
    );
}

#[test]
fn byte_order_marks_are_passed_over_or_named() {
    let text = r#"{"specversion":"1.0","source":"/me","id":"r","data_base64":"AAEC"}"#;
    let marked = [b"\xef\xbb\xbf", text.as_bytes()].concat();
    let utf16: Vec<u8> = std::iter::once(0xfeff)
        .chain(text.encode_utf16())
        .flat_map(u16::to_le_bytes)
        .collect();
    let instruction = |bytes: &[u8]| request(b"a", &[("ce_instruction", bytes)]);

    assert_eq!(event_bytes(&marked).unwrap().id, "r");
    refusal(event_bytes(&utf16), Reason::InvalidEnvelope, &["UTF-16"]);
    assert_eq!(instruction(b"\xef\xbb\xbfCount.").unwrap().instruction, "Count.");
    refusal(instruction(b"\xff\xfeC\x00"), Reason::InvalidHeader, &["UTF-16"]);
    refusal(
        instruction(b"\xef\xbb\xbf "),
        Reason::InvalidHeader,
        &["ce_instruction"],
    );
}

#[test]
fn an_event_of_many_attributes_or_items_is_refused_while_it_is_read() {
    let attributes: Vec<String> = (0..300).map(|number| format!(r#""a{number}":1"#)).collect();
    let items = vec!["1"; 5_000].join(",");
    let deep = format!(r#""labels":{}{}"#, "[".repeat(500), "]".repeat(500));

    refusal(
        event(&attributes.join(",")),
        Reason::InvalidEnvelope,
        &["more than 256 attributes"],
    );
    refusal(
        event(&format!(r#""labels":[{items}]"#)),
        Reason::InvalidEnvelope,
        &["more than 4096 items"],
    );
    refusal(event(&deep), Reason::InvalidEnvelope, &["structured CloudEvent"]);
    refusal(
        event(r#""labels":[["a"]]"#),
        Reason::InvalidEnvelope,
        &["text, a number or a flag"],
    );
    refusal(
        event(r#""fields":{"a":{"b":"c"}}"#),
        Reason::InvalidEnvelope,
        &["text, a number or a flag"],
    );
    refusal(event(r#""task":["asr"]"#), Reason::InvalidEnvelope, &["`task`"]);
}

//! Labelled samples and corrections.

use super::*;

#[test]
fn audio_with_a_target_is_a_sample_and_an_empty_value_with_a_subject_a_correction() {
    let sample = label(
        b"audio",
        &[("ce_target", b"hello"), ("ce_train", b"no"), ("ce_id", b"l-1")],
    )
    .unwrap();
    let Label::Sample(sample) = sample else {
        panic!("{sample:?}")
    };
    assert_eq!(
        (sample.id.as_str(), sample.target.as_str(), sample.may_train),
        ("l-1", "hello", false)
    );
    assert_eq!(
        (sample.instruction.as_str(), &sample.audio[..]),
        ("Listen.", &b"audio"[..])
    );

    let correction = label(b"", &[("ce_target", b"hello"), ("ce_subject", b"r-1")]).unwrap();
    assert_eq!(
        correction,
        Label::Correction(Correction {
            subject: "r-1".to_owned(),
            subject_source: None,
            source: None,
            target: "hello".to_owned()
        })
    );
}

#[test]
fn a_type_of_ours_that_is_not_known_here_is_refused_and_others_pass() {
    let of = |kind: &str| label(b"audio", &[("ce_target", b"hello"), ("ce_type", kind.as_bytes())]);
    for kind in [
        "speechverse.label.v1",
        "speechverse.request.v1",
        "com.example.labelled",
    ] {
        assert!(matches!(of(kind), Ok(Label::Sample(_))), "{kind}");
    }
    for kind in ["speechverse.label.v2", "speechverse.chunk.v1", "speechverse."] {
        let refusal = of(kind).unwrap_err();
        assert_eq!(
            (refusal.reason, refusal.stage),
            (Reason::UnsupportedType, Stage::Collect),
            "{kind}"
        );
        assert!(refusal.message.contains(kind), "{refusal}");
    }
}

#[test]
fn a_request_is_named_by_its_source_and_its_id() {
    let asked = request(b"audio", &[("ce_source", b"/phone"), ("ce_id", b"r-1")]).unwrap();
    assert_eq!(
        (asked.source.as_deref(), asked.id.as_str()),
        (Some("/phone"), "r-1")
    );

    let headers: [(&str, &[u8]); 4] = [
        ("ce_source", b"/desk"),
        ("ce_subject", b"r-1"),
        ("ce_subjectsource", b"/phone"),
        ("ce_target", b"hello"),
    ];
    let Label::Correction(correction) = label(b"", &headers).unwrap() else {
        panic!("no correction")
    };
    assert_eq!(correction.source.as_deref(), Some("/desk"));
    assert_eq!(correction.subject_source.as_deref(), Some("/phone"));
}

#[test]
fn a_target_that_is_none_of_the_labels_is_refused_with_the_list() {
    let of = |headers: &[(&str, &[u8])]| label(b"audio", headers);
    let listed: (&str, &[u8]) = ("ce_labels", br#"["lamp_on", "lamp_off"]"#);

    let cases: [&[(&str, &[u8])]; 3] = [
        &[listed, ("ce_target", b"lamp on")],
        &[listed, ("ce_target", b"lamp_on, lamp_off")],
        &[
            listed,
            ("ce_target", b"Fly_To_The_Moon"),
            ("ce_instruction", b"Choose."),
        ],
    ];
    for headers in cases {
        let rejection = of(headers).unwrap_err();
        assert_eq!(
            (rejection.reason, rejection.stage),
            (Reason::InvalidSample, Stage::Collect)
        );
        assert!(rejection.message.contains("lamp_on, lamp_off"), "{rejection}");
    }
    for (task, target, part) in [
        ("intent", "Fly_To_The_Moon", "play_radio"),
        ("asr,intent", "ASR: fly | Intent: fly_to_the_moon |", "play_radio"),
        ("asr,intent", "fly to the moon", "no part `ASR: … |`"),
    ] {
        let rejection = of(&[("ce_task", task.as_bytes()), ("ce_target", target.as_bytes())]).unwrap_err();
        assert_eq!(rejection.reason, Reason::InvalidSample);
        assert!(rejection.message.contains(part), "{rejection}");
    }
    let joint: (&str, &[u8]) = ("ce_target", b"ASR: play it | Intent: play_radio |");
    assert!(of(&[("ce_task", b"asr,intent"), joint]).is_ok());
    let Label::Sample(sample) = of(&[listed, ("ce_target", b" Lamp_On")]).unwrap() else {
        panic!("no sample")
    };
    assert_eq!(sample.labels.unwrap(), ["lamp_on", "lamp_off"]);
}

#[test]
fn what_labels_nothing_has_its_reason() {
    type Case<'a> = (Reason, &'a [u8], &'a [(&'a str, &'a [u8])]);
    let cases: [Case<'_>; 8] = [
        (Reason::InvalidSample, b"audio", &[]),
        (Reason::InvalidSample, b"audio", &[("ce_target", b" ")]),
        (Reason::InvalidSample, b"", &[("ce_target", b"x")]),
        (
            Reason::InvalidHeader,
            b"",
            &[("ce_target", b"x"), ("ce_subject", b"")],
        ),
        (
            Reason::InvalidHeader,
            b"audio",
            &[("ce_target", b"x"), ("ce_id", b"")],
        ),
        (Reason::HeaderTooLarge, b"audio", &[("ce_target", &[b'x'; 9_000])]),
        (
            Reason::UnknownTask,
            b"audio",
            &[("ce_target", b"x"), ("ce_task", b"juggle")],
        ),
        (
            Reason::InvalidSample,
            b"",
            &[("ce_target", b"x"), ("ce_subject", b"r"), ("ce_train", b"no")],
        ),
    ];

    for (reason, value, headers) in cases {
        let rejection = label(value, headers).unwrap_err();
        assert_eq!(
            (rejection.reason, rejection.stage),
            (reason, Stage::Collect),
            "{rejection}"
        );
    }
}

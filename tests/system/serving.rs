//! Requests and their answers.

use std::time::Duration;

use bytes::Bytes;
use speechverse::wire::answer::{AnswerKind, Flag};
use speechverse::wire::event::{EventKind, Verdict};
use speechverse::wire::headers::Headers;

use crate::harness::{Client, FIXTURES, Sandbox, header, tone};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_answered_once_under_its_own_key_and_names_its_adapter() {
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;

    for number in 0..12 {
        let key = format!("caller-{number}");
        client
            .request(
                &format!("r{number}"),
                &key,
                tone(0.3 + 0.2 * f64::from(number), 200.0),
                vec![
                    header("ce_task", "asr"),
                    header(
                        "traceparent",
                        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                    ),
                ],
            )
            .await;
    }

    for _ in 0..12 {
        let (answer, record) = client.answer().await;
        let number = answer.request_id.strip_prefix('r').unwrap();
        assert_eq!(record.key.as_deref(), Some(format!("caller-{number}").as_bytes()));
        assert_eq!(answer.id, format!("{}:final", answer.request_id));
        assert_eq!(answer.kind, AnswerKind::Final);
        assert_eq!(answer.adapter, "tiny-0001");
        assert_eq!(answer.task.as_deref(), Some("asr"));
        assert_eq!(answer.instruction, "Transcribe the speech.");
        assert!((answer.audio_seconds - (0.3 + 0.2 * number.parse::<f64>().unwrap())).abs() < 1e-3);
        assert!(answer.tokens <= 8 && answer.score <= 0.0 && answer.timing_ms.total > 0.0);
        let headers = Headers::new(&record.headers);
        assert_eq!(headers.bytes("ce_subject"), Some(answer.request_id.as_bytes()));
        assert_eq!(headers.bytes("ce_type"), Some("speechverse.result.v1".as_bytes()));
        let trace = std::str::from_utf8(headers.bytes("traceparent").unwrap()).unwrap();
        assert!(
            trace.starts_with("00-0af7651916cd43dd8448eb211c80319c-"),
            "{trace}"
        );
        assert!(
            !trace.contains("b7ad6b7169203331"),
            "a child span has an id of its own"
        );
    }
    assert!(client.is_quiet(Duration::from_millis(500)).await);
    sandbox.end(pipeline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_does_not_depend_on_what_is_answered_beside_it() {
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;
    let clips: Vec<Bytes> = (0..6)
        .map(|number| tone(0.5 + 0.4 * f64::from(number), 150.0 + 70.0 * f64::from(number)))
        .collect();
    let mut alone = Vec::new();
    for (number, clip) in clips.iter().enumerate() {
        client
            .request(&format!("alone-{number}"), "a", clip.clone(), Vec::new())
            .await;
        alone.push(client.answer().await.0);
    }

    for (number, clip) in clips.iter().enumerate() {
        client
            .request(
                &format!("crowd-{number}"),
                &format!("{number}"),
                clip.clone(),
                Vec::new(),
            )
            .await;
    }
    let crowd = client.answers(clips.len()).await;

    for (number, alone) in alone.iter().enumerate() {
        let beside = &crowd[&format!("crowd-{number}")];
        assert_eq!(beside.text, alone.text);
        assert!((beside.score - alone.score).abs() < 1e-4);
    }
    sandbox.end(pipeline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_container_rate_and_channel_count_is_answered() {
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;
    let files = [
        "tone-16000-1-s16.wav",
        "tone-16000-8-s16-extensible.wav",
        "tone-96000-1-s16.wav",
        "tone-44100-2.flac",
        "tone-44100-2-oggenc.ogg",
        "tone-44100-2-lame.mp3",
    ];

    for file in files {
        let bytes = std::fs::read(format!("{FIXTURES}/audio/{file}")).unwrap();
        client.request(file, "k", Bytes::from(bytes), Vec::new()).await;
    }
    let raw: Vec<u8> = (0..8_000_i16).flat_map(|sample| sample.to_be_bytes()).collect();
    let pcm = vec![header("content-type", "audio/L16;rate=8000;channels=1")];
    client.request("raw", "k", Bytes::from(raw), pcm).await;
    let answers = client.answers(files.len() + 1).await;

    assert!((answers["raw"].audio_seconds - 1.0).abs() < 1e-3);
    assert!(answers.values().all(|answer| answer.audio_seconds > 0.02));
    sandbox.end(pipeline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_longer_than_the_encoders_window_is_answered_whole() {
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;

    client.request("long", "k", tone(35.0, 300.0), Vec::new()).await;
    let (answer, _) = client.answer().await;

    assert!((answer.audio_seconds - 35.0).abs() < 1e-3);
    sandbox.end(pipeline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_allowed_answers_the_answer_is_one_of_them() {
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;
    let labels = ["turn on the light", "turn off the light", "none"];

    for number in 0..6 {
        let headers = vec![
            header("ce_labels", serde_json::to_string(&labels).unwrap()),
            header("ce_maxtokens", "64"),
        ];
        client
            .request(
                &format!("r{number}"),
                "k",
                tone(1.0, 100.0 * f64::from(number + 1)),
                headers,
            )
            .await;
    }

    for answer in client.answers(6).await.into_values() {
        assert!(labels.contains(&answer.text.as_str()), "{}", answer.text);
        assert_eq!(answer.label.as_deref(), Some(answer.text.as_str()));
        assert!(!answer.flags.contains(&Flag::Truncated));
    }
    sandbox.end(pipeline).await;
}

/// Requests that bring a form, its source, and an expression that its answers match.
const FORMS: [(&str, &str, &str); 4] = [
    ("ce_regex", r"\d\d:\d\d", r"^\d\d:\d\d$"),
    (
        "ce_jsonschema",
        r#"{"type": "integer", "minimum": 3, "maximum": 40}"#,
        r"^([3-9]|[123]\d|40)$",
    ),
    ("ce_grammar", "start: (\"on\" | \"off\") \"!\"?", "^(on|off)!?$"),
    ("ce_regex", "[a-c]+", "^[a-c]+$"),
];

/// Sends requests with forms and labels, all at once, and checks the answers; each has a limit of eight
/// tokens.
async fn ask_for_forms(client: &mut Client) {
    for (number, (name, source, _)) in FORMS.into_iter().enumerate() {
        let audio = tone(0.5, 150.0 + 40.0 * number as f64);
        let headers = vec![header(name, source), header("ce_maxtokens", "8")];
        client
            .request(&format!("form-{number}"), "k", audio, headers)
            .await;
    }
    let labels = vec![header("ce_labels", "[\"yes\", \"no\"]")];
    client.request("labels", "k", tone(0.5, 220.0), labels).await;

    let answers = client.answers(FORMS.len() + 1).await;
    for (number, (name, source, matched)) in FORMS.into_iter().enumerate() {
        let answer = &answers[&format!("form-{number}")];
        let matched = regex::Regex::new(matched).unwrap();
        assert!(
            matched.is_match(&answer.text),
            "{name} {source}: {:?}",
            answer.text
        );
        assert!(answer.tokens <= 8 && !answer.flags.contains(&Flag::Truncated));
    }
    assert!(["yes", "no"].contains(&answers["labels"].text.as_str()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_with_different_forms_are_answered_side_by_side_each_in_its_own() {
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;

    ask_for_forms(&mut client).await;

    sandbox.end(pipeline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_of_a_stream_are_answered_as_one_recording() {
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;
    let whole = tone(2.0, 220.0);
    client.request("whole", "k", whole.clone(), Vec::new()).await;
    let (expected, _) = client.answer().await;

    let parts: Vec<Bytes> = (0..4)
        .map(|part| whole.slice(whole.len() * part / 4..whole.len() * (part + 1) / 4))
        .collect();
    for (sequence, part) in parts.into_iter().enumerate() {
        let headers = vec![
            header("ce_type", "speechverse.chunk.v1"),
            header("ce_session", "call-1"),
            header("ce_sequence", sequence.to_string()),
            header("ce_final", (sequence == 3).to_string()),
        ];
        client.request("chunked", "call-1", part, headers).await;
    }
    let (answer, _) = client.answer().await;

    assert_eq!(answer.request_id, "chunked");
    assert_eq!(answer.session.as_deref(), Some("call-1"));
    assert_eq!(answer.text, expected.text);
    sandbox.end(pipeline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_before_a_stop_is_not_answered_again_after_the_start() {
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;
    for number in 0..5 {
        client
            .request(&format!("before-{number}"), "k", tone(0.5, 200.0), Vec::new())
            .await;
    }
    client.answers(5).await;
    pipeline.stop().await.unwrap();
    client
        .request("while-down", "k", tone(0.5, 200.0), Vec::new())
        .await;

    let pipeline = sandbox.start().await;
    let (answer, _) = client.answer().await;

    assert_eq!(answer.request_id, "while-down");
    assert!(client.is_quiet(Duration::from_millis(500)).await);
    sandbox.end(pipeline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encoder_decoder_serves_and_learns_like_any_other_language_model() {
    let sandbox = Sandbox::with_llm(|models| models.t5.clone()).await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;

    for number in 0..6 {
        let audio = tone(0.4 + 0.3 * f64::from(number), 150.0);
        client
            .request(
                &format!("free-{number}"),
                "k",
                audio,
                vec![header("ce_task", "asr")],
            )
            .await;
    }
    let labels = vec![
        header("ce_instruction", "Yes or no?"),
        header("ce_labels", "[\"yes\", \"no\"]"),
    ];
    client.request("constrained", "k", tone(0.5, 220.0), labels).await;
    let answers = client.answers(7).await;

    for (id, answer) in &answers {
        assert_eq!(
            (answer.kind, answer.adapter.as_str()),
            (AnswerKind::Final, "tiny-0001"),
            "{id}"
        );
        assert!(answer.tokens <= 8 && answer.score <= 0.0);
    }
    let label = answers["constrained"].label.clone();
    assert!(matches!(label.as_deref(), Some("yes" | "no")), "{label:?}");
    // The same clip gives the same answer, whatever is answered beside it.
    client
        .request("again", "k", tone(0.4, 150.0), vec![header("ce_task", "asr")])
        .await;
    assert_eq!(client.answer().await.0.text, answers["free-0"].text);
    ask_for_forms(&mut client).await;

    for number in 0..22 {
        let audio = tone(0.6 + 0.05 * f64::from(number), 120.0 + 15.0 * f64::from(number));
        let target = format!("sentence number {number}");
        client
            .label(
                Some(audio),
                vec![header("ce_task", "asr"), header("ce_target", target)],
            )
            .await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    client
        .order("{\"command\": \"retrain\", \"id\": \"run-1\"}")
        .await;
    let finished = client
        .event(|what| matches!(what, EventKind::CycleFinished { .. }))
        .await;
    let EventKind::CycleFinished { verdict, .. } = &finished.what else {
        unreachable!("asked for above")
    };
    assert_eq!(*verdict, Verdict::Promoted, "{:?}", finished.what);
    sandbox.end(pipeline).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_tasks_are_answered_in_one_text_with_an_entry_for_each() {
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;
    let ask = |task: &'static str, more: &[(&str, &'static str)]| {
        let mut headers = vec![header("ce_task", task)];
        headers.extend(more.iter().map(|(name, value)| header(name, *value)));
        headers
    };

    for (id, headers) in [
        ("held", ask("emotion,accent", &[("ce_maxtokens", "64")])),
        ("free", ask("asr,keywords", &[("ce_constrain", "no")])),
        (
            "one",
            ask(
                "keyword_search",
                &[("ce_fields", r#"{"keyword":"radio"}"#), ("ce_maxtokens", "32")],
            ),
        ),
    ] {
        client.request(id, "k", tone(0.5, 300.0), headers).await;
    }
    let answers = client.answers(3).await;

    let held = &answers["held"];
    let tasks: Vec<&str> = held.fields.keys().map(String::as_str).collect();
    assert_eq!(tasks, ["accent", "emotion"]);
    assert!(
        ["neutral", "happy", "sad", "angry"].contains(&held.fields["emotion"].as_str()),
        "{}",
        held.text
    );
    assert!(
        ["canadian", "indian", "australian", "british", "american"].contains(&held.fields["accent"].as_str()),
        "{}",
        held.text
    );
    assert_eq!(held.task.as_deref(), Some("emotion,accent"));
    assert!(held.instruction.contains("=== Task: Accent ==="));
    // The tiny model writes no headings by itself: the entries are there and empty.
    let free: Vec<(&str, &str)> = answers["free"]
        .fields
        .iter()
        .map(|(task, value)| (task.as_str(), value.as_str()))
        .collect();
    assert_eq!(free, [("asr", ""), ("keywords", "")]);
    let one = &answers["one"];
    assert!(one.instruction.contains("\"radio\""), "{}", one.instruction);
    assert!(
        ["yes", "no"].contains(&one.label.as_deref().unwrap_or("nothing")),
        "{one:?}"
    );
    assert!(one.fields.is_empty());
    sandbox.end(pipeline).await;
}

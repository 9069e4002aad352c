use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};
use speechverse::wire::answer::Answer;

use super::super::{asked, requests};
use super::*;
use crate::cli::{Cli, Command, Publish};

fn tasks() -> TaskTable {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    TaskTable::load(&root.join("configs/tasks")).unwrap()
}

/// The references of one manifest with these rows, all about files of one folder.
fn read(folder: &Path, rows: &[Value]) -> References {
    let mut text = String::new();
    for row in rows {
        let mut row = row.clone();
        row["duration"] = json!(1.0);
        let file = folder.join(row["audio_filepath"].as_str().unwrap());
        std::fs::write(file, b"RIFF").unwrap();
        text += &format!("{row}\n");
    }
    let manifest = folder.join("manifest.jsonl");
    std::fs::write(&manifest, text).unwrap();
    References::read(&[manifest], tasks()).unwrap()
}

/// The command line `publish ARGUMENTS x.wav`.
fn publish(arguments: &[&str]) -> Publish {
    let line = ["speechverse", "publish"]
        .iter()
        .chain(arguments)
        .chain(&["x.wav"]);
    match Cli::try_parse_from(line).unwrap().command {
        Command::Publish(args) => args,
        other => panic!("{other:?}"),
    }
}

/// The headers of a request about a row that say what is asked.
fn headers(row: &Reference) -> BTreeMap<String, String> {
    let headers = asked(&publish(&[]), Some(row)).unwrap();
    let text = |value: Option<bytes::Bytes>| String::from_utf8(value.unwrap().to_vec()).unwrap();
    headers
        .into_iter()
        .map(|(name, value)| (name, text(value)))
        .collect()
}

fn answer(text: &str, fields: &Value) -> Outcome {
    let answer: Answer = serde_json::from_value(json!({
        "id": "a", "request_id": "r", "session": null, "kind": "final", "task": null, "instruction": "", "text": text,
        "label": null, "fields": fields, "adapter": "demo", "score": -0.1, "flags": [], "audio_seconds": 1.0,
        "tokens": 1, "timing_ms": {"queue": 0.0, "decode_audio": 0.0, "encode": 0.0, "prefill": 0.0, "generate": 0.0,
        "total": 0.0},
    }))
    .unwrap();
    Outcome::Answer(Box::new(answer), Duration::ZERO)
}

fn sent(rows: &[&Reference]) -> HashMap<String, Sent> {
    let request = |(number, row): (usize, &&Reference)| {
        let request = Sent {
            number,
            name: "a.wav".into(),
            reference: Some((*row).clone()),
            at: Instant::now(),
        };
        (number.to_string(), request)
    };
    rows.iter().enumerate().map(request).collect()
}

fn pair(right: &str, given: &str) -> (String, String) {
    (right.to_owned(), given.to_owned())
}

#[test]
fn two_files_of_one_name_keep_their_own_references() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("a", "one"), ("b", "two")] {
        let inside = folder.path().join(name);
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(inside.join("clip.wav"), b"RIFF").unwrap();
        let row = format!("{{\"audio_filepath\": \"clip.wav\", \"duration\": 1, \"text\": \"{text}\"}}\n");
        std::fs::write(inside.join("manifest.jsonl"), row).unwrap();
    }
    let manifests = ["a", "b"].map(|name| folder.path().join(name).join("manifest.jsonl"));

    let references = References::read(&manifests, tasks()).unwrap();

    for (name, text) in [("a/clip.wav", "one"), ("a/../b/clip.wav", "two")] {
        let rows = references.of(&folder.path().join(name), None);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].answers["asr"], text);
    }
}

#[test]
fn every_row_of_a_file_is_a_request_and_a_file_without_rows_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [
        json!({"audio_filepath": "a.wav", "text": "turn it on"}),
        json!({"audio_filepath": "b.wav", "text": "stop"}),
        json!({"audio_filepath": "a.wav", "task": "intent", "target": "on", "labels": ["on", "off"]}),
    ];
    let references = read(folder.path(), &rows);
    let files = ["a.wav", "b.wav", "c.wav", "a.wav"].map(|name| folder.path().join(name));

    let tasks_asked = |task| -> Vec<Vec<&str>> {
        let of_files = requests(&files, Some(&references), task);
        let tasks = of_files.iter().map(|(_, rows)| {
            rows.iter()
                .map(|row| row.map_or("", |row| row.task.as_str()))
                .collect()
        });
        tasks.collect()
    };

    assert_eq!(
        tasks_asked(None),
        [
            vec!["asr", "intent"],
            vec!["asr"],
            vec![""],
            vec!["asr", "intent"]
        ]
    );
    assert_eq!(
        tasks_asked(Some("intent")),
        [vec!["intent"], vec!["asr"], vec![""], vec!["intent"]]
    );
    assert_eq!(requests(&files, None, None)[0].1, [None]);
}

#[test]
fn a_row_with_several_targets_and_no_task_is_a_request_for_each_with_a_task_that_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let row = json!({"audio_filepath": "a.wav", "labels": ["play_radio", "stop"],
        "targets": {"asr": "turn on the radio", "intent": "play_radio"}});

    let references = read(folder.path(), &[row]);

    let rows = references.of(&folder.path().join("a.wav"), None);
    assert_eq!(rows.len(), 2);
    let [asr, intent] = [headers(rows[0]), headers(rows[1])];
    assert_eq!(asr["ce_task"], "asr");
    assert!(
        !asr.contains_key("ce_labels"),
        "a transcript is not one of the labels"
    );
    assert_eq!(
        (intent["ce_task"].as_str(), intent["ce_labels"].as_str()),
        ("intent", r#"["play_radio","stop"]"#)
    );
    let outcomes = [
        ("0".to_owned(), answer("turn on the radio", &json!({}))),
        ("1".to_owned(), answer("stop", &json!({}))),
    ];
    let found = pairs(&sent(&rows), &outcomes.into());
    assert_eq!(found["asr"], [pair("turn on the radio", "turn on the radio")]);
    assert_eq!(found["intent"], [pair("play_radio", "stop")]);
}

#[test]
fn a_row_that_names_several_tasks_is_one_request_whose_answers_are_compared_task_by_task() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [
        json!({"audio_filepath": "a.wav", "task": "asr,intent",
            "targets": {"asr": "turn on the radio", "intent": "play_radio", "emotion": "sad"}}),
        json!({"audio_filepath": "b.wav", "task": "asr,intent",
            "target": "ASR: turn on the radio | Intent: play_radio |"}),
    ];
    let references = read(folder.path(), &rows);

    for name in ["a.wav", "b.wav"] {
        let rows = references.of(&folder.path().join(name), None);

        assert_eq!(rows.len(), 1, "{name}");
        assert_eq!(headers(rows[0])["ce_task"], "asr,intent");
        let fields = json!({"asr": "turn on the radio", "intent": "stop"});
        let outcome = answer("ASR: turn on the radio | Intent: stop |", &fields);
        let found = pairs(&sent(&rows), &[("0".to_owned(), outcome)].into());
        let expected = [
            ("asr", pair("turn on the radio", "turn on the radio")),
            ("intent", pair("play_radio", "stop")),
        ];
        let expected = expected.map(|(task, pair)| (task.to_owned(), vec![pair]));
        assert_eq!(found, expected.into(), "{name}");
    }
}

#[test]
fn rows_that_are_pieces_of_a_file_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [
        json!({"audio_filepath": "a.wav", "text": "the first second", "offset": 0.0}),
        json!({"audio_filepath": "a.wav", "text": "all of it"}),
        json!({"audio_filepath": "b.wav", "text": "a piece", "offset": 2.5}),
    ];

    let references = read(folder.path(), &rows);

    let rows = references.of(&folder.path().join("a.wav"), None);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].answers["asr"], "all of it");
    assert!(references.of(&folder.path().join("b.wav"), None).is_empty());
}

#[test]
fn a_request_that_is_not_answered_is_scored_as_an_empty_answer() {
    let folder = tempfile::tempdir().unwrap();
    let rows = ["one", "two", "three"].map(|text| json!({"audio_filepath": "a.wav", "text": text}));
    let references = read(folder.path(), &rows);
    let rows = references.of(&folder.path().join("a.wav"), None);
    let dead = Outcome::DeadLetter("unknown_task: there is no task `two`".into());
    let outcomes = [
        ("0".to_owned(), answer("one", &json!({}))),
        ("1".to_owned(), dead),
    ];

    let mut found = pairs(&sent(&rows), &outcomes.into());

    let transcripts = found.get_mut("asr").unwrap();
    transcripts.sort();
    assert_eq!(
        *transcripts,
        [pair("one", "one"), pair("three", ""), pair("two", "")]
    );
}

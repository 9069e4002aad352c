use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::training::TrainingError;
use crate::training::manifest::read_manifest;

/// A pack of four corpora: read sentences, commands, sounds, orders.
fn pack() -> tempfile::TempDir {
    let pack = tempfile::tempdir().unwrap();
    let mut read = Vec::new();
    for voice in 0..10 {
        for clip in 0..3 {
            read.push(json!({
                "audio_filepath": format!("audio/{voice}-{clip}.ogg"), "duration": 2.0, "task": "asr",
                "text": format!("Sentence {clip} of {voice}."), "speaker": format!("reader-{voice}"),
                "split": if voice == 9 { "test" } else { "train" },
                "labels": {"native_language": "Mandarin", "age_group": "child"}, "words_seen_in_train": false,
            }));
        }
    }
    // The words of a test sentence, in another spelling and by a voice for training.
    read.push(json!({
        "audio_filepath": "audio/again.ogg", "duration": 2.0, "text": "sentence ONE of nine", "speaker": "reader-0",
        "task": "asr", "split": "train",
    }));
    let commands: Vec<Value> = (0..40)
        .map(|clip| {
            let word = ["yes", "no", "stop", "none"][clip % 4];
            json!({
                "audio_filepath": format!("{clip}.ogg"), "duration": 1.0, "task": "keyword-spotting", "target": word,
                "text": if word == "none" { "banana" } else { word }, "speaker_cluster": format!("c{}", clip / 4),
                "split": if clip < 4 { "test" } else { "train" },
                "words_seen_in_train": true,
            })
        })
        .collect();
    let sounds = vec![
        json!({"audio_filepath": "dog.ogg", "duration": 3.0, "group": "d", "task": "speech-detection",
            "target": "no speech", "labels": {"event": "dog"}, "split": "train", "licence": "CC0 1.0", "origin": "somewhere"}),
        json!({"audio_filepath": "rain.ogg", "duration": 3.0, "group": "r", "task": "speech-detection",
            "target": "no speech", "split": "test"}),
    ];
    let orders = vec![json!({
        "audio_filepath": "o.ogg", "duration": 4.0, "speaker_cluster": "o1", "task": "intent-slots", "target": "{}",
        "split": "train", "text_auto": "A large 16-ounce latte.", "labels": {"intent": "order", "slots": {"size": "large", "drink": "latte"}},
    })];
    for (name, rows) in [
        ("commands", commands),
        ("orders", orders),
        ("readers", read),
        ("sounds", sounds),
    ] {
        write(&pack.path().join(name), &rows);
    }
    let readme = "# Pack\n\n| folder | source | licence |\n|---|---|---|\n| commands | a/b | MIT |\n| orders | c/d | Apache-2.0 |\n\
        | readers | e/f | CC BY 4.0 |\n| sounds | g/h | public domain |\n";
    std::fs::write(pack.path().join("README.md"), readme).unwrap();
    pack
}

fn write(folder: &Path, rows: &[Value]) {
    std::fs::create_dir_all(folder).unwrap();
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(folder.join("manifest.jsonl"), text).unwrap();
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn imported(pack: &Path) -> (tempfile::TempDir, ImportReport) {
    let out = tempfile::tempdir().unwrap();
    let report = import(pack, out.path(), &[]).unwrap();
    (out, report)
}

fn manifests(out: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|end| end == "jsonl"))
        .collect()
}

#[test]
fn a_pack_becomes_manifests_that_training_reads() {
    let pack = pack();

    let (out, report) = imported(pack.path());

    let names: Vec<String> = (report.manifests.iter())
        .map(|manifest| manifest.path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    for name in [
        "asr_train",
        "asr_valid",
        "asr_test",
        "command_train",
        "command_test",
        "slots_train",
        "joint_slots_train",
        "asr_empty_train",
        "asr_empty_test",
        "noise_train",
        "speech_detection_train",
        "speech_detection_test",
        "age_group_train",
        "native_english_test",
    ] {
        assert!(names.contains(&name.to_owned()), "{name} is not in {names:?}");
    }
    for manifest in &report.manifests {
        let examples = read_manifest(&manifest.path, None).unwrap().examples;
        assert_eq!(examples.len(), manifest.rows);
    }
    let order = &lines(&out.path().join("slots_train.jsonl"))[0];
    assert_eq!(order["target"], "drink = latte; size = large;");
    assert_eq!(order["text"], "a large sixteen ounce latte");
    assert_eq!(
        (&order["text_from"], &order["licence"]),
        (&json!("recogniser"), &json!("Apache-2.0"))
    );
    let dog = &lines(&out.path().join("asr_empty_train.jsonl"))[0];
    assert_eq!(
        (&dog["text"], &dog["no_speech"], &dog["licence"]),
        (&json!(""), &json!(true), &json!("CC0 1.0"))
    );
    let sources = &lines(&out.path().join("sources.json"))[0];
    assert_eq!(sources["sounds"]["licences"], json!(["CC0 1.0", "public domain"]));
}

#[test]
fn voices_stay_on_their_side_and_a_tested_sentence_is_not_learned() {
    let pack = pack();

    let (out, report) = imported(pack.path());

    assert_eq!(report.held_out["readers"], 1);
    let voices = |name: &str| -> BTreeSet<String> {
        let rows = lines(&out.path().join(name));
        rows.iter()
            .map(|row| row["voice"].as_str().unwrap().to_owned())
            .collect()
    };
    let (train, valid, test) = (
        voices("asr_train.jsonl"),
        voices("asr_valid.jsonl"),
        voices("asr_test.jsonl"),
    );
    assert!(!valid.is_empty());
    assert!(train.is_disjoint(&valid) && train.is_disjoint(&test) && valid.is_disjoint(&test));
    let found = check(&manifests(out.path())).unwrap();
    assert_eq!(found.conflicts.len(), 0, "{:?}", found.conflicts);
    assert!(found.shared_by_design > 0 && found.test_sentences > 0 && found.test_voices > 0);
}

#[test]
fn a_held_out_manifest_keeps_its_sentences_out_of_training() {
    let (pack, out) = (pack(), tempfile::tempdir().unwrap());
    let held = out.path().join("held.jsonl");
    std::fs::write(
        &held,
        "{\"text\": \"Sentence zero, of zero!\"}\n{\"text\": \"2\"}\n{}\n",
    )
    .unwrap();

    let report = import(pack.path(), out.path(), std::slice::from_ref(&held)).unwrap();

    assert_eq!(report.held_out["readers"], 2);
    let said = lines(&out.path().join("asr_train.jsonl"));
    assert!(said.iter().all(|row| row["text"] != "sentence zero of zero"));
}

#[test]
fn a_sentence_is_held_out_wherever_it_stands_and_whatever_its_letters() {
    let (pack, out) = (pack(), tempfile::tempdir().unwrap());
    let row = |name: &str, text: &str| {
        json!({"audio_filepath": format!("{name}.ogg"), "duration": 1.0, "speaker": name, "task": "asr",
            "text": text, "split": "train"})
    };
    let rows = [
        row("a", "Open the door."),
        row("b", "Close the door."),
        row("c", "Lock the door."),
        row("d", "The café is open."),
        row("e", "Now 20% off!"),
        row("f", "Something else."),
    ];
    write(&pack.path().join("readers"), &rows);
    let held = out.path().join("held.jsonl");
    let lines = [
        json!({"target": "open the door"}),
        json!({"target": "close the door", "task": "asr"}),
        json!({"targets": {"asr": "lock the door", "intent": "lock"}}),
        json!({"text": "the café is open"}),
        json!({"text": "now 20 % off"}),
        json!({"target": "something else", "task": "translation"}),
    ];
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(&held, text).unwrap();

    let report = import(pack.path(), out.path(), &[held]).unwrap();

    assert_eq!(report.held_out["readers"], 5);
}

#[test]
fn a_test_row_offers_the_whole_list_and_a_training_row_one_that_can_be_answered() {
    let pack = pack();

    let (out, _) = imported(pack.path());

    for row in lines(&out.path().join("command_test.jsonl")) {
        assert_eq!(row["labels"], json!(["no", "none", "stop", "yes"]));
    }
    let rows = lines(&out.path().join("command_train.jsonl"));
    assert!(rows.len() > 20);
    let mut orders = BTreeSet::new();
    for row in rows {
        let labels = row["labels"].as_array().unwrap();
        assert!(labels.contains(&row["target"]), "{row}");
        assert_eq!(
            labels.len(),
            labels.iter().map(Value::to_string).collect::<BTreeSet<_>>().len(),
            "{row}"
        );
        orders.insert(row["labels"].to_string());
    }
    assert!(orders.len() > 5, "{orders:?}");
}

#[test]
fn an_import_is_the_same_every_time() {
    let pack = pack();

    let (first, second) = (imported(pack.path()).0, imported(pack.path()).0);

    for path in manifests(first.path()) {
        let other = second.path().join(path.file_name().unwrap());
        assert_eq!(
            std::fs::read(&path).unwrap(),
            std::fs::read(other).unwrap(),
            "{}",
            path.display()
        );
    }
}

#[test]
fn the_check_lists_voices_sentences_and_recordings_that_are_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let (train, test) = (
        folder.path().join("train.jsonl"),
        folder.path().join("test.jsonl"),
    );
    std::fs::write(
        &train,
        r#"{"audio_filepath": "a.wav", "voice": "ann", "text": "Good morning!", "split": "train"}
{"audio_filepath": "b.wav", "voices": ["bob", "cid"], "split": "train"}
{"audio_filepath": "c.wav", "voice": "dot", "targets": {"asr": "how are you", "intent": "x"}, "split": "valid"}
{"audio_filepath": "d.wav", "voice": "eve", "text": "yes", "split": "train"}
"#,
    )
    .unwrap();
    std::fs::write(
        &test,
        r#"{"audio_filepath": "t.wav", "voice": "tom", "text": "good morning", "split": "test"}
{"audio_filepath": "u.wav", "voice": "cid", "split": "test"}
{"audio_filepath": "x/../c.wav", "voice": "uma", "text": "How are you?", "split": "test"}
{"audio_filepath": "v.wav", "voice": "val", "text": "yes", "split": "test", "words_seen_in_train": true}
"#,
    )
    .unwrap();
    std::fs::create_dir(folder.path().join("x")).unwrap();
    std::fs::write(folder.path().join("c.wav"), "").unwrap();

    let found = check(&[train.clone(), test.clone(), train]).unwrap();

    let conflicts: Vec<String> = found.conflicts.keys().map(ToString::to_string).collect();
    assert_eq!(
        conflicts[1..],
        ["voice `cid`", "sentence `good morning`", "sentence `how are you`"]
    );
    assert!(conflicts[0].ends_with("c.wav`"), "{conflicts:?}");
    let (learned, tested) = &found.conflicts[&Conflict::Voice("cid".into())];
    assert!(learned.ends_with("train.jsonl:2") && tested.ends_with("test.jsonl:2"));
    assert_eq!(
        (found.training_rows, found.test_rows, found.shared_by_design),
        (4, 4, 1)
    );
}

/// The conflicts of two manifests in one folder, whose lines get a recording and a split.
fn conflicts(learned: &[Value], tested: &[Value]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let manifests = [("train", learned), ("test", tested)].map(|(split, rows)| {
        let path = folder.path().join(format!("{split}.jsonl"));
        let mut text = String::new();
        for (at, row) in rows.iter().enumerate() {
            let mut row = row.clone();
            row["audio_filepath"] = json!(format!("{split}-{at}.wav"));
            row["split"] = json!(split);
            text += &format!("{row}\n");
        }
        std::fs::write(&path, text).unwrap();
        path
    });
    let found = check(&manifests).unwrap_or_else(|error| panic!("{error}"));
    found.conflicts.keys().map(ToString::to_string).collect()
}

#[test]
fn the_check_finds_a_sentence_wherever_training_would_read_it() {
    let tested = [
        json!({"text": "The café is closed."}),
        json!({"text": "Good night"}),
    ];

    for learned in [
        json!({"text": "the café is closed"}),
        json!({"target": "the café is closed"}),
        json!({"target": "the café, is closed!", "task": "asr"}),
        json!({"text": "", "target": "the café is closed"}),
        json!({"targets": {"asr": "the café is closed", "intent": "x"}}),
        json!({"task": "asr,intent", "text": "The café is closed", "target": "ASR: … | Intent: … |"}),
    ] {
        assert_eq!(
            conflicts(std::slice::from_ref(&learned), &tested),
            ["sentence `the café is closed`"],
            "{learned}"
        );
    }
    let other_task = json!({"target": "Good night", "task": "translation"});
    assert!(conflicts(&[other_task], &tested).is_empty());
    let with_symbols = conflicts(
        &[json!({"text": "now 20% off"})],
        &[json!({"target": "Now, 20 % off!"})],
    );
    assert_eq!(with_symbols, ["sentence `now 20 off`"]);
}

#[test]
fn a_transcript_inside_a_written_out_joint_answer_is_refused_and_not_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("train.jsonl");
    let row = json!({"audio_filepath": "a.wav", "split": "train", "task": "asr,intent", "target": "ASR: hello | Intent: x |"});
    std::fs::write(&manifest, format!("{row}\n")).unwrap();

    let error = check(&[manifest]).unwrap_err().to_string();

    assert!(error.contains("line 1") && error.contains("`targets`"), "{error}");
}

#[test]
fn a_voice_that_only_group_names_is_a_voice() {
    let learned = [
        json!({"group": "g1"}),
        json!({"group": "shared", "speaker": "s1"}),
        json!({"group": "g2", "speaker": " "}),
    ];
    let tested = [
        json!({"group": "g1"}),
        json!({"group": "shared", "speaker": "s2"}),
        json!({"group": "g2"}),
    ];

    assert_eq!(conflicts(&learned, &tested), ["voice `g1`", "voice `g2`"]);
}

#[test]
fn a_copy_of_a_recording_under_another_name_is_found_by_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    file("learned.wav", b"RIFF one");
    file("other.wav", b"RIFF two");
    file("copy.wav", b"RIFF one");
    file("own.wav", b"RIFF own");
    file("empty-1.wav", b"");
    file("empty-2.wav", b"");
    let manifest = |split: &str, names: &[&str]| {
        let rows = names
            .iter()
            .map(|name| format!("{}\n", json!({"audio_filepath": name, "split": split})));
        let path = folder.path().join(format!("{split}.jsonl"));
        std::fs::write(&path, rows.collect::<String>()).unwrap();
        path
    };
    let train = manifest(
        "train",
        &["other.wav", "learned.wav", "empty-1.wav", "missing-1.wav"],
    );
    let test = manifest(
        "test",
        &["own.wav", "copy.wav", "other.wav", "empty-2.wav", "missing-2.wav"],
    );

    let found = check(&[train, test]).unwrap();

    let path = |name: &str| folder.path().canonicalize().unwrap().join(name);
    let copy = Conflict::Copy {
        tested: path("copy.wav"),
        learned: path("learned.wav"),
    };
    let expected = [Conflict::Recording(path("other.wav")), copy.clone()];
    assert_eq!(found.conflicts.keys().cloned().collect::<Vec<_>>(), expected);
    let (learned, tested) = &found.conflicts[&copy];
    assert!(learned.ends_with("train.jsonl:2") && tested.ends_with("test.jsonl:2"));
    assert!(copy.to_string().contains("copy.wav`, byte for byte"), "{copy}");
}

#[test]
fn what_is_wrong_with_a_pack_is_said_with_its_place() {
    let row = |change: &dyn Fn(&mut Value)| {
        let mut row = json!({"audio_filepath": "a.ogg", "duration": 1.0, "speaker": "s", "task": "asr", "text": "x", "split": "train"});
        change(&mut row);
        row
    };
    for (bad, part) in [
        (
            row(&|row| row["audio_filepath"] = json!("../a.ogg")),
            "inside the corpus",
        ),
        (
            row(&|row| row["audio_filepath"] = json!("/etc/a.ogg")),
            "inside the corpus",
        ),
        (row(&|row| row["duration"] = json!(0)), "`duration`"),
        (row(&|row| row["speaker"] = json!(null)), "`speaker`"),
        (row(&|row| row["split"] = json!("dev")), "split"),
    ] {
        let (pack, out) = (pack(), tempfile::tempdir().unwrap());
        write(&pack.path().join("readers"), &[row(&|_| ()), bad]);

        let error = import(pack.path(), out.path(), &[]).unwrap_err().to_string();

        assert!(error.contains("line 2") || part == "split", "{error}");
        assert!(
            error.contains("readers/manifest.jsonl") && error.contains(part) || part == "split",
            "{error}"
        );
    }
    let (pack, out) = (pack(), tempfile::tempdir().unwrap());
    std::fs::write(pack.path().join("README.md"), "| readers | somewhere | |\n").unwrap();
    let error = import(pack.path(), out.path(), &[]).unwrap_err();
    assert!(error.to_string().contains("licence"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = import(empty.path(), out.path(), &[]).unwrap_err();
    assert!(matches!(error, TrainingError::NoExamples { .. }), "{error}");
}

#[test]
fn the_committed_clips_of_several_tasks_can_be_read_and_name_their_licence() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/speech/tasks/tasks.jsonl");

    let examples = read_manifest(&manifest, Some("test")).unwrap().examples;

    let tasks: BTreeSet<&str> = examples.iter().map(|example| example.task.as_str()).collect();
    assert!(tasks.len() >= 6, "{tasks:?}");
    for (example, row) in examples.iter().zip(lines(&manifest)) {
        let samples = example.audio.load().unwrap();
        let seconds = samples.len() as f64 / 16_000.0;
        assert!(
            (seconds - example.seconds).abs() < 0.01,
            "{}: {seconds} s",
            example.id
        );
        assert!(!row["licence"].as_str().unwrap().is_empty() && !row["source"].as_str().unwrap().is_empty());
    }
    assert_eq!(check(&[manifest]).unwrap().training_rows, 0);
}

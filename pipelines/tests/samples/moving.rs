//! Samples that leave a store as a manifest, and come from one.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use speechverse::store::Split;
use speechverse::training::read_manifest;

use super::*;

#[test]
fn exported_samples_are_read_by_the_loader_of_manifests_and_ask_the_same() {
    let place = Place::filled();
    let out = place.path("export");
    let writer = place.store();

    let (code, said, words) = place.run(&["export", "--out", out.to_str().unwrap()]);

    assert_eq!(code, 0, "{words}");
    assert!(said.contains("5 samples"), "{said}");
    assert!(
        said.contains("1 superseded left out (--state superseded)"),
        "{said}"
    );
    assert!(said.contains("1 withheld left out (--state withheld)"), "{said}");
    let manifest = read_manifest(&out.join("manifest.jsonl"), None).unwrap();
    assert_eq!(manifest.refused, 0, "{:?}", manifest.reasons);
    let wanted = [transcript(0), transcript(2), transcript(3), corrected(), choice()];
    assert_eq!(manifest.examples.len(), wanted.len());
    for (example, sample) in manifest.examples.iter().zip(wanted) {
        assert_eq!(example.audio.load().unwrap(), sample.audio);
        assert_eq!(example.seconds, 1.0);
        assert_eq!((&example.task, &example.target), (&sample.task, &sample.target));
        assert_eq!(example.instruction.as_deref(), Some(sample.instruction.as_str()));
        assert_eq!(example.variables.fields, sample.fields);
        let labels = example.variables.labels.iter().flatten();
        assert_eq!(
            labels.map(|label| label.name.clone()).collect::<Vec<_>>(),
            sample.labels
        );
    }
    drop(writer);

    let names: Vec<_> = std::fs::read_dir(place.0.path())
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    assert!(
        names
            .iter()
            .all(|name| !name.to_string_lossy().contains("unfinished")),
        "{names:?}"
    );
    let (code, _, words) = place.run(&["export", "--out", out.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(words.contains("is not empty"), "{words}");
    let other = place.path("other");
    let (code, said, _) = place.run(&[
        "export",
        "--out",
        other.to_str().unwrap(),
        "--state",
        "superseded",
        "--request",
        "r-1",
    ]);
    assert_eq!((code, said.contains("left out")), (0, false), "{said}");
    let rows = std::fs::read_to_string(other.join("manifest.jsonl")).unwrap();
    assert!(rows.contains("target 1") && rows.contains("superseded"), "{rows}");
    let (code, _, words) = place.run(&[
        "export",
        "--out",
        place.path("none").to_str().unwrap(),
        "--task",
        "intent",
    ]);
    assert_eq!((code, place.path("none").exists()), (1, false), "{words}");
}

#[test]
fn an_empty_folder_is_filled_and_not_replaced() {
    let place = Place::filled();
    let (folder, link) = (place.path("folder"), place.path("link"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, Permissions::from_mode(0o750)).unwrap();
    std::os::unix::fs::symlink(&folder, &link).unwrap();
    let made = std::fs::metadata(&folder).unwrap().ino();

    let (code, said, words) = place.run(&["export", "--out", link.to_str().unwrap()]);

    assert_eq!(code, 0, "{words}");
    assert!(said.contains("link/manifest.jsonl"), "{said}");
    assert!(link.is_symlink());
    let now = std::fs::metadata(&folder).unwrap();
    assert_eq!((now.ino(), now.mode() & 0o777), (made, 0o750));
    let manifest = read_manifest(&folder.join("manifest.jsonl"), None).unwrap();
    assert_eq!((manifest.examples.len(), manifest.refused), (5, 0));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 5 + 1);
}

#[test]
fn an_export_fills_another_store_with_the_same_samples_and_a_second_time_with_none() {
    let (place, other) = (Place::filled(), Place::new());
    let out = place.path("export");
    place.run(&["export", "--out", out.to_str().unwrap()]);
    let manifest = out.join("manifest.jsonl");
    let import = || other.run(&["import", "--manifest", manifest.to_str().unwrap()]);

    let (code, said, words) = import();

    assert_eq!(code, 0, "{words}");
    assert!(said.contains("5 samples stored"), "{said}");
    let of = |place: &Place| -> Vec<Vec<Value>> {
        let keys = [
            "id",
            "task",
            "split",
            "received",
            "written",
            "request_id",
            "request_source",
            "labels",
            "fields",
        ];
        let rows = place.rows(&["list", "--state", "in_use"]);
        rows.iter()
            .map(|row| keys.map(|key| row[key].clone()).to_vec())
            .collect()
    };
    assert_eq!(of(&other), of(&place));
    let (code, said, _) = import();
    assert_eq!(code, 0);
    assert!(
        said.contains("0 samples stored") && said.contains("5 duplicates"),
        "{said}"
    );
    assert_eq!(other.rows(&["list"]).len(), 5);
}

#[test]
fn rows_of_a_manifest_become_samples_and_bad_ones_are_named_by_line() {
    let place = Place::new();
    for number in 0..5 {
        let path = place.path(&format!("{number}.wav"));
        speechverse::audio::write_wav(&path, &transcript(number).audio).unwrap();
    }
    let manifest = place.path("rows.jsonl");
    let rows = [
        r#"{"audio_filepath": "0.wav", "duration": 1.0, "text": "good morning", "split": "train"}"#,
        r#"{"audio_filepath": "1.wav", "duration": 1.0, "task": "intent"}"#,
        r#"{"audio_filepath": "2.wav", "duration": 1.0, "task": "keyword_search", "target": "maybe", "fields": {"keyword": "radio"}}"#,
        r#"{"audio_filepath": "gone.wav", "duration": 1.0, "text": "x"}"#,
        r#"{"audio_filepath": "3.wav", "duration": 1.0, "targets": {"asr": "turn it on", "keywords": "turn"}, "split": "test"}"#,
        r#"{"audio_filepath": "4.wav", "duration": 1.0, "task": "asr,keywords", "targets": {"asr": "a | b", "keywords": "a"}}"#,
        r#"{"audio_filepath": "0.wav", "duration": 1.0, "task": "dance", "target": "x"}"#,
    ];
    std::fs::write(&manifest, rows.join("\n")).unwrap();

    let (code, said, words) = place.run(&["import", "--manifest", manifest.to_str().unwrap()]);

    assert_eq!(code, 1);
    assert!(said.contains("4 samples stored"), "{said} {words}");
    assert!(said.contains("4 rows refused"), "{said}");
    for (line, reason) in [(2, "`target`"), (3, "maybe"), (4, "gone.wav"), (7, "dance")] {
        let of_line = words
            .lines()
            .find(|words| words.contains(&format!("line {line}")));
        assert!(
            of_line.is_some_and(|words| words.contains(reason)),
            "{line} {reason}: {words}"
        );
    }
    let stored = place.rows(&["list"]);
    let row = |target: &str| stored.iter().find(|row| row["target"] == target).unwrap();
    let transcript = row("good morning");
    assert_eq!(
        (&transcript["task"], &transcript["split"]),
        (&"asr".into(), &"train".into())
    );
    assert_eq!(transcript["request_id"], "0.wav");
    assert!(!transcript["instruction"].as_str().unwrap().is_empty());
    assert_eq!(row("turn it on")["split"], "held_out");
    assert_eq!(row("turn")["split"], "held_out");
    let joint = stored.iter().find(|row| row["task"] == "asr,keywords").unwrap();
    assert!(joint["target"].as_str().unwrap().contains(r"a \| b"), "{joint}");

    // A changed target takes the place of the former one.
    std::fs::write(&manifest, rows[0].replace("good morning", "good evening")).unwrap();
    let (code, said, words) = place.run(&["import", "--manifest", manifest.to_str().unwrap()]);
    assert_eq!(code, 0, "{words}");
    assert!(said.contains("1 took the place"), "{said}");
    assert_eq!(
        place.targets(&["list", "--state", "superseded"]),
        ["good morning"]
    );
}

#[test]
fn a_recording_keeps_its_side_whatever_a_row_says() {
    let place = Place::new();
    let store = place.store();
    put(&store, &transcript(0));
    let side = store.snapshot().all().next().unwrap().split;
    drop(store);
    speechverse::audio::write_wav(&place.path("0.wav"), &transcript(0).audio).unwrap();
    let other = match side {
        Split::Train => "test",
        Split::HeldOut => "train",
    };
    let row =
        format!(r#"{{"audio_filepath": "0.wav", "duration": 1.0, "text": "other", "split": "{other}"}}"#);
    let manifest = place.path("rows.jsonl");
    std::fs::write(&manifest, row).unwrap();

    assert_eq!(
        place.run(&["import", "--manifest", manifest.to_str().unwrap()]).0,
        0
    );

    let rows = place.rows(&["list"]);
    assert!(
        rows.len() == 2 && rows.iter().all(|row| row["split"] == side.name()),
        "{rows:?}"
    );
}

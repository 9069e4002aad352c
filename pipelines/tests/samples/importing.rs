//! What an import does to the samples that are there, and what it refuses.

use super::*;

/// A manifest of one row, whose audio is that of a transcript.
fn row(number: usize, rest: &str) -> String {
    format!(r#"{{"audio_filepath": "{number}.wav", "duration": 1.0, {rest}}}"#)
}

impl Place {
    /// Writes a manifest and the audio of the transcripts below 12, and imports it.
    fn import(&self, rows: &[String], more: &[&str]) -> (i32, String, String) {
        for number in 0..12 {
            speechverse::audio::write_wav(&self.path(&format!("{number}.wav")), &transcript(number).audio)
                .unwrap();
        }
        let manifest = self.path("rows.jsonl");
        std::fs::write(&manifest, rows.join("\n")).unwrap();
        self.run(&[&["import", "--manifest", manifest.to_str().unwrap()], more].concat())
    }

    fn set(&self, settings: &str) {
        let path = self.path("serve.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(
            &path,
            text.replace("[store]\n", &format!("[store]\n{settings}\n")),
        )
        .unwrap();
    }

    fn in_use(&self) -> Vec<String> {
        let mut targets = self.targets(&["list", "--state", "in_use"]);
        targets.sort();
        targets
    }
}

#[test]
fn an_older_export_does_not_take_the_place_of_a_correction() {
    let (place, other) = (Place::new(), Place::new());
    let store = place.store();
    put(&store, &transcript(1));
    let out = place.path("export");
    assert_eq!(place.run(&["export", "--out", out.to_str().unwrap()]).0, 0);
    put(&store, &corrected());
    drop(store);
    put(&other.store(), &corrected());
    let manifest = out.join("manifest.jsonl");
    let import = |place: &Place| place.run(&["import", "--manifest", manifest.to_str().unwrap()]);

    let (code, said, words) = import(&place);
    let (other_code, other_said, other_words) = import(&other);

    assert_eq!(code, 0, "{words}");
    assert!(said.contains("1 duplicates, 0 took the place"), "{said}");
    assert_eq!(place.in_use(), ["target one"]);
    assert_eq!(other_code, 0, "{other_words}");
    assert!(
        other_said.contains("0 samples stored") && other_said.contains("1 outdated"),
        "{other_said}"
    );
    assert!(
        other_words.contains("line 1: the store has a later answer"),
        "{other_words}"
    );
    assert_eq!(other.in_use(), ["target one"]);
}

#[test]
fn between_rows_that_name_a_time_the_time_decides_and_not_the_line() {
    let place = Place::new();
    let at = |target: &str, day: u8| {
        row(
            1,
            &format!(r#""text": "{target}", "written": "2024-05-0{day}T00:00:00Z""#),
        )
    };
    let any = || row(2, r#""text": "another""#);
    place.import(&[at("newer", 2)], &[]);

    let (_, said, words) = place.import(&[any(), at("older", 1)], &[]);

    assert!(said.contains("1 outdated"), "{said} {words}");
    assert_eq!(place.in_use(), ["another", "newer"]);
    let (_, said, _) = place.import(&[at("newest", 3), any()], &[]);
    assert!(said.contains("1 took the place"), "{said}");
    assert_eq!(place.in_use(), ["another", "newest"]);
}

#[test]
fn an_answer_that_stands_again_is_counted_as_taking_the_place_of_another() {
    let place = Place::new();
    let text = |text: &str| [row(0, &format!(r#""text": "{text}""#))];
    place.import(&text("good morning"), &[]);
    place.import(&text("good evening"), &[]);

    let (code, said, words) = place.import(&text("good morning"), &[]);

    assert_eq!(code, 0, "{words}");
    assert!(
        said.contains("0 samples stored (0 train, 0 held out), 1 duplicates, 1 took the place"),
        "{said}"
    );
    assert_eq!(place.in_use(), ["good morning"]);
}

#[test]
fn a_split_of_another_name_and_a_line_without_end_are_errors_of_their_row() {
    let place = Place::new();
    let sides = ["train", "test", "valid", "dev", "held_out"];
    let mut rows = vec![
        row(9, r#""text": "x", "split": "Train""#),
        row(10, r#""text": "y", "split": "unseen""#),
        format!(r#"{{"audio_filepath": "{}"}}"#, "a".repeat(2 << 20)),
    ];
    rows.extend(
        (sides.iter().enumerate())
            .map(|(at, side)| row(at, &format!(r#""text": "{side}", "split": "{side}""#))),
    );

    let (code, said, words) = place.import(&rows, &[]);

    assert_eq!(code, 1);
    assert!(
        said.contains("5 samples stored (1 train, 4 held out)"),
        "{said} {words}"
    );
    assert!(said.contains("3 rows refused"), "{said}");
    for part in [
        "line 1: `split` is `Train`",
        "line 2: `split` is `unseen`",
        "is longer than",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
    for row in place.rows(&["list"]) {
        let wanted = if row["target"] == "train" {
            "train"
        } else {
            "held_out"
        };
        assert_eq!(row["split"], wanted, "{row}");
    }
}

#[test]
fn an_import_that_would_evict_samples_needs_to_be_told_and_says_which_quota() {
    for (settings, there, quota) in [
        ("task_samples_max = 8", 8, "`store.task_samples_max` is 8"),
        (
            "segment_bytes_max = 40000\nbytes_max = 80000",
            2,
            "`store.bytes_max` is 80000",
        ),
    ] {
        let place = Place::new();
        place.set(settings);
        let store = place.store();
        for number in 0..there {
            put(&store, &transcript(number));
        }
        drop(store);
        let rows = [row(10, r#""text": "new""#)];

        let (code, said, words) = place.import(&rows, &[]);

        assert_eq!((code, said.as_str()), (1, ""));
        assert!(words.contains("nothing was imported"), "{words}");
        assert!(
            words.contains("--evict") && words.contains(&quota[..12]),
            "{words}"
        );
        assert_eq!(place.rows(&["list"]).len(), there);

        let (code, said, words) = place.import(&rows, &["--evict"]);

        assert_eq!(code, 0, "{words}");
        assert!(said.contains("1 samples stored"), "{said}");
        let gone = there + 1 - place.rows(&["list"]).len();
        let wanted =
            format!("{gone} older samples of task `asr` left the store, and 0 of the imported: {quota}");
        assert!(gone > 0 && said.contains(&wanted), "{said}");
        assert!(place.in_use().contains(&"new".to_owned()));
    }
}

#[test]
fn imported_samples_that_leave_again_are_not_counted_as_stored() {
    let place = Place::new();
    place.set("task_samples_max = 8");
    let rows: Vec<String> = (0..12)
        .map(|number| row(number, &format!(r#""text": "t {number}""#)))
        .collect();

    let (code, said, words) = place.import(&rows, &["--evict"]);

    assert_eq!(code, 0, "{words}");
    assert!(said.contains("8 samples stored"), "{said}");
    assert!(
        said.contains("0 older samples of task `asr` left the store, and 4 of the imported"),
        "{said}"
    );
    assert_eq!(place.rows(&["list"]).len(), 8);
}

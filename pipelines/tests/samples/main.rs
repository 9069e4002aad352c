//! `speechverse samples` as a process: a store looked into, exported, imported and made to forget.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod forgetting;
mod importing;
mod moving;
#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;
use speechverse::store::config::StoreConfig;
use speechverse::store::{Put, Sample, SampleSource, SampleStore};

/// A folder with settings and a store.
struct Place(tempfile::TempDir);

/// 2023-11-14T22:13:20Z.
const FIRST_MS: i64 = 1_700_000_000_000;

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        std::fs::write(
            place.path("serve.toml"),
            format!(
                "[service]\ntasks_dir = {:?}\n[store]\ndir = {:?}\n[trainer]\ncurriculum = {:?}\n",
                concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/tasks"),
                place.path("samples"),
                concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/curriculum/online.toml"),
            ),
        )
        .unwrap();
        place
    }

    /// With four transcripts, one of them corrected, a choice of labels, and one sample that is withheld.
    fn filled() -> Self {
        let place = Self::new();
        let store = place.store();
        for number in 0..4 {
            put(&store, &transcript(number));
        }
        put(&store, &corrected());
        put(&store, &choice());
        put(&store, &withheld());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn store(&self) -> SampleStore {
        SampleStore::open(&StoreConfig {
            dir: self.path("samples"),
            ..StoreConfig::default()
        })
        .unwrap()
    }

    /// Exit code, standard output, standard error.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = support::speechverse(&["samples"])
            .args(args)
            .arg("--config")
            .arg(self.path("serve.toml"))
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code().unwrap(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    /// The objects that a command prints with `--json`.
    fn rows(&self, args: &[&str]) -> Vec<Value> {
        let (code, out, words) = self.run(&[args, &["--json"]].concat());
        assert_eq!(code, 0, "{words}");
        out.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Targets of what a command lists.
    fn targets(&self, args: &[&str]) -> Vec<String> {
        let rows = self.rows(args);
        rows.iter()
            .map(|row| row["target"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn put(store: &SampleStore, sample: &Sample) {
    let put = store.put(sample).unwrap();
    assert!(matches!(put, Put::Stored { .. }), "{put:?}");
}

/// A second of sound that 16 bits hold exactly.
fn transcript(number: usize) -> Sample {
    Sample {
        audio: (0..16_000)
            .map(|at| ((at * (number + 3)) % 999) as f32 / 32_768.0)
            .collect(),
        instruction: "Transcribe the speech.".to_owned(),
        target: format!("target {number}"),
        task: "asr".to_owned(),
        source: SampleSource {
            topic: "speechverse.labels".to_owned(),
            partition: 0,
            offset: number as i64,
        },
        request_source: "/phone".to_owned(),
        request_id: format!("r-{number}"),
        labels: Vec::new(),
        fields: BTreeMap::new(),
        constrained: false,
        written_ms: FIRST_MS + 3_600_000 * number as i64,
        received_ms: FIRST_MS + 3_600_000 * number as i64,
        may_train: true,
    }
}

/// The right answer to the request of transcript 1.
fn corrected() -> Sample {
    Sample {
        target: "target one".to_owned(),
        written_ms: FIRST_MS + 3_600_000 * 10,
        received_ms: FIRST_MS + 3_600_000 * 10,
        ..transcript(1)
    }
}

fn choice() -> Sample {
    Sample {
        instruction: "Is the word \"radio\" said? yes or no".to_owned(),
        target: "yes".to_owned(),
        task: "keyword_search".to_owned(),
        request_id: "r-choice".to_owned(),
        labels: vec!["yes".to_owned(), "no".to_owned()],
        fields: BTreeMap::from([("keyword".to_owned(), "radio".to_owned())]),
        constrained: true,
        received_ms: FIRST_MS + 3_600_000 * 11,
        ..transcript(11)
    }
}

fn withheld() -> Sample {
    Sample {
        may_train: false,
        request_id: "r-withheld".to_owned(),
        ..transcript(12)
    }
}

#[test]
fn samples_are_listed_oldest_first_and_chosen_by_task_side_state_time_request_and_id() {
    let place = Place::filled();
    let writer = place.store(); // as a pipeline that runs

    let all = place.rows(&["list"]);
    let targets = |rows: &[Value]| -> Vec<String> {
        rows.iter()
            .map(|row| row["target"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        targets(&all),
        [
            "target 0",
            "target 1",
            "target 2",
            "target 3",
            "target one",
            "yes",
            "target 12"
        ]
    );
    let (row, stored) = (&all[5], choice());
    assert_eq!(row["received"], "2023-11-15T09:13:20Z");
    assert_eq!(
        (&row["seconds"], &row["constrained"]),
        (&1.0.into(), &true.into())
    );
    assert_eq!(row["instruction"], stored.instruction);
    assert_eq!(row["labels"], serde_json::json!(["yes", "no"]));
    assert_eq!(row["fields"], serde_json::json!({"keyword": "radio"}));
    assert_eq!(row["record"]["topic"], "speechverse.labels");
    assert_eq!(all[1]["recording"], all[4]["recording"]);

    assert_eq!(place.targets(&["list", "--task", "keyword_search"]), ["yes"]);
    assert_eq!(place.targets(&["list", "--state", "superseded"]), ["target 1"]);
    assert_eq!(
        place.targets(&["list", "--state", "superseded", "--state", "withheld"]),
        ["target 1", "target 12"]
    );
    assert_eq!(
        place.targets(&["list", "--request", "r-1"]),
        ["target 1", "target one"]
    );
    assert_eq!(
        place.targets(&[
            "list",
            "--since",
            "2023-11-14T23:00:00Z",
            "--until",
            "2023-11-15T01:00:00Z"
        ]),
        ["target 1", "target 2"]
    );
    assert_eq!(place.targets(&["list", "--since", "1d"]), [""; 0]);
    let id = all[2]["id"].as_str().unwrap();
    assert_eq!(place.targets(&["list", "--id", &id[..12]]), ["target 2"]);
    assert_eq!(place.targets(&["list", "--limit", "2"]), ["target 0", "target 1"]);
    let sides = ["train", "held_out"].map(|side| place.rows(&["list", "--split", side]).len());
    assert_eq!(sides.iter().sum::<usize>(), 7);

    let (code, table, _) = place.run(&["list"]);
    assert_eq!(code, 0);
    assert_eq!(table.lines().count(), 2 + 7);
    assert!(table.contains(&id[..12]) && !table.contains(&id[..13]), "{table}");
    for wrong in [
        ["--state", "gone"],
        ["--task", ""],
        ["--request", ""],
        ["--id", ""],
        ["--id", "x"],
    ] {
        assert_eq!(place.run(&[&["list"][..], &wrong].concat()).0, 2, "{wrong:?}");
    }
    drop(writer);
}

#[test]
fn one_sample_is_shown_and_its_audio_is_written_exactly() {
    let place = Place::filled();
    let id = place.rows(&["list", "--request", "r-choice"])[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let wav = place.path("out.wav");

    let (code, shown, words) = place.run(&["show", &id[..10], "--audio", wav.to_str().unwrap()]);

    assert_eq!(code, 0, "{words}");
    for wanted in [
        &*id,
        "keyword_search",
        "in_use",
        "1 s",
        "r-choice",
        "keyword=radio",
        "/phone",
    ] {
        assert!(shown.contains(wanted), "{wanted}: {shown}");
    }
    let limits = speechverse::audio::AudioLimits::default();
    let bytes = std::fs::read(&wav).unwrap();
    assert_eq!(
        speechverse::audio::decode(&bytes, None, &limits).unwrap().samples,
        choice().audio
    );
    let (_, json, _) = place.run(&["show", &id, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["target"], "yes");

    for (id, exit_code, part) in [
        ("0123456789abcdef", 1, "there is no sample"),
        ("xyz", 2, "hexadecimal digits"),
        ("", 2, "hexadecimal digits"),
    ] {
        let (code, _, words) = place.run(&["show", id]);
        assert_eq!(code, exit_code);
        assert!(words.contains(part), "{words}");
    }
    let ids: BTreeSet<String> = place
        .rows(&["list"])
        .iter()
        .map(|row| row["id"].as_str().unwrap()[..1].to_owned())
        .collect();
    if ids.len() < 7 {
        let firsts: Vec<String> = place
            .rows(&["list"])
            .iter()
            .map(|row| row["id"].as_str().unwrap()[..1].to_owned())
            .collect();
        let twice = firsts
            .iter()
            .find(|first| firsts.iter().filter(|other| other == first).count() > 1);
        let (code, _, words) = place.run(&["show", twice.unwrap()]);
        assert_eq!(code, 1);
        assert!(words.contains("samples begin with"), "{words}");
    }
}

#[test]
fn what_a_cycle_would_use_is_what_the_trainer_chooses() {
    let place = Place::filled();
    let store = place.store();
    for number in 20..50 {
        put(&store, &transcript(number));
    }
    let sides = speechverse_actors::trainer::sides(&store.snapshot());
    let named = |samples: &[speechverse::store::SampleRef]| -> BTreeSet<String> {
        samples.iter().map(|sample| sample.id.to_string()).collect()
    };

    let rows = place.rows(&["select"]);

    for (name, side) in [
        ("train", &sides.train),
        ("valid", &sides.valid),
        ("held_out", &sides.held_out),
    ] {
        let of_side = rows.iter().filter(|row| row["use"] == name);
        let found: BTreeSet<String> = of_side
            .map(|row| row["id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(found, named(side), "{name}");
    }
    assert_eq!(rows.len(), 4 + 1 + 30);
    let (code, table, _) = place.run(&["select", "--task", "keyword_search"]);
    assert_eq!(code, 0);
    assert!(table.contains("`undecided`"), "{table}");
    assert!(
        table.contains(&format!("{} samples to learn from", sides.train.len())),
        "{table}"
    );
}

#[test]
fn too_few_samples_for_a_cycle_are_said() {
    let place = Place::filled();

    let (code, table, words) = place.run(&["select"]);

    assert_eq!(code, 0, "{words}");
    assert!(
        table.contains("a cycle would fail: the store has 5 samples"),
        "{table}"
    );
    assert!(table.contains("`trainer.samples_min` is 20"), "{table}");
}

#[test]
fn a_folder_that_is_no_store_is_said_and_not_made() {
    let place = Place::new();
    let out = place.path("out");
    for args in [
        &["list"][..],
        &["show", "abc"],
        &["select"],
        &["forget", "--all"],
        &["export", "--out", out.to_str().unwrap()],
    ] {
        let (code, _, words) = place.run(args);

        assert_eq!(code, 1, "{args:?}");
        assert!(words.contains("there is no sample store at"), "{words}");
        assert!(words.contains("`store.dir`"), "{words}");
    }
    assert!(!place.path("samples").exists() && !out.exists());
}

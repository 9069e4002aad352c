//! What is shipped in `configs/` parses, is valid, and leaves no key out.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use speechverse::config::Settings;
use speechverse::text::TaskTable;
use speechverse::training::config::TrainingConfig;
use speechverse::training::{AudioSource, read_manifest};

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

/// Dotted names of all values in a table; empty tables count as themselves.
fn keys(table: &toml::Table, before: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (name, value) in table {
        let name = format!("{before}{name}");
        match value {
            toml::Value::Table(inner) if !inner.is_empty() => names.extend(keys(inner, &format!("{name}."))),
            _ => names.push(name),
        }
    }
    names.sort();
    names
}

/// The value of a dotted name.
fn value<'t>(table: &'t toml::Table, name: &str) -> Option<&'t toml::Value> {
    let mut parts = name.split('.');
    let first = table.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

#[test]
fn the_settings_to_start_from_differ_from_the_defaults_only_where_they_give_a_reason() {
    const WITH_REASON: [&str; 3] = ["broker.address", "log.format", "model.system"];
    let text = std::fs::read_to_string(configs().join("serve.toml")).unwrap();
    let table = |settings: &Settings| -> toml::Table { toml::from_str(&settings.to_toml()).unwrap() };

    let written = table(&Settings::parse(&text, []).unwrap());
    let default = table(&Settings::default());

    let mut different = keys(&written, "");
    different.retain(|name| value(&written, name) != value(&default, name));
    assert_eq!(
        different, WITH_REASON,
        "give the reason in the file and add the key here"
    );
}

#[test]
fn serving_settings_are_valid_and_name_every_key() {
    for name in ["demo.toml", "serve.toml"] {
        let path = configs().join(name);
        let text = std::fs::read_to_string(&path).unwrap();

        let settings = Settings::parse(&text, []).unwrap_or_else(|error| panic!("{name}: {error}"));
        settings
            .validate()
            .unwrap_or_else(|error| panic!("{name}: {error}"));

        let written = keys(&toml::from_str(&text).unwrap(), "");
        let all = keys(&toml::from_str(&settings.to_toml()).unwrap(), "");
        assert_eq!(written, all, "{name}");
    }
}

#[test]
fn the_larger_demo_serves_what_its_curriculum_publishes() {
    let text = std::fs::read_to_string(configs().join("demo-large.toml")).unwrap();
    let settings = Settings::parse(&text, []).unwrap();
    settings.validate().unwrap();
    let curriculum = TrainingConfig::load(&configs().join("curriculum/demo-large.toml")).unwrap();

    assert_eq!(curriculum.model.llm, settings.model.llm);
    assert_eq!(curriculum.model.system, settings.model.system);
    assert_eq!(curriculum.checkpoint.registry, Some(settings.adapters.dir));
    assert_eq!(curriculum.checkpoint.prefix, settings.adapters.prefix);
}

#[test]
fn curricula_are_valid() {
    let folder = configs().join("curriculum");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();

        TrainingConfig::load(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        seen += 1;
    }
    assert!(seen >= 3);
}

#[test]
fn tasks_are_valid_and_have_their_prompts() {
    let tasks = TaskTable::load(&configs().join("tasks")).unwrap();

    for task in tasks.iter() {
        assert!(
            task.training_prompts().count() >= 15 && task.held_out_prompts.len() >= 2,
            "{}",
            task.name
        );
    }
    assert!(tasks.len() >= 14);
}

#[test]
fn curricula_name_task_folders_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let paper = TrainingConfig::load(&configs().join("curriculum/paper.toml")).unwrap();

    let tasks = TaskTable::load(&root.join(paper.tasks_dir.expect("the paper's curriculum asks every task")));

    assert!(tasks.unwrap().get("slots").is_ok());
}

#[test]
fn the_cycle_of_the_demo_teaches_a_task_that_is_there_by_clips_each_of_a_recording_of_its_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cycle = TrainingConfig::load(&configs().join("curriculum/online-sound.toml")).unwrap();
    let tasks = TaskTable::load(&root.join(cycle.tasks_dir.as_deref().unwrap())).unwrap();

    assert!(cycle.keeps_lora(), "the shipped version has low-rank updates");
    let taught: Vec<&String> = cycle
        .stages
        .iter()
        .flat_map(|stage| &stage.summary_tasks)
        .collect();
    assert_eq!(taught, ["sound"]);
    let task = tasks.get("sound").unwrap();
    let mut recordings = BTreeSet::new();
    for (part, clips) in [("labelled", 79), ("corrected", 1), ("test", 25)] {
        let path = root.join("tests/fixtures/sounds").join(format!("{part}.jsonl"));
        let manifest = read_manifest(&path, None).unwrap();
        assert_eq!((manifest.examples.len(), manifest.refused), (clips, 0), "{part}");
        for example in manifest.examples {
            assert!(task.labels.iter().any(|label| label.name == example.target));
            let AudioSource::Clip(clip) = &example.audio else {
                panic!("a manifest names files");
            };
            let name = clip.path.file_stem().unwrap().to_str().unwrap();
            let (label, recording) = name.split_once('-').unwrap();
            assert_eq!(label, example.target);
            assert!(recordings.insert(recording.to_owned()), "{name} is in two parts");
            example.audio.load().unwrap();
        }
    }
}

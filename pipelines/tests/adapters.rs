//! `speechverse adapters` as a process: the registry looked into and changed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use speechverse::testing::{TinyModels, publish_first_version};

/// Exit code, standard output, standard error.
fn adapters(config: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_speechverse"))
        .arg("adapters")
        .args(args)
        .arg("--config")
        .arg(config)
        .output()
        .expect("the program was built for this test");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn settings(folder: &Path, models: &TinyModels, registry: &Path) -> std::path::PathBuf {
    let config = folder.join("serve.toml");
    let text = format!(
        "[model]\nencoder = {:?}\nllm = {:?}\n[adapters]\ndir = {registry:?}\n",
        models.encoder, models.llm
    );
    std::fs::write(&config, text).unwrap();
    config
}

#[test]
fn a_version_is_shown_compared_promoted_and_rolled_back() {
    let folder = tempfile::tempdir().unwrap();
    let models = TinyModels::write(folder.path(), 7);
    let registry = folder.path().join("adapters");
    publish_first_version(&registry, &models.encoder, &models.llm);
    publish_first_version(&registry, &models.encoder, &models.llm);
    let config = settings(folder.path(), &models, &registry);
    let run = |args: &[&str]| adapters(&config, args);
    let current = || -> Value { serde_json::from_str(&run(&["show"]).1).unwrap() };
    assert_eq!(
        (&current()["version"], &current()["current"]),
        (&"tiny-0002".into(), &true.into())
    );

    let (code, differences, _) = run(&["diff", "tiny-0001"]);
    assert_eq!(code, Some(0));
    assert!(
        differences.contains("\"tiny-0001\"") && differences.contains("\"tiny-0002\""),
        "{differences}"
    );

    assert_eq!(run(&["rollback"]).0, Some(0));
    assert_eq!(current()["version"], "tiny-0001");
    assert_eq!(run(&["rollback"]).0, Some(1), "nothing was before it");
    assert_eq!(run(&["promote", "tiny-0002"]).0, Some(0));
    assert_eq!(current()["version"], "tiny-0002");

    let (code, _, words) = run(&["promote", "tiny-0009"]);
    assert_eq!(code, Some(1));
    assert!(words.contains("tiny-0001, tiny-0002"), "{words}");
}

#[test]
fn a_version_for_other_networks_is_not_made_current() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    std::fs::create_dir_all(&one).unwrap();
    std::fs::create_dir_all(&other).unwrap();
    let (models, others) = (TinyModels::write(&one, 7), TinyModels::write(&other, 8));
    let registry = folder.path().join("adapters");
    publish_first_version(&registry, &others.encoder, &others.llm);
    let config = settings(folder.path(), &models, &registry);

    let (code, _, words) = adapters(&config, &["promote", "tiny-0001"]);

    assert_eq!(code, Some(1));
    assert!(words.contains("was trained for"), "{words}");
}

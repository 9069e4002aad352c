use std::collections::BTreeMap;

use proptest::prelude::*;
use tch::Device;

use super::*;
use crate::models::adapter::{AdapterConfig, LoraSnapshot, SpeechAdapter};
use crate::nn::lora::{LoraConfig, LoraSet, LoraSite};

fn snapshot(seed: u64) -> AdapterSnapshot {
    SpeechAdapter::new(AdapterConfig::paper(4, 2, 6), 1.0, seed, Device::Cpu)
        .unwrap()
        .snapshot("x")
        .unwrap()
}

fn identity(name: &str) -> ModelIdentity {
    ModelIdentity {
        name: name.into(),
        digest: format!("digest-of-{name}"),
    }
}

fn draft(seed: u64) -> Draft {
    Draft {
        parent: None,
        encoder: identity("ear"),
        llm: identity("mouth"),
        curriculum: serde_json::json!([{"kind": "asr"}]),
        data_digest: "d".into(),
        metrics: BTreeMap::from([("wer".into(), serde_json::json!(0.125))]),
        settings: serde_json::json!({"seed": seed}),
        adapter: snapshot(seed),
        lora: None,
        extra: Vec::new(),
    }
}

fn registry() -> (tempfile::TempDir, Registry) {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path().join("adapters")).unwrap();
    (folder, registry)
}

#[test]
fn a_published_version_comes_back_as_it_was() {
    let (folder, registry) = registry();
    let (lora, log) = (folder.path().join("lora"), folder.path().join("log.jsonl"));
    let site = LoraSite {
        path: "model.layers.0.self_attn.q_proj".into(),
        inputs: 4,
        outputs: 6,
    };
    let config = LoraConfig {
        targets: vec!["q_proj".into()],
        ..LoraConfig::default()
    };
    let set = LoraSet::new(config, &[site], Device::Cpu).unwrap();
    set.save(&lora, "mouth").unwrap();
    std::fs::write(&log, "{}\n").unwrap();

    let draft = Draft {
        lora: Some(lora),
        extra: vec![("log.jsonl".into(), log)],
        ..draft(1)
    };
    let manifest = registry.publish("demo", &draft).unwrap();
    let loaded = registry.load("demo-0001").unwrap();

    assert_eq!(manifest.version, "demo-0001");
    assert_eq!(loaded.manifest, manifest);
    assert_eq!(loaded.adapter.version(), "demo-0001");
    let found = LoraSnapshot::read(loaded.lora.as_ref().unwrap()).unwrap();
    assert_eq!(found, LoraSnapshot::of(&set).unwrap());
    assert!(loaded.adapter.same_content(&snapshot(1).with_lora(Some(found))));
    assert!(loaded.lora.unwrap().join("adapter_config.json").is_file());
    assert_eq!(
        manifest.files.keys().collect::<Vec<_>>(),
        [
            "README.md",
            "adapter.safetensors",
            "log.jsonl",
            "lora/adapter_config.json",
            "lora/adapter_model.safetensors"
        ]
    );
    let card = std::fs::read_to_string(registry.root().join("demo-0001/README.md")).unwrap();
    assert!(card.contains("demo-0001") && card.contains("wer: 0.125") && card.contains("`ear`"));
}

#[test]
fn names_count_upwards_within_a_prefix() {
    let (_folder, registry) = registry();

    let names: Vec<String> = ["demo", "demo", "other", "demo"]
        .iter()
        .map(|prefix| registry.publish(prefix, &draft(1)).unwrap().version)
        .collect();

    assert_eq!(names, ["demo-0001", "demo-0002", "other-0001", "demo-0003"]);
    assert_eq!(
        registry.versions().unwrap(),
        ["demo-0001", "demo-0002", "demo-0003", "other-0001"]
    );
    assert!(matches!(
        registry.publish_as("demo-0002", &draft(2)),
        Err(RegistryError::Exists { .. })
    ));
}

#[test]
fn promoting_and_rolling_back_walk_the_same_path() {
    let (_folder, registry) = registry();
    for seed in 0..3 {
        registry.publish("v", &draft(seed)).unwrap();
    }
    assert_eq!(registry.current().unwrap(), None);
    assert!(matches!(
        registry.load_current(),
        Err(RegistryError::NoCurrent { .. })
    ));
    assert!(matches!(
        registry.rollback(|_| Ok(())),
        Err(RegistryError::NoCurrent { .. })
    ));

    for version in ["v-0001", "v-0002", "v-0002", "v-0003"] {
        registry.promote(version, Expected::Any).unwrap();
    }

    assert_eq!(registry.load_current().unwrap().manifest.version, "v-0003");
    assert_eq!(registry.rollback(|_| Ok(())).unwrap().adapter.version(), "v-0002");
    assert_eq!(registry.rollback(|_| Ok(())).unwrap().adapter.version(), "v-0001");
    assert!(matches!(
        registry.rollback(|_| Ok(())),
        Err(RegistryError::NoPredecessor { .. })
    ));
    assert_eq!(registry.current().unwrap().as_deref(), Some("v-0001"));
}

#[test]
fn a_rollback_by_name_forgets_what_was_current_since() {
    let (_folder, registry) = registry();
    for seed in 0..5 {
        registry.publish("v", &draft(seed)).unwrap();
    }
    for version in ["v-0001", "v-0002", "v-0003"] {
        registry.promote(version, Expected::Any).unwrap();
    }

    let refused = registry.rollback_to("v-0001", |_| {
        Err(RegistryError::Name {
            name: "no".to_owned(),
        })
    });
    assert!(matches!(refused, Err(RegistryError::Name { .. })));
    let missing = registry.rollback_to("v-0009", |_| Ok(()));
    assert!(matches!(missing, Err(RegistryError::Missing { .. })));
    registry.rollback_to("v-0003", |_| Ok(())).unwrap();
    assert_eq!(registry.pointers().unwrap(), ["v-0003", "v-0002", "v-0001"]);

    let back = registry.rollback_to("v-0002", |_| Ok(())).unwrap();
    assert_eq!(back.adapter.version(), "v-0002");
    assert_eq!(registry.pointers().unwrap(), ["v-0002", "v-0001"]);

    // Never current: nothing is to be forgotten.
    registry.rollback_to("v-0005", |_| Ok(())).unwrap();
    assert_eq!(registry.pointers().unwrap(), ["v-0005", "v-0002", "v-0001"]);

    registry.rollback_to("v-0002", |_| Ok(())).unwrap();
    assert_eq!(registry.rollback(|_| Ok(())).unwrap().adapter.version(), "v-0001");
}

#[test]
fn a_file_is_replaced_whole_or_not_at_all_and_nothing_else_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.json");

    replace_file(&path, b"one").unwrap();
    replace_file(&path, b"two").unwrap();
    let taken = folder.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    assert!(replace_file(&taken, b"three").is_err());

    assert_eq!(std::fs::read(&path).unwrap(), b"two");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_promotion_that_names_what_it_replaces_does_not_undo_what_came_in_between() {
    let (_folder, registry) = registry();
    for seed in 0..3 {
        registry.publish("v", &draft(seed)).unwrap();
    }
    registry.promote("v-0001", Expected::Nothing).unwrap();
    registry.promote("v-0002", Expected::Version("v-0001")).unwrap();
    registry.rollback(|_| Ok(())).unwrap();

    let lost = registry
        .promote("v-0003", Expected::Version("v-0002"))
        .unwrap_err();
    let begun = registry.promote("v-0003", Expected::Nothing).unwrap_err();

    let RegistryError::Moved { expected, found, .. } = &lost else {
        panic!("{lost}")
    };
    assert_eq!(
        (expected.as_deref(), found.as_deref()),
        (Some("v-0002"), Some("v-0001"))
    );
    assert!(
        lost.to_string()
            .contains("`v-0003` was to replace `v-0002`, and `v-0001` is current"),
        "{lost}"
    );
    assert!(begun.to_string().contains("was to replace no version"), "{begun}");
    assert_eq!(registry.current().unwrap().as_deref(), Some("v-0001"));
    let promoted = registry.promote("v-0003", Expected::Version("v-0001")).unwrap();
    assert_eq!(promoted.adapter.version(), "v-0003");
}

#[test]
fn of_many_promotions_that_name_the_same_version_one_wins() {
    let (folder, registry) = registry();
    for seed in 0..9 {
        registry.publish("v", &draft(seed)).unwrap();
    }
    registry.promote("v-0001", Expected::Any).unwrap();

    let promote = |number: usize| {
        // A registry of its own, as another process has.
        let registry = Registry::open(folder.path().join("adapters")).unwrap();
        registry.promote(&format!("v-{number:04}"), Expected::Version("v-0001"))
    };
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let racers: Vec<_> = (2..=9)
            .map(|number| scope.spawn(move || promote(number)))
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });

    let winners: Vec<String> = (outcomes.iter().flatten())
        .map(|loaded| loaded.manifest.version.clone())
        .collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    assert_eq!(registry.current().unwrap(), winners.first().cloned());
    let lost = |outcome: &Result<_, _>| matches!(outcome, Err(RegistryError::Moved { .. }));
    assert_eq!(outcomes.iter().filter(|outcome| lost(outcome)).count(), 7);
    assert_eq!(registry.rollback(|_| Ok(())).unwrap().adapter.version(), "v-0001");
}

#[test]
fn orders_at_the_same_time_forget_no_version_that_was_current() {
    let (folder, registry) = registry();
    for seed in 0..8 {
        registry.publish("v", &draft(seed)).unwrap();
    }

    std::thread::scope(|scope| {
        for number in 1..=8 {
            let registry = Registry::open(folder.path().join("adapters")).unwrap();
            scope.spawn(move || {
                registry
                    .promote(&format!("v-{number:04}"), Expected::Any)
                    .unwrap()
            });
        }
    });

    let mut history = registry.pointers().unwrap();
    history.sort();
    assert_eq!(history, registry.versions().unwrap());
}

#[test]
fn a_flipped_byte_a_missing_file_and_a_lying_manifest_are_refused_with_what_and_where() {
    let (_folder, registry) = registry();
    for seed in 0..4 {
        registry.publish("v", &draft(seed)).unwrap();
    }
    let path = |version: &str, name: &str| registry.root().join(version).join(name);
    let mut bytes = std::fs::read(path("v-0001", "adapter.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path("v-0001", "adapter.safetensors"), bytes).unwrap();
    std::fs::remove_file(path("v-0002", "README.md")).unwrap();
    std::fs::write(path("v-0003", "manifest.json"), "{\"format\": 1}").unwrap();

    for (version, part) in [
        ("v-0001", "sha256"),
        ("v-0002", "README.md"),
        ("v-0003", "malformed"),
    ] {
        let error = registry.load(version).unwrap_err();
        assert!(matches!(error, RegistryError::Corrupt { .. }));
        assert!(
            error.to_string().contains(version) && error.to_string().contains(part),
            "{error}"
        );
        assert!(registry.promote(version, Expected::Any).is_err());
    }
    assert!(registry.load("v-0004").is_ok());
    assert_eq!(
        registry
            .list()
            .unwrap()
            .iter()
            .filter(|entry| entry.is_err())
            .count(),
        1
    );
}

#[test]
fn a_manifest_cannot_name_files_outside_its_folder() {
    let (_folder, registry) = registry();
    let mut manifest = registry.publish("v", &draft(1)).unwrap();
    let digest = manifest.files["adapter.safetensors"].clone();
    manifest.files.insert("../../etc/passwd".into(), digest);
    let json = serde_json::to_vec(&manifest).unwrap();
    std::fs::write(registry.root().join("v-0001/manifest.json"), json).unwrap();

    let error = registry.load("v-0001").unwrap_err().to_string();

    assert!(error.contains("../../etc/passwd"), "{error}");
}

#[test]
fn what_a_crash_leaves_behind_is_no_version() {
    let (_folder, registry) = registry();
    std::fs::create_dir(registry.root().join(".tmp-v-0001-99")).unwrap();
    std::fs::write(registry.root().join(".tmp-v-0001-99/manifest.json"), "{}").unwrap();
    std::fs::create_dir(registry.root().join("v-0007")).unwrap();

    assert_eq!(registry.versions().unwrap(), Vec::<String>::new());
    assert_eq!(registry.publish("v", &draft(1)).unwrap().version, "v-0008");
    assert!(matches!(
        registry.load("v-0007"),
        Err(RegistryError::Missing { .. })
    ));
}

#[test]
fn two_publishers_at_once_get_two_versions() {
    let (_folder, registry) = registry();
    let publish = |registry: Registry| {
        std::thread::spawn(move || {
            (0..5)
                .map(|_| registry.publish("v", &draft(1)).unwrap().version)
                .collect::<Vec<_>>()
        })
    };
    let (one, two) = (publish(registry.clone()), publish(registry.clone()));
    let (one, two) = (one.join().unwrap(), two.join().unwrap());

    let mut all = [one, two].concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 10);
    for version in registry.versions().unwrap() {
        registry.load(&version).unwrap();
    }
    assert!(
        std::fs::read_dir(registry.root()).unwrap().all(|e| !e
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with('.'))
    );
}

#[test]
fn other_networks_are_refused_with_both_digests() {
    let (_folder, registry) = registry();
    registry.publish("v", &draft(1)).unwrap();
    let loaded = registry.load("v-0001").unwrap();

    assert!(loaded.check_models(&identity("ear"), &identity("mouth")).is_ok());
    let error = loaded
        .check_models(&identity("ear"), &identity("nose"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("digest-of-mouth") && error.contains("digest-of-nose"),
        "{error}"
    );
}

#[test]
fn a_network_is_known_by_what_decides_its_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny");
    std::fs::create_dir(&model).unwrap();
    std::fs::write(model.join("config.json"), "{}").unwrap();
    std::fs::write(model.join("model.safetensors"), "weights").unwrap();
    let first = identify(&model).unwrap();
    let again = identify(&model).unwrap();
    std::fs::write(model.join("notes.txt"), "nothing").unwrap();
    let noted = identify(&model).unwrap();
    std::fs::write(model.join("model.safetensors"), "weights2").unwrap();
    let changed = identify(&model).unwrap();

    assert_eq!(first.name, "tiny");
    assert_eq!((&first, &first), (&again, &noted));
    assert_ne!(first.digest, changed.digest);
    assert!(identify(&folder.path().join("absent")).is_err());
}

proptest! {
    #[test]
    fn no_name_leads_out_of_the_registry(name in "[a-z./\\\\0-9-]{0,12}|\\PC{0,8}") {
        let (_folder, registry) = registry();
        if let Ok(folder) = registry.folder(&name) {
            prop_assert!(folder.starts_with(registry.root()));
        }
        if check_name(&name).is_ok() {
            prop_assert!(Path::new(&name).components().count() == 1 && name != ".." && name != ".");
        }
    }
}

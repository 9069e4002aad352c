//! The recipe of the shipped adapter, on a small share of the data: every stage of
//! `configs/curriculum/demo-tasks.toml` runs on the committed clips with the real networks, goes on from the
//! shipped version, and its version is published and can be opened again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use speechverse::models::config::Positions;
use speechverse::registry::{Registry, identify};
use speechverse::testing::real_model;
use speechverse::training::config::TrainingConfig;
use speechverse::training::{Control, TrainArgs, run};

const SHIPPED: &str = "demo-0012";
const TEST: &str = "the_recipe_of_the_shipped_adapter_trains_on_a_small_share_of_its_data";

#[test]
fn the_recipe_of_the_shipped_adapter_trains_on_a_small_share_of_its_data() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (Some(encoder), Some(llm)) = (
        real_model(TEST, "whisper-base"),
        real_model(TEST, "smollm2-135m-instruct"),
    ) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut config = TrainingConfig::load(&root.join("configs/curriculum/demo-tasks.toml")).unwrap();
    let clips = root.join("tests/fixtures/speech");
    config.model.encoder = encoder;
    config.model.llm = llm;
    config.tasks_dir = Some(root.join("configs/tasks"));
    config.start_from = Some(root.join("configs/adapters").join(SHIPPED));
    config.output = folder.path().join("run");
    config.data.train = vec![clips.join("tasks/tasks.jsonl")];
    config.data.valid = vec![clips.join("tasks/tasks.jsonl")];
    config.data.noise.clear();
    config.feature_cache.dir = Some(folder.path().join("features"));
    config.validation.transcribed_clips_max = 0;
    config.checkpoint.registry = Some(folder.path().join("adapters"));
    for stage in &mut config.stages {
        stage.steps_max = Some(2);
        stage.batch_rows = 6;
        stage.weights.clear();
    }
    let stages = config.stages.len() as u64;

    let report = run(
        TrainArgs {
            config,
            resume: false,
            control: Control::new(),
        },
        &mut |_| {},
    )
    .unwrap();

    assert_eq!((report.outcome.steps, report.outcome.skipped), (2 * stages, 0));
    let registry = Registry::open(folder.path().join("adapters")).unwrap();
    let loaded = registry.load(&report.version.unwrap()).unwrap();
    let form = loaded.adapter.config();
    assert!(form.ctc_trained && form.summary && form.sentence && form.positions == Positions::CtcPosteriors);
    assert!(loaded.adapter.lora().is_some());
}

#[test]
fn the_shipped_versions_belong_to_the_models_that_are_fetched() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let test = "the_shipped_versions_belong_to_the_models_that_are_fetched";
    let (Some(encoder), Some(llm)) = (
        real_model(test, "whisper-base"),
        real_model(test, "smollm2-135m-instruct"),
    ) else {
        return;
    };
    let identities = [encoder, llm].map(|folder| identify(&folder).unwrap());
    let registry = Registry::open(root.join("configs/adapters")).unwrap();

    for version in ["demo-0001", SHIPPED] {
        let loaded = registry.load(version).unwrap();
        loaded.check_models(&identities[0], &identities[1]).unwrap();
    }
}

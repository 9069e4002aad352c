//! A first adapter version, so that a pipeline of tiny models can start.

use std::collections::BTreeMap;
use std::path::Path;

use tch::Device;

use super::{ENCODER_LAYERS, ENCODER_WIDTH, LLM_WIDTH, VOCABULARY};
use crate::models::adapter::{AdapterConfig, SpeechAdapter};
use crate::models::config::AdapterSettings;
use crate::models::{EncoderInfo, LanguageModelInfo};
use crate::registry::{Draft, Expected, Registry, identify};
use crate::training::config::TrainingConfig;

/// Publishes an untrained adapter between two of the [`TinyModels`](super::TinyModels) in a registry folder,
/// and promotes it.
///
/// # Panics
/// When a file cannot be read or written: tests have nothing better to do.
pub fn publish_first_version(registry: &Path, encoder: &Path, llm: &Path) {
    let encoder_info = EncoderInfo {
        layers: ENCODER_LAYERS as i64,
        width: ENCODER_WIDTH as i64,
        frames_per_second: 50.0,
        max_samples: Some(480_000), // 30 s
    };
    let llm_info = LanguageModelInfo {
        width: LLM_WIDTH as i64,
        vocab: VOCABULARY as i64,
        layers: 2,
        max_positions: 4096,
    };
    let config =
        AdapterConfig::new(&AdapterSettings::default(), &encoder_info, &llm_info).expect("sizes that fit");
    let adapter = SpeechAdapter::new(config, 0.3, 1, Device::Cpu).expect("a small adapter");
    let registry = Registry::open(registry).expect("the folder can be made");
    let draft = Draft {
        parent: None,
        encoder: identify(encoder).expect("a model folder"),
        llm: identify(llm).expect("a model folder"),
        curriculum: serde_json::Value::Null,
        data_digest: String::new(),
        metrics: BTreeMap::new(),
        settings: serde_json::to_value(TrainingConfig::default()).expect("settings are JSON"),
        adapter: adapter.snapshot("first").expect("its tensors can be copied"),
        lora: None,
        extra: Vec::new(),
    };
    let first = registry
        .publish("tiny", &draft)
        .expect("the folder can be written");
    registry
        .promote(&first.version, Expected::Any)
        .expect("no other version is there");
}

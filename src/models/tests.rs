//! What the tests of encoders and language models have in common.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

use super::LanguageModel;
use crate::nn::lora::{LoraConfig, LoraSet};
pub(super) use crate::testing::fixture;
use crate::util::random::SplitMix;
use crate::weights::Checkpoint;

/// "turn on the kitchen lights", 1.69 s: mono, 16 kHz.
pub(super) fn spoken_clip() -> Vec<f32> {
    let mut wav = hound::WavReader::open(fixture("whisper_clip.wav")).unwrap();
    wav.samples::<i16>()
        .map(|sample| f32::from(sample.unwrap()) / 32768.0)
        .collect()
}

/// All tensors of a safetensors file among the fixtures.
pub(super) fn tensors(file: PathBuf) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(file).unwrap().into_iter().collect()
}

/// `expected.json` of a fixture folder.
pub(super) fn expected<T: DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(fixture(name).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A tensor of `expected.safetensors` in a fixture folder; its size is asserted.
pub(super) fn reference(name: &str, tensor: &str, size: &[i64]) -> Tensor {
    let checkpoint = Checkpoint::open_file(fixture(name).join("expected.safetensors")).unwrap();
    checkpoint.loader(Device::Cpu, Kind::Float).take(tensor, size)
}

/// Largest magnitude.
pub(super) fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

/// Largest difference in proportion to the largest reference value.
pub(super) fn relative_error(found: &Tensor, reference: &Tensor) -> f64 {
    assert_eq!(found.size(), reference.size());
    let reference = reference.to_kind(Kind::Double);
    largest(&(found.to_kind(Kind::Double) - &reference)) / largest(&reference)
}

/// A low-rank adapter on `targets`, no part of it zero: normal values times `strength`.
pub(super) fn filled_lora(model: &dyn LanguageModel, targets: &[&str], strength: f64) -> LoraSet {
    let config = LoraConfig {
        rank: 3,
        targets: targets.iter().map(|target| (*target).to_owned()).collect(),
        ..LoraConfig::default()
    };
    let lora = LoraSet::new(config, &model.lora_sites(), Device::Cpu).unwrap();
    let _no_grad = tch::no_grad_guard();
    for (index, mut tensor) in lora.parameters().into_values().enumerate() {
        // Torch's own generator is shared by all tests, so its values would differ from run to run.
        let mut random = SplitMix::new(&[5, index as u64]);
        let values: Vec<f32> = (0..tensor.numel())
            .map(|_| (random.normal() * strength) as f32)
            .collect();
        tensor.copy_(&Tensor::from_slice(&values).view_as(&tensor));
    }
    lora
}

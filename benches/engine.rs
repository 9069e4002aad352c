//! The inference engine on tiny random networks: what scheduling, prompts and sampling cost beside the
//! networks.
//!
//! `cargo bench --bench engine`. The figures of real models are those of `scripts/bench/generate.py`; here
//! one sees a scheduler that became slower, without their weights.

mod support;

use speechverse::inference::{
    DecodeOptions, Engine, EngineConfig, GenerateRequest, Input, speech_llm::SpeechLlm,
};
use speechverse::models::adapter::{AdapterConfig, AdapterSnapshot, SpeechAdapter};
use speechverse::models::config::AdapterSettings;
use speechverse::models::encoders::whisper::Window;
use speechverse::models::{SpeechEncoder, open_encoder};
use speechverse::nn::Placement;
use speechverse::testing::TinyModels;
use support::Harness;
use tch::Device;

/// Answer tokens of every request.
const TOKENS: usize = 16;

fn main() -> anyhow::Result<()> {
    let harness = Harness::from_arguments();
    let folder = tempfile::tempdir()?;
    let models = TinyModels::write(folder.path(), 1);
    for llm in [&models.llm, &models.t5] {
        let name = llm.file_name().unwrap_or_default().to_string_lossy();
        for rows in [1, 4, 16] {
            let (mut engine, adapter) = engine(&models, llm, rows)?;
            harness.measure(
                &format!("{name}: {rows} requests of 2 s, {TOKENS} tokens"),
                || {
                    let requests = (0..rows).map(|number| request(number, &adapter)).collect();
                    engine.generate(requests)
                },
            );
        }
    }
    Ok(())
}

fn engine(
    models: &TinyModels,
    llm: &std::path::Path,
    rows: usize,
) -> anyhow::Result<(Engine, AdapterSnapshot)> {
    let placement = Placement::reference();
    let encoder: Box<dyn SpeechEncoder> = open_encoder(&models.encoder, Window::Clip, &placement)?;
    let llm = SpeechLlm::open(llm, Some(""), &placement)?;
    let sizes = AdapterConfig::new(&AdapterSettings::default(), &encoder.info(), &llm.llm().info())?;
    let adapter = SpeechAdapter::new(sizes, 0.3, 3, Device::Cpu)?.snapshot("bench")?;
    let config = EngineConfig::offline(rows, DecodeOptions::greedy(TOKENS));
    Ok((Engine::new(encoder, llm, &config), adapter))
}

/// Two seconds of a tone; the number is its pitch.
fn request(number: usize, adapter: &AdapterSnapshot) -> GenerateRequest {
    let pitch = 0.03 + 0.02 * number as f32;
    GenerateRequest {
        input: Input::Audio {
            samples: (0..32_000).map(|at| (at as f32 * pitch).sin() * 0.4).collect(),
            adapter: adapter.clone(),
        },
        instruction: "Transcribe.".to_owned(),
        grammar: None,
        tokens_max: None,
        task: None,
        spoken: None,
        joint: None,
    }
}

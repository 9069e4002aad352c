//! What learns: the adapter, a curriculum, pre-training.

use std::path::Path;

use speechverse::models::adapter::{AdapterConfig, SpeechAdapter};
use speechverse::models::config::{AdapterSettings, ModelConfig};
use speechverse::models::{EncoderInfo, LanguageModelInfo};
use speechverse::nn::accel::{DeviceChoice, PrecisionChoice};
use speechverse::testing::TinyModels;
use speechverse::training::config::{StageConfig, StageKind, TrainingConfig};
use speechverse::training::pretrain::config::PretrainConfig;
use speechverse::training::pretrain::{PretrainArgs, PretrainEvent, pretrain};
use speechverse::training::{AudioSource, Control, Engine, EngineArgs, Example, Networks, TrainEvent};
use tch::Kind;

use crate::support::{EXACT, assert_close, convolved, device, noise, placement, waves};

#[test]
fn the_adapter_s_positions_and_gradients_are_the_cpu_s() {
    let Some(device) = device("the_adapter_s_positions_and_gradients_are_the_cpu_s") else {
        return;
    };
    let encoder = EncoderInfo {
        layers: 3,
        width: 24,
        frames_per_second: 50.0,
        max_samples: None,
    };
    let llm = LanguageModelInfo {
        width: 40,
        vocab: 100,
        layers: 2,
        max_positions: 100,
    };
    let config = AdapterConfig::new(&AdapterSettings::default(), &encoder, &llm).unwrap();
    let [right, found] = [DeviceChoice::Cpu, device].map(|device| {
        let device = placement(device, PrecisionChoice::F32).device;
        let adapter = SpeechAdapter::new(config.clone(), 0.3, 5, device).unwrap();
        let weights = adapter.mix_weights();
        let states = waves(&[4, 2, 30, 24], 2.0).to_device(device); // [L+1, B, T, D]
        let mixed = (states * weights.view([4, 1, 1, 1])).sum_dim_intlist([0].as_slice(), false, Kind::Float); // [B, T, D]
        let adapted = adapter.forward(&mixed, &[30, 17]).unwrap();
        // Only valid positions mean something.
        let loss = adapted.positions.get(0).square().sum(Kind::Float)
            + adapted
                .positions
                .get(1)
                .narrow(0, 0, adapted.lengths[1])
                .sin()
                .sum(Kind::Float);
        loss.backward();
        let mut all = vec![
            ("positions".to_owned(), adapted.positions.get(0)),
            ("loss".to_owned(), loss),
        ];
        all.extend(
            adapter
                .variables()
                .into_iter()
                .map(|(name, value)| (name, value.grad())),
        );
        // What is read back is what is there.
        let snapshot = adapter.snapshot("v1").unwrap();
        let again = SpeechAdapter::from_snapshot(&snapshot, device, false).unwrap();
        assert!(again.snapshot("v2").unwrap().same_content(&snapshot));
        all
    });

    for ((name, right), (_, found)) in right.iter().zip(&found) {
        assert_close(name, found, right, convolved());
    }
}

fn example(at: usize) -> Example {
    let samples = noise(4_800 + 640 * (at % 3), at as u32);
    Example {
        id: format!("clip-{at}"),
        seconds: samples.len() as f64 / 16_000.0,
        audio: AudioSource::Samples(samples.into()),
        task: "asr".into(),
        instruction: None,
        targets: Default::default(),
        variables: Default::default(),
        target: ["ab", "cd", "ef", "gh"][at % 4].into(),
        domain: None,
        text: None,
    }
}

/// The loss of every step of a curriculum of two steps a stage.
fn losses(
    folder: &Path,
    device: DeviceChoice,
    precision: PrecisionChoice,
    llm: &Path,
    encoder: &Path,
) -> Vec<f64> {
    let stages = [
        StageKind::CtcAlign,
        StageKind::Asr,
        StageKind::LoraWarmup,
        StageKind::Multitask,
    ]
    .map(|kind| StageConfig {
        steps_max: Some(2),
        batch_rows: 3,
        warmup_steps: 1,
        ..StageConfig::new(kind, 2e-3)
    });
    let config = TrainingConfig {
        run: "cuda".into(),
        output: folder.join(format!("{device}-{precision}")),
        model: ModelConfig {
            encoder: encoder.to_owned(),
            llm: llm.to_owned(),
            device,
            precision,
            threads: 1,
            system: Some(String::new()),
        },
        stages: stages.into(),
        ..TrainingConfig::default()
    };
    let networks = Networks::load(&config.model).unwrap();
    let args = EngineArgs {
        config,
        networks: &networks,
        train: (0..8).map(example).collect(),
        valid: (0..4).map(example).collect(),
        start_from: None,
        resume: false,
        control: Control::new(),
    };
    let mut losses = Vec::new();
    let outcome = Engine::new(args)
        .unwrap()
        .run(&mut |event| {
            if let TrainEvent::Step { loss, .. } = event {
                losses.push(*loss);
            }
        })
        .unwrap();
    assert_eq!((outcome.steps, outcome.skipped), (8, 0));
    assert!(outcome.lora.is_some());
    losses
}

#[test]
fn a_curriculum_takes_the_cpu_s_steps() {
    let Some(device) = device("a_curriculum_takes_the_cpu_s_steps") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let models = TinyModels::write(folder.path(), 11);
    for (name, llm) in [("llama", &models.llm), ("t5", &models.t5)] {
        let run = |device, precision| {
            let folder = folder.path().join(name);
            losses(&folder, device, precision, llm, &models.encoder)
        };

        let right = run(DeviceChoice::Cpu, PrecisionChoice::F32);
        let found = run(device, PrecisionChoice::F32);
        let coarse = run(device, PrecisionChoice::Bf16);

        // Low-rank parts begin with torch's random numbers, which differ between devices (but have no effect
        // on the first step, for the other factor begins at zero).
        for step in 0..5 {
            let (right, found, coarse) = (right[step], found[step], coarse[step]);
            assert!(
                (found / right - 1.0).abs() <= convolved(),
                "{name} {step}: {found} for {right}"
            );
            assert!(
                (coarse / right - 1.0).abs() <= 0.05,
                "{name} {step}: bf16 {coarse} for {right}"
            );
        }
        assert!(found.iter().chain(&coarse).all(|loss| loss.is_finite()));
    }
}

/// The losses of three steps of pre-training on noise.
fn pretraining(folder: &Path, device: DeviceChoice) -> Vec<f64> {
    let manifest = folder.join("audio.jsonl");
    let mut lines = String::new();
    for at in 0..4_u32 {
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: 16_000,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut wav = hound::WavWriter::create(folder.join(format!("{at}.wav")), spec).unwrap();
        for sample in noise(24_000, at) {
            wav.write_sample((sample * 32767.0) as i16).unwrap();
        }
        wav.finalize().unwrap();
        lines += &format!("{{\"audio_filepath\": \"{at}.wav\", \"duration\": 1.5}}\n");
    }
    std::fs::write(&manifest, lines).unwrap();
    let text = format!(
        r#"
        output = {output:?}
        device = "{device}"
        threads = 1
        model = {{ hidden_size = 32, num_hidden_layers = 2, num_attention_heads = 2, intermediate_size = 48, subsampling_channels = 16 }}
        quantizer = {{ codebooks = 2, codes = 32, width = 4 }}
        optimizer = {{ steps_max = 3, learning_rate = 1e-3, warmup_steps = 1, batch_rows = 2, dropout = 0.0 }}
        data = {{ train = [{manifest:?}], valid = [{manifest:?}] }}
        "#,
        output = folder.join(device.to_string()),
    );
    let config = PretrainConfig::parse(&text, Path::new("test")).unwrap();
    let args = PretrainArgs {
        config,
        resume: false,
        control: Control::new(),
    };
    let mut losses = Vec::new();
    pretrain(args, &mut |event| {
        if let PretrainEvent::Step { loss, .. } = event {
            losses.push(*loss);
        }
    })
    .unwrap();
    losses
}

#[test]
fn pre_training_takes_the_cpu_s_steps() {
    let Some(device) = device("pre_training_takes_the_cpu_s_steps") else {
        return;
    };
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());

    let right = pretraining(folders[0].path(), DeviceChoice::Cpu);
    let found = pretraining(folders[1].path(), device);

    assert_eq!(found.len(), 3);
    for (found, right) in found.iter().zip(&right) {
        assert!(
            (found / right - 1.0).abs() <= convolved().max(10.0 * EXACT),
            "{found} for {right}"
        );
    }
}

//! Tests of pre-training on a network small enough to learn by heart.

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Reduction, Tensor};

use super::objective::MaskedBatch;
use super::*;
use crate::models::encoders::conformer::{ConformerEncoder, Normalization, Pretraining, QuantizerConfig};
use crate::models::encoders::whisper::Window;
use crate::models::{SpeechEncoder, open_encoder};
use crate::nn::accel::{DeviceChoice, Placement};
use crate::nn::optimizer::{AdamW, AdamWConfig, Parameter};
use crate::training::pretrain::config::{MaskConfig, ModelShape, PretrainConfig, PretrainOptimizerConfig};
use crate::training::{Control, TrainingError};
use crate::util::random::SplitMix;

fn shape() -> ModelShape {
    ModelShape {
        hidden_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 32,
        conv_depthwise_kernel_size: 5,
        num_mel_bins: 20,
        subsampling_channels: 16,
        ..ModelShape::default()
    }
}

fn labels() -> QuantizerConfig {
    QuantizerConfig {
        codebooks: 3,
        codes: 12,
        width: 4,
    }
}

fn network(seed: u64) -> Pretraining {
    Pretraining::new(shape().conformer(), &labels(), None, seed, Device::Cpu).unwrap()
}

/// Stretches of recorded speech.
fn clips() -> Vec<Vec<f32>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/speech");
    ["librivox-0870", "librivox-0890", "asterisk-tt-weasels"]
        .iter()
        .zip([31_000, 20_000, 24_240])
        .map(|(name, samples)| {
            let mut wav = hound::WavReader::open(folder.join(format!("{name}.wav"))).unwrap();
            wav.samples::<i16>()
                .skip(8_000)
                .take(samples)
                .map(|sample| f32::from(sample.unwrap()) / 32768.0)
                .collect()
        })
        .collect()
}

fn generators(count: usize) -> Vec<SplitMix> {
    (0..count).map(|row| SplitMix::new(&[9, row as u64])).collect()
}

fn masked_batch(network: &Pretraining, clips: &[Vec<f32>]) -> MaskedBatch {
    let rows: Vec<&[f32]> = clips.iter().map(Vec::as_slice).collect();
    MaskedBatch::new(
        network,
        &rows,
        &MaskConfig::default(),
        &mut generators(rows.len()),
    )
    .unwrap()
    .unwrap()
}

fn adamw(network: &Pretraining) -> AdamW {
    let parameters = network
        .variables()
        .into_iter()
        .map(|(name, tensor)| Parameter {
            name,
            tensor,
            rate_factor: 1.0,
            decay_factor: 0.0,
        })
        .collect();
    AdamW::new(AdamWConfig::default(), parameters).unwrap()
}

#[test]
fn a_small_batch_can_be_learnt_by_heart() {
    let network = network(1);
    let masked_batch = masked_batch(&network, &clips());
    let mut optimizer = adamw(&network);
    let before = masked_batch.predict(&network).unwrap();

    for _ in 0..120 {
        optimizer.zero_grad();
        masked_batch.learn(&network, 0.0, 1.0).unwrap();
        optimizer.step(5e-3);
    }

    let after = masked_batch.predict(&network).unwrap();
    assert!(masked_batch.frames() > 15, "{}", masked_batch.frames());
    assert!((before.loss - 12f64.ln()).abs() < 1.0, "{before:?}");
    assert!(after.loss < 0.05 && after.accuracy > 0.99, "{after:?}");
}

#[test]
fn gradients_head_by_head_equal_those_of_the_whole_loss() {
    let network = network(2);
    let mut random = SplitMix::new(&[3]);
    let values: Vec<f32> = (0..7 * 24).map(|_| random.normal() as f32).collect();
    let codes: Vec<i64> = (0..7 * 3).map(|_| random.below(12) as i64).collect();
    let codes = Tensor::from_slice(&codes).view([7, 3]);
    let input = Tensor::from_slice(&values).view([7, 24]).set_requires_grad(true);
    let gradients = || -> Vec<(String, Tensor)> {
        let heads = network
            .variables()
            .into_iter()
            .filter(|(name, _)| name.starts_with("heads."));
        let mut found: Vec<(String, Tensor)> = heads
            .map(|(name, mut tensor)| {
                let gradient = tensor.grad().copy();
                tensor.zero_grad();
                (name, gradient)
            })
            .collect();
        let mut input = input.shallow_clone();
        found.push(("input".into(), input.grad().copy()));
        input.zero_grad();
        found
    };

    // Something before the heads, so that there is a graph to go back through.
    let loss = network.heads().backward(&(&input * 2.0), &codes, 0.5).unwrap();
    let found = gradients();

    let named: std::collections::HashMap<String, Tensor> = network.variables().into_iter().collect();
    let whole = (0..3)
        .map(|book| {
            (&input * 2.0)
                .linear(
                    &named[&format!("heads.{book}.weight")],
                    Some(&named[&format!("heads.{book}.bias")]),
                )
                .cross_entropy_loss::<Tensor>(&codes.select(1, book), None, Reduction::Mean, -100, 0.0)
        })
        .reduce(|a, b| a + b)
        .unwrap()
        / 3.0;
    (&whole * 0.5).backward();
    assert!((whole.double_value(&[]) - loss).abs() < 1e-6);
    for ((name, ours), (_, right)) in found.iter().zip(gradients()) {
        let error = (ours - &right).abs().max().double_value(&[]);
        assert!(
            error < 1e-6 && right.abs().max().double_value(&[]) > 0.0,
            "{name}: {error}"
        );
    }
}

#[test]
fn every_variable_of_network_and_heads_receives_a_gradient() {
    let network = network(3);

    masked_batch(&network, &clips())
        .learn(&network, 0.1, 1.0)
        .unwrap();

    for (name, tensor) in network.variables() {
        let gradient = tensor.grad();
        assert!(
            gradient.defined() && gradient.abs().max().double_value(&[]) > 0.0,
            "{name}"
        );
    }
}

#[test]
fn the_loss_of_a_padded_batch_is_the_mean_over_its_clips_alone() {
    let network = network(4);
    let clips = clips();

    let together = masked_batch(&network, &clips);

    let (mut loss, mut frames) = (0.0, 0);
    for (row, clip) in clips.iter().enumerate() {
        let mut random = [generators(3).swap_remove(row)];
        let alone = MaskedBatch::new(&network, &[clip], &MaskConfig::default(), &mut random)
            .unwrap()
            .unwrap();
        loss += alone.predict(&network).unwrap().loss * alone.frames() as f64;
        frames += alone.frames();
    }
    assert_eq!(together.frames(), frames);
    let found = together.predict(&network).unwrap().loss;
    assert!((found - loss / frames as f64).abs() < 1e-5, "{found}");
}

#[test]
fn a_saved_network_comes_back_equal_and_opens_as_a_frozen_encoder() {
    let folder = tempfile::tempdir().unwrap();
    let network = network(5);
    network.save(folder.path()).unwrap();

    let again = Pretraining::load(folder.path(), &labels(), Device::Cpu).unwrap();

    for ((name, left), (_, right)) in network.variables().iter().zip(again.variables()) {
        assert!(left.equal(&right) && right.requires_grad(), "{name}");
    }
    let (left, right) = (network.quantizer().tensors(), again.quantizer().tensors());
    assert!(
        left.iter()
            .zip(right)
            .all(|((_, left), (_, right))| left.equal(right))
    );
    let clip = &clips()[0];
    let features = network.features(&[clip]).unwrap();
    let learning = network
        .network()
        .forward(&features.values, &features.lengths, 0.0);
    let frozen = ConformerEncoder::load(folder.path(), &Placement::reference()).unwrap();
    let last = frozen.hidden_states(&[clip]).unwrap().last;
    // The frozen one multiplies matrices by other kernels.
    assert!((learning - last).abs().max().double_value(&[]) < 1e-5);
    let fewer = QuantizerConfig {
        codes: 11,
        ..labels()
    };
    let message = Pretraining::load(folder.path(), &fewer, Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("heads.0.weight") && message.contains("quantizer.codebooks"),
        "{message}"
    );
}

#[test]
fn batch_norm_is_refused_by_name() {
    let config = crate::models::encoders::conformer::ConformerConfig {
        conv_norm: crate::models::encoders::conformer::ConvNorm::Batch,
        ..shape().conformer()
    };

    let message = Pretraining::new(config, &labels(), None, 1, Device::Cpu)
        .unwrap_err()
        .to_string();

    assert!(message.contains("`conv_norm`"), "{message}");
}

/// A run over the three clips, and the manifest with them.
fn settings(folder: &Path, output: &str) -> PretrainConfig {
    let manifest = folder.join("audio.jsonl");
    if !manifest.exists() {
        let mut lines = String::new();
        for (at, clip) in clips().iter().enumerate() {
            let spec = hound::WavSpec {
                channels: 1,
                sample_rate: 16_000,
                bits_per_sample: 16,
                sample_format: hound::SampleFormat::Int,
            };
            let mut wav = hound::WavWriter::create(folder.join(format!("{at}.wav")), spec).unwrap();
            for sample in clip {
                wav.write_sample((sample * 32767.0) as i16).unwrap();
            }
            wav.finalize().unwrap();
            let seconds = clip.len() as f64 / 16_000.0;
            lines += &format!("{{\"audio_filepath\": \"{at}.wav\", \"duration\": {seconds}}}\n");
        }
        lines += "{\"audio_filepath\": \"no.wav\", \"duration\": 0.1}\n";
        std::fs::write(&manifest, lines).unwrap();
    }
    let mut config = PretrainConfig {
        run: "tiny".into(),
        output: folder.join(output),
        device: DeviceChoice::Cpu,
        threads: 1,
        model: shape(),
        quantizer: labels(),
        optimizer: PretrainOptimizerConfig {
            steps_max: 6,
            learning_rate: 2e-3,
            warmup_steps: 2,
            batch_rows: 2,
            // torch's generator, which dropout draws from, is shared with the tests that run beside this one.
            dropout: 0.0,
            ..PretrainOptimizerConfig::default()
        },
        checkpoint_every_steps: 2,
        ..PretrainConfig::default()
    };
    config.augment.noise = 0.5;
    config.data.train = vec![manifest.clone()];
    config.data.valid = vec![manifest];
    config.validation.every_steps = 3;
    config
}

fn go(config: &PretrainConfig, resume: bool, stop_at: Option<u64>) -> (PretrainOutcome, Vec<PretrainEvent>) {
    let control = Control::new();
    let args = PretrainArgs {
        config: config.clone(),
        resume,
        control: control.clone(),
    };
    let mut events = Vec::new();
    let outcome = pretrain(args, &mut |event| {
        if matches!(event, PretrainEvent::Step { step, .. } if Some(*step) == stop_at) {
            control.stop();
        }
        events.push(event.clone());
    });
    (outcome.unwrap(), events)
}

fn tensors(path: PathBuf) -> Vec<(String, Tensor)> {
    let mut found = Tensor::read_safetensors(path).unwrap();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

#[test]
fn a_resumed_run_equals_one_that_was_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, parts) = (settings(folder.path(), "whole"), settings(folder.path(), "parts"));

    let (outcome, events) = go(&whole, false, None);
    let (stopped, first) = go(&parts, false, Some(3));
    let (resumed, second) = go(&parts, true, None);

    assert!(!outcome.stopped && stopped.stopped && !resumed.stopped);
    assert_eq!((outcome.steps, stopped.steps, resumed.steps), (6, 3, 6));
    for file in [
        "model.safetensors",
        "pretraining.safetensors",
        "optimizer.safetensors",
    ] {
        let [left, right] = [&whole, &parts].map(|run| tensors(run.output.join("checkpoint").join(file)));
        assert_eq!(left.len(), right.len());
        for ((name, left), (_, right)) in left.iter().zip(&right) {
            assert!(left.equal(right), "{file}: {name}");
        }
    }
    let losses = |events: &[PretrainEvent]| -> Vec<(u64, f64)> {
        let loss = |event: &PretrainEvent| match event {
            PretrainEvent::Step { step, loss, .. } | PretrainEvent::Validated { step, loss, .. } => {
                Some((*step, *loss))
            }
            _ => None,
        };
        events.iter().filter_map(loss).collect()
    };
    assert_eq!(losses(&events), [losses(&first), losses(&second)].concat());
    let log = std::fs::read_to_string(parts.output.join("log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), first.len() + second.len());
    let picture = std::fs::read_to_string(parts.output.join("loss.svg")).unwrap();
    assert!(picture.contains("entropy of the labels"));
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = settings(folder.path(), "run");
    go(&config, false, Some(1));

    config.mask.span = 5;
    let args = PretrainArgs {
        config,
        resume: true,
        control: Control::new(),
    };
    let message = pretrain(args, &mut |_| ()).unwrap_err().to_string();

    assert!(message.contains("differs in `mask`;"), "{message}");
}

#[test]
fn global_statistics_bring_the_training_data_to_zero_mean_and_unit_variance() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = settings(folder.path(), "run");
    config.model.normalize = Normalization::Global;
    config.optimizer.steps_max = 1;
    config.data.valid.clear();

    let (outcome, events) = go(&config, false, None);

    assert!(outcome.best.is_none());
    assert!(matches!(
        events[0],
        PretrainEvent::RunStarted {
            train_clips: 3,
            valid_clips: 0,
            left_out: 1,
            ..
        }
    ));
    open_encoder(&outcome.encoder, Window::Clip, &Placement::reference()).unwrap();
    let network = Pretraining::load(&outcome.encoder, &labels(), Device::Cpu).unwrap();
    let clips = clips();
    let rows: Vec<Tensor> = clips
        .iter()
        .map(|clip| network.features(&[clip]).unwrap().values.get(0))
        .collect();
    let all = Tensor::cat(&rows, 0);
    let mean = all.mean_dim([0].as_slice(), false, Kind::Float);
    assert!(mean.abs().max().double_value(&[]) < 1e-2);
    assert!(
        (all.std_dim([0].as_slice(), false, false) - 1.0)
            .abs()
            .max()
            .double_value(&[])
            < 1e-2
    );
}

#[test]
fn nothing_to_learn_from_is_an_error_that_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = settings(folder.path(), "run");
    config.data.seconds_min = 10.0;

    let args = PretrainArgs {
        config,
        resume: false,
        control: Control::new(),
    };
    let error = pretrain(args, &mut |_| ()).unwrap_err();

    assert!(matches!(error, TrainingError::NoExamples { .. }));
    assert!(error.to_string().contains("data.seconds_min"), "{error}");
}

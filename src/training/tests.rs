//! Whole runs on tiny random networks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tch::Tensor;

use super::evaluate::{EvaluateOptions, evaluate};
use super::prepare::prepare;
use super::*;
use crate::inference::speech_llm::Learned;
use crate::inference::{DecodeOptions, EngineConfig};
use crate::models::adapter::plain::{PlainData, PlainTensor};
use crate::models::adapter::{AdapterConfig, AdapterSnapshot, SpeechAdapter};
use crate::models::config::{Activation, AdapterSettings, LayerMix, ModelConfig};
use crate::nn::accel::{DeviceChoice, PrecisionChoice};
use crate::registry::Registry;
use crate::scoring::Metric;
use crate::testing::TinyModels;
use crate::training::config::{Decay, StageConfig, StageKind, TrainingConfig};
use crate::util::random::SplitMix;

mod aligned;
mod data;
mod evaluation;
mod limits;

const WORDS: [&str; 4] = ["ab", "cd", "ef", "gh"];

fn clip(at: usize) -> Vec<f32> {
    let mut random = SplitMix::new(&[at as u64]);
    (0..4_800 + 640 * (at % 3))
        .map(|_| random.between(-0.3, 0.3) as f32)
        .collect()
}

fn example(at: usize) -> Example {
    let samples = clip(at);
    Example {
        id: format!("clip-{at}"),
        seconds: samples.len() as f64 / 16_000.0,
        audio: AudioSource::Samples(samples.into()),
        task: "asr".into(),
        instruction: None,
        targets: Default::default(),
        variables: Default::default(),
        target: WORDS[at % WORDS.len()].into(),
        domain: Some(if at.is_multiple_of(2) { "even" } else { "odd" }.into()),
        text: None,
    }
}

fn examples(count: usize) -> Vec<Example> {
    (0..count).map(example).collect()
}

fn stage(kind: StageKind, steps: u64) -> StageConfig {
    StageConfig {
        steps_max: Some(steps),
        batch_rows: 3,
        warmup_steps: 2,
        decay: Decay::Linear,
        ..StageConfig::new(kind, 5e-3)
    }
}

struct Place {
    folder: tempfile::TempDir,
    networks: Networks,
    models: TinyModels,
}

impl Place {
    fn new() -> Self {
        Self::with_llm(|models| models.llm.clone())
    }

    fn with_llm(choose: fn(&TinyModels) -> std::path::PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut models = TinyModels::write(folder.path(), 11);
        models.llm = choose(&models);
        let networks = Networks::load(&Self::model_config(&models)).unwrap();
        Self {
            folder,
            networks,
            models,
        }
    }

    fn model_config(models: &TinyModels) -> ModelConfig {
        ModelConfig {
            encoder: models.encoder.clone(),
            llm: models.llm.clone(),
            device: DeviceChoice::Cpu,
            precision: PrecisionChoice::F32,
            threads: 1,
            system: Some(String::new()),
        }
    }

    fn config(&self, name: &str, stages: Vec<StageConfig>) -> TrainingConfig {
        let mut config = TrainingConfig {
            run: name.into(),
            output: self.folder.path().join(name),
            model: Self::model_config(&self.models),
            stages,
            ..TrainingConfig::default()
        };
        config.validation.every_steps = 3;
        config.validation.new_tokens_max = 6;
        config.checkpoint.every_steps = 2;
        config.augment.noise = 0.5;
        config.augment.gain = 0.5;
        config
    }

    fn args(&self, config: TrainingConfig) -> EngineArgs<'_> {
        EngineArgs {
            config,
            networks: &self.networks,
            train: examples(8),
            valid: examples(4),
            start_from: None,
            resume: false,
            control: Control::new(),
        }
    }

    fn train(&self, config: TrainingConfig) -> (TrainOutcome, Vec<TrainEvent>) {
        let mut events = Vec::new();
        let engine = Engine::new(self.args(config)).unwrap();
        let outcome = engine.run(&mut |event| events.push(event.clone())).unwrap();
        (outcome, events)
    }
}

/// Runs what is left, or so many steps of it.
fn run_until(args: EngineArgs<'_>, stop_after: Option<u64>) -> TrainOutcome {
    let (control, mut steps) = (args.control.clone(), 0);
    let outcome = Engine::new(args).unwrap().run(&mut |event| {
        steps += u64::from(matches!(event, TrainEvent::Step { .. }));
        if Some(steps) == stop_after {
            control.stop();
        }
    });
    outcome.unwrap()
}

fn all_kinds() -> Vec<StageConfig> {
    [
        StageKind::CtcAlign,
        StageKind::Asr,
        StageKind::LoraWarmup,
        StageKind::Multitask,
    ]
    .map(|kind| stage(kind, 5))
    .to_vec()
}

fn lora_bytes(outcome: &TrainOutcome) -> Vec<u8> {
    std::fs::read(outcome.lora.as_ref().unwrap().join("adapter_model.safetensors")).unwrap()
}

#[test]
fn a_curriculum_runs_through_every_kind_of_stage_and_reports_what_it_does() {
    let place = Place::new();
    let table = place.networks.speech_llm.llm().embedding_table().copy();
    let digest = crate::registry::identify(&place.models.llm).unwrap();
    let fixed = |networks: &Networks| {
        let llm = networks.speech_llm.llm();
        llm.prompt_logits(&llm.embed(&[1, 2, 3, 4]).unwrap(), None)
            .unwrap()
    };
    let before = fixed(&place.networks);

    let (outcome, events) = place.train(place.config("whole", all_kinds()));

    assert!(!outcome.stopped);
    assert_eq!((outcome.steps, outcome.skipped), (20, 0));
    assert!(outcome.best.as_ref().unwrap().loss.is_finite());
    assert!(outcome.lora.is_some());
    let count = |wanted: &dyn Fn(&TrainEvent) -> bool| events.iter().filter(|event| wanted(event)).count();
    assert_eq!(count(&|event| matches!(event, TrainEvent::Step { .. })), 20);
    assert_eq!(
        count(&|event| matches!(event, TrainEvent::StageFinished { reason, .. } if reason == "steps")),
        4
    );
    assert_eq!(
        count(&|event| matches!(
            event,
            TrainEvent::Validated {
                wer: Some(_),
                clips: 4,
                ..
            }
        )),
        8
    );
    let log = std::fs::read_to_string(outcome.output.join("log.jsonl")).unwrap();
    let logged: Vec<TrainEvent> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds = |events: &[TrainEvent]| events.iter().map(std::mem::discriminant).collect::<Vec<_>>();
    assert_eq!(kinds(&logged), kinds(&events));
    assert!(
        std::fs::read_to_string(outcome.output.join("loss.svg"))
            .unwrap()
            .contains("multitask")
    );
    // The base models never change.
    assert_eq!(place.networks.speech_llm.llm().embedding_table(), table);
    assert_eq!(fixed(&place.networks), before);
    assert_eq!(crate::registry::identify(&place.models.llm).unwrap(), digest);
}

#[test]
fn what_learns_in_each_stage_is_listed() {
    let place = Place::new();
    let config = place.config("lists", all_kinds());
    let fresh = || {
        let info = place.networks.speech_llm.llm().info();
        let config =
            AdapterConfig::new(&AdapterSettings::default(), &place.networks.encoder.info(), &info).unwrap();
        Learned {
            adapter: SpeechAdapter::new(config, 1.0, 1, tch::Device::Cpu).unwrap(),
            lora: None,
        }
    };
    let names = |kind| {
        let (mut learned, stage) = (fresh(), stage(kind, 1));
        let work =
            stage::StageRunner::begin(&place.networks, &config, &stage, &mut learned, &[1, 2], None).unwrap();
        work.parameters(&learned)
            .into_iter()
            .map(|parameter| parameter.name)
            .collect::<Vec<_>>()
    };
    let adapter: Vec<String> = fresh().adapter.variables().into_keys().collect();

    assert_eq!(names(StageKind::Asr), adapter);
    let mut with_head = [adapter.clone(), vec!["ctc.blank".into(), "ctc.scale".into()]].concat();
    with_head.sort();
    assert_eq!(names(StageKind::CtcAlign), with_head);
    let with_lora = names(StageKind::LoraWarmup);
    let lora: Vec<&String> = with_lora.iter().filter(|name| name.contains("lora_")).collect();
    assert_eq!(lora.len(), 2 * 2 * 2, "A and B of two projections in two layers");
    assert_eq!(with_lora.len(), adapter.len() + lora.len());
}

#[test]
fn a_run_stopped_anywhere_and_resumed_equals_an_uninterrupted_one() {
    let place = Place::new();
    let (whole, _) = place.train(place.config("whole", all_kinds()));

    for stop_after in [3, 8, 13, 18] {
        let config = place.config(&format!("stopped-{stop_after}"), all_kinds());
        let stopped = run_until(place.args(config.clone()), Some(stop_after));
        assert!(stopped.stopped);
        assert_eq!(stopped.steps, stop_after);

        let args = EngineArgs {
            resume: true,
            ..place.args(config)
        };
        let resumed = Engine::new(args).unwrap().run(&mut |_| {}).unwrap();

        assert_eq!(resumed.steps, whole.steps);
        assert!(
            resumed.adapter.same_content(&whole.adapter),
            "stopped after {stop_after}"
        );
        assert_eq!(lora_bytes(&resumed), lora_bytes(&whole));
        assert_eq!(
            resumed.best.as_ref().unwrap().loss,
            whole.best.as_ref().unwrap().loss
        );
    }
}

#[test]
fn dropout_of_adapter_and_low_rank_updates_acts_in_steps_and_not_in_validation() {
    let place = Place::new();
    let coarse = StageConfig {
        lora_rate_factor: 1.0,
        learning_rate: 0.05,
        ..stage(StageKind::LoraWarmup, 4)
    };
    let mut config = place.config("first", vec![coarse]);
    config.adapter.activation = Some(Activation::Gelu); // a layer with inner values
    let (first, _) = place.train(config);
    // From there, steps so small that no weight changes: what differs is dropout's doing.
    let losses = |name: &str, of_adapter: f64, of_lora: f64| -> (Vec<f64>, Vec<f64>) {
        let still = StageConfig {
            learning_rate: 1e-9,
            dropout: of_adapter,
            ..stage(StageKind::LoraWarmup, 3)
        };
        let mut config = place.config(name, vec![still]);
        config.lora.dropout = of_lora;
        config.validation.every_steps = 1;
        let args = EngineArgs {
            start_from: Some((first.adapter.clone(), first.lora.clone())),
            ..place.args(config)
        };
        let (mut steps, mut validations) = (Vec::new(), Vec::new());
        let outcome = Engine::new(args).unwrap().run(&mut |event| match event {
            TrainEvent::Step { loss, .. } => steps.push(*loss),
            TrainEvent::Validated { loss, .. } => validations.push(*loss),
            _ => {}
        });
        outcome.unwrap();
        (steps, validations)
    };

    let (steps, validations) = losses("without", 0.0, 0.0);
    assert_eq!((steps.len(), validations.len()), (3, 3));
    for (name, of_adapter, of_lora) in [("of-adapter", 0.5, 0.0), ("of-lora", 0.0, 0.5)] {
        let (dropped, validated) = losses(name, of_adapter, of_lora);

        for (with, without) in dropped.iter().zip(&steps) {
            assert!((with - without).abs() > 1e-3, "{name}: {with}, {without} without");
        }
        for (with, without) in validated.iter().zip(&validations) {
            assert!((with - without).abs() < 1e-5, "{name}: {with}, {without} without");
        }
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let place = Place::new();
    let config = place.config("first", vec![stage(StageKind::CtcAlign, 2)]);
    place.train(config.clone());

    let other = TrainingConfig { seed: 99, ..config };
    let error = Engine::new(EngineArgs {
        resume: true,
        ..place.args(other)
    })
    .err()
    .unwrap()
    .to_string();

    assert!(
        error.contains("cannot resume") && error.contains("seed"),
        "{error}"
    );
}

#[test]
fn an_encoder_decoder_goes_through_every_kind_of_stage_and_its_lora_folder_is_one_for_peft() {
    let place = Place::with_llm(|models| models.t5.clone());
    let digest = crate::registry::identify(&place.models.llm).unwrap();

    let (outcome, events) = place.train(place.config("t5", all_kinds()));

    assert_eq!((outcome.steps, outcome.skipped), (20, 0));
    let losses: Vec<f64> = (events.iter())
        .filter_map(|event| match event {
            TrainEvent::Step { loss, .. } => Some(*loss),
            _ => None,
        })
        .collect();
    assert!(
        losses.len() == 20 && losses.iter().all(|loss| loss.is_finite()),
        "{losses:?}"
    );
    let lora = outcome.lora.unwrap();
    let config = std::fs::read_to_string(lora.join("adapter_config.json")).unwrap();
    assert!(
        config.contains("SEQ_2_SEQ_LM") && config.contains("\"q\""),
        "{config}"
    );
    let llm = place.networks.speech_llm.llm();
    let read = checkpoint::read_lora(&lora, llm, tch::Device::Cpu).unwrap();
    // Two layers: self-attention of both stacks and cross-attention, queries and values.
    assert_eq!(read.sites().len(), 12);
    let moved = |(name, tensor): (String, Tensor)| {
        name.contains("lora_B") && tensor.abs().max().double_value(&[]) > 0.0
    };
    assert_eq!(
        read.parameters()
            .into_iter()
            .map(moved)
            .filter(|moved| *moved)
            .count(),
        12
    );
    assert_eq!(crate::registry::identify(&place.models.llm).unwrap(), digest);
}

#[test]
fn losses_fall_and_the_best_validation_is_what_is_kept() {
    let place = Place::new();
    let mut config = place.config("learns", vec![stage(StageKind::CtcAlign, 60)]);
    config.augment = Default::default();

    let (outcome, events) = place.train(config);

    let losses: Vec<f64> = events
        .iter()
        .filter_map(|event| match event {
            TrainEvent::Validated { loss, .. } => Some(*loss),
            _ => None,
        })
        .collect();
    let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(best < 0.5 * losses[0], "{losses:?}");
    assert_eq!(outcome.best.unwrap().loss, best);
}

#[test]
fn numbers_that_are_not_finite_leave_the_weights_alone_and_end_the_run_in_time() {
    let place = Place::new();
    let config = place.config("explodes", vec![stage(StageKind::Asr, 100)]);
    let info = place.networks.speech_llm.llm().info();
    let shape = AdapterConfig::new(&config.adapter, &place.networks.encoder.info(), &info).unwrap();
    let fresh = SpeechAdapter::new(shape.clone(), 1.0, 1, tch::Device::Cpu)
        .unwrap()
        .snapshot("x")
        .unwrap();
    let mut tensors = fresh.tensors().clone();
    let huge = &tensors["downsample.0.conv.weight"];
    let count = huge.floats().unwrap().len();
    let huge = PlainTensor {
        shape: huge.shape.clone(),
        data: PlainData::F32(vec![1e30; count]),
    };
    tensors.insert("downsample.0.conv.weight".into(), huge);
    let start = AdapterSnapshot::new("huge", shape, tensors, Path::new("huge")).unwrap();
    let args = EngineArgs {
        start_from: Some((start, None)),
        valid: Vec::new(),
        ..place.args(config)
    };
    let mut skipped = 0;

    let result = Engine::new(args).unwrap().run(&mut |event| {
        skipped += u64::from(matches!(event, TrainEvent::StepSkipped { .. }));
    });

    assert!(matches!(result, Err(TrainingError::Diverged { .. })));
    assert_eq!(skipped, 21);
}

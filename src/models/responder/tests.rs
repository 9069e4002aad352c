use std::collections::BTreeMap;
use std::path::Path;

use tch::Kind;

use super::*;
use crate::models::EncoderInfo;
use crate::models::adapter::{AdapterConfig, LoraSnapshot, embedding_rms};
use crate::models::config::AdapterSettings;
use crate::models::decoding::{BeamSettings, EarlyStopping, Strategy};
use crate::nn::accel::Placement;
use crate::nn::lora::LoraConfig;
use crate::testing::TinyModels;

struct Bench {
    responder: Responder<usize>,
    /// A version without low-rank updates, and two with.
    versions: Vec<AdapterSnapshot>,
}

fn bench(folder: &Path, slots: usize, options: DecodeOptions) -> Bench {
    let models = TinyModels::write(folder, 7);
    let model = SpeechLlm::open(&models.llm, Some(""), &Placement::reference()).unwrap();
    let encoder = EncoderInfo {
        layers: 2,
        width: 32,
        frames_per_second: 50.0,
        max_samples: None,
    };
    let llm = model.llm();
    let config = AdapterConfig::new(&AdapterSettings::default(), &encoder, &llm.info()).unwrap();
    let gain = embedding_rms(&llm.embedding_table()).unwrap();
    let plain = SpeechAdapter::new(config, gain, 3, Device::Cpu)
        .unwrap()
        .snapshot("plain")
        .unwrap();
    let mut versions = vec![plain.clone()];
    for number in 1..=2 {
        let set = LoraSet::new(LoraConfig::default(), &llm.lora_sites(), Device::Cpu).unwrap();
        let _no_grad = tch::no_grad_guard();
        for (place, (_, mut tensor)) in set.parameters().into_iter().enumerate() {
            let count = Tensor::arange(tensor.numel() as i64, (Kind::Float, Device::Cpu));
            let noise = (count * (0.37 * f64::from(number)) + place as f64).sin() * 0.3;
            tensor.copy_(&noise.view(tensor.size().as_slice()));
        }
        let lora = LoraSnapshot::of(&set).unwrap();
        versions.push(plain.with_lora(Some(lora)).renamed(&format!("low-rank-{number}")));
    }
    let sizes = ResponderSizes {
        slots,
        positions_max: 200,
        answer_positions: 20,
    };
    Bench {
        responder: Responder::new(model, Device::Cpu, &sizes, options),
        versions,
    }
}

fn features(number: usize) -> Tensor {
    let steps = Tensor::arange(20 * 32, (Kind::Float, Device::Cpu));
    (steps * (0.5 + number as f64 * 0.1)).sin().view([20, 32]) * 2.0
}

/// Asks all at once, as many side by side as fit; answers by number.
fn ask(bench: &mut Bench, questions: &[(usize, AdapterSnapshot)]) -> BTreeMap<usize, Decoded> {
    let mut waiting = questions.iter();
    let mut answers = BTreeMap::new();
    while answers.len() < questions.len() {
        let joining: Vec<_> = waiting.by_ref().take(bench.responder.free()).collect();
        let mut arrivals = Vec::new();
        for (number, version) in joining {
            let features = features(*number);
            let question = Question {
                features: &features,
                instruction: "Say it.",
                shape: None,
                tokens_max: None,
            };
            arrivals.push((*number, bench.responder.prompt(version, &question).unwrap()));
        }
        answers.extend(bench.responder.join(arrivals).unwrap());
        answers.extend(bench.responder.step().unwrap());
    }
    answers
}

#[test]
fn a_long_instruction_and_long_audio_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = bench(folder.path(), 1, DecodeOptions::greedy(4));
    let version = bench.versions[0].clone();
    let mut refusal = |frames: i64, instruction: &str| {
        let features = Tensor::zeros([frames, 32], (Kind::Float, Device::Cpu));
        let question = Question {
            features: &features,
            instruction,
            shape: None,
            tokens_max: None,
        };
        bench.responder.prompt(&version, &question).unwrap_err()
    };

    let long = refusal(20, &"Say it. ".repeat(400));
    let audio = refusal(8_000, "Say it.");
    let both = refusal(8_000, &"Say it. ".repeat(400));

    let SpeechLlmError::Model(ModelError::InstructionTooLong { tokens, tokens_max }) = long else {
        panic!("{long}")
    };
    assert!(
        tokens > 400 && (32..200).contains(&tokens_max),
        "{tokens} {tokens_max}"
    );
    for error in [audio, both] {
        let is_audio = matches!(&error, SpeechLlmError::Model(ModelError::TooManyPositions { .. }));
        assert!(is_audio, "{error}");
    }
}

#[test]
fn versions_with_and_without_low_rank_updates_side_by_side_answer_as_each_does_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = bench(folder.path(), 4, DecodeOptions::greedy(12));
    let versions = bench.versions.clone();
    let questions: Vec<(usize, AdapterSnapshot)> = (0..9)
        .map(|number| (number, versions[number % 3].clone()))
        .collect();

    let together = ask(&mut bench, &questions);

    let mut alone = Vec::new();
    for question in &questions {
        alone.push(ask(&mut bench, std::slice::from_ref(question))[&question.0].clone());
    }
    for (number, alone) in alone.iter().enumerate() {
        assert_eq!(together[&number].ids, alone.ids, "{number}");
    }
    let mut by_version = Vec::new();
    for version in &versions {
        let questions: Vec<_> = (0..6).map(|number| (number, version.clone())).collect();
        by_version.push(ask(&mut bench, &questions));
    }
    assert_ne!(by_version[0], by_version[1]);
    assert_ne!(by_version[1], by_version[2]);
}

#[test]
fn many_versions_come_and_go_and_their_low_rank_parts_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = bench(folder.path(), 2, DecodeOptions::greedy(3));
    let version = bench.versions[1].clone();

    let first = ask(&mut bench, &[(1, version.clone())]);
    for number in 0..10 {
        let answers = ask(&mut bench, &[(1, version.renamed(&format!("again-{number}")))]);
        assert_eq!(answers, first);
    }

    assert!(bench.responder.versions.len() <= VERSIONS_MAX);
    assert!(bench.responder.loras.len() <= VERSIONS_MAX + 1);
}

#[test]
fn low_rank_updates_that_do_not_fit_the_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = bench(folder.path(), 2, DecodeOptions::greedy(3));
    let other = crate::nn::lora::LoraSite {
        path: "model.layers.0.self_attn.q_proj".to_owned(),
        inputs: 8,
        outputs: 8,
    };
    let config = LoraConfig {
        targets: vec!["q_proj".to_owned()],
        ..LoraConfig::default()
    };
    let set = LoraSet::new(config, &[other], Device::Cpu).unwrap();
    let version = bench.versions[0]
        .with_lora(Some(LoraSnapshot::of(&set).unwrap()))
        .renamed("strange");
    let features = features(0);
    let question = Question {
        features: &features,
        instruction: "Say it.",
        shape: None,
        tokens_max: None,
    };

    let error = bench
        .responder
        .prompt(&version, &question)
        .unwrap_err()
        .to_string();

    assert!(error.contains("lora_A") && error.contains("lora_B"), "{error}");
}

#[test]
fn beam_searches_take_their_slots_and_answers_are_held_to_their_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let options = DecodeOptions {
        strategy: Strategy::Beam(BeamSettings {
            width: 3,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::No,
        }),
        ..DecodeOptions::greedy(15)
    };
    let mut bench = bench(folder.path(), 7, options);
    let features = features(2);
    let shape = AnswerShape::one_of(["yes", "no", "no idea"]);
    let question = Question {
        features: &features,
        instruction: "Say it.",
        shape: Some(&shape),
        tokens_max: None,
    };
    assert_eq!(bench.responder.free(), 2);
    let version = bench.versions[0].clone();

    let prompts: Vec<_> = (0..2)
        .map(|key| (key, bench.responder.prompt(&version, &question).unwrap()))
        .collect();
    let mut finished = bench.responder.join(prompts).unwrap();
    assert_eq!((bench.responder.free(), bench.responder.used()), (0, 6));
    while finished.len() < 2 {
        finished.extend(bench.responder.step().unwrap());
    }

    for (_, found) in &finished {
        let text = bench.responder.text(found).unwrap();
        assert_eq!(
            found.label.map(|label| ["yes", "no", "no idea"][label]),
            Some(text.as_str())
        );
    }
    assert_eq!(bench.responder.used(), 0);
    assert_eq!(bench.responder.shapes.len(), 1);
}

//! Every network: the device's numbers are the CPU's.

use speechverse::inference::speech_llm::SpeechLlm;
use speechverse::inference::{BeamSettings, DecodeOptions, EarlyStopping, Prompt, Strategy};
use speechverse::models::encoders::whisper::Window;
use speechverse::models::{LanguageModel, SpeechEncoder, open_encoder, open_language_model};
use speechverse::nn::accel::{DeviceChoice, PrecisionChoice};
use speechverse::testing::{TinyModels, generate_alike, generate_all};
use speechverse::text::{GrammarPiece, OutputGrammar};
use tch::{Device, Kind, Tensor};

use crate::support::{
    EXACT, assert_bf16, assert_close, convolved, device, fixture, lora, noise, placement, waves,
};

const ENCODERS: [&str; 9] = [
    "wavlm/wavlm_base",
    "wavlm/wavlm_large",
    "wavlm/hubert_base",
    "wavlm/hubert_large",
    "wavlm/wav2vec2_base",
    "wavlm/wav2vec2_odd",
    "whisper_tiny",
    "conformer_layer",
    "conformer_batch",
];
const LANGUAGE_MODELS: [&str; 6] = [
    "llama_tiny",
    "llama_bias",
    "llama_qwen2",
    "t5_gated",
    "t5_relu",
    "t5_tied",
];

fn encoder(name: &str, device: DeviceChoice, precision: PrecisionChoice) -> Box<dyn SpeechEncoder> {
    open_encoder(&fixture(name), Window::Clip, &placement(device, precision)).unwrap()
}

fn language_model(name: &str, device: DeviceChoice, precision: PrecisionChoice) -> Box<dyn LanguageModel> {
    open_language_model(&fixture(name), &placement(device, precision)).unwrap()
}

#[test]
fn every_hidden_state_of_every_encoder_is_the_cpu_s() {
    let Some(device) = device("every_hidden_state_of_every_encoder_is_the_cpu_s") else {
        return;
    };
    for name in ENCODERS {
        let [cpu, other] =
            [DeviceChoice::Cpu, device].map(|device| encoder(name, device, PrecisionChoice::F32));
        // Where there is no limit, more frames than distance buckets.
        let longest = cpu.info().max_samples.unwrap_or(340_000).min(340_000);
        let clips = [noise(20_000, 1), noise(9_001, 2), noise(longest, 3)];
        let clips: Vec<&[f32]> = clips.iter().map(Vec::as_slice).collect();

        let (right, found) = (
            cpu.hidden_states(&clips).unwrap(),
            other.hidden_states(&clips).unwrap(),
        );

        assert_eq!(found.lengths, right.lengths, "{name}");
        let pairs = found.states.iter().zip(&right.states).enumerate();
        for (layer, (found, right)) in pairs.chain([(usize::MAX, (&found.last, &right.last))]) {
            assert_close(&format!("{name}, state {layer}"), found, right, convolved());
        }
        let mix = waves(&[3, cpu.info().layers + 1], 1.0);
        let (right, found) = (
            cpu.encode(&clips, &mix).unwrap(),
            other.encode(&clips, &mix).unwrap(),
        );
        assert_close(
            &format!("{name}, mixed"),
            &found.features,
            &right.features,
            convolved(),
        );
    }
}

#[test]
fn encoders_in_bf16_stay_as_near_to_f32_as_on_the_cpu() {
    let Some(device) = device("encoders_in_bf16_stay_as_near_to_f32_as_on_the_cpu") else {
        return;
    };
    let clips = [noise(20_000, 1), noise(9_001, 2)];
    let clips: Vec<&[f32]> = clips.iter().map(Vec::as_slice).collect();
    for name in ENCODERS {
        let last = |device, precision| {
            encoder(name, device, precision)
                .hidden_states(&clips)
                .unwrap()
                .last
        };

        let found = last(device, PrecisionChoice::Bf16);

        assert_eq!(found.kind(), Kind::BFloat16, "{name}");
        let (exact, usual) = (
            last(DeviceChoice::Cpu, PrecisionChoice::F32),
            last(DeviceChoice::Cpu, PrecisionChoice::Bf16),
        );
        assert_bf16(name, &found, &usual, &exact);
    }
}

/// Two embedded prompts of 5 and 9 positions, where the model is.
fn prompts(model: &dyn LanguageModel) -> Vec<Tensor> {
    let table = model.embedding_table();
    [5, 9]
        .map(|positions| {
            (waves(&[positions, model.info().width], positions as f64) * 2.0)
                .to_device(table.device())
                .to_kind(table.kind())
        })
        .into()
}

const ANSWERS: [&[i64]; 2] = [&[7, 21, 9], &[30, 8, 15, 22]];

#[test]
fn language_models_teach_and_carry_gradients_as_on_the_cpu() {
    let Some(device) = device("language_models_teach_and_carry_gradients_as_on_the_cpu") else {
        return;
    };
    for name in LANGUAGE_MODELS {
        let [right, found] = [DeviceChoice::Cpu, device].map(|device| {
            let model = language_model(name, device, PrecisionChoice::F32);
            let lora = lora(&model.lora_sites(), model.embedding_table().device());
            let prompts: Vec<Tensor> = (prompts(model.as_ref()).iter())
                .map(|prompt| prompt.set_requires_grad(true))
                .collect();
            let scores = model
                .teacher_forced_logits(&prompts, &ANSWERS, Some(&lora))
                .unwrap();
            scores
                .log_softmax(-1, Kind::Float)
                .select(1, 11)
                .sum(Kind::Float)
                .backward();
            let gradients = lora
                .parameters()
                .into_iter()
                .map(|(name, value)| (name, value.grad()));
            let prompts = prompts
                .iter()
                .enumerate()
                .map(|(row, value)| (format!("prompt {row}"), value.grad()));
            [("scores".to_owned(), scores)]
                .into_iter()
                .chain(prompts)
                .chain(gradients)
                .collect::<Vec<_>>()
        });

        for ((what, right), (_, found)) in right.iter().zip(&found) {
            assert_close(&format!("{name}, {what}"), found, right, EXACT);
        }
    }
}

#[test]
fn prefill_step_and_every_kind_of_search_answer_as_on_the_cpu() {
    let Some(device) = device("prefill_step_and_every_kind_of_search_answer_as_on_the_cpu") else {
        return;
    };
    let beams = Strategy::Beam(BeamSettings {
        width: 3,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::No,
    });
    for name in LANGUAGE_MODELS {
        let [right, found] = [DeviceChoice::Cpu, device].map(|device| {
            let _no_grad = tch::no_grad_guard();
            let model = language_model(name, device, PrecisionChoice::F32);
            let lora = lora(&model.lora_sites(), model.embedding_table().device());
            let prompts = prompts(model.as_ref());
            let batch = Tensor::pad_sequence(&prompts, true, 0.0, "right");
            let mut cache = model.new_cache(3, 9, 8);
            let mut scores = vec![
                model
                    .prefill(&batch, &[5, 9], &mut cache, &[2, 0], Some(&lora))
                    .unwrap(),
            ];
            for ids in [[7, 30], [21, 8]] {
                scores.push(model.step(&ids, &mut cache, &[2, 0], Some(&lora)).unwrap());
            }
            let answers = [Strategy::Greedy, beams].map(|strategy| {
                let options = DecodeOptions {
                    strategy,
                    ..DecodeOptions::greedy(12)
                };
                let answers = generate_alike(model.as_ref(), &prompts, options, 6, &[1]).unwrap();
                answers.into_iter().map(|answer| answer.ids).collect::<Vec<_>>()
            });
            (scores, answers)
        });

        for (at, (right, found)) in right.0.iter().zip(&found.0).enumerate() {
            assert_close(&format!("{name}, token {at}"), found, right, EXACT);
        }
        assert_eq!(found.1, right.1, "{name}");
    }
}

#[test]
fn language_models_in_bf16_stay_as_near_to_f32_as_on_the_cpu() {
    let Some(device) = device("language_models_in_bf16_stay_as_near_to_f32_as_on_the_cpu") else {
        return;
    };
    for name in LANGUAGE_MODELS {
        let scores = |device, precision| {
            let _no_grad = tch::no_grad_guard();
            let model = language_model(name, device, precision);
            model
                .teacher_forced_logits(&prompts(model.as_ref()), &ANSWERS, None)
                .unwrap()
        };

        // int8 is for the CPU; elsewhere it means bf16.
        let precision = match device {
            DeviceChoice::Cpu => PrecisionChoice::Bf16,
            _ => PrecisionChoice::Int8,
        };
        let found = scores(device, precision);

        let (exact, usual) = (
            scores(DeviceChoice::Cpu, PrecisionChoice::F32),
            scores(DeviceChoice::Cpu, PrecisionChoice::Bf16),
        );
        assert_bf16(name, &found, &usual, &exact);
    }
}

#[test]
fn a_constrained_answer_is_the_cpu_s_and_one_of_the_list() {
    let Some(device) = device("a_constrained_answer_is_the_cpu_s_and_one_of_the_list") else {
        return;
    };
    let labels: Vec<String> = ["happy", "sad", "neutral"].map(str::to_owned).into();
    let folder = tempfile::tempdir().unwrap();
    let models = TinyModels::write(folder.path(), 5);
    for folder in [&models.llm, &models.t5] {
        let [right, found] = [DeviceChoice::Cpu, device].map(|device| {
            let model = SpeechLlm::open(folder, Some(""), &placement(device, PrecisionChoice::F32)).unwrap();
            let width = model.llm().info().width;
            let prompts = model
                .prompts(
                    &waves(&[2, 6, width], 0.5),
                    &[6, 4],
                    &["How do they feel?", "Name it."],
                )
                .unwrap();
            let grammar = OutputGrammar::of(GrammarPiece::Choice(labels.clone().into()));
            let grammar = model.compile(&grammar).unwrap();
            let prompts = (prompts.into_iter())
                .map(|embeds| Prompt {
                    embeds,
                    prefix: std::sync::Arc::default(),
                    options: DecodeOptions::greedy(24),
                    grammar: grammar.clone(),
                    lora: None,
                    joint: None,
                    labels: Vec::new(),
                })
                .collect();
            let vocabulary = model.tokenizer().vocab_size();
            let answers = generate_all(model.llm(), prompts, 2, model.end_ids(), vocabulary, &[]).unwrap();
            answers
                .iter()
                .map(|answer| model.text(answer).unwrap())
                .collect::<Vec<_>>()
        });

        assert_eq!(found, right);
        assert!(found.iter().all(|answer| labels.contains(answer)), "{found:?}");
    }
}

/// What is on the CPU may be given to a model anywhere, and what a model gives is where it is.
#[test]
fn embeddings_are_where_the_model_is() {
    let Some(device) = device("embeddings_are_where_the_model_is") else {
        return;
    };
    let wanted = match device {
        DeviceChoice::Cuda(number) => Device::Cuda(number),
        _ => Device::Cpu,
    };
    for name in LANGUAGE_MODELS {
        let model = language_model(name, device, PrecisionChoice::F32);

        assert_eq!(model.embed(&[3, 4]).unwrap().device(), wanted, "{name}");
        assert_eq!(model.embedding_table().device(), wanted, "{name}");
    }
}

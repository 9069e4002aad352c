use super::*;
use crate::inference::DecodeOptions;
use crate::models::EncoderInfo;
use crate::models::adapter::{AdapterConfig, embedding_rms};
use crate::models::config::AdapterSettings;
use crate::nn::lora::LoraConfig;
use crate::nn::optimizer::{AdamW, AdamWConfig, Parameter};
use crate::testing::TinyModels;
use crate::testing::generate_alike;

struct Bench {
    _folder: tempfile::TempDir,
    llm: SpeechLlm,
    adapter: SpeechAdapter,
}

fn bench() -> Bench {
    bench_of(|models| models.llm.clone())
}

/// The same with a decoder-only model and with an encoder–decoder.
fn benches() -> [Bench; 2] {
    [bench(), bench_of(|models| models.t5.clone())]
}

fn bench_of(choose: fn(&TinyModels) -> std::path::PathBuf) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let models = TinyModels::write(folder.path(), 7);
    let llm = SpeechLlm::open(&choose(&models), Some(""), &Placement::reference()).unwrap();
    let encoder = EncoderInfo {
        layers: 2,
        width: 32,
        frames_per_second: 50.0,
        max_samples: None,
    };
    let config = AdapterConfig::new(&AdapterSettings::default(), &encoder, &llm.llm().info()).unwrap();
    let gain = embedding_rms(&llm.llm().embedding_table()).unwrap();
    let adapter = SpeechAdapter::new(config, gain, 3, Device::Cpu).unwrap();
    Bench {
        _folder: folder,
        llm,
        adapter,
    }
}

fn features(rows: i64, frames: i64) -> Tensor {
    (Tensor::arange(rows * frames * 32, (Kind::Float, Device::Cpu)) * 0.7)
        .sin()
        .view([rows, frames, 32])
        * 2.0
}

/// Prompts around what the adapter makes of `features` `[B, T, D]`.
fn prompts(
    bench: &Bench,
    features: &Tensor,
    lengths: &[i64],
    instructions: &[&str],
) -> Result<Vec<Tensor>, InferenceError> {
    let statistics = Tensor::zeros([features.size()[0], 3, 64], (Kind::Float, Device::Cpu));
    let frames = bench.adapter.forward(features, lengths)?;
    let adapted = bench.adapter.positions(&frames, &statistics)?;
    (bench.llm).prompts(&adapted.positions, &adapted.lengths, instructions)
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

#[test]
fn the_audio_stands_between_prefix_and_suffix() {
    let bench = bench();
    let positions = bench.adapter.forward(&features(1, 9), &[9]).unwrap().positions;

    let prompt = &prompts(&bench, &features(1, 9), &[9], &["Hi."]).unwrap()[0];

    let ids = bench.llm.layout.render(bench.llm.tokenizer(), "Hi.").unwrap();
    let before = i64::try_from(ids.prefix.len()).unwrap();
    assert_eq!(
        prompt.size(),
        [before + 3 + i64::try_from(ids.suffix.len()).unwrap(), 48]
    );
    assert_eq!(prompt.narrow(0, before, 3), positions.get(0));
    assert_eq!(
        prompt.narrow(0, 0, before),
        bench.llm.llm().embed(&ids.prefix).unwrap()
    );
}

#[test]
fn an_encoder_decoder_reads_audio_then_instruction_then_the_end() {
    let [_, bench] = benches();
    let positions = bench.adapter.forward(&features(1, 9), &[9]).unwrap().positions;

    let prompt = &prompts(&bench, &features(1, 9), &[9], &["Hi."]).unwrap()[0];

    assert_eq!(prompt.size(), [3 + 3 + 1, 48]);
    assert_eq!(prompt.narrow(0, 0, 3), positions.get(0));
    let text = [bench.llm.tokenizer().encode_plain("Hi.").unwrap(), vec![257]].concat();
    assert_eq!(prompt.narrow(0, 3, 4), bench.llm.llm().embed(&text).unwrap());
    assert_eq!(bench.llm.answer_ids("ab").unwrap().last(), Some(&257));
}

#[test]
fn the_loss_is_the_mean_negative_log_likelihood_of_answer_tokens() {
    let bench = bench();
    let prompts = prompts(&bench, &features(2, 12), &[12, 7], &["Hi.", "Say it."]).unwrap();
    let answers = [
        bench.llm.answer_ids("abc").unwrap(),
        bench.llm.answer_ids("z").unwrap(),
    ];

    let found = bench
        .llm
        .loss(&prompts, &[&answers[0], &answers[1]], None)
        .unwrap();

    let (mut sum, mut count) = (0.0, 0);
    for (prompt, answer) in prompts.iter().zip(&answers) {
        let whole = Tensor::cat(
            &[prompt.shallow_clone(), bench.llm.llm().embed(answer).unwrap()],
            0,
        );
        let read = bench.llm.llm().prompt_logits(&whole, None).unwrap();
        let scores = read.log_softmax(-1, Kind::Double);
        for (at, id) in answer.iter().enumerate() {
            sum -= scores.double_value(&[prompt.size()[0] - 1 + i64::try_from(at).unwrap(), *id]);
            count += 1;
        }
    }
    assert_eq!(found.tokens, count);
    #[expect(clippy::cast_precision_loss, reason = "a few tokens")]
    let expected = sum / count as f64;
    assert!((found.loss.double_value(&[]) - expected).abs() < 1e-4);
}

#[test]
fn a_row_is_the_same_alone_and_in_a_padded_batch() {
    for bench in benches() {
        let noise = features(2, 30);
        let asked = ["Transcribe the speech.", "Hi."];
        let batch = prompts(&bench, &noise, &[30, 11], &asked).unwrap();
        let alone = prompts(
            &bench,
            &noise.narrow(0, 1, 1).narrow(1, 0, 11),
            &[11],
            &asked[1..],
        )
        .unwrap();

        assert!(largest(&(&batch[1] - &alone[0])) < 1e-5);
        let answer = bench.llm.answer_ids("ok").unwrap();
        let one = bench
            .llm
            .loss(&alone, &[&answer], None)
            .unwrap()
            .loss
            .double_value(&[]);
        let two = bench
            .llm
            .loss(&batch, &[&answer, &answer], None)
            .unwrap()
            .loss
            .double_value(&[]);
        let first = bench
            .llm
            .loss(&batch[..1], &[&answer], None)
            .unwrap()
            .loss
            .double_value(&[]);
        assert!((two - (one + first) / 2.0).abs() < 1e-5);
        let options = DecodeOptions {
            stop_loops: false,
            ..DecodeOptions::greedy(8)
        };
        let end_ids = bench.llm.end_ids();
        let answers =
            |prompts: &[Tensor]| generate_alike(bench.llm.llm(), prompts, options, 2, end_ids).unwrap();
        assert_eq!(answers(&batch)[1].ids, answers(&alone)[0].ids);
    }
}

#[test]
fn gradients_reach_the_adapter_and_nothing_else() {
    for bench in benches() {
        let prompts = prompts(&bench, &features(1, 12), &[12], &["Hi."]).unwrap();
        let answer = bench.llm.answer_ids("abc").unwrap();

        bench
            .llm
            .loss(&prompts, &[&answer], None)
            .unwrap()
            .loss
            .backward();

        assert!(!bench.llm.llm().embedding_table().requires_grad());
        for (name, variable) in bench.adapter.variables() {
            // The mix is not part of this test's path: the features were mixed before.
            if name != "mix.weight" {
                assert!(largest(&variable.grad()) > 0.0, "{name}");
            }
        }
    }
}

#[test]
fn fresh_lora_changes_nothing_and_learns() {
    for bench in benches() {
        let lora = LoraSet::new(LoraConfig::default(), &bench.llm.llm().lora_sites(), Device::Cpu).unwrap();
        let prompts = prompts(&bench, &features(1, 12), &[12], &["Hi."]).unwrap();
        let answer = bench.llm.answer_ids("abc").unwrap();

        let without = bench.llm.loss(&prompts, &[&answer], None).unwrap().loss;
        let with = bench.llm.loss(&prompts, &[&answer], Some(&lora)).unwrap().loss;

        assert_eq!(without.double_value(&[]), with.double_value(&[]));
        with.backward();
        for (name, variable) in lora.parameters() {
            let moves = variable.grad().defined() && largest(&variable.grad()) > 0.0;
            // While B is zero, A has no say and no gradient.
            assert_eq!(moves, name.contains("lora_B"), "{name}");
        }
    }
}

#[test]
fn a_tiny_batch_can_be_learned_by_heart_through_the_frozen_model() {
    for bench in benches() {
        let noise = features(2, 40);
        let answers = [
            bench.llm.answer_ids("ab").unwrap(),
            bench.llm.answer_ids("xyz").unwrap(),
        ];
        let parameters = bench
            .adapter
            .variables()
            .into_iter()
            .map(|(name, tensor)| Parameter {
                name,
                tensor,
                rate_factor: 1.0,
                decay_factor: 0.0,
            })
            .collect();
        let mut optimizer = AdamW::new(AdamWConfig::default(), parameters).unwrap();
        let before = bench.llm.llm().embedding_table().copy();
        let prompts = || prompts(&bench, &noise, &[40, 31], &["Hi.", "Hi."]).unwrap();
        let mut last = f64::NAN;

        for _ in 0..300 {
            optimizer.zero_grad();
            let loss = bench
                .llm
                .loss(&prompts(), &[&answers[0], &answers[1]], None)
                .unwrap()
                .loss;
            loss.backward();
            optimizer.scale_grads(1.0 / optimizer.grad_norm().max(1.0));
            optimizer.step(0.01);
            last = loss.double_value(&[]);
            if last < 0.02 {
                break;
            }
        }

        assert!(last < 0.3, "{last}");
        let found = generate_alike(
            bench.llm.llm(),
            &prompts(),
            DecodeOptions::greedy(8),
            2,
            bench.llm.end_ids(),
        );
        let texts: Vec<String> = (found.unwrap().iter())
            .map(|found| bench.llm.text(found).unwrap())
            .collect();
        assert_eq!(texts, ["ab", "xyz"]);
        assert_eq!(bench.llm.llm().embedding_table(), before);
    }
}

#[test]
fn wrong_batches_are_errors() {
    for bench in benches() {
        let made = prompts(&bench, &features(1, 12), &[12], &["Hi."]).unwrap();

        assert!(prompts(&bench, &features(1, 12), &[12], &[]).is_err());
        assert!(bench.llm.loss(&made, &[&[]], None).is_err());
        assert!(bench.llm.loss(&made, &[], None).is_err());
        assert!(bench.llm.loss(&made, &[&[999_999, 1]], None).is_err());
    }
}

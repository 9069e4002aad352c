mod learning;

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::*;
use crate::inference::DecodeOptions;
use crate::models::tests::{filled_lora, fixture, reference, relative_error};
use crate::models::{probe, tests};
use crate::nn::lora::LoraConfig;
use crate::testing::generate_alike;

const FIXTURES: [&str; 3] = ["t5_gated", "t5_relu", "t5_tied"];

#[derive(serde::Deserialize)]
struct Expected {
    ids: Vec<i64>,
    decoder_ids: Vec<i64>,
    lengths: Vec<i64>,
    answers: Vec<Vec<i64>>,
    greedy: Vec<Vec<i64>>,
}

fn open(name: &str) -> T5 {
    T5::open(&fixture(name), Device::Cpu, Kind::Float).unwrap()
}

fn expected(name: &str) -> Expected {
    tests::expected(name)
}

/// What the fixtures' script feeds as audio: a padded batch, and each row alone.
fn audio(model: &T5, lengths: &[i64]) -> (Tensor, Vec<Tensor>) {
    let (rows, longest) = (lengths.len() as i64, *lengths.iter().max().unwrap());
    let count = rows * longest * model.config.width;
    let batch = (Tensor::arange(count, (Kind::Float, Device::Cpu)) * 0.7)
        .sin()
        .view([rows, longest, model.config.width])
        * 2.0;
    let alone = (0..rows)
        .map(|row| batch.get(row).narrow(0, 0, lengths[row as usize]))
        .collect();
    (batch, alone)
}

fn answers(expected: &Expected) -> Vec<&[i64]> {
    expected.answers.iter().map(Vec::as_slice).collect()
}

const ALL_TARGETS: [&str; 6] = ["q", "k", "v", "o", "wi_0", "wo"];

#[test]
fn every_hidden_state_and_the_logits_equal_transformers() {
    for name in FIXTURES {
        let expected = expected(name);
        let checkpoint = Checkpoint::open_file(fixture(name).join("expected.safetensors")).unwrap();
        let mut reference = checkpoint.loader(Device::Cpu, Kind::Float);
        reference.ignore("taught");

        let outputs = probe::llm(&fixture(name), &expected.ids, Some(&expected.decoder_ids)).unwrap();

        for (output, found) in outputs {
            let error = relative_error(&found, &reference.take(&output, &found.size()));
            assert!(error <= 1e-5, "{name} {output}: {error:e}");
        }
        reference.finish().unwrap();
    }
}

#[test]
fn a_ragged_batch_of_embeddings_is_teacher_forced_as_by_transformers() {
    for name in FIXTURES {
        let (model, expected) = (open(name), expected(name));
        let (_, prompts) = audio(&model, &expected.lengths);

        let forced = model
            .teacher_forced_logits(&prompts, &answers(&expected), None)
            .unwrap();

        let error = relative_error(&forced, &reference(name, "taught", &forced.size()));
        assert!(error <= 1e-5, "{name}: {error:e}");
        let read = model.prompt_logits(&prompts[1], None).unwrap();
        assert!(relative_error(&read.get(0), &forced.get(3)) <= 1e-5);
    }
}

#[test]
fn a_clip_gives_the_same_logits_alone_and_in_a_padded_batch() {
    for name in FIXTURES {
        let (model, expected) = (open(name), expected(name));
        let (batch, prompts) = audio(&model, &expected.lengths);
        let lora = filled_lora(&model, &["q", "v", "wo"], 0.3);
        for lora in [None, Some(&lora)] {
            let answers = answers(&expected);
            let together = model.teacher_forced_logits(&prompts, &answers, lora).unwrap();
            let mut cache = model.new_cache(3, 45, 4);
            let first = model
                .prefill(&batch, &expected.lengths, &mut cache, &[2, 0, 1], lora)
                .unwrap();
            let mut at = 0;
            for (row, (prompt, answer)) in prompts.iter().zip(&answers).enumerate() {
                let alone = model
                    .teacher_forced_logits(&[prompt.shallow_clone()], &[answer], lora)
                    .unwrap();
                let own = together.narrow(0, at, answer.len() as i64);
                assert!(relative_error(&own, &alone) <= 1e-5, "{name} row {row}");
                assert!(relative_error(&first.get(row as i64), &alone.get(0)) <= 1e-5);
                at += answer.len() as i64;
            }
        }
    }
}

#[test]
fn greedy_answers_equal_transformers_alone_and_beside_others() {
    for name in FIXTURES {
        let (model, expected) = (open(name), expected(name));
        let (_, prompts) = audio(&model, &expected.lengths);
        let options = DecodeOptions {
            stop_loops: false,
            ..DecodeOptions::greedy(expected.greedy[0].len())
        };

        let alone = generate_alike(&model, &prompts, options, 1, &[]).unwrap();
        let beside = generate_alike(&model, &prompts, options, 3, &[]).unwrap();

        for ((alone, beside), wanted) in alone.iter().zip(&beside).zip(&expected.greedy) {
            assert_eq!((&alone.ids, &beside.ids), (wanted, wanted), "{name}");
        }
    }
}

#[test]
fn stepping_equals_teaching() {
    let _no_grad = tch::no_grad_guard();
    for name in FIXTURES {
        let (model, expected) = (open(name), expected(name));
        let lora = filled_lora(
            &model,
            &["k", "v", "decoder.block.0.layer.1.EncDecAttention.q", "wo"],
            0.3,
        );
        let prompt = model.embed(&expected.ids).unwrap();
        let answer = &expected.decoder_ids[1..];
        for lora in [None, Some(&lora)] {
            let whole = model
                .teacher_forced_logits(&[prompt.shallow_clone()], &[answer], lora)
                .unwrap();
            let mut cache = model.new_cache(1, 45, 30);
            let mut found = model
                .prefill(&prompt.unsqueeze(0), &[45], &mut cache, &[0], lora)
                .unwrap();
            for (position, id) in answer.iter().enumerate() {
                let error = relative_error(&found.get(0), &whole.get(position as i64));
                assert!(error < 1e-5, "{name} {position}: {error:e}");
                if position + 1 < answer.len() {
                    found = model.step(&[*id], &mut cache, &[0], lora).unwrap();
                }
            }
            assert!(model.step(&[2], &mut cache, &[0], lora).is_err());
        }
    }
}

#[test]
fn slots_join_leave_and_change_places_and_the_others_do_not_notice() {
    let (model, expected) = (open("t5_gated"), expected("t5_gated"));
    let (batch, prompts) = audio(&model, &expected.lengths);
    let script = &expected.decoder_ids[1..8];
    let wanted: Vec<Tensor> = prompts
        .iter()
        .map(|prompt| {
            model
                .teacher_forced_logits(&[prompt.shallow_clone()], &[script], None)
                .unwrap()
        })
        .collect();
    let check = |found: &Tensor, row: i64, sequence: usize, position: i64| {
        let error = relative_error(&found.get(row), &wanted[sequence].get(position));
        assert!(
            error < 1e-5,
            "row {row}, sequence {sequence} at {position}: {error:e}"
        );
    };
    let mut cache = model.new_cache(4, 45, 8);
    let join = |cache: &mut KvCache, sequence: usize, slot: usize| {
        let length = expected.lengths[sequence];
        let own = batch.narrow(0, sequence as i64, 1);
        let logits = model.prefill(&own, &[length], cache, &[slot], None).unwrap();
        check(&logits, 0, sequence, 0);
    };

    join(&mut cache, 1, 3);
    join(&mut cache, 0, 1);
    let logits = model
        .step(&[script[0], script[0]], &mut cache, &[1, 3], None)
        .unwrap();
    check(&logits, 0, 0, 1);
    check(&logits, 1, 1, 1);
    join(&mut cache, 2, 2);
    let ids = [script[1], script[0], script[1]];
    let logits = model.step(&ids, &mut cache, &[1, 2, 3], None).unwrap();
    check(&logits, 0, 0, 2);
    check(&logits, 1, 2, 1);
    check(&logits, 2, 1, 2);
    // A beam: both slots go on with the first one's sequence; another slot takes over a third.
    cache.reorder(&[0, 1, 3], &[1, 3, 2]).unwrap();
    let ids = [script[2], script[2], script[1]];
    let logits = model.step(&ids, &mut cache, &[0, 1, 3], None).unwrap();
    check(&logits, 0, 0, 3);
    check(&logits, 1, 1, 3);
    check(&logits, 2, 2, 2);
    // One leaves, a shorter one takes its place.
    cache.clear(1);
    join(&mut cache, 0, 1);
    let logits = model
        .step(&[script[0], script[1]], &mut cache, &[1, 2], None)
        .unwrap();
    check(&logits, 0, 0, 1);
    check(&logits, 1, 2, 2);
}

#[test]
fn what_a_former_sequence_left_in_a_slot_cannot_poison_the_next() {
    let (model, expected) = (open("t5_relu"), expected("t5_relu"));
    let (batch, prompts) = audio(&model, &expected.lengths);
    let mut cache = model.new_cache(2, 45, 4);
    let poison = batch.narrow(0, 0, 1).full_like(f64::NAN);
    let bad = model.prefill(&poison, &[45], &mut cache, &[0], None).unwrap();
    assert_eq!(bad.isnan().any().int64_value(&[]), 1);
    let _ = model.step(&[5], &mut cache, &[0], None).unwrap();

    let _ = model
        .prefill(
            &batch.narrow(0, 0, 2),
            &expected.lengths[..2],
            &mut cache,
            &[0, 1],
            None,
        )
        .unwrap();
    let logits = model.step(&[7, 3], &mut cache, &[0, 1], None).unwrap();

    let wanted = model
        .teacher_forced_logits(&prompts[..1], &[&[7, 9]], None)
        .unwrap();
    assert!(relative_error(&logits.get(0), &wanted.get(1)) < 1e-5);
}

#[test]
fn bf16_stays_close_to_f32_in_steps_and_in_training_and_f16_is_refused() {
    for name in FIXTURES {
        let expected = expected(name);
        let run = |dtype: Kind| {
            let model = T5::open(&fixture(name), Device::Cpu, dtype).unwrap();
            let lora = filled_lora(&model, &["q", "wo"], 0.1);
            let served = lora.snapshot(dtype, Device::Cpu).unwrap();
            let (batch, prompts) = audio(&model, &expected.lengths);
            let variable = prompts[0].copy().set_requires_grad(true);
            let forced = model
                .teacher_forced_logits(&[variable.to_kind(dtype)], &[&expected.answers[0]], Some(&lora))
                .unwrap();
            forced.square().mean(Kind::Float).sqrt().backward();
            let mut cache = model.new_cache(3, 45, 4);
            let lengths = &expected.lengths;
            let first = model
                .prefill(&batch, lengths, &mut cache, &[0, 1, 2], Some(&served))
                .unwrap();
            let second = model
                .step(&[3, 4, 5], &mut cache, &[0, 1, 2], Some(&served))
                .unwrap();
            assert_eq!((first.kind(), forced.kind()), (Kind::Float, Kind::Float));
            (Tensor::cat(&[first, second, forced.detach()], 0), variable.grad())
        };

        let ((wide, wide_gradient), (narrow, narrow_gradient)) = (run(Kind::Float), run(Kind::BFloat16));

        let error = relative_error(&narrow, &wide);
        assert!(error < 0.06, "{name}: {error}");
        let error = (&narrow_gradient - &wide_gradient).norm() / wide_gradient.norm();
        assert!(error.double_value(&[]) < 0.1, "{name}: {error:?}");
    }
    let error = T5::open(&fixture("t5_relu"), Device::Cpu, Kind::Half).unwrap_err();
    assert!(error.to_string().contains("use bf16 or f32"), "{error}");
}

#[test]
fn input_that_does_not_fit_is_an_error_and_changes_nothing() {
    let model = open("t5_gated");
    let mut cache = model.new_cache(2, 6, 3);
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));

    for id in [61, -1] {
        assert!(matches!(
            model.embed(&[id]),
            Err(ModelError::TokenOutOfRange { .. })
        ));
        // The last token of an answer is never fed, and checked all the same.
        let refused = model.teacher_forced_logits(&[zeros(&[2, 24])], &[&[3, id]], None);
        assert!(matches!(refused, Err(ModelError::TokenOutOfRange { .. })));
    }
    for (prompt, answer) in [
        (zeros(&[2, 23]), &[1i64][..]),
        (zeros(&[0, 24]), &[1]),
        (zeros(&[24]), &[1]),
        (zeros(&[2, 24]), &[]),
    ] {
        let refused = model.teacher_forced_logits(&[prompt], &[answer], None);
        assert!(matches!(refused, Err(ModelError::Shape { .. })));
    }
    assert!(model.teacher_forced_logits(&[], &[], None).is_err());
    for (embeds, lengths, slots) in [
        (zeros(&[1, 3, 24]), vec![3], &[2usize][..]),
        (zeros(&[1, 3, 24]), vec![4], &[0]),
        (zeros(&[1, 3, 24]), vec![0], &[0]),
        (zeros(&[1, 7, 24]), vec![7], &[0]),
        (zeros(&[2, 3, 24]), vec![3, 3], &[0, 0]),
        (zeros(&[1, 3, 24]), vec![3], &[]),
    ] {
        assert!(model.prefill(&embeds, &lengths, &mut cache, slots, None).is_err());
    }
    assert_eq!(cache.length(0), 0);

    let _ = model
        .prefill(&zeros(&[1, 6, 24]), &[6], &mut cache, &[0], None)
        .unwrap();
    for _ in 0..2 {
        let _ = model.step(&[4], &mut cache, &[0], None).unwrap();
    }
    assert!(matches!(
        model.step(&[4], &mut cache, &[0], None),
        Err(ModelError::TooManyPositions {
            positions: 4,
            positions_max: 3
        })
    ));
}

#[test]
fn a_checkpoint_that_does_not_fit_its_configuration_is_refused_without_taking_memory() {
    let checkpoint = Checkpoint::open(fixture("t5_relu")).unwrap();
    let honest = T5Config::open(&fixture("t5_relu")).unwrap();
    let refused = |change: &dyn Fn(&mut T5Config)| {
        let mut config = honest.clone();
        change(&mut config);
        T5::load(config, &checkpoint, Device::Cpu, Kind::Float)
            .unwrap_err()
            .to_string()
    };

    let error = refused(&|config| {
        config.width = 1 << 17;
        config.inner_width = 1 << 20;
        config.heads = 1 << 12;
        config.max_distance = 1 << 16;
    });
    assert!(error.contains("misshapen"), "{error}");
    let error = refused(&|config| config.decoder_layers = 2);
    assert!(
        error.contains("unexpected") && error.contains("decoder.block.2"),
        "{error}"
    );
    let error = refused(&|config| config.gated = true);
    assert!(
        error.contains("wi_1.weight") && error.contains("unexpected"),
        "{error}"
    );
    // A head of its own is promised and not there.
    let error = refused(&|config| config.may_tie = false);
    assert!(
        error.contains("1 missing") && error.contains("lm_head.weight"),
        "{error}"
    );
}

#[test]
fn flan_t5_xl_has_the_papers_parameters_and_its_lora_the_papers_trainable_ones() {
    use crate::models::EncoderInfo;
    use crate::models::adapter::AdapterConfig;
    use crate::models::config::{AdapterSettings, LayerMix};

    // As published, the keys that decide the mathematics.
    let text = r#"{"model_type": "t5", "d_ff": 5120, "d_kv": 64, "d_model": 2048, "num_heads": 32, "num_layers": 24,
        "num_decoder_layers": 24, "vocab_size": 32128, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": true,
        "tie_word_embeddings": false, "relative_attention_num_buckets": 32, "decoder_start_token_id": 0,
        "layer_norm_epsilon": 1e-06, "output_past": true, "n_positions": 512}"#;
    let config = T5Config::parse(text, Path::new("config.json")).unwrap();

    let (tensors, sites) = T5::outline(&config);

    let parameters: i64 = tensors.values().map(|shape| shape.iter().product::<i64>()).sum();
    assert_eq!(parameters, 2_849_757_184);
    let trainable = |width: i64, mix, strides: &[i64], rank| {
        let settings = AdapterSettings {
            mix,
            strides: Some(strides.to_vec()),
            ..AdapterSettings::default()
        };
        let encoder = EncoderInfo {
            layers: 24,
            width,
            frames_per_second: 50.0,
            max_samples: None,
        };
        let llm = LanguageModelInfo {
            width: config.width,
            vocab: config.vocab_size,
            layers: 48,
            max_positions: POSITIONS_MAX,
        };
        let lora = LoraConfig {
            rank,
            ..LoraConfig::default()
        };
        let adapter = AdapterConfig::new(&settings, &encoder, &llm).unwrap();
        adapter.parameter_count() + lora.parameter_count(&sites).unwrap()
    };
    assert_eq!(trainable(1024, LayerMix::Last, &[2, 2], 16), 28_323_840); // WavLM
    assert_eq!(trainable(768, LayerMix::Paper, &[2, 1], 16), 26_751_000); // BEST-RQ
    assert_eq!(trainable(1024, LayerMix::Last, &[2, 2], 8), 23_605_248); // single tasks
}

#[test]
fn a_model_has_the_tensors_of_its_outline_and_no_others() {
    for name in FIXTURES {
        let checkpoint = Checkpoint::open(fixture(name)).unwrap();
        let (mut tensors, sites) = T5::outline(&T5Config::open(&fixture(name)).unwrap());
        for found in checkpoint.tensors() {
            let shape: Vec<i64> = found.shape.iter().map(|size| *size as i64).collect();
            assert_eq!(tensors.remove(&found.name), Some(shape), "{}", found.name);
        }
        assert!(tensors.is_empty(), "{tensors:?}");
        assert_eq!(open(name).lora_sites(), sites);
    }
}

//! Low-rank adapters and gradients.

use super::*;

#[test]
fn a_fresh_lora_set_changes_not_one_bit() {
    for name in FIXTURES {
        let (model, expected) = (open(name), expected(name));
        let (batch, prompts) = audio(&model, &expected.lengths);
        let fresh = LoraSet::new(LoraConfig::default(), &model.lora_sites(), Device::Cpu).unwrap();
        let attentions = model.config.encoder_layers + 2 * model.config.decoder_layers;
        assert_eq!(fresh.sites().len() as i64, 2 * attentions, "{name}");
        let filled = filled_lora(&model, &["EncDecAttention.v"], 0.3);
        let run = |lora: Option<&LoraSet>| {
            let mut cache = model.new_cache(3, 45, 20);
            let lengths = &expected.lengths;
            [
                model
                    .teacher_forced_logits(&prompts, &answers(&expected), lora)
                    .unwrap(),
                model
                    .prefill(&batch, lengths, &mut cache, &[0, 1, 2], lora)
                    .unwrap(),
                model.step(&[5, 6, 7], &mut cache, &[0, 1, 2], lora).unwrap(),
            ]
        };

        for ((base, fresh), filled) in run(None).iter().zip(run(Some(&fresh))).zip(run(Some(&filled))) {
            assert!(base.equal(&fresh), "{name}");
            assert!(!base.equal(&filled), "{name}");
        }
    }
}

#[test]
fn a_folder_that_peft_wrote_gives_the_logits_of_peft() {
    let (model, expected) = (open("t5_gated"), expected("t5_gated"));
    let lora = LoraSet::open(&fixture("t5_peft"), &model.lora_sites(), Device::Cpu).unwrap();
    // Queries and values everywhere are what peft chose by itself.
    assert_eq!((lora.config().rank, lora.sites().len()), (3, 12));
    let prompt = model.embed(&expected.ids).unwrap();
    let answer = [&expected.decoder_ids[1..], &[1]].concat();

    let logits = model
        .teacher_forced_logits(&[prompt], &[&answer], Some(&lora))
        .unwrap();

    let error = relative_error(&logits, &reference("t5_peft", "logits", &logits.size()));
    assert!(error < 1e-5, "{error:e}");
}

#[test]
fn gradients_reach_prompts_and_lora_and_nothing_else() {
    for name in ["t5_gated", "t5_tied"] {
        let (model, expected) = (open(name), expected(name));
        let lora = filled_lora(&model, &ALL_TARGETS, 0.3);
        let (_, prompts) = audio(&model, &expected.lengths);
        let prompts: Vec<Tensor> = prompts
            .iter()
            .map(|prompt| prompt.copy().set_requires_grad(true))
            .collect();

        let logits = model
            .teacher_forced_logits(&prompts, &answers(&expected), Some(&lora))
            .unwrap();
        logits.narrow(0, 0, 3).square().sum(Kind::Float).backward();

        for (name, tensor) in lora.parameters() {
            let gradient = tensor.grad();
            let moves = gradient.defined() && gradient.abs().sum(Kind::Float).double_value(&[]) > 0.0;
            assert!(moves, "{name}");
        }
        let reached = |prompt: &Tensor| prompt.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0;
        // Only the first row was asked about.
        assert_eq!(
            prompts.iter().map(reached).collect::<Vec<_>>(),
            [true, false, false]
        );
        assert!(!model.embedding_table().requires_grad());
    }
}

#[test]
fn a_gradient_equals_a_difference_quotient() {
    let model = T5::open(&fixture("t5_gated"), Device::Cpu, Kind::Double).unwrap();
    let prompt = model.embed(&[5, 9, 33, 2, 60]).unwrap();
    let loss = |prompt: &Tensor| {
        let logits = model
            .teacher_forced_logits(&[prompt.shallow_clone()], &[&[4, 5, 1]], None)
            .unwrap();
        logits.to_kind(Kind::Double).square().sum(Kind::Double)
    };
    let variable = prompt.copy().set_requires_grad(true);
    loss(&variable).backward();
    let gradient = variable.grad();

    for (position, column) in [(0i64, 3i64), (2, 0), (4, 23)] {
        let shifted = |by: f64| {
            let moved = prompt.copy();
            let _ = moved.get(position).narrow(0, column, 1).g_add_scalar_(by);
            loss(&moved).double_value(&[])
        };
        // Scores leave in f32, so the step must not be too small.
        let quotient = (shifted(1e-3) - shifted(-1e-3)) / 2e-3;
        let found = gradient.double_value(&[position, column]);
        assert!(
            (found - quotient).abs() < 0.02 * quotient.abs().max(1.0),
            "{found} {quotient}"
        );
    }
}

//! Low-rank adapters, gradients, and attention as training computes it.

use super::*;

#[test]
fn a_fresh_lora_set_changes_not_one_bit() {
    for name in FIXTURES {
        let model = open(name);
        let ids = expected(name).ids;
        let config = LoraConfig {
            targets: ALL_TARGETS.iter().map(|target| (*target).to_owned()).collect(),
            ..LoraConfig::default()
        };
        let fresh = LoraSet::new(config, &model.lora_sites(), Device::Cpu).unwrap();
        assert_eq!(fresh.sites().len(), 14);
        let embeds = model.embed(&ids).unwrap().unsqueeze(0);
        let run = |lora: Option<&LoraSet>| {
            let mut cache = model.new_cache(1, 17, 3);
            let whole = model.logits(&model.hidden(&embeds, &[17], lora).unwrap());
            let first = model.prefill(&embeds, &[17], &mut cache, &[0], lora).unwrap();
            let second = model.step(&[5], &mut cache, &[0], lora).unwrap();
            [whole, first, second]
        };

        let filled = filled_lora(&model, &["v_proj"], 0.3);

        for ((base, fresh), filled) in run(None).iter().zip(run(Some(&fresh))).zip(run(Some(&filled))) {
            assert!(base.equal(&fresh), "{name}");
            assert!(!base.equal(&filled), "{name}");
        }
    }
}

#[test]
fn a_folder_that_peft_wrote_gives_the_logits_of_peft() {
    let model = open("llama_tiny");
    let ids = expected("llama_tiny").ids;
    let lora = LoraSet::open(&fixture("llama_peft"), &model.lora_sites(), Device::Cpu).unwrap();
    let reference = reference("llama_peft", "logits", &[17, 96]);

    let embeds = model.embed(&ids).unwrap().unsqueeze(0);
    let hidden = model.hidden(&embeds, &[17], Some(&lora)).unwrap();

    assert_eq!((lora.config().rank, lora.sites().len()), (3, 6));
    let error = relative_error(&model.logits(&hidden).get(0), &reference);
    assert!(error < 1e-5, "{error:e}");
}

#[test]
fn gradients_reach_embeddings_and_lora_and_nothing_else() {
    for name in FIXTURES {
        let model = open(name);
        let lora = filled_lora(&model, &ALL_TARGETS, 0.3);
        let ids = expected(name).ids;
        let (embeds, lengths) = padded(&model, &[&ids[..5], &ids[..9]]);
        let embeds = embeds.detach().set_requires_grad(true);

        let hidden = model.hidden(&embeds, &lengths, Some(&lora)).unwrap();
        let loss = model
            .logits(&hidden.get(0).narrow(0, 0, 5))
            .log_softmax(-1, Kind::Float);
        loss.select(1, 7).sum(Kind::Float).backward();

        for (name, tensor) in lora.parameters() {
            let gradient = tensor.grad();
            assert!(
                gradient.defined() && gradient.abs().sum(Kind::Float).double_value(&[]) > 0.0,
                "{name}"
            );
        }
        let gradient = embeds.grad();
        let valid = gradient
            .get(0)
            .narrow(0, 0, 5)
            .abs()
            .sum(Kind::Float)
            .double_value(&[]);
        let padding = gradient
            .get(0)
            .narrow(0, 5, 4)
            .abs()
            .sum(Kind::Float)
            .double_value(&[]);
        assert!(valid > 0.0 && padding == 0.0, "{valid} {padding}");
        assert!(!model.embedding_table().requires_grad());
    }
}

#[test]
fn a_gradient_equals_a_difference_quotient() {
    let model = Llama::open(&fixture("llama_qwen2"), Device::Cpu, Kind::Double).unwrap();
    let ids = expected("llama_qwen2").ids;
    let embeds = model.embed(&ids[..6]).unwrap().unsqueeze(0).detach();
    let loss = |embeds: &Tensor| {
        let hidden = model.hidden(embeds, &[6], None).unwrap();
        (&hidden * hidden.arange_like()).sum(Kind::Double)
    };
    let variable = embeds.copy().set_requires_grad(true);
    loss(&variable).backward();
    let gradient = variable.grad();

    for (position, column) in [(0i64, 3i64), (2, 0), (5, 31)] {
        let shifted = |by: f64| {
            let moved = embeds.copy();
            let _ = moved.get(0).get(position).narrow(0, column, 1).g_add_scalar_(by);
            loss(&moved).double_value(&[])
        };
        // Rotary positions are computed in f32, so the step must not be too small.
        let quotient = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
        let found = gradient.double_value(&[0, position, column]);
        assert!(
            (found - quotient).abs() < 0.02 * quotient.abs().max(1.0),
            "{found} {quotient}"
        );
    }
}

#[test]
fn attention_for_training_in_bf16_and_its_gradient_stay_close_to_f32() {
    for name in FIXTURES {
        let ids = expected(name).ids;
        let run = |dtype| {
            let model = Llama::open(&fixture(name), Device::Cpu, dtype).unwrap();
            let embeds = model
                .embed(&ids)
                .unwrap()
                .unsqueeze(0)
                .to_kind(Kind::Float)
                .detach();
            let embeds = embeds.set_requires_grad(true);
            let hidden = model
                .hidden(&embeds.to_kind(dtype), &[ids.len() as i64], None)
                .unwrap()
                .to_kind(Kind::Float);
            hidden.square().mean(Kind::Float).sqrt().backward();
            let weights = hidden.detach().view([-1]);
            (weights, embeds.grad())
        };

        let ((wide, wide_gradient), (narrow, narrow_gradient)) = (run(Kind::Float), run(Kind::BFloat16));

        assert!(
            relative_error(&narrow, &wide) < 0.06,
            "{name}: {}",
            relative_error(&narrow, &wide)
        );
        let error = (&narrow_gradient - &wide_gradient).norm().double_value(&[])
            / wide_gradient.norm().double_value(&[]);
        assert!(error < 0.1, "{name}: {error}");
    }
}

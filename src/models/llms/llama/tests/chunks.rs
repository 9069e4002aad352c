//! Prompts read in chunks.

use super::*;

/// Reads a prompt `[P, H]` into `slot` in chunks of `size`; what follows its end, `[1, V]`.
fn read(
    model: &Llama,
    prompt: &Tensor,
    size: i64,
    cache: &mut KvCache,
    slot: usize,
    lora: Option<&LoraSet>,
) -> Tensor {
    let chunks = prompt.split(size, 0).into_iter();
    let logits = chunks.map(|chunk| model.prefill_chunk(&chunk, 1, cache, slot, lora).unwrap());
    logits.last().unwrap()
}

#[test]
fn a_prompt_read_in_chunks_of_any_size_is_followed_by_what_follows_the_whole_prompt() {
    let _no_grad = tch::no_grad_guard();
    for name in FIXTURES {
        let model = open(name);
        let lora = filled_lora(&model, &["q_proj", "up_proj"], 0.3);
        let ids = expected(name).ids;
        let prompt = model.embed(&ids).unwrap();
        for lora in [None, Some(&lora)] {
            let run = |first: &dyn Fn(&mut KvCache) -> Tensor| {
                let mut cache = model.new_cache(1, 17, 2);
                let first = first(&mut cache);
                let second = model.step(&[9], &mut cache, &[0], lora).unwrap();
                assert_eq!(cache.length(0), 18);
                Tensor::cat(&[first, second], 0)
            };
            let whole = run(&|cache| {
                let embeds = prompt.unsqueeze(0);
                model.prefill(&embeds, &[17], cache, &[0], lora).unwrap()
            });
            for size in [1, 2, 5, 16, 17] {
                let found = run(&|cache| read(&model, &prompt, size, cache, 0, lora));
                let error = relative_error(&found, &whole);
                assert!(error < 1e-5, "{name}, chunks of {size}: {error:e}");
            }
        }
    }
}

#[test]
fn what_follows_the_last_positions_of_a_chunk_is_what_follows_them_one_by_one() {
    let _no_grad = tch::no_grad_guard();
    for name in FIXTURES {
        let model = open(name);
        let lora = filled_lora(&model, &["q_proj", "up_proj"], 0.3);
        let ids = expected(name).ids;
        let (prompt, count) = (model.embed(&ids).unwrap(), ids.len() as i64);
        let whole = model.prompt_logits(&prompt, Some(&lora)).unwrap();
        let mut cache = model.new_cache(3, count, 0);
        let rest = prompt.narrow(0, 4, count - 4);
        let _ = read(&model, &prompt.narrow(0, 0, 4), 4, &mut cache, 1, Some(&lora));
        for last in [1, 3, count - 4] {
            cache.truncate(1, 4);
            let found = (model.prefill_chunk(&rest, last, &mut cache, 1, Some(&lora))).unwrap();
            let error = relative_error(&found, &whole.narrow(0, count - last, last));
            assert!(error < 1e-5, "{name}, the last {last}: {error:e}");
        }
        // The same as tokens of a step, beside another sequence's.
        cache.truncate(1, 4);
        let _ = read(&model, &prompt.narrow(0, 0, 6), 6, &mut cache, 0, Some(&lora));
        let fed = [ids[4], ids[6], ids[5], ids[6], ids[7]];
        let found = (model.step(&fed, &mut cache, &[1, 0, 1, 1, 0], Some(&lora))).unwrap();
        for (row, position) in [4, 6, 5, 6, 7].into_iter().enumerate() {
            let error = relative_error(&found.get(row as i64), &whole.get(position));
            assert!(error < 1e-5, "{name}, row {row}: {error:e}");
        }
        assert_eq!((cache.length(0), cache.length(1)), (8, 7));
    }
}

#[test]
fn chunks_in_bf16_stay_close_to_the_whole_prompt_in_f32() {
    for name in FIXTURES {
        let (wide, narrow) = (
            open(name),
            Llama::open(&fixture(name), Device::Cpu, Kind::BFloat16).unwrap(),
        );
        let ids = expected(name).ids;
        let whole = {
            let states = wide.hidden_states(&ids).unwrap();
            wide.logits(&states.last().unwrap().narrow(0, 16, 1))
        };
        let mut cache = narrow.new_cache(1, 17, 1);

        let found = read(&narrow, &narrow.embed(&ids).unwrap(), 5, &mut cache, 0, None);

        let error = relative_error(&found, &whole);
        assert!(found.kind() == Kind::Float && error < 0.06, "{name}: {error:e}");
    }
}

#[test]
fn other_slots_step_between_the_chunks_of_a_prompt() {
    let model = open("llama_tiny");
    let ids = expected("llama_tiny").ids;
    let check = comparison(&model, &ids);
    let mut cache = model.new_cache(3, 14, 3);
    // What was in the slot before, longer than all others and not finite.
    let poison = Tensor::full([15, 32], f64::NAN, (Kind::Float, Device::Cpu));
    let _ = model.prefill_chunk(&poison, 1, &mut cache, 1, None).unwrap();
    cache.clear(1);
    let (embeds, lengths) = padded(&model, &[&ids[..4], &ids[..9]]);
    let _ = (model.prefill(&embeds, &lengths, &mut cache, &[0, 2], None)).unwrap();

    for part in 0..3usize {
        let chunk = model.embed(&ids[part * 4..part * 4 + 4]).unwrap();
        let logits = model.prefill_chunk(&chunk, 1, &mut cache, 1, None).unwrap();
        check(&logits, 0, part as i64 * 4 + 3);
        let logits = (model.step(&[ids[4 + part], ids[9 + part]], &mut cache, &[0, 2], None)).unwrap();
        check(&logits, 0, part as i64 + 4);
        check(&logits, 1, part as i64 + 9);
    }
    let logits = (model.step(&[ids[7], ids[12], ids[12]], &mut cache, &[0, 1, 2], None)).unwrap();
    check(&logits, 0, 7);
    check(&logits, 1, 12);
    check(&logits, 2, 12);
}

#[test]
fn a_chunk_that_makes_no_sense_is_an_error_and_leaves_the_slot_as_it_was() {
    let model = open("llama_tiny");
    let mut cache = model.new_cache(1, 3, 3);
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let _ = (model.prefill_chunk(&zeros(&[4, 32]), 1, &mut cache, 0, None)).unwrap();

    for (size, slot) in [
        (&[2i64, 31][..], 0),
        (&[0, 32], 0),
        (&[32], 0),
        (&[1, 2, 32], 0),
        (&[2, 32], 1),
    ] {
        let refused = model.prefill_chunk(&zeros(size), 1, &mut cache, slot, None);
        assert!(refused.is_err(), "{size:?} into slot {slot}");
    }
    for last in [0, -1, 3] {
        let refused = model.prefill_chunk(&zeros(&[2, 32]), last, &mut cache, 0, None);
        assert!(refused.is_err(), "the last {last} of two");
    }
    assert!(matches!(
        model.prefill_chunk(&zeros(&[3, 32]), 1, &mut cache, 0, None),
        Err(ModelError::TooManyPositions {
            positions: 7,
            positions_max: 6
        })
    ));
    assert_eq!(cache.length(0), 4);
}

#[test]
fn a_real_checkpoint_reads_a_long_prompt_in_chunks_as_it_reads_it_whole() {
    let test = "models::llms::llama::a_real_checkpoint_reads_a_long_prompt_in_chunks_as_it_reads_it_whole";
    let Some(folder) = crate::testing::real_model(test, "smollm2-135m-instruct") else {
        return;
    };
    let model = Llama::open(&folder, Device::Cpu, Kind::Float).unwrap();
    let ids: Vec<i64> = (0..200).map(|at| 100 + at * 37 % 5000).collect();
    let prompt = model.embed(&ids).unwrap();
    let mut cache = model.new_cache(2, 200, 1);

    let whole = (model.prefill(&prompt.unsqueeze(0), &[200], &mut cache, &[0], None)).unwrap();
    let chunks = read(&model, &prompt, 64, &mut cache, 1, None);

    let error = relative_error(&chunks, &whole);
    assert!(error < 1e-4, "{error:e}");
    let next = model.step(&[9, 9], &mut cache, &[0, 1], None).unwrap();
    let error = relative_error(&next.get(1), &next.get(0));
    assert!(error < 1e-4, "{error:e}");
}

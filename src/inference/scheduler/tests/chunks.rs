//! Long prompts read in chunks, between the steps of other answers.

use super::shapes::{END, compiled, vocabulary};
use super::*;
use crate::text::{GrammarPiece, OutputGrammar};

fn limited(slots: usize, prefill_positions_max: usize) -> SchedulerSizes {
    SchedulerSizes {
        prefill_positions_max,
        ..sizes(slots, 44, 20)
    }
}

/// Ids of a prompt of so many positions; `first` makes it another one.
fn ids(first: i64, length: i64) -> Vec<i64> {
    (0..length).map(|at| (first + 7 * at) % 96).collect()
}

fn add(
    scheduler: &mut Scheduler,
    model: &dyn LanguageModel,
    ids: &[i64],
    options: DecodeOptions,
) -> RequestId {
    let id = RequestId::next();
    scheduler.add(id, prompt(model, ids, options)).unwrap();
    id
}

fn alone(ids: &[i64], options: DecodeOptions) -> Vec<i64> {
    let model = tiny();
    let mut found = generate_all(&model, vec![prompt(&model, ids, options)], 1, &[], 96, &[]).unwrap();
    found.remove(0).ids
}

#[test]
fn answers_of_every_kind_are_the_same_however_prompts_are_read() {
    let model = tiny();
    let sets = two_loras(&model);
    let loras = [(4, &sets[0]), (7, &sets[1])];
    let token_bytes = vocabulary(5, false);
    let labels = ["ab", "a no", "bon", "no", "é"].map(str::to_owned);
    let grammar = compiled(
        &OutputGrammar::of(GrammarPiece::Choices(labels.into())),
        &token_bytes,
    );
    let answers = |preallocate: bool, prefill_positions_max: usize| -> Vec<(Vec<i64>, f64)> {
        let sizes = SchedulerSizes {
            preallocate,
            ..limited(7, prefill_positions_max)
        };
        let mut scheduler = Scheduler::new(&model, sizes, &[END], 96);
        let mut number = 0;
        for length in [3, 40, 1, 17, 9, 33] {
            for options in every_kind() {
                let prompt = Prompt {
                    lora: [None, Some(4), Some(7)][number % 3],
                    grammar: (number % 4 < 2).then(|| Arc::clone(&grammar)),
                    ..prompt(&model, &ids(number as i64, length), options)
                };
                scheduler.add(RequestId::next(), prompt).unwrap();
                number += 1;
            }
        }
        let mut found = run(&mut scheduler, &model, &loras);
        found.sort_by_key(|(id, _)| *id);
        let found = found.into_iter().map(|(_, ended)| ended.unwrap());
        found.map(|answer| (answer.ids.clone(), answer.score())).collect()
    };

    let right = answers(true, 0);

    assert!(token_bytes.tokens().iter().all(|(_, id)| *id < 96));
    for (preallocate, limit) in [(true, 1), (true, 5), (false, 16), (true, 32)] {
        let found = answers(preallocate, limit);
        assert_eq!(found.len(), right.len());
        for (number, (found, right)) in found.iter().zip(&right).enumerate() {
            assert_eq!(found.0, right.0, "limit {limit}, answer {number}");
            assert!((found.1 - right.1).abs() < 1e-4, "limit {limit}, answer {number}");
        }
    }
}

#[test]
fn running_answers_advance_in_every_step_in_which_a_long_prompt_is_read() {
    let (model, read) = counting();
    let greedy = DecodeOptions {
        stop_loops: false,
        ..DecodeOptions::greedy(12)
    };
    let mut scheduler = Scheduler::new(&model, limited(4, 4), &[], 96);
    let first = add(&mut scheduler, &model, &ids(1, 3), greedy);
    scheduler.step(&model, &[]);
    read.lock().unwrap().clear();
    let prompts = [ids(2, 18), ids(3, 2), ids(4, 2)];
    let [long, short, last] = [0, 1, 2].map(|at: usize| add(&mut scheduler, &model, &prompts[at], greedy));

    let mut advanced = Vec::new();
    for step in 0..6 {
        let output = scheduler.step(&model, &[]);
        assert!(output.ended.is_empty());
        assert_eq!(scheduler.slots_in_use(), 4);
        assert_eq!(scheduler.partial(long).is_some(), step >= 4, "step {step}");
        let sequences = output.advanced.into_iter();
        advanced.push(sequences.collect::<Vec<(RequestId, usize)>>());
    }

    for (step, advanced) in advanced.iter().enumerate().take(4) {
        assert_eq!(advanced[..], [(first, step + 2)], "only what had started");
    }
    // The last part of the long prompt leaves positions for the next prompt, but not for both.
    assert_eq!(advanced[4][..], [(first, 6), (long, 1), (short, 1)]);
    assert_eq!(advanced[5][..], [(first, 7), (long, 2), (short, 2), (last, 1)]);
    assert_eq!(read.lock().unwrap()[..], [4, 4, 4, 4, 2, 2, 2]);
    let mut ended = run(&mut scheduler, &model, &[]);
    ended.sort_by_key(|(id, _)| *id);
    for ((id, found), prompt) in ended[1..].iter().zip(&prompts) {
        assert_eq!(found.as_ref().unwrap().ids, alone(prompt, greedy), "{id}");
    }
}

#[test]
fn a_sequence_that_is_aborted_amid_its_prompt_leaves_a_clean_slot() {
    let model = tiny();
    let beams = every_kind()[2];
    for (options, slots) in [(DecodeOptions::greedy(9), 1), (beams, 3)] {
        let mut scheduler = Scheduler::new(&model, limited(slots, 4), &[], 96);
        let long = add(&mut scheduler, &model, &ids(2, 30), options);
        let next = add(&mut scheduler, &model, &ids(3, 6), options);
        for _ in 0..3 {
            let output = scheduler.step(&model, &[]);
            assert!(output.advanced.is_empty() && output.ended.is_empty());
            assert!(scheduler.partial(long).is_none());
        }
        assert_eq!((scheduler.free_slots(), scheduler.slots_in_use()), (0, 1));

        assert!(scheduler.abort(long));
        assert_eq!((scheduler.free_slots(), scheduler.slots_in_use()), (slots, 0));
        let ended = run(&mut scheduler, &model, &[]);

        assert_eq!((ended.len(), ended[0].0), (1, next));
        assert_eq!(ended[0].1.as_ref().unwrap().ids, alone(&ids(3, 6), options));
    }
}

#[test]
fn a_chunk_that_fails_ends_its_request_and_no_other() {
    let greedy = DecodeOptions::greedy(9);
    let others = [
        (ids(1, 3), greedy),
        (ids(4, 11), greedy),
        (ids(5, 7), every_kind()[2]),
        (ids(6, 4), greedy),
    ];
    for point in [PassPoint::BeforeChunk, PassPoint::AfterChunk] {
        for panics in [false, true] {
            let hook = move |pass: &HookedPass<'_>| {
                // Only the bad prompt is as long.
                if pass.point == point && pass.lengths[0] == 12 {
                    assert!(!panics, "on purpose");
                    return Err(ModelError::EmptyBatch); // any error will do
                }
                Ok(())
            };
            let model = HookedModel { llm: tiny(), hook };
            let mut scheduler = Scheduler::new(&model, limited(5, 4), &[], 96);
            let mut good = vec![add(&mut scheduler, &model, &others[0].0, others[0].1)];
            scheduler.step(&model, &[]);
            let bad = add(&mut scheduler, &model, &ids(2, 20), greedy);
            for (ids, options) in &others[1..] {
                good.push(add(&mut scheduler, &model, ids, *options));
            }

            let ended = run(&mut scheduler, &model, &[]);

            assert_eq!(ended.len(), 5, "each has one outcome");
            for (id, found) in ended {
                if id == bad {
                    let error = found.expect_err("it is at fault").to_string();
                    assert!(
                        error.contains(if panics { "on purpose" } else { "empty" }),
                        "{error}"
                    );
                    continue;
                }
                let at = good.iter().position(|good| *good == id).unwrap();
                let (ids, options) = &others[at];
                assert_eq!(found.unwrap().ids, alone(ids, *options), "{point:?}, answer {at}");
            }
            assert_eq!((scheduler.free_slots(), scheduler.slots_in_use()), (5, 0));
        }
    }
}

#[test]
fn an_encoder_decoder_reads_each_prompt_whole_under_any_limit() {
    let model =
        crate::models::open_language_model(&fixture("t5_gated"), &crate::nn::accel::Placement::reference())
            .unwrap();
    assert!(model.chunked_prefill().is_none());
    let answers = |limit| -> Vec<Vec<i64>> {
        let mut scheduler = Scheduler::new(model.as_ref(), limited(4, limit), &[], model.info().vocab);
        for length in [3, 12, 2, 2] {
            let ids: Vec<i64> = (0..length).map(|at| 5 + at).collect();
            add(&mut scheduler, model.as_ref(), &ids, DecodeOptions::greedy(6));
        }
        let started = scheduler.step(model.as_ref(), &[]).advanced.len();
        assert_eq!(started, if limit == 0 { 4 } else { 1 });
        let mut ended = run(&mut scheduler, model.as_ref(), &[]);
        ended.sort_by_key(|(id, _)| *id);
        ended.into_iter().map(|(_, found)| found.unwrap().ids).collect()
    };

    assert_eq!(answers(4), answers(0));
}

//! Tokens that the CTC head reads are checked ahead: which tokens an answer has does not depend on it.

use super::*;
use crate::inference::JointCtc;
use crate::models::adapter::PrefixScorer;
use crate::models::open_language_model;
use crate::nn::accel::Placement;
use crate::text::TokenBytes;

const ENDS: [i64; 2] = [3, 50];

fn drafting(slots: usize, draft_tokens_max: usize) -> SchedulerSizes {
    SchedulerSizes {
        draft_tokens_max,
        ..sizes(slots, 20, 20)
    }
}

/// Greedy answers that are not cut where they repeat themselves, as those of random models do.
fn greedy(tokens_max: usize) -> DecodeOptions {
    DecodeOptions {
        stop_loops: false,
        ..DecodeOptions::greedy(tokens_max)
    }
}

/// A prompt of a clip in which `said` is read.
fn spoken(
    model: &dyn LanguageModel,
    ids: &[i64],
    options: DecodeOptions,
    said: &[i64],
    weight: f64,
) -> Prompt {
    let scorer = PrefixScorer::of_read(said, model.info().vocab);
    Prompt {
        joint: Some(JointCtc::new(scorer, weight, None)),
        ..prompt(model, ids, options)
    }
}

fn answers(
    model: &dyn LanguageModel,
    sizes: SchedulerSizes,
    prompts: impl IntoIterator<Item = Prompt>,
) -> Vec<Generation> {
    let mut scheduler = Scheduler::new(model, sizes, &ENDS, model.info().vocab);
    for prompt in prompts {
        scheduler.add(RequestId::next(), prompt).unwrap();
    }
    let mut found = run(&mut scheduler, model, &[]);
    assert_eq!(scheduler.free_slots(), sizes.slots);
    found.sort_by_key(|(id, _)| *id);
    found.into_iter().map(|(_, ended)| ended.unwrap()).collect()
}

/// Prompts of every kind; what is read of their clips is the model's own answer, with errors in most.
fn prompts(model: &dyn LanguageModel, weight: f64) -> Vec<Prompt> {
    let kinds = every_kind().into_iter().cycle().take(24).enumerate();
    kinds
        .map(|(number, options)| {
            let number = number as i64;
            let ids: Vec<i64> = (0..1 + number % 4)
                .map(|at| (7 + 31 * at + number) % model.info().vocab)
                .collect();
            let own = generate_alike(model, &[model.embed(&ids).unwrap()], options, 4, &ENDS).unwrap();
            let mut said = own[0].ids.clone();
            let middle = said.len() / 2;
            match number % 4 {
                1 if !said.is_empty() => said[middle] = 17,
                2 => drop(said.drain(..middle)),
                3 => said.extend([5, 5, 8]),
                _ => {}
            }
            spoken(model, &ids, options, &said, weight)
        })
        .collect()
}

#[test]
fn answers_of_every_kind_are_those_of_one_token_a_step() {
    let llama = tiny();
    let t5 = open_language_model(&fixture("t5_gated"), &Placement::reference()).unwrap();
    for model in [&llama as &dyn LanguageModel, t5.as_ref()] {
        for (weight, slots) in [(0.0, 4), (0.3, 3), (0.6, 7)] {
            let right = answers(model, drafting(slots, 0), prompts(model, weight));
            for (most, prefill_positions_max) in [(1, 0), (5, 2), (16, 0), (16, 1), (200, 3)] {
                let sizes = SchedulerSizes {
                    prefill_positions_max,
                    ..drafting(slots, most)
                };
                let found = answers(model, sizes, prompts(model, weight));
                for (number, (found, right)) in found.iter().zip(&right).enumerate() {
                    let at = format!("answer {number}, weight {weight}, {most} ahead");
                    assert_eq!(found.ids, right.ids, "{at}");
                    assert_eq!((found.ended, found.looping), (right.ended, right.looping), "{at}");
                    assert_eq!(found.log_probs.len(), right.log_probs.len(), "{at}");
                    assert!((found.score() - right.score()).abs() < 1e-4, "{at}");
                    assert_eq!(found.agreement, right.agreement, "{at}");
                }
            }
        }
    }
}

#[test]
fn what_was_written_is_less_likely_in_transcripts_too() {
    let model = tiny();
    for kind in every_kind() {
        let options = DecodeOptions {
            repetition_penalty: 1e3,
            no_repeat_ngram_size: 0,
            tokens_max: 9,
            stop_loops: false,
            ..kind
        };
        let prompt = spoken(&model, &[5, 6], options, &[5, 5, 8, 8, 17], 0.2);

        let mut ids = answers(&model, drafting(4, 4), [prompt]).swap_remove(0).ids;

        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count, "{options:?}");
    }
}

/// The tiny model, and how many rows each of its steps had.
fn counting_rows() -> (impl LanguageModel, Arc<Mutex<Vec<usize>>>) {
    let rows = Arc::new(Mutex::new(Vec::new()));
    let hook = {
        let rows = Arc::clone(&rows);
        move |pass: &HookedPass<'_>| {
            if matches!(pass.point, PassPoint::AfterStep) {
                rows.lock().unwrap().push(pass.slots.len());
            }
            Ok(())
        }
    };
    (HookedModel { llm: tiny(), hook }, rows)
}

#[test]
fn what_is_read_right_takes_few_steps_and_what_is_read_wrong_no_more_than_without() {
    let (model, rows) = counting_rows();
    let options = greedy(9);
    let own = generate_alike(&tiny(), &[tiny().embed(&[5, 6]).unwrap()], options, 1, &ENDS)
        .unwrap()
        .remove(0);
    assert_eq!(own.ids.len(), 9, "{own:?}");
    let steps = |said: &[i64], most: usize| {
        rows.lock().unwrap().clear();
        let found = answers(
            &model,
            drafting(1, most),
            [spoken(&model, &[5, 6], options, said, 0.0)],
        );
        assert_eq!(found[0].ids, own.ids);
        std::mem::take(&mut *rows.lock().unwrap())
    };

    assert_eq!(steps(&own.ids, 0), [1; 8]);
    // The first token is the prompt's; of nine, at most seven are drafted behind it.
    assert_eq!(steps(&own.ids, 16), [8]);
    assert_eq!(steps(&own.ids, 3), [4, 4]);
    let wrong: Vec<i64> = own.ids.iter().map(|id| (id + 1) % 50 + 4).collect();
    assert!(steps(&wrong, 16).len() <= 8);
}

#[test]
fn a_prompts_last_part_is_read_with_drafts_and_earlier_ones_without() {
    let (model, read) = counting();
    let options = greedy(9);
    let ids = [5, 6, 7, 8, 9];
    let own = generate_alike(&tiny(), &[tiny().embed(&ids).unwrap()], options, 1, &ENDS)
        .unwrap()
        .remove(0);
    assert!(own.ids.len() > 5, "{own:?}");
    for most in [0, 4, 16] {
        let sizes = SchedulerSizes {
            prefill_positions_max: 2,
            ..drafting(1, most)
        };
        read.lock().unwrap().clear();

        let found = answers(&model, sizes, [spoken(&model, &ids, options, &own.ids, 0.0)]);

        assert_eq!(found[0].ids, own.ids);
        let drafted = most.min(own.ids.len()).min(8) as i64;
        assert_eq!(read.lock().unwrap()[..], [2, 2, 1 + drafted], "{most}");
    }
}

#[test]
fn drafts_are_shared_by_the_answers_that_can_have_some() {
    let (model, rows) = counting_rows();
    let options = greedy(9);
    let long: Vec<i64> = (0..30).map(|at| 4 + at % 40).collect();
    let all = || {
        let clip = |id: i64| spoken(&model, &[id], options, &long, 0.95);
        [clip(5), clip(6), clip(7), prompt(&model, &[8], options)]
    };

    answers(&model, drafting(4, 6), all());

    // Three answers of a clip with two drafted tokens each, and one without.
    assert_eq!(rows.lock().unwrap()[0], 3 * 3 + 1);
}

#[test]
fn an_answer_that_fills_its_slot_drafts_no_further() {
    let model = tiny();
    let sizes = SchedulerSizes {
        preallocate: false,
        ..drafting(1, 16)
    };
    let said: Vec<i64> = (0..40).map(|at| 4 + (at * 7) % 40).collect();
    for tokens_max in [1, 2, 7, 20, 60] {
        let clip = || [spoken(&model, &[5; 20], greedy(tokens_max), &said, 0.9)];
        let found = answers(&model, sizes, clip());
        let right = answers(&model, drafting(1, 0), clip());
        assert_eq!(found[0].ids, right[0].ids, "{tokens_max}");
    }
}

#[test]
fn an_encoder_decoders_answer_that_fills_its_slot_drafts_no_further() {
    let model = open_language_model(&fixture("t5_gated"), &Placement::reference()).unwrap();
    let model = model.as_ref();
    let said: Vec<i64> = (0..40).map(|at| 4 + (at * 7) % 40).collect();
    for tokens_max in [1, 2, 6, 30] {
        let clip = || [spoken(model, &[5, 6, 7], greedy(tokens_max), &said, 0.9)];
        let of = |draft_tokens_max| {
            let sizes = SchedulerSizes {
                draft_tokens_max,
                ..sizes(1, 8, 6)
            };
            answers(model, sizes, clip()).remove(0).ids
        };
        assert_eq!(of(16), of(0), "{tokens_max}");
        assert!(of(16).len() <= 6);
    }
}

#[test]
fn an_answer_that_goes_on_drafts_what_follows_its_beginning() {
    let model = tiny();
    let ids = [5, 6, 7];
    let said: Vec<i64> = (0..9).map(|at| 4 + (at * 7) % 40).collect();
    let clip = |ids: &[i64]| spoken(&model, ids, greedy(9), &said, 0.6);
    let whole = answers(&model, drafting(1, 0), [clip(&ids)]).remove(0);
    assert!(whole.ids.len() >= 6, "{whole:?}");
    for count in [1, 3, 5] {
        let begun = Generation {
            ids: whole.ids[..count].to_vec(),
            log_probs: whole.log_probs[..count].to_vec(),
            ..Generation::default()
        };
        let prompt: Vec<i64> = ids.iter().chain(&begun.ids).copied().collect();
        // No position more than prompt and answer take.
        let sizes = SchedulerSizes {
            prompt_positions: 3,
            answer_positions: 8,
            ..drafting(1, 16)
        };
        let mut scheduler = Scheduler::new(&model, sizes, &ENDS, 96);
        scheduler
            .go_on(RequestId::next(), clip(&prompt), begun, None)
            .unwrap();
        scheduler
            .go_on(RequestId::next(), clip(&ids), Generation::default(), None)
            .unwrap();

        for (_, found) in run(&mut scheduler, &model, &[]) {
            let found = found.unwrap();
            assert_eq!(
                (&found.ids, found.ended),
                (&whole.ids, whole.ended),
                "{count} known"
            );
            assert!((found.score() - whole.score()).abs() < 1e-4);
        }
        assert_eq!(scheduler.cache.capacity(), 11, "it has not grown");
    }
}

/// Bytes of tokens of which those of `begins` alone begin a word.
fn spelled(vocab: i64, begins: &[i64]) -> Arc<TokenBytes> {
    let tokens = (0..vocab).filter(|id| !ENDS.contains(id));
    let spell = |id: i64| match begins.contains(&id) {
        true => format!(" {id}"),
        false => id.to_string(),
    };
    let tokens = tokens.map(|id| (spell(id).into_bytes().into_boxed_slice(), id));
    Arc::new(TokenBytes::new(tokens.collect(), vocab))
}

#[test]
fn behind_known_words_drafts_begin_with_a_word() {
    let (model, read) = counting();
    let vocab = model.info().vocab;
    let said = [20, 11, 12, 30, 31, 32];
    let begun = Generation {
        ids: vec![20],
        log_probs: vec![-1.0],
        ..Generation::default()
    };
    let sizes = SchedulerSizes {
        prefill_positions_max: 2,
        ..drafting(1, 16)
    };
    // The prompt's third token, and what the CTC head reads behind it.
    for (begins, positions) in [(None, 1 + 5), (Some([20, 30]), 1 + 3), (Some([20, 40]), 1)] {
        read.lock().unwrap().clear();
        let mut scheduler = Scheduler::new(&model, sizes, &ENDS, vocab);
        let prompt = spoken(&model, &[5, 6, 20], greedy(9), &said, 0.6);
        let token_bytes = begins.map(|begins| spelled(vocab, &begins));
        scheduler
            .go_on(RequestId::next(), prompt, begun.clone(), token_bytes)
            .unwrap();

        run(&mut scheduler, &model, &[]);

        assert_eq!(read.lock().unwrap()[..], [2, positions], "{begins:?}");
    }
}

#[test]
fn behind_known_words_another_word_begins_or_nothing() {
    let model = tiny();
    let said: Vec<i64> = (0..9).map(|at| 4 + (at * 7) % 40).collect();
    let begins = [20, 30];
    let token_bytes = spelled(model.info().vocab, &begins);
    let [mut words, mut others] = [0, 0];
    for (weight, penalty) in [(0.0, 1.0), (0.0, 1.3), (0.6, 1.0), (0.6, 1.3)] {
        for known in 5..11 {
            let begun = Generation {
                ids: vec![known],
                log_probs: vec![-1.0],
                ..Generation::default()
            };
            let options = DecodeOptions {
                repetition_penalty: penalty,
                ..greedy(9)
            };
            let mut scheduler = Scheduler::new(&model, drafting(1, 16), &ENDS, model.info().vocab);
            for token_bytes in [None, Some(Arc::clone(&token_bytes))] {
                let prompt = spoken(&model, &[5, 6, 7, known], options, &said, weight);
                scheduler
                    .go_on(RequestId::next(), prompt, begun.clone(), token_bytes)
                    .unwrap();
            }

            let mut found = run(&mut scheduler, &model, &[]);
            found.sort_by_key(|(id, _)| *id);
            let [free, held] = [0, 1].map(|at| found[at].1.as_ref().unwrap().ids.get(1).copied());
            assert!(
                held.is_none_or(|id| begins.contains(&id)),
                "{weight} {penalty}: {held:?}"
            );
            words += usize::from(held.is_some());
            others += usize::from(free.is_some_and(|id| !begins.contains(&id)));
        }
    }
    assert!(words > 4 && others > 12, "{words} {others}");
}

#[test]
fn a_part_of_a_prompt_that_fails_with_drafts_ends_its_request_alone() {
    let hook = move |pass: &HookedPass<'_>| match pass.point {
        PassPoint::AfterChunk if pass.embeds.is_some_and(|embeds| embeds.size()[1] > 2) => {
            Err(ModelError::EmptyBatch) // any error will do
        }
        _ => Ok(()),
    };
    let model = HookedModel { llm: tiny(), hook };
    let said = [9, 8, 7, 6];
    let sizes = SchedulerSizes {
        prefill_positions_max: 2,
        ..drafting(2, 4)
    };
    let mut scheduler = Scheduler::new(&model, sizes, &ENDS, 96);
    let (bad, good) = (RequestId::next(), RequestId::next());
    scheduler
        .add(bad, spoken(&model, &[5, 6, 7], greedy(9), &said, 0.5))
        .unwrap();
    scheduler
        .add(good, prompt(&model, &[5, 6, 7], greedy(9)))
        .unwrap();

    let ended = run(&mut scheduler, &model, &[]);

    let of = |id| &ended.iter().find(|(own, _)| *own == id).unwrap().1;
    assert!(matches!(of(bad), Err(ModelError::EmptyBatch)));
    let right = answers(&tiny(), drafting(1, 0), [prompt(&tiny(), &[5, 6, 7], greedy(9))]);
    assert_eq!(of(good).as_ref().unwrap().ids, right[0].ids);
    assert_eq!(scheduler.free_slots(), 2);
}

#[test]
fn a_prompt_with_a_known_prefix_is_read_with_drafts_and_leaves_none_in_the_prefix() {
    let model = tiny();
    let said: Vec<i64> = (0..9).map(|at| 4 + (at * 11) % 40).collect();
    let clip = |last: i64| Prompt {
        prefix: Arc::from([11, 3, 77]),
        ..spoken(&model, &[11, 3, 77, last, 20], greedy(9), &said, 0.6)
    };
    let mut scheduler = Scheduler::new(&model, drafting(1, 16), &ENDS, 96);
    for last in [5, 6, 7, 5] {
        scheduler.add(RequestId::next(), clip(last)).unwrap();
        let found = run(&mut scheduler, &model, &[]).remove(0).1.unwrap();
        let right = answers(&model, drafting(1, 0), [clip(last)]);
        assert_eq!(found.ids, right[0].ids, "{last}");
    }
}

#[test]
fn a_step_that_fails_with_drafts_leaves_the_answers_as_they_are() {
    let failures = Arc::new(Mutex::new(0));
    let hook = {
        let failures = Arc::clone(&failures);
        move |pass: &HookedPass<'_>| {
            // Steps of several sequences fail after the cache has counted their positions.
            let first = pass.slots.first();
            if matches!(pass.point, PassPoint::AfterStep) && pass.slots.iter().any(|slot| Some(slot) != first)
            {
                *failures.lock().unwrap() += 1;
                return Err(ModelError::EmptyBatch); // any error will do
            }
            Ok(())
        }
    };
    let model = HookedModel { llm: tiny(), hook };
    let clips = || {
        let said = |number: i64| -> Vec<i64> { (0..9).map(|at| 4 + (at * 7 + number) % 40).collect() };
        (0..6).map(move |number| spoken(&tiny(), &[5, number], greedy(9), &said(number), 0.5))
    };

    let found = answers(&model, drafting(4, 8), clips());

    let right = answers(&tiny(), drafting(4, 0), clips());
    for (found, right) in found.iter().zip(&right) {
        assert_eq!(found.ids, right.ids);
    }
    assert!(*failures.lock().unwrap() > 2);
}

//! Errors and panics of the model, while prompts start and in later steps: they end the sequence at fault and
//! no other.

use std::cell::Cell;

use super::*;
use crate::testing::{HookedModel, Pass, PassPoint};

/// A prompt that begins with this token is at fault.
const BAD: i64 = 77;

/// How the model fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Failure {
    Error,
    Panic,
    /// A panic after the cache has counted the step's positions.
    LatePanic,
}

/// A tiny Llama that fails on a batch with a bad sequence in it, in its prefill or from its second step on.
fn failing_model(failure: Failure, in_prefill: bool) -> impl LanguageModel {
    let llm = tiny();
    let bad_embedding = llm.embed(&[BAD]).unwrap().get(0);
    let bad_slot = Cell::new(None);
    let steps = Cell::new(0);
    let fail = move || match failure {
        Failure::Error => Err(ModelError::EmptyBatch), // any error will do
        Failure::Panic | Failure::LatePanic => panic!("on purpose"),
    };
    let hook = move |pass: &Pass<'_>| match (pass.point, pass.embeds) {
        (PassPoint::AfterPrefill, Some(embeds)) => {
            let row = (0i64..)
                .zip(pass.slots)
                .find(|(row, _)| embeds.get(*row).get(0) == bad_embedding);
            let earlier = bad_slot.get().filter(|slot| !pass.slots.contains(slot));
            bad_slot.set(row.map(|(_, slot)| *slot).or(earlier));
            if row.is_some() && in_prefill {
                fail()
            } else {
                Ok(())
            }
        }
        (PassPoint::BeforeStep | PassPoint::AfterStep, _) => {
            let is_bad = bad_slot.get().is_some_and(|slot| pass.slots.contains(&slot)) && steps.get() > 0;
            let after = pass.point == PassPoint::AfterStep;
            if is_bad && after == (failure == Failure::LatePanic) {
                return fail();
            }
            steps.set(steps.get() + usize::from(after));
            Ok(())
        }
        _ => Ok(()),
    };
    HookedModel { llm, hook }
}

const PROMPTS: [[i64; 2]; 5] = [[5, 6], [7, 8], [BAD, 1], [9, 10], [33, 44]];

/// One of five sequences is at fault: greedy ones beside a beam search; some are running when the bad one
/// starts.
fn one_of_five(failure: Failure, in_prefill: bool) {
    let (model, healthy) = (failing_model(failure, in_prefill), tiny());
    let options = |at: usize| {
        if at == 3 {
            every_kind()[2]
        } else {
            DecodeOptions::greedy(9)
        }
    };
    let mut scheduler = Scheduler::new(&model, sizes(7, 16, 16), &[3], 96);
    let ids: Vec<RequestId> = PROMPTS.iter().map(|_| RequestId::next()).collect();
    let add = |scheduler: &mut Scheduler, at: usize| {
        let prompt = prompt(&model, &PROMPTS[at], options(at));
        scheduler.add(ids[at], prompt).unwrap();
    };

    add(&mut scheduler, 0);
    scheduler.step(&model, &[]);
    (1..5).for_each(|at| add(&mut scheduler, at));
    let mut ended = run(&mut scheduler, &model, &[]);

    ended.sort_by_key(|(id, _)| *id);
    assert_eq!(ended.len(), 5, "each has one outcome");
    for (at, (id, found)) in ended.into_iter().enumerate() {
        assert_eq!(id, ids[at]);
        if PROMPTS[at][0] == BAD {
            let error = found.expect_err("it is at fault").to_string();
            let reason = if failure == Failure::Error {
                "empty"
            } else {
                "on purpose"
            };
            assert!(error.contains(reason), "{error}");
            continue;
        }
        let alone = generate_all(
            &healthy,
            vec![prompt(&healthy, &PROMPTS[at], options(at))],
            1,
            &[3],
            96,
            &[],
        );
        assert_eq!(found.unwrap().ids, alone.unwrap()[0].ids, "{failure:?}, {at}");
    }
    assert_eq!((scheduler.free_slots(), scheduler.slots_in_use()), (7, 0));
}

#[test]
fn a_prompt_that_fails_while_others_start_ends_alone() {
    for failure in [Failure::Error, Failure::Panic] {
        one_of_five(failure, true);
    }
}

#[test]
fn a_step_that_fails_ends_the_sequence_at_fault_and_the_others_go_on_where_they_were() {
    for failure in [Failure::Error, Failure::Panic, Failure::LatePanic] {
        one_of_five(failure, false);
    }
}

#[test]
fn after_a_panic_the_next_sequences_are_answered() {
    let model = failing_model(Failure::Panic, true);
    let mut scheduler = Scheduler::new(&model, sizes(2, 8, 16), &[3], 96);
    for _ in 0..5 {
        let bad = prompt(&model, &[BAD], DecodeOptions::greedy(4));
        scheduler.add(RequestId::next(), bad).unwrap();
        assert!(run(&mut scheduler, &model, &[])[0].1.is_err());
    }

    let good = prompt(&model, &[5], DecodeOptions::greedy(4));
    scheduler.add(RequestId::next(), good).unwrap();

    assert!(run(&mut scheduler, &model, &[])[0].1.is_ok());
}

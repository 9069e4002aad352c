//! What all prompts begin with is read once.

use super::*;

const PREFIX: [i64; 4] = [11, 3, 77, 20];

/// A prompt that begins with `prefix`; `first` makes the rest another one.
fn prefixed(
    model: &dyn LanguageModel,
    prefix: &[i64],
    first: i64,
    options: DecodeOptions,
    lora: Option<u64>,
) -> Prompt {
    let rest = (0..3 + first % 5).map(|at| (first * 13 + 7 * at) % 96);
    let ids: Vec<i64> = prefix.iter().copied().chain(rest).collect();
    Prompt {
        prefix: prefix.into(),
        lora,
        ..prompt(model, &ids, options)
    }
}

/// Answers prompts one after the other, each when the one before has ended.
fn one_by_one(
    scheduler: &mut Scheduler,
    model: &dyn LanguageModel,
    loras: Loras<'_>,
    prompts: Vec<Prompt>,
) -> Vec<Generation> {
    let answers = prompts.into_iter().map(|prompt| {
        scheduler.add(RequestId::next(), prompt).unwrap();
        run(scheduler, model, loras).remove(0).1.unwrap()
    });
    answers.collect()
}

#[test]
fn answers_of_every_kind_are_those_of_prompts_that_are_read_whole() {
    let model = tiny();
    let sets = two_loras(&model);
    let loras = [(4, &sets[0]), (7, &sets[1])];
    let prompts = |prefix_is_named: bool| -> Vec<Prompt> {
        let kinds = every_kind().into_iter().cycle().take(18).enumerate();
        kinds
            .map(|(number, options)| {
                let lora = [None, Some(4), Some(7)][number % 3];
                let mut prompt = prefixed(&model, &PREFIX, number as i64, options, lora);
                if !prefix_is_named {
                    prompt.prefix = Arc::default();
                }
                prompt
            })
            .collect()
    };
    for limit in [0, 3] {
        let sizes = SchedulerSizes {
            prefill_positions_max: limit,
            ..sizes(3, 20, 20)
        };
        let answers = |named| {
            let mut scheduler = Scheduler::new(&model, sizes, &[3], 96);
            one_by_one(&mut scheduler, &model, &loras, prompts(named))
        };

        let (found, right) = (answers(true), answers(false));

        for (number, (found, right)) in found.iter().zip(&right).enumerate() {
            assert_eq!(found.ids, right.ids, "answer {number}");
            assert!((found.score() - right.score()).abs() < 1e-4, "answer {number}");
        }
    }
}

#[test]
fn a_prefix_is_read_once_for_each_version_and_again_where_its_tokens_differ() {
    let (model, read) = counting();
    let sets = two_loras(&tiny());
    let loras = [(4, &sets[0]), (7, &sets[1])];
    let greedy = DecodeOptions::greedy(2);
    let mut scheduler = Scheduler::new(&model, sizes(2, 20, 20), &[], 96);
    let of = |prefix: &[i64], lora| prefixed(&model, prefix, 0, greedy, lora);
    let other = [11, 3, 77, 21];
    let prompts = vec![
        of(&PREFIX, Some(4)),
        of(&PREFIX, Some(4)),
        of(&PREFIX, Some(7)),
        of(&PREFIX, Some(4)),
        of(&other, Some(4)),
        of(&other, Some(4)),
        of(&PREFIX, Some(7)),
        of(&[], Some(7)),
    ];

    one_by_one(&mut scheduler, &model, &loras, prompts);

    assert_eq!(read.lock().unwrap()[..], [7, 3, 7, 3, 7, 3, 3, 3]);
}

#[test]
fn prompts_that_wait_together_are_read_in_one_pass() {
    let (model, read) = counting();
    let greedy = DecodeOptions::greedy(2);
    let mut scheduler = Scheduler::new(&model, sizes(3, 20, 20), &[], 96);
    one_by_one(
        &mut scheduler,
        &model,
        &[],
        vec![prefixed(&model, &PREFIX, 0, greedy, None)],
    );
    for first in [0, 5, 10] {
        let prompt = prefixed(&model, &PREFIX, first, greedy, None);
        scheduler.add(RequestId::next(), prompt).unwrap();
    }

    assert_eq!(run(&mut scheduler, &model, &[]).len(), 3);

    assert_eq!(read.lock().unwrap()[..], [7, 21]);
}

#[test]
fn a_pass_that_fails_behind_a_kept_prefix_ends_its_request_alone() {
    let fails = Mutex::new(false);
    let hook = |pass: &HookedPass<'_>| match pass.point == PassPoint::AfterChunk && *fails.lock().unwrap() {
        true => Err(ModelError::EmptyBatch), // any error will do
        false => Ok(()),
    };
    let model = HookedModel { llm: tiny(), hook };
    let greedy = DecodeOptions::greedy(6);
    let prompt = || prefixed(&model, &PREFIX, 2, greedy, None);
    let mut scheduler = Scheduler::new(&model, sizes(1, 20, 20), &[], 96);
    let right = one_by_one(&mut scheduler, &model, &[], vec![prompt()]);

    *fails.lock().unwrap() = true;
    scheduler.add(RequestId::next(), prompt()).unwrap();
    let failed = run(&mut scheduler, &model, &[]).remove(0).1;
    *fails.lock().unwrap() = false;

    assert!(failed.is_err());
    assert_eq!(scheduler.free_slots(), 1);
    let found = one_by_one(&mut scheduler, &model, &[], vec![prompt()]);
    assert_eq!(found[0].ids, right[0].ids);
}

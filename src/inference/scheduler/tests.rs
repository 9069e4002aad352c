//! Beam search and sampling against transformers; constrained answers of random models over random
//! vocabularies; answers beside others; failures.

mod chunks;
mod constrained;
mod drafts;
mod failures;
mod prefixes;
mod random_model;
mod reference;
mod shapes;
mod structured;

use std::path::Path;
use std::sync::{Arc, Mutex};

use tch::{Device, Kind, Tensor};

use super::*;
use crate::inference::{BeamSettings, DecodeOptions, EarlyStopping, Sampling, Strategy};
use crate::models::llms::llama::Llama;
use crate::nn::lora::LoraConfig;
use crate::testing::{HookedModel, Pass as HookedPass, PassPoint, fixture, generate_alike, generate_all};

fn tiny() -> Llama {
    Llama::open(&fixture("llama_tiny"), Device::Cpu, Kind::Float).unwrap()
}

fn prompt(model: &dyn LanguageModel, ids: &[i64], options: DecodeOptions) -> Prompt {
    Prompt {
        embeds: model.embed(ids).unwrap(),
        prefix: Arc::default(),
        options,
        grammar: None,
        lora: None,
        joint: None,
        labels: Vec::new(),
    }
}

/// The tiny model, and how many positions each of its passes over prompts has read.
fn counting() -> (impl LanguageModel, Arc<Mutex<Vec<i64>>>) {
    let read = Arc::new(Mutex::new(Vec::new()));
    let hook = {
        let read = Arc::clone(&read);
        move |pass: &HookedPass<'_>| {
            if matches!(pass.point, PassPoint::AfterPrefill | PassPoint::AfterChunk) {
                let size = pass.embeds.unwrap().size();
                read.lock().unwrap().push(size[0] * size[1]);
            }
            Ok(())
        }
    };
    (HookedModel { llm: tiny(), hook }, read)
}

fn every_kind() -> Vec<DecodeOptions> {
    let strategies = [
        Strategy::Greedy,
        Strategy::Beam(BeamSettings {
            width: 3,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::No,
        }),
        Strategy::Sample(Sampling {
            temperature: 1.3,
            top_k: 20,
            top_p: 0.9,
            seed: 5,
        }),
    ];
    let mut all = Vec::new();
    for strategy in strategies {
        let plain = DecodeOptions {
            strategy,
            ..DecodeOptions::greedy(9)
        };
        all.push(plain);
        all.push(DecodeOptions {
            repetition_penalty: 1.5,
            no_repeat_ngram_size: 2,
            tokens_max: 4,
            ..plain
        });
    }
    all
}

#[test]
fn answers_of_every_kind_side_by_side_are_those_that_each_has_alone() {
    let model = tiny();
    let prompts = || -> Vec<Prompt> {
        let ids: [&[i64]; 4] = [&[5], &[7, 8, 9, 10, 11, 12], &[33, 44], &[90, 4, 60]];
        let pairs = ids
            .iter()
            .flat_map(|ids| every_kind().into_iter().map(move |options| (ids, options)));
        pairs.map(|(ids, options)| prompt(&model, ids, options)).collect()
    };
    let ends = [3, 50];

    let together = generate_all(&model, prompts(), 7, &ends, 96, &[]).unwrap();

    for (index, one) in prompts().into_iter().enumerate() {
        let alone = generate_all(&model, vec![one], 1, &ends, 96, &[])
            .unwrap()
            .remove(0);
        assert_eq!(together[index].ids, alone.ids, "{index}");
        assert_eq!(together[index].ended, alone.ended, "{index}");
        assert!((together[index].score() - alone.score()).abs() < 1e-4, "{index}");
    }
}

#[test]
fn log_probabilities_are_those_of_the_full_distribution_whatever_the_strategy() {
    let model = tiny();
    for options in every_kind() {
        let found = generate_all(&model, vec![prompt(&model, &[5, 6], options)], 1, &[3], 96, &[])
            .unwrap()
            .remove(0);
        let mut ids = found.ids.clone();
        ids.extend(found.ended.then_some(3));
        let scores = model
            .teacher_forced_logits(&[model.embed(&[5, 6]).unwrap()], &[&ids], None)
            .unwrap();
        let log_probs = scores.log_softmax(-1, Kind::Double);

        assert_eq!(found.log_probs.len(), ids.len());
        for (at, (id, log_prob)) in ids.iter().zip(&found.log_probs).enumerate() {
            let expected = log_probs.double_value(&[at as i64, *id]);
            assert!((log_prob - expected).abs() < 1e-3, "{options:?} {at}");
        }
    }
}

#[test]
fn ids_beyond_the_vocabulary_are_never_chosen() {
    let model = tiny();
    for options in every_kind() {
        let answers = generate_all(&model, vec![prompt(&model, &[5], options)], 1, &[], 12, &[]).unwrap();
        assert!(answers[0].ids.iter().all(|id| *id < 12), "{options:?}");
    }
}

#[test]
fn an_answer_is_cut_off_at_the_models_last_position_and_a_prompt_beyond_it_is_refused() {
    let model = tiny(); // 64 positions
    let ids: Vec<i64> = (0..60).collect();
    for options in every_kind() {
        let options = DecodeOptions {
            tokens_max: 50,
            ..options
        };
        let found = generate_all(&model, vec![prompt(&model, &ids, options)], 1, &[], 96, &[]).unwrap();
        assert_eq!(found[0].ids.len(), 5, "{options:?}");
        assert!(!found[0].ended);
    }
    let ids = vec![5; 65];
    let refused = generate_all(
        &model,
        vec![prompt(&model, &ids, DecodeOptions::greedy(1))],
        1,
        &[],
        96,
        &[],
    );
    assert!(matches!(refused, Err(ModelError::TooManyPositions { .. })));
}

fn sizes(slots: usize, prompt_positions: usize, answer_positions: usize) -> SchedulerSizes {
    SchedulerSizes {
        slots,
        prompt_positions,
        answer_positions,
        prefill_positions_max: 0,
        draft_tokens_max: 0,
        preallocate: true,
    }
}

/// Steps until nothing is unfinished; what ended, in order.
fn run(
    scheduler: &mut Scheduler,
    model: &dyn LanguageModel,
    loras: Loras<'_>,
) -> Vec<(RequestId, Result<Generation, ModelError>)> {
    let mut ended = Vec::new();
    while scheduler.has_unfinished() {
        ended.extend(scheduler.step(model, loras).ended);
    }
    ended
}

#[test]
fn what_does_not_fit_a_slot_is_refused_and_what_waits_starts_when_there_are_slots() {
    let model = tiny();
    let beams = every_kind()[2];
    let mut scheduler = Scheduler::new(&model, sizes(2, 8, 8), &[], 96);

    // Three beams for two slots; no token at all.
    assert!(
        scheduler
            .add(RequestId::next(), prompt(&model, &[5], beams))
            .is_err()
    );
    let zero = prompt(&model, &[5], DecodeOptions::greedy(0));
    assert!(scheduler.add(RequestId::next(), zero).is_err());
    assert!(!scheduler.has_unfinished());
    let ids: Vec<RequestId> = [5, 6, 7]
        .map(|id| {
            let request = RequestId::next();
            let prompt = prompt(&model, &[id], DecodeOptions::greedy(3));
            scheduler.add(request, prompt).unwrap();
            request
        })
        .into();
    scheduler.step(&model, &[]);
    assert_eq!((scheduler.running(), scheduler.waiting()), (2, 1));
    let ended = run(&mut scheduler, &model, &[]);

    let found: Vec<RequestId> = ended.iter().map(|(id, _)| *id).collect();
    assert_eq!(found, ids);
    assert_eq!((scheduler.free_slots(), scheduler.slots_in_use()), (2, 0));
}

#[test]
fn low_rank_parts_that_are_not_there_end_their_sequence_and_no_other() {
    let model = tiny();
    let mut scheduler = Scheduler::new(&model, sizes(2, 8, 8), &[], 96);
    let (strange, plain) = (RequestId::next(), RequestId::next());
    let prompt = |lora| Prompt {
        lora,
        ..prompt(&model, &[5], DecodeOptions::greedy(3))
    };
    scheduler.add(strange, prompt(Some(9))).unwrap();
    scheduler.add(plain, prompt(None)).unwrap();

    let ended = run(&mut scheduler, &model, &[]);

    assert!(matches!(ended[0], (id, Err(ModelError::NoLora { key: 9 })) if id == strange));
    assert!(matches!(ended[1], (id, Ok(_)) if id == plain));
    assert_eq!(scheduler.free_slots(), 2);
}

#[test]
fn a_sequence_that_is_aborted_is_gone_whether_it_runs_or_waits() {
    let model = tiny();
    let mut scheduler = Scheduler::new(&model, sizes(1, 8, 8), &[], 96);
    let ids = [RequestId::next(), RequestId::next(), RequestId::next()];
    for id in ids {
        let prompt = prompt(&model, &[5], DecodeOptions::greedy(4));
        scheduler.add(id, prompt).unwrap();
    }
    scheduler.step(&model, &[]);

    assert!(scheduler.abort(ids[0]) && scheduler.abort(ids[1]));
    assert!(!scheduler.abort(ids[0]));
    let ended = run(&mut scheduler, &model, &[]);

    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].0, ids[2]);
}

#[test]
fn a_cache_that_grows_gives_the_answers_of_one_that_is_large_from_the_beginning() {
    let model = tiny();
    let prompts: Vec<Vec<i64>> = [1, 40, 3, 20].map(|length| (0..length).collect()).into();
    let answers = |preallocate, together: bool| -> Vec<Vec<i64>> {
        let sizes = SchedulerSizes {
            preallocate,
            ..sizes(2, 44, 20)
        };
        let mut scheduler = Scheduler::new(&model, sizes, &[], 96);
        let mut found = Vec::new();
        for ids in &prompts {
            let prompt = prompt(&model, ids, DecodeOptions::greedy(20));
            scheduler.add(RequestId::next(), prompt).unwrap();
            if !together {
                found.extend(run(&mut scheduler, &model, &[]));
            }
        }
        found.extend(run(&mut scheduler, &model, &[]));
        found.sort_by_key(|(id, _)| *id);
        found.into_iter().map(|(_, ended)| ended.unwrap().ids).collect()
    };

    let right = answers(true, true);

    assert_eq!(answers(false, true), right);
    assert_eq!(
        answers(false, false),
        right,
        "it grows between the first and the second prompt"
    );
}

#[test]
fn a_beam_search_uses_fewer_slots_at_its_beginning_than_it_reserves() {
    let model = tiny();
    let mut scheduler = Scheduler::new(&model, sizes(4, 8, 8), &[], 96);
    let prompt = prompt(&model, &[5], every_kind()[2]);
    scheduler.add(RequestId::next(), prompt).unwrap();
    assert_eq!((scheduler.free_slots(), scheduler.slots_in_use()), (4, 0));

    let mut used = Vec::new();
    while scheduler.has_unfinished() {
        scheduler.step(&model, &[]);
        used.push((scheduler.free_slots(), scheduler.slots_in_use()));
    }

    assert_eq!(used[0], (1, 3));
    assert_eq!(used[used.len() - 1], (4, 0));
}

/// Two sets of low-rank parts that matter.
fn two_loras(model: &dyn LanguageModel) -> Vec<LoraSet> {
    (0..2)
        .map(|seed| {
            let set = LoraSet::new(LoraConfig::default(), &model.lora_sites(), Device::Cpu).unwrap();
            let _no_grad = tch::no_grad_guard();
            for (number, (_, mut tensor)) in set.parameters().into_iter().enumerate() {
                let count = tensor.numel() as i64;
                let noise = (Tensor::arange(count, (Kind::Float, Device::Cpu)) * (0.7 + f64::from(seed))
                    + number as f64)
                    .sin();
                tensor.copy_(&(noise.view(tensor.size().as_slice()) * 0.4));
            }
            set
        })
        .collect()
}

#[test]
fn adapters_side_by_side_answer_as_each_does_alone() {
    let model = tiny();
    let sets = two_loras(&model);
    let loras = [(4, &sets[0]), (7, &sets[1])];
    let prompts = || -> Vec<Prompt> {
        let keys = [None, Some(4), Some(7), Some(4), None];
        let with = |lora, options| Prompt {
            lora,
            ..prompt(&model, &[5, 6, 7], options)
        };
        keys.iter()
            .flat_map(|lora| every_kind().into_iter().map(|options| with(*lora, options)))
            .collect()
    };

    let together = generate_all(&model, prompts(), 6, &[3], 96, &loras).unwrap();

    for (index, one) in prompts().into_iter().enumerate() {
        let alone = generate_all(&model, vec![one], 1, &[3], 96, &loras)
            .unwrap()
            .remove(0);
        assert_eq!(together[index].ids, alone.ids, "{index}");
    }
    let greedy = |place: usize| &together[place * every_kind().len()].ids;
    assert_ne!(greedy(0), greedy(1));
    assert_ne!(greedy(1), greedy(2));
    assert_eq!(greedy(0), greedy(4));
}

#[test]
fn a_beam_search_among_repetitions_ends_and_keeps_one_of_them() {
    let model = random_model::RandomModel::looping(20);
    let options = DecodeOptions {
        tokens_max: 40,
        ..every_kind()[2]
    };

    let found = generate_alike(&model, &[model.embed(&[1]).unwrap()], options, 1, &[0]).unwrap();

    assert!(found[0].looping && !found[0].ended, "{found:?}");
    assert!(found[0].ids.len() < 12, "{found:?}");
    assert_eq!(found[0].ids.len(), found[0].log_probs.len());
}

#[test]
fn an_encoder_decoders_answer_gets_what_its_slot_has_room_for_of_what_is_asked() {
    let model =
        crate::models::open_language_model(&fixture("t5_gated"), &crate::nn::accel::Placement::reference())
            .unwrap();
    let mut scheduler = Scheduler::new(model.as_ref(), sizes(1, 8, 6), &[], model.info().vocab);
    let asked = || prompt(model.as_ref(), &[5, 6, 7], DecodeOptions::greedy(50));

    assert!(matches!(
        scheduler.check(&asked(), 50),
        Err(ModelError::TooManyPositions { .. })
    ));
    scheduler.check(&asked(), 6).unwrap();
    scheduler.add(RequestId::next(), asked()).unwrap();
    let ended = run(&mut scheduler, model.as_ref(), &[]);

    let answer = ended[0].1.as_ref().unwrap();
    assert_eq!((answer.ids.len(), answer.ended), (6, false));
}

//! Prompts answered to their end, for tests of networks and of the scheduler.

use std::sync::Arc;

use tch::Tensor;

use crate::inference::{DecodeOptions, Generation, Loras, Prompt, RequestId, Scheduler, SchedulerSizes};
use crate::models::{LanguageModel, ModelError};

/// Answers every prompt, at most `slots` sequences side by side (more, where one answer needs more); in
/// order.
///
/// # Errors
/// [`ModelError`] of the first sequence that fails.
///
/// # Panics
/// Never: every sequence ends.
pub fn generate_all(
    model: &dyn LanguageModel,
    prompts: Vec<Prompt>,
    slots: usize,
    end_ids: &[i64],
    vocabulary: i64,
    loras: Loras<'_>,
) -> Result<Vec<Generation>, ModelError> {
    let widest = prompts.iter().map(|prompt| prompt.options.slots()).max();
    let sizes = SchedulerSizes {
        slots: slots.max(widest.unwrap_or(1)),
        prompt_positions: 1 << 20,
        answer_positions: 1 << 20,
        prefill_positions_max: 0,
        draft_tokens_max: 0,
        preallocate: false,
    };
    let mut scheduler = Scheduler::new(model, sizes, end_ids, vocabulary);
    let mut ids = Vec::new();
    for prompt in prompts {
        let id = RequestId::next();
        scheduler.add(id, prompt)?;
        ids.push(id);
    }
    let mut found: Vec<Option<Generation>> = ids.iter().map(|_| None).collect();
    while scheduler.has_unfinished() {
        for (id, ended) in scheduler.step(model, loras).ended {
            let at = ids.iter().position(|known| *known == id);
            found[at.expect("an id that was added")] = Some(ended?);
        }
    }
    Ok(found
        .into_iter()
        .map(|found| found.expect("every sequence ends"))
        .collect())
}

/// Answers every prompt `[P_i, H]` with the same options, freely, over the model's whole vocabulary.
///
/// # Errors
/// As [`generate_all`].
pub fn generate_alike(
    model: &dyn LanguageModel,
    prompts: &[Tensor],
    options: DecodeOptions,
    slots: usize,
    end_ids: &[i64],
) -> Result<Vec<Generation>, ModelError> {
    let prompts = (prompts.iter())
        .map(|embeds| Prompt {
            embeds: embeds.shallow_clone(),
            prefix: Arc::default(),
            options,
            grammar: None,
            lora: None,
            joint: None,
            labels: Vec::new(),
        })
        .collect();
    generate_all(model, prompts, slots, end_ids, model.info().vocab, &[])
}

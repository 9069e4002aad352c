//! Greedy answers over any [`LanguageModel`]: prompts wait for a slot, join the running batch, and leave it when
//! their answer ends.

use std::collections::VecDeque;

use tch::{Kind, Tensor};

use super::{LanguageModel, ModelError};
use crate::nn::lora::LoraSet;

/// How answers are generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerateOptions {
    /// Most tokens of one answer, the end token not counted.
    pub max_tokens: usize,
    /// Ids that end an answer.
    pub end_ids: Vec<i64>,
    /// Most prompts in the batch at the same time.
    pub slots: usize,
    /// Ids from here on are never chosen: a model's table may be larger than its tokenizer's vocabulary. Absent: all
    /// may be.
    pub vocabulary: Option<i64>,
    /// Ends an answer that repeats itself, and keeps one of the repeats; see [`repeated_tail`].
    pub stop_loops: bool,
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    /// Its tokens, without the one that ended it.
    pub ids: Vec<i64>,
    /// Natural logarithm of each token's probability, as long as `ids`.
    pub log_probabilities: Vec<f32>,
    /// Whether the model ended it itself; if not, it was cut at `max_tokens` or at the model's last position.
    pub finished: bool,
}

impl Generated {
    /// Mean log-probability of its tokens; none for an empty answer.
    pub fn score(&self) -> Option<f32> {
        let count = self.log_probabilities.len();
        (count > 0).then(|| self.log_probabilities.iter().sum::<f32>() / count as f32)
    }
}

/// Answers each prompt greedily; an answer does not depend on the prompts beside it.
///
/// # Shapes
/// `prompts`: `[P_i, H]` each, in the model's width.
///
/// # Errors
/// [`ModelError`] when a prompt is empty, too long or of another width.
pub fn generate(
    model: &dyn LanguageModel,
    prompts: &[Tensor],
    options: &GenerateOptions,
    lora: Option<&LoraSet>,
) -> Result<Vec<Generated>, ModelError> {
    let info = model.info();
    let mut longest = 0;
    for prompt in prompts {
        match prompt.size().as_slice() {
            [positions, width] if *positions > 0 && *width == info.width => {
                longest = longest.max(*positions);
            }
            other => {
                return Err(ModelError::Shape {
                    what: "a prompt",
                    expected: format!("[P, {}]", info.width),
                    found: other.to_vec(),
                });
            }
        }
    }
    if longest > info.max_positions {
        return Err(ModelError::TooManyPositions {
            positions: longest,
            positions_max: info.max_positions,
        });
    }
    let mut answers = vec![Generated::default(); prompts.len()];
    if prompts.is_empty() || options.max_tokens == 0 {
        return Ok(answers);
    }
    let _no_grad = tch::no_grad_guard();
    let slots = options.slots.clamp(1, prompts.len());
    let answer_positions = i64::try_from(options.max_tokens).unwrap_or(i64::MAX);
    let mut cache = model.new_cache(slots as i64, longest, answer_positions);
    let mut free: VecDeque<usize> = (0..slots).collect();
    let mut waiting: VecDeque<usize> = (0..prompts.len()).collect();
    // Rows of the running batch: slot, prompt, and the token to feed next.
    let mut running: Vec<(usize, usize, i64)> = Vec::new();

    while !waiting.is_empty() || !running.is_empty() {
        let joining: Vec<(usize, usize)> = std::iter::from_fn(|| {
            let slot = *free.front()?;
            let prompt = waiting.pop_front()?;
            free.pop_front();
            Some((slot, prompt))
        })
        .collect();
        let mut predicted = Vec::new();
        if !running.is_empty() {
            running.sort_unstable();
            let ids: Vec<i64> = running.iter().map(|(_, _, id)| *id).collect();
            let at: Vec<usize> = running.iter().map(|(slot, _, _)| *slot).collect();
            let logits = model.step(&ids, &mut cache, &at, lora)?;
            let rows = running.drain(..).map(|(slot, prompt, _)| (slot, prompt));
            predicted.extend(rows.zip(choose(&logits, options.vocabulary)?));
        }
        if !joining.is_empty() {
            let rows: Vec<&Tensor> = joining.iter().map(|(_, prompt)| &prompts[*prompt]).collect();
            let lengths: Vec<i64> = rows.iter().map(|row| row.size()[0]).collect();
            let padded = Tensor::pad_sequence(&rows, true, 0.0, "right"); // [B, P, H]
            let at: Vec<usize> = joining.iter().map(|(slot, _)| *slot).collect();
            let logits = model.prefill(&padded, &lengths, &mut cache, &at, lora)?;
            predicted.extend(joining.into_iter().zip(choose(&logits, options.vocabulary)?));
        }
        for ((slot, prompt), (id, log_probability)) in predicted {
            let answer = &mut answers[prompt];
            if options.end_ids.contains(&id) {
                answer.finished = true;
            } else {
                answer.ids.push(id);
                answer.log_probabilities.push(log_probability);
                if let Some(extra) = repeated_tail(&answer.ids).filter(|_| options.stop_loops) {
                    answer.ids.truncate(answer.ids.len() - extra);
                    answer.log_probabilities.truncate(answer.ids.len());
                } else if answer.ids.len() < options.max_tokens && cache.room(slot) > 0 {
                    running.push((slot, prompt, id));
                    continue;
                }
            }
            cache.clear(slot);
            free.push_back(slot);
        }
    }
    Ok(answers)
}

/// The likeliest token of each row of logits `[B, V]` among ids below `vocabulary`, with its log-probability among all.
pub(crate) fn choose(logits: &Tensor, vocabulary: Option<i64>) -> Result<Vec<(i64, f32)>, ModelError> {
    let width = logits.size().last().copied().unwrap_or(0);
    let allowed = logits.f_narrow(
        -1,
        0,
        vocabulary.map_or(width, |vocabulary| vocabulary.clamp(1, width)),
    )?;
    let (values, ids) = allowed.f_max_dim(-1, false)?; // [B] each
    let log_probabilities = values - logits.f_logsumexp(-1, false)?;
    let ids = Vec::<i64>::try_from(&ids)?;
    let log_probabilities = Vec::<f32>::try_from(log_probabilities.to_kind(Kind::Float))?;
    Ok(ids.into_iter().zip(log_probabilities).collect())
}

/// How many tokens at the end of an answer only repeat what is before them: the answer is caught in a loop, from which
/// greedy decoding does not come back. That is when a run of one to eight tokens stands there four times (a single token
/// eight times, because numbers and dashes repeat by nature); one of the repeats is not counted.
pub fn repeated_tail(ids: &[i64]) -> Option<usize> {
    const RUN_MAX: usize = 8;
    (1..=RUN_MAX).find_map(|run| {
        let times = if run == 1 { 8 } else { 4 };
        let tail = ids.len().checked_sub(run * times).map(|start| &ids[start..])?;
        let repeats = tail.windows(run + 1).all(|window| window[0] == window[run]);
        repeats.then_some(run * (times - 1))
    })
}

#[cfg(test)]
mod tests {
    use super::repeated_tail;

    #[test]
    fn an_answer_that_ends_in_repeats_is_caught_and_keeps_one_of_them() {
        assert_eq!(repeated_tail(&[9, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3]), Some(9));
        assert_eq!(repeated_tail(&[4, 7, 7, 7, 7, 7, 7, 7, 7]), Some(7));
    }

    #[test]
    fn a_few_repeats_are_no_loop() {
        assert_eq!(repeated_tail(&[1, 2, 3, 1, 2, 3, 1, 2, 3]), None);
        assert_eq!(repeated_tail(&[5, 5, 5, 5]), None);
        assert_eq!(repeated_tail(&[]), None);
    }
}

//! Repetition: answers caught in a loop are ended; on request, tokens that were there before are made less
//! likely, or sequences of them forbidden, as the transformers library does.

use std::collections::BTreeSet;

use tch::{Kind, Tensor};

use crate::models::ModelError;

/// How many tokens at the end of an answer only repeat what is before them: the answer is caught in a loop,
/// from which greedy decoding does not come back. That is when a run of up to 24 tokens, a few slots with
/// their values, stands there four times (a single token eight times, because numbers and dashes repeat by
/// nature); one of the repeats is not counted.
pub fn repeated_tail(ids: &[i64]) -> Option<usize> {
    const RUN_MAX: usize = 24;
    (1..=RUN_MAX).find_map(|run| {
        let times = if run == 1 { 8 } else { 4 };
        let tail = ids.len().checked_sub(run * times).map(|start| &ids[start..])?;
        let repeats = tail.windows(run + 1).all(|window| window[0] == window[run]);
        repeats.then_some(run * (times - 1))
    })
}

/// Makes what the answer holds already less likely: positive scores are divided by `penalty`, negative ones
/// multiplied.
///
/// # Shapes
/// `scores` `[V]` → `[V]`.
///
/// # Errors
/// [`ModelError::Torch`] when libtorch fails.
///
/// # Source
/// transformers 5, `RepetitionPenaltyLogitsProcessor`; here the answer alone counts, as the prompt has no
/// ids.
pub(super) fn penalise(scores: &Tensor, answer: &[i64], penalty: f64) -> Result<Tensor, ModelError> {
    let seen: Vec<i64> = answer
        .iter()
        .copied()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    if seen.is_empty() {
        return Ok(scores.shallow_clone());
    }
    let seen = Tensor::f_from_slice(&seen)?.f_to_device(scores.device())?;
    let old = scores.f_index_select(0, &seen)?;
    let new = (&old * penalty).f_where_self(&old.f_lt(0.0)?, &(&old / penalty))?;
    Ok(scores.f_index_copy(0, &seen, &new)?)
}

/// The tokens that would complete a sequence of `size` tokens that the answer holds already.
///
/// # Source
/// transformers 5, `NoRepeatNGramLogitsProcessor`; here the answer alone counts.
pub(super) fn repeating(answer: &[i64], size: usize) -> Vec<i64> {
    if size == 0 || answer.len() + 1 < size {
        return Vec::new();
    }
    let tail = &answer[answer.len() + 1 - size..];
    let runs = answer.windows(size).filter(|run| run[..size - 1] == *tail);
    runs.map(|run| run[size - 1])
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// Forbids ids: `[V]` → `[V]`.
///
/// # Errors
/// [`ModelError::Torch`] when libtorch fails.
pub(super) fn forbid(scores: &Tensor, ids: &[i64]) -> Result<Tensor, ModelError> {
    if ids.is_empty() {
        return Ok(scores.shallow_clone());
    }
    let ids = Tensor::f_from_slice(ids)?.f_to_device(scores.device())?;
    Ok(scores.f_index_fill(0, &ids, f64::NEG_INFINITY)?)
}

/// Forbids all but some ids: `[V]` → `[V]`.
///
/// # Errors
/// [`ModelError::Torch`] when libtorch fails.
pub(super) fn keep(scores: &Tensor, ids: &[i64]) -> Result<Tensor, ModelError> {
    let ids = Tensor::f_from_slice(ids)?
        .f_to_device(scores.device())?
        .f_to_kind(Kind::Int64)?;
    let nothing = scores.f_full_like(f64::NEG_INFINITY)?;
    Ok(nothing.f_index_copy(0, &ids, &scores.f_index_select(0, &ids)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_ends_in_repeats_is_caught_and_keeps_one_of_them() {
        assert_eq!(repeated_tail(&[9, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3]), Some(9));
        assert_eq!(repeated_tail(&[4, 7, 7, 7, 7, 7, 7, 7, 7]), Some(7));
        let slots: Vec<i64> = (0..24).collect(); // `roast = …; size = …;`
        assert_eq!(repeated_tail(&slots.repeat(4)), Some(72));
        assert_eq!(repeated_tail(&slots.repeat(3)), None);
    }

    #[test]
    fn a_few_repeats_are_no_loop() {
        assert_eq!(repeated_tail(&[1, 2, 3, 1, 2, 3, 1, 2, 3]), None);
        assert_eq!(repeated_tail(&[5, 5, 5, 5]), None);
        assert_eq!(repeated_tail(&[]), None);
    }

    #[test]
    fn sequences_that_were_there_are_found_by_their_beginning() {
        assert_eq!(repeating(&[1, 2, 3, 1, 2], 3), [3]);
        assert_eq!(repeating(&[1, 2, 1, 3, 1], 2), [2, 3]);
        assert_eq!(repeating(&[4, 5], 1), [4, 5]);
        assert!(repeating(&[1, 2], 3).is_empty());
        assert!(repeating(&[1, 2, 3], 0).is_empty());
    }

    #[test]
    fn a_penalty_lowers_what_was_there_whatever_its_sign() {
        let scores = Tensor::from_slice(&[2.0f32, -2.0, 3.0, -3.0]);

        let found = penalise(&scores, &[0, 1, 1], 2.0).unwrap();

        assert_eq!(Vec::<f32>::try_from(&found).unwrap(), [1.0, -4.0, 3.0, -3.0]);
    }
}

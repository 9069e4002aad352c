//! Sampling: temperature, the `top_k` likeliest, the likeliest that make up `top_p`, and a seeded draw.
//!
//! Order and meaning are those of transformers 5 (`TemperatureLogitsWarper`, `TopKLogitsWarper`,
//! `TopPLogitsWarper`): scores are divided by the temperature, then all below the k-th are dropped (equals of
//! the k-th stay), then the unlikeliest that together make up no more than `1 - top_p`; the likeliest always
//! stays.

use tch::{Kind, Tensor};

use crate::inference::Sampling;
use crate::models::ModelError;
use crate::util::random::SplitMix;

/// Scores from which to draw: `[V]` → f32 `[V]`, with minus infinity for what was dropped.
///
/// # Errors
/// [`ModelError::Torch`] when libtorch fails.
pub(in crate::inference) fn warp(scores: &Tensor, sampling: &Sampling) -> Result<Tensor, ModelError> {
    let mut scores = scores.f_to_kind(Kind::Float)? / sampling.temperature;
    if sampling.top_k > 0 {
        let count = i64::try_from(sampling.top_k)
            .unwrap_or(i64::MAX)
            .min(scores.size()[0]);
        let (best, _) = scores.f_topk(count, 0, true, true)?;
        let dropped = scores.f_lt_tensor(&best.f_get(count - 1)?)?;
        scores = scores.f_masked_fill(&dropped, f64::NEG_INFINITY)?;
    }
    if sampling.top_p < 1.0 {
        let (ascending, order) = scores.f_sort(0, false)?;
        let cumulative = ascending.f_softmax(0, Kind::Float)?.f_cumsum(0, Kind::Float)?;
        let last = scores.size()[0] - 1;
        let dropped = cumulative.f_le(1.0 - sampling.top_p)?;
        let _ = dropped.f_get(last)?.f_fill_(0)?;
        let dropped = dropped.f_scatter(0, &order, &dropped)?;
        scores = scores.f_masked_fill(&dropped, f64::NEG_INFINITY)?;
    }
    Ok(scores)
}

/// One draw from `scores` `[V]`; `answer_seed` and the token's place in the answer decide it, nothing else.
///
/// # Errors
/// [`ModelError::Torch`] when libtorch fails.
pub(super) fn draw(scores: &Tensor, sampling: &Sampling, place: usize) -> Result<i64, ModelError> {
    let scores = warp(scores, sampling)?;
    let cumulative = scores.f_softmax(0, Kind::Double)?.f_cumsum(0, Kind::Double)?; // [V]
    let total = cumulative.f_get(cumulative.size()[0] - 1)?.f_double_value(&[])?;
    let point = SplitMix::new(&[sampling.seed, place as u64]).unit() * total;
    // The first token whose share reaches beyond the point; one without a share never does.
    let id = cumulative.f_le(point)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    Ok(id.min(scores.size()[0] - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f64, top_k: usize, top_p: f64, seed: u64) -> Sampling {
        Sampling {
            temperature,
            top_k,
            top_p,
            seed,
        }
    }

    #[test]
    fn draws_come_as_often_as_they_are_likely_and_never_from_what_was_dropped() {
        const DRAWS: usize = 20_000;
        let scores = Tensor::from_slice(&[0.5f32, 2.0, -1.0, 1.5, 0.0, 1.5, -3.0]);
        for sampling in [
            sampling(1.0, 0, 1.0, 1),
            sampling(0.7, 3, 1.0, 2),
            sampling(1.3, 0, 0.8, 3),
            sampling(2.0, 5, 0.6, 4),
        ] {
            let likely = warp(&scores, &sampling).unwrap().softmax(0, Kind::Double);
            let mut found = [0usize; 7];
            for place in 0..DRAWS {
                found[draw(&scores, &sampling, place).unwrap() as usize] += 1;
            }
            for (id, count) in found.iter().enumerate() {
                let expected = likely.double_value(&[id as i64]);
                let share = *count as f64 / DRAWS as f64;
                // Four standard deviations.
                let bound = 4.0 * (expected * (1.0 - expected) / DRAWS as f64).sqrt();
                assert!(
                    (share - expected).abs() <= bound,
                    "{sampling:?} {id}: {share} for {expected}"
                );
            }
        }
    }

    #[test]
    fn a_seed_repeats_its_draws_and_another_one_does_not() {
        let scores = Tensor::zeros([50], (Kind::Float, tch::Device::Cpu));
        let draws = |seed| -> Vec<i64> {
            let sampling = sampling(1.0, 0, 1.0, seed);
            (0..20)
                .map(|place| draw(&scores, &sampling, place).unwrap())
                .collect()
        };

        assert_eq!(draws(7), draws(7));
        assert_ne!(draws(7), draws(8));
    }

    #[test]
    fn one_candidate_is_always_drawn() {
        let scores = Tensor::from_slice(&[0.1f32, 3.0, 2.9]);
        for place in 0..50 {
            assert_eq!(draw(&scores, &sampling(1.0, 1, 1.0, 5), place).unwrap(), 1);
            assert_eq!(draw(&scores, &sampling(1.0, 0, 0.01, 5), place).unwrap(), 1);
        }
    }
}

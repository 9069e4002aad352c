//! Positions of the language model from runs of a CTC path: one for each token that the head reads.
//!
//! Source of the idea: Wu et al. 2023, "On decoder-only architecture for speech-to-text" (arXiv 2307.03917).
//! A token takes some four frames of 80 ms, so a prompt is some three times shorter, and where nothing is
//! said nothing is read.

use std::ops::Range;

use tch::Tensor;

use crate::models::ModelError;

/// Class of the blank.
pub(super) const BLANK: i64 = 0;

/// The runs of equal classes other than the blank, in order.
pub(super) fn runs(path: &[i64]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (at, class) in path.iter().enumerate().filter(|(_, class)| **class != BLANK) {
        match runs.last_mut() {
            Some(run) if run.end == at && path[run.start] == *class => run.end += 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}

/// The share that each of `frames` frames has in each run of its row's path, `[B, S, P]` on the CPU, and the
/// number of runs in each row.
pub(super) fn shares(
    paths: &[Vec<i64>],
    frames: i64,
    never_empty: bool,
) -> Result<(Tensor, Vec<i64>), ModelError> {
    let rows: Vec<Vec<Range<usize>>> = paths
        .iter()
        .map(|path| {
            let found = runs(path);
            let everything = std::iter::once(0..path.len());
            if found.is_empty() && never_empty {
                everything.collect()
            } else {
                found
            }
        })
        .collect();
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let most = rows.iter().map(Vec::len).max().unwrap_or(0);
    let of_row = usize::try_from(frames).unwrap_or(0);
    let mut shares = vec![0.0f32; rows.len() * most * of_row];
    for (row, found) in rows.iter().enumerate() {
        for (at, run) in found.iter().enumerate() {
            let begin = (row * most + at) * of_row;
            #[expect(clippy::cast_precision_loss, reason = "a small count")]
            let share = 1.0 / run.len() as f32;
            shares[begin + run.start..begin + run.end].fill(share);
        }
    }
    let shares = Tensor::f_from_slice(&shares)?.f_view([count(rows.len()), count(most), frames])?;
    Ok((shares, rows.iter().map(|found| count(found.len())).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_of_one_class_and_blanks_divide_equal_ones() {
        assert_eq!(runs(&[0, 4, 4, 0, 4, 7, 7, 7, 0]), [1..3, 4..5, 5..8]);
        assert!(runs(&[0, 0]).is_empty() && runs(&[]).is_empty());
    }

    #[test]
    fn a_position_is_the_mean_of_its_frames_and_its_gradient_is_shared_among_them() {
        let frames = Tensor::from_slice(&[1.0f32, 2.0, 4.0, 8.0, 1.0, 1.0, 3.0, 9.0])
            .view([2, 4, 1])
            .set_requires_grad(true);

        let (shares, lengths) = shares(&[vec![5, 5, 0, 6], vec![0, 0, 0]], 4, true).unwrap();
        let means = shares.bmm(&frames);
        means.sum(tch::Kind::Float).backward();

        assert_eq!(lengths, [2, 1]);
        let found = Vec::<f32>::try_from(means.view([-1])).unwrap();
        assert_eq!(found[..2], [1.5, 8.0]);
        assert!((found[2] - 5.0 / 3.0).abs() < 1e-6 && found[3] == 0.0);
        let grads = Vec::<f32>::try_from(frames.grad().view([-1])).unwrap();
        assert_eq!(grads[..4], [0.5, 0.5, 0.0, 1.0]);
        assert_eq!(grads[7], 0.0, "padding is no part of a mean");
    }

    #[test]
    fn a_row_in_which_nothing_is_said_may_have_no_position_where_another_one_stands_for_it() {
        let (shares, lengths) = shares(&[vec![0, 0, 0]], 3, false).unwrap();

        assert_eq!((shares.size(), lengths), (vec![1, 0, 3], vec![0]));
    }
}

//! Alignment of an embedding of a clip (its summary, or that of what is said) with the language model's words
//! for what it is.
//!
//! Next-token loss through a frozen language model moves a fresh embedding slowly. Here it is classified at
//! once, among the labels of the clip's task ([`label_scores`]).

use tch::{Kind, Tensor};

use crate::models::ModelError;
use crate::models::adapter::label_scores;

/// The right label among those that a sample may be answered with.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelTarget {
    /// Tokens of each label, at least one each.
    pub labels: Vec<Vec<i64>>,
    /// Which one is right.
    pub right: usize,
    /// Weight of the sample: all answers of a task together weigh the same, however many samples have each.
    pub weight: f64,
}

/// Mean of the weighted cross-entropies of the rows that have a target; none when there are none.
///
/// # Shapes
/// `embeddings` `[B, H]` f32, `table` `[V, H]` the language model's embeddings → scalar.
///
/// # Errors
/// [`ModelError::Torch`] when libtorch fails.
pub fn label_loss(
    embeddings: &Tensor,
    targets: &[Option<&LabelTarget>],
    table: &Tensor,
) -> Result<Option<Tensor>, ModelError> {
    let mut losses = Vec::new();
    for (row, target) in (0i64..).zip(targets) {
        let Some(target) = target else { continue };
        let scores = label_scores(&embeddings.f_get(row)?, &target.labels, table)?; // [N]
        let right = i64::try_from(target.right).unwrap_or(i64::MAX);
        losses.push(scores.f_log_softmax(0, Kind::Float)?.f_get(right)? * -target.weight);
    }
    if losses.is_empty() {
        return Ok(None);
    }
    Ok(Some(Tensor::f_stack(&losses, 0)?.f_mean(Kind::Float)?))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn the_loss_is_the_weighted_cross_entropy_of_the_labels_scores() {
        let table = Tensor::eye(4, (Kind::Float, Device::Cpu));
        let embeddings = Tensor::from_slice2(&[[3.0f32, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 5.0]]);
        let target = |right, weight| LabelTarget {
            labels: vec![vec![0], vec![1, 2]],
            right,
            weight,
        };
        let loss = |targets: &[Option<&LabelTarget>]| {
            label_loss(&embeddings, targets, &table)
                .unwrap()
                .map(|loss| loss.double_value(&[]))
        };
        let of = |row: i64, right: i64| {
            let scores = label_scores(&embeddings.get(row), &target(0, 1.0).labels, &table).unwrap();
            -scores.log_softmax(0, Kind::Float).double_value(&[right])
        };

        let (first, second) = (target(1, 0.5), target(0, 3.0));
        let both = loss(&[Some(&first), Some(&second)]).unwrap();
        assert!((both - (0.5 * of(0, 1) + 3.0 * of(1, 0)) / 2.0).abs() < 1e-4);
        assert!((loss(&[None, Some(&second)]).unwrap() - 3.0 * 2f64.ln()).abs() < 1e-4);
        assert_eq!(loss(&[None, None]), None);
    }
}

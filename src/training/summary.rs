//! Alignment of a clip's summary with the language model's words for what it is like: what the CTC loss does
//! for frames, done for the position of the whole clip.
//!
//! Next-token loss through a frozen language model moves a fresh summary slowly. Here the summary is
//! classified at once, among the labels of the clip's task: `scores = SCALE · cos(summary, label)`, a label
//! being the mean of the embeddings of its tokens. One vector can lie near the right labels of several tasks.

use tch::{Kind, TchError, Tensor};

/// Sharpness of the scores; about what the CTC head's own, learned scale comes to.
const SCALE: f64 = 16.0;
/// Keeps lengths from zero.
const LENGTH_EPS: f64 = 1e-6;

/// The right label among those that a sample may be answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelTarget {
    /// Tokens of each label, at least one each.
    pub labels: Vec<Vec<i64>>,
    /// Which one is right.
    pub right: usize,
}

/// Mean cross-entropy of the rows that have a target; none when there are none.
///
/// # Shapes
/// `summaries` `[B, H]` f32, `table` `[V, H]` the language model's embeddings → scalar.
///
/// # Errors
/// [`TchError`] when libtorch fails.
pub fn summary_loss(
    summaries: &Tensor,
    targets: &[Option<&LabelTarget>],
    table: &Tensor,
) -> Result<Option<Tensor>, TchError> {
    let unit = |x: &Tensor| -> Result<Tensor, TchError> {
        let length = x.f_norm_scalaropt_dim(2, [-1i64].as_slice(), true)?;
        x.f_div(&(length + LENGTH_EPS))
    };
    let mut losses = Vec::new();
    for (row, target) in (0i64..).zip(targets) {
        let Some(target) = target else { continue };
        let mut labels = Vec::with_capacity(target.labels.len());
        for tokens in &target.labels {
            let tokens = Tensor::f_from_slice(tokens)?.f_to_device(table.device())?;
            let embedded = table.f_index_select(0, &tokens)?.f_to_kind(Kind::Float)?; // [L, H]
            labels.push(embedded.f_mean_dim([0i64].as_slice(), false, Kind::Float)?);
        }
        let labels = unit(&Tensor::f_stack(&labels, 0)?)?; // [N, H]
        let scores = labels.f_mv(&(unit(&summaries.f_get(row)?)? * SCALE))?; // [N]
        let right = i64::try_from(target.right).unwrap_or(i64::MAX);
        losses.push(scores.f_log_softmax(0, Kind::Float)?.f_get(right)?.f_neg()?);
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

    fn target(right: usize) -> LabelTarget {
        LabelTarget {
            labels: vec![vec![0], vec![1, 2]],
            right,
        }
    }

    #[test]
    fn the_loss_is_the_cross_entropy_of_the_cosines_with_the_labels_mean_embeddings() {
        let table = Tensor::eye(4, (Kind::Float, Device::Cpu));
        let summaries = Tensor::from_slice2(&[
            [3.0f32, 0.0, 0.0, 0.0],
            [0.0, 2.0, 2.0, 0.0],
            [0.0, 0.0, 0.0, 5.0],
        ]);
        let (first, second) = (target(0), target(1));

        let loss = |targets: &[Option<&LabelTarget>]| {
            summary_loss(&summaries, targets, &table)
                .unwrap()
                .map(|loss| loss.double_value(&[]))
        };

        // The first is its label, the second the mean of its label's tokens, the third is like neither.
        let right = (1.0 + (-SCALE).exp()).ln();
        assert!((loss(&[Some(&first), Some(&second), None]).unwrap() - right).abs() < 1e-4);
        assert!((loss(&[Some(&second), None, None]).unwrap() - (right + SCALE)).abs() < 1e-3);
        assert!((loss(&[None, None, Some(&first)]).unwrap() - 2f64.ln()).abs() < 1e-4);
        assert_eq!(loss(&[None, None, None]), None);
    }
}

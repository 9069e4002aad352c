//! Scores of a clip's labels by one of its embeddings (the summary, or that of what is said): what the CTC
//! head does for frames, for the whole clip.

use tch::{Kind, Tensor};

use crate::models::ModelError;

/// Sharpness of the scores; about what the CTC head's own, learned scale comes to.
const SCALE: f64 = 16.0;
/// Keeps lengths from zero.
const LENGTH_EPS: f64 = 1e-6;

/// Unnormalised log-probabilities of labels: `SCALE · cos(clip, label)`, a label being the mean of the
/// embeddings of its tokens. One vector can lie near the right labels of several tasks.
///
/// # Shapes
/// `clip` `[H]` f32; `labels`: tokens of each of the N labels, at least one each; `table` `[V, H]` the
/// language model's embeddings → `[N]` f32, differentiable in `clip`.
///
/// # Errors
/// [`ModelError::Torch`] when a token is no row of the table, or libtorch fails.
pub fn label_scores(clip: &Tensor, labels: &[Vec<i64>], table: &Tensor) -> Result<Tensor, ModelError> {
    scores_of_embeddings(clip, &label_embeddings(labels, table)?)
}

/// As [`label_scores`], of labels by their directions `[N, H]` ([`label_embeddings`]).
///
/// # Errors
/// [`ModelError::Torch`] when libtorch fails.
pub fn scores_of_embeddings(clip: &Tensor, labels: &Tensor) -> Result<Tensor, ModelError> {
    Ok(labels.f_mv(&(unit(clip)? * SCALE))?)
}

/// The directions that labels are in: the mean of each one's token embeddings, brought to length 1.
///
/// # Shapes
/// `labels`: tokens of each of the N labels, at least one each; `table` `[V, H]` → `[N, H]` f32.
///
/// # Errors
/// As [`label_scores`].
pub fn label_embeddings(labels: &[Vec<i64>], table: &Tensor) -> Result<Tensor, ModelError> {
    let mut embedded = Vec::with_capacity(labels.len());
    for tokens in labels {
        let tokens = Tensor::f_from_slice(tokens)?.f_to_device(table.device())?;
        let rows = table.f_index_select(0, &tokens)?.f_to_kind(Kind::Float)?; // [L, H]
        embedded.push(rows.f_mean_dim([0i64].as_slice(), false, Kind::Float)?);
    }
    unit(&Tensor::f_stack(&embedded, 0)?)
}

fn unit(x: &Tensor) -> Result<Tensor, ModelError> {
    let length = x.f_norm_scalaropt_dim(2, [-1i64].as_slice(), true)?;
    Ok(x.f_div(&(length + LENGTH_EPS))?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn scores_are_the_cosines_with_the_mean_embeddings_of_the_labels() {
        let table = Tensor::eye(4, (Kind::Float, Device::Cpu));
        let scores = |summary: [f32; 4]| {
            let found = label_scores(&Tensor::from_slice(&summary), &[vec![0], vec![1, 2]], &table).unwrap();
            Vec::<f32>::try_from(&found).unwrap()
        };
        let close = |found: &[f32], expected: [f64; 2]| {
            let pairs = found.iter().zip(expected);
            pairs
                .into_iter()
                .all(|(found, expected)| (f64::from(*found) - expected).abs() < 1e-4)
        };

        assert!(close(&scores([3.0, 0.0, 0.0, 0.0]), [SCALE, 0.0]));
        assert!(close(&scores([0.0, 2.0, 2.0, 0.0]), [0.0, SCALE]));
        assert!(close(&scores([0.0, 0.0, 0.0, 5.0]), [0.0, 0.0]));
    }
}

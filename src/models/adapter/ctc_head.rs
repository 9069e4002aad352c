//! CTC head: scores of the language model's own tokens for each frame of the downsampler.
//!
//! Its output layer is the language model's frozen embedding table, row by row brought to length 1, plus one
//! learned blank vector: `logits = scale · cos(frame, token)`. It trains the downsampler towards where the
//! tokens lie, reads transcripts without the language model, and says which frames belong to one token.
//!
//! Source: a finding of this project: with a frozen language model, next-token loss moves a fresh downsampler
//! very slowly. CTC against the unit-length embedding table costs a tenth per step and trains the wanted
//! thing.

use std::collections::HashMap;

use tch::{Kind, Reduction, Tensor};

use super::Adapted;
use super::segments::{BLANK, runs};
use crate::models::ModelError;

/// Added to lengths before dividing by them.
const LENGTH_EPS: f64 = 1e-6;

/// The learned part of the CTC head, and which tokens are its classes. Class 0 is the blank, class `i` is
/// token `classes[i - 1]`.
#[derive(Debug)]
pub struct CtcHead {
    blank: Tensor,
    scale: Tensor,
    classes: Vec<i64>,
    class_of: HashMap<i64, i64>,
    /// The classes' rows of the embedding table, each brought to length 1, `[C, H]` in the dtype of the
    /// products; absent before [`bind`](Self::bind).
    unit: Option<Tensor>,
}

impl CtcHead {
    pub(super) fn new(blank: Tensor, scale: Tensor, classes: Vec<i64>) -> Self {
        let mut head = Self {
            blank,
            scale,
            classes: Vec::new(),
            class_of: HashMap::new(),
            unit: None,
        };
        head.set_classes(classes);
        head
    }

    pub(super) fn set_classes(&mut self, classes: Vec<i64>) {
        self.class_of = classes.iter().zip(1..).map(|(id, class)| (*id, class)).collect();
        self.classes = classes;
        self.unit = None;
    }

    /// Token ids of classes 1, 2, 3 …
    pub fn classes(&self) -> &[i64] {
        &self.classes
    }

    /// Class of each token; none when one of them is no class.
    pub fn classes_of(&self, ids: &[i64]) -> Option<Vec<i64>> {
        ids.iter().map(|id| self.class_of.get(id).copied()).collect()
    }

    /// Takes the classes' rows of the language model's embedding table `[V, H]`, to be multiplied in dtype
    /// `products`.
    ///
    /// # Errors
    /// [`ModelError::TokenOutOfRange`] when a class is no row of the table.
    pub(super) fn bind(&mut self, table: &Tensor, products: Kind) -> Result<(), ModelError> {
        let vocabulary = table.size().first().copied().unwrap_or(0);
        if let Some(id) = self.classes.iter().find(|id| !(0..vocabulary).contains(*id)) {
            return Err(ModelError::TokenOutOfRange { id: *id, vocabulary });
        }
        let _guard = tch::no_grad_guard();
        let classes = Tensor::f_from_slice(&self.classes)?.f_to_device(table.device())?;
        let rows = table.f_index_select(0, &classes)?.f_to_kind(Kind::Float)?; // [C, H]
        self.unit = Some(unit(&rows)?.f_to_kind(products)?);
        Ok(())
    }

    /// Scores of blank and classes, before they are made probabilities: `[B, P, H]` f32 → `[B, P, 1 + C]`
    /// f32.
    fn scores(&self, frames: &Tensor) -> Result<Tensor, ModelError> {
        let tokens = self.unit.as_ref().ok_or(ModelError::NoCtcHead {
            why: "its classes were not taken from a language model's table",
        })?;
        let products = tokens.kind();
        let blank = unit(&self.blank)?.f_unsqueeze(0)?.f_to_kind(products)?; // [1, H]
        let rows = Tensor::f_cat(&[&blank, tokens], 0)?; // [1+C, H]
        let directions = (unit(frames)? * &self.scale).f_to_kind(products)?; // [B, P, H]
        Ok(directions
            .f_matmul(&rows.f_transpose(0, 1)?)?
            .f_to_kind(Kind::Float)?)
    }

    /// Log-probabilities of blank and classes.
    ///
    /// # Shapes
    /// `frames` `[B, P, H]` f32 → `[B, P, 1 + C]` f32.
    ///
    /// # Errors
    /// [`ModelError::NoCtcHead`] before the head is bound to a table; [`ModelError::Torch`] when widths
    /// disagree.
    pub fn log_probabilities(&self, frames: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.scores(frames)?.f_log_softmax(-1, Kind::Float)?)
    }

    /// Mean over rows of the loss per target token; of a row with nothing said, per frame.
    ///
    /// Rows whose target does not fit into their frames count zero, as torch's `zero_infinity`.
    ///
    /// # Shapes
    /// `adapted` `[B, P, H]`; `targets`: classes of each row, empty where nothing is said.
    ///
    /// # Errors
    /// [`ModelError`] when there is not one target per row.
    pub fn loss(&self, adapted: &Adapted, targets: &[Vec<i64>]) -> Result<Tensor, ModelError> {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        if targets.len() != adapted.lengths.len() || targets.is_empty() {
            return Err(ModelError::Shape {
                what: "CTC targets",
                expected: format!("{} targets", adapted.lengths.len()),
                found: vec![count(targets.len())],
            });
        }
        let scores = self.log_probabilities(&adapted.positions)?.f_transpose(0, 1)?; // [P, B, 1+C]
        let lengths: Vec<i64> = targets.iter().map(|target| count(target.len())).collect();
        let flat = Tensor::f_from_slice(&targets.concat())?.f_to_device(scores.device())?;
        let of_rows = Tensor::f_ctc_loss(
            &scores,
            &flat,
            adapted.lengths.as_slice(),
            lengths.as_slice(),
            BLANK,
            Reduction::None,
            true,
        )?; // [B]
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let shares: Vec<f32> = (lengths.iter().zip(&adapted.lengths))
            .map(|(tokens, frames)| 1.0 / *(if *tokens > 0 { tokens } else { frames }) as f32)
            .collect();
        let shares = Tensor::f_from_slice(&shares)?.f_to_device(of_rows.device())?;
        Ok((of_rows * shares).f_mean(Kind::Float)?)
    }

    /// The likeliest class of each valid frame.
    ///
    /// # Errors
    /// [`ModelError`] as [`log_probabilities`](Self::log_probabilities).
    pub fn paths(&self, adapted: &Adapted) -> Result<Vec<Vec<i64>>, ModelError> {
        let _guard = tch::no_grad_guard();
        let best = self.scores(&adapted.positions)?.f_argmax(-1, false)?; // [B, P]
        let frames = usize::try_from(best.size()[1]).unwrap_or(0);
        let best = Vec::<i64>::try_from(best.f_contiguous()?.f_view([-1])?)?;
        let rows = best.chunks(frames.max(1)).zip(&adapted.lengths);
        Ok(rows
            .map(|(row, length)| row[..usize::try_from(*length).unwrap_or(0).min(row.len())].to_vec())
            .collect())
    }

    /// Greedy reading of each row: repeats of the path joined, blanks dropped; token ids.
    ///
    /// # Errors
    /// [`ModelError`] as [`log_probabilities`](Self::log_probabilities).
    pub fn read(&self, adapted: &Adapted) -> Result<Vec<Vec<i64>>, ModelError> {
        let paths = self.paths(adapted)?;
        Ok(paths
            .iter()
            .map(|path| {
                (runs(path).into_iter())
                    .map(|run| {
                        let class = usize::try_from(path[run.start] - 1).expect("a run is not of blanks");
                        self.classes[class]
                    })
                    .collect()
            })
            .collect())
    }
}

fn unit(rows: &Tensor) -> Result<Tensor, ModelError> {
    let length = rows
        .f_square()?
        .f_sum_dim_intlist(-1, true, Kind::Float)?
        .f_sqrt()?;
    Ok(rows / (length + LENGTH_EPS))
}

#[cfg(test)]
mod tests;

//! CTC head: scores of the language model's own tokens for each adapter position.
//!
//! Its output layer is the language model's frozen embedding table, row by row brought to length 1, plus one learned
//! blank vector: `logits = scale · cos(position, token)`. Nothing of it is needed to answer; it teaches the downsampler where the tokens lie.

use tch::{Kind, Tensor};

use crate::models::ModelError;

/// Added to lengths before dividing by them.
const LENGTH_EPS: f64 = 1e-6;

/// The learned part of the CTC head, and which tokens are its classes. Class 0 is the blank, class `i` is token `classes[i - 1]`.
#[derive(Debug)]
pub struct CtcHead {
    blank: Tensor,
    scale: Tensor,
    classes: Vec<i64>,
}

impl CtcHead {
    pub(super) fn new(blank: Tensor, scale: Tensor, classes: Vec<i64>) -> Self {
        Self {
            blank,
            scale,
            classes,
        }
    }

    pub(super) fn set_classes(&mut self, classes: Vec<i64>) {
        self.classes = classes;
    }

    /// Token ids of classes 1, 2, 3 …
    pub fn classes(&self) -> &[i64] {
        &self.classes
    }

    /// The rows of `table` that are classes, each brought to length 1: `[V, H]` → `[C, H]` f32. Constant, so make it once.
    ///
    /// # Errors
    /// [`ModelError::TokenOutOfRange`] when a class is no row of the table.
    pub fn unit_table(&self, table: &Tensor) -> Result<Tensor, ModelError> {
        let vocabulary = table.size().first().copied().unwrap_or(0);
        if let Some(id) = self.classes.iter().find(|id| !(0..vocabulary).contains(*id)) {
            return Err(ModelError::TokenOutOfRange { id: *id, vocabulary });
        }
        let _guard = tch::no_grad_guard();
        let classes = Tensor::f_from_slice(&self.classes)?.f_to_device(table.device())?;
        let rows = table.f_index_select(0, &classes)?.f_to_kind(Kind::Float)?; // [C, H]
        unit(&rows)
    }

    /// Log-probabilities of blank and classes.
    ///
    /// # Shapes
    /// `positions` `[B, P, H]` f32, `unit_table` `[C, H]` → `[B, P, 1 + C]` f32.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when widths disagree.
    pub fn log_probabilities(&self, positions: &Tensor, unit_table: &Tensor) -> Result<Tensor, ModelError> {
        let directions = unit(positions)?; // [B, P, H]
        let blank = unit(&self.blank)?.f_unsqueeze(1)?; // [H, 1]
        let to_blank = directions.f_matmul(&blank)?; // [B, P, 1]
        let to_tokens = directions.f_matmul(&unit_table.f_transpose(0, 1)?)?; // [B, P, C]
        let cosines = Tensor::f_cat(&[to_blank, to_tokens], -1)?; // [B, P, 1+C]
        Ok((cosines * &self.scale).f_log_softmax(-1, Kind::Float)?)
    }
}

fn unit(rows: &Tensor) -> Result<Tensor, ModelError> {
    let length = rows
        .f_square()?
        .f_sum_dim_intlist(-1, true, Kind::Float)?
        .f_sqrt()?;
    Ok(rows / (length + LENGTH_EPS))
}

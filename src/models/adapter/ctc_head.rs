//! CTC head: scores of the language model's own tokens for each frame of the downsampler.
//!
//! Its output layer is the language model's frozen embedding table, row by row brought to length 1, plus one
//! learned blank vector: `logits = scale · cos(frame, token)`. It trains the downsampler towards where the
//! tokens lie, reads transcripts without the language model, and says which frames belong to one token.
//!
//! Source: a finding of this project: with a frozen language model, next-token loss moves a fresh downsampler
//! very slowly. CTC against the unit-length embedding table costs a tenth per step and trains the wanted
//! thing.

use std::sync::Arc;

use tch::{Kind, Reduction, Tensor, nn};

use super::Adapted;
use super::segments::{self, BLANK, runs};
use crate::models::ModelError;
use crate::nn::cpu_kernels;
use crate::util::random::SplitMix;

/// Scores of each row's frames and classes, `[B, P, 1+C]`, and the best path through them.
pub type KnownPaths<'k> = (&'k Tensor, &'k [Vec<i64>]);

/// Added to lengths before dividing by them.
const LENGTH_EPS: f64 = 1e-6;

/// Where segments are wanted of an adapter without a CTC head.
pub(super) const NO_SEGMENTS: ModelError = ModelError::NoCtcHead {
    why: "its `positions` are of CTC segments, and nothing says where these are; train a stage with a CTC loss",
};

const NOT_BOUND: ModelError = ModelError::NoCtcHead {
    why: "its classes were not taken from a language model's table",
};

/// What a position of a CTC segment is the mean of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum MeanOf {
    /// The segment's frames.
    Frames,
    /// The language model's embeddings, weighted by the posteriors of the segment's frames over the tokens.
    Embeddings,
}

/// The learned part of the CTC head, and which tokens are its classes. Class 0 is the blank, class `i` is
/// token `classes[i - 1]`.
#[derive(Debug)]
pub struct CtcHead {
    blank: Tensor,
    scale: Tensor,
    classes: Vec<i64>,
    /// Tokens with their classes, in order of tokens.
    by_token: Arc<[(i64, usize)]>,
    /// The classes' rows of the embedding table, each brought to length 1, in the dtype of the products;
    /// absent before [`bind`](Self::bind).
    unit: Option<Unit>,
    /// Lengths of the classes' rows `[C]` f32, as long as `unit` is there.
    row_lengths: Option<Tensor>,
}

/// What directions are multiplied with.
#[derive(Debug)]
enum Unit {
    /// `[C, H]`: the blank, which learns, is put before them each time.
    Classes(Tensor),
    /// `[1 + C, H]`, the blank first.
    All(Tensor),
}

impl CtcHead {
    pub(super) fn new(blank: Tensor, scale: Tensor, classes: Vec<i64>) -> Self {
        let mut head = Self {
            blank,
            scale,
            classes: Vec::new(),
            by_token: Arc::default(),
            unit: None,
            row_lengths: None,
        };
        head.set_classes(classes);
        head
    }

    /// A head with a random blank vector and scale 12, its variables made in `path`.
    pub(super) fn fresh(
        path: &nn::Path<'_>,
        width: i64,
        classes: Vec<i64>,
        seed: u64,
    ) -> Result<Self, ModelError> {
        let mut random = SplitMix::new(&[seed, 0xc7c]);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "initial values need no more than f32"
        )]
        let blank: Vec<f32> = (0..width).map(|_| (random.normal() * 0.05) as f32).collect();
        let variable = |name: &str, values: &[f32]| {
            path.f_var_copy(name, &Tensor::f_from_slice(values)?.f_to_device(path.device())?)
        };
        Ok(Self::new(
            variable("blank", &blank)?,
            variable("scale", &[12.0])?,
            classes,
        ))
    }

    pub(super) fn set_classes(&mut self, classes: Vec<i64>) {
        let mut by_token: Vec<(i64, usize)> = classes.iter().copied().zip(1..).collect();
        by_token.sort_unstable();
        self.by_token = by_token.into();
        self.classes = classes;
        self.unit = None;
        self.row_lengths = None;
    }

    /// Token ids of classes 1, 2, 3 …
    pub fn classes(&self) -> &[i64] {
        &self.classes
    }

    /// Tokens with their classes, in order of tokens.
    pub(super) fn classes_by_token(&self) -> &Arc<[(i64, usize)]> {
        &self.by_token
    }

    /// Class of each token; none when one of them is no class.
    pub fn classes_of(&self, ids: &[i64]) -> Option<Vec<i64>> {
        let class_of = |id: &i64| {
            let at = self.by_token.binary_search_by_key(id, |(known, _)| *known).ok()?;
            i64::try_from(self.by_token[at].1).ok()
        };
        ids.iter().map(class_of).collect()
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
        self.row_lengths = Some(rows.f_norm_scalaropt_dim(2, [-1i64].as_slice(), false)?);
        let rows = unit(&rows)?.f_to_kind(products)?;
        self.unit = Some(match self.blank.requires_grad() {
            true => Unit::Classes(rows),
            false => Unit::All(self.behind_blank(&rows)?),
        });
        Ok(())
    }

    /// Rows of classes `[C, H]` behind that of the blank: `[1 + C, H]`.
    fn behind_blank(&self, rows: &Tensor) -> Result<Tensor, ModelError> {
        let blank = unit(&self.blank)?.f_unsqueeze(0)?.f_to_kind(rows.kind())?; // [1, H]
        Ok(Tensor::f_cat(&[&blank, rows], 0)?)
    }

    /// Scores of blank and classes, before they are made probabilities: `[B, P, H]` f32 → `[B, P, 1 + C]`
    /// f32.
    fn scores(&self, frames: &Tensor) -> Result<Tensor, ModelError> {
        let unit_rows = self.unit.as_ref().ok_or(NOT_BOUND)?;
        let rows = match unit_rows {
            Unit::Classes(rows) => self.behind_blank(rows)?,
            Unit::All(rows) => rows.shallow_clone(),
        }; // [1+C, H]
        let directions = (unit(frames)? * &self.scale).f_to_kind(rows.kind())?; // [B, P, H]
        if rows.kind() == Kind::BFloat16
            && let Some(scores) = cpu_kernels::multiply_in_f32(&directions, &rows)
        {
            return Ok(scores); // sums that are not rounded
        }
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

    /// Posteriors over the tokens alone, the blank left out: log-probabilities `[B, P, 1 + C]` → `[B, P, C]`.
    pub(super) fn token_posteriors(log_probabilities: &Tensor) -> Result<Tensor, ModelError> {
        let classes = log_probabilities.size().last().copied().unwrap_or(1) - 1;
        Ok(log_probabilities
            .f_narrow(-1, 1, classes)?
            .f_softmax(-1, Kind::Float)?)
    }

    /// The language model's own embeddings of the classes, weighted.
    ///
    /// # Shapes
    /// `weights` `[B, S, C]` f32 → `[B, S, H]` f32, differentiable in the weights.
    ///
    /// # Errors
    /// [`ModelError::NoCtcHead`] before the head is bound to a table.
    pub(super) fn embeddings(&self, weights: &Tensor) -> Result<Tensor, ModelError> {
        let (rows, lengths) = match (&self.unit, &self.row_lengths) {
            (Some(Unit::Classes(rows)), Some(lengths)) => (rows.shallow_clone(), lengths),
            (Some(Unit::All(rows)), Some(lengths)) => (rows.f_narrow(0, 1, lengths.size()[0])?, lengths),
            _ => return Err(NOT_BOUND),
        }; // [C, H], [C]
        let weights = weights.f_mul(lengths)?.f_to_kind(rows.kind())?;
        Ok(weights.f_matmul(&rows)?.f_to_kind(Kind::Float)?)
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
        Self::paths_of(&self.scores(&adapted.positions)?, &adapted.lengths)
    }

    /// The same by scores or log-probabilities `[B, P, 1 + C]` that are there already.
    pub(super) fn paths_of(scores: &Tensor, lengths: &[i64]) -> Result<Vec<Vec<i64>>, ModelError> {
        let best = scores.f_argmax(-1, false)?; // [B, P]
        let frames = usize::try_from(best.size()[1]).unwrap_or(0);
        let best = Vec::<i64>::try_from(best.f_contiguous()?.f_view([-1])?)?;
        let rows = best.chunks(frames.max(1)).zip(lengths);
        Ok(rows
            .map(|(row, length)| row[..usize::try_from(*length).unwrap_or(0).min(row.len())].to_vec())
            .collect())
    }

    /// One position for each run, differentiable in the frames. The runs are those of the likeliest classes;
    /// `known` are the head's log-probabilities `[B, P, 1 + C]` and each row's likeliest classes where they
    /// are there already. A row without a run gets the mean of all its frames where `never_empty`, else
    /// nothing.
    ///
    /// # Shapes
    /// `adapted` `[B, P, H]` → `[B, S, H]`, `S` the largest number of runs; zeros beyond a row's length.
    ///
    /// # Errors
    /// [`ModelError::NoCtcHead`] when the head is not bound.
    pub(super) fn positions(
        &self,
        adapted: &Adapted,
        known: Option<KnownPaths<'_>>,
        mean_of: MeanOf,
        never_empty: bool,
    ) -> Result<Adapted, ModelError> {
        let frames = &adapted.positions;
        let scores = match (known, mean_of) {
            (Some((scores, _)), _) => Some(scores.shallow_clone()),
            (None, MeanOf::Embeddings) => Some(self.log_probabilities(frames)?),
            (None, MeanOf::Frames) => None,
        };
        let paths = match (known, &scores) {
            (Some((_, paths)), _) => paths,
            (None, Some(scores)) => &CtcHead::paths_of(scores, &adapted.lengths)?,
            (None, None) => &self.paths(adapted)?,
        };
        let (shares, lengths) = segments::shares(paths, frames.size()[1], never_empty)?;
        let shares = shares.f_to_device(frames.device())?; // [B, S, P]
        let positions = match scores.filter(|_| mean_of == MeanOf::Embeddings) {
            // The mean of posteriors, then embeddings: segments are fewer than frames.
            Some(scores) => self.embeddings(&shares.f_bmm(&CtcHead::token_posteriors(&scores)?)?)?,
            None => shares.f_bmm(frames)?,
        };
        Ok(Adapted { positions, lengths })
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

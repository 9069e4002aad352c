//! What speech encoders have in common: which clips they take, and how a mixture of layers is gathered.

use tch::{Device, Kind, TchError, Tensor};

use super::ModelError;
use crate::nn::packed::{row_ranges, rows_of};

/// Beyond this a sample is no audio, and its power no f32.
pub(super) const SAMPLE_MAX: f32 = 1e9;

/// Refuses what no encoder can work on.
///
/// # Errors
/// [`ModelError`] that says which clip, and why.
pub(super) fn check_clips(clips: &[&[f32]], samples_max: Option<usize>) -> Result<(), ModelError> {
    if clips.is_empty() {
        return Err(ModelError::EmptyBatch);
    }
    for (index, clip) in clips.iter().enumerate() {
        if clip.is_empty() {
            return Err(ModelError::EmptyClip { index });
        }
        if let Some(samples_max) = samples_max.filter(|&most| clip.len() > most) {
            return Err(ModelError::ClipTooLong {
                index,
                samples: clip.len(),
                samples_max,
            });
        }
        let is_audio = |value: &f32| value.abs() <= SAMPLE_MAX; // false for NaN
        if let Some(at) = clip.iter().position(|value| !is_audio(value)) {
            return Err(ModelError::BadSample {
                index,
                at,
                value: clip[at],
            });
        }
    }
    Ok(())
}

/// `Σ_l mix[b, l] · h_l` of packed states, gathered layer by layer in f32 whatever the encoder's kind.
pub(super) struct Mixture {
    /// Weights of each state, row by row.
    weights: Vec<Vec<f32>>,
    device: Device,
    sum: Option<Tensor>,
}

impl Mixture {
    /// Begins one.
    ///
    /// # Errors
    /// [`ModelError::Shape`] when `mix` is not `[B, L+1]`.
    pub(super) fn new(mix: &Tensor, clips: usize, layers: usize, device: Device) -> Result<Self, ModelError> {
        let expected = [clips as i64, layers as i64 + 1];
        if mix.size() != expected {
            return Err(ModelError::Shape {
                what: "the layer mix",
                expected: format!("{expected:?}"),
                found: mix.size(),
            });
        }
        let by_state = mix
            .f_to_device(Device::Cpu)?
            .f_to_kind(Kind::Float)?
            .f_transpose(0, 1)?;
        let weights = (0..expected[1])
            .map(|state| Vec::<f32>::try_from(by_state.get(state).contiguous()))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            weights,
            device,
            sum: None,
        })
    }

    /// Adds state `index` of packed clips, `[R, D]`. One that no clip uses costs nothing.
    pub(super) fn add(&mut self, index: usize, state: &Tensor, lengths: &[i64]) -> Result<(), TchError> {
        let weights = &self.weights[index];
        if weights.iter().all(|&weight| weight == 0.0) {
            return Ok(());
        }
        let per_row = Tensor::f_empty([state.size()[0], 1], (Kind::Float, self.device))?;
        for (range, &weight) in row_ranges(lengths).zip(weights) {
            let _ = rows_of(&per_row, &range).f_fill_(f64::from(weight))?;
        }
        let state = state.f_to_kind(Kind::Float)?;
        match &mut self.sum {
            Some(sum) => sum.f_addcmul_(&state, &per_row).map(|_| ()),
            None => {
                self.sum = Some(state.f_mul(&per_row)?);
                Ok(())
            }
        }
    }

    /// The mixture, `[R, D]` f32; zeros in the shape of `like` where no state had a weight.
    pub(super) fn finish(self, like: &Tensor) -> Result<Tensor, TchError> {
        match self.sum {
            Some(sum) => Ok(sum),
            None => like.f_zeros_like()?.f_to_kind(Kind::Float),
        }
    }
}

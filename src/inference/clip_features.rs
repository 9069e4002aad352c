//! `Features`: what the speech encoder makes of one clip.

use tch::Tensor;

use crate::models::ModelError;

/// What an encoder makes of one clip.
#[derive(Debug)]
pub struct Features {
    /// Mixed hidden states, `[T, D]`, valid frames only.
    pub frames: Tensor,
    /// Mean and standard deviation of every hidden state over the clip, `[L+1, 2D]` f32.
    pub statistics: Tensor,
}

impl Features {
    /// The same tensors, storage shared.
    pub fn shallow_clone(&self) -> Self {
        Self {
            frames: self.frames.shallow_clone(),
            statistics: self.statistics.shallow_clone(),
        }
    }

    /// Windows of one clip, in order, as one. Contiguous, so that no row keeps its whole batch in memory.
    pub(super) fn join(windows: &[Self]) -> Result<Self, ModelError> {
        let frames: Vec<&Tensor> = windows.iter().map(|window| &window.frames).collect();
        let frames = Tensor::f_cat(&frames, 0)?.f_contiguous()?;
        if let [only] = windows {
            let statistics = only.statistics.copy();
            return Ok(Self { frames, statistics });
        }
        // Mean and mean square of the whole are those of the windows, by their share of the frames.
        let half = windows[0]
            .statistics
            .f_narrow(-1, 0, windows[0].statistics.size()[1] / 2)?;
        let (mut mean, mut square) = (half.f_zeros_like()?, half.f_zeros_like()?);
        for window in windows {
            #[expect(clippy::cast_precision_loss, reason = "a count of frames")]
            let share = window.frames.size()[0] as f64 / frames.size()[0] as f64;
            let halves = window.statistics.f_chunk(2, -1)?;
            mean += &halves[0] * share;
            square += (halves[0].f_square()? + halves[1].f_square()?) * share;
        }
        let deviation = (square - mean.f_square()?).f_clamp_min(0.0)?.f_sqrt()?;
        let statistics = Tensor::f_cat(&[mean, deviation], -1)?;
        Ok(Self { frames, statistics })
    }
}

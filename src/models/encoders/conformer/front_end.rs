//! Samples to normalised log-mel frames.
//!
//! Each mel bin is brought to zero mean and unit variance (without that, BEST-RQ's codes collapse), over the
//! clip or by the training data's statistics.

use tch::{Device, Kind, TchError, Tensor};

use super::config::{ConformerConfig, Normalization};
use crate::audio::mel_frames::MelFrames;
use crate::weights::Loader;

/// Added to a variance before its root is taken: a bin that never changes becomes zero.
const VARIANCE_EPS: f64 = 1e-5;

/// A batch of normalised mel frames.
#[derive(Debug)]
pub struct Features {
    /// f32 `[B, F, M]`; zero beyond a row's end.
    pub values: Tensor,
    /// Mel frames of each row.
    pub lengths: Vec<i64>,
}

/// Mean and standard deviation of each mel bin over the training data.
#[derive(Debug)]
pub struct Statistics {
    /// f32 `[M]`.
    pub mean: Tensor,
    /// f32 `[M]`.
    pub deviation: Tensor,
}

impl Statistics {
    /// Names in the checkpoint.
    pub const NAMES: [&str; 2] = ["front_end.mean", "front_end.deviation"];
}

/// Computes [`Features`] on one device.
#[derive(Debug)]
pub struct FrontEnd {
    mel: MelFrames,
    statistics: Option<Statistics>,
    device: Device,
}

impl FrontEnd {
    /// A front end that normalises by `statistics`, or each clip by its own where there are none.
    pub fn new(mels: i64, statistics: Option<Statistics>, device: Device) -> Self {
        Self {
            mel: MelFrames::new(usize::try_from(mels).unwrap_or(0), device),
            statistics,
            device,
        }
    }

    pub(super) fn load(loader: &mut Loader<'_>, config: &ConformerConfig) -> Self {
        let statistics = match config.normalize {
            Normalization::Utterance => None,
            Normalization::Global => {
                let [mean, deviation] =
                    Statistics::NAMES.map(|name| loader.take_as(name, &[config.num_mel_bins], Kind::Float));
                Some(Statistics { mean, deviation })
            }
        };
        Self::new(config.num_mel_bins, statistics, loader.device())
    }

    /// The training data's statistics, when it normalises by them.
    pub fn statistics(&self) -> Option<&Statistics> {
        self.statistics.as_ref()
    }

    /// Normalised frames of a batch of clips.
    ///
    /// # Errors
    /// libtorch's, such as memory running out, and an empty batch.
    pub fn forward(&self, clips: &[&[f32]]) -> Result<Features, TchError> {
        let lengths: Vec<i64> = clips
            .iter()
            .map(|clip| MelFrames::count(clip.len()) as i64)
            .collect();
        let mel = self.mel.forward(clips)?; // f64 [B, F, M]
        let frames = mel.size()[1];
        let counts = Tensor::from_slice(&lengths).f_to_device(self.device)?; // [B]
        let own = Tensor::f_arange(frames, (Kind::Int64, self.device))?
            .f_lt_tensor(&counts.f_unsqueeze(1)?)?
            .f_unsqueeze(-1)?; // [B, F, 1]
        let normal = match &self.statistics {
            Some(Statistics { mean, deviation }) => (mel - mean) / deviation,
            None => {
                let own = own.f_to_kind(Kind::Double)?;
                let counts = counts.f_to_kind(Kind::Double)?.f_view([-1, 1, 1])?;
                let mean = (&mel * &own).f_sum_dim_intlist([1].as_slice(), true, Kind::Double)? / &counts;
                let centred = mel - mean; // [B, F, M]
                let variance =
                    (centred.f_square()? * &own).f_sum_dim_intlist([1].as_slice(), true, Kind::Double)?
                        / &counts;
                centred / (variance + VARIANCE_EPS).f_sqrt()?
            }
        };
        Ok(Features {
            values: normal.f_to_kind(Kind::Float)?.f_mul(&own)?,
            lengths,
        })
    }
}

/// Gathers the training data's mean and deviation of each mel bin, clip by clip.
#[derive(Debug)]
pub struct StatisticsGatherer {
    mel: MelFrames,
    frames: f64,
    sum: Tensor,
    squares: Tensor,
}

impl StatisticsGatherer {
    /// Begins with nothing, on the CPU.
    pub fn new(mels: i64) -> Self {
        let zeros = Tensor::zeros([mels], (Kind::Double, Device::Cpu));
        Self {
            mel: MelFrames::new(usize::try_from(mels).unwrap_or(0), Device::Cpu),
            frames: 0.0,
            sum: zeros.copy(),
            squares: zeros,
        }
    }

    /// Adds a clip.
    ///
    /// # Errors
    /// libtorch's.
    pub fn add(&mut self, clip: &[f32]) -> Result<(), TchError> {
        let mel = self.mel.forward(&[clip])?.f_get(0)?; // [F, M]
        #[expect(clippy::cast_precision_loss, reason = "frame counts are small")]
        let frames = mel.size()[0] as f64;
        self.frames += frames;
        self.sum = &self.sum + mel.f_sum_dim_intlist([0].as_slice(), false, Kind::Double)?;
        self.squares = &self.squares
            + mel
                .f_square()?
                .f_sum_dim_intlist([0].as_slice(), false, Kind::Double)?;
        Ok(())
    }

    /// The statistics of what was added.
    ///
    /// # Errors
    /// libtorch's.
    pub fn finish(self) -> Result<Statistics, TchError> {
        let frames = self.frames.max(1.0);
        let mean = self.sum / frames;
        let variance = (self.squares / frames - mean.f_square()?).f_clamp_min(0.0)?;
        Ok(Statistics {
            deviation: (variance + VARIANCE_EPS).f_sqrt()?.f_to_kind(Kind::Float)?,
            mean: mean.f_to_kind(Kind::Float)?,
        })
    }
}

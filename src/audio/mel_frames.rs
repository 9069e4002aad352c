//! Plain log-mel frames: 25 ms every 10 ms, natural logarithm, each frame wholly inside its clip.
//!
//! Nothing is added at a clip's ends, so no frame depends on padding or on the clips beside it. Equal to
//! `librosa.feature.melspectrogram(n_fft=400, hop_length=160, center=False, power=2.0)` with its default
//! (Slaney) filters, then `log(max(x, 1e-10))`. Computed in f64: near the floor, a logarithm turns the
//! rounding of a single-precision FFT, which differs from batch to batch, into errors of percents. Whisper's
//! own front end, with its window of silence and its floor, is [`log_mel`](super::log_mel).

use tch::{Device, Kind, TchError, Tensor};

use super::log_mel::{BINS, FFT_SAMPLES, HOP_SAMPLES, POWER_MIN, mel_filters};

/// Computes plain log-mel frames on one device.
#[derive(Debug)]
pub struct MelFrames {
    /// `[201, M]`.
    filters: Tensor,
    /// `[400]`.
    hann: Tensor,
    device: Device,
}

impl MelFrames {
    /// Prepares the bank of `mels` filters and the window function on `device`.
    pub fn new(mels: usize, device: Device) -> Self {
        let filters = Tensor::from_slice(&mel_filters(mels))
            .view([mels as i64, BINS as i64])
            .transpose(0, 1)
            .contiguous()
            .to_device(device);
        let hann = Tensor::hann_window(FFT_SAMPLES as i64, (Kind::Double, device));
        Self {
            filters,
            hann,
            device,
        }
    }

    /// Frames of a clip: those whose window lies in it; a clip shorter than one window is filled up with
    /// silence to one.
    pub fn count(samples: usize) -> usize {
        samples.saturating_sub(FFT_SAMPLES) / HOP_SAMPLES + 1
    }

    /// Log-mel frames of a batch; what lies beyond a row's [`count`](Self::count) means nothing.
    ///
    /// # Shapes
    /// B clips → f64 `[B, F, M]`, `F` the longest clip's count.
    ///
    /// # Errors
    /// libtorch's, such as memory running out, and an empty batch.
    pub fn forward(&self, clips: &[&[f32]]) -> Result<Tensor, TchError> {
        let frames = clips
            .iter()
            .map(|clip| Self::count(clip.len()))
            .max()
            .unwrap_or(0);
        let row_samples = frames.saturating_sub(1) * HOP_SAMPLES + FFT_SAMPLES;
        let mut signal = vec![0.0_f32; clips.len() * row_samples];
        for (row, clip) in signal.chunks_exact_mut(row_samples).zip(clips) {
            let own = clip.len().min(row_samples);
            row[..own].copy_from_slice(&clip[..own]);
        }
        let (window, hop) = (FFT_SAMPLES as i64, HOP_SAMPLES as i64);
        let spectrum = Tensor::f_from_slice(&signal)?
            .f_view([clips.len() as i64, row_samples as i64])?
            .f_to_device(self.device)?
            .f_to_kind(Kind::Double)?
            .f_stft(window, hop, window, Some(&self.hann), false, true, true, false)?; // [B, 201, F]
        let power = spectrum.f_abs()?.f_square()?.f_transpose(1, 2)?.f_contiguous()?; // [B, F, 201]
        power.f_matmul(&self.filters)?.f_clamp_min_(POWER_MIN)?.f_log_()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(samples: usize) -> Vec<f32> {
        (0..samples).map(|at| (at as f32 * 0.3).sin() * 0.2).collect()
    }

    #[test]
    fn a_clip_has_the_frames_that_fit_into_it_and_at_least_one() {
        for (samples, frames) in [(0, 1), (1, 1), (400, 1), (559, 1), (560, 2), (16_000, 98)] {
            assert_eq!(MelFrames::count(samples), frames, "{samples} samples");
        }
    }

    #[test]
    fn a_row_of_a_ragged_batch_equals_the_row_alone() {
        let front_end = MelFrames::new(80, Device::Cpu);
        let (short, long) = (tone(1_234), tone(9_000));

        let batch = front_end.forward(&[&short, &long]).unwrap();
        let alone = front_end.forward(&[&short]).unwrap();

        assert_eq!(batch.size(), [2, 54, 80]);
        let own = batch.get(0).narrow(0, 0, MelFrames::count(1_234) as i64);
        assert!((own - alone.get(0)).abs().max().double_value(&[]) < 1e-9);
    }

    #[test]
    fn silence_is_the_logarithm_of_the_least_power() {
        let mel = MelFrames::new(80, Device::Cpu).forward(&[&[0.0; 800]]).unwrap();

        assert!((mel + 23.025_85).abs().max().double_value(&[]) < 1e-4);
    }
}

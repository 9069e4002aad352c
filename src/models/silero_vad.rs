//! Silero VAD: the probability of speech in each 32 ms of sound.
//!
//! Source: `silero-vad` 6.2.3 (MIT), `silero_vad/tinygrad_model.py` and `data/silero_vad_16k.safetensors`,
//! whose names the variables have: a short-time Fourier transform as a convolution, four convolutions, an
//! LSTM cell that goes on from frame to frame, a linear map.
//!
//! Each frame of 512 samples is seen behind the last 64 of the frame before. What depends on one frame alone
//! is computed for all frames of a call at once.

use std::path::Path;

use tch::{Device, IndexOp, Kind, Tensor};

use super::ModelError;
use crate::weights::{Checkpoint, Loader};

/// Samples of a frame at 16 kHz: 32 ms.
pub const FRAME_SAMPLES: usize = 512;
/// Samples of the frame before that a frame is seen behind.
const CONTEXT_SAMPLES: usize = 64;
/// Samples that are mirrored behind a frame.
const PAD_SAMPLES: i64 = 64;
const FOURIER_STEP: i64 = 128;
/// Frequencies of a transform of 256 samples.
const BINS: i64 = 129; // 256 / 2 + 1
const WIDTH: i64 = 128;

/// A convolution over time, `[C_out, C_in, K]` and `[C_out]`.
#[derive(Debug)]
struct Convolution {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
}

impl Convolution {
    fn take(loader: &mut Loader<'_>, name: &str, channels: (i64, i64), stride: i64) -> Self {
        let (from, to) = channels;
        Self {
            weight: loader.take(&format!("{name}.weight"), &[to, from, 3]),
            bias: loader.take(&format!("{name}.bias"), &[to]),
            stride,
        }
    }

    /// `[F, C_in, T]` → `[F, C_out, T']`, negative values cut off.
    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let y = x.f_conv1d(&self.weight, Some(&self.bias), [self.stride], [1], [1], 1)?;
        Ok(y.f_relu()?)
    }
}

/// The network. Belongs to one thread at a time.
#[derive(Debug)]
pub struct SileroVad {
    fourier: Tensor,
    convolutions: [Convolution; 4],
    /// Input and hidden weights and biases of the LSTM cell, in torch's order.
    lstm: [Tensor; 4],
    last_weight: Tensor,
    last_bias: Tensor,
}

/// What is remembered of the frames before: one for each stream of sound.
#[derive(Debug)]
pub struct VadState {
    context: Vec<f32>,
    /// Of the LSTM cell, [`WIDTH`] values each; plain values, so that a state may go from thread to thread.
    hidden: Vec<f32>,
    cell: Vec<f32>,
}

impl SileroVad {
    /// Opens a model folder, of which it needs `model.safetensors`; computes in f32 on the CPU.
    ///
    /// # Errors
    /// [`ModelError`] when the file is missing or holds another network.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(folder)?;
        let _no_grad = tch::no_grad_guard();
        let mut loader = checkpoint.loader(Device::Cpu, Kind::Float);
        let take = &mut loader;
        let network = Self {
            fourier: take.take("stft_conv.weight", &[2 * BINS, 1, 256]),
            convolutions: [
                Convolution::take(take, "conv1", (BINS, WIDTH), 1),
                Convolution::take(take, "conv2", (WIDTH, 64), 2),
                Convolution::take(take, "conv3", (64, 64), 2),
                Convolution::take(take, "conv4", (64, WIDTH), 1),
            ],
            lstm: [
                take.take("lstm_cell.weight_ih", &[4 * WIDTH, WIDTH]),
                take.take("lstm_cell.weight_hh", &[4 * WIDTH, WIDTH]),
                take.take("lstm_cell.bias_ih", &[4 * WIDTH]),
                take.take("lstm_cell.bias_hh", &[4 * WIDTH]),
            ],
            last_weight: take.take("final_conv.weight", &[1, WIDTH, 1]),
            last_bias: take.take("final_conv.bias", &[1]),
        };
        loader.finish()?;
        Ok(network)
    }

    /// The state before the first frame.
    pub fn begin(&self) -> VadState {
        VadState {
            context: vec![0.0; CONTEXT_SAMPLES],
            hidden: vec![0.0; WIDTH as usize],
            cell: vec![0.0; WIDTH as usize],
        }
    }

    /// The probability of speech in each frame of `samples` (mono, 16 kHz), a whole number of frames; goes on
    /// from `state`.
    ///
    /// # Errors
    /// [`ModelError::Shape`] when it is not a whole number of frames; [`ModelError::Torch`].
    pub fn probabilities(&self, samples: &[f32], state: &mut VadState) -> Result<Vec<f32>, ModelError> {
        if !samples.len().is_multiple_of(FRAME_SAMPLES) {
            return Err(ModelError::Shape {
                what: "samples of a voice activity detector",
                expected: format!("a multiple of {FRAME_SAMPLES}"),
                found: vec![i64::try_from(samples.len()).unwrap_or(i64::MAX)],
            });
        }
        if samples.is_empty() {
            return Ok(Vec::new());
        }
        let _no_grad = tch::no_grad_guard();
        let seen = [state.context.as_slice(), samples].concat();
        let size = (CONTEXT_SAMPLES + FRAME_SAMPLES) as i64;
        let frames = Tensor::f_from_slice(&seen)?
            .f_unfold(0, size, FRAME_SAMPLES as i64)? // [F, 576]
            .f_unsqueeze(1)? // [F, 1, 576]
            .f_reflection_pad1d([0, PAD_SAMPLES])?; // [F, 1, 640]
        let spectrum = frames.f_conv1d(&self.fourier, None::<&Tensor>, [FOURIER_STEP], [0], [1], 1)?;
        let (real, imaginary) = (spectrum.f_narrow(1, 0, BINS)?, spectrum.f_narrow(1, BINS, BINS)?);
        let mut x = (real.f_square()? + imaginary.f_square()?).f_sqrt()?; // [F, 129, 4]
        for convolution in &self.convolutions {
            x = convolution.forward(&x)?;
        }
        let x = x.f_permute([2, 0, 1])?.f_contiguous()?; // [1, F, 128]
        let lstm: Vec<&Tensor> = self.lstm.iter().collect();
        let shape = [1, 1, WIDTH];
        let hidden = Tensor::f_from_slice(&state.hidden)?.f_view(shape)?;
        let cell = Tensor::f_from_slice(&state.cell)?.f_view(shape)?;
        let (x, hidden, cell) = x.f_lstm(&[&hidden, &cell], &lstm, true, 1, 0.0, false, false, true)?; // [1, F, 128]
        let last = self.last_weight.f_view([1, WIDTH])?;
        let x = x.i(0).f_relu()?.f_linear(&last, Some(&self.last_bias))?; // [F, 1]
        let found = Vec::<f32>::try_from(x.f_sigmoid()?.f_view([-1])?)?;
        state.hidden = Vec::<f32>::try_from(hidden.f_view([-1])?)?;
        state.cell = Vec::<f32>::try_from(cell.f_view([-1])?)?;
        state
            .context
            .copy_from_slice(&seen[seen.len() - CONTEXT_SAMPLES..]);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fixture, real_model};

    /// Sound of which the reference was asked: a recorded voice.
    fn clip() -> Vec<f32> {
        let path = fixture("speech/librivox-0880.wav");
        let bytes = std::fs::read(path).unwrap();
        let waveform = crate::audio::decode(&bytes, None, &Default::default()).unwrap();
        let whole = waveform.samples.len() / FRAME_SAMPLES * FRAME_SAMPLES;
        waveform.samples[..whole].to_vec()
    }

    #[test]
    fn the_probabilities_are_those_of_the_reference_implementation() {
        let Some(folder) = real_model("models::silero_vad::parity", "silero-vad") else {
            return;
        };
        let network = SileroVad::open(&folder).unwrap();

        let found = network.probabilities(&clip(), &mut network.begin()).unwrap();

        // `scripts/fixtures/silero_vad.py`, by torch, whose network it compares with the package's.
        let expected = std::fs::read(fixture("silero_vad.json")).unwrap();
        let expected: Vec<f32> = serde_json::from_slice(&expected).unwrap();
        assert_eq!(found.len(), expected.len());
        for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!(
                (found - expected).abs() < 1e-4,
                "frame {at}: {found} for {expected}"
            );
        }
    }

    #[test]
    fn frames_one_by_one_give_the_same_as_all_at_once() {
        let Some(folder) = real_model("models::silero_vad::frames", "silero-vad") else {
            return;
        };
        let network = SileroVad::open(&folder).unwrap();
        let clip = &clip()[..60 * FRAME_SAMPLES];
        let whole = network.probabilities(clip, &mut network.begin()).unwrap();

        let mut state = network.begin();
        let mut found = Vec::new();
        for frames in clip.chunks(7 * FRAME_SAMPLES) {
            found.extend(network.probabilities(frames, &mut state).unwrap());
        }

        assert_eq!(found.len(), whole.len());
        assert!(
            found
                .iter()
                .zip(&whole)
                .all(|(one, all)| (one - all).abs() < 1e-5)
        );
        assert!(network.probabilities(&clip[..100], &mut state).is_err());
    }
}

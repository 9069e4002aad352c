//! Any rate to 16 kHz, block by block.
//!
//! rubato's FFT resampler with blocks of at least 1024 samples on the slower side: flat to about 7.8 kHz,
//! with aliases more than 100 dB down. Its delay is taken off, so sample `n` of the output is the sound at `n
//! / 16000` seconds.

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler as _};

use super::SAMPLE_RATE_HZ;

/// Shortest block on the slower side, samples. Longer blocks make a steeper filter.
const BLOCK_SAMPLES: usize = 1024;

/// Longest smallest step, samples of the source. Every rate up to this one is resampled exactly; a higher one
/// that has hardly a factor in common with 16,000 gets the nearest ratio with a shorter step, at most 6 parts
/// per million away, because blocks of a million samples would cost more than a second each.
const STEP_SAMPLES_MAX: usize = 192 * 1024;

/// Length at 16 kHz of `frames` at `rate_hz`: `round(frames · 16000 / rate)`, halves up.
pub fn resampled_len(frames: u64, rate_hz: u32) -> u64 {
    let rate = u128::from(rate_hz.max(1));
    let doubled = u128::from(frames) * 2 * u128::from(SAMPLE_RATE_HZ) + rate;
    u64::try_from(doubled / (2 * rate)).unwrap_or(u64::MAX)
}

/// Resamples a whole clip to 16 kHz.
///
/// The result has [`resampled_len`] samples. A rate of 0 gives nothing.
pub fn resample(samples: &[f32], rate_hz: u32) -> Vec<f32> {
    if rate_hz == 0 {
        return Vec::new();
    }
    let mut resampler = Resampler::new(rate_hz);
    resampler.push(samples);
    resampler.finish()
}

/// Takes samples of one rate in pieces of any length and keeps them at 16 kHz.
pub(super) struct Resampler {
    rate_hz: u32,
    blocks: Option<Blocks>,
    pushed: u64,
    /// Samples of the output that were taken already.
    taken: u64,
    output: Vec<f32>,
}

/// The block-wise part, absent when the rate is 16 kHz already.
struct Blocks {
    fft: Fft<f32>,
    /// Input that waits for a full block.
    waiting: Vec<f32>,
    block_in: usize,
    /// One block of output.
    made: Vec<f32>,
    /// Samples of the resampler's delay still to be dropped.
    delay_left: usize,
}

impl Resampler {
    /// A resampler from `rate_hz`, which must not be 0.
    pub(super) fn new(rate_hz: u32) -> Self {
        let blocks = (rate_hz != SAMPLE_RATE_HZ).then(|| Blocks::new(rate_hz));
        Self {
            rate_hz,
            blocks,
            pushed: 0,
            taken: 0,
            output: Vec::new(),
        }
    }

    /// The output so far that was not taken before. Never more than [`resampled_len`] of what was pushed,
    /// because the delay is not in it.
    pub(super) fn take_ready(&mut self) -> Vec<f32> {
        self.taken += self.output.len() as u64;
        std::mem::take(&mut self.output)
    }

    /// Samples of the output that are ready and not taken.
    pub(super) fn ready(&self) -> usize {
        self.output.len()
    }

    /// Takes more samples.
    pub(super) fn push(&mut self, mut samples: &[f32]) {
        self.pushed += samples.len() as u64;
        let Some(blocks) = &mut self.blocks else {
            self.output.extend_from_slice(samples);
            return;
        };
        while !samples.is_empty() {
            let wanted = blocks.block_in - blocks.waiting.len();
            let (now, later) = samples.split_at(wanted.min(samples.len()));
            blocks.waiting.extend_from_slice(now);
            samples = later;
            if blocks.waiting.len() == blocks.block_in {
                blocks.run(&mut self.output);
            }
        }
    }

    /// The rest of the output, which has exactly [`resampled_len`] samples as a whole.
    pub(super) fn finish(mut self) -> Vec<f32> {
        let whole = resampled_len(self.pushed, self.rate_hz);
        let wanted = usize::try_from(whole.saturating_sub(self.taken))
            .expect("as many samples were pushed, and they fitted into memory");
        if let Some(blocks) = &mut self.blocks {
            while self.output.len() < wanted {
                blocks.waiting.resize(blocks.block_in, 0.0); // silence after the end
                blocks.run(&mut self.output);
            }
            self.output.truncate(wanted);
        }
        self.output
    }
}

impl Blocks {
    fn new(rate_hz: u32) -> Self {
        let (rate_in, rate_out) = (rate_hz as usize, SAMPLE_RATE_HZ as usize);
        let (step_in, step_out) = ratio(rate_in, rate_out);
        // An even block has its filter's centre on a sample, so that the delay is a whole number of samples.
        let steps = BLOCK_SAMPLES.div_ceil(step_in.min(step_out)).next_multiple_of(2);
        let fft = Fft::<f32>::new_custom(
            step_in,
            step_out,
            steps * step_in,
            1,
            1,
            rubato::WindowFunction::BlackmanHarris2,
            FixedSync::Both,
        )
        .expect("neither rate nor the block length is zero");

        let (block_in, block_out) = (fft.input_frames_next(), fft.output_frames_next());
        let delay_left = fft.output_delay();
        Self {
            fft,
            waiting: Vec::with_capacity(block_in),
            block_in,
            made: vec![0.0; block_out],
            delay_left,
        }
    }

    /// Turns the full block that waits into output.
    fn run(&mut self, output: &mut Vec<f32>) {
        let block_out = self.made.len();
        let input =
            InterleavedSlice::new(&self.waiting[..], 1, self.block_in).expect("the waiting block is full");
        let mut made = InterleavedSlice::new_mut(&mut self.made[..], 1, block_out)
            .expect("the output block was made for this resampler");
        let (_, written) = self
            .fft
            .process_into_buffer(&input, &mut made, None)
            .expect("both blocks have the sizes that the resampler asked for");
        self.waiting.clear();

        let dropped = self.delay_left.min(written);
        self.delay_left -= dropped;
        output.extend_from_slice(&self.made[dropped..written]);
    }
}

/// The ratio of two rates in lowest terms; when its first term is over [`STEP_SAMPLES_MAX`], the last
/// convergent of its continued fraction that is not.
fn ratio(rate_in: usize, rate_out: usize) -> (usize, usize) {
    let (mut last, mut now) = ((0, 1), (1, 0));
    let (mut a, mut b) = (rate_in, rate_out);
    while b != 0 {
        let whole = a / b;
        let next = (whole * now.0 + last.0, whole * now.1 + last.1);
        if next.0 > STEP_SAMPLES_MAX {
            break;
        }
        (last, now) = (now, next);
        (a, b) = (b, a % b);
    }
    now
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;

    fn sine(hertz: f64, rate_hz: u32, frames: usize) -> Vec<f32> {
        let step = TAU * hertz / f64::from(rate_hz);
        (0..frames)
            .map(|n| (0.5 * (step * n as f64).sin()) as f32)
            .collect()
    }

    /// Power of the difference from the ideal sine over the power of the ideal, decibels; the ends are left
    /// out, where the sound starts and stops abruptly.
    fn error_db(got: &[f32], hertz: f64) -> f64 {
        let ideal = sine(hertz, SAMPLE_RATE_HZ, got.len());
        let inner = 2_000..got.len() - 2_000;
        let error: f64 = inner.clone().map(|n| f64::from(got[n] - ideal[n]).powi(2)).sum();
        let power: f64 = inner.map(|n| f64::from(ideal[n]).powi(2)).sum();
        10.0 * (error / power).log10()
    }

    #[test]
    fn the_length_is_exact_for_any_rate_and_any_number_of_frames() {
        for rate_hz in [
            1_000, 7_999, 8_000, 11_025, 15_999, 16_000, 16_001, 22_050, 44_100, 48_000, 192_000,
        ] {
            for frames in [0_usize, 1, 2, 3, 100, 1_023, 1_024, 1_025, 4_411, 20_000] {
                let expected = (frames as f64 * 16_000.0 / f64::from(rate_hz) + 0.5).floor() as usize;

                let got = resample(&vec![0.25; frames], rate_hz);

                assert_eq!(got.len(), expected, "{frames} frames at {rate_hz} Hz");
            }
        }
    }

    #[test]
    fn a_sine_comes_through_in_phase_with_little_error() {
        for rate_hz in [
            8_000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000,
        ] {
            let frames = rate_hz as usize * 2;

            for hertz in [50.0, 440.0, 1_000.0, 3_400.0] {
                let error = error_db(&resample(&sine(hertz, rate_hz, frames), rate_hz), hertz);

                assert!(error < -95.0, "{hertz} Hz at {rate_hz} Hz: {error:.1} dB");
            }
        }
    }

    #[test]
    fn what_lies_above_8_khz_does_not_fold_back() {
        for rate_hz in [22_050, 44_100, 48_000, 96_000] {
            for hertz in [8_100.0, 9_000.0, 10_500.0] {
                let got = resample(&sine(hertz, rate_hz, rate_hz as usize * 2), rate_hz);

                let inner = &got[2_000..got.len() - 2_000];
                let loudest = inner.iter().fold(0.0_f32, |max, s| max.max(s.abs()));
                let level = 20.0 * f64::from(loudest / 0.5).log10();
                assert!(level < -95.0, "{hertz} Hz at {rate_hz} Hz leaves {level:.1} dB");
            }
        }
    }

    #[test]
    fn ratios_are_exact_up_to_192_khz_and_near_above() {
        assert_eq!(ratio(44_100, 16_000), (441, 160));
        assert_eq!(ratio(44_101, 16_000), (44_101, 16_000));
        assert_eq!(ratio(768_000, 16_000), (48, 1));
        for rate_hz in (1_000..=768_000).step_by(977) {
            let (step_in, step_out) = ratio(rate_hz, 16_000);

            let error = step_in as f64 / step_out as f64 / (rate_hz as f64 / 16_000.0) - 1.0;
            assert!(
                error.abs() < 6e-6,
                "{rate_hz} Hz as {step_in}/{step_out}: {error:e}"
            );
            assert!(step_in <= STEP_SAMPLES_MAX);
            assert!(rate_hz > STEP_SAMPLES_MAX || error == 0.0, "{rate_hz} Hz");
        }
    }

    #[test]
    fn a_rate_without_a_factor_in_common_comes_through_too() {
        for rate_hz in [15_991, 44_101, 96_001, 767_999] {
            let samples = sine(440.0, rate_hz, rate_hz as usize * 2);

            let got = resample(&samples, rate_hz);

            assert_eq!(got.len(), 32_000);
            let error = error_db(&got, 440.0);
            assert!(error < -40.0, "{rate_hz} Hz: {error:.1} dB");
        }
    }

    #[test]
    fn pieces_of_any_length_give_the_same_as_the_whole() {
        let whole = sine(523.0, 44_100, 30_000);
        let at_once = resample(&whole, 44_100);

        for piece in [1, 7, 441, 4_096, 29_999] {
            let mut resampler = Resampler::new(44_100);
            whole.chunks(piece).for_each(|samples| resampler.push(samples));

            assert_eq!(resampler.finish(), at_once, "pieces of {piece}");

            let (mut resampler, mut taken) = (Resampler::new(44_100), Vec::new());
            for samples in whole.chunks(piece) {
                resampler.push(samples);
                taken.append(&mut resampler.take_ready());
            }
            taken.append(&mut resampler.finish());
            assert_eq!(taken, at_once, "taken in pieces of {piece}");
        }
    }

    #[test]
    fn sixteen_kilohertz_passes_untouched() {
        let samples = sine(700.0, 16_000, 5_000);

        assert_eq!(resample(&samples, 16_000), samples);
    }
}

//! Whisper's log-mel front end: samples to mel frames.
//!
//! Equal to `WhisperFeatureExtractor` of the transformers library: periodic Hann window, power spectrum,
//! Slaney mel filters, base-10 logarithm, floor at eight decades below the loudest bin, then `(x + 4) / 4`.
//! All of it in f64, as that library does without torch: in f32 the logarithm of a quiet bin differs from
//! CPU to CPU by as much as 3e-5.
//!
//! A clip stands at the start of a window of silence (30 s for the published models), mirrored at the
//! window's own ends. A caller takes either all mel frames of the window or only those of the clip; the
//! frames themselves are the same.

use std::path::Path;

use serde::Deserialize;
use tch::{Device, Kind, TchError, Tensor};

/// Samples per second of everything inside the program.
pub const SAMPLE_RATE_HZ: usize = 16_000;
/// Samples from one mel frame to the next: 10 ms.
pub const HOP_SAMPLES: usize = 160;
/// Samples under one analysis window: 25 ms.
pub const FFT_SAMPLES: usize = 400;
/// Frequency bins of one spectrum.
pub(super) const BINS: usize = FFT_SAMPLES / 2 + 1; // 201
/// Samples before a frame's centre that its window covers.
const HALF_SAMPLES: usize = FFT_SAMPLES / 2; // 200
/// Power below which a bin counts as silent.
pub(super) const POWER_MIN: f64 = 1e-10;
/// Decades below the loudest bin at which everything is cut off.
const DECADES: f64 = 8.0;
/// Largest `preprocessor_config.json` read, bytes (old ones carry a filter bank of 200 kB).
const CONFIG_BYTES_MAX: u64 = 8 << 20;

/// A front end that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogMelError {
    /// The settings file is missing or unreadable.
    #[error("cannot use `{file}`: {reason}")]
    File {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// A setting asks for another front end than this one.
    #[error("`{file}` sets `{key}` to {found}, this front end supports {expected}")]
    Unsupported {
        /// The file.
        file: String,
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What is supported.
        expected: String,
    },
}

/// The parts of `preprocessor_config.json` that decide numbers; the library's defaults where a key is absent.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default)]
pub struct LogMelConfig {
    /// Class name in the library.
    pub feature_extractor_type: String,
    /// Mel bins `M`.
    pub feature_size: usize,
    /// Samples per second.
    pub sampling_rate: usize,
    /// Samples between frames.
    pub hop_length: usize,
    /// Samples per spectrum.
    pub n_fft: usize,
    /// Length of the model's window, seconds.
    pub chunk_length: usize,
    /// On which side silence is added.
    pub padding_side: String,
    /// What silence is.
    pub padding_value: f64,
    /// Noise added to every sample.
    pub dither: f64,
    /// Whether the waveform is scaled to zero mean and unit variance first.
    pub do_normalize: bool,
}

impl Default for LogMelConfig {
    fn default() -> Self {
        Self {
            feature_extractor_type: "WhisperFeatureExtractor".to_owned(),
            feature_size: 80,
            sampling_rate: SAMPLE_RATE_HZ,
            hop_length: HOP_SAMPLES,
            n_fft: FFT_SAMPLES,
            chunk_length: 30,
            padding_side: "right".to_owned(),
            padding_value: 0.0,
            dither: 0.0,
            do_normalize: false,
        }
    }
}

impl LogMelConfig {
    /// Reads `preprocessor_config.json` and refuses, by name, whatever would need another front end.
    ///
    /// # Errors
    /// [`LogMelError`] when the file cannot be read or a setting is not supported.
    pub fn read(path: &Path) -> Result<Self, LogMelError> {
        let unusable = |reason: String| LogMelError::File {
            file: path.display().to_string(),
            reason,
        };
        let size = std::fs::metadata(path)
            .map_err(|error| unusable(error.to_string()))?
            .len();
        if size > CONFIG_BYTES_MAX {
            return Err(unusable(format!(
                "it has {size} bytes, at most {CONFIG_BYTES_MAX} are read"
            )));
        }
        let text = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
        let config: Self = serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))?;
        config.check(&path.display().to_string())?;
        Ok(config)
    }

    fn check(&self, file: &str) -> Result<(), LogMelError> {
        let refuse = |key, found: String, expected: String| {
            Err(LogMelError::Unsupported {
                file: file.to_owned(),
                key,
                found,
                expected,
            })
        };
        let defaults = Self::default();
        if self.feature_extractor_type != defaults.feature_extractor_type {
            let found = format!("{:?}", self.feature_extractor_type);
            return refuse("feature_extractor_type", found, defaults.feature_extractor_type);
        }
        for (key, found, expected) in [
            ("sampling_rate", self.sampling_rate, SAMPLE_RATE_HZ),
            ("hop_length", self.hop_length, HOP_SAMPLES),
            ("n_fft", self.n_fft, FFT_SAMPLES),
        ] {
            if found != expected {
                return refuse(key, found.to_string(), expected.to_string());
            }
        }
        if !(1..=512).contains(&self.feature_size) {
            return refuse(
                "feature_size",
                self.feature_size.to_string(),
                "1 to 512".to_owned(),
            );
        }
        if !(1..=600).contains(&self.chunk_length) {
            return refuse(
                "chunk_length",
                self.chunk_length.to_string(),
                "1 to 600".to_owned(),
            );
        }
        if self.padding_side != "right" {
            return refuse(
                "padding_side",
                format!("{:?}", self.padding_side),
                "right".to_owned(),
            );
        }
        for (key, found) in [("padding_value", self.padding_value), ("dither", self.dither)] {
            if found != 0.0 {
                return refuse(key, found.to_string(), "0".to_owned());
            }
        }
        if self.do_normalize {
            return refuse("do_normalize", "true".to_owned(), "false".to_owned());
        }
        Ok(())
    }

    /// Samples of the model's window.
    pub fn window_samples(&self) -> usize {
        self.chunk_length * SAMPLE_RATE_HZ
    }
}

/// Computes log-mel frames on one device.
#[derive(Debug)]
pub struct LogMel {
    /// f64 `[M, 201]`.
    filters: Tensor,
    /// f64 `[400]`.
    hann: Tensor,
    window_samples: usize,
    device: Device,
}

impl LogMel {
    /// Prepares the filter bank and the window function on `device`.
    pub fn new(config: &LogMelConfig, device: Device) -> Self {
        let mels = config.feature_size;
        let filters = Tensor::from_slice(&mel_filters(mels))
            .view([mels as i64, BINS as i64])
            .to_device(device);
        let hann = Tensor::hann_window(FFT_SAMPLES as i64, (Kind::Double, device));
        Self {
            filters,
            hann,
            window_samples: config.window_samples(),
            device,
        }
    }

    /// Samples of the model's window; no clip may be longer.
    pub fn window_samples(&self) -> usize {
        self.window_samples
    }

    /// Mel frames of the whole window.
    pub fn window_frames(&self) -> usize {
        self.window_samples / HOP_SAMPLES
    }

    /// Log-mel frames of a batch: for row `b` the first `frames[b]` of the window that starts with
    /// `clips[b]`. The floor is taken over each row's own frames; what lies beyond them is zero.
    ///
    /// # Shapes
    /// B clips and B counts → f32 `[B, M, max(frames)]`.
    ///
    /// # Errors
    /// libtorch's, such as memory running out.
    ///
    /// # Panics
    /// When the lists differ in length, are empty, or a clip or count exceeds the window: the caller checks
    /// these.
    pub fn forward(&self, clips: &[&[f32]], frames: &[usize]) -> Result<Tensor, TchError> {
        assert_eq!(clips.len(), frames.len(), "one count of frames per clip");
        let frames_max = *frames.iter().max().expect("the caller sends at least one clip");
        assert!(
            frames_max >= 1 && frames_max <= self.window_frames(),
            "frames lie in the window"
        );
        let row_samples = (frames_max - 1) * HOP_SAMPLES + FFT_SAMPLES;
        let mut signal = vec![0.0_f32; clips.len() * row_samples];
        for (row, clip) in signal.chunks_exact_mut(row_samples).zip(clips) {
            self.place(clip, row);
        }

        let batch = clips.len() as i64;
        let spectrum = Tensor::f_from_slice(&signal)?
            .f_view([batch, row_samples as i64])?
            .f_to_device(self.device)?
            .f_to_kind(Kind::Double)?
            .f_stft(
                FFT_SAMPLES as i64,
                HOP_SAMPLES as i64,
                FFT_SAMPLES as i64,
                Some(&self.hann),
                false,
                true,
                true,
                false,
            )?; // [B, 201, F]
        let power = spectrum.f_abs()?.f_square()?.f_contiguous()?;
        let log = self
            .filters
            .f_matmul(&power)?
            .f_clamp_min_(POWER_MIN)?
            .f_log10_()?; // [B, M, F]

        let ragged = frames.iter().any(|&count| count != frames_max);
        let own = ragged.then(|| {
            let positions = Tensor::arange(frames_max as i64, (Kind::Int64, self.device)); // [F]
            let counts: Vec<i64> = frames.iter().map(|&count| count as i64).collect();
            positions.lt_tensor(
                &Tensor::from_slice(&counts)
                    .to_device(self.device)
                    .view([-1, 1, 1]),
            ) // [B, 1, F]
        });
        let log = match &own {
            Some(own) => log.f_where_self(own, &Tensor::from(POWER_MIN.log10()).to_device(self.device))?,
            None => log,
        };
        let floor = log.f_amax([1, 2], true)? - DECADES; // [B, 1, 1]
        let mel = ((log.f_maximum(&floor)? + 4.0) / 4.0).f_to_kind(Kind::Float)?;
        match &own {
            Some(own) => mel.f_mul(own),
            None => Ok(mel),
        }
    }

    /// Writes the stretch of a clip's window that the row's frames look at; row position 0 is window position
    /// −200.
    fn place(&self, clip: &[f32], row: &mut [f32]) {
        assert!(
            clip.len() <= self.window_samples,
            "the caller checks that clips fit the window"
        );
        let at = |position: usize| clip.get(position).copied().unwrap_or(0.0);
        // Before the window: its beginning, mirrored.
        for (index, value) in row.iter_mut().take(HALF_SAMPLES).enumerate() {
            *value = at(HALF_SAMPLES - index);
        }
        let body = &mut row[HALF_SAMPLES..];
        let copied = clip.len().min(body.len());
        body[..copied].copy_from_slice(&clip[..copied]);
        // Beyond the window: its end, mirrored.
        for (position, value) in body.iter_mut().enumerate().skip(self.window_samples) {
            *value = at(2 * (self.window_samples - 1) - position);
        }
    }
}

/// The Slaney mel filter bank: `M` triangles over 201 frequency bins, each of unit area, row by row.
pub(super) fn mel_filters(mels: usize) -> Vec<f64> {
    let nyquist = SAMPLE_RATE_HZ as f64 / 2.0;
    let mel_max = mel_of_hertz(nyquist);
    // Corner frequencies: triangle m rises from corner m to m + 1 and falls to m + 2.
    let corners: Vec<f64> = (0..mels + 2)
        .map(|index| hertz_of_mel(mel_max * index as f64 / (mels + 1) as f64))
        .collect();
    let mut filters = Vec::with_capacity(mels * BINS);
    for corner in corners.windows(3) {
        let (left, top, right) = (corner[0], corner[1], corner[2]);
        let area = 2.0 / (right - left);
        for bin in 0..BINS {
            let hertz = nyquist * bin as f64 / (BINS - 1) as f64;
            let rising = (hertz - left) / (top - left);
            let falling = (right - hertz) / (right - top);
            filters.push(rising.min(falling).max(0.0) * area);
        }
    }
    filters
}

/// Where Slaney's mel scale turns from linear to logarithmic.
const BREAK_HERTZ: f64 = 1000.0;
const BREAK_MEL: f64 = 15.0;
/// Mels per factor of `e` above the break: 27 of them make a factor of 6.4.
const MELS_PER_LOG: f64 = 27.0;
const LOG_SPAN: f64 = 6.4;

fn mel_of_hertz(hertz: f64) -> f64 {
    if hertz < BREAK_HERTZ {
        hertz * BREAK_MEL / BREAK_HERTZ
    } else {
        BREAK_MEL + (hertz / BREAK_HERTZ).ln() * (MELS_PER_LOG / LOG_SPAN.ln())
    }
}

fn hertz_of_mel(mel: f64) -> f64 {
    if mel < BREAK_MEL {
        mel * BREAK_HERTZ / BREAK_MEL
    } else {
        BREAK_HERTZ * ((mel - BREAK_MEL) * (LOG_SPAN.ln() / MELS_PER_LOG)).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(samples: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..samples).map(|_| next()).collect()
    }

    fn front_end() -> LogMel {
        let config = LogMelConfig {
            chunk_length: 2,
            ..LogMelConfig::default()
        };
        LogMel::new(&config, Device::Cpu)
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn a_clip_s_frames_are_the_first_frames_of_its_padded_window() {
        let front_end = front_end();
        for samples in [1, 399, 400, 7_000, 31_700, 31_999, 32_000] {
            let clip = noise(samples, 7);
            let frames = 2 * samples.div_ceil(320);

            let whole = front_end.forward(&[&clip], &[200]).unwrap();
            let part = front_end.forward(&[&clip], &[frames]).unwrap();

            assert_eq!(part.size(), [1, 80, frames as i64]);
            let difference = largest_difference(&whole.narrow(2, 0, frames as i64), &part);
            assert!(difference < 1e-6, "{samples} samples: {difference}");
        }
    }

    #[test]
    fn a_row_of_a_ragged_batch_equals_the_row_alone_and_ends_in_zeros() {
        let front_end = front_end();
        let (mut short, long) = (noise(1_000, 1), noise(9_000, 2));
        // A click at the very end must not raise the floor through frames that are not the clip's own.
        short[999] = 50.0;

        let batch = front_end.forward(&[&short, &long], &[8, 58]).unwrap();

        let alone = front_end.forward(&[&short], &[8]).unwrap();
        assert!(largest_difference(&batch.get(0).narrow(1, 0, 8), &alone.get(0)) < 1e-6);
        assert_eq!(batch.get(0).narrow(1, 8, 50).abs().max().double_value(&[]), 0.0);
        let alone = front_end.forward(&[&long], &[58]).unwrap();
        assert!(largest_difference(&batch.get(1), &alone.get(0)) < 1e-6);
    }

    #[test]
    fn silence_is_flat_and_finite() {
        let mel = front_end().forward(&[&[0.0; 3200]], &[20]).unwrap();

        assert_eq!(mel.max().double_value(&[]), -1.5); // (log10(1e-10) + 4) / 4
        assert_eq!(mel.min().double_value(&[]), -1.5);
    }

    #[test]
    fn settings_of_another_front_end_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("preprocessor_config.json");
        for (text, key) in [
            (r#"{"hop_length": 256}"#, "hop_length"),
            (r#"{"n_fft": 512}"#, "n_fft"),
            (r#"{"sampling_rate": 8000}"#, "sampling_rate"),
            (r#"{"feature_size": 0}"#, "feature_size"),
            (r#"{"feature_size": 1000000000000}"#, "feature_size"),
            (r#"{"chunk_length": 18446744073709551615}"#, "chunk_length"),
            (r#"{"dither": 0.1}"#, "dither"),
            (r#"{"padding_value": -1}"#, "padding_value"),
            (r#"{"padding_side": "left"}"#, "padding_side"),
            (r#"{"do_normalize": true}"#, "do_normalize"),
            (
                r#"{"feature_extractor_type": "Wav2Vec2FeatureExtractor"}"#,
                "feature_extractor_type",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = LogMelConfig::read(&path).unwrap_err().to_string();
            assert!(
                message.contains(key) && message.contains("preprocessor_config.json"),
                "{text}: {message}"
            );
        }
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(LogMelConfig::read(&path).unwrap(), LogMelConfig::default());
    }

    #[test]
    fn filters_have_unit_area_and_the_published_corner() {
        let filters = mel_filters(80);
        // First filter of the published bank: bin 1 (40 Hz) carries 0.02486.
        assert!((filters[1] - 0.024_862_6).abs() < 1e-6, "{}", filters[1]);
        assert_eq!(filters.len(), 80 * 201);
        assert!(filters.iter().all(|&value| value >= 0.0));
    }
}

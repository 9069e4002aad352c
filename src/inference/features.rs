//! `FeatureExtractor`: the first half of the engine. Clips become mixed encoder features.
//!
//! Clips longer than the encoder's window are cut into equal windows whose features are joined again; clips
//! of like length share a pass, so that little of it is padding. Serving, `ask`, `eval`, validation and the
//! promotion gate all come through here, so they get the same features.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use tch::Tensor;

use super::clip_features::Features;
use super::recent_features::{ClipKey, RecentFeatures};
use crate::models::adapter::AdapterSnapshot;
use crate::models::{EncoderInfo, HiddenStates, ModelError, SpeechEncoder};
use crate::telemetry::metrics;

/// A clip to be encoded.
#[derive(Clone, Copy, Debug)]
pub struct Clip<'c> {
    /// Mono, 16 kHz, in [-1, 1].
    pub samples: &'c [f32],
    /// The adapter version whose layer mix is wanted.
    pub adapter: &'c AdapterSnapshot,
}

/// A speech encoder with its batching; `E` owns the encoder or borrows it. Belongs to one thread at a time.
pub struct FeatureExtractor<E = Box<dyn SpeechEncoder>> {
    encoder: E,
    info: EncoderInfo,
    batch_windows_max: usize,
    recent: RefCell<RecentFeatures>,
}

impl<E: Borrow<dyn SpeechEncoder>> FeatureExtractor<E> {
    /// An extractor whose passes have at most `batch_windows_max` windows.
    pub fn new(encoder: E, batch_windows_max: usize) -> Self {
        let borrowed: &dyn SpeechEncoder = encoder.borrow();
        Self {
            info: borrowed.info(),
            encoder,
            batch_windows_max: batch_windows_max.max(1),
            recent: RefCell::new(RecentFeatures::new(0)),
        }
    }

    /// Keeps at most `bytes_max` bytes of the features of the clips that were encoded last; a clip with the
    /// same samples and layer mix is not encoded again.
    pub fn with_cache(mut self, bytes_max: usize) -> Self {
        self.recent = RefCell::new(RecentFeatures::new(bytes_max));
        self
    }

    /// The encoder's sizes.
    pub fn info(&self) -> &EncoderInfo {
        &self.info
    }

    /// Windows of a clip of so many samples.
    pub fn windows(&self, samples: usize) -> usize {
        windows(samples, self.info.max_samples).len()
    }

    /// Clips, by their samples, in batches of at most the configured number of windows (but at least one
    /// clip), shortest first.
    pub fn batches(&self, samples: &[usize]) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..samples.len()).collect();
        order.sort_by_key(|clip| samples[*clip]);
        let mut batches = Vec::new();
        let mut batch: Vec<usize> = Vec::new();
        let mut batch_windows = 0;
        for clip in order {
            let count = self.windows(samples[clip]);
            if !batch.is_empty() && batch_windows + count > self.batch_windows_max {
                batches.push(std::mem::take(&mut batch));
                batch_windows = 0;
            }
            batch_windows += count;
            batch.push(clip);
        }
        if !batch.is_empty() {
            batches.push(batch);
        }
        batches
    }

    /// Features of each clip. Where a batch fails, by an error or by a panic, its clips are tried one by one,
    /// so that only those at fault have an error.
    pub fn extract(&self, clips: &[Clip<'_>]) -> Vec<Result<Features, ModelError>> {
        let mut recent = self.recent.borrow_mut();
        if !recent.is_enabled() {
            return self.encode(clips);
        }
        let keys: Vec<ClipKey> = (clips.iter())
            .map(|clip| ClipKey::new(clip.samples, clip.adapter.mix_weights()))
            .collect();
        let found: Vec<Option<Features>> = keys.iter().map(|key| recent.get(key)).collect();
        let missing = || (0..clips.len()).filter(|at| found[*at].is_none());
        let to_encode: Vec<Clip<'_>> = missing().map(|at| clips[at]).collect();
        metrics::encoder_cache(clips.len() - to_encode.len(), to_encode.len());
        let encoded = match to_encode.is_empty() {
            true => Vec::new(),
            false => self.encode(&to_encode),
        };
        for (at, features) in missing().zip(&encoded) {
            if let Ok(features) = features {
                recent.put(keys[at], features);
            }
        }
        let mut encoded = encoded.into_iter();
        let mut next = || encoded.next().expect("one result for each missing clip");
        found
            .into_iter()
            .map(|found| found.map_or_else(&mut next, Ok))
            .collect()
    }

    /// Features of one clip that is not asked about again: nothing of it is kept. `wanted` is asked before
    /// each layer whether they are still wanted; none where they are not.
    ///
    /// # Errors
    /// [`ModelError`] when the network fails, or panics.
    pub fn extract_while(
        &self,
        clip: Clip<'_>,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Option<Features>, ModelError> {
        match self.run(&[clip], wanted) {
            Ok(features) => Ok(features.into_iter().next()),
            Err(ModelError::GivenUp) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`extract`](Self::extract), without the cache.
    fn encode(&self, clips: &[Clip<'_>]) -> Vec<Result<Features, ModelError>> {
        match self.run(clips, &|| true) {
            Ok(features) => features.into_iter().map(Ok).collect(),
            Err(error) if clips.len() > 1 => {
                tracing::warn!(%error, clips = clips.len(), "an encoder batch failed, its clips are tried one by one");
                clips.iter().map(|clip| self.run_one(clip)).collect()
            }
            Err(error) => vec![Err(error)],
        }
    }

    fn run_one(&self, clip: &Clip<'_>) -> Result<Features, ModelError> {
        let features = self.run(std::slice::from_ref(clip), &|| true)?;
        Ok(features.into_iter().next().expect("one result for one clip"))
    }

    /// A panic inside the network is an error like any other.
    fn run(&self, clips: &[Clip<'_>], wanted: &dyn Fn() -> bool) -> Result<Vec<Features>, ModelError> {
        catch_unwind(AssertUnwindSafe(|| self.features(clips, wanted)))
            .unwrap_or_else(|panic| Err(ModelError::panicked("speech encoder", &*panic)))
    }

    fn features(&self, clips: &[Clip<'_>], wanted: &dyn Fn() -> bool) -> Result<Vec<Features>, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let mut all: Vec<(usize, &[f32])> = Vec::new();
        for (owner, clip) in clips.iter().enumerate() {
            let cut = windows(clip.samples.len(), self.info.max_samples).into_iter();
            all.extend(cut.map(|range| (owner, &clip.samples[range])));
        }
        let mut parts: Vec<Vec<Features>> = clips.iter().map(|_| Vec::new()).collect();
        for pass in all.chunks(self.batch_windows_max) {
            let mixes: Vec<Tensor> = (pass.iter())
                .map(|(owner, _)| Tensor::f_from_slice(clips[*owner].adapter.mix_weights()))
                .collect::<Result<_, _>>()?;
            let mix = Tensor::f_stack(&mixes, 0)?; // [B, L+1]
            let samples: Vec<&[f32]> = pass.iter().map(|(_, samples)| *samples).collect();
            let began = Instant::now();
            let encoded = self.encoder.borrow().encode_while(&samples, &mix, wanted);
            metrics::network_pass("encode", began.elapsed());
            let encoded = encoded?;
            for (row, (owner, _)) in (0i64..).zip(pass) {
                let frames = encoded.lengths[usize::try_from(row).expect("not negative")];
                parts[*owner].push(Features {
                    frames: encoded.features.f_get(row)?.f_narrow(0, 0, frames)?, // [T, D]
                    statistics: encoded.statistics.f_get(row)?,                   // [L+1, 2D]
                });
            }
        }
        parts.iter().map(|windows| Features::join(windows)).collect()
    }

    /// Encodes a second of silence, so that the first real clip finds libtorch's kernels chosen and memory
    /// touched.
    ///
    /// # Errors
    /// [`ModelError`] when the encoder cannot do that, or `adapter` does not fit it.
    pub fn warm_up(&self, adapter: &AdapterSnapshot) -> Result<(), ModelError> {
        let silence = vec![0.0; 16_000];
        let samples = silence.as_slice();
        let samples = &samples[..samples.len().min(self.info.max_samples.unwrap_or(usize::MAX))];
        self.run(&[Clip { samples, adapter }], &|| true).map(|_| ())
    }
}

/// Cuts a clip into the fewest equal windows that the encoder takes.
pub fn windows(samples: usize, samples_max: Option<usize>) -> Vec<Range<usize>> {
    let count = samples_max.map_or(1, |max| samples.div_ceil(max.max(1))).max(1);
    (0..count)
        .map(|index| samples * index / count..samples * (index + 1) / count)
        .collect()
}

/// All hidden states of clips of any length: as [`SpeechEncoder::hidden_states`], with long clips cut into
/// windows and joined again, as [`FeatureExtractor`] does.
///
/// # Errors
/// [`ModelError`] as the encoder's.
pub fn hidden_states(encoder: &dyn SpeechEncoder, clips: &[&[f32]]) -> Result<HiddenStates, ModelError> {
    let longest = encoder.info().max_samples;
    let cut: Vec<Vec<Range<usize>>> = clips.iter().map(|clip| windows(clip.len(), longest)).collect();
    if cut.iter().all(|ranges| ranges.len() == 1) {
        return encoder.hidden_states(clips);
    }
    let parts: Vec<&[f32]> = (clips.iter().zip(&cut))
        .flat_map(|(clip, ranges)| ranges.iter().map(|range| &clip[range.clone()]))
        .collect();
    let found = encoder.hidden_states(&parts)?;
    // `[W, T, D]` of windows → `[B, T', D]` of clips, zero beyond each clip's length.
    let join = |state: &Tensor| -> Result<Tensor, ModelError> {
        let mut row = 0;
        let mut joined = Vec::with_capacity(clips.len());
        for ranges in &cut {
            let mut own = Vec::with_capacity(ranges.len());
            for _ in ranges {
                let frames = found.lengths[row];
                own.push(
                    state
                        .f_get(i64::try_from(row).unwrap_or(i64::MAX))?
                        .f_narrow(0, 0, frames)?,
                );
                row += 1;
            }
            joined.push(Tensor::f_cat(&own, 0)?);
        }
        Ok(Tensor::f_pad_sequence(&joined, true, 0.0, "right")?)
    };
    let mut row = 0;
    let lengths = (cut.iter())
        .map(|ranges| {
            let own = &found.lengths[row..row + ranges.len()];
            row += ranges.len();
            own.iter().sum()
        })
        .collect();
    Ok(HiddenStates {
        states: found.states.iter().map(join).collect::<Result<_, _>>()?,
        last: join(&found.last)?,
        lengths,
    })
}

#[cfg(test)]
mod tests {
    use super::windows;

    #[test]
    fn a_short_clip_is_one_window() {
        assert_eq!(windows(100, Some(480_000)), vec![0..100]);
        assert_eq!(windows(100, None), vec![0..100]);
    }

    #[test]
    fn a_long_clip_is_cut_into_the_fewest_equal_windows_without_a_gap() {
        let cut = windows(1_000_001, Some(480_000));

        assert_eq!(cut.len(), 3);
        assert_eq!(cut[0].start, 0);
        assert_eq!(cut[2].end, 1_000_001);
        assert!(cut.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(cut.iter().all(|range| range.len() <= 480_000));
    }
}

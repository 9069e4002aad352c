//! Batches by length, in an order that depends on seed and epoch alone, read ahead of the step that needs
//! them.

use std::sync::Arc;
use std::thread::JoinHandle;

use super::TrainingError;
use super::augment::{Noises, augment};
use super::example::{AudioSource, Example, LoadedAudio};
use super::feature_cache::{FeatureCache, FeatureKey};
use super::prompt_variants::PromptVariants;
use crate::inference::Features;
use crate::training::config::{AugmentConfig, StageConfig};
use crate::util::random::SplitMix;

/// Batches whose rows are sorted by length together, so that a batch holds clips of similar length and epochs
/// still differ.
const BATCHES_SORTED_TOGETHER: usize = 32;

/// Order of one epoch: batches of indices into `seconds`.
///
/// `weights[i]` says how often sample `i` is seen in an epoch on average. A batch has at most `rows_max` rows
/// and, padding included, at most `seconds_max` of audio (but always one row).
pub fn plan_epoch(
    seconds: &[f64],
    weights: &[f64],
    rows_max: usize,
    seconds_max: f64,
    seeds: &[u64],
) -> Vec<Vec<usize>> {
    let mut random = SplitMix::new(seeds);
    let mut order = Vec::with_capacity(seconds.len());
    for (index, weight) in weights.iter().enumerate().take(seconds.len()) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "validated to be 0 to 1000"
        )]
        let whole = weight.floor() as usize;
        let copies = whole + usize::from(random.chance(weight.fract()));
        order.extend(std::iter::repeat_n(index, copies));
    }
    random.shuffle(&mut order);
    let mut batches = Vec::new();
    for together in order.chunks_mut(rows_max.max(1) * BATCHES_SORTED_TOGETHER) {
        together.sort_by(|a, b| seconds[*a].total_cmp(&seconds[*b]).then(a.cmp(b)));
        let mut batch: Vec<usize> = Vec::new();
        for index in together.iter().copied() {
            // Sorted, so the newcomer is the longest and sets the padded length.
            #[expect(clippy::cast_precision_loss, reason = "a row count")]
            let padded = seconds[index] * (batch.len() + 1) as f64;
            if !batch.is_empty() && (batch.len() >= rows_max || padded > seconds_max) {
                batches.push(std::mem::take(&mut batch));
            }
            batch.push(index);
        }
        if !batch.is_empty() {
            batches.push(batch);
        }
    }
    random.shuffle(&mut batches);
    batches
}

/// A clip as a step needs it.
#[derive(Debug)]
pub enum LoadedClip {
    /// Mono f32 at 16 kHz, decoded and changed, not encoded yet.
    Samples {
        /// The samples.
        samples: Vec<f32>,
        /// Whether the file that they are from is damaged.
        damaged: bool,
        /// Name under which its features are to be kept.
        keep_as: Option<FeatureKey>,
    },
    /// Mixed features and statistics, bf16, from the cache, and their name there.
    Features(Features, FeatureKey),
}

impl LoadedClip {
    /// Samples that nobody keeps features of.
    pub fn samples(samples: Vec<f32>) -> Self {
        Self::Samples {
            samples,
            damaged: false,
            keep_as: None,
        }
    }

    /// The samples, where it was not encoded before.
    pub fn audio(&self) -> Option<&[f32]> {
        match self {
            Self::Samples { samples, .. } => Some(samples),
            Self::Features(..) => None,
        }
    }

    /// The name of its features in the cache, where they are kept.
    pub fn key(&self) -> Option<&FeatureKey> {
        match self {
            Self::Samples { keep_as, .. } => keep_as.as_ref(),
            Self::Features(_, key) => Some(key),
        }
    }
}

/// The cache of a stage, and what all its features depend on.
#[derive(Clone, Debug)]
pub struct StageFeatures {
    /// The cache.
    pub cache: FeatureCache,
    /// Encoder, precision and layer mix.
    pub common: String,
    /// Augmented variants of each clip.
    pub variants: u64,
}

impl StageFeatures {
    /// Key of a clip, changed as `changes` says or not at all.
    fn key(&self, audio: &AudioSource, changes: Option<&Changes<'_>>) -> Option<FeatureKey> {
        let changes = match changes {
            None => "none".to_owned(),
            Some(changes) => {
                // What is done to features afterwards is not in the cache.
                let AugmentConfig {
                    time_masks,
                    time_mask_frames_max,
                    feature_masks,
                    feature_mask_width_max,
                    ..
                } = AugmentConfig::default();
                let of_audio = AugmentConfig {
                    time_masks,
                    time_mask_frames_max,
                    feature_masks,
                    feature_mask_width_max,
                    ..changes.config.clone()
                };
                let noises = match changes.noises.is_empty() {
                    true => String::new(),
                    false => format!(" recorded noises {}", changes.noises.digest()),
                };
                format!(
                    "{} variant {}{noises}",
                    of_audio.differing_from_defaults(),
                    changes.turn % self.variants.max(1)
                )
            }
        };
        FeatureKey::new(audio, &self.common, &changes)
    }
}

/// How the audio of a training clip is changed.
#[derive(Clone, Copy, Debug)]
pub struct Changes<'a> {
    /// Kinds and sizes.
    pub config: &'a AugmentConfig,
    /// Recorded noises.
    pub noises: &'a Noises,
    /// Which of the variants that a cache keeps.
    pub turn: u64,
}

/// Loads a clip: its features where the cache has them, else its samples, changed.
///
/// What is drawn for a variant that goes to the cache depends on the clip and the number of the variant
/// alone, so that every run finds it; else it comes from `random`.
///
/// # Errors
/// A sentence that says what is wrong with the clip.
pub fn load_clip(
    example: &Example,
    samples_max: Option<usize>,
    changes: Option<&Changes<'_>>,
    features: Option<&StageFeatures>,
    random: &mut SplitMix,
) -> Result<LoadedClip, String> {
    let key = features.and_then(|features| features.key(&example.audio, changes));
    if let (Some(features), Some(key)) = (features, &key)
        && let Some(found) = features.cache.get(key)
    {
        return Ok(LoadedClip::Features(found, key.clone()));
    }
    let mut of_key = key.as_ref().map(|key| SplitMix::new(&[key.seed()]));
    let random = of_key.as_mut().unwrap_or(random);
    let LoadedAudio { mut samples, damaged } = example.audio.draw(random)?;
    if samples_max.is_some_and(|max| samples.len() > max) {
        return Err(format!("has {} samples, the encoder takes fewer", samples.len()));
    }
    if let Some(Changes { config, noises, .. }) = changes {
        samples = augment(samples, config, noises, samples_max, random);
    }
    Ok(LoadedClip::Samples {
        samples,
        damaged,
        keep_as: key,
    })
}

/// A batch with its audio decoded and changed, and an instruction chosen for each row.
#[derive(Debug)]
pub struct LoadedBatch {
    /// Epoch it belongs to.
    pub epoch: u64,
    /// Its place in the epoch.
    pub position: usize,
    /// Batches in the epoch.
    pub batches: usize,
    /// Index of each row in the stage's examples.
    pub rows: Vec<usize>,
    /// Samples or features of each row.
    pub clips: Vec<LoadedClip>,
    /// Length of each row as declared, seconds.
    pub seconds: Vec<f64>,
    /// Instruction of each row.
    pub instructions: Vec<String>,
    /// Clips that could not be read and are not among the rows: what is wrong with each.
    pub unreadable: Vec<String>,
    /// Ids of rows whose sound is damaged.
    pub damaged: Vec<String>,
}

/// What a [`BatchReader`] needs.
#[derive(Debug)]
pub struct BatchReaderArgs {
    /// The stage's examples.
    pub examples: Arc<Vec<Example>>,
    /// The ways in which each example can be asked, one of which is drawn.
    pub variants: Vec<PromptVariants>,
    /// How often each example is seen per epoch.
    pub weights: Vec<f64>,
    /// Row and length limits.
    pub rows_max: usize,
    /// Audio of a batch at most, padding included, seconds.
    pub seconds_max: f64,
    /// Changes to audio.
    pub augment: Option<AugmentConfig>,
    /// Recorded noises to change it with.
    pub noises: Noises,
    /// Where features are kept; absent: every clip is decoded.
    pub features: Option<StageFeatures>,
    /// Longest clip that the encoder takes, samples.
    pub samples_max: Option<usize>,
    /// Seed of the run.
    pub seed: u64,
    /// Number of the stage.
    pub stage: u64,
    /// Where to start: epoch, and batch in it.
    pub start: (u64, usize),
    /// Batches kept ready.
    pub ahead: usize,
}

impl BatchReaderArgs {
    /// Takes limits and augmentation from a stage's settings.
    pub fn limits_of(mut self, stage: &StageConfig, augment: &AugmentConfig) -> Self {
        self.rows_max = stage.batch_rows;
        self.seconds_max = stage.batch_seconds_max;
        self.augment = stage.augment.then(|| augment.clone());
        self
    }

    fn load(&self, epoch: u64, position: usize, batches: usize, rows: &[usize]) -> LoadedBatch {
        let mut batch = LoadedBatch {
            epoch,
            position,
            batches,
            rows: Vec::with_capacity(rows.len()),
            clips: Vec::with_capacity(rows.len()),
            seconds: Vec::with_capacity(rows.len()),
            instructions: Vec::with_capacity(rows.len()),
            unreadable: Vec::new(),
            damaged: Vec::new(),
        };
        for row in rows.iter().copied() {
            let example = &self.examples[row];
            // The position is among the seeds because a weight above 1 brings a sample twice per epoch.
            let seeds = [self.seed, self.stage, epoch, row as u64, position as u64];
            let mut random = SplitMix::new(&seeds);
            let instruction = self.variants[row].draw(&mut random);
            let changes = self.augment.as_ref().map(|config| Changes {
                config,
                noises: &self.noises,
                // Rows differ in their variant, so that a batch holds several.
                turn: epoch + row as u64,
            });
            let features = self.features.as_ref();
            match load_clip(example, self.samples_max, changes.as_ref(), features, &mut random) {
                Ok(clip) => {
                    if matches!(clip, LoadedClip::Samples { damaged: true, .. }) {
                        batch.damaged.push(example.id.clone());
                    }
                    batch.rows.push(row);
                    batch.clips.push(clip);
                    batch.seconds.push(example.seconds);
                    batch.instructions.push(instruction);
                }
                Err(reason) => batch.unreadable.push(format!("{}: {reason}", example.id)),
            }
        }
        batch
    }
}

/// A thread that decodes batches ahead, epoch after epoch, until it is dropped.
#[derive(Debug)]
pub struct BatchReader {
    receiver: Option<flume::Receiver<LoadedBatch>>,
    thread: Option<JoinHandle<()>>,
}

impl BatchReader {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`TrainingError::NoExamples`] when there is nothing to read; [`TrainingError::Io`] when no thread can
    /// be had.
    pub fn start(args: BatchReaderArgs) -> Result<Self, TrainingError> {
        if args.examples.is_empty() || !args.weights.iter().any(|weight| *weight > 0.0) {
            return Err(TrainingError::NoExamples {
                what: "a batch".into(),
                reason: "nothing has a weight above 0".into(),
            });
        }
        // As many batches as the settings say are worth their memory; each is a few megabytes.
        let (sender, receiver) = flume::bounded(args.ahead.max(1));
        let thread = std::thread::Builder::new()
            .name("training-reader".into())
            .spawn(move || {
                let seconds: Vec<f64> = args.examples.iter().map(|example| example.seconds).collect();
                let (mut epoch, mut skip) = args.start;
                loop {
                    let seeds = [args.seed, args.stage, epoch];
                    let plan = plan_epoch(&seconds, &args.weights, args.rows_max, args.seconds_max, &seeds);
                    for (position, rows) in plan.iter().enumerate().skip(skip) {
                        if sender.send(args.load(epoch, position, plan.len(), rows)).is_err() {
                            return;
                        }
                    }
                    skip = 0;
                    epoch += 1;
                }
            })
            .map_err(TrainingError::io(
                "start",
                std::path::Path::new("training-reader thread"),
            ))?;
        Ok(Self {
            receiver: Some(receiver),
            thread: Some(thread),
        })
    }

    /// The next batch; blocks until it is decoded.
    ///
    /// # Errors
    /// [`TrainingError::ReaderGone`] when the thread has died.
    pub fn next(&self) -> Result<LoadedBatch, TrainingError> {
        let receiver = self.receiver.as_ref().ok_or(TrainingError::ReaderGone)?;
        receiver.recv().map_err(|_| TrainingError::ReaderGone)
    }
}

impl Drop for BatchReader {
    fn drop(&mut self) {
        // Without a receiver the thread's next send fails, and it ends.
        drop(self.receiver.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;

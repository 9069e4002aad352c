//! The run: settings and manifests in, an encoder folder out.

mod start;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::codes::CodeCounts;
use super::events::{PretrainEvent, plot};
use super::objective::MaskedBatch;
use crate::models::encoders::conformer::{Pretraining, parameter_count};
use crate::nn::accel::Placement;
use crate::nn::optimizer::AdamW;
use crate::training::TrainingError;
use crate::training::augment::Noises;
use crate::training::batch::{BatchReader, BatchReaderArgs, LoadedClip};
use crate::training::checkpoint::{self, Best, RunState};
use crate::training::control::Control;
use crate::training::example::Example;
use crate::training::log::EventLog;
use crate::training::pretrain::config::PretrainConfig;
use crate::training::prompt_variants::PromptVariants;
use crate::training::schedule::Schedule;
use crate::util::random::SplitMix;

/// Steps in a row that may be left out because of values that are not finite.
const SKIPPED_IN_A_ROW_MAX: u64 = 20;
/// Batches in a row of which chance may hide nothing.
const EMPTY_IN_A_ROW_MAX: u64 = 1000;
const RATE_HZ: f64 = 16_000.0;
/// Distinguishes the seeds of masks from those of other things.
const MASKS: u64 = 0x3a5c;
const VALIDATION: u64 = u64::MAX;

/// What the `pretrain` command asks for.
#[derive(Clone, Debug)]
pub struct PretrainArgs {
    /// Settings of the run.
    pub config: PretrainConfig,
    /// Goes on from the run's checkpoint, when there is one.
    pub resume: bool,
    /// Pauses and stops the run.
    pub control: Control,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct PretrainOutcome {
    /// Whether it was stopped before its end; it can be resumed then.
    pub stopped: bool,
    /// Optimiser steps.
    pub steps: u64,
    /// Best validation.
    pub best: Option<Best>,
    /// Folder of the encoder at that validation (of the last step where nothing was validated): a
    /// `model.encoder`.
    pub encoder: PathBuf,
}

/// Pre-trains an encoder by masked prediction of random-projection labels.
///
/// # Errors
/// [`TrainingError`] when settings, data, network or disk fail; the last checkpoint stays.
pub fn pretrain(
    args: PretrainArgs,
    on_event: &mut dyn FnMut(&PretrainEvent),
) -> Result<PretrainOutcome, TrainingError> {
    Run::begin(args)?.run(on_event)
}

/// A run under way.
struct Run {
    config: PretrainConfig,
    network: Pretraining,
    optimizer: AdamW,
    state: RunState,
    train: Arc<Vec<Example>>,
    valid: Vec<Example>,
    left_out: usize,
    resumed: bool,
    placement: Placement,
    control: Control,
    log: EventLog,
}

impl Run {
    fn run(mut self, on_event: &mut dyn FnMut(&PretrainEvent)) -> Result<PretrainOutcome, TrainingError> {
        let (started, earlier) = (Instant::now(), self.state.run_seconds);
        let encoder_parameters = parameter_count(self.network.config());
        let all: usize = self
            .optimizer
            .parameters()
            .iter()
            .map(|parameter| parameter.tensor.numel())
            .sum();
        let event = PretrainEvent::RunStarted {
            run: self.config.run.clone(),
            time: jiff::Timestamp::now().to_string(),
            resumed: self.resumed,
            train_clips: self.train.len(),
            train_hours: self.train.iter().map(|one| one.seconds).sum::<f64>() / 3600.0,
            valid_clips: self.valid.len(),
            left_out: self.left_out,
            encoder_parameters,
            head_parameters: all as i64 - encoder_parameters,
            placement: self.placement.reason.clone(),
        };
        self.tell(event, on_event)?;
        let reader = self.reader()?;
        let mut validated_at = None;
        if self.state.step == 0 {
            self.validate(on_event)?;
        }
        let mut skipped_in_a_row = 0;
        let reason = loop {
            self.control.wait();
            self.state.run_seconds = earlier + started.elapsed().as_secs_f64();
            if self.control.is_stopped() {
                break "stopped";
            }
            if self.state.step >= self.config.optimizer.steps_max {
                break "steps";
            }
            if let Some(minutes) = self.config.minutes_max
                && self.state.run_seconds >= minutes * 60.0
            {
                break "time";
            }
            if self.step(&reader, on_event)? {
                skipped_in_a_row = 0;
            } else {
                skipped_in_a_row += 1;
            }
            if skipped_in_a_row > SKIPPED_IN_A_ROW_MAX {
                return Err(TrainingError::Diverged {
                    stage: "pretrain".into(),
                    step: self.state.step,
                    skipped: skipped_in_a_row,
                });
            }
            if self.state.step.is_multiple_of(self.config.validation.every_steps) {
                self.validate(on_event)?;
                validated_at = Some(self.state.step);
            }
            if self.state.step.is_multiple_of(self.config.checkpoint_every_steps) {
                self.save_checkpoint(on_event)?;
            }
        };
        let stopped = reason == "stopped";
        if stopped {
            self.save_checkpoint(on_event)?;
        } else if validated_at != Some(self.state.step) {
            self.validate(on_event)?;
        }
        if self.valid.is_empty() {
            self.save_encoder()?;
        }
        let event = PretrainEvent::RunFinished {
            steps: self.state.step,
            seconds: earlier + started.elapsed().as_secs_f64(),
            loss: self.state.best.as_ref().map(|best| best.loss),
            reason: reason.to_owned(),
        };
        self.tell(event, on_event)?;
        let output = &self.config.output;
        plot(&output.join("log.jsonl"), &output.join("loss.svg"))?;
        Ok(PretrainOutcome {
            stopped,
            steps: self.state.step,
            encoder: self.encoder_folder(),
            best: self.state.best,
        })
    }

    /// One optimiser step over `accumulate` batches. False when it was left out because a number was not
    /// finite.
    fn step(
        &mut self,
        reader: &BatchReader,
        on_event: &mut dyn FnMut(&PretrainEvent),
    ) -> Result<bool, TrainingError> {
        let start = Instant::now();
        let settings = self.config.optimizer.clone();
        self.optimizer.zero_grad();
        if settings.dropout > 0.0 {
            // torch draws dropout from a generator that all threads share; a seed per step makes a resumed
            // run go on equally.
            let seed = SplitMix::new(&[self.config.seed, self.state.step]).bits();
            tch::manual_seed(seed.cast_signed());
        }
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let share = 1.0 / settings.accumulate as f64;
        let (mut loss, mut batches, mut masked, mut samples) = (0.0, 0, 0, 0);
        let (mut empty_in_a_row, mut epoch) = (0, self.state.epoch);
        while batches < settings.accumulate {
            let batch = reader.next()?;
            epoch = batch.epoch;
            self.state.take_batch(&batch)?;
            let mut random: Vec<SplitMix> = batch
                .rows
                .iter()
                .map(|row| {
                    SplitMix::new(&[
                        self.config.seed,
                        MASKS,
                        batch.epoch,
                        batch.position as u64,
                        *row as u64,
                    ])
                })
                .collect();
            let clips: Vec<&[f32]> = batch.clips.iter().filter_map(LoadedClip::audio).collect();
            let masked_batch = if clips.is_empty() {
                None
            } else {
                MaskedBatch::new(&self.network, &clips, &self.config.mask, &mut random)?
            };
            let Some(masked_batch) = masked_batch else {
                empty_in_a_row += 1;
                if empty_in_a_row > EMPTY_IN_A_ROW_MAX {
                    return Err(TrainingError::NoExamples {
                        what: "a step".into(),
                        reason: format!(
                            "{empty_in_a_row} batches in a row had no hidden frame; raise `mask.share` or `data.seconds_min`"
                        ),
                    });
                }
                continue;
            };
            empty_in_a_row = 0;
            loss += masked_batch.learn(&self.network, settings.dropout, share)? * share;
            batches += 1;
            masked += masked_batch.frames();
            samples += clips.iter().map(|clip| clip.len()).sum::<usize>();
        }
        let norm = self.optimizer.grad_norm();
        self.state.step += 1;
        self.state.total_steps += 1;
        let step = self.state.step;
        let finite = loss.is_finite() && norm.is_finite();
        let rate = settings.learning_rate * self.rate_factor();
        if finite {
            if norm > settings.clip_norm {
                self.optimizer.scale_grads(settings.clip_norm / norm);
            }
            self.optimizer.step(rate);
        }
        let elapsed = start.elapsed().as_secs_f64();
        self.state.stage_seconds += elapsed;
        if !finite {
            self.state.skipped += 1;
            let skipped = self.state.skipped;
            self.tell(PretrainEvent::StepSkipped { step, skipped }, on_event)?;
            return Ok(false);
        }
        #[expect(clippy::cast_precision_loss, reason = "a sample count")]
        let audio_seconds = samples as f64 / RATE_HZ;
        let event = PretrainEvent::Step {
            step,
            epoch,
            loss,
            rate,
            grad_norm: norm,
            masked_frames: masked,
            audio_seconds_per_second: audio_seconds / elapsed,
            seconds: self.state.stage_seconds,
        };
        self.tell(event, on_event)?;
        Ok(true)
    }

    /// Factor on the learning rate of the step that `state.step` counts last.
    #[expect(clippy::cast_precision_loss, reason = "step counts are small")]
    fn rate_factor(&self) -> f64 {
        let settings = &self.config.optimizer;
        let schedule = Schedule {
            warmup_steps: settings.warmup_steps,
            decay: settings.decay,
            final_rate_fraction: settings.final_rate_fraction,
        };
        let by_steps = self.state.step as f64 / settings.steps_max as f64;
        let by_time = self
            .config
            .minutes_max
            .map_or(0.0, |minutes| self.state.run_seconds / (minutes * 60.0));
        schedule.factor(self.state.step - 1, by_steps.max(by_time))
    }

    /// Solves the same masked_batches each time, and keeps the encoder when it never did better.
    fn validate(&mut self, on_event: &mut dyn FnMut(&PretrainEvent)) -> Result<(), TrainingError> {
        if self.valid.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let (mut loss, mut accuracy, mut counts, mut frames) = (0.0, 0.0, CodeCounts::default(), 0);
        for (at, one) in self.valid.iter().enumerate() {
            let clip = one.audio.load().map_err(|reason| TrainingError::Unreadable {
                failed: 1,
                tried: at as u64 + 1,
                last: format!("{}: {reason}", one.id),
            })?;
            let mut random = [SplitMix::new(&[self.config.seed, MASKS, VALIDATION, at as u64])];
            let Some(masked_batch) =
                MaskedBatch::new(&self.network, &[&clip], &self.config.mask, &mut random)?
            else {
                continue;
            };
            let found = masked_batch.predict(&self.network)?;
            #[expect(clippy::cast_precision_loss, reason = "a frame count")]
            let weight = masked_batch.frames() as f64;
            loss += found.loss * weight;
            accuracy += found.accuracy * weight;
            frames += masked_batch.frames();
            counts.add(masked_batch.codes())?;
        }
        if frames == 0 {
            return Err(TrainingError::NoExamples {
                what: "validation".into(),
                reason: "chance hid no frame of its clips; give it more, or longer ones".into(),
            });
        }
        #[expect(clippy::cast_precision_loss, reason = "a frame count")]
        let all = frames as f64;
        let (loss, accuracy) = (loss / all, accuracy / all);
        let step = self.state.step;
        let best = self.state.best.as_ref().is_none_or(|best| loss < best.loss);
        if best {
            self.state.best = Some(Best {
                loss,
                wer: None,
                step,
            });
            self.save_encoder()?;
        }
        let codes = counts.statistics(self.config.quantizer.codes);
        let event = PretrainEvent::Validated {
            step,
            loss,
            accuracy,
            unigram_entropy: codes.entropy,
            majority_accuracy: codes.majority,
            codes_used: codes.used,
            code_perplexity: codes.perplexity,
            masked_frames: frames,
            best,
            seconds: start.elapsed().as_secs_f64(),
        };
        self.tell(event, on_event)
    }

    fn reader(&self) -> Result<BatchReader, TrainingError> {
        let nothing = PromptVariants::verbatim(vec![String::new()].into());
        let settings = &self.config.optimizer;
        let seconds_max = self.config.data.seconds_max;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "validated to be at most 1200 s"
        )]
        let declared_max = ((seconds_max + 1.0) * RATE_HZ) as usize;
        let encoder_max = self.network.samples_max();
        BatchReader::start(BatchReaderArgs {
            examples: Arc::clone(&self.train),
            variants: vec![nothing; self.train.len()],
            weights: vec![1.0; self.train.len()],
            rows_max: settings.batch_rows,
            seconds_max: settings.batch_seconds_max,
            augment: Some(self.config.augment.clone()),
            noises: Noises::default(),
            features: None,
            samples_max: Some(declared_max.min(encoder_max)),
            seed: self.config.seed,
            stage: 0,
            start: (self.state.epoch, self.state.position),
            ahead: self.config.data.prefetch_batches,
        })
    }

    fn encoder_folder(&self) -> PathBuf {
        self.config.output.join("encoder")
    }

    fn save_encoder(&self) -> Result<(), TrainingError> {
        checkpoint::replace(&self.encoder_folder(), |folder| Ok(self.network.save(folder)?))
    }

    fn save_checkpoint(&mut self, on_event: &mut dyn FnMut(&PretrainEvent)) -> Result<(), TrainingError> {
        let folder = self.config.output.join("checkpoint");
        checkpoint::save_with(&folder, &self.optimizer, &self.state, |new| {
            Ok(self.network.save(new)?)
        })?;
        let step = self.state.step;
        self.tell(PretrainEvent::CheckpointSaved { step }, on_event)
    }

    fn tell(
        &mut self,
        event: PretrainEvent,
        on_event: &mut dyn FnMut(&PretrainEvent),
    ) -> Result<(), TrainingError> {
        self.log.write(&event)?;
        on_event(&event);
        Ok(())
    }
}

//! One optimiser step.

use std::time::Instant;

use super::Engine;
use crate::nn::optimizer::AdamW;
use crate::training::TrainingError;
use crate::training::batch::BatchReader;
use crate::training::config::StageConfig;
use crate::training::events::TrainEvent;
use crate::training::prepare::Sample;
use crate::training::schedule::{progress, rate_factor};
use crate::training::stage::StageRunner;
use crate::util::random::SplitMix;

/// Batches in a row that may have nothing to learn from.
const EMPTY_IN_A_ROW_MAX: u64 = 1000;
/// Distinguishes the seed of dropout from those of other choices.
const DROPOUT_STREAM: u64 = 0xd0;
/// Distinguishes the seed of feature masks from those of other choices.
const MASK_SEED: u64 = 0x3a5c;

impl Engine<'_> {
    /// One optimiser step over `accumulate` batches. False when it was left out because a number was not
    /// finite.
    pub(super) fn step(
        &mut self,
        stage: &StageConfig,
        work: &mut StageRunner<'_>,
        optimizer: &mut AdamW,
        reader: &BatchReader,
        samples: &[Sample],
        on_event: &mut dyn FnMut(&TrainEvent),
    ) -> Result<bool, TrainingError> {
        let start = Instant::now();
        optimizer.zero_grad();
        self.set_dropout_active(Some(stage));
        let (mut total, mut batches, mut tokens, mut audio_seconds) = (0.0, 0u64, 0, 0.0);
        let mut epoch = self.state.epoch;
        let mut empty_in_a_row = 0;
        while batches < stage.accumulate {
            let batch = reader.next()?;
            epoch = batch.epoch;
            self.state.take_batch(&batch)?;
            let rows: Vec<&Sample> = batch.rows.iter().map(|row| &samples[*row]).collect();
            empty_in_a_row += 1;
            if empty_in_a_row > EMPTY_IN_A_ROW_MAX {
                return Err(TrainingError::NoExamples {
                    what: format!("stage {} ({})", self.state.stage, stage.kind.name()),
                    reason: format!(
                        "{EMPTY_IN_A_ROW_MAX} batches in a row had no clip with a target that it learns: labels of the task files for `summary_tasks` and `sentence_tasks`, words that are said (`text`) for `ctc_align`"
                    ),
                });
            }
            if rows.is_empty() {
                continue;
            }
            let seeds = [
                self.config.seed,
                self.state.stage as u64,
                batch.epoch,
                batch.position as u64,
                MASK_SEED,
            ];
            let mut random = SplitMix::new(&seeds);
            let (clips, asked) = (&batch.clips, &batch.instructions);
            let Some(found) = work.loss(&mut self.learned, &rows, clips, asked, Some(&mut random))? else {
                continue;
            };
            #[expect(clippy::cast_precision_loss, reason = "a small count")]
            let share = found.loss / stage.accumulate as f64;
            share.f_backward()?;
            empty_in_a_row = 0;
            total += share.double_value(&[]);
            batches += 1;
            tokens += found.tokens;
            audio_seconds += batch.seconds.iter().sum::<f64>();
        }
        self.set_dropout_active(None);
        let norm = optimizer.grad_norm();
        self.state.step += 1;
        self.state.total_steps += 1;
        let done = progress(stage, self.state.step, self.state.stage_seconds);
        let rate = stage.learning_rate * rate_factor(stage, self.state.step - 1, done);
        let finite = total.is_finite() && norm.is_finite();
        if finite {
            if norm > stage.clip_norm {
                optimizer.scale_grads(stage.clip_norm / norm);
            }
            optimizer.step(rate);
            work.hold()?;
        }
        let elapsed = start.elapsed().as_secs_f64();
        self.state.stage_seconds += elapsed;
        let number = self.state.stage;
        if !finite {
            self.state.skipped += 1;
            let (step, skipped) = (self.state.step, self.state.skipped);
            self.tell(
                TrainEvent::StepSkipped {
                    stage: number,
                    step,
                    skipped,
                },
                on_event,
            )?;
            return Ok(false);
        }
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let tokens = tokens as f64;
        self.tell(
            TrainEvent::Step {
                stage: number,
                kind: stage.kind.name().to_owned(),
                step: self.state.step,
                epoch,
                loss: total,
                rate,
                grad_norm: norm,
                tokens_per_second: tokens / elapsed,
                audio_seconds_per_second: audio_seconds / elapsed,
                seconds: self.state.stage_seconds,
                progress: done.min(1.0),
            },
            on_event,
        )?;
        Ok(true)
    }

    /// Lets dropout act for the batches of a step of this stage, and for nothing else.
    fn set_dropout_active(&mut self, stage: Option<&StageConfig>) {
        let of_adapter = stage.map_or(0.0, |stage| stage.dropout);
        self.learned.adapter.set_dropout(of_adapter);
        let mut acts = of_adapter > 0.0;
        if let Some(lora) = &mut self.learned.lora {
            lora.set_training(stage.is_some());
            acts |= stage.is_some() && lora.config().dropout > 0.0;
        }
        if acts {
            // torch draws dropout from a generator that all threads share; a seed per step makes a resumed
            // run go on equally.
            let seeds = [
                self.config.seed,
                self.state.stage as u64,
                self.state.step,
                DROPOUT_STREAM,
            ];
            tch::manual_seed(SplitMix::new(&seeds).bits().cast_signed());
        }
    }
}

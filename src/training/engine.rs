//! The training engine: runs a curriculum's stages, validates, keeps the best, resumes exactly. One engine
//! serves the `train` command and the `Trainer` actor.

mod start;
mod step;
mod validation;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::TrainingError;
use super::augment::Noises;
use super::batch::{BatchReader, BatchReaderArgs, StageFeatures};
use super::checkpoint::{self, Best, RunState};
use super::control::Control;
use super::ctc::classes_of;
use super::events::TrainEvent;
use super::example::Example;
use super::feature_cache::FeatureCache;
use super::log::{EventLog, plot_losses};
use super::networks::Networks;
use super::prepare::{Prepared, Sample};
use super::stage::StageRunner;
use crate::inference::speech_llm::Learned;
use crate::models::adapter::{AdapterSnapshot, LoraSnapshot};
use crate::nn::optimizer::AdamW;
use crate::training::config::{StageConfig, TrainingConfig};

/// Steps in a row that may be left out because of values that are not finite.
const SKIPPED_IN_A_ROW_MAX: u64 = 20;

/// What a run needs.
pub struct EngineArgs<'a> {
    /// Its settings; `data.train`, `data.valid` and `checkpoint.registry` are the caller's business.
    pub config: TrainingConfig,
    /// The frozen networks.
    pub networks: &'a Networks,
    /// Recordings to train on.
    pub train: Vec<Example>,
    /// Recordings to validate on.
    pub valid: Vec<Example>,
    /// An adapter to start from, and the folder of its LoRA; absent: fresh values.
    pub start_from: Option<(AdapterSnapshot, Option<PathBuf>)>,
    /// Goes on from the checkpoint in the output folder, when there is one.
    pub resume: bool,
    /// Pauses and stops the run.
    pub control: Control,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct TrainOutcome {
    /// Whether it was stopped before its end; it can be resumed then.
    pub stopped: bool,
    /// Optimiser steps of all stages.
    pub steps: u64,
    /// Steps left out because of values that are not finite.
    pub skipped: u64,
    /// Recordings that were trained on although their sound is damaged: a little of it may be missing or
    /// wrong.
    pub damaged: usize,
    /// Time of the run without what it waited for the end of a pause, seconds.
    pub seconds: f64,
    /// Best validation of the last stage that was reached.
    pub best: Option<Best>,
    /// The adapter of that validation (of the last step where nothing was validated).
    pub adapter: AdapterSnapshot,
    /// Folder with its LoRA in `peft`'s layout, when it has one.
    pub lora: Option<PathBuf>,
    /// Digest of what was trained on.
    pub data_digest: String,
    /// Output folder: `log.jsonl`, `loss.svg`, `best/`, `checkpoint/`.
    pub output: PathBuf,
}

/// A run under way.
pub struct Engine<'a> {
    config: TrainingConfig,
    networks: &'a Networks,
    train: Prepared,
    valid: Vec<Sample>,
    control: Control,
    learned: Learned,
    state: RunState,
    data_digest: String,
    resumed_from: Option<PathBuf>,
    start_lora: Option<PathBuf>,
    feature_cache: Option<FeatureCache>,
    noises: Noises,
    log: EventLog,
}

/// The time that counts for a run's limit: without pauses that were ordered, since nobody gave it that time;
/// with waits for serving, so that a cycle ends in bounded time under load.
struct RunTime {
    /// Of the run before it was resumed, seconds.
    earlier: f64,
    started: Instant,
    /// What the control had counted when it started.
    paused_before: Duration,
}

impl RunTime {
    fn begin(control: &Control, earlier: f64) -> Self {
        Self {
            earlier,
            started: control.clock().now(),
            paused_before: control.paused_time(),
        }
    }

    fn seconds(&self, control: &Control) -> f64 {
        let passed = control.clock().now() - self.started;
        let paused = control.paused_time() - self.paused_before;
        self.earlier + passed.saturating_sub(paused).as_secs_f64()
    }
}

/// Why a stage ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ending {
    Steps,
    Time,
    Patience,
    Stopped,
}

impl Ending {
    fn name(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::Time => "time",
            Self::Patience => "patience",
            Self::Stopped => "stopped",
        }
    }
}

impl<'a> Engine<'a> {
    /// Runs what is left of the curriculum.
    ///
    /// # Errors
    /// [`TrainingError`]; the last checkpoint stays.
    pub fn run(mut self, on_event: &mut dyn FnMut(&TrainEvent)) -> Result<TrainOutcome, TrainingError> {
        let time = RunTime::begin(&self.control, self.state.run_seconds);
        let hours = self
            .train
            .samples
            .iter()
            .map(|sample| sample.example.seconds)
            .sum::<f64>()
            / 3600.0;
        let event = TrainEvent::RunStarted {
            run: self.config.run.clone(),
            time: jiff::Timestamp::now().to_string(),
            resumed: self.resumed_from.is_some(),
            stages: self.config.stages.len(),
            train_samples: self.train.samples.len(),
            train_hours: hours,
            valid_samples: self.valid.len(),
            left_out: self.train.left_out.values().sum(),
            adapter_parameters: self.learned.adapter.config().parameter_count(),
            placement: self.networks.placement.reason.clone(),
        };
        self.tell(event, on_event)?;
        let stages = self.config.stages.clone();
        let mut stopped = false;
        let mut best = None;
        while self.state.stage < stages.len() {
            let stage = &stages[self.state.stage];
            let ending = self.run_stage(stage, &time, on_event)?;
            best = self.state.best.clone();
            self.state.run_seconds = time.seconds(&self.control);
            let out_of_time = self.out_of_time(&time);
            if ending == Ending::Stopped && !out_of_time {
                stopped = true;
                break;
            }
            self.state = self.at_next_stage();
            if out_of_time {
                break;
            }
        }
        let seconds = time.seconds(&self.control);
        let best_folder = self.config.output.join("best");
        let (adapter, lora) = if best.is_some() && best_folder.is_dir() {
            checkpoint::read_adapter(&best_folder, &self.config.run)?
        } else {
            validation::save_best(&best_folder, &self.learned, &self.config.run)?
        };
        let (adapter, lora) = match self.start_lora.take() {
            Some(untouched) if lora.is_none() && self.config.keeps_lora() => {
                let values = LoraSnapshot::read(&untouched)?;
                (adapter.with_lora(Some(values)), Some(untouched))
            }
            _ => (adapter, lora),
        };
        self.tell(
            TrainEvent::RunFinished {
                seconds,
                steps: self.state.total_steps,
                damaged: self.state.damaged.len(),
                loss: best.as_ref().map(|best| best.loss),
                wer: best.as_ref().and_then(|best| best.wer),
                stopped,
            },
            on_event,
        )?;
        plot_losses(
            &self.config.output.join("log.jsonl"),
            &self.config.output.join("loss.svg"),
        )?;
        Ok(TrainOutcome {
            stopped,
            steps: self.state.total_steps,
            skipped: self.state.skipped,
            damaged: self.state.damaged.len(),
            seconds,
            best,
            adapter,
            lora,
            data_digest: self.data_digest,
            output: self.config.output,
        })
    }

    fn run_stage(
        &mut self,
        stage: &StageConfig,
        time: &RunTime,
        on_event: &mut dyn FnMut(&TrainEvent),
    ) -> Result<Ending, TrainingError> {
        let number = self.state.stage;
        let kind = stage.kind.name().to_owned();
        let samples: Vec<Sample> = self
            .train
            .samples
            .iter()
            .filter(|sample| stage.takes(&sample.example.task))
            .cloned()
            .collect();
        if samples.is_empty() {
            return Err(TrainingError::NoExamples {
                what: format!("stage {number} ({kind})"),
                reason: format!(
                    "{} samples after filters, none of its tasks; left out: {:?}",
                    self.train.samples.len(),
                    self.train.left_out
                ),
            });
        }
        if stage.summary_units.is_some() && self.state.step > 0 {
            return Err(TrainingError::Settings {
                problem: "a stage with `summary_units` cannot be resumed in its middle: start the run anew"
                    .into(),
            });
        }
        let classes = classes_of(samples.iter().filter_map(|sample| sample.ctc.as_deref()));
        let networks = self.networks;
        let run = self.config.clone();
        let cache = self.feature_cache.as_ref();
        let mut work = StageRunner::begin(networks, &run, stage, &mut self.learned, &classes, cache)?;
        if stage.kind.has_lora()
            && let Some(folder) = self.start_lora.take()
        {
            work.restore_lora(&mut self.learned, &folder)?;
        }
        let mut optimizer = work.optimizer(&self.learned)?;
        if let Some(folder) = self.resumed_from.take()
            && self.state.step > 0
        {
            checkpoint::load_optimizer(&folder, &mut optimizer)?;
        }
        let parameters: i64 = optimizer
            .parameters()
            .iter()
            .map(|parameter| i64::try_from(parameter.tensor.numel()).unwrap_or(i64::MAX))
            .sum();
        self.tell(
            TrainEvent::StageStarted {
                stage: number,
                kind: kind.clone(),
                samples: samples.len(),
                parameters,
            },
            on_event,
        )?;
        let reader = self.reader(stage, &samples, work.features().cloned())?;
        let valid = self.validation_set(stage);

        let mut skipped_in_a_row = 0;
        let mut validated_at = None;
        let ending = loop {
            self.control.wait();
            self.state.run_seconds = time.seconds(&self.control);
            if self.control.is_stopped() || self.out_of_time(time) {
                break Ending::Stopped;
            }
            if stage.steps_max.is_some_and(|max| self.state.step >= max) {
                break Ending::Steps;
            }
            if stage
                .minutes_max
                .is_some_and(|minutes| self.state.stage_seconds >= minutes * 60.0)
            {
                break Ending::Time;
            }
            if stage
                .patience
                .is_some_and(|patience| self.state.since_best >= patience)
            {
                break Ending::Patience;
            }
            let did = self.step(stage, &mut work, &mut optimizer, &reader, &samples, on_event)?;
            if did {
                skipped_in_a_row = 0;
            } else {
                skipped_in_a_row += 1;
                if skipped_in_a_row > SKIPPED_IN_A_ROW_MAX {
                    return Err(TrainingError::Diverged {
                        stage: kind,
                        step: self.state.step,
                        skipped: skipped_in_a_row,
                    });
                }
            }
            if self.state.step.is_multiple_of(self.config.validation.every_steps) {
                self.validate(stage, &work, &valid, on_event)?;
                validated_at = Some(self.state.step);
            }
            if self.state.step.is_multiple_of(self.config.checkpoint.every_steps) {
                self.save_checkpoint(&optimizer, on_event)?;
            }
        };
        let to_be_resumed = ending == Ending::Stopped && !self.out_of_time(time);
        if to_be_resumed {
            self.save_checkpoint(&optimizer, on_event)?;
        } else {
            if validated_at != Some(self.state.step) {
                self.validate(stage, &work, &valid, on_event)?;
            }
            self.take_best()?;
            // `best` is the next stage's from now on: a run that is resumed must not go on from before.
            let folder = self.config.output.join("checkpoint");
            checkpoint::save(&folder, &self.learned, &optimizer, &self.at_next_stage())?;
        }
        self.tell(
            TrainEvent::StageFinished {
                stage: number,
                kind,
                steps: self.state.step,
                seconds: self.state.stage_seconds,
                best_loss: self.state.best.as_ref().map(|best| best.loss),
                reason: ending.name().to_owned(),
            },
            on_event,
        )?;
        Ok(ending)
    }

    fn reader(
        &self,
        stage: &StageConfig,
        samples: &[Sample],
        features: Option<StageFeatures>,
    ) -> Result<BatchReader, TrainingError> {
        let weight = |sample: &Sample| stage.weights.get(&sample.example.task).copied().unwrap_or(1.0);
        BatchReader::start(
            BatchReaderArgs {
                examples: Arc::new(samples.iter().map(|sample| sample.example.clone()).collect()),
                variants: samples.iter().map(|sample| sample.variants.clone()).collect(),
                weights: samples.iter().map(weight).collect(),
                rows_max: 0,
                seconds_max: 0.0,
                augment: None,
                features,
                noises: self.noises.clone(),
                samples_max: self.networks.encoder.info().max_samples,
                seed: self.config.seed,
                stage: self.state.stage as u64,
                start: (self.state.epoch, self.state.position),
                ahead: self.config.data.prefetch_batches,
            }
            .limits_of(stage, &self.config.augment),
        )
    }

    /// The state at the beginning of the next stage.
    fn at_next_stage(&self) -> RunState {
        RunState {
            stage: self.state.stage + 1,
            step: 0,
            epoch: 0,
            position: 0,
            stage_seconds: 0.0,
            best: None,
            since_best: 0,
            ..self.state.clone()
        }
    }

    fn save_checkpoint(
        &mut self,
        optimizer: &AdamW,
        on_event: &mut dyn FnMut(&TrainEvent),
    ) -> Result<(), TrainingError> {
        checkpoint::save(
            &self.config.output.join("checkpoint"),
            &self.learned,
            optimizer,
            &self.state,
        )?;
        let event = TrainEvent::CheckpointSaved {
            stage: self.state.stage,
            step: self.state.step,
        };
        self.tell(event, on_event)
    }

    fn out_of_time(&self, time: &RunTime) -> bool {
        let spent = time.seconds(&self.control);
        self.config
            .minutes_max
            .is_some_and(|minutes| spent >= minutes * 60.0)
    }

    fn tell(
        &mut self,
        event: TrainEvent,
        on_event: &mut dyn FnMut(&TrainEvent),
    ) -> Result<(), TrainingError> {
        self.log.write(&event)?;
        on_event(&event);
        Ok(())
    }
}

//! What a training run reports: to its log, to a progress bar, to the topic of events.

use serde::{Deserialize, Serialize};

use super::evaluate::TaskScore;

/// One thing that happened in a run. As JSON: `{"event": "step", …}`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TrainEvent {
    /// The run begins, or goes on after a checkpoint.
    RunStarted {
        /// Name of the run.
        run: String,
        /// When, RFC 3339.
        time: String,
        /// Whether it goes on from a checkpoint.
        resumed: bool,
        /// Stages of the curriculum.
        stages: usize,
        /// Training samples after filters.
        train_samples: usize,
        /// Their audio, hours.
        train_hours: f64,
        /// Validation samples.
        valid_samples: usize,
        /// Samples left out by filters.
        left_out: usize,
        /// Learnable parameters of the adapter.
        adapter_parameters: i64,
        /// Device, precision and why.
        placement: String,
    },
    /// A stage begins, or goes on.
    StageStarted {
        /// Its number, from 0.
        stage: usize,
        /// Its kind.
        kind: String,
        /// Samples that it trains on.
        samples: usize,
        /// Learnable parameters.
        parameters: i64,
    },
    /// One optimiser step.
    Step {
        /// Stage.
        stage: usize,
        /// Its kind.
        kind: String,
        /// Step in the stage, from 1.
        step: u64,
        /// Epoch in the stage, from 0.
        epoch: u64,
        /// Training loss of the step.
        loss: f64,
        /// Learning rate.
        rate: f64,
        /// Gradient norm before clipping.
        grad_norm: f64,
        /// Target tokens per second.
        tokens_per_second: f64,
        /// Audio seconds per second.
        audio_seconds_per_second: f64,
        /// Training time of the stage so far, seconds.
        seconds: f64,
        /// Share of the stage that is done, 0 to 1; 0 when unknown.
        progress: f64,
    },
    /// A step was left out because its loss or gradient was not finite.
    StepSkipped {
        /// Stage.
        stage: usize,
        /// Step in the stage.
        step: u64,
        /// Steps left out in the run so far.
        skipped: u64,
    },
    /// A validation.
    Validated {
        /// Stage.
        stage: usize,
        /// Its kind.
        kind: String,
        /// Steps done in the stage.
        step: u64,
        /// Mean loss.
        loss: f64,
        /// Word error rate of greedy transcripts, 0 to infinity; absent when nothing was transcribed.
        wer: Option<f64>,
        /// Clips behind the loss.
        clips: usize,
        /// Clips that were answered.
        transcribed_clips: usize,
        /// The score of each task's answers by its own metric.
        #[serde(default)]
        scores: Vec<TaskScore>,
        /// Whether this is the best loss of the stage so far.
        best: bool,
        /// Time it took, seconds.
        seconds: f64,
        /// A few references and answers.
        samples: Vec<Transcribed>,
    },
    /// A checkpoint to resume from was saved.
    CheckpointSaved {
        /// Stage.
        stage: usize,
        /// Steps done in the stage.
        step: u64,
    },
    /// A stage is over.
    StageFinished {
        /// Stage.
        stage: usize,
        /// Its kind.
        kind: String,
        /// Steps done.
        steps: u64,
        /// Training time, seconds.
        seconds: f64,
        /// Best validation loss.
        best_loss: Option<f64>,
        /// Why it ended: `steps`, `time`, `patience`, `stopped`.
        reason: String,
    },
    /// A version was published in the registry.
    Published {
        /// Its name.
        version: String,
        /// Whether it is the current one now.
        promoted: bool,
    },
    /// The run is over.
    RunFinished {
        /// Training and validation time, seconds.
        seconds: f64,
        /// Steps of all stages.
        steps: u64,
        /// Recordings that were trained on although their sound is damaged, of those that were decoded and
        /// not taken from the feature cache.
        #[serde(default)]
        damaged: usize,
        /// Best validation loss of the last stage.
        loss: Option<f64>,
        /// Word error rate at that point.
        wer: Option<f64>,
        /// Whether it was stopped before its end.
        stopped: bool,
    },
}

/// One reference with the answer given.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Transcribed {
    /// What was wanted.
    pub reference: String,
    /// What was answered.
    pub hypothesis: String,
}

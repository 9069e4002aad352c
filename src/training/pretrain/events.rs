//! What a pre-training run reports: to its log, to a progress bar.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::training::TrainingError;
use crate::training::log::{Curves, as_f64};

/// One thing that happened in a run. As JSON: `{"event": "step", …}`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PretrainEvent {
    /// The run begins, or goes on after a checkpoint.
    RunStarted {
        /// Name of the run.
        run: String,
        /// When, RFC 3339.
        time: String,
        /// Whether it goes on from a checkpoint.
        resumed: bool,
        /// Training clips after filters.
        train_clips: usize,
        /// Their audio, hours.
        train_hours: f64,
        /// Validation clips.
        valid_clips: usize,
        /// Clips left out because they are too short or too long.
        left_out: usize,
        /// Learnable parameters of the encoder.
        encoder_parameters: i64,
        /// Learnable parameters of the softmax heads.
        head_parameters: i64,
        /// Device and why.
        placement: String,
    },
    /// One optimiser step.
    Step {
        /// From 1.
        step: u64,
        /// From 0.
        epoch: u64,
        /// Mean cross-entropy of hidden labels, nats.
        loss: f64,
        /// Learning rate.
        rate: f64,
        /// Gradient norm before clipping.
        grad_norm: f64,
        /// Hidden frames behind the loss.
        masked_frames: u64,
        /// Audio seconds per second.
        audio_seconds_per_second: f64,
        /// Training time so far, seconds.
        seconds: f64,
    },
    /// A step was left out because its loss or gradient was not finite.
    StepSkipped {
        /// Which.
        step: u64,
        /// Steps left out so far.
        skipped: u64,
    },
    /// A validation, with the same masks each time.
    Validated {
        /// Steps done.
        step: u64,
        /// Mean cross-entropy of hidden labels, nats.
        loss: f64,
        /// Share of hidden labels guessed right.
        accuracy: f64,
        /// Entropy of these labels, nats: the least loss without looking at the sound.
        unigram_entropy: f64,
        /// Accuracy of always guessing the most frequent label.
        majority_accuracy: f64,
        /// Share of codes that occur among these labels.
        codes_used: f64,
        /// Perplexity of a codebook's labels.
        code_perplexity: f64,
        /// Hidden frames.
        masked_frames: u64,
        /// Whether this is the best loss so far.
        best: bool,
        /// Time it took, seconds.
        seconds: f64,
    },
    /// A checkpoint to resume from was saved.
    CheckpointSaved {
        /// Steps done.
        step: u64,
    },
    /// The run is over.
    RunFinished {
        /// Steps done.
        steps: u64,
        /// Time of the run, seconds.
        seconds: f64,
        /// Best validation loss.
        loss: Option<f64>,
        /// Why it ended: `steps`, `time`, `stopped`.
        reason: String,
    },
}

/// Draws the losses of a log, and the accuracy on hidden labels, as SVG.
///
/// # Errors
/// [`TrainingError::Io`] when the log cannot be read; [`TrainingError::Plot`] when the picture cannot be
/// written.
pub(super) fn plot(log: &Path, svg: &Path) -> Result<(), TrainingError> {
    let text = std::fs::read(log).map_err(TrainingError::io("read", log))?;
    let mut curves = Curves {
        caption: "Pre-training: cross-entropy of hidden labels (left), accuracy in % (right)",
        right_name: "accuracy on held-out clips",
        train: Vec::new(),
        valid: Vec::new(),
        right: Vec::new(),
        starts: Vec::new(),
        level: None,
    };
    let mut smooth: Option<f64> = None;
    for line in text.split(|byte| *byte == b'\n') {
        // A line cut by a crash is not worth a run.
        match serde_json::from_slice(line) {
            Ok(PretrainEvent::Step { step, loss, .. }) if loss.is_finite() => {
                let mean = smooth.map_or(loss, |mean| 0.95 * mean + 0.05 * loss);
                smooth = Some(mean);
                curves.train.push((as_f64(step), mean));
            }
            Ok(PretrainEvent::Validated {
                step,
                loss,
                accuracy,
                unigram_entropy,
                ..
            }) if loss.is_finite() => {
                curves.valid.push((as_f64(step), loss));
                curves.right.push((as_f64(step), accuracy * 100.0));
                curves.level = Some((unigram_entropy, "entropy of the labels"));
            }
            _ => {}
        }
    }
    curves.draw(svg)
}

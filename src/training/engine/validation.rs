//! Validation within a run: loss and each task's score on the same clips each time, and the best weights so
//! far.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Engine;
use crate::inference::speech_llm::Learned;
use crate::inference::{DecodeOptions, EngineConfig};
use crate::models::adapter::{AdapterSnapshot, SpeechAdapter};
use crate::training::TrainingError;
use crate::training::batch::load_clip;
use crate::training::checkpoint::{self, Best};
use crate::training::config::{StageConfig, StageKind};
use crate::training::evaluate::{EvaluateOptions, TaskScore, evaluate};
use crate::training::events::{TrainEvent, Transcribed};
use crate::training::log::plot_losses;
use crate::training::prepare::Sample;
use crate::training::stage::StageRunner;
use crate::util::random::SplitMix;

/// References with answers in the event of each validation.
const SAMPLES_SHOWN: usize = 4;

impl Engine<'_> {
    /// The clips a stage is validated on: the same ones each time.
    pub(super) fn validation_set(&self, stage: &StageConfig) -> Vec<Sample> {
        let mut samples: Vec<Sample> = self
            .valid
            .iter()
            .filter(|sample| stage.takes(&sample.example.task))
            .cloned()
            .collect();
        SplitMix::new(&[0x7a11d]).shuffle(&mut samples);
        samples.truncate(self.config.validation.clips_max);
        if samples.is_empty() {
            tracing::warn!(
                kind = stage.kind.name(),
                "no clip of `data.valid` has a task of this stage: what it ends with is kept, and not its best step"
            );
        }
        samples
    }

    pub(super) fn validate(
        &mut self,
        stage: &StageConfig,
        work: &StageRunner<'_>,
        valid: &[Sample],
        on_event: &mut dyn FnMut(&TrainEvent),
    ) -> Result<(), TrainingError> {
        if valid.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let _guard = tch::no_grad_guard();
        let rows_max = self.config.validation.batch_rows;
        // What is cached is one pass of the encoder; other long clips are cut into windows.
        let samples_max = (self.networks.encoder.info().max_samples).filter(|_| work.features().is_some());
        let mut order: Vec<&Sample> = valid.iter().collect();
        order.sort_by(|a, b| a.example.seconds.total_cmp(&b.example.seconds));
        let (mut total, mut clips_scored) = (0.0, 0usize);
        for chunk in order.chunks(rows_max) {
            self.control.wait();
            let mut rows = Vec::with_capacity(chunk.len());
            let mut clips = Vec::with_capacity(chunk.len());
            for sample in chunk {
                let mut unused = SplitMix::new(&[]);
                let features = work.features();
                match load_clip(&sample.example, samples_max, None, features, &mut unused) {
                    Ok(clip) => {
                        rows.push(*sample);
                        clips.push(clip);
                    }
                    Err(reason) => {
                        tracing::warn!(id = sample.example.id, reason, "left a validation clip out");
                    }
                }
            }
            if rows.is_empty() {
                continue;
            }
            let instructions: Vec<String> = rows.iter().map(|sample| sample.variants.first()).collect();
            if let Some(found) = work.loss(&mut self.learned, &rows, &clips, &instructions, None)? {
                #[expect(clippy::cast_precision_loss, reason = "a small count")]
                let weight = found.rows as f64;
                total += found.loss.double_value(&[]) * weight;
                clips_scored += found.rows;
            }
        }
        if clips_scored == 0 {
            tracing::warn!("no validation clip could be scored");
            return Ok(());
        }
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let loss = total / clips_scored as f64;
        let (scores, shown, count) = self.answer(stage, valid)?;
        let wer = scores
            .iter()
            .find(|score| score.task == "asr")
            .map(TaskScore::error);
        let best = loss.is_finite() && self.state.best.as_ref().is_none_or(|best| loss < best.loss);
        if best {
            self.state.best = Some(Best {
                loss,
                wer,
                step: self.state.step,
            });
            self.state.since_best = 0;
            save_best(&self.config.output.join("best"), &self.learned, &self.config.run)?;
        } else {
            self.state.since_best += 1;
        }
        self.tell(
            TrainEvent::Validated {
                stage: self.state.stage,
                kind: stage.kind.name().to_owned(),
                step: self.state.step,
                loss,
                wer,
                clips: clips_scored,
                transcribed_clips: count,
                scores,
                best,
                seconds: start.elapsed().as_secs_f64(),
                samples: shown,
            },
            on_event,
        )?;
        plot_losses(
            &self.config.output.join("log.jsonl"),
            &self.config.output.join("loss.svg"),
        )
    }

    /// Answers validation clips as serving would: the score of each task, a few answers, and how many clips
    /// there were.
    fn answer(
        &self,
        stage: &StageConfig,
        valid: &[Sample],
    ) -> Result<(Vec<TaskScore>, Vec<Transcribed>, usize), TrainingError> {
        if stage.kind.aligns_labels() {
            return Ok((Vec::new(), Vec::new(), 0)); // the language model has not learned to read it yet
        }
        let by_ctc = stage.kind == StageKind::CtcAlign;
        let answered: Vec<Sample> = (valid.iter())
            .filter(|sample| !by_ctc || sample.example.task == "asr") // the CTC head reads transcripts alone
            .take(self.config.validation.transcribed_clips_max)
            .cloned()
            .collect();
        if answered.is_empty() {
            return Ok((Vec::new(), Vec::new(), 0));
        }
        let snapshot = match self.learned.snapshot("validation") {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::warn!(%error, "the present weights cannot answer validation clips");
                return Ok((Vec::new(), Vec::new(), 0));
            }
        };
        let decoding = DecodeOptions::greedy(self.config.validation.new_tokens_max);
        let options = EvaluateOptions {
            engine: EngineConfig::offline(self.config.validation.batch_rows, decoding),
            by_ctc,
        };
        let found = evaluate(
            self.networks,
            &snapshot,
            &answered,
            &options,
            &self.control.ignore_stop(),
            &mut |_| {},
        )?;
        for reason in &found.unreadable {
            tracing::warn!(reason, "left a validation clip out");
        }
        let shown = (found.rows.iter().take(SAMPLES_SHOWN))
            .map(|row| Transcribed {
                reference: row.reference.clone(),
                hypothesis: row.hypothesis.clone(),
            })
            .collect();
        Ok((found.scores, shown, found.rows.len()))
    }

    /// Goes on with the weights of the stage's best validation.
    pub(super) fn take_best(&mut self) -> Result<(), TrainingError> {
        let folder = self.config.output.join("best");
        match &self.state.best {
            Some(best) if best.step != self.state.step && folder.is_dir() => {
                let (snapshot, lora) = checkpoint::read_adapter(&folder, &self.config.run)?;
                let device = self.networks.placement.device;
                self.learned.adapter = SpeechAdapter::from_snapshot(&snapshot, device, true)?;
                if let (Some(folder), Some(lora)) = (lora, &mut self.learned.lora) {
                    *lora = checkpoint::read_lora(&folder, self.networks.speech_llm.llm(), device)?;
                    lora.set_dropout(self.config.lora.dropout);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Writes the weights as the best so far; returns them as they are read back later.
pub(super) fn save_best(
    folder: &Path,
    learned: &Learned,
    version: &str,
) -> Result<(AdapterSnapshot, Option<PathBuf>), TrainingError> {
    let mut snapshot = None;
    checkpoint::replace(folder, |new| {
        snapshot = Some(checkpoint::save_learned(new, learned, version)?);
        Ok(())
    })?;
    let snapshot = snapshot.expect("it was just written");
    Ok((snapshot, learned.lora.is_some().then(|| folder.join("lora"))))
}

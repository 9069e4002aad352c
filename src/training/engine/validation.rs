//! Validation within a run: loss and word error rate on the same clips each time, and the best weights so far.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Engine;
use crate::models::adapter::{AdapterSnapshot, SpeechAdapter};
use crate::models::decoding::DecodeOptions;
use crate::models::speech_llm::Learned;
use crate::nn::random::SplitMix;
use crate::training::TrainingError;
use crate::training::checkpoint::{self, Best};
use crate::training::config::{StageConfig, StageKind};
use crate::training::evaluate::{EvaluateOptions, evaluate};
use crate::training::events::{TrainEvent, Transcribed};
use crate::training::log::plot_losses;
use crate::training::prepare::Sample;
use crate::training::stage::StageRunner;

/// References with answers told at each validation.
const SAMPLES_TOLD: usize = 4;

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
        let mut order: Vec<&Sample> = valid.iter().collect();
        order.sort_by(|a, b| a.example.seconds.total_cmp(&b.example.seconds));
        let (mut total, mut clips_scored) = (0.0, 0usize);
        for chunk in order.chunks(rows_max) {
            self.control.wait();
            let mut rows = Vec::with_capacity(chunk.len());
            let mut clips = Vec::with_capacity(chunk.len());
            for sample in chunk {
                match sample.example.audio.load() {
                    Ok(clip)
                        if self
                            .networks
                            .encoder
                            .info()
                            .max_samples
                            .is_some_and(|max| clip.len() > max) =>
                    {
                        tracing::warn!(
                            id = sample.example.id,
                            "left a validation clip out: too long for the encoder"
                        );
                    }
                    Ok(clip) => {
                        rows.push(*sample);
                        clips.push(clip);
                    }
                    Err(reason) => tracing::warn!(reason, "left a validation clip out"),
                }
            }
            if rows.is_empty() {
                continue;
            }
            let instructions: Vec<String> = rows.iter().map(|sample| sample.variants.first()).collect();
            if let Some(found) = work.loss(&self.learned, &rows, &clips, &instructions)? {
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
        let transcribed: Vec<Sample> = valid
            .iter()
            .filter(|sample| sample.example.task == "asr")
            .take(self.config.validation.transcribed_clips_max)
            .cloned()
            .collect();
        let (mut wer, mut told, mut count) = (None, Vec::new(), 0);
        if !transcribed.is_empty() {
            let options = EvaluateOptions {
                batch_rows: rows_max,
                decoding: DecodeOptions::greedy(self.config.validation.new_tokens_max),
                by_ctc: stage.kind == StageKind::CtcAlign,
            };
            let found = evaluate(
                self.networks,
                &self.learned,
                &transcribed,
                &options,
                &self.control.ignore_stop(),
                &mut |_| {},
            )?;
            count = found.rows.len();
            wer = (count > 0).then(|| found.wer());
            told = found
                .rows
                .iter()
                .take(SAMPLES_TOLD)
                .map(|row| Transcribed {
                    reference: row.reference.clone(),
                    hypothesis: row.hypothesis.clone(),
                })
                .collect();
        }
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
                best,
                seconds: start.elapsed().as_secs_f64(),
                samples: told,
            },
            on_event,
        )?;
        plot_losses(
            &self.config.output.join("log.jsonl"),
            &self.config.output.join("loss.svg"),
        )
    }

    /// Goes on with the weights of the stage's best validation.
    pub(super) fn take_best(&mut self) -> Result<(), TrainingError> {
        let folder = self.config.output.join("best");
        match &self.state.best {
            Some(best) if best.step != self.state.step && folder.is_dir() => {
                let (snapshot, lora) = checkpoint::read_adapter(&folder, &self.config.run)?;
                let device = self.networks.placement.device;
                self.learned.adapter = SpeechAdapter::from_snapshot(&snapshot, device, true)?;
                if let (Some(folder), true) = (lora, self.learned.lora.is_some()) {
                    self.learned.lora = Some(checkpoint::read_lora(
                        &folder,
                        self.networks.speech_llm.llm(),
                        device,
                    )?);
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
    if learned.lora.is_none() {
        let stale = folder.join("lora");
        if stale.exists() {
            std::fs::remove_dir_all(&stale).map_err(TrainingError::io("remove", &stale))?;
        }
    }
    std::fs::create_dir_all(folder).map_err(TrainingError::io("make", folder))?;
    let snapshot = checkpoint::save_learned(folder, learned, version)?;
    Ok((snapshot, learned.lora.is_some().then(|| folder.join("lora"))))
}

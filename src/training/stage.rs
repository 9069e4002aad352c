//! One stage at work: what learns, its loss, its optimiser.

use tch::Tensor;

use super::TrainingError;
use super::checkpoint::{read_lora, seed_lora};
use super::ctc::CtcTable;
use super::networks::Networks;
use super::prepare::Sample;
use crate::inference::hidden_states;
use crate::inference::speech_llm::Learned;
use crate::nn::lora::LoraSet;
use crate::nn::optimizer::{AdamW, AdamWConfig, Parameter};
use crate::training::config::{StageConfig, StageKind, TrainingConfig};

/// A batch's loss.
#[derive(Debug)]
pub struct BatchLoss {
    /// Scalar, differentiable in what learns.
    pub loss: Tensor,
    /// Target tokens of the batch.
    pub tokens: i64,
    /// Rows that took part.
    pub rows: usize,
}

/// What a stage needs beside the networks: the CTC table, when it has one.
#[derive(Debug)]
pub struct StageRunner<'a> {
    networks: &'a Networks,
    config: &'a StageConfig,
    table: Option<CtcTable>,
}

impl<'a> StageRunner<'a> {
    /// Brings `learned` into the form that the stage wants: a CTC head over `classes` where CTC is part of the loss, LoRA where it learns, no LoRA where it does not.
    ///
    /// # Errors
    /// [`TrainingError`] when LoRA does not fit the language model, or a class is no token.
    pub fn begin(
        networks: &'a Networks,
        run: &TrainingConfig,
        config: &'a StageConfig,
        learned: &mut Learned,
        classes: &[i64],
    ) -> Result<Self, TrainingError> {
        let with_ctc = config.kind == StageKind::CtcAlign || config.ctc_weight > 0.0;
        let mut table = None;
        if with_ctc {
            learned.adapter.set_ctc_classes(classes.to_vec(), run.seed)?;
            let head = learned.adapter.ctc_head().expect("it was set a line above");
            table = Some(CtcTable::new(head, &networks.speech_llm.llm().embedding_table())?);
        }
        if config.kind.has_lora() {
            if learned.lora.is_none() {
                let sites = networks.speech_llm.llm().lora_sites();
                let lora =
                    LoraSet::new(run.lora.clone(), &sites, networks.placement.device).map_err(|error| {
                        TrainingError::Settings {
                            problem: error.to_string(),
                        }
                    })?;
                seed_lora(&lora, run.seed)?;
                learned.lora = Some(lora);
            }
        } else {
            learned.lora = None;
        }
        Ok(Self {
            networks,
            config,
            table,
        })
    }

    /// Puts a saved LoRA in place of the fresh one, which has the run's dropout.
    ///
    /// # Errors
    /// [`TrainingError::Settings`] when it does not fit.
    pub fn restore_lora(&self, learned: &mut Learned, folder: &std::path::Path) -> Result<(), TrainingError> {
        if let Some(fresh) = &mut learned.lora {
            let (llm, device) = (self.networks.speech_llm.llm(), self.networks.placement.device);
            let mut saved = read_lora(folder, llm, device)?;
            saved.set_dropout(fresh.config().dropout);
            *fresh = saved;
        }
        Ok(())
    }

    /// What learns in this stage, with its rate and decay factors.
    pub fn parameters(&self, learned: &Learned) -> Vec<Parameter> {
        let mut parameters = Vec::new();
        for (name, tensor) in learned.adapter.variables() {
            if name.starts_with("ctc.") && self.table.is_none() {
                continue;
            }
            let scalar = name == "mix.weight" || name == "ctc.scale";
            let decays = name.ends_with("conv.weight");
            parameters.push(Parameter {
                tensor,
                rate_factor: if scalar {
                    self.config.scalar_rate_factor
                } else {
                    1.0
                },
                decay_factor: if decays { 1.0 } else { 0.0 },
                name,
            });
        }
        if let Some(lora) = &learned.lora {
            for (name, tensor) in lora.parameters() {
                parameters.push(Parameter {
                    name,
                    tensor,
                    rate_factor: self.config.lora_rate_factor,
                    decay_factor: 1.0,
                });
            }
        }
        parameters
    }

    /// A fresh optimiser over them.
    ///
    /// # Errors
    /// [`TrainingError::Optimizer`].
    pub fn optimizer(&self, learned: &Learned) -> Result<AdamW, TrainingError> {
        let config = AdamWConfig {
            beta1: self.config.beta1,
            beta2: self.config.beta2,
            eps: 1e-8,
            weight_decay: self.config.weight_decay,
        };
        Ok(AdamW::new(config, self.parameters(learned))?)
    }

    /// Loss of one batch. None when no row has a target that the loss can express (validation texts may hold tokens that are no CTC class).
    ///
    /// # Errors
    /// [`TrainingError`] when a network fails.
    pub fn loss(
        &self,
        learned: &Learned,
        samples: &[&Sample],
        clips: &[Vec<f32>],
        instructions: &[String],
    ) -> Result<Option<BatchLoss>, TrainingError> {
        // CTC alone cannot use a row whose tokens are no classes; leave it out before any work is done on it.
        let ctc_targets: Vec<Option<Vec<i64>>> = match &self.table {
            Some(table) => samples
                .iter()
                .map(|sample| table.classes(&sample.ctc).filter(|ids| !ids.is_empty()))
                .collect(),
            None => vec![None; samples.len()],
        };
        let ctc_alone = self.config.kind == StageKind::CtcAlign;
        let keep: Vec<usize> = (0..samples.len())
            .filter(|row| !ctc_alone || ctc_targets[*row].is_some())
            .collect();
        if keep.is_empty() {
            return Ok(None);
        }
        let kept: Vec<&[f32]> = keep.iter().map(|row| clips[*row].as_slice()).collect();
        let hidden = hidden_states(self.networks.encoder.as_ref(), &kept)?;
        let features = learned.adapter.mix(&hidden)?; // [B, T, D]
        let adapted = learned.adapter.forward(&features, &hidden.lengths)?; // [B, P, H]

        // In a mixed loss every row must have a CTC target for the batch to have a CTC part.
        let targets: Option<Vec<Vec<i64>>> = keep.iter().map(|row| ctc_targets[*row].clone()).collect();
        let ctc = match (&self.table, learned.adapter.ctc_head(), &targets) {
            (Some(table), Some(head), Some(targets)) => Some(table.loss(head, &adapted, targets)?),
            _ => None,
        };
        if ctc_alone {
            let tokens = targets.iter().flatten().map(Vec::len).sum::<usize>();
            let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
            return Ok(ctc.map(|loss| BatchLoss {
                loss,
                tokens,
                rows: keep.len(),
            }));
        }
        let asked: Vec<&str> = keep.iter().map(|row| instructions[*row].as_str()).collect();
        let answers: Vec<&[i64]> = keep.iter().map(|row| samples[*row].answer.as_slice()).collect();
        let llm = &self.networks.speech_llm;
        let prompts = llm.prompts_around(&adapted.positions, &adapted.lengths, &asked)?;
        let found = llm.loss(&prompts, &answers, learned.lora.as_ref())?;
        let loss = match ctc {
            Some(ctc) if self.config.ctc_weight > 0.0 => found.loss + ctc * self.config.ctc_weight,
            _ => found.loss,
        };
        Ok(Some(BatchLoss {
            loss,
            tokens: found.tokens,
            rows: keep.len(),
        }))
    }
}

//! One stage at work: what learns, its loss, its optimiser.

mod segments;

use std::cell::RefCell;

use tch::{Kind, Tensor};

use super::TrainingError;
use super::augment::feature_mask;
use super::batch::{LoadedClip, StageFeatures};
use super::checkpoint::{read_lora, seed_lora};
use super::ctc::classes_of;
use super::feature_cache::FeatureCache;
use super::label_loss::{LabelTarget, label_loss};
use super::networks::Networks;
use super::prepare::Sample;
use super::segment_memory::{self, SegmentMemory};
use super::summary_units::{self, SummaryUnits};
use crate::inference::speech_llm::Learned;
use crate::inference::{Features, hidden_states};
use crate::models::Encoded;
use crate::models::adapter::{Adapted, CtcHead};
use crate::nn::lora::LoraSet;
use crate::nn::optimizer::{AdamW, AdamWConfig, Parameter};
use crate::training::config::{AugmentConfig, StageConfig, StageKind, TrainingConfig};
use crate::util::random::SplitMix;

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

/// What a stage needs beside the networks.
#[derive(Debug)]
pub struct StageRunner<'a> {
    networks: &'a Networks,
    config: &'a StageConfig,
    /// Changes to features, where training changes them.
    masks: Option<AugmentConfig>,
    /// Where features are kept, and the layer mix that they have, `[L + 1]`.
    features: Option<(StageFeatures, Tensor)>,
    /// CTC segments of clips, where nothing that they are made with learns.
    segments: RefCell<SegmentMemory>,
    /// What learns of the summary, where that is not all.
    units: Option<SummaryUnits>,
    /// Whether earlier stages aligned the summary and this one names no task of it.
    summary_frozen: bool,
}

impl<'a> StageRunner<'a> {
    /// Brings `learned` into the form that the stage wants: a CTC head over `classes`, beside those that it
    /// has already, where CTC is part of the loss; LoRA where it learns, no LoRA where it does not.
    ///
    /// # Errors
    /// [`TrainingError`] when LoRA does not fit the language model, a class is no token, or the adapter's
    /// positions need a CTC head and there is none.
    pub fn begin(
        networks: &'a Networks,
        run: &TrainingConfig,
        config: &'a StageConfig,
        learned: &mut Learned,
        classes: &[i64],
        cache: Option<&FeatureCache>,
    ) -> Result<Self, TrainingError> {
        if with_ctc(config) {
            let known = learned.adapter.ctc_head().map_or(&[][..], CtcHead::classes);
            let all = classes_of([known, classes]);
            learned.adapter.set_ctc_classes(all, run.seed)?;
        }
        if !config.kind.aligns_labels() {
            learned.adapter.set_ctc_trained(with_ctc(config));
        }
        let mut earlier = learned.adapter.config().summary_tasks.clone();
        let summary_frozen = config.summary_tasks.is_empty() && !earlier.is_empty();
        earlier.retain(|task| !config.summary_tasks.contains(task));
        let form = learned.adapter.config();
        for (part, tasks, there) in [
            ("summary", &config.summary_tasks, form.summary),
            ("sentence", &config.sentence_tasks, form.sentence),
        ] {
            if !tasks.is_empty() && !there {
                return Err(TrainingError::Settings {
                    problem: format!(
                        "`{part}_tasks` of a {} stage needs `[adapter] {part} = true`: there is nothing to align",
                        config.kind.name()
                    ),
                });
            }
        }
        learned.adapter.add_summary_tasks(&config.summary_tasks);
        learned.adapter.add_sentence_tasks(&config.sentence_tasks);
        let products = match config.mixed_precision {
            true => networks.placement.kind(),
            false => Kind::Float,
        };
        learned.adapter.set_products(products);
        learned
            .adapter
            .bind(&networks.speech_llm.llm().embedding_table())?;
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
        } else if !config.kind.aligns_labels() {
            learned.lora = None;
        }
        let features = match cache {
            Some(cache) if config.cached => {
                let mix = learned.adapter.mix_weights().detach();
                let bits: Vec<u32> = Vec::<f32>::try_from(&mix)?
                    .into_iter()
                    .map(f32::to_bits)
                    .collect();
                let (encoder, precision) = (&networks.encoder_identity.digest, networks.placement.precision);
                let features = StageFeatures {
                    cache: cache.clone(),
                    common: format!("{encoder} {precision:?} {bits:?}"),
                    variants: run.feature_cache.variants,
                };
                Some((features, mix))
            }
            _ => None,
        };
        let units = match config.summary_units {
            Some(count) => {
                let labels = summary_units::labels_of(&earlier, run, &networks.speech_llm)?;
                let table = networks.speech_llm.llm().embedding_table();
                Some(SummaryUnits::begin(
                    &learned.adapter,
                    count,
                    &labels,
                    &table,
                    run.seed,
                )?)
            }
            None => None,
        };
        Ok(Self {
            networks,
            config,
            units,
            summary_frozen,
            masks: config.augment.then(|| run.augment.clone()),
            features,
            segments: RefCell::default(),
        })
    }

    /// Where features are kept, when the stage keeps them.
    pub fn features(&self) -> Option<&StageFeatures> {
        self.features.as_ref().map(|(features, _)| features)
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
            let of_summary = name.starts_with("summary.");
            let of_sentence = name.starts_with("sentence.");
            let frozen = match self.config.kind {
                StageKind::CtcAlign => of_summary || of_sentence,
                StageKind::SummaryAlign => !of_summary,
                StageKind::SentenceAlign => !of_sentence,
                StageKind::Asr | StageKind::LoraWarmup | StageKind::Multitask => {
                    of_sentence || (of_summary && self.summary_frozen)
                }
            };
            let held = self.units.is_some() && !summary_units::LEARNED.contains(&name.as_str());
            if frozen
                || held
                || (name.starts_with("ctc.") && !with_ctc(self.config))
                || (name == "mix.weight" && self.features.is_some())
            {
                continue;
            }
            let rate_factor = match name.as_str() {
                "mix.weight" | "ctc.scale" => self.config.scalar_rate_factor,
                _ if of_summary && self.config.kind != StageKind::SummaryAlign => {
                    self.config.lora_rate_factor
                }
                _ => 1.0,
            };
            let decays = name.ends_with("conv.weight") || name.ends_with("linear.weight");
            parameters.push(Parameter {
                tensor,
                rate_factor,
                decay_factor: if decays { 1.0 } else { 0.0 },
                name,
            });
        }
        // What a label stage finds rests in it.
        if let Some(lora) = learned.lora.as_ref().filter(|_| self.config.kind.has_lora()) {
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

    /// After an optimiser step: keeps what does not learn as it was.
    ///
    /// # Errors
    /// [`TrainingError`] when libtorch fails.
    pub fn hold(&mut self) -> Result<(), TrainingError> {
        self.units.as_mut().map_or(Ok(()), SummaryUnits::hold)
    }

    /// Loss of one batch; `random` draws the masks of a training step, in which the stage's dropout acts.
    /// None when no row has a target that the loss can express (validation texts may hold tokens that are no
    /// CTC class, and not every row says what was said).
    ///
    /// # Errors
    /// [`TrainingError`] when a network fails.
    pub fn loss(
        &self,
        learned: &mut Learned,
        samples: &[&Sample],
        clips: &[LoadedClip],
        instructions: &[String],
        random: Option<&mut SplitMix>,
    ) -> Result<Option<BatchLoss>, TrainingError> {
        let head = learned.adapter.ctc_head().filter(|_| with_ctc(self.config));
        let classes = |sample: &&Sample| head?.classes_of(sample.ctc.as_ref()?);
        let mut targets: Vec<Option<Vec<i64>>> = samples.iter().map(classes).collect();
        // An alignment cannot use a row without a target of its kind (CTC: one whose tokens are no classes);
        // leave it out before any work is done on it.
        let label = |row: usize| self.label_of(samples[row]);
        let keep: Vec<usize> = (0..samples.len())
            .filter(|row| match self.config.kind {
                StageKind::CtcAlign => targets[*row].is_some(),
                StageKind::SummaryAlign | StageKind::SentenceAlign => label(*row).is_some(),
                StageKind::Asr | StageKind::LoraWarmup | StageKind::Multitask => true,
            })
            .collect();
        if keep.is_empty() {
            return Ok(None);
        }
        let kept: Vec<&LoadedClip> = keep.iter().map(|row| &clips[*row]).collect();
        let labels: Vec<Option<&LabelTarget>> = keep.iter().map(|row| label(*row)).collect();
        if self.config.kind == StageKind::SentenceAlign {
            let share = random.as_ref().map_or(0.0, |_| self.config.dropout);
            let rows = self.segments_of(learned, &kept, share)?;
            let dropout = random.map(|random| (self.config.segment_dropout, random));
            let segments = segment_memory::batch(&rows, dropout)?;
            let sentence = learned.adapter.sentence(&segments)?; // [B, H]
            let aligned = self.label_loss(sentence.as_ref(), &labels)?;
            return Ok(aligned.map(|loss| BatchLoss {
                loss,
                tokens: 0,
                rows: keep.len(),
            }));
        }
        let Encoded {
            mut features,
            lengths,
            statistics,
        } = self.encode(learned, &kept)?;
        let summary = match self.config.kind {
            StageKind::CtcAlign => None,
            _ => learned.adapter.summary(&statistics)?, // [B, 1, H]
        };
        let embeddings = match &summary {
            Some(summary) => Some(summary.f_squeeze_dim(1)?),
            None => None,
        };
        let aligned = self.label_loss(embeddings.as_ref(), &labels)?;
        if self.config.kind == StageKind::SummaryAlign {
            return Ok(aligned.map(|loss| BatchLoss {
                loss,
                tokens: 0,
                rows: keep.len(),
            }));
        }
        if let (Some(masks), Some(random)) = (&self.masks, random) {
            let size = features.size();
            if let Some(mask) = feature_mask(&lengths, size[1], size[2], masks, random)? {
                features = features.f_mul(&mask.f_to_device(self.networks.placement.device)?)?;
            }
        }
        let adapted = learned.adapter.forward(&features, &lengths)?; // [B, P, H]

        let targets: Vec<Option<Vec<i64>>> = keep.iter().map(|row| targets[*row].take()).collect();
        let ctc = match head {
            Some(head) => ctc_loss(head, &adapted, &targets)?,
            None => None,
        };
        if self.config.kind == StageKind::CtcAlign {
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
        let adapted = learned
            .adapter
            .positions_behind(summary.as_ref(), &adapted, None)?;
        let prompts = llm.prompts(&adapted.positions, &adapted.lengths, &asked)?;
        let found = llm.loss(&prompts, &answers, learned.lora.as_ref())?;
        let mut loss = found.loss;
        if let Some(ctc) = ctc {
            loss += ctc * self.config.ctc_weight;
        }
        if let Some(aligned) = aligned {
            loss += aligned;
        }
        Ok(Some(BatchLoss {
            loss,
            tokens: found.tokens,
            rows: keep.len(),
        }))
    }

    /// The label that an embedding of a sample's clip is aligned with in this stage.
    fn label_of<'s>(&self, sample: &'s Sample) -> Option<&'s LabelTarget> {
        let task = &sample.example.task;
        (sample.label.as_ref()).filter(|_| self.config.aligned_tasks().contains(task))
    }

    /// Loss of embeddings `[B, H]` of clips that have a label to be aligned with; none where no clip has.
    fn label_loss(
        &self,
        embeddings: Option<&Tensor>,
        labels: &[Option<&LabelTarget>],
    ) -> Result<Option<Tensor>, TrainingError> {
        match embeddings.filter(|_| labels.iter().any(Option::is_some)) {
            Some(embeddings) => {
                let table = self.networks.speech_llm.llm().embedding_table();
                Ok(label_loss(embeddings, labels, &table)?)
            }
            None => Ok(None),
        }
    }

    /// Features of clips, f32. Without a cache they are differentiable in the mix; with one, what is not in
    /// it yet is encoded and kept.
    fn encode(&self, learned: &Learned, clips: &[&LoadedClip]) -> Result<Encoded, TrainingError> {
        let samples: Vec<&[f32]> = clips.iter().filter_map(|clip| clip.audio()).collect();
        let Some((cached, mix)) = &self.features else {
            let hidden = hidden_states(self.networks.encoder.as_ref(), &samples)?;
            return Ok(Encoded {
                features: learned.adapter.mix(&hidden)?,
                statistics: hidden.statistics()?,
                lengths: hidden.lengths,
            });
        };
        let _no_grad = tch::no_grad_guard();
        let mut fresh = Vec::with_capacity(samples.len());
        if !samples.is_empty() {
            let count = i64::try_from(samples.len()).unwrap_or(i64::MAX);
            let mix = mix.f_unsqueeze(0)?.f_expand([count, -1], false)?; // [B, L+1]
            let encoded = self.networks.encoder.encode(&samples, &mix)?;
            for (row, length) in (0i64..).zip(&encoded.lengths) {
                let frames = encoded.features.f_get(row)?.f_narrow(0, 0, *length)?;
                // As they will come back from the cache.
                fresh.push(Features {
                    frames: frames.f_to_kind(Kind::BFloat16)?,
                    statistics: encoded.statistics.f_get(row)?.f_to_kind(Kind::BFloat16)?,
                });
            }
        }
        let mut fresh = fresh.into_iter();
        let device = self.networks.placement.device;
        let (mut frames, mut statistics) = (Vec::new(), Vec::new());
        for clip in clips {
            let features = match clip {
                LoadedClip::Features(features, _) => features.shallow_clone(),
                LoadedClip::Samples { keep_as, .. } => {
                    let features = fresh.next().expect("every clip with samples was encoded");
                    if let Some(key) = keep_as {
                        cached.cache.put(key, &features)?;
                    }
                    features
                }
            };
            frames.push(features.frames.f_to_device(device)?);
            statistics.push(features.statistics.f_to_device(device)?);
        }
        let padded = Tensor::f_pad_sequence(&frames, true, 0.0, "right")?; // [B, T, D]
        Ok(Encoded {
            features: padded.f_to_kind(Kind::Float)?,
            lengths: frames.iter().map(|frames| frames.size()[0]).collect(),
            statistics: Tensor::f_stack(&statistics, 0)?.f_to_kind(Kind::Float)?,
        })
    }
}

/// Whether the loss has a CTC part.
fn with_ctc(config: &StageConfig) -> bool {
    match config.kind {
        StageKind::CtcAlign => true,
        StageKind::SummaryAlign | StageKind::SentenceAlign => false,
        StageKind::Asr | StageKind::LoraWarmup | StageKind::Multitask => config.ctc_weight > 0.0,
    }
}

/// CTC loss of the rows that have a target; none when there are none.
fn ctc_loss(
    head: &CtcHead,
    adapted: &Adapted,
    targets: &[Option<Vec<i64>>],
) -> Result<Option<Tensor>, TrainingError> {
    let known: Vec<Vec<i64>> = targets.iter().flatten().cloned().collect();
    if known.is_empty() {
        return Ok(None);
    }
    if known.len() == targets.len() {
        return Ok(Some(head.loss(adapted, &known)?));
    }
    let rows: Vec<i64> = (0i64..)
        .zip(targets)
        .filter(|(_, target)| target.is_some())
        .map(|(row, _)| row)
        .collect();
    let lengths = (adapted.lengths.iter().zip(targets))
        .filter(|(_, target)| target.is_some())
        .map(|(length, _)| *length)
        .collect();
    let index = Tensor::f_from_slice(&rows)?.f_to_device(adapted.positions.device())?;
    let adapted = Adapted {
        positions: adapted.positions.f_index_select(0, &index)?,
        lengths,
    };
    Ok(Some(head.loss(&adapted, &known)?))
}

//! The start of a run: data, network and optimiser, new or from a checkpoint.

use std::path::PathBuf;
use std::sync::Arc;

use super::{PretrainArgs, Run};
use crate::models::encoders::conformer::{Normalization, Pretraining, Statistics, StatisticsGatherer};
use crate::nn::accel::{Placement, PrecisionChoice, configure_threads};
use crate::nn::optimizer::{AdamW, AdamWConfig, Parameter};
use crate::training::TrainingError;
use crate::training::checkpoint::{self, Fingerprint};
use crate::training::example::{self, Example};
use crate::training::log::EventLog;
use crate::training::manifest::read_audio_manifest;
use crate::training::pretrain::config::PretrainConfig;
use crate::util::random::SplitMix;

impl Run {
    /// Reads the data, and makes the network or takes that of a checkpoint.
    pub(super) fn begin(args: PretrainArgs) -> Result<Self, TrainingError> {
        let PretrainArgs {
            config,
            resume,
            control,
        } = args;
        config.validate()?;
        let placement = Placement::resolve(config.device, PrecisionChoice::F32)?;
        configure_threads(config.threads);
        let output = &config.output;
        std::fs::create_dir_all(output).map_err(TrainingError::io("make", output))?;
        let mut left_out = 0;
        let mut read = |paths: &[PathBuf]| -> Result<Vec<Example>, TrainingError> {
            let mut all = Vec::new();
            for path in paths {
                all.extend(read_audio_manifest(path, None)?.warned());
            }
            let before = all.len();
            all.retain(|one| (config.data.seconds_min..=config.data.seconds_max).contains(&one.seconds));
            left_out += before - all.len();
            Ok(all)
        };
        let (train, mut valid) = (read(&config.data.train)?, read(&config.data.valid)?);
        if train.is_empty() {
            return Err(TrainingError::NoExamples {
                what: "pre-training".into(),
                reason: format!(
                    "{left_out} clips are shorter than `data.seconds_min` or longer than `data.seconds_max`, and there are no others"
                ),
            });
        }
        valid.truncate(config.validation.clips_max);

        let fingerprint = fingerprint(&config, &example::digest(&train));
        let found = resume
            .then(|| checkpoint::find(&output.join("checkpoint")))
            .flatten();
        let device = placement.device;
        let (network, state) = match &found {
            Some(folder) => {
                let state = checkpoint::read_state(folder)?;
                fingerprint.check(&state, folder)?;
                (Pretraining::load(folder, &config.quantizer, device)?, state)
            }
            None => {
                let statistics = statistics(&config, &train)?;
                let shape = config.model.conformer();
                let network = Pretraining::new(shape, &config.quantizer, statistics, config.seed, device)?;
                (network, fingerprint.begin())
            }
        };
        let mut optimizer = optimizer(&config, &network)?;
        if let Some(folder) = &found {
            checkpoint::load_optimizer(folder, &mut optimizer)?;
        }
        Ok(Self {
            log: EventLog::open(&output.join("log.jsonl"), found.is_some())?,
            resumed: found.is_some(),
            train: Arc::new(train),
            config,
            network,
            optimizer,
            state,
            valid,
            left_out,
            placement,
            control,
        })
    }
}

/// Clips from which the training data's statistics are gathered at most.
const STATISTICS_CLIPS_MAX: usize = 2000;

/// Mean and deviation of the training data's mel bins, where the model normalises by them.
fn statistics(config: &PretrainConfig, train: &[Example]) -> Result<Option<Statistics>, TrainingError> {
    if config.model.normalize != Normalization::Global {
        return Ok(None);
    }
    let mut gatherer = StatisticsGatherer::new(config.model.num_mel_bins);
    let mut order: Vec<usize> = (0..train.len()).collect();
    SplitMix::new(&[config.seed, 2]).shuffle(&mut order);
    let mut read = 0;
    for at in order.into_iter().take(STATISTICS_CLIPS_MAX) {
        match train[at].audio.load() {
            Ok(clip) => {
                gatherer.add(&clip)?;
                read += 1;
            }
            Err(reason) => tracing::warn!(reason, "left a training clip out"),
        }
    }
    if read == 0 {
        return Err(TrainingError::NoExamples {
            what: "the statistics of mel bins".into(),
            reason: "no clip could be read".into(),
        });
    }
    Ok(Some(gatherer.finish()?))
}

/// AdamW over everything that learns; gains, biases and the biases of attention do not decay.
fn optimizer(config: &PretrainConfig, network: &Pretraining) -> Result<AdamW, TrainingError> {
    let parameters = network
        .variables()
        .into_iter()
        .map(|(name, tensor)| {
            let is_matrix = tensor.dim() > 1 && !name.contains("pos_bias");
            Parameter {
                decay_factor: if is_matrix { 1.0 } else { 0.0 },
                rate_factor: 1.0,
                name,
                tensor,
            }
        })
        .collect();
    let settings = &config.optimizer;
    let settings = AdamWConfig {
        beta1: settings.beta1,
        beta2: settings.beta2,
        weight_decay: settings.weight_decay,
        ..AdamWConfig::default()
    };
    Ok(AdamW::new(settings, parameters)?)
}

/// What a resumed run must have in common with the one that was saved.
fn fingerprint(config: &PretrainConfig, data_digest: &str) -> Fingerprint {
    Fingerprint::of(serde_json::json!({
        "seed": config.seed,
        "model": config.model,
        "quantizer": config.quantizer,
        "mask": config.mask,
        "data": data_digest,
    }))
}

//! How a run starts: samples, weights and state, fresh or of a checkpoint.

use super::{Engine, EngineArgs};
use crate::inference::speech_llm::Learned;
use crate::models::adapter::{AdapterConfig, SpeechAdapter, embedding_rms};
use crate::models::config::AdapterSettings;
use crate::training::augment::Noises;
use crate::training::checkpoint::{self, Fingerprint};
use crate::training::config::{StageKind, TrainingConfig};
use crate::training::feature_cache::FeatureCache;
use crate::training::log::EventLog;
use crate::training::networks::Networks;
use crate::training::prepare::prepare;
use crate::training::{TrainingError, example};

impl<'a> Engine<'a> {
    /// Prepares samples and weights, or loads a checkpoint.
    ///
    /// # Errors
    /// [`TrainingError`] when settings, data, networks or checkpoint do not go together.
    pub fn new(args: EngineArgs<'a>) -> Result<Self, TrainingError> {
        let EngineArgs {
            config,
            networks,
            train,
            valid,
            start_from,
            resume,
            control,
        } = args;
        config.validate()?;
        let output = &config.output;
        std::fs::create_dir_all(output).map_err(TrainingError::io("make", output))?;
        let data_digest = example::digest(&train);
        let train = prepare(train, &config, &networks.speech_llm)?;
        let valid = prepare(valid, &config, &networks.speech_llm)?.samples;
        let llm = networks.speech_llm.llm();
        let fingerprint = fingerprint(&config, networks, &data_digest);

        let resumed_from = if resume {
            checkpoint::find(&output.join("checkpoint"))
        } else {
            None
        };
        let (mut snapshot, mut start_lora) = match start_from {
            Some((snapshot, lora)) => (Some(snapshot), lora),
            None => (None, None),
        };
        let state = match &resumed_from {
            Some(folder) => checkpoint::read_state(folder)?,
            None => fingerprint.clone().begin(),
        };
        if let Some(folder) = &resumed_from {
            fingerprint.check(&state, folder)?;
            let (saved, lora) = checkpoint::read_adapter(folder, "resumed")?;
            snapshot = Some(saved);
            // Until the first stage with LoRA, that of the adapter to start from still waits for it.
            let begun = config.stages.iter().take(state.stage + 1);
            if begun.clone().any(|stage| stage.kind.has_lora()) {
                start_lora = lora;
            }
        }
        // A stage that aligns labels leaves the LoRA of the stages before as it is.
        let present = config.stages.get(state.stage).map(|stage| stage.kind);
        let aligns_behind_lora = resumed_from.is_some()
            && present.is_some_and(StageKind::aligns_labels)
            && config.stages[..state.stage]
                .iter()
                .any(|stage| stage.kind.has_lora());
        let lora = match start_lora.take_if(|_| aligns_behind_lora) {
            Some(folder) => {
                let mut lora = checkpoint::read_lora(&folder, llm, networks.placement.device)?;
                lora.set_dropout(config.lora.dropout);
                Some(lora)
            }
            None => None,
        };
        let device = networks.placement.device;
        let settings = match &snapshot {
            Some(start) => in_the_form_of(&config.adapter, start.config()),
            None => config.adapter.clone(),
        };
        let adapter_config = AdapterConfig::new(&settings, &networks.encoder.info(), &llm.info())?;
        let gain = embedding_rms(&llm.embedding_table())?;
        let adapter = match snapshot {
            None => SpeechAdapter::new(adapter_config, gain, config.seed, device)?,
            Some(snapshot) => match snapshot.in_form(&adapter_config, gain, config.seed)? {
                Some(snapshot) => SpeechAdapter::from_snapshot(&snapshot, device, true)?,
                None => {
                    return Err(TrainingError::Settings {
                        problem: format!(
                            "the adapter to start from is {:?}, settings and networks ask for {adapter_config:?}; only `positions`, `residual_blocks`, `summary` and `sentence` may differ",
                            snapshot.config()
                        ),
                    });
                }
            },
        };
        let feature_cache = match &config.feature_cache.dir {
            Some(dir) if config.stages.iter().any(|stage| stage.cached) => {
                Some(FeatureCache::open(dir, config.feature_cache.bytes_max)?)
            }
            _ => None,
        };
        let noises = match config.stages.iter().any(|stage| stage.augment) {
            true => Noises::read(&config.data.noise)?,
            false => Noises::default(),
        };
        let log = EventLog::open(&output.join("log.jsonl"), resumed_from.is_some())?;
        Ok(Self {
            learned: Learned { adapter, lora },
            config,
            networks,
            train,
            valid,
            control,
            state,
            data_digest,
            resumed_from,
            start_lora,
            feature_cache,
            noises,
            log,
        })
    }
}

/// The settings with what they leave open taken from the adapter to start from.
fn in_the_form_of(settings: &AdapterSettings, start: &AdapterConfig) -> AdapterSettings {
    AdapterSettings {
        activation: settings.activation.or(Some(start.activation)),
        residual_blocks: settings.residual_blocks.or(Some(start.residual_blocks)),
        positions: settings.positions.or(Some(start.positions)),
        summary: settings.summary.or(Some(start.summary)),
        sentence: settings.sentence.or(Some(start.sentence)),
        ..settings.clone()
    }
}

/// What a resumed run must have in common with the one that was saved.
fn fingerprint(config: &TrainingConfig, networks: &Networks, data_digest: &str) -> Fingerprint {
    Fingerprint::of(serde_json::json!({
        "seed": config.seed,
        "adapter": config.adapter,
        "lora": config.lora,
        "data": data_digest,
        "plain_targets": config.data.plain_targets,
        "compound_share": config.data.compound_share,
        "encoder": networks.encoder_identity,
        "llm": networks.llm_identity,
        "system": config.model.system,
    }))
}

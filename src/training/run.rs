//! A whole offline run: settings and manifests in, a published adapter version out.

use std::collections::BTreeMap;

use super::control::Control;
use super::engine::{Engine, EngineArgs, TrainOutcome};
use super::events::TrainEvent;
use super::manifest::read_manifest;
use super::networks::Networks;
use super::speaker_mixes::speaker_mixes;
use super::{TrainingError, checkpoint};
use crate::registry::{Draft, Expected, Registry, RegistryError};
use crate::training::config::TrainingConfig;

/// What the `train` command asks for.
#[derive(Clone, Debug)]
pub struct TrainArgs {
    /// Settings of the run.
    pub config: TrainingConfig,
    /// Goes on from the run's checkpoint, when there is one.
    pub resume: bool,
    /// Pauses and stops the run.
    pub control: Control,
}

/// What a run came to, and what was published.
#[derive(Clone, Debug)]
pub struct TrainReport {
    /// The run.
    pub outcome: TrainOutcome,
    /// Name of the published version; absent when there is no registry or the run was stopped.
    pub version: Option<String>,
}

/// Runs a curriculum from manifests and publishes the best adapter where the settings name a registry.
///
/// # Errors
/// [`TrainingError`] when settings, data, networks or disk fail; the last checkpoint stays.
pub fn run(args: TrainArgs, on_event: &mut dyn FnMut(&TrainEvent)) -> Result<TrainReport, TrainingError> {
    let TrainArgs {
        config,
        resume,
        control,
    } = args;
    config.validate()?;
    let read = |paths: &[std::path::PathBuf]| -> Result<Vec<_>, TrainingError> {
        let mut examples = Vec::new();
        for path in paths {
            examples.extend(read_manifest(path, None)?.warned());
        }
        Ok(examples)
    };
    let (mut train, valid) = (read(&config.data.train)?, read(&config.data.valid)?);
    train.extend(speaker_mixes(
        &config.data.speaker_mixes,
        config.data.seconds_max,
        config.seed,
    )?);
    let start_from = match &config.start_from {
        Some(path) => Some(checkpoint::read_adapter(path, "start")?),
        None => None,
    };
    let registry = config
        .checkpoint
        .registry
        .as_ref()
        .map(Registry::open)
        .transpose()?;
    // What the run's version may replace at its end, hours from now.
    let current = registry.as_ref().map(Registry::current).transpose()?.flatten();
    let networks = Networks::load_to_train(&config.model)?;
    let args = EngineArgs {
        config: config.clone(),
        networks: &networks,
        train,
        valid,
        start_from,
        resume,
        control,
    };
    let outcome = Engine::new(args)?.run(on_event)?;
    let mut version = None;
    if let (Some(registry), false) = (&registry, outcome.stopped) {
        let published = registry
            .publish(
                &config.checkpoint.prefix,
                &draft(&config, &networks, &outcome, None),
            )?
            .version;
        let promoted = config.checkpoint.promote && promote(registry, &published, current.as_deref())?;
        on_event(&TrainEvent::Published {
            version: published.clone(),
            promoted,
        });
        version = Some(published);
    }
    Ok(TrainReport { outcome, version })
}

/// Makes a version current in place of `current`; false when somebody else has changed it during the run.
fn promote(registry: &Registry, version: &str, current: Option<&str>) -> Result<bool, TrainingError> {
    let expected = current.map_or(Expected::Nothing, Expected::Version);
    match registry.promote(version, expected) {
        Ok(_) => Ok(true),
        Err(error @ RegistryError::Moved { .. }) => {
            tracing::warn!(%error, version, "published and not promoted; `adapters promote` can do it");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// What a run's outcome looks like as a draft for the registry.
pub fn draft(
    config: &TrainingConfig,
    networks: &Networks,
    outcome: &TrainOutcome,
    parent: Option<String>,
) -> Draft {
    let mut metrics = BTreeMap::from([
        ("steps".to_owned(), serde_json::json!(outcome.steps)),
        (
            "train_seconds".to_owned(),
            serde_json::json!(outcome.seconds.round()),
        ),
    ]);
    if outcome.damaged > 0 {
        metrics.insert(
            "damaged_recordings".to_owned(),
            serde_json::json!(outcome.damaged),
        );
    }
    if let Some(best) = &outcome.best {
        metrics.insert("valid_loss".to_owned(), serde_json::json!(best.loss));
        metrics.insert("valid_wer".to_owned(), serde_json::json!(best.wer));
    }
    let extra = ["log.jsonl", "loss.svg"]
        .into_iter()
        .map(|name| (name.to_owned(), outcome.output.join(name)))
        .filter(|(_, path)| path.is_file())
        .collect();
    Draft {
        parent,
        encoder: networks.encoder_identity.clone(),
        llm: networks.llm_identity.clone(),
        curriculum: serde_json::to_value(&config.stages).unwrap_or_default(),
        data_digest: outcome.data_digest.clone(),
        metrics,
        settings: serde_json::to_value(config).unwrap_or_default(),
        adapter: outcome.adapter.clone(),
        lora: outcome.lora.clone(),
        extra,
    }
}

//! `speechverse eval`: word error rate over manifests. In its first form: transcription only.

use std::path::Path;

use anyhow::Context;
use serde_json::json;
use speechverse::config::Settings;
use speechverse::config::training::TrainingConfig;
use speechverse::models::speech_llm::Learned;
use speechverse::training::evaluate::{EvaluateOptions, Evaluation, evaluate};
use speechverse::training::prepare::prepare;
use speechverse::training::{Control, Networks, read_manifest};

use super::Failure;
use crate::cli::Eval;
use crate::{adapters, output};

pub(super) fn eval(args: &Eval) -> Result<(), Failure> {
    let settings = Settings::load(&args.settings.config).map_err(Failure::usage)?;
    let identities = adapters::identities(&settings)?;
    let (_, loaded) = adapters::open(&settings, args.adapter.as_deref(), &identities)?;
    let networks = Networks::load(&settings.model).context("cannot load the networks")?;
    let device = networks.placement.device;
    let learned = Learned::frozen(&loaded.adapter, networks.speech_llm.llm(), device)
        .context("cannot use the adapter")?;
    let version = loaded.adapter.version();
    let mut rows = vec![
        ["manifest", "clips", "words", "WER %", "audio s", "seconds"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut unreadable = 0;
    for path in &args.manifests {
        let result = one(path, args, &networks, &learned).with_context(|| path.display().to_string())?;
        for reason in &result.unreadable {
            tracing::error!("{reason}");
        }
        unreadable += result.unreadable.len();
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if args.json {
            let words = result.rows.iter().map(|row| row.words).sum::<u64>();
            output::line(
                json!({
                    "manifest": name, "adapter": version, "clips": result.rows.len(), "words": words,
                    "wer": result.wer(), "audio_seconds": result.audio_seconds, "seconds": result.seconds,
                    "unreadable": result.unreadable.len(), "by_ctc": args.by_ctc,
                })
                .to_string(),
            );
        }
        rows.push(vec![
            name,
            result.rows.len().to_string(),
            result.rows.iter().map(|row| row.words).sum::<u64>().to_string(),
            format!("{:.1}", 100.0 * result.wer()),
            format!("{:.0}", result.audio_seconds),
            format!("{:.0}", result.seconds),
        ]);
    }
    if !args.json {
        output::table(&rows, &[1, 2, 3, 4, 5]);
        let how = if args.by_ctc { "CTC head" } else { "language model" };
        output::line(format!(
            "adapter {version}, {how}, {}, case and punctuation not counted",
            networks.placement
        ));
    }
    match unreadable {
        0 => Ok(()),
        unreadable => {
            Err(anyhow::anyhow!("{unreadable} recordings could not be read and are in no figure").into())
        }
    }
}

fn one(path: &Path, args: &Eval, networks: &Networks, learned: &Learned) -> anyhow::Result<Evaluation> {
    let examples = read_manifest(path, None)?;
    let count = examples.len();
    let mut config = TrainingConfig::default();
    // Everything is evaluated: limits are for training.
    config.data.seconds_max = f64::from(u32::MAX);
    config.data.seconds_min = 0.0;
    config.data.target_tokens_max = usize::MAX;
    let prepared = prepare(examples, &config, &networks.speech_llm)?;
    if prepared.samples.len() < count {
        tracing::warn!(left_out = ?prepared.left_out, "some recordings are not evaluated");
    }
    let options = EvaluateOptions {
        by_ctc: args.by_ctc,
        ..EvaluateOptions::default()
    };
    let show = |row: &_| {
        if args.json {
            output::line(serde_json::to_string(row).unwrap_or_default());
        }
    };
    Ok(evaluate(
        networks,
        learned,
        &prepared.samples,
        &options,
        &Control::new(),
        &mut { show },
    )?)
}

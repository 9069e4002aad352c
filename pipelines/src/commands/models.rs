//! `speechverse models`: get, convert and inspect models.

use std::path::{Path, PathBuf};

use anyhow::Context;
use model_import::{
    FetchProgress, FloatFormat, HubModel, HubProgress, HubSettings, ImportOptions, available_models,
};
use speechverse::weights::Checkpoint;

use super::Failure;
use crate::cli::{FloatKind, Models};
use crate::output;

pub(super) fn models(command: Models) -> Result<(), Failure> {
    match command {
        Models::Fetch { names, all, dir } => fetch(&names, all, &dir),
        Models::Import { source, out, kind } => convert(&source, &out, kind),
        Models::Inspect { dir } => inspect(&dir),
    }
}

fn convert(source: &Path, out: &Path, kind: FloatKind) -> Result<(), Failure> {
    let options = ImportOptions {
        format: match kind {
            FloatKind::F32 => FloatFormat::F32,
            FloatKind::F16 => FloatFormat::F16,
            FloatKind::Bf16 => FloatFormat::Bf16,
        },
        ..ImportOptions::default()
    };
    let report =
        model_import::import(source, out, &options, &mut |_, _| ()).context("nothing was imported")?;
    output::line(format!(
        "{}: {} {} of {} tensors, {:.1} million numbers as {}, {:.1} s",
        out.display(),
        report.source_kind,
        report.architecture,
        report.tensors,
        report.parameters as f64 / 1e6,
        report.format.name(),
        report.elapsed.as_secs_f64(),
    ))?;
    Ok(())
}

fn inspect(dir: &Path) -> Result<(), Failure> {
    let checkpoint = Checkpoint::open(dir).context("nothing to inspect")?;
    let mut rows = vec![vec!["tensor".to_owned(), "type".to_owned(), "shape".to_owned()]];
    let mut numbers = 0_u64;
    for tensor in checkpoint.tensors() {
        numbers += tensor.shape.iter().map(|size| *size as u64).product::<u64>();
        rows.push(vec![tensor.name, tensor.dtype, format!("{:?}", tensor.shape)]);
    }
    output::table(&rows, &[])?;
    output::line(format!(
        "{} tensors, {:.1} million numbers",
        rows.len() - 1,
        numbers as f64 / 1e6
    ))?;
    Ok(())
}

fn fetch(names: &[String], all: bool, dir: &Path) -> Result<(), Failure> {
    let cache = std::env::var_os("SPEECHVERSE_CACHE").map_or_else(|| PathBuf::from(".cache"), PathBuf::from);
    let names = if all {
        available_models()
            .into_iter()
            .map(|model| model.name.to_string())
            .collect()
    } else {
        names.to_vec()
    };
    let (on_hub, names): (Vec<String>, Vec<String>) = names.into_iter().partition(|name| name.contains('/'));
    for name in &on_hub {
        fetch_from_hub(name, dir)?;
    }
    if names.is_empty() && !on_hub.is_empty() {
        return Ok(());
    }
    let fetched = model_import::fetch(&names, dir, &cache, &mut |step| match step {
        FetchProgress::Importing { .. } => {}
        step => tracing::info!("{step:?}"),
    })
    .context("models were not fetched")?;
    for model in fetched {
        let how = match (model.was_in_place, model.imported) {
            (true, _) => "in place",
            (false, Some(_)) => "imported",
            (false, None) => "copied",
        };
        output::line(format!("{}: {how}", model.folder.display()))?;
    }
    Ok(())
}

fn fetch_from_hub(name: &str, dir: &Path) -> Result<(), Failure> {
    let model: HubModel = name.parse().context("models were not fetched")?;
    let settings = HubSettings::from_env().context("models were not fetched")?;
    let fetched = model_import::fetch_from_hub(&model, &settings, dir, &mut |step| {
        if let HubProgress::File { .. } = step {
            tracing::info!("{step:?}");
        }
    })
    .context("models were not fetched")?;
    output::line(format!(
        "{}: {}, commit {}, {:.1} MB",
        fetched.folder.display(),
        if fetched.in_place { "in place" } else { "fetched" },
        fetched.commit,
        fetched.bytes as f64 / 1e6,
    ))?;
    Ok(())
}

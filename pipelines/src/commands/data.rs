//! `speechverse data`: manifests of corpora, and the proof that nothing tested is learned.

use std::path::{Path, PathBuf};

use anyhow::Context;
use speechverse::training::corpora;

use super::Failure;
use crate::cli::Data;
use crate::output;

/// Most conflicts that are listed.
const CONFLICTS_SHOWN: usize = 50;

pub(super) fn data(command: Data) -> Result<(), Failure> {
    match command {
        Data::Import {
            folder,
            out,
            held_out,
        } => import(&folder, &out, &held_out),
        Data::Check { manifests } => check(&manifests),
    }
}

fn import(folder: &Path, out: &Path, held_out: &[PathBuf]) -> Result<(), Failure> {
    let report = corpora::import(folder, out, held_out).context("nothing was imported")?;
    let mut table = vec![["manifest", "rows", "minutes"].map(str::to_owned).to_vec()];
    for manifest in &report.manifests {
        table.push(vec![
            manifest.path.display().to_string(),
            manifest.rows.to_string(),
            format!("{:.1}", manifest.seconds / 60.0),
        ]);
    }
    output::table(&table, &[1, 2])?;
    for (source, count) in &report.held_out {
        output::line(format!(
            "{source}: {count} recordings left out of training, because their sentence is held out"
        ))?;
    }
    Ok(())
}

fn check(manifests: &[PathBuf]) -> Result<(), Failure> {
    let report = corpora::check(manifests).context("the manifests were not checked")?;
    output::line(format!(
        "{} rows for training and validation, {} test rows with {} voices and {} sentences; {} test rows share their words by design",
        report.training_rows,
        report.test_rows,
        report.test_voices,
        report.test_sentences,
        report.shared_by_design,
    ))?;
    if report.conflicts.is_empty() {
        output::line("no test voice, test sentence or test recording is in training")?;
        return Ok(());
    }
    for (conflict, (learned, tested)) in report.conflicts.iter().take(CONFLICTS_SHOWN) {
        output::line(format!("{conflict}: learned in {learned}, tested in {tested}"))?;
    }
    if report.conflicts.len() > CONFLICTS_SHOWN {
        output::line(format!("… and {} more", report.conflicts.len() - CONFLICTS_SHOWN))?;
    }
    Err(Failure::Work(anyhow::anyhow!(
        "{} voices, sentences or recordings are in training and in a test",
        report.conflicts.len()
    )))
}

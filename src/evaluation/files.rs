//! The files of a report.

use std::path::{Path, PathBuf};

use super::markdown::markdown;
use super::plot::draw;
use super::report::Report;
use super::run::Row;
use crate::training::TrainingError;

/// Writes `report.json`, `report.md`, the answers as `rows.jsonl`, and a picture for each table and task;
/// returns the files.
///
/// # Errors
/// [`TrainingError::Io`] or [`TrainingError::Plot`] with the file.
pub fn write_report(report: &Report, rows: &[Row], folder: &Path) -> Result<Vec<PathBuf>, TrainingError> {
    std::fs::create_dir_all(folder).map_err(TrainingError::io("make", folder))?;
    let json = serde_json::to_string_pretty(report).expect("numbers and strings only");
    let mut lines = String::new();
    for row in rows {
        lines.push_str(&serde_json::to_string(row).expect("numbers and strings only"));
        lines.push('\n');
    }
    let mut files = Vec::new();
    for (name, text) in [
        ("report.json", json + "\n"),
        ("report.md", markdown(report)),
        ("rows.jsonl", lines),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(TrainingError::io("write", &path))?;
        files.push(path);
    }
    files.append(&mut draw(report, folder)?);
    Ok(files)
}

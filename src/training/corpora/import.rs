//! From a folder of corpora to manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::TrainingError;
use super::super::manifest::json_lines;
use super::pack::{Recording, Split, read_pack};
use super::rows::{Row, rows_of};
use super::spoken::RowWords;

/// A manifest that was written.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportedManifest {
    /// Where.
    pub path: PathBuf,
    /// Its lines.
    pub rows: usize,
    /// Audio, seconds.
    pub seconds: f64,
}

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImportReport {
    /// The manifests, by name.
    pub manifests: Vec<ImportedManifest>,
    /// Training recordings left out because their sentence is held out, by corpus.
    pub held_out: BTreeMap<String, usize>,
}

/// Origin, terms and size of one corpus: an entry of `sources.json`.
#[derive(Clone, Debug, Default, Serialize)]
struct SourceNote {
    origins: BTreeSet<String>,
    licences: BTreeSet<String>,
    clips: usize,
    seconds: f64,
}

/// What is read of a line of a held-out manifest; unknown keys pass.
#[derive(Deserialize)]
struct HeldOut {
    text: Option<String>,
    task: Option<String>,
    target: Option<String>,
    #[serde(default)]
    targets: BTreeMap<String, serde_json::Value>,
}

/// Reads the corpora of `folder` and writes `TASK_SPLIT.jsonl` for each task and split, and `sources.json`,
/// to `out`.
///
/// A training recording whose sentence is said in a test recording, or is a transcript of a manifest of
/// `held_out` (`text`, `targets.asr`, or the `target` of a row that is for transcription), is left out, but
/// for words that the corpus declares as shared (`words_seen_in_train`).
///
/// # Errors
/// As [`read_pack`]; [`TrainingError::Io`] when a manifest cannot be written.
pub fn import(folder: &Path, out: &Path, held_out: &[PathBuf]) -> Result<ImportReport, TrainingError> {
    let mut recordings = read_pack(folder)?;
    let mut sentences = tested_sentences(&recordings);
    for manifest in held_out {
        json_lines(manifest, &mut |_, line: HeldOut| {
            let words = RowWords {
                text: line.text.as_deref(),
                task: line.task.as_deref(),
                target: line.target.as_deref(),
                targets: &line.targets,
            };
            sentences.extend(words.sentences()?);
            Ok(())
        })?;
    }
    let mut report = ImportReport::default();
    recordings.retain(|recording| {
        let held = recording.split != Split::Test
            && (recording.sentences.iter()).any(|sentence| sentences.contains(sentence));
        if held {
            *report.held_out.entry(recording.source.clone()).or_insert(0) += 1;
        }
        !held
    });
    std::fs::create_dir_all(out).map_err(TrainingError::io("make", out))?;
    for (name, rows) in rows_of(&recordings) {
        for split in [Split::Train, Split::Valid, Split::Test] {
            let rows: Vec<&Row> = rows.iter().filter(|row| row.split == split).collect();
            if !rows.is_empty() {
                let path = out.join(format!("{name}_{}.jsonl", split.name()));
                write(&path, rows.iter())?;
                let seconds = rows.iter().map(|row| row.duration).sum();
                report.manifests.push(ImportedManifest {
                    path,
                    rows: rows.len(),
                    seconds,
                });
            }
        }
    }
    write(&out.join("sources.json"), std::iter::once(notes(&recordings)))?;
    Ok(report)
}

/// Sentences of test recordings, but for those whose words are shared by design.
fn tested_sentences(recordings: &[Recording]) -> BTreeSet<String> {
    (recordings.iter())
        .filter(|recording| recording.split == Split::Test && recording.words_seen_in_train != Some(true))
        .flat_map(|recording| recording.sentences.clone())
        .collect()
}

fn notes(recordings: &[Recording]) -> BTreeMap<&str, SourceNote> {
    let mut notes: BTreeMap<&str, SourceNote> = BTreeMap::new();
    for recording in recordings {
        let note = notes.entry(&recording.source).or_default();
        note.origins.insert(recording.origin.clone());
        note.licences.insert(recording.licence.clone());
        note.clips += 1;
        note.seconds += recording.duration;
    }
    notes
}

/// Writes JSON lines beside the old file and renames them into place, so that a reader sees a whole file.
fn write<T: Serialize>(path: &Path, lines: impl Iterator<Item = T>) -> Result<(), TrainingError> {
    let part = path.with_extension("part");
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, &line).expect("rows of strings and finite numbers are JSON");
        text.push(b'\n');
    }
    let write = || {
        std::fs::File::create(&part)?.write_all(&text)?;
        std::fs::rename(&part, path)
    };
    write().map_err(TrainingError::io("write", path))
}

//! The proof that no test voice, test sentence or test recording is in training.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::TrainingError;
use super::super::manifest::json_lines;
use super::pack::Split;
use super::spoken::spoken_form;

/// What the check reads of a line; unknown keys pass.
#[derive(Deserialize)]
struct Line {
    audio_filepath: String,
    split: Option<Split>,
    text: Option<String>,
    #[serde(default)]
    targets: BTreeMap<String, serde_json::Value>,
    voice: Option<String>,
    #[serde(default)]
    voices: Vec<String>,
    speaker: Option<String>,
    speaker_cluster: Option<String>,
    words_seen_in_train: Option<bool>,
}

impl Line {
    fn sentence(&self) -> Option<String> {
        let joint = || self.targets.get("asr").and_then(serde_json::Value::as_str);
        let text = self.text.as_deref().or_else(joint)?;
        // What is not English words is compared as it is written.
        spoken_form(text)
            .or_else(|| Some(text.trim().to_lowercase()))
            .filter(|text| !text.is_empty())
    }

    fn voices(&self) -> impl Iterator<Item = &String> {
        (self.voices.iter())
            .chain(&self.voice)
            .chain(&self.speaker)
            .chain(&self.speaker_cluster)
    }
}

/// Something of the test part that training has too.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Conflict {
    /// A recording.
    Recording(PathBuf),
    /// A voice.
    Voice(String),
    /// A sentence.
    Sentence(String),
}

/// Where something was seen: manifest and line.
type Place = (PathBuf, usize);

/// What the check found.
#[derive(Clone, Debug, Default)]
pub struct LeakReport {
    /// Lines to learn from or to choose by.
    pub training_rows: usize,
    /// Lines to measure on.
    pub test_rows: usize,
    /// Voices of the test part.
    pub test_voices: usize,
    /// Sentences of the test part that must not be learned.
    pub test_sentences: usize,
    /// Test lines whose words may occur in training, because their corpus has a closed vocabulary and says
    /// so.
    pub shared_by_design: usize,
    /// Everything in both parts: once in training, once in the test part.
    pub conflicts: BTreeMap<Conflict, (String, String)>,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recording(path) => write!(f, "recording `{}`", path.display()),
            Self::Voice(voice) => write!(f, "voice `{voice}`"),
            Self::Sentence(text) => write!(f, "sentence `{text}`"),
        }
    }
}

/// Reads manifests whose lines name their `split`: `train`, `valid` or `test`. Validation counts as training,
/// because it chooses.
///
/// A test line with `words_seen_in_train: true` may share its sentence with training, not its voice or
/// recording.
///
/// # Errors
/// [`TrainingError::Manifest`] for a line without `split`, or one that cannot be read; [`TrainingError::Io`].
pub fn check(manifests: &[PathBuf]) -> Result<LeakReport, TrainingError> {
    let mut report = LeakReport::default();
    let mut learned: BTreeMap<Conflict, Place> = BTreeMap::new();
    let mut tested: BTreeMap<Conflict, Place> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for manifest in manifests {
        if !seen.insert(manifest) {
            continue;
        }
        let folder = manifest.parent().unwrap_or_else(|| Path::new("."));
        json_lines(manifest, &mut |at, line: Line| {
            let split = (line.split)
                .ok_or("has no `split`: without one nobody knows whether it is learned or tested")?;
            let path = folder.join(&line.audio_filepath);
            let path = path.canonicalize().unwrap_or(path);
            let mut facts = vec![Conflict::Recording(path)];
            facts.extend(line.voices().cloned().map(Conflict::Voice));
            let is_test = split == Split::Test;
            if is_test && line.words_seen_in_train == Some(true) {
                report.shared_by_design += 1;
            } else {
                facts.extend(line.sentence().map(Conflict::Sentence));
            }
            let (count, part) = match is_test {
                true => (&mut report.test_rows, &mut tested),
                false => (&mut report.training_rows, &mut learned),
            };
            *count += 1;
            for fact in facts {
                part.entry(fact).or_insert_with(|| (manifest.clone(), at));
            }
            Ok(())
        })?;
    }
    let of = |kind: fn(&Conflict) -> bool| tested.keys().filter(|fact| kind(fact)).count();
    report.test_voices = of(|fact| matches!(fact, Conflict::Voice(_)));
    report.test_sentences = of(|fact| matches!(fact, Conflict::Sentence(_)));
    let place = |(path, line): &Place| format!("{}:{line}", path.display());
    for (fact, test) in &tested {
        if let Some(train) = learned.get(fact) {
            report.conflicts.insert(fact.clone(), (place(train), place(test)));
        }
    }
    Ok(report)
}

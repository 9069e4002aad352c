//! A folder of corpora, one subfolder each: `manifest.jsonl` and its recordings, and a `README.md` whose
//! table names origin and licence.
//!
//! The layout of `scripts/data/README.md`. Untrusted: every error names file and line, a path may not leave
//! its corpus.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::super::TrainingError;
use super::super::manifest::json_lines;
use super::digest;
use super::spoken::{compared_form, spoken_form};

/// Share of a corpus's training voices that is kept for validation.
const VALID_PER_CENT: usize = 6;
/// A corpus with fewer training voices gives none to validation.
const VALID_VOICES_MIN: usize = 6;
/// Largest README that is looked at.
const README_BYTES_MAX: u64 = 1 << 20; // 1 MiB

/// Which part of the data a recording belongs to.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Learned from.
    Train,
    /// For choosing: whole voices of the corpus's training part.
    Valid,
    /// For the last measurement.
    Test,
}

impl Split {
    /// Its name in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }
}

/// What a corpus says of a recording beside its words; unknown keys pass.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PackLabels {
    /// Kind of text.
    pub kind: Option<String>,
    /// Language of the words; absent: English.
    pub language: Option<String>,
    /// `child` or `adult`.
    pub age_group: Option<String>,
    /// First language of the speaker.
    pub native_language: Option<String>,
    /// A laugh, a groan …: a voice without words.
    #[serde(default)]
    pub vocal_burst: bool,
    /// What sounds.
    pub event: Option<String>,
    /// Slot values of a request.
    pub slots: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Line {
    audio_filepath: String,
    duration: f64,
    text: Option<String>,
    text_auto: Option<String>,
    speaker: Option<String>,
    speaker_cluster: Option<String>,
    group: Option<String>,
    task: String,
    target: Option<String>,
    #[serde(default)]
    labels: PackLabels,
    split: Split,
    words_seen_in_train: Option<bool>,
    licence: Option<String>,
    origin: Option<String>,
}

/// One recording of a corpus.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Name of its corpus.
    pub source: String,
    /// Where it is.
    pub path: PathBuf,
    /// `SOURCE/PATH`: what seeded choices are made by.
    pub key: String,
    /// Seconds.
    pub duration: f64,
    /// Its English words in normal form.
    pub text: Option<String>,
    /// Whether a recogniser wrote them.
    pub recognised: bool,
    /// What is said, in the form in which sentences are compared: as a human wrote it, in any language and
    /// with any symbols, and as [`Recording::text`] has it.
    pub sentences: Vec<String>,
    /// Speaker, cluster of similar voices, or group of recordings that belong together.
    pub voice: String,
    /// The corpus's own name of what it is for.
    pub task: String,
    /// The corpus's own answer.
    pub target: Option<String>,
    /// What else is known.
    pub labels: PackLabels,
    /// Where it belongs.
    pub split: Split,
    /// For test recordings: whether the same words, or the same answer, occur in the training part by design.
    pub words_seen_in_train: Option<bool>,
    /// Terms under which it may be used.
    pub licence: String,
    /// Where it was published.
    pub origin: String,
}

/// Origin and terms of a corpus.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// Where it was published.
    pub origin: String,
    /// Licence.
    pub licence: String,
}

/// Reads every corpus of a folder, in the order of their names. English words are brought into normal form.
///
/// # Errors
/// [`TrainingError::Manifest`] with file and line; [`TrainingError::NoExamples`] when there is no corpus, or
/// the README names no licence for one; [`TrainingError::Io`].
pub fn read_pack(folder: &Path) -> Result<Vec<Recording>, TrainingError> {
    let folder = folder.canonicalize().map_err(TrainingError::io("read", folder))?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(TrainingError::io("read", &folder))? {
        let path = entry.map_err(TrainingError::io("read", &folder))?.path();
        if path.join("manifest.jsonl").is_file() {
            names.push(path);
        }
    }
    names.sort();
    if names.is_empty() {
        return Err(TrainingError::NoExamples {
            what: format!("import from `{}`", folder.display()),
            reason: "no subfolder has a `manifest.jsonl`".into(),
        });
    }
    let terms = read_terms(&folder.join("README.md"))?;
    let mut recordings = Vec::new();
    for corpus in names {
        let source = corpus
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let terms = terms.get(&source).ok_or_else(|| TrainingError::NoExamples {
            what: format!("corpus `{source}`"),
            reason: format!(
                "the table of `{}` has no row `| {source} | repositories | licence | …`: say where it comes from \
                 and under which terms",
                folder.join("README.md").display()
            ),
        })?;
        recordings.extend(read_corpus(&corpus, &source, terms)?);
    }
    Ok(recordings)
}

/// Rows `| folder | source repositories | licence | …` of a Markdown file.
fn read_terms(path: &Path) -> Result<BTreeMap<String, Terms>, TrainingError> {
    let size = std::fs::metadata(path)
        .map_err(TrainingError::io("read", path))?
        .len();
    if size > README_BYTES_MAX {
        return Err(TrainingError::NoExamples {
            what: format!("terms in `{}`", path.display()),
            reason: format!("the file has {size} bytes, expected at most {README_BYTES_MAX}"),
        });
    }
    let text = std::fs::read_to_string(path).map_err(TrainingError::io("read", path))?;
    let mut terms = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if let [name, origin, licence, ..] = cells[..]
            && !licence.is_empty()
        {
            terms.insert(
                name.to_owned(),
                Terms {
                    origin: origin.to_owned(),
                    licence: licence.to_owned(),
                },
            );
        }
    }
    Ok(terms)
}

fn read_corpus(corpus: &Path, source: &str, terms: &Terms) -> Result<Vec<Recording>, TrainingError> {
    let mut recordings = Vec::new();
    json_lines(&corpus.join("manifest.jsonl"), &mut |_, line: Line| {
        recordings.push(recording(line, corpus, source, terms)?);
        Ok(())
    })?;
    keep_voices_for_validation(source, &mut recordings);
    Ok(recordings)
}

fn recording(line: Line, corpus: &Path, source: &str, terms: &Terms) -> Result<Recording, String> {
    let inside = Path::new(&line.audio_filepath);
    if inside.as_os_str().is_empty()
        || inside
            .components()
            .any(|part| !matches!(part, Component::Normal(_)))
    {
        return Err(format!(
            "`audio_filepath` is `{}`, expected a path inside the corpus",
            line.audio_filepath
        ));
    }
    if !(line.duration.is_finite() && line.duration > 0.0) {
        return Err(format!(
            "`duration` is {}, expected seconds above 0",
            line.duration
        ));
    }
    let voice = (line.speaker.or(line.speaker_cluster).or(line.group))
        .filter(|voice| !voice.trim().is_empty())
        .ok_or("has no `speaker`, `speaker_cluster` or `group`: without one it cannot be kept apart")?;
    let english = line
        .labels
        .language
        .as_deref()
        .is_none_or(|language| language.starts_with("en"));
    let human = line.text.as_deref().filter(|_| english).and_then(spoken_form);
    let recognised = human.is_none();
    let text = human.or_else(|| {
        line.text_auto
            .as_deref()
            .filter(|_| english)
            .and_then(spoken_form)
    });
    let written = line.text.as_deref().and_then(compared_form);
    Ok(Recording {
        source: source.to_owned(),
        path: corpus.join(inside),
        key: format!("{source}/{}", line.audio_filepath),
        duration: line.duration,
        recognised: recognised && text.is_some(),
        sentences: written.into_iter().chain(text.clone()).collect(),
        text,
        voice,
        task: line.task,
        target: line.target,
        labels: line.labels,
        split: line.split,
        words_seen_in_train: line.words_seen_in_train,
        licence: line.licence.unwrap_or_else(|| terms.licence.clone()),
        origin: line.origin.unwrap_or_else(|| terms.origin.clone()),
    })
}

/// Moves whole voices of the training part to the validation part.
fn keep_voices_for_validation(source: &str, recordings: &mut [Recording]) {
    let voices: BTreeSet<String> = (recordings.iter())
        .filter(|recording| recording.split == Split::Train)
        .map(|recording| recording.voice.clone())
        .collect();
    if voices.len() < VALID_VOICES_MIN {
        return;
    }
    let count = ((VALID_PER_CENT * voices.len() + 50) / 100).max(1);
    let mut voices: Vec<String> = voices.into_iter().collect();
    voices.sort_by_cached_key(|voice| digest(&format!("{source}/{voice}")));
    let kept: BTreeSet<&String> = voices[..count].iter().collect();
    for recording in recordings {
        if recording.split == Split::Train && kept.contains(&recording.voice) {
            recording.split = Split::Valid;
        }
    }
}

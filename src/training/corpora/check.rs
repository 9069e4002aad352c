//! The proof that no test voice, test sentence or test recording is in training.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::super::TrainingError;
use super::super::manifest::json_lines;
use super::pack::Split;
use super::spoken::RowWords;

/// What the check reads of a line; unknown keys pass.
#[derive(Deserialize)]
struct Line {
    audio_filepath: String,
    split: Option<Split>,
    text: Option<String>,
    task: Option<String>,
    target: Option<String>,
    #[serde(default)]
    targets: BTreeMap<String, serde_json::Value>,
    voice: Option<String>,
    #[serde(default)]
    voices: Vec<String>,
    speaker: Option<String>,
    speaker_cluster: Option<String>,
    group: Option<String>,
    words_seen_in_train: Option<bool>,
}

impl Line {
    fn sentences(&self) -> Result<BTreeSet<String>, String> {
        let words = RowWords {
            text: self.text.as_deref(),
            task: self.task.as_deref(),
            target: self.target.as_deref(),
            targets: &self.targets,
        };
        words.sentences()
    }

    /// Everybody who speaks. As in a corpus, `group` is the voice where nothing else names one.
    fn voices(&self) -> Vec<&String> {
        let named = (self.voices.iter())
            .chain(&self.voice)
            .chain(&self.speaker)
            .chain(&self.speaker_cluster)
            .filter(|voice| !voice.trim().is_empty());
        let mut voices: Vec<&String> = named.collect();
        if voices.is_empty() {
            voices.extend(self.group.iter().filter(|group| !group.trim().is_empty()));
        }
        voices
    }
}

/// Something of the test part that training has too.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Conflict {
    /// A recording.
    Recording(PathBuf),
    /// A recording whose file has the bytes of another one.
    Copy {
        /// The file that is tested.
        tested: PathBuf,
        /// The file that is learned.
        learned: PathBuf,
    },
    /// A voice.
    Voice(String),
    /// A sentence.
    Sentence(String),
}

/// Where something was seen: manifest and line.
type Place = (PathBuf, usize);

/// What a part of the data has, and where it was seen first.
type Seen = BTreeMap<Conflict, Place>;

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
            Self::Copy { tested, learned } => {
                let (tested, learned) = (tested.display(), learned.display());
                write!(f, "recording `{tested}`, byte for byte `{learned}`")
            }
            Self::Voice(voice) => write!(f, "voice `{voice}`"),
            Self::Sentence(text) => write!(f, "sentence `{text}`"),
        }
    }
}

/// Reads manifests whose lines name their `split`: `train`, `valid` or `test`. Validation counts as training,
/// because it chooses.
///
/// A recording is known by its path and by its bytes; a file that is not there, or is empty, only by its
/// path. A sentence is `text`, `targets.asr`, and the `target` of a line whose task is `asr` or not named. A
/// test line with `words_seen_in_train: true` may share its sentence with training, not its voice or
/// recording.
///
/// # Errors
/// [`TrainingError::Manifest`] for a line without `split`, or one that cannot be read; [`TrainingError::Io`].
pub fn check(manifests: &[PathBuf]) -> Result<LeakReport, TrainingError> {
    let mut report = LeakReport::default();
    let (mut learned, mut tested) = (Seen::new(), Seen::new());
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
            facts.extend(line.voices().into_iter().cloned().map(Conflict::Voice));
            let is_test = split == Split::Test;
            if is_test && line.words_seen_in_train == Some(true) {
                report.shared_by_design += 1;
            } else {
                facts.extend(line.sentences()?.into_iter().map(Conflict::Sentence));
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
    for (copy, train, test) in copies(&learned, &tested)? {
        report.conflicts.insert(copy, (place(train), place(test)));
    }
    Ok(report)
}

/// Tested files that have the bytes of a learned file of another name. Only files whose size occurs on both
/// sides are read.
fn copies<'s>(
    learned: &'s Seen,
    tested: &'s Seen,
) -> Result<Vec<(Conflict, &'s Place, &'s Place)>, TrainingError> {
    let learned_sizes = sizes(learned);
    let mut found = Vec::new();
    for (size, test_files) in sizes(tested) {
        let Some(train_files) = learned_sizes.get(&size) else {
            continue;
        };
        let mut by_digest = BTreeMap::new();
        for (path, place) in train_files {
            by_digest.entry(file_digest(path)?).or_insert((*path, *place));
        }
        for (path, test) in test_files {
            // One that is learned under its own name is a conflict already.
            if learned.contains_key(&Conflict::Recording(path.to_path_buf())) {
                continue;
            }
            if let Some((original, train)) = by_digest.get(&file_digest(path)?) {
                let copy = Conflict::Copy {
                    tested: path.to_path_buf(),
                    learned: original.to_path_buf(),
                };
                found.push((copy, *train, test));
            }
        }
    }
    Ok(found)
}

/// The recordings that are there and not empty, by their size in bytes.
fn sizes(seen: &Seen) -> BTreeMap<u64, Vec<(&Path, &Place)>> {
    let mut sizes: BTreeMap<u64, Vec<(&Path, &Place)>> = BTreeMap::new();
    for (fact, place) in seen {
        if let Conflict::Recording(path) = fact
            && let Ok(file) = path.metadata()
            && file.is_file()
            && file.len() > 0
        {
            sizes.entry(file.len()).or_default().push((path, place));
        }
    }
    sizes
}

fn file_digest(path: &Path) -> Result<[u8; 32], TrainingError> {
    let mut file = std::fs::File::open(path).map_err(TrainingError::io("read", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16]; // 64 KiB
    loop {
        let read = (file.read(&mut buffer)).map_err(TrainingError::io("read", path))?;
        if read == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&buffer[..read]);
    }
}

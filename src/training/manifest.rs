//! Manifests: JSON lines in the style of NeMo, one labelled recording each.
//!
//! Untrusted: every error names file and line. Unknown keys pass, because manifests carry notes of other
//! tools.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::TrainingError;
use super::example::{AudioSource, Clip, Example};
use super::prompt_variants::TRANSCRIPT;
use crate::text::tasks::TASK_SEPARATOR;
use crate::text::{TaskLabel, TemplateVariables};

/// Longest line, bytes.
const LINE_BYTES_MAX: u64 = 1 << 20; // 1 MiB
/// Most lines of one manifest.
const LINES_MAX: usize = 20_000_000;
/// Longest list of task names, bytes.
const TASK_BYTES_MAX: usize = 256;
/// Rows that are left out of a manifest and logged one by one.
pub const REASONS_MAX: usize = 1_000;
/// Longest declared clip, seconds.
const SECONDS_MAX: f64 = 24.0 * 3600.0;

#[derive(Default, Deserialize)]
struct Line {
    audio_filepath: String,
    duration: f64,
    offset: Option<f64>,
    text: Option<String>,
    task: Option<String>,
    instruction: Option<String>,
    target: Option<String>,
    domain: Option<String>,
    split: Option<String>,
    targets: Option<BTreeMap<String, String>>,
    labels: Option<Vec<LineLabel>>,
    fields: Option<BTreeMap<String, String>>,
    source_lang: Option<String>,
    target_lang: Option<String>,
    keyword: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum LineLabel {
    Name(String),
    Described(TaskLabel),
}

impl From<LineLabel> for TaskLabel {
    fn from(label: LineLabel) -> Self {
        match label {
            LineLabel::Name(name) => Self {
                name,
                description: String::new(),
            },
            LineLabel::Described(label) => label,
        }
    }
}

/// A recording without a label.
#[derive(Deserialize)]
struct AudioLine {
    audio_filepath: String,
    duration: f64,
    offset: Option<f64>,
    split: Option<String>,
}

impl From<AudioLine> for Line {
    fn from(line: AudioLine) -> Self {
        Self {
            audio_filepath: line.audio_filepath,
            duration: line.duration,
            offset: line.offset,
            task: Some("audio".to_owned()),
            target: Some(String::new()),
            split: line.split,
            ..Self::default()
        }
    }
}

/// What a manifest holds: its recordings, and the rows that are none.
#[derive(Debug, Default)]
pub struct Manifest {
    /// One for each good row.
    pub examples: Vec<Example>,
    /// Rows that were left out.
    pub refused: usize,
    /// Which and why, for the first [`REASONS_MAX`] of them.
    pub reasons: Vec<String>,
}

impl Manifest {
    fn refuse(&mut self, error: &TrainingError) {
        self.refused += 1;
        if self.reasons.len() < REASONS_MAX {
            self.reasons.push(error.to_string());
        }
    }

    /// Logs what was left out, and gives the rest.
    pub fn warned(self) -> Vec<Example> {
        for reason in &self.reasons {
            tracing::warn!(reason, "left a manifest row out");
        }
        if self.refused > self.reasons.len() {
            tracing::warn!(
                rows = self.refused - self.reasons.len(),
                "left further manifest rows out"
            );
        }
        self.examples
    }
}

/// Reads a manifest. Relative audio paths are relative to its folder. `split` keeps only the lines that name
/// it or name none. A bad row is listed and does not stop the rest.
///
/// With an `offset` a row is the piece of its file from there on, `duration` seconds long; without one it is
/// the whole file. The answer is `target`, or `text` where there is no target, and may be empty: nothing
/// said. The task is `asr` unless named. `targets` (answers by task) stands for several examples, or for the
/// tasks that `task` names. `labels` (names, or objects with `name` and `description`), `fields` and the
/// short forms `source_lang`, `target_lang` and `keyword` fill the task's prompts.
///
/// # Errors
/// [`TrainingError::Manifest`] with file and line where no row is good, or the file is of another kind (a
/// JSON array, UTF-16); [`TrainingError::Io`] when it cannot be read.
pub fn read_manifest(path: &Path, split: Option<&str>) -> Result<Manifest, TrainingError> {
    read_rows::<Line>(path, split, true)
}

/// Reads a manifest of recordings without labels: only `audio_filepath`, `offset`, `duration` and `split`
/// matter, the rest is not looked at. The examples have an empty target and the task `audio`.
///
/// # Errors
/// As [`read_manifest`].
pub fn read_audio_manifest(path: &Path, split: Option<&str>) -> Result<Manifest, TrainingError> {
    read_rows::<AudioLine>(path, split, false)
}

fn read_rows<L: DeserializeOwned + Into<Line>>(
    path: &Path,
    split: Option<&str>,
    labelled: bool,
) -> Result<Manifest, TrainingError> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let name = path
        .file_name()
        .map_or_else(|| "manifest".into(), |name| name.to_string_lossy().into_owned());
    let (mut manifest, mut good_rows, mut first_bad) = (Manifest::default(), 0usize, None);
    lines(path, &mut |at, text| {
        let row = text.and_then(|text| {
            let line: Line = serde_json::from_str::<L>(text)
                .map_err(|error| error.to_string())?
                .into();
            let other_split = matches!((split, &line.split), (Some(wanted), Some(found)) if wanted != found);
            let example = example(line, folder, format!("{name}:{at}"), labelled)?;
            Ok((!other_split).then_some(example))
        });
        match row {
            Ok(example) => {
                good_rows += 1;
                manifest.examples.extend(example);
            }
            Err(reason) => {
                let error = bad_line(path, at, reason);
                manifest.refuse(&error);
                first_bad.get_or_insert(error);
            }
        }
        Ok(())
    })?;
    match first_bad {
        Some(error) if good_rows == 0 => Err(error),
        _ => Ok(manifest),
    }
}

/// Reads a file of JSON objects, one a line; `take` sees each with its line's number, from 1. Empty lines are
/// passed over.
///
/// # Errors
/// [`TrainingError::Manifest`] with file and line where one is no such object or `take` refuses it;
/// [`TrainingError::Io`].
pub(crate) fn json_lines<T: DeserializeOwned>(
    path: &Path,
    take: &mut dyn FnMut(usize, T) -> Result<(), String>,
) -> Result<(), TrainingError> {
    lines(path, &mut |at, text| {
        let object = text.and_then(|text| serde_json::from_str(text).map_err(|error| error.to_string()));
        object
            .and_then(|object| take(at, object))
            .map_err(|reason| bad_line(path, at, reason))
    })
}

fn bad_line(path: &Path, line: usize, reason: String) -> TrainingError {
    TrainingError::Manifest {
        path: path.to_owned(),
        line,
        reason,
    }
}

/// Reads a file line by line: `take` sees each that is not empty, with its number from 1, trimmed and without
/// a byte order mark, or why it is no text (longer than 1 MiB, for example).
///
/// # Errors
/// [`TrainingError::Manifest`] where the file is of another kind, as for [`read_manifest`];
/// [`TrainingError::Io`]; those of `take`.
pub fn lines<F>(path: &Path, take: &mut F) -> Result<(), TrainingError>
where
    F: FnMut(usize, Result<&str, String>) -> Result<(), TrainingError>,
{
    let file = std::fs::File::open(path).map_err(TrainingError::io("read", path))?;
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    let mut is_first = true;
    for at in 1.. {
        bytes.clear();
        let read = reader
            .by_ref()
            .take(LINE_BYTES_MAX + 1)
            .read_until(b'\n', &mut bytes)
            .map_err(TrainingError::io("read", path))?;
        if read == 0 {
            break;
        }
        if at > LINES_MAX {
            return Err(bad_line(
                path,
                at,
                format!("a manifest has at most {LINES_MAX} lines"),
            ));
        }
        if read as u64 > LINE_BYTES_MAX {
            if bytes.last() != Some(&b'\n') {
                reader
                    .skip_until(b'\n')
                    .map_err(TrainingError::io("read", path))?;
            }
            is_first = false;
            take(at, Err(format!("is longer than {LINE_BYTES_MAX} bytes")))?;
            continue;
        }
        if at == 1 && (bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff")) {
            let reason = "the file is UTF-16, expected UTF-8: `iconv -f UTF-16 -t UTF-8` converts it";
            return Err(bad_line(path, at, reason.to_owned()));
        }
        let text = match std::str::from_utf8(&bytes) {
            // Files that were joined have a mark in the middle too.
            Ok(text) => text.trim_start_matches('\u{feff}').trim(),
            Err(error) => {
                is_first = false;
                take(at, Err(format!("is not UTF-8: {error}")))?;
                continue;
            }
        };
        if text.is_empty() {
            continue;
        }
        if is_first && (text.starts_with('[') || text == "{") {
            let (found, remedy) = match text.starts_with('[') {
                true => ("a JSON array", "jq -c '.[]'"),
                false => ("JSON over several lines", "jq -c ."),
            };
            let reason =
                format!("the file is {found}, expected one JSON object a line: `{remedy}` makes that of it");
            return Err(bad_line(path, at, reason));
        }
        is_first = false;
        take(at, Ok(text))?;
    }
    Ok(())
}

/// The recording of a line, checked; a relative path is relative to `folder`.
///
/// # Errors
/// A sentence that says which value is wrong.
pub(super) fn clip_of(
    audio_filepath: String,
    offset: Option<f64>,
    duration: f64,
    folder: &Path,
) -> Result<Clip, String> {
    if audio_filepath.is_empty() || audio_filepath.contains('\0') {
        return Err("`audio_filepath` is empty or holds a NUL".into());
    }
    if !(duration.is_finite() && duration > 0.0 && duration <= SECONDS_MAX) {
        return Err(format!(
            "`duration` is {duration}, expected seconds above 0 and at most {SECONDS_MAX}"
        ));
    }
    if let Some(offset) = offset.filter(|offset| !(0.0..=SECONDS_MAX).contains(offset)) {
        return Err(format!(
            "`offset` is {offset}, expected seconds from 0 to {SECONDS_MAX}"
        ));
    }
    Ok(Clip {
        path: folder.join(audio_filepath),
        offset,
        seconds: duration,
    })
}

fn example(line: Line, folder: &Path, id: String, labelled: bool) -> Result<Example, String> {
    let clip = clip_of(line.audio_filepath, line.offset, line.duration, folder)?;
    let mut targets = line.targets.unwrap_or_default();
    if line
        .task
        .as_ref()
        .is_some_and(|task| task.trim().is_empty() || task.len() > TASK_BYTES_MAX)
    {
        return Err(format!(
            "`task` is blank or longer than {TASK_BYTES_MAX} bytes: leave it out, or name one"
        ));
    }
    // Empty: as many examples as there are targets.
    let task = line.task.unwrap_or_else(|| match targets.is_empty() {
        true => TRANSCRIPT.to_owned(),
        false => String::new(),
    });
    let target = if targets.is_empty() {
        (line.target)
            .or_else(|| line.text.clone())
            .ok_or("has neither `target`, `targets` nor `text`")?
    } else if line.target.is_some() {
        return Err("has `target` and `targets`, expected one of them".into());
    } else if task.contains(TASK_SEPARATOR) || task.is_empty() {
        String::new()
    } else {
        let target = targets.remove(&task);
        targets.clear();
        target.ok_or_else(|| format!("`targets` has none for task `{task}`"))?
    };
    // Nothing said is an answer, but none of a list.
    let blank = |target: &String| target.trim().is_empty();
    if labelled && line.labels.is_some() && targets.is_empty() && blank(&target) {
        return Err("the target is empty, and none of the `labels`".into());
    }
    let instruction = line
        .instruction
        .filter(|instruction| !instruction.trim().is_empty());
    if task.is_empty() && instruction.is_some() {
        return Err(
            "has `targets` for several tasks and one `instruction`: name the `task` that it is for".into(),
        );
    }
    let mut fields = line.fields.unwrap_or_default();
    for (name, value) in [
        ("source_lang", line.source_lang),
        ("target_lang", line.target_lang),
        ("keyword", line.keyword),
    ] {
        if let Some(value) = value {
            fields.entry(name.to_owned()).or_insert(value);
        }
    }
    Ok(Example {
        id,
        seconds: clip.seconds,
        audio: AudioSource::Clip(clip),
        task,
        instruction,
        target,
        targets,
        variables: Arc::new(TemplateVariables {
            fields,
            labels: (line.labels).map(|labels| labels.into_iter().map(TaskLabel::from).collect()),
            bare_labels: false,
        }),
        domain: line.domain,
        text: line.text,
    })
}

#[cfg(test)]
mod tests;

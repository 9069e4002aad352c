//! Manifests: JSON lines in the style of NeMo, one labelled recording each.
//!
//! Untrusted: every error names file and line. Unknown keys pass, because manifests carry notes of other tools.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::TrainingError;
use super::example::{AudioSource, Example};
use crate::text::tasks::TASK_SEPARATOR;
use crate::text::{TaskLabel, TemplateVariables};

/// Longest line, bytes.
const LINE_BYTES_MAX: u64 = 1 << 20; // 1 MiB
/// Most lines of one manifest.
const LINES_MAX: usize = 20_000_000;
/// Longest list of task names, bytes.
const TASK_BYTES_MAX: usize = 256;
/// Longest declared clip, seconds.
const SECONDS_MAX: f64 = 24.0 * 3600.0;

#[derive(Default, Deserialize)]
struct Line {
    audio_filepath: String,
    duration: f64,
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
    split: Option<String>,
}

impl From<AudioLine> for Line {
    fn from(line: AudioLine) -> Self {
        Self {
            audio_filepath: line.audio_filepath,
            duration: line.duration,
            task: Some("audio".to_owned()),
            target: Some(String::new()),
            split: line.split,
            ..Self::default()
        }
    }
}

/// Reads a manifest. Relative audio paths are relative to its folder. `split` keeps only the lines that name it or name none.
///
/// The answer is `target`, or `text` where there is no target; the task is `asr` unless named. `targets` (answers by
/// task) stands for several examples, or for the tasks that `task` names. `labels` (names, or objects with `name` and
/// `description`), `fields` and the short forms `source_lang`, `target_lang` and `keyword` fill the task's prompts.
///
/// # Errors
/// [`TrainingError::Manifest`] with file and line; [`TrainingError::Io`] when the file cannot be read.
pub fn read_manifest(path: &Path, split: Option<&str>) -> Result<Vec<Example>, TrainingError> {
    read_lines::<Line>(path, split, true)
}

/// Reads a manifest of recordings without labels: only `audio_filepath`, `duration` and `split` matter, the rest is not
/// looked at. The examples have an empty target and the task `audio`.
///
/// # Errors
/// As [`read_manifest`].
pub fn read_audio_manifest(path: &Path, split: Option<&str>) -> Result<Vec<Example>, TrainingError> {
    read_lines::<AudioLine>(path, split, false)
}

fn read_lines<L: DeserializeOwned + Into<Line>>(
    path: &Path,
    split: Option<&str>,
    labelled: bool,
) -> Result<Vec<Example>, TrainingError> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let name = path
        .file_name()
        .map_or_else(|| "manifest".into(), |name| name.to_string_lossy().into_owned());
    let mut examples = Vec::new();
    json_lines(path, &mut |at, line: L| {
        let line: Line = line.into();
        let other_split = matches!((split, &line.split), (Some(wanted), Some(found)) if wanted != found);
        if !other_split {
            examples.push(example(line, folder, format!("{name}:{at}"), labelled)?);
        }
        Ok(())
    })?;
    Ok(examples)
}

/// Reads a file of JSON objects, one a line; `take` sees each with its line's number, from 1. Empty lines are passed over.
///
/// # Errors
/// [`TrainingError::Manifest`] with file and line where one is no such object or `take` refuses it; [`TrainingError::Io`].
pub(crate) fn json_lines<T: DeserializeOwned>(
    path: &Path,
    take: &mut dyn FnMut(usize, T) -> Result<(), String>,
) -> Result<(), TrainingError> {
    let file = std::fs::File::open(path).map_err(TrainingError::io("read", path))?;
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
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
        let wrong = |reason: String| TrainingError::Manifest {
            path: path.to_owned(),
            line: at,
            reason,
        };
        if read as u64 > LINE_BYTES_MAX {
            return Err(wrong(format!("is longer than {LINE_BYTES_MAX} bytes")));
        }
        if at > LINES_MAX {
            return Err(wrong(format!("a manifest has at most {LINES_MAX} lines")));
        }
        let text = std::str::from_utf8(&bytes).map_err(|error| wrong(format!("is not UTF-8: {error}")))?;
        if text.trim().is_empty() {
            continue;
        }
        let line = serde_json::from_str(text.trim()).map_err(|error| wrong(error.to_string()))?;
        take(at, line).map_err(wrong)?;
    }
    Ok(())
}

fn example(line: Line, folder: &Path, id: String, labelled: bool) -> Result<Example, String> {
    if line.audio_filepath.is_empty() || line.audio_filepath.contains('\0') {
        return Err("`audio_filepath` is empty or holds a NUL".into());
    }
    if !(line.duration.is_finite() && line.duration > 0.0 && line.duration <= SECONDS_MAX) {
        return Err(format!(
            "`duration` is {}, expected seconds above 0 and at most {SECONDS_MAX}",
            line.duration
        ));
    }
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
        true => "asr".to_owned(),
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
    let blank = |target: &String| target.trim().is_empty();
    if labelled && (targets.values().any(blank) || (targets.is_empty() && blank(&target))) {
        return Err("the target is empty".into());
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
        audio: AudioSource::File(folder.join(line.audio_filepath)),
        seconds: line.duration,
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8], split: Option<&str>) -> Result<Vec<Example>, TrainingError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.jsonl");
        std::fs::write(&path, text).unwrap();
        read_manifest(&path, split)
    }

    #[test]
    fn a_line_becomes_an_example_and_unknown_keys_pass() {
        let text = br#"{"audio_filepath": "a/b.wav", "duration": 1.5, "text": "Hello", "voice": "x"}

{"audio_filepath": "/abs/c.wav", "duration": 2, "text": "hello", "task": "st", "target": "hallo", "instruction": "To German.", "split": "test"}
"#;

        let examples = read(text, None).unwrap();

        assert_eq!(examples.len(), 2);
        assert_eq!(examples[0].id, "train.jsonl:1");
        assert_eq!(
            (examples[0].task.as_str(), examples[0].target.as_str()),
            ("asr", "Hello")
        );
        assert!(
            matches!(&examples[0].audio, AudioSource::File(path) if path.ends_with("a/b.wav") && path.is_absolute())
        );
        assert_eq!(examples[1].id, "train.jsonl:3");
        assert_eq!(
            (examples[1].task.as_str(), examples[1].target.as_str()),
            ("st", "hallo")
        );
        assert!(matches!(&examples[1].audio, AudioSource::File(path) if path == Path::new("/abs/c.wav")));
    }

    #[test]
    fn a_line_brings_what_fills_its_tasks_prompts() {
        let text = br#"{"audio_filepath": "a", "duration": 1, "task": "keyword_search", "target": "yes", "keyword": "radio", "fields": {"keyword": "kept", "x": "y"}}
{"audio_filepath": "a", "duration": 1, "task": "translation", "target": "hallo", "target_lang": "de", "labels": ["b", {"name": "c", "description": "d"}]}"#;

        let examples = read(text, None).unwrap();

        let fields = |at: usize| -> Vec<(&str, &str)> {
            let fields = &examples[at].variables.fields;
            fields
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect()
        };
        assert_eq!(fields(0), [("keyword", "kept"), ("x", "y")]);
        assert_eq!(fields(1), [("target_lang", "de")]);
        let labels = examples[1].variables.labels.as_ref().unwrap();
        assert_eq!(
            (
                labels[0].name.as_str(),
                labels[1].name.as_str(),
                labels[1].description.as_str()
            ),
            ("b", "c", "d")
        );
        assert_eq!(examples[0].variables.labels, None);
    }

    #[test]
    fn a_line_may_carry_several_targets_or_name_the_tasks_it_is_for() {
        let line = |task: &str| {
            format!(
                "{{\"audio_filepath\": \"a\", \"duration\": 1, {task}\"targets\": {{\"asr\": \"x\", \"intent\": \"i\"}}}}"
            )
        };
        let one = |task: &str| read(line(task).as_bytes(), None).unwrap().remove(0);

        let (all, joint, single) = (
            one(""),
            one(r#""task": "asr,intent", "#),
            one(r#""task": "intent", "#),
        );

        assert_eq!(
            (all.task.as_str(), all.target.as_str(), all.targets.len()),
            ("", "", 2)
        );
        assert_eq!((joint.task.as_str(), joint.targets.len()), ("asr,intent", 2));
        assert_eq!((single.target.as_str(), single.targets.len()), ("i", 0));
        for bad in [
            r#""task": "emotion", "#,
            r#""target": "x", "#,
            r#""instruction": "x", "#,
        ] {
            assert!(read(line(bad).as_bytes(), None).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_split_keeps_the_lines_that_name_it_or_none() {
        let text = br#"{"audio_filepath": "a", "duration": 1, "text": "x", "split": "train"}
{"audio_filepath": "b", "duration": 1, "text": "x", "split": "test"}
{"audio_filepath": "c", "duration": 1, "text": "x"}"#;

        assert_eq!(read(text, Some("test")).unwrap().len(), 2);
        assert_eq!(read(text, None).unwrap().len(), 3);
    }

    #[test]
    fn a_recording_without_a_label_is_enough_where_labels_do_not_matter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audio.jsonl");
        let text = "{\"audio_filepath\": \"a.wav\", \"duration\": 2, \"text\": 7, \"source\": \"x\"}\n{\"audio_filepath\": \"b.wav\", \"duration\": 0}\n";
        std::fs::write(&path, text).unwrap();

        let error = read_audio_manifest(&path, None).unwrap_err().to_string();
        assert!(
            error.contains("line 2") && error.contains("`duration`"),
            "{error}"
        );
        std::fs::write(&path, text.lines().next().unwrap()).unwrap();
        let examples = read_audio_manifest(&path, None).unwrap();

        assert_eq!(
            (examples.len(), examples[0].seconds, examples[0].target.as_str()),
            (1, 2.0, "")
        );
        assert!(read_manifest(&path, None).is_err());
    }

    #[test]
    fn an_error_names_file_and_line() {
        for (bad, part) in [
            ("{", "EOF"),
            (
                r#"{"audio_filepath": "a", "duration": -1, "text": "x"}"#,
                "`duration` is -1",
            ),
            (r#"{"audio_filepath": "a", "duration": 1}"#, "neither"),
            (r#"{"audio_filepath": "a", "duration": 1, "text": " "}"#, "empty"),
            (
                r#"{"audio_filepath": "a", "duration": 1, "text": "x", "task": " "}"#,
                "`task`",
            ),
            (
                r#"{"audio_filepath": "a", "duration": 1, "targets": {"asr": " "}}"#,
                "empty",
            ),
            (
                r#"{"audio_filepath": "a", "duration": 1, "targets": {}}"#,
                "neither",
            ),
            (r#"{"duration": 1, "text": "x"}"#, "audio_filepath"),
            (
                r#"{"audio_filepath": "", "duration": 1, "text": "x"}"#,
                "audio_filepath",
            ),
        ] {
            let text = format!("{{\"audio_filepath\": \"a\", \"duration\": 1, \"text\": \"x\"}}\n{bad}\n");

            let error = read(text.as_bytes(), None).unwrap_err().to_string();

            assert!(
                error.contains("train.jsonl`, line 2") && error.contains(part),
                "{error}"
            );
        }
    }

    #[test]
    fn a_line_of_two_megabytes_is_refused_without_being_kept() {
        let error = read(&vec![b'x'; 2 << 20], None).unwrap_err().to_string();

        assert!(error.contains("longer than"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes, Some("train"));
        }
    }
}

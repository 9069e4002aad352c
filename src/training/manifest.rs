//! Manifests: JSON lines in the style of NeMo, one labelled recording each.
//!
//! Untrusted: every error names file and line. Unknown keys pass, because manifests carry notes of other tools.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::TrainingError;
use super::example::{AudioSource, Example};
use crate::text::Filling;

/// Longest line, bytes.
const LINE_BYTES_MAX: u64 = 1 << 20; // 1 MiB
/// Most lines of one manifest.
const LINES_MAX: usize = 20_000_000;
/// Longest declared clip, seconds.
const SECONDS_MAX: f64 = 24.0 * 3600.0;
/// Most allowed answers of one line.
const LABELS_MAX: usize = 4096;

#[derive(Deserialize)]
struct Line {
    audio_filepath: String,
    duration: f64,
    text: Option<String>,
    task: Option<String>,
    instruction: Option<String>,
    target: Option<String>,
    domain: Option<String>,
    split: Option<String>,
    labels: Option<Vec<String>>,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

/// Reads a manifest. Relative audio paths are relative to its folder. `split` keeps only the lines that name it or name none.
///
/// The answer is `target`, or `text` where there is no target; the task is `asr` unless named. `labels` are the allowed
/// answers; every other key with a text (`target_lang`, `keyword` …) can fill a place of that name in a task's prompts.
///
/// # Errors
/// [`TrainingError::Manifest`] with file and line; [`TrainingError::Io`] when the file cannot be read.
pub fn read_manifest(path: &Path, split: Option<&str>) -> Result<Vec<Example>, TrainingError> {
    let file = std::fs::File::open(path).map_err(TrainingError::io("read", path))?;
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let name = path
        .file_name()
        .map_or_else(|| "manifest".into(), |name| name.to_string_lossy().into_owned());
    let mut reader = BufReader::new(file);
    let mut examples = Vec::new();
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
        let line: Line = serde_json::from_str(text.trim()).map_err(|error| wrong(error.to_string()))?;
        if let (Some(wanted), Some(found)) = (split, &line.split)
            && wanted != found
        {
            continue;
        }
        examples.push(example(line, folder, format!("{name}:{at}")).map_err(wrong)?);
    }
    Ok(examples)
}

fn example(line: Line, folder: &Path, id: String) -> Result<Example, String> {
    if line.audio_filepath.is_empty() || line.audio_filepath.contains('\0') {
        return Err("`audio_filepath` is empty or holds a NUL".into());
    }
    if !(line.duration.is_finite() && line.duration > 0.0 && line.duration <= SECONDS_MAX) {
        return Err(format!(
            "`duration` is {}, expected seconds above 0 and at most {SECONDS_MAX}",
            line.duration
        ));
    }
    let target = line
        .target
        .or_else(|| line.text.clone())
        .ok_or("has neither `target` nor `text`")?;
    if target.trim().is_empty() {
        return Err("the target is empty".into());
    }
    let task = line.task.unwrap_or_else(|| "asr".to_owned());
    if task.is_empty() || task.len() > 64 {
        return Err(format!("`task` has {} bytes, expected 1 to 64", task.len()));
    }
    let fields = line
        .others
        .into_iter()
        .filter_map(|(key, value)| match value {
            serde_json::Value::String(text) => Some((key, text)),
            _ => None,
        })
        .collect();
    let mut filling = Filling {
        fields,
        ..Filling::default()
    };
    if let Some(labels) = line.labels {
        if labels.len() > LABELS_MAX || labels.iter().any(|label| label.trim().is_empty()) {
            return Err(format!(
                "`labels` has {} entries, expected at most {LABELS_MAX}, none empty",
                labels.len()
            ));
        }
        filling = filling.with_labels(&labels);
    }
    Ok(Example {
        id,
        audio: AudioSource::File(folder.join(line.audio_filepath)),
        seconds: line.duration,
        task,
        instruction: line
            .instruction
            .filter(|instruction| !instruction.trim().is_empty()),
        target,
        domain: line.domain,
        text: line.text,
        filling: Arc::new(filling),
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
    fn a_line_gives_labels_and_values_to_its_prompts() {
        let text = br#"{"audio_filepath": "a", "duration": 1, "text": "guten tag", "target": "hello", "task": "translation",
            "target_lang": "en", "speed": 1.1, "labels": ["a", "b"]}"#;

        let examples = read(
            &text
                .iter()
                .copied()
                .filter(|byte| *byte != b'\n')
                .collect::<Vec<_>>(),
            None,
        )
        .unwrap();

        assert_eq!(examples[0].text.as_deref(), Some("guten tag"));
        assert_eq!(examples[0].filling.fields.len(), 1);
        assert_eq!(examples[0].filling.fields["target_lang"], "en");
        assert_eq!(examples[0].filling.labels.as_ref().map(Vec::len), Some(2));
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
    fn an_error_names_file_and_line() {
        for (bad, part) in [
            ("{", "EOF"),
            (
                r#"{"audio_filepath": "a", "duration": -1, "text": "x"}"#,
                "`duration` is -1",
            ),
            (r#"{"audio_filepath": "a", "duration": 1}"#, "neither"),
            (r#"{"audio_filepath": "a", "duration": 1, "text": " "}"#, "empty"),
            (r#"{"duration": 1, "text": "x"}"#, "audio_filepath"),
            (
                r#"{"audio_filepath": "a", "duration": 1, "text": "x", "labels": [" "]}"#,
                "`labels`",
            ),
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

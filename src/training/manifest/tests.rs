use super::*;
use proptest::prelude::*;

fn read_all(text: &[u8], split: Option<&str>) -> Result<Manifest, TrainingError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.jsonl");
    std::fs::write(&path, text).unwrap();
    read_manifest(&path, split)
}

/// The same, where every row is good.
fn read(text: &[u8], split: Option<&str>) -> Result<Vec<Example>, TrainingError> {
    let manifest = read_all(text, split)?;
    assert!(manifest.reasons.is_empty(), "{:?}", manifest.reasons);
    Ok(manifest.examples)
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
        matches!(&examples[0].audio, AudioSource::Clip(clip) if clip.path.ends_with("a/b.wav") && clip.path.is_absolute())
    );
    assert_eq!(examples[1].id, "train.jsonl:3");
    assert_eq!(
        (examples[1].task.as_str(), examples[1].target.as_str()),
        ("st", "hallo")
    );
    assert!(matches!(&examples[1].audio, AudioSource::Clip(clip) if clip.path == Path::new("/abs/c.wav")));
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
        assert!(read_all(line(bad).as_bytes(), None).is_err(), "{bad}");
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

    let manifest = read_audio_manifest(&path, None).unwrap();
    let reason = manifest.reasons.concat();
    assert!(
        reason.contains("line 2") && reason.contains("`duration`"),
        "{reason}"
    );
    let examples = manifest.examples;

    assert_eq!(
        (examples.len(), examples[0].seconds, examples[0].target.as_str()),
        (1, 2.0, "")
    );
    assert!(read_manifest(&path, None).is_err());
}

#[test]
fn a_bad_row_is_listed_with_file_and_line_and_does_not_stop_the_rest() {
    for (bad, part) in [
        (r#"{"audio_filepath":"#, "EOF"),
        (
            r#"{"audio_filepath": "a", "duration": -1, "text": "x"}"#,
            "`duration` is -1",
        ),
        (r#"{"audio_filepath": "a", "duration": 1}"#, "neither"),
        (
            r#"{"audio_filepath": "a", "duration": 1, "text": " ", "labels": ["x"]}"#,
            "empty",
        ),
        (
            r#"{"audio_filepath": "a", "duration": 1, "text": "x", "offset": -1}"#,
            "`offset` is -1",
        ),
        (
            r#"{"audio_filepath": "a", "duration": 1, "text": "x", "task": " "}"#,
            "`task`",
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
        let good = r#"{"audio_filepath": "a", "duration": 1, "text": "x"}"#;
        let text = format!("{good}\n{bad}\n{good}\n");

        let manifest = read_all(text.as_bytes(), None).unwrap();

        assert_eq!((manifest.examples.len(), manifest.refused), (2, 1));
        let reason = manifest.reasons.concat();
        assert!(
            reason.contains("train.jsonl`, line 2") && reason.contains(part),
            "{reason}"
        );
        let alone = read_all(bad.as_bytes(), None).unwrap_err().to_string();
        assert!(alone.contains("line 1") && alone.contains(part), "{alone}");
    }
}

#[test]
fn a_line_of_two_megabytes_is_refused_without_being_kept_and_the_next_is_read() {
    let mut text = vec![b'x'; 2 << 20];
    text.extend_from_slice(b"\n{\"audio_filepath\": \"a\", \"duration\": 1, \"text\": \"x\"}");

    let manifest = read_all(&text, None).unwrap();

    assert_eq!(
        (manifest.examples.len(), manifest.examples[0].id.as_str()),
        (1, "train.jsonl:2")
    );
    assert!(
        manifest.reasons[0].contains("longer than"),
        "{:?}",
        manifest.reasons
    );
}

#[test]
fn of_very_many_bad_rows_the_first_are_shown_and_all_are_counted() {
    let good = "{\"audio_filepath\": \"a\", \"duration\": 1, \"text\": \"x\"}\n";
    let text = format!("{good}{}", "no\n".repeat(REASONS_MAX + 7));

    let manifest = read_all(text.as_bytes(), None).unwrap();

    assert_eq!(
        (manifest.refused, manifest.reasons.len()),
        (REASONS_MAX + 7, REASONS_MAX)
    );
}

#[test]
fn byte_order_marks_pass() {
    let line = "\u{feff}{\"audio_filepath\": \"a\", \"duration\": 1, \"text\": \"x\"}\r\n";

    assert_eq!(read(line.repeat(2).as_bytes(), None).unwrap().len(), 2);
}

#[test]
fn files_of_another_kind_are_called_what_they_are() {
    let object = "{\"audio_filepath\": \"a\", \"duration\": 1, \"text\": \"x\"}";
    let wide: Vec<u8> = object.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (text, part) in [
        (
            format!("[{object}]").into_bytes(),
            "a JSON array, expected one JSON object a line",
        ),
        (format!("\u{feff}[\n{object}\n]").into_bytes(), "a JSON array"),
        (
            object.replace(',', ",\n").replace('{', "{\n").into_bytes(),
            "over several lines",
        ),
        ([b"\xff\xfe".to_vec(), wide].concat(), "UTF-16"),
    ] {
        let error = read_all(&text, None).unwrap_err().to_string();

        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_empty_text_is_the_answer_that_nothing_is_said() {
    let text = br#"{"audio_filepath": "a", "duration": 1, "text": ""}
{"audio_filepath": "a", "duration": 1, "targets": {"asr": " ", "intent": "none"}}"#;

    let examples = read(text, None).unwrap();

    assert_eq!(
        (examples[0].target.as_str(), examples[1].targets["asr"].as_str()),
        ("", " ")
    );
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes, Some("train"));
    }
}

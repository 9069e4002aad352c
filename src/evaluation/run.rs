//! The questions of a plan, answered.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::dataset::untaken;
use super::plan::Plan;
use super::variants::{ASR, KEYWORD, Source, TARGET_LANG, Table};
use crate::models::adapter::AdapterSnapshot;
use crate::text::normalize::plain;
use crate::training::evaluate::{EvalAnswer, EvalPrompt, EvaluateOptions, answer_recordings, answer_texts};
use crate::training::manifest::json_lines;
use crate::training::{Control, Example, Networks, TrainingError};

/// One answer beside its reference: a line of `rows.jsonl`. Other programs need to write `reference` and
/// `hypothesis` only.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Row {
    /// The table.
    #[serde(default, rename = "study")]
    pub table: Table,
    /// The variant that answered.
    #[serde(default, rename = "system")]
    pub variant: String,
    /// The manifest.
    #[serde(default, rename = "set")]
    pub dataset: String,
    /// Which recording: file and line.
    #[serde(default)]
    pub id: String,
    /// Its task.
    #[serde(default = "asr")]
    pub task: String,
    /// The language of the answer, where the manifest names one.
    pub language: Option<String>,
    /// Its group.
    pub domain: Option<String>,
    /// What was asked.
    #[serde(default)]
    pub instruction: String,
    /// What was wanted.
    pub reference: String,
    /// What was answered.
    pub hypothesis: String,
    /// The whole answer, where several tasks were answered in one.
    pub answer: Option<String>,
    /// The transcript on the way to the answer, of a cascade or a joint answer.
    pub transcript: Option<String>,
    /// Mean token log-probability; absent for an empty answer or a CTC reading.
    pub score: Option<f32>,
    /// How well a transcript agrees with what the CTC head reads, 0 to 1; absent without such a head.
    #[serde(default)]
    pub agreement: Option<f64>,
    /// How much speaks for a transcript, by which it is flagged; absent as `agreement`.
    #[serde(default)]
    pub support: Option<f64>,
    /// Whether the answer ended by itself.
    #[serde(default = "yes")]
    pub finished: bool,
}

fn yes() -> bool {
    true
}

fn asr() -> String {
    ASR.to_owned()
}

/// Reads answers: the `rows.jsonl` of another report, or of another program. Their variants are named after
/// the file (a `rows.jsonl` after its folder), so that they stand beside others; datasets and ids that are
/// not named are the file's.
///
/// # Errors
/// [`TrainingError::Manifest`] with file and line; [`TrainingError::Io`].
pub fn read_rows(paths: &[PathBuf]) -> Result<Vec<Row>, TrainingError> {
    let mut rows: Vec<Row> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for path in paths {
        let named_by = if path.file_name().is_some_and(|name| name == "rows.jsonl") {
            path.parent().and_then(Path::file_name)
        } else {
            path.file_stem()
        };
        let name = named_by.map_or_else(|| "rows".into(), |name| name.to_string_lossy().into_owned());
        let name = untaken(name, &|name| names.iter().any(|known| known == name));
        json_lines(path, &mut |line, mut row: Row| {
            row.variant = match row.variant.as_str() {
                "" => name.clone(),
                variant => format!("{name}: {variant}"),
            };
            if row.dataset.is_empty() {
                row.dataset.push_str("rows");
            }
            if row.id.is_empty() {
                row.id = line.to_string();
            }
            rows.push(row);
            Ok(())
        })?;
        names.push(name);
    }
    Ok(rows)
}

/// All answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answered {
    /// In the order of datasets, recordings and variants.
    pub rows: Vec<Row>,
    /// Recordings and rows without an answer, which and why. They are in no score.
    pub problems: Vec<String>,
    /// Audio listened to, seconds.
    pub audio_seconds: f64,
    /// Time taken, seconds.
    pub seconds: f64,
}

/// Answers everything that a plan asks; `on_progress` sees how many questions are answered, and of how many.
///
/// # Errors
/// [`TrainingError`] when a network fails.
pub fn run(
    plan: &Plan<'_>,
    networks: &Networks,
    adapter: &AdapterSnapshot,
    options: &EvaluateOptions,
    control: &Control,
    on_progress: &mut dyn FnMut(usize, usize),
) -> Result<Answered, TrainingError> {
    let start = std::time::Instant::now();
    let mut answers_of: Vec<Vec<Option<EvalAnswer>>> = plan
        .recordings
        .iter()
        .map(|recording| vec![None; recording.questions.len()])
        .collect();
    let total: usize = answers_of.iter().map(Vec::len).sum();
    let mut done = 0;
    let mut answered = Answered {
        problems: plan.problems.clone(),
        ..Answered::default()
    };

    // Questions about audio, and which question of its recording each is.
    let about_audio: Vec<Vec<usize>> = plan
        .recordings
        .iter()
        .map(|recording| {
            (0..recording.questions.len())
                .filter(|at| recording.questions[*at].0 == Source::Audio)
                .collect()
        })
        .collect();
    let recordings: Vec<(&Example, Vec<EvalPrompt>)> = plan
        .recordings
        .iter()
        .zip(&about_audio)
        .map(|(recording, questions)| {
            let asks = questions.iter().map(|at| recording.questions[*at].1.clone());
            (recording.example, asks.collect())
        })
        .collect();
    let problem = |recording: usize, reason: &str| format!("{}: {reason}", recordings[recording].0.id);
    // Dataset by dataset, so that a dataset's batches, and with them its answers in bf16, do not depend on
    // the other datasets.
    let mut first = 0;
    for dataset in plan
        .recordings
        .chunk_by(|one, next| one.dataset.name == next.dataset.name)
    {
        let of_dataset = &recordings[first..first + dataset.len()];
        let summary = answer_recordings(
            networks,
            adapter,
            of_dataset,
            options,
            control,
            &mut |at, prompt, answer| {
                let at = first + at;
                match answer {
                    Ok(answer) => answers_of[at][about_audio[at][prompt]] = Some(answer),
                    Err(reason) => answered.problems.push(problem(at, &reason)),
                }
                done += 1;
                on_progress(done, total);
            },
        )?;
        for (at, reason) in &summary.unreadable {
            answered.problems.push(problem(first + at, reason));
        }
        answered.audio_seconds += summary.audio_seconds;
        first += dataset.len();
    }

    let mut keys = Vec::new();
    let mut texts = Vec::new();
    for (at, recording) in plan.recordings.iter().enumerate() {
        for (number, (source, prompt)) in recording.questions.iter().enumerate() {
            let text = match source {
                Source::Audio | Source::Search => None,
                Source::Transcript => recording
                    .transcript
                    .and_then(|question| answers_of[at][question].as_ref())
                    .map(|answer| answer.text.clone()),
                Source::Reference | Source::TaughtReference => recording.example.text.clone(),
            };
            if let Some(text) = text {
                let reader = (*source == Source::TaughtReference).then_some(adapter);
                keys.push((at, number));
                texts.push((text, reader, prompt.clone()));
            }
        }
    }
    let borrowed: Vec<(&str, Option<&AdapterSnapshot>, EvalPrompt)> = texts
        .iter()
        .map(|(text, reader, prompt)| (text.as_str(), *reader, prompt.clone()))
        .collect();
    let answers = answer_texts(networks, &borrowed, options, control);
    for ((at, number), answer) in keys.into_iter().zip(answers) {
        match answer {
            Ok(answer) => answers_of[at][number] = Some(answer),
            Err(reason) => answered.problems.push(problem(at, &reason)),
        }
        done += 1;
        on_progress(done, total);
    }

    for wanted in &plan.wanted {
        let recording = &plan.recordings[wanted.recording];
        let Some(answer) = &answers_of[wanted.recording][wanted.question] else {
            continue;
        };
        let variant = &plan.variants[wanted.variant];
        let example = recording.example;
        let (source, prompt) = &recording.questions[wanted.question];
        let transcript = recording
            .transcript
            .filter(|_| *source == Source::Transcript)
            .and_then(|question| answers_of[wanted.recording][question].as_ref());
        let mut row = Row {
            table: variant.table,
            variant: variant.name.clone(),
            dataset: recording.dataset.name.clone(),
            id: example.id.clone(),
            task: example.task.clone(),
            language: language(example),
            domain: example.domain.clone(),
            instruction: prompt.instruction.clone(),
            reference: example.target.clone(),
            hypothesis: answer.text.clone(),
            answer: None,
            transcript: transcript.map(|answer| answer.text.clone()),
            score: answer.score,
            agreement: answer.agreement,
            support: answer.support,
            finished: answer.finished,
        };
        if let Some(layout) = &wanted.layout {
            let mut parts = layout.by_task(&answer.text);
            row.answer = Some(std::mem::take(&mut row.hypothesis));
            row.hypothesis = parts.remove(&example.task).unwrap_or_default();
            row.transcript = parts.remove(ASR);
        }
        if variant.source == Source::Search {
            let keyword = example.variables.fields.get(KEYWORD);
            let found = keyword.is_some_and(|keyword| says(&answer.text, keyword));
            row.hypothesis = if found { "yes" } else { "no" }.to_owned();
            row.transcript = Some(answer.text.clone());
            row.score = None;
        }
        answered.rows.push(row);
    }
    answered.seconds = start.elapsed().as_secs_f64();
    Ok(answered)
}

/// The language of a row's answer, where its manifest names one: `target_lang`; a transcript is in the
/// language that is spoken, `source_lang`, where only that is named.
fn language(example: &Example) -> Option<String> {
    let fields = &example.variables.fields;
    let spoken = || fields.get("source_lang").filter(|_| example.task == ASR);
    fields.get(TARGET_LANG).or_else(spoken).cloned()
}

/// Whether a keyword stands in a transcript, both in plain spelling: as in the paper's baseline (§3.2)
/// anywhere, so `art` is said in `party` too.
fn says(transcript: &str, keyword: &str) -> bool {
    let keyword = plain(keyword);
    !keyword.is_empty() && plain(transcript).contains(&keyword)
}

#[cfg(test)]
mod tests {
    use super::{language, says};
    use crate::training::manifest::read_manifest;

    #[test]
    fn a_transcript_is_in_the_language_that_is_spoken_and_other_answers_in_the_one_that_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = folder.path().join("m.jsonl");
        let row = |rest: &str| format!("{{\"audio_filepath\": \"a.wav\", \"duration\": 1, {rest}}}\n");
        let rows = [
            row(r#""text": "Guten Tag", "source_lang": "de""#),
            row(r#""text": "Guten Tag", "fields": {"source_lang": "de"}, "task": "asr""#),
            row(r#""text": "Guten Tag", "source_lang": "en", "target_lang": "de""#),
            row(r#""target": "hallo", "task": "translation", "source_lang": "en", "target_lang": "de""#),
            row(r#""target": "play_radio", "task": "intent", "source_lang": "de""#),
            row(r#""text": "good day""#),
        ];
        std::fs::write(&manifest, rows.concat()).unwrap();

        let examples = read_manifest(&manifest, None).unwrap().examples;

        let languages: Vec<Option<String>> = examples.iter().map(language).collect();
        let expected = [Some("de"), Some("de"), Some("de"), Some("de"), None, None];
        assert_eq!(languages, expected.map(|name| name.map(str::to_owned)));
    }

    #[test]
    fn a_keyword_is_found_as_text_whatever_its_case_and_punctuation() {
        assert!(says("At the party: New\nYork!", "new york"));
        assert!(says("At the party", "Art"));
        assert!(!says("At the party", "the art"));
        assert!(!says("anything", "?"));
    }
}

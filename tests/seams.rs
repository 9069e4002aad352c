//! Seams between windows, on recorded speech with the real networks: the transcript of joined clips, cut into
//! windows, is that of the clips one by one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use serde_json::Value;
use speechverse::audio::config::{AudioConfig, SpeechConfig};
use speechverse::audio::{AudioLimits, decode, samples_of};
use speechverse::inference::speech_llm::SpeechLlm;
use speechverse::inference::{
    DecodeOptions, Engine, EngineConfig, GenerateRequest, Input, SpeechWindows, VoiceDetector,
};
use speechverse::models::adapter::AdapterSnapshot;
use speechverse::models::encoders::whisper::Window;
use speechverse::models::open_encoder;
use speechverse::nn::accel::Placement;
use speechverse::registry::Registry;
use speechverse::scoring::errors::word_errors;
use speechverse::testing::real_model;
use speechverse::text::{WindowText, join_windows};

const TEST: &str = "joined_clips_are_transcribed_in_windows_as_one_by_one";

/// Clips of one reader with what is said in them, 70 words.
fn clips() -> Vec<(Vec<f32>, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/speech");
    let rows = std::fs::read_to_string(folder.join("transcripts.jsonl")).unwrap();
    let rows = rows
        .lines()
        .map(|row| serde_json::from_str::<Value>(row).unwrap());
    rows.filter(|row| row["voice"] == "librivox")
        .map(|row| {
            let bytes = std::fs::read(folder.join(row["audio_filepath"].as_str().unwrap())).unwrap();
            let sound = decode(&bytes, None, &AudioLimits::default()).unwrap();
            (sound.samples, row["text"].as_str().unwrap().to_owned())
        })
        .collect()
}

struct Transcriber {
    engine: Engine,
    adapter: AdapterSnapshot,
    detector: VoiceDetector,
}

impl Transcriber {
    /// Texts of these sounds, side by side.
    fn texts(&mut self, sounds: Vec<Vec<f32>>) -> Vec<String> {
        let requests = sounds.into_iter().map(|samples| GenerateRequest {
            input: Input::Audio {
                samples,
                adapter: self.adapter.clone(),
            },
            instruction: "Transcribe the speech.".to_owned(),
            grammar: None,
            tokens_max: None,
            task: Some("asr".to_owned()),
            spoken: None,
            joint: None,
        });
        let answers = self.engine.generate(requests.collect());
        answers.into_iter().map(|answer| answer.unwrap().text).collect()
    }

    /// The text of a sound in windows as a stream cuts them, and how many these are.
    fn in_windows(&mut self, samples: &[f32], speech: &SpeechConfig, by_utterance: bool) -> (String, usize) {
        let mut stream = SpeechWindows::new(&self.detector, &speech.windows(by_utterance));
        let mut windows = Vec::new();
        for chunk in samples.chunks(1_600) {
            windows.extend(stream.push(&self.detector, chunk).unwrap());
        }
        windows.extend(stream.finish());
        let overlaps: Vec<bool> = windows.iter().map(|found| found.window.overlaps).collect();
        let texts = self.texts(windows.into_iter().map(|found| found.samples).collect());
        let windows = texts.iter().zip(&overlaps).map(|(text, overlaps)| WindowText {
            text,
            overlaps: *overlaps,
        });
        (join_windows(windows), overlaps.len())
    }
}

/// The most words of `reference` in a row that are deletions in an alignment with `hypothesis` of the fewest
/// edits.
fn longest_deletion(reference: &str, hypothesis: &str) -> usize {
    let [reference, hypothesis] =
        [reference, hypothesis].map(|words| words.split_whitespace().collect::<Vec<_>>());
    let mut edits = vec![vec![0usize; hypothesis.len() + 1]; reference.len() + 1];
    for row in (0..=reference.len()).rev() {
        for column in (0..=hypothesis.len()).rev() {
            edits[row][column] = match (reference.get(row), hypothesis.get(column)) {
                (None, _) => hypothesis.len() - column,
                (_, None) => reference.len() - row,
                (Some(one), Some(other)) => (edits[row + 1][column + 1] + usize::from(one != other))
                    .min(edits[row + 1][column] + 1)
                    .min(edits[row][column + 1] + 1),
            };
        }
    }
    let (mut row, mut column, mut run, mut longest) = (0, 0, 0, 0);
    while row < reference.len() {
        let here = edits[row][column];
        let paired = column < hypothesis.len()
            && here == edits[row + 1][column + 1] + usize::from(reference[row] != hypothesis[column]);
        if paired {
            (row, column, run) = (row + 1, column + 1, 0);
        } else if here == edits[row + 1][column] + 1 {
            (row, run) = (row + 1, run + 1);
            longest = longest.max(run);
        } else {
            (column, run) = (column + 1, 0);
        }
    }
    longest
}

#[test]
fn deletions_in_a_row_are_counted() {
    assert_eq!(longest_deletion("a b c d e f", "a e g"), 3);
    assert_eq!(longest_deletion("a b c", "a b c"), 0);
    assert_eq!(longest_deletion("a b c", "x a y b z c"), 0);
}

#[test]
fn joined_clips_are_transcribed_in_windows_as_one_by_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let models = ["whisper-base", "smollm2-135m-instruct", "silero-vad"].map(|name| real_model(TEST, name));
    let [Some(encoder), Some(llm), Some(detector)] = models else {
        return;
    };
    let placement = Placement::reference();
    let config = EngineConfig::offline(4, DecodeOptions::greedy(96));
    let config = EngineConfig {
        options: DecodeOptions {
            ctc_weight: 0.38,
            ..config.options
        },
        ..config
    };
    let speech = SpeechConfig {
        detector,
        ..SpeechConfig::default()
    };
    let versions = Registry::open(root.join("configs/adapters")).unwrap();
    let mut transcriber = Transcriber {
        engine: Engine::new(
            open_encoder(&encoder, Window::Clip, &placement).unwrap(),
            SpeechLlm::open(&llm, Some(""), &placement).unwrap(),
            &config,
        ),
        adapter: versions.load("demo-0012").unwrap().adapter,
        detector: VoiceDetector::open(&speech, &AudioConfig::default()).unwrap(),
    };
    let clips = clips();
    let said: Vec<&str> = clips.iter().map(|(_, text)| text.as_str()).collect();
    let said = said.join(" ");
    let alone = transcriber.texts(clips.iter().map(|(samples, _)| samples.clone()).collect());
    let alone = word_errors(&said, &alone.join(" "));
    let pause = vec![0.0; samples_of(0.5)];
    let joined = |pause: &[f32]| -> Vec<f32> {
        let with_pause = clips.iter().flat_map(|(samples, _)| samples.iter().chain(pause));
        with_pause.copied().collect()
    };
    // Windows so short that sentences are cut in their pauses, and where there is none.
    let short = SpeechConfig {
        window_seconds_max: 6.0,
        window_overlap_seconds: 1.5,
        ..speech.clone()
    };

    for (samples, speech, by_utterance, least) in [
        (joined(&pause), &speech, false, 2),
        (joined(&pause), &speech, true, 5),
        (joined(&[]), &short, false, 5),
    ] {
        let (text, windows) = transcriber.in_windows(&samples, speech, by_utterance);
        let found = word_errors(&said, &text);
        let what = format!("{windows} windows: {found:?}, one by one {alone:?}: {text}");
        assert!(windows >= least, "{what}");
        // A bad seam deletes or inserts several words in a row; single errors are the recogniser's.
        assert!(longest_deletion(&said, &text) <= 2, "words are lost: {what}");
        assert!(longest_deletion(&text, &said) <= 2, "words are doubled: {what}");
        // Other cuts change how single words are understood.
        assert!(found.errors() <= alone.errors() + 5, "{what}");
    }
}

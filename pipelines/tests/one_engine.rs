//! The same recordings through all ways to an answer: serving over Kafka, `ask`, `eval`, and the promotion
//! gate. All four answer through one inference engine, so all four give the same answers, recordings that are
//! answered window by window included.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use speechverse::config::Settings;
use speechverse::kafka::{Read, ReadFrom, Reader, Sink};
use speechverse::registry::Registry;
use speechverse::testing::{TinyModels, publish_first_version};
use speechverse::training::config::TrainingConfig;
use speechverse::training::prepare::prepare;
use speechverse::training::{AudioSource, Control, Example, Networks};
use speechverse::wire::OutgoingRecord;
use speechverse::wire::answer::Answer;
use speechverse_actors::trainer::judge;
use speechverse_pipelines::serving::Pipeline;

#[path = "support/command.rs"]
mod command;

use command::output_of;

/// Longest that a test waits for an answer.
const WAIT_MAX: Duration = Duration::from_secs(90);
/// Lengths of the recordings, seconds. A window holds 15.
const SECONDS: [f64; 6] = [0.6, 35.0, 1.3, 4.0, 2.0, 61.0];
const INSTRUCTION: &str = "Write down what you hear.";

/// An answer as all four ways tell it.
#[derive(Debug)]
struct Found {
    text: String,
    /// Mean log-probability; the gate's and `eval`'s is absent for an empty answer.
    score: Option<f64>,
}

struct Place {
    dir: tempfile::TempDir,
    settings: Settings,
}

impl Place {
    fn new(decoding: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let models = TinyModels::write(dir.path(), 11);
        let path = |name: &str| dir.path().join(name);
        publish_first_version(&path("adapters"), &models.encoder, &models.llm);
        let text = format!(
            "[service]\ntasks_dir = {tasks:?}\n\
             [model]\nencoder = {encoder:?}\nllm = {llm:?}\nprecision = \"f32\"\ndevice = \"cpu\"\nthreads = 1\n\
             [kafka]\nembedded = true\npartitions = 1\n\
             [broker]\naddress = \"127.0.0.1:0\"\n\
             [http]\nlisten = \"127.0.0.1:0\"\n\
             [audio]\nwhole_seconds_max = 90.0\n[speech]\ndetector = \"\"\n\
             [encoder]\nbatch_windows_max = 4\n\
             [decoder]\nslots = 6\npositions_max = 1300\ntokens_max = 24\n\
             [decoding]\n{decoding}\n\
             [store]\ndir = {store:?}\n\
             [trainer]\nruns_dir = {runs:?}\n\
             [adapters]\ndir = {adapters:?}\n",
            tasks = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/tasks"),
            encoder = models.encoder,
            llm = models.llm,
            store = path("samples"),
            runs = path("runs"),
            adapters = path("adapters"),
        );
        std::fs::write(path("tiny.toml"), text).unwrap();
        for at in 0..SECONDS.len() {
            std::fs::write(path(&format!("{at}.wav")), wav(at)).unwrap();
        }
        let settings = Settings::load(&path("tiny.toml")).unwrap();
        Self { dir, settings }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_speechverse"));
        command
            .args([name, "--config"])
            .arg(self.path("tiny.toml"))
            .current_dir(self.dir.path())
            .env("OMP_WAIT_POLICY", "PASSIVE");
        command
    }

    async fn served(&self) -> Vec<Found> {
        let pipeline = Pipeline::start(self.settings.clone()).await.unwrap();
        let kafka = &pipeline.settings().kafka;
        let sink = Sink::new(kafka).unwrap();
        let mut results = Reader::open(kafka, &kafka.topics.results, ReadFrom::Beginning, WAIT_MAX)
            .await
            .unwrap();
        for at in 0..SECONDS.len() {
            let header = |name: &str, value: String| (name.to_owned(), Some(Bytes::from(value)));
            let record = OutgoingRecord {
                topic: Arc::from(kafka.topics.requests.as_str()),
                key: Some(Bytes::from_static(b"key")),
                value: Some(Bytes::from(wav(at))),
                headers: vec![
                    header("ce_id", at.to_string()),
                    header("ce_task", "asr".to_owned()),
                    header("ce_instruction", INSTRUCTION.to_owned()),
                ],
            };
            sink.send(record).await.unwrap();
        }
        let deadline = Instant::now() + WAIT_MAX;
        let mut found = BTreeMap::new();
        while found.len() < SECONDS.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            match results.next(left).await.unwrap() {
                Read::CaughtUp => {}
                Read::TimedOut => panic!("only {found:?} within {WAIT_MAX:?}"),
                Read::Record(record) => {
                    let answer: Answer = serde_json::from_slice(&record.value.unwrap()).unwrap();
                    let at: usize = answer.request_id.parse().unwrap();
                    let (text, score) = (answer.text, Some(answer.score));
                    found.insert(at, Found { text, score });
                }
            }
        }
        drop((sink, results));
        pipeline.stop().await.unwrap();
        found.into_values().collect()
    }

    fn asked(&self) -> Vec<Found> {
        let mut command = self.command("ask");
        command.args(["--json", "--task", "asr", "--instruction", INSTRUCTION]);
        let lines = output_of(command.args((0..SECONDS.len()).map(|at| format!("{at}.wav"))));
        let found = lines.lines().map(|line| {
            let answer: Answer = serde_json::from_str(line).unwrap();
            Found {
                text: answer.text,
                score: Some(answer.score),
            }
        });
        found.collect()
    }

    fn evaluated(&self) -> Vec<Found> {
        let rows: Vec<String> = (SECONDS.iter().enumerate())
            .map(|(at, seconds)| {
                format!(
                    "{{\"audio_filepath\": \"{at}.wav\", \"duration\": {seconds}, \"text\": \"a\", \
                     \"instruction\": \"{INSTRUCTION}\"}}"
                )
            })
            .collect();
        std::fs::write(self.path("rows.jsonl"), rows.join("\n")).unwrap();
        let mut command = self.command("eval");
        output_of(command.args(["--manifest", "rows.jsonl", "--report", "report"]));
        let rows = std::fs::read_to_string(self.path("report/rows.jsonl")).unwrap();
        let found = rows.lines().map(|row| {
            let row: Value = serde_json::from_str(row).unwrap();
            Found {
                text: row["hypothesis"].as_str().unwrap().to_owned(),
                score: row["score"].as_f64(),
            }
        });
        found.collect()
    }

    fn judged(&self) -> Vec<Found> {
        let networks = Networks::load(&self.settings.model).unwrap();
        let examples = (0..SECONDS.len()).map(|at| Example {
            id: at.to_string(),
            audio: AudioSource::File(self.path(&format!("{at}.wav"))),
            seconds: SECONDS[at],
            task: "asr".to_owned(),
            instruction: Some(INSTRUCTION.to_owned()),
            target: "a".to_owned(),
            targets: BTreeMap::new(),
            variables: Arc::default(),
            domain: None,
            text: None,
        });
        let mut config = TrainingConfig::default();
        config.data.seconds_max = 90.0;
        let samples = prepare(examples.collect(), &config, &networks.speech_llm)
            .unwrap()
            .samples;
        let adapter = Registry::open(&self.settings.adapters.dir)
            .unwrap()
            .load_current()
            .unwrap()
            .adapter;
        let found = judge(
            &networks,
            &adapter,
            &samples,
            &self.settings.engine(),
            &Control::new(),
        )
        .unwrap();
        assert!(found.unreadable.is_empty(), "{:?}", found.unreadable);
        let rows = found.rows.into_iter().map(|row| Found {
            text: row.hypothesis,
            score: row.score.map(f64::from),
        });
        rows.collect()
    }
}

/// A tone that rises and falls, another for each number: mono, 16 kHz, 16 bits.
fn wav(at: usize) -> Vec<u8> {
    let samples = (SECONDS[at] * 16_000.0) as usize;
    let bytes = 2 * samples as u32;
    let mut file = b"RIFF".to_vec();
    file.extend((36 + bytes).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    file.extend(16_000u32.to_le_bytes());
    file.extend(32_000u32.to_le_bytes());
    file.extend(b"\x02\0\x10\0data");
    file.extend(bytes.to_le_bytes());
    for sample in 0..samples {
        let slow = (sample as f64 * 3e-4).sin();
        let phase = sample as f64 * (0.05 + 0.03 * at as f64) + 40.0 * slow;
        file.extend(((phase.sin() * 9_000.0) as i16).to_le_bytes());
    }
    file
}

async fn all_four_agree(decoding: &str) {
    let place = Place::new(decoding);

    let served = place.served().await;
    let others = [
        ("ask", place.asked()),
        ("eval", place.evaluated()),
        ("gate", place.judged()),
    ];

    assert_eq!(served.len(), SECONDS.len());
    for (name, found) in &others {
        assert_eq!(found.len(), served.len(), "{name}");
        for (at, (found, served)) in found.iter().zip(&served).enumerate() {
            assert_eq!(found.text, served.text, "{name}, recording {at}");
            if let (Some(found), Some(served)) = (found.score, served.score) {
                assert!(
                    (found - served).abs() < 1e-3,
                    "{name}, recording {at}: {found} for {served}"
                );
            }
        }
    }
    let texts: std::collections::BTreeSet<&str> = served.iter().map(|found| found.text.as_str()).collect();
    assert!(
        texts.len() > 1,
        "the recordings must be answered differently for this test to tell"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serving_ask_eval_and_the_gate_give_the_same_greedy_answers() {
    all_four_agree("strategy = \"greedy\"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serving_ask_eval_and_the_gate_give_the_same_answers_by_beam_search() {
    all_four_agree("strategy = \"beam\"\nbeams = 3").await;
}

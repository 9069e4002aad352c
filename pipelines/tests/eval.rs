//! `speechverse eval` as a process, on tiny random networks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

use serde_json::Value;
use speechverse::testing::{TinyModels, publish_first_version};

/// A folder with tiny models, an adapter, settings and six recordings.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let folder = place.0.path();
        let models = TinyModels::write(folder, 11);
        publish_first_version(&folder.join("adapters"), &models.encoder, &models.llm);
        std::fs::write(
            folder.join("tiny.toml"),
            format!(
                "[service]\ntasks_dir = {:?}\n[model]\nencoder = {:?}\nllm = {:?}\nprecision = \"f32\"\ndevice = \"cpu\"\nthreads = 1\n[adapters]\ndir = {:?}\n",
                concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/tasks"),
                models.encoder,
                models.llm,
                folder.join("adapters"),
            ),
        )
        .unwrap();
        for at in 0..6 {
            std::fs::write(folder.join(format!("{at}.wav")), wav(at)).unwrap();
        }
        place
    }

    fn manifest(&self, name: &str, rows: &[&str]) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, rows.join("\n")).unwrap();
        path.display().to_string()
    }

    fn eval(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_speechverse"))
            .args(["eval", "--max-tokens", "64", "--config"])
            .arg(self.0.path().join("tiny.toml"))
            .args(args)
            .current_dir(self.0.path())
            .env("OMP_WAIT_POLICY", "PASSIVE")
            .output()
            .expect("the program was built for this test")
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_str(&self.text(file)).unwrap()
    }

    fn text(&self, file: &str) -> String {
        std::fs::read_to_string(self.0.path().join(file)).unwrap()
    }
}

/// Half a second and a little more of a tone: mono, 16 kHz, 16 bits.
fn wav(at: usize) -> Vec<u8> {
    let samples = 8_000 + 640 * at;
    let bytes = 2 * samples as u32;
    let mut file = b"RIFF".to_vec();
    file.extend((36 + bytes).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    file.extend(16_000u32.to_le_bytes());
    file.extend(32_000u32.to_le_bytes());
    file.extend(b"\x02\0\x10\0data");
    file.extend(bytes.to_le_bytes());
    for sample in 0..samples {
        let phase = sample as f64 * (0.05 + 0.02 * at as f64);
        file.extend(((phase.sin() * 9_000.0) as i16).to_le_bytes());
    }
    file
}

fn words(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

const ROWS: [&str; 6] = [
    r#"{"audio_filepath": "0.wav", "duration": 0.5, "text": "turn on the radio", "domain": "home"}"#,
    r#"{"audio_filepath": "1.wav", "duration": 0.5, "text": "good morning", "domain": "open"}"#,
    r#"{"audio_filepath": "2.wav", "duration": 0.6, "text": "turn it on", "task": "intent", "target": "play_radio"}"#,
    r#"{"audio_filepath": "3.wav", "duration": 0.6, "text": "i am glad", "task": "emotion", "target": "b", "labels": ["a", "b"]}"#,
    r#"{"audio_filepath": "4.wav", "duration": 0.7, "text": "hello", "task": "translation", "target": "hallo", "target_lang": "de"}"#,
    r#"{"audio_filepath": "5.wav", "duration": 0.7, "targets": {"asr": "call bob now", "slots": "person = bob; time = now;", "keywords": "bob"}}"#,
];

#[test]
fn every_task_is_scored_by_its_metric_and_every_table_is_reported() {
    let place = Place::new();
    let manifest = place.manifest("test.jsonl", &ROWS);

    let output = place.eval(&[
        "--manifest",
        &manifest,
        "--cascade",
        "--prompts",
        "all",
        "--grid",
        "--joint",
        "--report",
        "new/out",
    ]);

    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    let report = place.json("new/out/report.json");
    assert_eq!(report["schema"], "speechverse.eval/1");
    assert_eq!(report["facts"]["models"]["adapter"], "tiny-0001");
    assert_eq!(report["facts"]["data"][0]["recordings"], 8);
    assert_eq!(report["facts"]["data"][0]["sha256"].as_str().unwrap().len(), 64);
    let scores = report["scores"].as_array().unwrap();
    let main = |study: &str, task: &str| -> Vec<(&str, &str)> {
        scores
            .iter()
            .filter(|score| score["main"] == true && score["study"] == study && score["task"] == task)
            .map(|score| {
                (
                    score["system"].as_str().unwrap(),
                    score["metric"].as_str().unwrap(),
                )
            })
            .collect()
    };
    let llm = "speech LLM";
    let baselines = [
        "cascade: transcript → LLM",
        "oracle: reference text → LLM",
        "oracle: reference text → LLM with LoRA",
    ];
    assert_eq!(main("systems", "asr"), [(llm, "wer")]);
    for (task, metric) in [
        ("intent", "accuracy"),
        ("emotion", "uar"),
        ("translation de", "bleu"),
        ("slots", "slu_f1"),
        ("keywords", "keyword_f1"),
    ] {
        let is_class = ["accuracy", "uar"].contains(&metric);
        let variants = [llm].into_iter().chain(baselines);
        let expected: Vec<(&str, &str)> = variants
            .chain(is_class.then_some("majority class"))
            .map(|variant| (variant, metric))
            .collect();
        assert_eq!(main("systems", task), expected);
        assert_eq!(main("prompts", task).len(), 3, "{task}");
        assert_eq!(main("joint", task).len(), 2, "{task}");
    }
    assert_eq!(main("constraint", "intent").len(), 4);
    assert!(main("constraint", "translation de").is_empty());
    assert!(
        report["metrics"]["bleu"]["signature"]
            .as_str()
            .unwrap()
            .contains("tok:13a")
    );

    let rows: Vec<Value> = place
        .text("new/out/rows.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |task: &str, system: &str| -> &Value {
        rows.iter()
            .find(|row| row["task"] == task && row["system"] == system)
            .unwrap()
    };
    let held = "descriptions yes, constrained yes";
    let chosen = of("emotion", held);
    assert!(
        ["a", "b"].contains(&chosen["hypothesis"].as_str().unwrap()),
        "{chosen}"
    );
    let row = of("asr", llm);
    assert_eq!(row["reference"], "turn on the radio");
    assert!(of("intent", baselines[0])["transcript"].is_string());
    assert!(
        of("intent", "with")["instruction"]
            .as_str()
            .unwrap()
            .contains("=== Task: Intent ===")
    );
    assert!(of("intent", "with")["answer"].is_string());

    let text = place.text("new/out/report.md");
    assert!(
        text.contains("## Joint decoding") && text.contains("intent, test: accuracy"),
        "{text}"
    );
    for picture in [
        "systems-asr.svg",
        "constraint-intent.svg",
        "joint-slots.svg",
        "systems-translation-de.svg",
    ] {
        assert!(
            place.text(&format!("new/out/{picture}")).contains("<svg"),
            "{picture}"
        );
    }
    assert!(words(&output).contains("left out: Joint decoding / with"));
}

#[test]
fn an_evaluation_can_be_repeated_and_read_by_machines() {
    let place = Place::new();
    let manifest = place.manifest("test.jsonl", &ROWS);
    let scores = || {
        let output = place.eval(&["--manifest", &manifest, "--json", "--limit", "3"]);
        assert_eq!(output.status.code(), Some(0), "{}", words(&output));
        String::from_utf8(output.stdout).unwrap()
    };

    let (first, second) = (scores(), scores());

    assert_eq!(first, second);
    let lines: Vec<Value> = first
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    // Three answers; three metrics of transcripts; two of intents, ours and of the majority class.
    assert_eq!(lines.len(), 3 + 3 + 2 * 2);
    assert_eq!(lines[0]["id"], "test.jsonl:1");
}

#[test]
fn what_cannot_be_read_or_asked_is_listed_and_the_rest_is_scored() {
    let place = Place::new();
    std::fs::write(place.0.path().join("noise.wav"), "this is no sound").unwrap();
    let manifest = place.manifest(
        "test.jsonl",
        &[
            ROWS[0],
            r#"{"audio_filepath": "noise.wav", "duration": 1, "text": "x"}"#,
            r#"{"audio_filepath": "gone.wav", "duration": 1, "text": "x"}"#,
            r#"{"audio_filepath": "1.wav", "duration": 0.5, "text": "x", "task": "unheard_of"}"#,
            r#"{"audio_filepath": "1.wav", "duration": 0.5, "target": "yes", "task": "keyword_search"}"#,
        ],
    );

    let output = place.eval(&["--manifest", &manifest, "--report", "out"]);

    assert_eq!(output.status.code(), Some(1));
    let said = words(&output);
    for part in [
        "test.jsonl:2",
        "noise.wav",
        "gone.wav",
        "unheard_of",
        "keyword",
        "4 recordings",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let report = place.json("out/report.json");
    assert_eq!(report["problems"].as_array().unwrap().len(), 4);
    assert_eq!(report["scores"][0]["utterances"], 1);
}

#[test]
fn pieces_of_files_and_rows_without_speech_are_evaluated_and_bad_rows_are_listed() {
    let place = Place::new();
    let manifest = place.manifest(
        "test.jsonl",
        &[
            "\u{feff}{\"audio_filepath\": \"0.wav\", \"offset\": 0.1, \"duration\": 0.3, \"text\": \"turn\"}",
            r#"{"audio_filepath": "1.wav", "duration": 0.54, "text": ""}"#,
            r#"{"audio_filepath": "2.wav", "duration": 5, "text": "x"}"#,
            r#"{"audio_filepath": "2.wav", "duration": 0.58, "text": "", "task": "intent"}"#,
            "no row",
        ],
    );

    let output = place.eval(&["--manifest", &manifest, "--report", "out"]);

    assert_eq!(output.status.code(), Some(1));
    let said = words(&output);
    for part in [
        "test.jsonl:3",
        "has 0.58 s of sound, the manifest's `duration` is 5",
        "test.jsonl:4: the target is empty",
        "test.jsonl`, line 5",
        "3 recordings",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let report = place.json("out/report.json");
    assert_eq!(report["scores"][0]["utterances"], 2);
    let seconds = report["audio_seconds"].as_f64().unwrap();
    assert!((seconds - 0.84).abs() < 0.01, "{seconds}");
    let rows = place.text("out/rows.jsonl");
    assert!(rows.contains("\"reference\":\"\""), "{rows}");
}

#[test]
fn a_manifest_that_is_none_is_exit_code_one_with_file_and_line() {
    let place = Place::new();
    let broken = place.manifest("broken.jsonl", &[ROWS[0], "{\"audio_filepath\": 3}"]);
    let empty = place.manifest("empty.jsonl", &[""]);

    for (manifest, parts) in [
        (broken, ["broken.jsonl", "line 2"]),
        (empty, ["no rows", "nothing was evaluated"]),
    ] {
        let output = place.eval(&["--manifest", &manifest]);

        assert_eq!(output.status.code(), Some(1));
        assert!(
            parts.iter().all(|part| words(&output).contains(part)),
            "{}",
            words(&output)
        );
    }
    for wrong in [
        &["--manifest", "x", "--by-ctc", "--cascade"][..],
        &["--report", "out"],
    ] {
        assert_eq!(place.eval(wrong).status.code(), Some(2));
    }
}

#[test]
fn keyword_search_is_compared_with_text_search_in_the_transcript() {
    let place = Place::new();
    let row = r#"{"audio_filepath": "0.wav", "duration": 0.5, "task": "keyword_search", "target": "yes", "keyword": "E"}"#;
    let manifest = place.manifest("test.jsonl", &[row]);

    let output = place.eval(&["--manifest", &manifest, "--cascade", "--report", "out"]);

    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    let rows = place.text("out/rows.jsonl");
    let rows: Vec<Value> = rows
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let system = |name: &str| rows.iter().find(|row| row["system"] == name).unwrap();
    let (searched, read) = (
        system("search: keyword in transcript"),
        system("cascade: transcript → LLM"),
    );
    let transcript = searched["transcript"].as_str().unwrap();
    assert_eq!(searched["transcript"], read["transcript"]);
    let said = transcript.to_lowercase().contains('e');
    assert_eq!(searched["hypothesis"], if said { "yes" } else { "no" });
}

#[test]
fn answers_of_other_programs_are_scored_without_networks() {
    let place = Place::new();
    let row = r#"{"task": "translation", "set": "s", "reference": "der hund läuft im park", "hypothesis": "der hund läuft im park"}"#;
    let theirs = place.manifest("theirs.jsonl", &[row, row]);
    std::fs::remove_dir_all(place.0.path().join("adapters")).unwrap();

    let output = place.eval(&["--rows", &theirs, "--report", "out"]);

    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    let score = &place.json("out/report.json")["scores"][0];
    assert_eq!(
        (score["system"].as_str(), score["metric"].as_str()),
        (Some("theirs"), Some("bleu"))
    );
    assert!((score["score"].as_f64().unwrap() - 100.0).abs() < 1e-9);
}

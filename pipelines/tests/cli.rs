//! The program as a process: exit codes and messages.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

fn speechverse(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_speechverse"))
        .args(args)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .env("OMP_WAIT_POLICY", "PASSIVE")
        .output()
        .expect("the program was built for this test")
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_command_has_help() {
    let commands = [
        "serve",
        "ask",
        "publish",
        "results",
        "label",
        "retrain",
        "dead-letters",
        "train",
        "eval",
        "adapters",
        "samples",
        "tasks",
        "data",
        "models",
        "bench",
        "probe",
        "asyncapi",
        "check-config",
        "doctor",
    ];

    for command in commands {
        let output = speechverse(&[command, "--help"]);

        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("Usage"),
            "{command}"
        );
    }
}

#[test]
fn a_wrong_command_line_is_exit_code_two() {
    for args in [&["dance"][..], &["ask"], &["serve"], &["label", "--target", "x"]] {
        assert_eq!(speechverse(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_misspelt_setting_is_exit_code_two_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wrong.toml");
    std::fs::write(&file, "[decoder]\nslotz = 3\n").unwrap();

    let output = speechverse(&["check-config", file.to_str().unwrap()]);

    assert_eq!(output.status.code(), Some(2));
    assert!(words(&output).contains("slotz"), "{}", words(&output));
    assert!(words(&output).contains("wrong.toml"), "{}", words(&output));
}

#[test]
fn the_shipped_settings_are_valid_and_shown() {
    for file in ["configs/demo.toml", "configs/serve.toml"] {
        let output = speechverse(&["check-config", file]);

        assert_eq!(output.status.code(), Some(0), "{}", words(&output));
        assert!(String::from_utf8_lossy(&output.stdout).contains("[kafka.topics]"));
    }
}

/// `check-config` of the demo's settings with one variable set.
fn check_with(name: &str, text: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_speechverse"))
        .args(["check-config", "configs/demo.toml"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .env("OMP_WAIT_POLICY", "PASSIVE")
        .env(name, text)
        .output()
        .expect("the program was built for this test")
}

#[test]
fn variables_are_taken_as_text_where_the_setting_is_text_and_errors_name_them() {
    for (name, text, shown) in [
        ("SPEECHVERSE__KAFKA__GROUP_ID", "12345", "group_id = \"12345\""),
        ("SPEECHVERSE__MODEL__SYSTEM", "true", "system = \"true\""),
        (
            "SPEECHVERSE__HTTP__LISTEN",
            "localhost:9464",
            "listen = \"localhost:9464\"",
        ),
        (
            "SPEECHVERSE__BROKER__ADDRESS",
            "localhost:9092",
            "address = \"127.0.0.1:9092\"",
        ),
        (
            "SPEECHVERSE__KAFKA__CLIENT__SOCKET_TIMEOUT_MS",
            "5000",
            "\"socket.timeout.ms\" = \"5000\"",
        ),
    ] {
        let output = check_with(name, text);

        assert_eq!(output.status.code(), Some(0), "{name}: {}", words(&output));
        assert!(String::from_utf8_lossy(&output.stdout).contains(shown), "{name}");
    }
    for (name, text) in [
        ("SPEECHVERSE__KAFKA__PARTITIONS", "many"),
        ("SPEECHVERSE__KAFKA__PARTITIONS", "0"),
        ("SPEECHVERSE__KAFKA__PARTITION", "1"),
        ("SPEECHVERSE__HTTP__LISTEN", "9464"),
    ] {
        let output = check_with(name, text);

        assert_eq!(output.status.code(), Some(2), "{name}: {}", words(&output));
        assert!(words(&output).contains(name), "{}", words(&output));
    }
}

#[test]
fn a_property_that_librdkafka_does_not_take_is_exit_code_two() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("settings.toml");
    for (line, property) in [
        ("\"securty.protocol\" = \"ssl\"", "securty.protocol"),
        ("security.protocol = \"tls\"", "security.protocol"),
        ("\"socket.timeout.ms\" = \"soon\"", "socket.timeout.ms"),
    ] {
        std::fs::write(&file, format!("[kafka.client]\n{line}\n")).unwrap();

        let output = speechverse(&["check-config", file.to_str().unwrap()]);

        assert_eq!(output.status.code(), Some(2), "{line}: {}", words(&output));
        assert!(words(&output).contains(property), "{}", words(&output));
    }
    std::fs::write(
        &file,
        "[kafka.client]\n\"socket.timeout.ms\" = 5000\n\"socket.keepalive.enable\" = true\n",
    )
    .unwrap();
    let output = speechverse(&["check-config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
}

#[test]
fn a_file_that_is_missing_is_exit_code_one_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.safetensors");

    let output = speechverse(&[
        "probe",
        "encoder",
        "--model",
        "no-such-model",
        "--audio",
        "no-such-file.wav",
        "--out",
        out.to_str().unwrap(),
    ]);

    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output).contains("no-such-file.wav"), "{}", words(&output));
}

#[test]
fn a_broker_that_is_not_there_is_exit_code_one_with_its_address() {
    let output = speechverse(&["results", "--bootstrap", "127.0.0.1:1"]);

    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output).contains("127.0.0.1:1"), "{}", words(&output));
}

#[test]
fn tasks_are_listed_and_shown_with_their_prompts_filled() {
    let text = |args: &[&str]| {
        let output = speechverse(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", words(&output));
        String::from_utf8(output.stdout).unwrap()
    };

    let list = text(&["tasks", "list"]);
    let json = text(&["tasks", "list", "--json"]);
    let romanian = text(&[
        "tasks",
        "show",
        "translation",
        "--field",
        "target_lang=ro",
        "--prompts",
    ]);
    let joint = text(&[
        "tasks",
        "show",
        "asr,intent",
        "--label",
        "play_radio",
        "--label",
        "other",
    ]);

    assert_eq!(list.lines().count(), 2 + json.lines().count());
    for line in json.lines() {
        assert!(line.starts_with("{\"name\":"), "{line}");
    }
    assert!(romanian.contains("Translate the speech into Romanian."));
    assert!(romanian.contains("translation, held out, 2") && !romanian.contains('{'));
    assert!(joint.contains("- play_radio: wants to listen to a radio station"));
    assert!(joint.contains("ASR: … | Intent: <play_radio/other> |"));
}

#[test]
fn a_task_that_is_not_there_or_lacks_a_value_is_exit_code_two_and_named() {
    for (args, word) in [
        (&["tasks", "show", "juggle"][..], "juggle"),
        (&["ask", "--task", "asr,juggle", "x.wav"], "juggle"),
        (&["ask", "--task", "translation", "x.wav"], "target_language"),
        (
            &["ask", "--task", "keyword_search", "--field", "radio", "x.wav"],
            "NAME=VALUE",
        ),
        (
            &["ask", "--task", "asr,keywords", "--label", "a", "x.wav"],
            "labels are given",
        ),
    ] {
        let output = speechverse(args);

        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", words(&output));
        assert!(words(&output).contains(word), "{args:?}: {}", words(&output));
    }
}

#[test]
fn data_is_imported_and_a_leak_is_exit_code_one_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let (pack, out) = (dir.path().join("pack"), dir.path().join("out"));
    std::fs::create_dir_all(pack.join("readers")).unwrap();
    std::fs::write(
        pack.join("README.md"),
        "| folder | from | licence |\n|---|---|---|\n| readers | a/b | CC BY 4.0 |\n",
    )
    .unwrap();
    let row = |name: &str, voice: &str, text: &str, split: &str| {
        format!(
            "{{\"audio_filepath\": \"{name}\", \"duration\": 1, \"task\": \"asr\", \"speaker\": \"{voice}\", \
             \"text\": \"{text}\", \"split\": \"{split}\"}}\n"
        )
    };
    let rows = row("a.ogg", "ann", "one two", "train") + &row("b.ogg", "bob", "Three.", "test");
    std::fs::write(pack.join("readers/manifest.jsonl"), rows).unwrap();
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();

    let imported = speechverse(&["data", "import", &text(&pack), "--out", &text(&out)]);
    let (train, test) = (
        text(&out.join("asr_train.jsonl")),
        text(&out.join("asr_test.jsonl")),
    );
    let clean = speechverse(&["data", "check", &train, &test]);
    let leak = dir.path().join("leak.jsonl");
    std::fs::write(&leak, row("c.ogg", "cid", "three", "train")).unwrap();
    let leaking = speechverse(&["data", "check", &train, &test, &text(&leak)]);

    assert_eq!(imported.status.code(), Some(0), "{}", words(&imported));
    assert_eq!(clean.status.code(), Some(0), "{}", words(&clean));
    assert_eq!(leaking.status.code(), Some(1));
    let said = String::from_utf8_lossy(&leaking.stdout).into_owned();
    assert!(
        said.contains("sentence `three`") && said.contains("leak.jsonl:1"),
        "{said}"
    );
}

#[test]
fn a_bench_starts_a_service_and_reports_what_it_did_under_each_load() {
    use speechverse::testing::{TinyModels, publish_first_version};
    let dir = tempfile::tempdir().unwrap();
    let models = TinyModels::write(dir.path(), 7);
    let seed = dir.path().join("versions");
    publish_first_version(&seed, &models.encoder, &models.llm);
    let version = std::fs::read_dir(&seed).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        path.is_dir().then_some(path)
    });
    let config = dir.path().join("serve.toml");
    let settings = format!(
        "[model]\nencoder = {:?}\nllm = {:?}\nprecision = \"f32\"\nthreads = 1\n\
         [adapters]\nprefix = \"tiny\"\nseed = {:?}\n\
         [audio]\nseconds_max = 20.0\n[decoder]\ntokens_max = 4\npositions_max = 512\n",
        models.encoder,
        models.llm,
        version.unwrap()
    );
    std::fs::write(&config, settings).unwrap();
    let args = [
        "bench",
        "serve",
        "--config",
        config.to_str().unwrap(),
        "--references",
        "tests/fixtures/speech/transcripts.jsonl",
        "--unloaded",
        "3",
        "--saturation",
        "6",
        "--loads",
        "0.5",
        "--seconds",
        "2",
        "--json",
    ];

    let output = speechverse(&args);

    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    let rows: Vec<serde_json::Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let loads: Vec<&str> = rows.iter().map(|row| row["load"].as_str().unwrap()).collect();
    assert_eq!(loads, ["one at a time", "all at once", "50 %"]);
    assert_eq!(
        (&rows[0]["requests"], &rows[1]["requests"]),
        (&3.into(), &6.into())
    );
    for row in &rows[..2] {
        let figure = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name} of {row}"));
        assert!(
            figure("answered") > 0.0 && figure("p50") <= figure("p99"),
            "{row}"
        );
        assert!(figure("network_seconds") > 0.0 && figure("busy") > 0.0, "{row}");
        assert!(
            figure("tokens_rate") > 0.0 && figure("encoder_rows") >= 1.0,
            "{row}"
        );
        assert!(figure("wer") > 0.0 && figure("resident_bytes") > 1e6, "{row}");
    }
    assert!(rows[0]["overhead_seconds"].as_f64().unwrap() > 0.0, "{}", rows[0]);
}

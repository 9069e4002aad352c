//! What commands do when standard output, or standard error, takes nothing more.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::File;
use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use support::{LIMIT, speechverse};

/// Commands that need neither models nor a broker, and that print.
const COMMANDS: [&[&str]; 5] = [
    &["tasks", "list"],
    &["tasks", "show", "asr"],
    &["check-config", "configs/demo.toml"],
    &["--help"],
    &["--version"],
];

fn full_disk() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// A pipe whose reader has gone.
fn unread_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn ended(mut child: Child) -> Option<i32> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if begin.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("still there after {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_full_disk_under_standard_output_is_exit_code_one_with_a_message() {
    for args in COMMANDS {
        let output = speechverse(args)
            .stdout(full_disk())
            .stderr(Stdio::piped())
            .output()
            .unwrap();

        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {words}");
        assert!(
            words.contains("standard output") && words.contains("space"),
            "{args:?}: {words}"
        );
    }
}

#[test]
fn a_reader_that_has_gone_is_no_failure_and_not_worth_a_word() {
    for args in COMMANDS {
        let output = speechverse(args)
            .stdout(unread_pipe())
            .stderr(Stdio::piped())
            .output()
            .unwrap();

        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(
            output.stderr.is_empty(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn a_full_disk_under_standard_error_changes_no_exit_code() {
    for (args, code) in [(&["check-config", "no-such.toml"][..], 2), (&["dance"], 2)] {
        let child = speechverse(args)
            .stdout(Stdio::null())
            .stderr(full_disk())
            .spawn()
            .unwrap();

        assert_eq!(ended(child), Some(code), "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_of_results_ends_when_its_reader_does_though_no_answer_comes() {
    let (broker, config) = support::broker().await;
    let mut follower = speechverse(&["results", "--follow", "--bootstrap", &config.bootstrap])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(follower.try_wait().unwrap().is_none(), "it follows");

    drop(follower.stdout.take());

    let mut errors = follower.stderr.take().unwrap();
    assert_eq!(
        tokio::task::spawn_blocking(move || ended(follower))
            .await
            .unwrap(),
        Some(0)
    );
    let mut words = String::new();
    errors.read_to_string(&mut words).unwrap();
    assert_eq!(words, "");
    broker.shutdown().await;
}

//! Processes that are killed while they read.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::*;

/// What [`process_that_is_killed`] gets: bootstrap, group, topic.
const ORDERS: &str = "SPEECHVERSE_TEST_KILLED_READER";
/// How a finished record is printed.
const FINISHED: &str = "finished ";
/// How soon the group notices a killed member.
const SESSION_MS: u64 = 6_000; // the least that Apache Kafka allows by default
/// Records that a process may finish before it is killed; another number each time.
const BEFORE_KILL: [usize; 3] = [40, 130, 75];

/// A process that is killed when this is dropped.
pub(super) struct Mortal(pub(super) Child);

impl Mortal {
    /// Sends a signal, named without `SIG`.
    pub(super) fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &id])
            .status()
            .unwrap();
        assert!(sent.success());
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processes with work that finishes out of order are killed in the middle of it, one after another: what
/// they had not finished is read by the next, and after a clean end nothing is read again.
pub(super) async fn crashes(bench: &Bench) {
    let finished = Arc::new(Finished::default());
    let killing = async {
        for count in BEFORE_KILL {
            let (config, finished) = (bench.config.clone(), Arc::clone(&finished));
            let killed = tokio::task::spawn_blocking(move || read_and_be_killed(&config, count, &finished));
            tokio::time::timeout(STEP, killed)
                .await
                .expect("records in time")
                .unwrap();
        }
    };
    let ((), published) = bench.publish_during(killing).await;
    assert!(
        finished.distinct() < published as usize,
        "the last of them had nothing left to lose"
    );

    let last = bench.start();
    while let Ok(record) =
        tokio::time::timeout(Duration::from_millis(SESSION_MS + 6_000), last.record()).await
    {
        finished.work_on(record, &last.tracker);
        if finished.distinct() == published as usize {
            break;
        }
    }
    // Repeats of what was finished and not committed may still come.
    while let Ok(record) = tokio::time::timeout(Duration::from_secs(2), last.record()).await {
        finished.work_on(record, &last.tracker);
    }
    assert_eq!(last.source.close(STEP).await.unwrap(), Closed { unfinished: 0 });
    assert_eq!(finished.numbers(), (0..published).collect::<Vec<u64>>());
    let after = bench.start();
    assert!(
        after.is_silent(Duration::from_secs(4)).await,
        "something was read again after a clean end"
    );
    after.source.close(STEP).await.unwrap();
}

/// Starts a process that reads, and kills it when it has finished `count` records.
fn read_and_be_killed(config: &KafkaConfig, count: usize, finished: &Finished) {
    let orders = [&config.bootstrap, &config.group_id, &config.topics.requests].map(String::as_str);
    let mut reader = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "crashes::process_that_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .env(ORDERS, orders.join("|"))
        .stdout(Stdio::piped())
        .spawn()
        .map(Mortal)
        .unwrap();
    let output = BufReader::new(reader.0.stdout.take().unwrap());
    let mut printed = output
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| line.strip_prefix(FINISHED)?.parse().ok());
    for number in printed.by_ref().take(count) {
        finished.note(number);
    }
    reader.0.kill().unwrap();
    // What it finished until then may be committed too.
    printed.for_each(|number| finished.note(number));
}

/// The process that [`crashes`] starts and kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started, and killed, by the check of crashes"]
async fn process_that_is_killed() {
    let orders = std::env::var(ORDERS).expect("the check that starts this process says what to do");
    let [bootstrap, group, topic]: [&str; 3] = orders.split('|').collect::<Vec<_>>().try_into().unwrap();
    let mut config = super::config(bootstrap.to_owned());
    config.group_id = group.to_owned();
    config.topics.requests = topic.to_owned();
    config.session_timeout_ms = SESSION_MS;
    let running = Bench {
        _broker: None,
        config,
    }
    .start();
    loop {
        let record = running.record().await;
        let tracker = running.tracker.clone();
        let delay = number(&record) * 37 % 61;
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            // As an answer: acknowledged first, and its offset released after that.
            writeln!(std::io::stdout(), "{FINISHED}{}", number(&record)).unwrap();
            tracker.release(&record.record_offset);
        });
    }
}

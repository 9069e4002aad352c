//! Whole `speechverse serve` processes on tiny random models, with everything going wrong that can: kills,
//! rebalances, a process that stands still, a broker out of reach or restarted, a full disk, panics, jumps
//! of the clock, and bytes that are no sound. What came of each request is read with a Kafka client alone and
//! judged by [`checker`].
//!
//! Each run draws its schedule from `SPEECHVERSE_FAULTS_SEED` (1). `SPEECHVERSE_FAULTS_REQUESTS` sets how
//! many requests there are (600), `SPEECHVERSE_FAULTS_OUTAGE_S` how long the broker is out of reach (8), and
//! `SPEECHVERSE_FAULTS_REPORT` names a file that takes a line of figures for each run. `make faults` runs
//! the long form.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use speechverse::kafka::config::Delivery;
use speechverse::testing::skip;
use speechverse::util::random::SplitMix;

mod broker;
mod checker;
#[path = "../support/command.rs"]
mod command;
mod load;
mod process;
mod schedule;
mod watch;

use broker::Broker;
use checker::{Rules, Verdict, judge, judge_labels};
use load::{Asker, GiveUp};
use process::Site;
use schedule::{Act, Outcome, Run};
use watch::{Outputs, Watch};

/// Requests for each fault of a long run.
const REQUESTS_PER_ACT: usize = 250;

/// One run at a time: each has several processes.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn exactly_once_on_the_embedded_broker() {
    run(Broker::embedded, Delivery::ExactlyOnce);
}

#[test]
fn at_least_once_on_the_embedded_broker() {
    run(Broker::embedded, Delivery::AtLeastOnce);
}

#[test]
fn exactly_once_on_apache_kafka() {
    on_apache("exactly_once_on_apache_kafka", Delivery::ExactlyOnce);
}

#[test]
fn at_least_once_on_apache_kafka() {
    on_apache("at_least_once_on_apache_kafka", Delivery::AtLeastOnce);
}

fn on_apache(name: &str, delivery: Delivery) {
    // Jars that are fetched, and Java's memory, are not for every run of the tests that is made by hand.
    if std::env::var_os("SPEECHVERSE_FAULTS_APACHE").is_none() {
        return skip(
            name,
            "SPEECHVERSE_FAULTS_APACHE is not set; `make test` and `make faults` set it",
        );
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match Broker::apache() {
        Ok(broker) => run_alone(broker, delivery),
        Err(reason) => skip(name, &reason),
    }
}

fn run(broker: fn() -> Broker, delivery: Delivery) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    run_alone(broker(), delivery);
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is `{text}`, which is no number")),
        Err(_) => default,
    }
}

fn run_alone(mut broker: Broker, delivery: Delivery) {
    let (seed, requests) = (
        number("SPEECHVERSE_FAULTS_SEED", 1),
        number("SPEECHVERSE_FAULTS_REQUESTS", 600) as usize,
    );
    let outage = Duration::from_secs(number("SPEECHVERSE_FAULTS_OUTAGE_S", 8));
    let acts = (requests / REQUESTS_PER_ACT).max(Act::ALL.len());
    let began = Instant::now();
    let site = Site::new(&broker.bootstrap, delivery);
    let topics = site.settings.kafka.topics.clone();
    let outputs = Outputs {
        bootstrap: broker.bootstrap.clone(),
        results: topics.results.clone(),
        dead_letters: topics.dead_letters.clone(),
    };
    site.make_topics();
    let (watch, asker) = (
        Watch::start(&outputs),
        Asker::new(&broker.bootstrap, &topics.requests, &topics.labels),
    );
    let random = SplitMix::new(&[seed, 0]);
    let name = broker.name;

    let outcome = std::thread::scope(|scope| {
        let (asker, watch, random_of_asker) = (&asker, &watch, SplitMix::new(&[seed, 1]));
        scope.spawn(move || asker.ask(requests, watch, random_of_asker));
        let _give_up = GiveUp(asker); // also where the run fails, so that the asker ends
        let mut run = Run::start(&site, &mut broker, asker, watch, &outputs, random, outage);
        run.play(requests, acts);
        run.stop()
    });

    let seen = outputs.read_all();
    let rules = Rules {
        exactly_once: delivery == Delivery::ExactlyOnce,
        panics: outcome.panics,
        panics_perhaps: outcome.panics_perhaps,
    };
    let others = asker.others.lock().unwrap();
    let mut verdict = judge(&asker.asked, &seen, &others, &watch, &outcome.calm, rules);
    judge_labels(&mut verdict, &others, &seen, &site.stored());
    let line = report(
        name,
        delivery,
        seed,
        requests,
        began.elapsed(),
        &verdict,
        &outcome,
    );
    tell(&line);
    write_report(&line);
    outcome
        .ended
        .iter()
        .for_each(|ended| tell(&format!("ended by itself: {ended}")));
    assert!(
        verdict.faults.is_empty(),
        "seed {seed}, {:?}:\n{}\nended by themselves: {:#?}",
        outcome.acts,
        verdict.faults.join("\n"),
        outcome.ended
    );
}

/// A row of the table in `docs/FAULTS.md`.
fn report(
    broker: &str,
    delivery: Delivery,
    seed: u64,
    requests: usize,
    took: Duration,
    verdict: &Verdict,
    outcome: &Outcome,
) -> String {
    let mut kinds = String::new();
    for act in Act::ALL {
        let count = outcome.acts.iter().filter(|other| **other == act).count();
        let _ = write!(kinds, "{act:?} {count} ");
    }
    format!(
        "| {broker} | {delivery:?} | {seed} | {requests} | {} | {} | {} | {} | {} | {} | {} | {:.1} | {:.1} | {:.0} | {} |",
        kinds.trim_end(),
        verdict.answers,
        verdict.dead_letters,
        verdict.lost_to_panics,
        verdict.repeats,
        verdict.stored,
        outcome.ended.len(),
        verdict.longest.as_secs_f64(),
        verdict.longest_after_fault.as_secs_f64(),
        took.as_secs_f64(),
        verdict.faults.len(),
    )
}

#[expect(clippy::print_stderr, reason = "the figures are for the person who runs it")]
fn tell(line: &str) {
    eprintln!("{line}");
}

fn write_report(line: &str) {
    if let Some(path) = std::env::var_os("SPEECHVERSE_FAULTS_REPORT") {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        writeln!(file, "{line}").unwrap();
    }
}

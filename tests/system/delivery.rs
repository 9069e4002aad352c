//! Exactly once through the whole pipeline, and what it costs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use speechverse::kafka::config::Delivery;
use speechverse_pipelines::serving::Pipeline;

use crate::harness::{Client, Sandbox, header, tone};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_once_every_request_has_one_answer_or_dead_letter_across_a_restart() {
    let mut sandbox = Sandbox::new().await;
    sandbox.settings.kafka.delivery = Delivery::ExactlyOnce;
    let sound = tone(0.5, 440.0);
    let request = async |client: &Client, number: usize| {
        let headers = vec![header("ce_partials", "true")];
        client
            .request(&format!("r{number}"), "one key", sound.clone(), headers)
            .await;
    };

    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;
    for number in 0..6 {
        request(&client, number).await;
    }
    client
        .request("bad", "one key", Bytes::from_static(b"no sound"), Vec::new())
        .await;
    let first = final_answers(&mut client, 6).await;
    let (id, reason, _) = client.dead_letter().await;
    pipeline.stop().await.unwrap();
    request(&client, 6).await;
    let pipeline = sandbox.start().await;
    let second = final_answers(&mut client, 1).await;

    let ids = |range: std::ops::Range<usize>| {
        range
            .map(|number| format!("r{number}"))
            .collect::<BTreeSet<String>>()
    };
    assert_eq!((first, second), (ids(0..6), ids(6..7)));
    assert_eq!((id.as_str(), reason.as_str()), ("bad", "not_audio"));
    assert!(
        client.is_quiet(Duration::from_secs(1)).await,
        "something was answered twice"
    );
    sandbox.end(pipeline).await;
}

/// Request ids of the next final answers; a repeated one fails the test.
async fn final_answers(client: &mut Client, count: usize) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    while ids.len() < count {
        let (answer, _) = client.answer().await;
        if answer.kind.as_str() == "final" {
            assert!(
                ids.insert(answer.request_id.clone()),
                "{} was answered twice",
                answer.request_id
            );
        }
    }
    ids
}

/// One of the two pipelines that are compared, with who asks it.
struct Side {
    name: &'static str,
    sandbox: Sandbox,
    client: Client,
    pipeline: Pipeline,
    asked: usize,
}

impl Side {
    async fn start(name: &'static str, delivery: Delivery) -> Self {
        let mut sandbox = Sandbox::new().await;
        let kafka = &mut sandbox.settings.kafka;
        kafka.delivery = delivery;
        kafka.commit_interval_ms = 100;
        let pipeline = sandbox.start().await;
        let client = sandbox.client().await;
        Self {
            name,
            sandbox,
            client,
            pipeline,
            asked: 0,
        }
    }

    /// Requests a second, from the first publication to the last answer that a reader sees.
    async fn round(&mut self, count: usize, sound: &Bytes) -> f64 {
        let began = Instant::now();
        for _ in 0..count {
            self.asked += 1;
            let (id, key) = (
                format!("{}-{}", self.name, self.asked),
                format!("key {}", self.asked),
            );
            self.client.request(&id, &key, sound.clone(), Vec::new()).await;
        }
        self.client.answers(count).await;
        count as f64 / began.elapsed().as_secs_f64()
    }
}

/// Both deliveries in turn, on embedded brokers, or on the Apache Kafka that `SPEECHVERSE_SYSTEM_KAFKA`
/// names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stderr, reason = "its figures are what it is run for")]
#[ignore = "a measurement of minutes, to be read by a person"]
async fn what_exactly_once_costs() {
    const ROUNDS: usize = 9;
    const REQUESTS: usize = 2_000;
    let sound = tone(0.1, 440.0); // a round fits into the topic of the embedded broker
    let mut at_least_once = Side::start("least", Delivery::AtLeastOnce).await;
    let mut exactly_once = Side::start("exactly", Delivery::ExactlyOnce).await;
    let mut ratios = Vec::new();
    for round in 0..=ROUNDS {
        let least = at_least_once.round(REQUESTS, &sound).await;
        let exactly = exactly_once.round(REQUESTS, &sound).await;
        eprintln!(
            "round {round}: at least once {least:.1}/s, exactly once {exactly:.1}/s, ratio {:.3}",
            exactly / least
        );
        if round > 0 {
            ratios.push(exactly / least); // the first one warms up
        }
    }
    ratios.sort_by(f64::total_cmp);
    eprintln!(
        "ratio: median {:.3}, from {:.3} to {:.3}, {ROUNDS} rounds of {REQUESTS} requests",
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1]
    );
    for side in [at_least_once, exactly_once] {
        side.sandbox.end(side.pipeline).await;
    }
}

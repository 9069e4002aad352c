//! Memory over many requests.

use speechverse::telemetry::metrics::resident_bytes;

use crate::harness::{Sandbox, header, tone};

/// Requests of the test, half of them to warm up; `SPEECHVERSE_SOAK_REQUESTS` sets another number (20,000 is
/// what the issue asks for, and takes some minutes).
fn requests() -> usize {
    std::env::var("SPEECHVERSE_SOAK_REQUESTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(6_000)
}

#[expect(clippy::print_stderr, reason = "the figures are for the person who runs it")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resident_memory_stays_flat_over_many_requests() {
    let mut sandbox = Sandbox::new().await;
    sandbox.settings.decoder.tokens_max = 4;
    let pipeline = sandbox.start().await;
    let mut client = sandbox.client().await;
    let clips: Vec<_> = (0..16)
        .map(|number| tone(0.3 + 0.05 * f64::from(number), 200.0))
        .collect();
    let total = requests();
    // Allocators and what oneDNN keeps for each shape fill up over some thousand requests.
    let warm_up = total / 2;
    let mut after_warm_up = 0;

    let mut number = 0;
    while number < total {
        let batch = 50.min(total - number);
        for _ in 0..batch {
            let headers = vec![header("ce_train", "no")];
            client
                .request(
                    &format!("r{number}"),
                    &format!("{number}"),
                    clips[number % 16].clone(),
                    headers,
                )
                .await;
            number += 1;
        }
        client.answers(batch).await;
        if after_warm_up == 0 && number >= warm_up {
            after_warm_up = resident_bytes().unwrap_or(0);
        }
    }

    let Some(end) = resident_bytes() else {
        speechverse::testing::skip(
            "resident_memory_stays_flat_over_many_requests",
            "this system has no /proc",
        );
        return;
    };
    let growth = end as f64 / after_warm_up as f64 - 1.0;
    eprintln!(
        "{total} requests: {after_warm_up} bytes after {warm_up}, {end} at the end, {:.2} % more",
        growth * 100.0
    );
    assert!(growth < 0.05, "resident memory grew by {:.1} %", growth * 100.0);
    sandbox.end(pipeline).await;
}

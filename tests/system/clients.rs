//! What clients of others see.

use std::path::Path;
use std::process::Command;

use speechverse::testing::skip;

use crate::harness::Sandbox;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_golden_messages_have_the_outcomes_that_a_client_in_python_expects() {
    const TEST: &str = "the_golden_messages_have_the_outcomes_that_a_client_in_python_expects";
    let python = std::env::var("SPEECHVERSE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let probe = Command::new(&python)
        .args(["-c", "import confluent_kafka"])
        .output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return skip(
            TEST,
            "no confluent-kafka for the Python that SPEECHVERSE_PYTHON names (python3)",
        );
    }
    let sandbox = Sandbox::new().await;
    let pipeline = sandbox.start().await;
    let kafka = &sandbox.settings.kafka;
    let prefix = kafka.topics.requests.strip_suffix("requests").unwrap();
    let mut client = Command::new(python);
    client
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka/golden.py"))
        .args([&kafka.bootstrap, prefix]);

    let output = tokio::task::spawn_blocking(move || client.output())
        .await
        .unwrap()
        .unwrap();

    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("request_not_audio: a dead letter"), "{printed}");
    sandbox.end(pipeline).await;
}

//! What the tests of commands share.

use std::process::{Command, Stdio};
use std::time::Duration;

use embedded_broker::{BrokerConfig, EmbeddedBroker};
use speechverse::kafka::admin::ensure_topics;
use speechverse::kafka::config::KafkaConfig;

/// Longest that a broker or a command may take for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// `speechverse` with arguments, at the root of the repository.
pub(crate) fn speechverse(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_speechverse"));
    command
        .args(args)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .env("OMP_WAIT_POLICY", "PASSIVE")
        .stdin(Stdio::null());
    command
}

/// A broker with the topics, and how to reach it.
pub(crate) async fn broker() -> (EmbeddedBroker, KafkaConfig) {
    let broker = EmbeddedBroker::start(BrokerConfig {
        address: "127.0.0.1:0".parse().unwrap(),
        ..BrokerConfig::default()
    })
    .await
    .unwrap();
    let config = KafkaConfig {
        bootstrap: broker.bootstrap(),
        ..KafkaConfig::default()
    };
    ensure_topics(&config, LIMIT).await.unwrap();
    (broker, config)
}

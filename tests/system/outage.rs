//! The broker goes away and comes back.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use embedded_broker::{BrokerConfig, EmbeddedBroker};
use speechverse::kafka::admin::ensure_topics;

use crate::harness::{Sandbox, WAIT_MAX, tone};

/// Status and body of a page.
fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(address).unwrap();
    write!(
        connection,
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    (status.parse().unwrap(), body.to_owned())
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < WAIT_MAX, "{what}: not within {WAIT_MAX:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_falls_without_the_broker_and_comes_back_by_itself() {
    let mut sandbox = Sandbox::new().await;
    let start_broker = async |address: SocketAddr| {
        let config = BrokerConfig {
            address,
            message_bytes_max: 4 << 20,
            ..BrokerConfig::default()
        };
        EmbeddedBroker::start(config).await.unwrap()
    };
    let broker = start_broker("127.0.0.1:0".parse().unwrap()).await;
    let kafka = &mut sandbox.settings.kafka;
    kafka.bootstrap = broker.bootstrap();
    kafka.unreachable_ms_max = 1_000;
    kafka.topics.requests = "outage.requests".into(); // the metrics are those of every test in this process
    let address = kafka.bootstrap.parse().unwrap();
    let pipeline = sandbox.start().await;
    let http = pipeline.addresses().http;
    let ready = || get(http, "/v2/health/ready");
    let lines = |beginning: &str| {
        let metrics = get(http, "/metrics").1;
        let lines = metrics.lines().filter(|line| line.starts_with(beginning));
        lines.map(str::to_owned).collect::<Vec<String>>()
    };
    let lag = || lines("speechverse_kafka_consumer_lag_records{topic=\"outage.requests\"");
    let connected = || lines("speechverse_kafka_connected{client=\"consumer of outage.requests\"}");
    assert_eq!(ready(), (200, "ready\n".to_owned()), "when `start` returns");
    let mut client = sandbox.client().await;
    client.request("before", "k", tone(0.5, 200.0), Vec::new()).await;
    client.answer().await;
    until("a lag", || !lag().is_empty()).await;
    assert!(connected()[0].ends_with(" 1"), "{:?}", connected());

    broker.shutdown().await;
    until("not ready", || ready().0 == 503).await;

    assert!(ready().1.contains("kafka: the "), "{}", ready().1);
    until("no lag", || lag().is_empty()).await;
    assert!(connected()[0].ends_with(" 0"), "{:?}", connected());
    let broker = start_broker(address).await;
    ensure_topics(&sandbox.settings.kafka, WAIT_MAX).await.unwrap();
    until("ready again", || ready().0 == 200).await;
    let mut client = sandbox.client().await;
    client.request("after", "k", tone(0.5, 300.0), Vec::new()).await;
    assert_eq!(client.answer().await.0.request_id, "after");
    sandbox.end(pipeline).await;
    broker.shutdown().await;
}

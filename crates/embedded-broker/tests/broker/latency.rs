//! How long a record takes: acknowledged to its producer, and in the hands of a consumer.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::support::{self, STEP, Target, say, unique};

/// Half of what a broker without wake-up would take with the client's default of 500 ms: it would poll.
const ARRIVAL_MAX: Duration = Duration::from_millis(125);
const RECORD_BYTES: usize = 3_000;
const RECORDS_PER_SECOND: u32 = 50;

/// Writes at a steady pace and measures. `SPEECHVERSE_LATENCY_RECORDS` asks for more than a test needs.
pub(crate) async fn arrival(target: Target) -> Result<()> {
    let records = std::env::var("SPEECHVERSE_LATENCY_RECORDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(100);
    let topic = target.topic("latency", 1).await?;
    let consumer: StreamConsumer = target
        .consumer(&unique("group"))
        .set("fetch.wait.max.ms", "500")
        .create()?;
    let mut from_the_start = TopicPartitionList::new();
    from_the_start.add_partition_offset(&topic, 0, Offset::Beginning)?;
    consumer.assign(&from_the_start)?;
    let producer: FutureProducer = target
        .client()
        .set("linger.ms", "0")
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .create()?;
    // Both ends have found their way before the clock starts.
    support::write(&producer, &topic, 0, "warm-up").await?;
    tokio::time::timeout(STEP, consumer.recv())
        .await
        .context("the warm-up record in time")??;
    let start = Instant::now();

    let reader = tokio::spawn(async move { read(&consumer, records, start).await });
    let acknowledged = write(&producer, &topic, records, start).await?;
    let arrived = reader.await??;

    let (acknowledged, arrived) = (Spread::of(acknowledged), Spread::of(arrived));
    say(&format!(
        "latency on {:?}, {records} records of {RECORD_BYTES} bytes at {RECORDS_PER_SECOND}/s: acknowledged \
         {acknowledged}, arrived {arrived}",
        target.kind
    ));
    ensure!(
        arrived.p50 < ARRIVAL_MAX,
        "half of the records took longer than {ARRIVAL_MAX:?}: {arrived}"
    );
    Ok(())
}

async fn read(consumer: &StreamConsumer, records: usize, start: Instant) -> Result<Vec<Duration>> {
    let mut took = Vec::with_capacity(records);
    while took.len() < records {
        let message = tokio::time::timeout(STEP, consumer.recv())
            .await
            .context("a record in time")??;
        let sent = message
            .payload()
            .and_then(|value| value.first_chunk())
            .context("the time it was sent")?;
        took.push(start.elapsed() - Duration::from_micros(u64::from_le_bytes(*sent)));
    }
    Ok(took)
}

async fn write(
    producer: &FutureProducer,
    topic: &str,
    records: usize,
    start: Instant,
) -> Result<Vec<Duration>> {
    let took = Arc::new(Mutex::new(Vec::with_capacity(records)));
    let mut pace = tokio::time::interval(Duration::from_secs(1) / RECORDS_PER_SECOND);
    let mut deliveries = Vec::new();
    for _ in 0..records {
        pace.tick().await;
        let sent = start.elapsed();
        let mut value = vec![0x5a; RECORD_BYTES];
        value[..8].copy_from_slice(&(sent.as_micros() as u64).to_le_bytes());
        let record = FutureRecord::<[u8], [u8]>::to(topic).partition(0).payload(&value);
        let delivery = producer.send_result(record).map_err(|(error, _)| error)?;
        let took = took.clone();
        deliveries.push(tokio::spawn(async move {
            delivery.await?.map_err(|(error, _)| error)?;
            took.lock()
                .expect("nobody panics holding it")
                .push(start.elapsed() - sent);
            anyhow::Ok(())
        }));
    }
    for delivery in deliveries {
        delivery.await??;
    }
    let took = took.lock().expect("nobody panics holding it").clone();
    Ok(took)
}

struct Spread {
    p50: Duration,
    p99: Duration,
    max: Duration,
}

impl Spread {
    fn of(mut all: Vec<Duration>) -> Self {
        all.sort();
        let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
        Self {
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        write!(
            f,
            "p50 {:.2} p99 {:.2} max {:.2} ms",
            ms(self.p50),
            ms(self.p99),
            ms(self.max)
        )
    }
}

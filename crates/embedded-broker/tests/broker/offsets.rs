//! How far a group has come: committed, found by time, reported.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, StreamConsumer};
use rdkafka::producer::FutureRecord;
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::support::{STEP, Target, blocking, now_ms, unique, write};

pub(crate) async fn commit_with_metadata(target: Target) -> Result<()> {
    const METADATA: &str = "low=30;done=33,35";
    let topic = target.topic("commit", 2).await?;
    let producer = target.producer()?;
    for number in 0..40 {
        write(&producer, &topic, number % 2, "v").await?;
    }
    let config = target.consumer(&unique("group"));
    let (first, second) = (config.clone(), config);
    let name = topic.clone();

    blocking(move || -> Result<()> {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&name, 0, Offset::Offset(10))?;
        let mut with_text = offsets.add_partition(&name, 1);
        with_text.set_offset(Offset::Offset(15))?;
        with_text.set_metadata(METADATA);
        let consumer: BaseConsumer = first.create()?;
        Ok(consumer.commit(&offsets, CommitMode::Sync)?)
    })
    .await?;
    let name = topic.clone();
    let (committed, watermarks) = blocking(move || -> Result<_> {
        let consumer: BaseConsumer = second.create()?;
        let mut asked = TopicPartitionList::new();
        asked.add_partition(&name, 0);
        asked.add_partition(&name, 1);
        Ok((
            consumer.committed_offsets(asked, STEP)?,
            consumer.fetch_watermarks(&name, 0, STEP)?,
        ))
    })
    .await?;

    let plain = committed
        .find_partition(&topic, 0)
        .context("partition 0 is answered")?;
    let with_text = committed
        .find_partition(&topic, 1)
        .context("partition 1 is answered")?;
    ensure!(plain.offset() == Offset::Offset(10), "{plain:?}");
    ensure!(
        with_text.offset() == Offset::Offset(15) && with_text.metadata() == METADATA,
        "{with_text:?}"
    );
    ensure!(watermarks == (0, 20), "{watermarks:?}");
    Ok(())
}

pub(crate) async fn by_time(target: Target) -> Result<()> {
    const STEP_MS: i64 = 1_000;
    let topic = target.topic("times", 1).await?;
    let producer = target.producer()?;
    let start = now_ms();
    for number in 0..10 {
        let record = FutureRecord::<str, str>::to(&topic)
            .payload("v")
            .timestamp(start + number * STEP_MS);
        producer.send(record, STEP).await.map_err(|(error, _)| error)?;
    }
    let config = target.consumer(&unique("group"));
    let name = topic.clone();

    let find = move |time: i64| -> Result<Offset> {
        let consumer: BaseConsumer = config.create()?;
        let mut asked = TopicPartitionList::new();
        asked.add_partition_offset(&name, 0, Offset::Offset(time))?;
        Ok(consumer.offsets_for_times(asked, STEP)?.elements()[0].offset())
    };
    let (between, exact, after) = blocking(move || {
        (
            find(start + 4 * STEP_MS + 500),
            find(start + 4 * STEP_MS),
            find(start + 60 * STEP_MS),
        )
    })
    .await;

    ensure!(between? == Offset::Offset(5), "between two records");
    ensure!(exact? == Offset::Offset(4), "at a record");
    ensure!(after? == Offset::End, "after the last record");
    Ok(())
}

#[derive(Clone, Default)]
struct Watched {
    statistics: Arc<Mutex<Option<Statistics>>>,
}

impl ClientContext for Watched {
    fn stats(&self, statistics: Statistics) {
        *self.statistics.lock().expect("nobody panics holding it") = Some(statistics);
    }
}

impl ConsumerContext for Watched {}

pub(crate) async fn lag(target: Target) -> Result<()> {
    let topic = target.topic("lag", 1).await?;
    let producer = target.producer()?;
    for _ in 0..20 {
        write(&producer, &topic, 0, "x").await?;
    }
    let watched = Watched::default();
    let consumer: StreamConsumer<Watched> = target
        .consumer(&unique("group"))
        .set("statistics.interval.ms", "200")
        .create_with_context(watched.clone())?;
    consumer.subscribe(&[&topic])?;

    for number in 0..10 {
        let message = tokio::time::timeout(STEP, consumer.recv())
            .await
            .context("a record in time")??;
        if number == 4 {
            consumer.commit_message(&message, CommitMode::Sync)?;
        }
    }
    let started = Instant::now();
    let (committed, lag) = loop {
        ensure!(started.elapsed() < STEP, "no statistics with a committed offset");
        let _ = tokio::time::timeout(Duration::from_millis(50), consumer.recv()).await;
        let statistics = watched.statistics.lock().expect("nobody panics holding it");
        let partition = statistics
            .as_ref()
            .and_then(|all| all.topics.get(&topic)?.partitions.get(&0));
        if let Some(partition) = partition.filter(|partition| partition.committed_offset == 5) {
            break (partition.committed_offset, partition.consumer_lag);
        }
    };

    ensure!((committed, lag) == (5, 15), "committed {committed}, lag {lag}");
    Ok(())
}

//! Transactions: all or nothing, for records and for offsets, and only for the living owner.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::support::{STEP, Target, blocking, unique, write};

const COMMITTED: &str = "read_committed";
const EVERYTHING: &str = "read_uncommitted";

/// A producer that owns a transactional id.
async fn owner(target: &Target, id: &str) -> Result<FutureProducer> {
    let producer: FutureProducer = target
        .client()
        .set("transactional.id", id)
        .set("linger.ms", "0")
        .create()?;
    let initialising = producer.clone();
    blocking(move || initialising.init_transactions(STEP)).await?;
    Ok(producer)
}

/// Ends a transaction once nothing is in flight: rdkafka would sleep otherwise.
async fn end(producer: &FutureProducer, commit: bool) -> KafkaResult<()> {
    let producer = producer.clone();
    blocking(move || {
        while producer.in_flight_count() > 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
        if commit {
            producer.commit_transaction(STEP)
        } else {
            producer.abort_transaction(STEP)
        }
    })
    .await
}

pub(crate) async fn committed(target: Target) -> Result<()> {
    let (committed, everything) = run_transactions(&target, true).await?;

    ensure!(
        committed == 90 && everything == 90,
        "{committed} and {everything} of 90"
    );
    Ok(())
}

pub(crate) async fn aborted(target: Target) -> Result<()> {
    let (committed, everything) = run_transactions(&target, false).await?;

    ensure!(
        committed == 0 && everything == 90,
        "{committed} of 0 and {everything} of 90"
    );
    Ok(())
}

/// Ten transactions of nine records in three partitions; answers how many records are read, committed and at
/// all.
async fn run_transactions(target: &Target, commit: bool) -> Result<(usize, usize)> {
    let topic = target.topic("txn", 3).await?;
    let producer = owner(target, &unique("id")).await?;
    for round in 0..10 {
        producer.begin_transaction()?;
        let mut deliveries = Vec::new();
        for number in 0..9 {
            let text = format!("{round}-{number}");
            let record = FutureRecord::<str, str>::to(&topic)
                .partition(number % 3)
                .payload(&text);
            deliveries.push(producer.send_result(record).map_err(|(error, _)| error)?);
        }
        for delivery in deliveries {
            delivery.await?.map_err(|(error, _)| error)?;
        }
        end(&producer, commit).await?;
    }
    Ok((
        target.read_all(&topic, COMMITTED).await?.len(),
        target.read_all(&topic, EVERYTHING).await?.len(),
    ))
}

pub(crate) async fn open_hides(target: Target) -> Result<()> {
    let topic = target.topic("open", 1).await?;
    let producer = owner(&target, &unique("id")).await?;

    producer.begin_transaction()?;
    for number in 0..5 {
        write(&producer, &topic, 0, &format!("inside {number}")).await?;
    }
    write(&target.producer()?, &topic, 0, "outside").await?;
    let while_open = (
        target.read_all(&topic, COMMITTED).await?.len(),
        target.read_all(&topic, EVERYTHING).await?.len(),
    );
    end(&producer, true).await?;
    let afterwards = target.read_all(&topic, COMMITTED).await?.len();

    ensure!(
        while_open == (0, 6) && afterwards == 6,
        "open {while_open:?}, then {afterwards}"
    );
    Ok(())
}

pub(crate) async fn interleaved(target: Target) -> Result<()> {
    let topic = target.topic("interleaved", 1).await?;
    let aborting = owner(&target, &unique("aborting")).await?;
    let committing = owner(&target, &unique("committing")).await?;

    let mut expected = Vec::new();
    for round in 0..3 {
        aborting.begin_transaction()?;
        committing.begin_transaction()?;
        for number in 0..3 {
            write(&aborting, &topic, 0, &format!("aborted {round} {number}")).await?;
            let text = format!("committed {round} {number}");
            write(&committing, &topic, 0, &text).await?;
            expected.push(text);
        }
        end(&aborting, false).await?;
        end(&committing, true).await?;
    }

    let read = target.texts(&topic, COMMITTED).await?;
    ensure!(read == expected, "{read:?}");
    Ok(())
}

/// Polls a subscribed consumer until it has read so many records.
fn consume(consumer: &BaseConsumer, records: usize) -> Result<()> {
    let (started, mut read) = (Instant::now(), 0);
    while read < records {
        ensure!(started.elapsed() < STEP, "{read} of {records} records");
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            message?;
            read += 1;
        }
    }
    Ok(())
}

pub(crate) async fn offsets_inside(target: Target) -> Result<()> {
    let (input, output) = (target.topic("input", 1).await?, target.topic("output", 1).await?);
    let plain = target.producer()?;
    for number in 0..10 {
        write(&plain, &input, 0, &number.to_string()).await?;
    }
    let producer = owner(&target, &unique("id")).await?;
    let config = target.consumer(&unique("group"));

    let topic = output.clone();
    let steps = blocking(move || -> Result<Vec<Option<i64>>> {
        let consumer: BaseConsumer = config.create()?;
        consumer.subscribe(&[&input])?;
        consume(&consumer, 10)?;
        let mut committed = Vec::new();
        for (offset, commit) in [(4, true), (8, false), (9, true)] {
            producer.begin_transaction()?;
            let record = FutureRecord::<str, str>::to(&topic).payload("out");
            let delivery = producer.send_result(record).map_err(|(error, _)| error)?;
            futures_wait(delivery)?;
            let mut offsets = TopicPartitionList::new();
            offsets.add_partition_offset(&input, 0, Offset::Offset(offset))?;
            let group = consumer.group_metadata().context("a member has metadata")?;
            producer.send_offsets_to_transaction(&offsets, &group, STEP)?;
            if commit {
                producer.commit_transaction(STEP)?
            } else {
                producer.abort_transaction(STEP)?
            }
            let mut asked = TopicPartitionList::new();
            asked.add_partition(&input, 0);
            let answer = consumer.committed_offsets(asked, STEP)?;
            committed.push(answer.elements()[0].offset().to_raw());
        }
        Ok(committed)
    })
    .await?;

    let written = target.read_all(&output, COMMITTED).await?.len();
    ensure!(
        steps == [Some(4), Some(4), Some(9)] && written == 2,
        "offsets {steps:?}, {written} records"
    );
    Ok(())
}

/// Waits for a delivery on a blocking thread.
fn futures_wait(delivery: rdkafka::producer::DeliveryFuture) -> Result<()> {
    let waited = tokio::runtime::Handle::current().block_on(delivery)?;
    waited.map_err(|(error, _)| error)?;
    Ok(())
}

pub(crate) async fn fenced_by_id(target: Target) -> Result<()> {
    let topic = target.topic("fenced", 1).await?;
    let id = unique("id");
    let first = owner(&target, &id).await?;
    first.begin_transaction()?;
    write(&first, &topic, 0, "by the first").await?;

    let second = owner(&target, &id).await?;
    let _ = write(&first, &topic, 0, "by the first, too late").await;
    let ended = end(&first, true).await;
    second.begin_transaction()?;
    write(&second, &topic, 0, "by the second").await?;
    end(&second, true).await?;

    let fatal = matches!(&ended, Err(KafkaError::Transaction(error)) if error.is_fatal());
    ensure!(fatal, "the first owner's commit: {ended:?}");
    let read = target.texts(&topic, COMMITTED).await?;
    ensure!(read == ["by the second"], "{read:?}");
    Ok(())
}

pub(crate) async fn fenced_by_generation(target: Target) -> Result<()> {
    let topic = target.topic("generation", 2).await?;
    let plain = target.producer()?;
    for number in 0..10 {
        write(&plain, &topic, number % 2, "x").await?;
    }
    let producer = owner(&target, &unique("id")).await?;
    let mut config = target.consumer(&unique("group"));
    config
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "300");

    let (sent, aborted) = blocking(move || -> Result<_> {
        let first: BaseConsumer = config.create()?;
        first.subscribe(&[&topic])?;
        consume(&first, 10)?;
        let stale = first.group_metadata().context("a member has metadata")?;
        let second: BaseConsumer = config.create()?;
        second.subscribe(&[&topic])?;
        let started = Instant::now();
        while first.assignment()?.count() != 1 || second.assignment()?.count() != 1 {
            if started.elapsed() > STEP {
                bail!("the second member did not get its share");
            }
            let _ = first.poll(Duration::from_millis(50));
            let _ = second.poll(Duration::from_millis(50));
        }
        producer.begin_transaction()?;
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&topic, 0, Offset::Offset(3))?;
        let sent = producer.send_offsets_to_transaction(&offsets, &stale, STEP);
        Ok((sent, producer.abort_transaction(STEP)))
    })
    .await?;

    let abortable = matches!(&sent, Err(KafkaError::Transaction(error)) if error.txn_requires_abort());
    ensure!(abortable, "offsets of the earlier generation: {sent:?}");
    aborted?;
    Ok(())
}

pub(crate) async fn timed_out(target: Target) -> Result<()> {
    let topic = target.topic("time-out", 1).await?;
    let forgetful: FutureProducer = target
        .client()
        .set("transactional.id", unique("id"))
        .set("transaction.timeout.ms", "2000")
        .set("message.timeout.ms", "1500")
        .create()?;
    let initialising = forgetful.clone();
    blocking(move || initialising.init_transactions(STEP)).await?;

    forgetful.begin_transaction()?;
    write(&forgetful, &topic, 0, "never committed").await?;
    write(&target.producer()?, &topic, 0, "outside").await?;
    let started = Instant::now();
    let read = loop {
        let read = target.texts(&topic, COMMITTED).await?;
        if !read.is_empty() || started.elapsed() > Duration::from_secs(30) {
            break read;
        }
    };

    ensure!(read == ["outside"], "{read:?} after {:?}", started.elapsed());
    Ok(())
}

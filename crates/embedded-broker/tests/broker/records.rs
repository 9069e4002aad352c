//! Records: what goes in comes out, whole and in order, or is refused.

use anyhow::{Context, Result, ensure};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode;

use crate::support::{Got, STEP, Target, now_ms, write};

pub(crate) async fn headers_and_tombstones(target: Target) -> Result<()> {
    let topic = target.topic("headers", 1).await?;
    let producer = target.producer()?;
    let time = now_ms(); // a time long past would let a real Kafka delete the record at once

    let headers = OwnedHeaders::new()
        .insert(Header {
            key: "content-type",
            value: Some("audio/L16;rate=16000"),
        })
        .insert(Header {
            key: "content-type",
            value: Some("again"),
        })
        .insert(Header {
            key: "bytes",
            value: Some(&[0u8, 255, 10][..]),
        })
        .insert(Header::<&[u8]> {
            key: "nothing",
            value: None,
        });
    let whole = FutureRecord::to(&topic)
        .key("session 1")
        .payload("sound")
        .headers(headers)
        .timestamp(time);
    producer.send(whole, STEP).await.map_err(|(error, _)| error)?;
    let tombstone = FutureRecord::<str, str>::to(&topic)
        .key("session 1")
        .timestamp(time + 1);
    producer.send(tombstone, STEP).await.map_err(|(error, _)| error)?;
    let read = target.read_all(&topic, "read_uncommitted").await?;

    let expected = [
        Got {
            partition: 0,
            offset: 0,
            timestamp_ms: Some(time),
            key: Some(b"session 1".to_vec()),
            value: Some(b"sound".to_vec()),
            headers: vec![
                ("content-type".into(), Some(b"audio/L16;rate=16000".to_vec())),
                ("content-type".into(), Some(b"again".to_vec())),
                ("bytes".into(), Some(vec![0, 255, 10])),
                ("nothing".into(), None),
            ],
        },
        Got {
            partition: 0,
            offset: 1,
            timestamp_ms: Some(time + 1),
            key: Some(b"session 1".to_vec()),
            value: None,
            headers: vec![],
        },
    ];
    ensure!(read == expected, "{read:#?}");
    Ok(())
}

pub(crate) async fn codecs(target: Target) -> Result<()> {
    const RECORDS: usize = 40;
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = target.topic(codec, 1).await?;
        let producer: FutureProducer = target
            .client()
            .set("compression.codec", codec)
            .set("linger.ms", "20")
            .create()?;

        let sent: Vec<Vec<u8>> = (0..RECORDS).map(compressible).collect();
        write_all(&producer, &topic, &sent)
            .await
            .with_context(|| format!("codec {codec}"))?;
        let read = target.read_all(&topic, "read_committed").await?;

        let values: Vec<Vec<u8>> = read.into_iter().filter_map(|got| got.value).collect();
        ensure!(
            values == sent,
            "codec {codec}: {} records came back, or others",
            values.len()
        );
    }
    Ok(())
}

fn compressible(number: usize) -> Vec<u8> {
    const BYTES: usize = 50_000;
    (0..BYTES)
        .map(|index| ((index / 7 + number) % 251) as u8)
        .collect()
}

async fn write_all(producer: &FutureProducer, topic: &str, values: &[Vec<u8>]) -> Result<()> {
    let mut deliveries = Vec::new();
    for value in values {
        let record = FutureRecord::<[u8], [u8]>::to(topic).payload(value);
        deliveries.push(producer.send_result(record).map_err(|(error, _)| error)?);
    }
    for delivery in deliveries {
        delivery.await?.map_err(|(error, _)| error)?;
    }
    Ok(())
}

pub(crate) async fn large_messages(target: Target) -> Result<()> {
    const MB: usize = 1_000_000;
    let topic = target
        .topic_with("large", 1, &[("max.message.bytes", "12000000")])
        .await?;
    let producer = target.producer()?;

    let sent: Vec<Vec<u8>> = [1, 5, 10]
        .map(|size| (0..size * MB).map(|index| (index % 253) as u8).collect())
        .to_vec();
    for value in &sent {
        write_all(&producer, &topic, std::slice::from_ref(value)).await?;
    }
    let read = target.read_all(&topic, "read_uncommitted").await?;

    let values: Vec<Vec<u8>> = read.into_iter().filter_map(|got| got.value).collect();
    ensure!(
        values == sent,
        "sizes {:?}",
        values.iter().map(Vec::len).collect::<Vec<_>>()
    );
    Ok(())
}

pub(crate) async fn too_large(target: Target) -> Result<()> {
    let topic = target
        .topic_with("too-large", 1, &[("max.message.bytes", "2000000")])
        .await?;
    let producer = target.producer()?;

    // The last one is larger than any broker's limit here, and than what the embedded broker reads into
    // memory.
    for size in [2_100_000, 15_000_000, 40_000_000] {
        let value = vec![7u8; size];
        let sent = producer
            .send(FutureRecord::<[u8], [u8]>::to(&topic).payload(&value), STEP)
            .await;
        let error = sent.err().map(|(error, _)| error);
        ensure!(
            error
                == Some(KafkaError::MessageProduction(
                    RDKafkaErrorCode::MessageSizeTooLarge
                )),
            "{size} bytes: {error:?}"
        );
    }
    write(&producer, &topic, 0, "small").await?;

    let read = target.texts(&topic, "read_uncommitted").await?;
    ensure!(read == ["small"], "{} records", read.len());
    Ok(())
}

pub(crate) async fn idempotent_order(target: Target) -> Result<()> {
    const RECORDS: usize = 5_000;
    let topic = target.topic("idempotent", 1).await?;
    let producer: FutureProducer = target
        .client()
        .set("enable.idempotence", "true")
        .set("linger.ms", "1")
        .set("batch.num.messages", "20")
        .create()?;

    let sent: Vec<Vec<u8>> = (0..RECORDS)
        .map(|number| number.to_string().into_bytes())
        .collect();
    write_all(&producer, &topic, &sent).await?;
    let read = target.read_all(&topic, "read_committed").await?;

    let values: Vec<Vec<u8>> = read.into_iter().filter_map(|got| got.value).collect();
    ensure!(values == sent, "{} records, or out of order", values.len());
    Ok(())
}

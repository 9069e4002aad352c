//! Bounds of the embedded broker: each is reached, answered properly, and kept.

use std::time::Duration;

use anyhow::{Result, ensure};
use embedded_broker::{BrokerConfig, BrokerError, EmbeddedBroker};
use kafka_protocol::messages::{ApiVersionsRequest, FetchRequest, MetadataRequest};
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::FutureRecord;
use rdkafka::types::RDKafkaErrorCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::raw::{RawClient, request_frame};
use crate::support::{Kind, STEP, Target, blocking, eventually, run};

fn target(broker: &EmbeddedBroker) -> Target {
    Target {
        bootstrap: broker.bootstrap(),
        kind: Kind::Embedded,
    }
}

#[test]
fn a_full_topic_loses_its_oldest_records_and_never_the_newest() {
    run(async {
        const VALUE_BYTES: usize = 100_000;
        let config = BrokerConfig {
            message_bytes_max: 500_000,
            bytes_per_topic_max: 1_000_000,
            bytes_max: 1_500_000,
            ..BrokerConfig::default()
        };
        let broker = EmbeddedBroker::start(config).await?;
        let target = target(&broker);
        let (first, second) = (target.topic("first", 2).await?, target.topic("second", 1).await?);
        let producer = target.producer()?;
        let fill = async |topic: &str, partitions: i32, records: u8| -> Result<()> {
            for number in 0..records {
                let value = vec![number; VALUE_BYTES];
                let partition = i32::from(number) % partitions;
                let record = FutureRecord::<[u8], [u8]>::to(topic)
                    .partition(partition)
                    .payload(&value);
                producer.send(record, STEP).await.map_err(|(error, _)| error)?;
            }
            Ok(())
        };

        fill(&first, 2, 30).await?;
        let read = target.read_all(&first, "read_committed").await?;
        let mut kept: Vec<u8> = read
            .iter()
            .filter_map(|got| got.value.as_ref()?.first().copied())
            .collect();
        kept.sort();
        fill(&second, 1, 9).await?;
        let left = target.read_all(&first, "read_committed").await?.len();
        let others = target.read_all(&second, "read_committed").await?.len();

        ensure!(kept == (21..30).collect::<Vec<u8>>(), "{kept:?}");
        ensure!(
            left + others == 14 && others >= 7,
            "{left} and {others} records in 1.5 MB"
        );
        broker.shutdown().await;
        Ok(())
    });
}

#[test]
fn a_topics_own_retention_is_kept() {
    run(async {
        let broker = EmbeddedBroker::start(BrokerConfig::default()).await?;
        let target = target(&broker);
        let by_bytes = target
            .topic_with("bytes", 1, &[("retention.bytes", "10000")])
            .await?;
        let by_time = target.topic_with("time", 1, &[("retention.ms", "400")]).await?;
        let producer = target.producer()?;
        for topic in [&by_bytes, &by_time] {
            for _ in 0..20 {
                let value = vec![1u8; 2_000];
                let record = FutureRecord::<[u8], [u8]>::to(topic).partition(0).payload(&value);
                producer.send(record, STEP).await.map_err(|(error, _)| error)?;
            }
        }
        let client: BaseConsumer = target.client().create()?;
        let watermarks = blocking({
            let by_bytes = by_bytes.clone();
            move || client.fetch_watermarks(&by_bytes, 0, STEP)
        })
        .await?;
        let client: BaseConsumer = target.client().create()?;
        let all_gone = || {
            client
                .fetch_watermarks(&by_time, 0, STEP)
                .is_ok_and(|watermarks| watermarks == (20, 20))
        };
        eventually(
            "records past their time are gone",
            Duration::from_secs(5),
            all_gone,
        )
        .await?;

        ensure!(watermarks == (16, 20), "{watermarks:?}");
        Ok(())
    });
}

#[test]
fn one_connection_too_many_is_closed_until_another_leaves() {
    run(async {
        let config = BrokerConfig {
            connections_max: 2,
            ..BrokerConfig::default()
        };
        let broker = EmbeddedBroker::start(config).await?;
        let greeting = ApiVersionsRequest::default();
        let mut first = RawClient::connect(broker.address()).await?;
        let mut second = RawClient::connect(broker.address()).await?;
        first.ask(&greeting, 0).await?;
        second.ask(&greeting, 0).await?;

        let mut third = RawClient::connect(broker.address()).await?;
        third.is_closed().await?;
        drop(first);
        let started = std::time::Instant::now();
        loop {
            let mut again = RawClient::connect(broker.address()).await?;
            if again.ask(&greeting, 0).await.is_ok() {
                break;
            }
            ensure!(started.elapsed() < STEP, "no free connection after one left");
        }

        second.ask(&greeting, 0).await?;
        Ok(())
    });
}

#[test]
fn a_client_that_hangs_up_behind_a_waiting_request_frees_its_place() {
    run(async {
        let config = BrokerConfig {
            connections_max: 1,
            ..BrokerConfig::default()
        };
        let broker = EmbeddedBroker::start(config).await?;
        let waiting = FetchRequest::default()
            .with_max_wait_ms(i32::MAX)
            .with_min_bytes(1);
        let greeting = request_frame(&ApiVersionsRequest::default(), 0)?;
        let mut client = RawClient::connect(broker.address()).await?;
        client
            .send(&[request_frame(&waiting, 11)?, greeting].concat())
            .await?;
        tokio::time::sleep(Duration::from_millis(100)).await; // the broker waits for news by now
        drop(client);

        let started = std::time::Instant::now();
        loop {
            let mut again = RawClient::connect(broker.address()).await?;
            if again.ask(&ApiVersionsRequest::default(), 0).await.is_ok() {
                return Ok(());
            }
            ensure!(started.elapsed() < STEP, "its place is still taken");
        }
    });
}

#[test]
fn a_client_that_closes_its_sending_end_behind_a_request_is_answered() {
    run(async {
        let broker = EmbeddedBroker::start(BrokerConfig::default()).await?;
        let greeting = request_frame(&ApiVersionsRequest::default(), 0)?;
        for attempt in 0..20 {
            let mut stream = TcpStream::connect(broker.address()).await?;
            stream.write_all(&greeting).await?;
            stream.shutdown().await?;

            let mut answer = Vec::new();
            tokio::time::timeout(STEP, stream.read_to_end(&mut answer)).await??;

            ensure!(!answer.is_empty(), "attempt {attempt} is not answered");
        }
        Ok(())
    });
}

#[test]
fn one_topic_too_many_is_a_policy_violation() {
    run(async {
        let broker = EmbeddedBroker::start(BrokerConfig {
            topics_max: 1,
            ..BrokerConfig::default()
        })
        .await?;
        let target = target(&broker);
        target.topic("first", 1).await?;

        let second = NewTopic::new("second", 1, TopicReplication::Fixed(1));
        let huge = NewTopic::new("huge", 1_001, TopicReplication::Fixed(1));
        let refused = target
            .admin()?
            .create_topics([&second, &huge], &AdminOptions::new())
            .await?;

        let expected = [
            Err(("second".to_owned(), RDKafkaErrorCode::PolicyViolation)),
            Err(("huge".to_owned(), RDKafkaErrorCode::InvalidPartitions)),
        ];
        ensure!(refused == expected, "{refused:?}");
        Ok(())
    });
}

#[test]
fn an_address_that_others_reach_or_that_is_taken_is_an_error_that_says_so() {
    run(async {
        let open = BrokerConfig {
            address: "0.0.0.0:0".parse()?,
            ..BrokerConfig::default()
        };
        let refused = EmbeddedBroker::start(open)
            .await
            .expect_err("an open address is refused");
        let broker = EmbeddedBroker::start(BrokerConfig::default()).await?;
        let taken = BrokerConfig {
            address: broker.address(),
            ..BrokerConfig::default()
        };
        let second = EmbeddedBroker::start(taken).await.expect_err("the port is taken");

        ensure!(
            matches!(refused, BrokerError::Config(_)) && refused.to_string().contains("loopback"),
            "{refused}"
        );
        ensure!(matches!(second, BrokerError::Listen { .. }), "{second}");
        ensure!(second.to_string().contains(&broker.bootstrap()), "{second}");
        Ok(())
    });
}

#[test]
fn a_broker_that_is_shut_down_or_dropped_leaves_its_port() {
    run(async {
        let broker = EmbeddedBroker::start(BrokerConfig::default()).await?;
        let address = broker.address();
        let mut client = RawClient::connect(address).await?;
        client.ask(&MetadataRequest::default(), 9).await?;

        broker.shutdown().await;
        client.is_closed().await?;
        let again = EmbeddedBroker::start(BrokerConfig {
            address,
            ..BrokerConfig::default()
        })
        .await?;
        let mut client = RawClient::connect(address).await?;
        client.ask(&MetadataRequest::default(), 9).await?;
        drop(again);

        client.is_closed().await
    });
}

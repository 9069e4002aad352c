use std::time::Instant;

use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Code};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_record_names_its_place() {
    let cluster = Cluster::new(1);
    let sink = Sink::new(&cluster.config).unwrap();

    let first = sink.send(outgoing("a")).await.unwrap();
    let second = sink.send(outgoing("b")).await.unwrap();

    assert_eq!((first.partition, first.offset), (0, 0));
    assert_eq!(second.offset, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_above_the_setting_is_refused_before_it_is_sent() {
    let mut cluster = Cluster::new(1);
    cluster.config.message_bytes_max = 2_000;
    let sink = Sink::new(&cluster.config).unwrap();

    let error = sink.send(outgoing(&"x".repeat(2_001))).await.unwrap_err();

    assert!(error.is_about_the_record());
    assert!(
        matches!(
            error,
            SinkError::TooLarge {
                bytes: 2_001,
                bytes_max: 2_000,
                ..
            }
        ),
        "{error:?}"
    );
    sink.send(outgoing(&"x".repeat(2_000))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_broker_finds_too_large_is_the_record_s_fault() {
    let cluster = Cluster::new(1);
    let sink = Sink::new(&cluster.config).unwrap();
    cluster
        .mock
        .request_errors(Api::Produce, &[Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);

    let error = sink.send(outgoing("a")).await.unwrap_err();

    assert!(
        matches!(
            &error,
            SinkError::TooLarge {
                allowed_by: "the broker",
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.is_about_the_record());
    sink.send(outgoing("b")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_that_pass_are_repeated_without_being_reported() {
    let cluster = Cluster::new(1);
    let sink = Sink::new(&cluster.config).unwrap();
    cluster.mock.request_errors(
        Api::Produce,
        &[
            Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
            Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        ],
    );

    let written = sink.send(outgoing("a")).await.unwrap();

    assert_eq!(written.offset, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stays_away_is_an_error_that_may_be_tried_again() {
    let mut cluster = Cluster::new(1);
    cluster.config.send_timeout_ms = 500;
    let sink = Sink::new(&cluster.config).unwrap();
    let send = async |value: &str| {
        let sent = async {
            while let Err(error) = sink.send(outgoing(value)).await {
                assert!(matches!(error, SinkError::NotAcknowledged { .. }), "{error:?}");
            }
        };
        tokio::time::timeout(LIMIT, sent).await.unwrap();
    };
    send("a").await;

    cluster.mock.broker_down(1).unwrap();
    let error = sink.send(outgoing("b")).await.unwrap_err();
    assert!(matches!(error, SinkError::NotAcknowledged { .. }), "{error:?}");
    assert!(!error.is_about_the_record());

    cluster.mock.broker_up(1).unwrap();
    send("b").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zero_byte_in_a_header_name_is_the_record_s_fault_and_no_panic() {
    let cluster = Cluster::new(1);
    let sink = Sink::new(&cluster.config).unwrap();
    let mut record = outgoing("a");
    record.headers.push(("a\0b".to_owned(), None));

    let error = sink.send(record).await.unwrap_err();

    assert!(error.is_about_the_record(), "{error:?}");
}

/// Lets the broker refuse the next producer its id, which librdkafka takes for the end of that producer.
fn fail_next_producer(cluster: &Cluster) {
    let refused = Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    cluster.mock.request_errors(Api::InitProducerId, &[refused]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_failed_for_good_is_made_anew_and_the_records_arrive() {
    let cluster = Cluster::new(1);
    fail_next_producer(&cluster);
    let sink = Sink::new(&cluster.config).unwrap();

    let sends: Vec<_> = (0..20)
        .map(|number| {
            let sink = sink.clone();
            tokio::spawn(async move { sink.send(outgoing(&number.to_string())).await })
        })
        .collect();

    let mut offsets = std::collections::BTreeSet::new();
    for send in sends {
        offsets.insert(send.await.unwrap().unwrap().offset);
    }
    assert_eq!(offsets.len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_fails_while_nothing_is_sent_fails_the_check_until_it_is_made_anew() {
    let cluster = Cluster::new(1);
    fail_next_producer(&cluster);
    let monitor = ConnectionMonitor::default();
    let sink = Sink::watched(&cluster.config, &monitor).unwrap();
    let check = || monitor.check(Duration::ZERO);

    until("the producer's end", || {
        check().is_err_and(|problem| problem.contains("authorization"))
    })
    .await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(
        check().is_err(),
        "a broker that is up makes a failed producer no better"
    );
    sink.renew_if_failed().await.unwrap();

    until("the next producer", || check().is_ok()).await;
    sink.send(outgoing("a")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_always_fails_is_an_error_in_time() {
    let mut cluster = Cluster::new(1);
    cluster.config.send_timeout_ms = 1_500;
    let refused = Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    cluster.mock.request_errors(Api::InitProducerId, &[refused; 100]);
    let sink = Sink::new(&cluster.config).unwrap();
    let began = Instant::now();

    let error = sink.send(outgoing("a")).await.unwrap_err();

    assert!(
        matches!(error, SinkError::Fatal { .. } | SinkError::NotAcknowledged { .. }),
        "{error:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_may_not_be_written_fails_the_check_until_it_may() {
    let cluster = Cluster::new(1);
    let monitor = ConnectionMonitor::default();
    let sink = Sink::watched(&cluster.config, &monitor).unwrap();
    sink.send(outgoing("a")).await.unwrap();
    until("a broker", || monitor.check(Duration::ZERO).is_ok()).await;
    let refused = Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.mock.request_errors(Api::Produce, &[refused]);

    let error = sink.send(outgoing("b")).await.unwrap_err();

    assert!(matches!(error, SinkError::Topic { .. }), "{error:?}");
    assert!(monitor.check(Duration::ZERO).unwrap_err().contains(TOPIC));
    let allowed = async { while sink.send(outgoing("b")).await.is_err() {} }; // librdkafka remembers it for a while
    tokio::time::timeout(LIMIT, allowed).await.unwrap();
    monitor.check(Duration::ZERO).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_wait_for_room_in_the_send_buffer_and_all_arrive() {
    let mut cluster = Cluster::new(1);
    cluster.config.message_bytes_max = 16_000;
    cluster.config.send_buffer_bytes_max = cluster.config.batch_bytes_max();
    let sink = Sink::new(&cluster.config).unwrap();

    let sends: Vec<_> = (0..200)
        .map(|_| {
            let sink = sink.clone();
            tokio::spawn(async move { sink.send(outgoing(&"x".repeat(8_000))).await })
        })
        .collect();

    let mut offsets = Vec::new();
    for send in sends {
        offsets.push(send.await.unwrap().unwrap().offset);
    }
    offsets.sort_unstable();
    assert_eq!(offsets, (0..200).collect::<Vec<i64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_with_a_record_outstanding_does_not_sleep() {
    let cluster = Cluster::new(1);
    let sink = Sink::new(&cluster.config).unwrap();
    sink.send(outgoing("connect")).await.unwrap();

    let mut quickest = LIMIT;
    for _ in 0..5 {
        let began = Instant::now();
        let sending = tokio::spawn({
            let sink = sink.clone();
            async move { sink.send(outgoing("a")).await }
        });
        until("a record on its way", || {
            sink.in_flight() > 0 || sending.is_finished()
        })
        .await;
        sink.flush(LIMIT).await.unwrap();
        quickest = quickest.min(began.elapsed());
        sending.await.unwrap().unwrap();
    }

    assert!(
        quickest < Duration::from_millis(80),
        "{quickest:?}: rdkafka's own flush takes 100 ms"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_begins_where_it_is_asked_to_and_says_when_it_has_caught_up() {
    let cluster = Cluster::new(2);
    cluster.publish(10).await;
    let mut old = Reader::open(&cluster.config, TOPIC, ReadFrom::Beginning, LIMIT)
        .await
        .unwrap();
    let mut new = Reader::open(&cluster.config, TOPIC, ReadFrom::End, LIMIT)
        .await
        .unwrap();
    let sink = Sink::new(&cluster.config).unwrap();

    let mut seen = Vec::new();
    while let Read::Record(record) = old.next(LIMIT).await.unwrap() {
        seen.push(text(&record));
    }
    assert_eq!(seen.len(), 10);
    while !matches!(new.next(LIMIT).await.unwrap(), Read::CaughtUp) {}
    assert!(matches!(
        new.next(Duration::from_millis(100)).await.unwrap(),
        Read::TimedOut
    ));

    let written = sink.send(outgoing("later")).await.unwrap();
    let Read::Record(record) = new.next(LIMIT).await.unwrap() else {
        panic!("no record")
    };
    assert_eq!(text(&record), "later");
    let fetched = Reader::fetch(&cluster.config, TOPIC, written.partition, written.offset, LIMIT)
        .await
        .unwrap();
    assert_eq!(text(&fetched.unwrap()), "later");
    let beyond = Reader::fetch(
        &cluster.config,
        TOPIC,
        written.partition,
        written.offset + 1,
        LIMIT,
    )
    .await
    .unwrap();
    assert!(beyond.is_none());
    assert!(
        Reader::fetch(&cluster.config, TOPIC, 99, 0, LIMIT)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_tells_of_its_brokers_and_topics() {
    let cluster = Cluster::new(3);

    let info = admin::broker_metadata(&cluster.config, LIMIT).await.unwrap();

    assert_eq!(info.brokers.len(), 1);
    assert_eq!(info.topic(TOPIC).unwrap().partitions, 3);
    assert_eq!(info.topic("another"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_is_an_error_that_names_the_address() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let config = KafkaConfig {
        bootstrap: unused.to_string(),
        ..KafkaConfig::default()
    };

    let error = admin::broker_metadata(&config, Duration::from_millis(500))
        .await
        .unwrap_err();

    assert!(matches!(error, KafkaError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&unused.to_string()), "{error}");
}

#[test]
fn a_property_that_librdkafka_does_not_know_is_named_without_its_value() {
    let mut config = KafkaConfig::default();
    let property = ("no.such.property".to_owned(), "hunter2".to_owned());
    config.producer = [property].into_iter().collect();

    let error = Sink::new(&config).unwrap_err().to_string();

    assert!(
        error.contains("no.such.property") && !error.contains("hunter2"),
        "{error}"
    );
}

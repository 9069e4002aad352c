//! What is committed, and what the broker makes of it.

use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Code};

use super::*;

/// A broker that does not take metadata as long as ours says so.
const TOO_LONG: Code = Code::RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE;

/// librdkafka begins to read a partition only while no commit is on its way.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_comes_is_read_while_commits_take_longer_than_their_interval() {
    const RECORDS: usize = 1_600;
    let mut cluster = Cluster::quick(2);
    cluster.config.queue_records_max = 2 * RECORDS;
    cluster.config.in_flight_records_max = 10 * RECORDS;
    cluster.config.revoke_wait_ms_max = 100;
    cluster.publish_keyed(RECORDS).await;
    let first = cluster.start();
    let mut kept = first.records(RECORDS).await;
    let second = cluster.start();
    let moved = first.revoked().await.partitions;
    kept.retain(|record| !moved.contains(&TopicPartition::of(&record.record_offset)));
    second.record().await;
    second.source.close(Duration::ZERO).await.unwrap();

    let round_trip = Duration::from_millis(300); // six times the interval
    cluster.mock.broker_round_trip_time(1, round_trip).unwrap();
    let mut kept = kept.iter();
    let tick = Duration::from_millis(25);
    let read = loop {
        match tokio::time::timeout(tick, first.record()).await {
            Ok(record) => break record,
            Err(_) => {
                let record = kept
                    .next()
                    .expect("what comes is read before all else is finished");
                first.tracker.release(&record.record_offset);
            }
        }
    };

    assert!(moved.contains(&TopicPartition::of(&read.record_offset)));
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_the_broker_refused_does_not_count_as_taken() {
    let cluster = Cluster::quick(1);
    cluster.publish(3).await;
    let running = cluster.start();
    let records = running.records(3).await;
    until("a commit of the first offset", || {
        running.tracker.positions().is_empty()
    })
    .await;

    cluster.mock.request_errors(Api::OffsetCommit, &[TOO_LONG]);
    running.tracker.release(&records[1].record_offset);
    until("a refusal", || running.tracker.positions().is_empty()).await;
    running.tracker.release(&records[2].record_offset);

    assert_eq!(running.tracker.positions(), [], "none has metadata now");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_broker_refuses_metadata_a_revocation_commits_without() {
    let mut cluster = Cluster::quick(2);
    cluster.config.commit_interval_ms = 60_000; // nothing is committed before
    cluster.config.revoke_wait_ms_max = 100;
    cluster.publish_keyed(40).await;
    let first = cluster.start();
    for record in first.records(40).await {
        if record.record_offset.offset != 1 {
            first.tracker.release(&record.record_offset);
        }
    }

    cluster.mock.request_errors(Api::OffsetCommit, &[TOO_LONG]);
    let second = cluster.start();

    let again = second.records(2).await;
    let offsets: Vec<i64> = again.iter().map(|record| record.record_offset.offset).collect();
    assert_eq!(
        offsets,
        [1, 2],
        "2 would be remembered, had the broker taken that"
    );
}

//! Records that the topic's retention deletes before they are read.

use speechverse::kafka::RecordsDeleted;

use super::*;

const RECORD_BYTES: usize = 100_000;

/// A broker that keeps about ten records, and a reader that takes two at a time.
async fn bench() -> Bench {
    let broker = EmbeddedBroker::start(BrokerConfig {
        message_bytes_max: 200_000,
        bytes_per_topic_max: 1_000_000,
        ..BrokerConfig::default()
    })
    .await
    .unwrap();
    let config = KafkaConfig {
        partitions: 1,
        message_bytes_max: 110_000,
        in_flight_records_max: 2,
        queue_records_max: 1,
        ..config(broker.bootstrap())
    };
    admin::ensure_topics(&config, STEP).await.unwrap();
    Bench {
        _broker: Some(broker),
        config,
    }
}

async fn publish(bench: &Bench, count: usize) {
    let sink = bench.sink();
    for _ in 0..count {
        let value = Some(Bytes::from(vec![b'x'; RECORD_BYTES]));
        let record = OutgoingRecord {
            value,
            ..outgoing(bench.requests(), 0)
        };
        sink.send(record).await.unwrap();
    }
}

fn start(bench: &Bench) -> (Running, flume::Receiver<RecordsDeleted>) {
    let (monitor, deleted) = ConnectionMonitor::new();
    let tracker = OffsetTracker::new(Budget::new(bench.config.in_flight_bytes_max));
    let config = SourceConfig {
        kafka: bench.config.clone(),
        topics: vec![bench.requests().to_owned()],
        monitor,
    };
    let (source, events) = Source::start(config, tracker.clone()).unwrap();
    let running = Running {
        source,
        events,
        tracker,
    };
    (running, deleted)
}

/// Reads until nothing has come for a while; the offsets that came.
async fn drain(running: &Running) -> Vec<i64> {
    let mut offsets = Vec::new();
    while let Ok(record) = tokio::time::timeout(Duration::from_secs(3), running.record()).await {
        offsets.push(record.record_offset.offset);
        running.tracker.release(&record.record_offset);
    }
    offsets
}

/// The offsets that were reported as deleted so far.
fn reported(deleted: &flume::Receiver<RecordsDeleted>) -> Vec<i64> {
    let ranges = deleted
        .try_iter()
        .map(|deleted| deleted.first_offset..deleted.first_offset + deleted.records);
    ranges.flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_deleted_before_a_slow_reader_comes_to_them_are_reported_one_by_one() {
    let bench = bench().await;
    let (running, deleted) = start(&bench);
    publish(&bench, 4).await;
    let first = running.record().await; // not finished yet: two are in flight, and reading pauses

    publish(&bench, 40).await;
    running.tracker.release(&first.record_offset);
    let mut offsets = drain(&running).await;
    offsets.push(first.record_offset.offset);

    let gone = reported(&deleted);
    assert!(!gone.is_empty(), "all 44 were read: {offsets:?}");
    offsets.extend(gone);
    offsets.sort_unstable();
    assert_eq!(
        offsets,
        (0..44).collect::<Vec<i64>>(),
        "each was read or reported, and none twice"
    );
    running.source.close(STEP).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_deleted_while_nobody_read_are_reported_by_the_next_reader() {
    let bench = bench().await;
    let (running, _) = start(&bench);
    publish(&bench, 3).await;
    assert_eq!(drain(&running).await, [0, 1, 2]);
    running.source.close(STEP).await.unwrap();

    publish(&bench, 40).await;
    let (running, deleted) = start(&bench);
    let mut offsets = drain(&running).await;

    offsets.extend(reported(&deleted));
    offsets.sort_unstable();
    assert_eq!(offsets, (3..43).collect::<Vec<i64>>());
    running.source.close(STEP).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_group_misses_nothing_that_was_deleted_before_its_time() {
    let bench = bench().await;
    publish(&bench, 40).await;
    let (running, deleted) = start(&bench);

    let offsets = drain(&running).await;

    assert!(offsets[0] > 0, "{offsets:?}");
    assert_eq!(reported(&deleted), [] as [i64; 0]);
    running.source.close(STEP).await.unwrap();
}

use std::collections::HashSet;

use super::*;

mod commits;

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_arrives_byte_for_byte() {
    let cluster = Cluster::quick(1);
    let sent = OutgoingRecord {
        key: Some(Bytes::from_static(b"\x00session\xff")),
        value: Some(Bytes::from_static(b"RIFF\x00\xff")),
        headers: vec![
            ("ce_id".to_owned(), Some(Bytes::from_static(b"\xffid"))),
            ("empty".to_owned(), Some(Bytes::new())),
            ("ce_id".to_owned(), None),
        ],
        ..outgoing("")
    };
    let sink = Sink::new(&cluster.config).unwrap();
    sink.send(sent.clone()).await.unwrap();
    sink.send(OutgoingRecord {
        value: None,
        ..sent.clone()
    })
    .await
    .unwrap();

    let running = cluster.start();
    let first = running.event().await;
    let records = running.records(2).await;

    assert!(
        matches!(first, SourceEvent::Assigned { epoch: 1, .. }),
        "{first:?}"
    );
    assert_eq!((&records[0].key, &records[0].value), (&sent.key, &sent.value));
    assert_eq!(records[0].headers, sent.headers);
    assert_eq!(records[1].value, None);
    assert_eq!(
        (records[0].record_offset.offset, records[1].record_offset.offset),
        (0, 1)
    );
    assert!(records[0].timestamp_ms.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_finished_is_read_again_by_the_next_source() {
    let cluster = Cluster::quick(1);
    cluster.publish(6).await;
    let first = cluster.start();
    let records = first.records(6).await;
    for index in [0, 1, 4] {
        first.tracker.release(&records[index].record_offset); // 2 holds the position back
    }
    until("a commit", || first.tracker.positions().is_empty()).await;
    drop(first); // its last commit says no more than that

    let second = cluster.start();
    let again = second.records(3).await;

    assert_eq!(texts(&again), ["2", "3", "5"], "4 is remembered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_source_has_committed_what_was_finished() {
    let cluster = Cluster::new(2); // the classic protocol, as it is by default
    cluster.publish(20).await;
    let first = cluster.start();
    let records = first.records(20).await;
    let (slow, quick) = records.split_last().unwrap();
    for record in quick {
        first.tracker.release(&record.record_offset);
    }
    let (tracker, record_offset) = (first.tracker.clone(), slow.record_offset.clone());
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        tracker.release(&record_offset);
    });

    let closed = first.source.close(LIMIT).await.unwrap();
    assert_eq!(closed, Closed { unfinished: 0 });

    cluster.publish(1).await;
    let second = cluster.start();
    assert_eq!(
        texts(&second.records(1).await),
        ["0"],
        "only the record that is new"
    );
    assert!(second.is_silent().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_has_an_end_and_says_what_is_unfinished() {
    let cluster = Cluster::quick(1);
    cluster.publish(3).await;
    let running = cluster.start();
    let records = running.records(3).await;
    running.tracker.release(&records[0].record_offset);

    let closed = running.source.close(Duration::from_millis(200)).await.unwrap();

    assert_eq!(closed, Closed { unfinished: 2 });
    assert_eq!(texts(&cluster.start().records(2).await), ["1", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_pauses_the_source_and_loses_nothing() {
    let mut cluster = Cluster::quick(1);
    cluster.config.queue_records_max = 4;
    cluster.publish(60).await;
    let running = cluster.start();

    until("a full queue", || running.events.is_full()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(
        running.tracker.unfinished() <= 6,
        "{} were read",
        running.tracker.unfinished()
    );

    let records = running.records(60).await;
    assert_eq!(texts(&records), numbers(0..60));
    assert!(running.is_silent().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_records_in_flight_pause_the_source_until_half_are_finished() {
    let mut cluster = Cluster::quick(1);
    cluster.config.in_flight_records_max = 10;
    cluster.publish(30).await;
    let running = cluster.start();

    let first = running.records(10).await;
    assert!(running.is_silent().await);
    assert_eq!(running.tracker.unfinished(), 10);

    for record in &first[..4] {
        running.tracker.release(&record.record_offset);
    }
    assert!(running.is_silent().await, "six are more than half");
    running.tracker.release(&first[4].record_offset);
    assert_eq!(texts(&running.records(5).await), numbers(10..15));
    assert!(running.is_silent().await);
}

/// librdkafka alone may look for what to fetch a second after it is resumed.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_paused_reads_on_at_once() {
    const PAUSES: usize = 12;
    let mut cluster = Cluster::quick(1);
    cluster.config.in_flight_records_max = 2;
    cluster.publish(2 * PAUSES).await;
    let running = cluster.start();
    let mut waited = Duration::ZERO;
    let mut in_flight = running.records(2).await;

    for _ in 1..PAUSES {
        // Long enough for its fetches to end.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let began = std::time::Instant::now();
        for record in in_flight {
            running.tracker.release(&record.record_offset);
        }
        in_flight = running.records(2).await;
        waited += began.elapsed();
    }

    // Half a second for each on average without a request, on a busy machine more.
    assert!(waited < Duration::from_millis(200) * PAUSES as u32, "{waited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_with_too_much_audio_in_flight_is_paused_and_the_other_one_is_read() {
    const RECORDS: usize = 20;
    let cluster = Cluster::quick(2);
    cluster.publish_keyed(RECORDS).await;
    let budget = Budget::with_audio(cluster.config.in_flight_bytes_max, 60.0);
    let busy = budget.audio().hold(TopicPartition::new(TOPIC, 0), 30.0);

    let running = cluster.start_with(budget);
    let mut of_the_other = vec![running.record().await];
    while let Ok(record) = tokio::time::timeout(Duration::from_millis(600), running.record()).await {
        of_the_other.push(record);
    }
    let is_of_the_busy = |record: &&Record| record.record_offset.partition == 0;
    let early = of_the_other.iter().filter(is_of_the_busy).count();
    assert!(early <= 1, "{early}: a partition is paused once it has started");
    drop(busy);

    let rest = running.records(RECORDS - of_the_other.len()).await;
    assert!(!rest.is_empty() && rest.iter().all(|record| is_of_the_busy(&record)));
}

/// The backlog is read before it is known how much audio it is; what is too much waits out of the way.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_partition_is_read_at_once_whatever_the_backlog_of_another_one() {
    const BACKLOG: usize = 100;
    let mut cluster = Cluster::quick(2);
    cluster.config.queue_records_max = 16;
    cluster.publish_as("one", BACKLOG).await;
    let budget = Budget::with_audio(cluster.config.in_flight_bytes_max, 60.0);
    let audio = budget.audio().clone();
    let running = cluster.start_with(budget);
    let (mut held, mut busy) = (Vec::new(), None);
    // As a first stage takes records, of which none is finished.
    while let Ok(record) = tokio::time::timeout(Duration::from_millis(600), running.record()).await {
        if let Some(record) = audio.admit(record) {
            let partition = TopicPartition::of(&record.record_offset);
            held.push(audio.hold(partition.clone(), 5.0));
            busy = Some(partition);
        }
    }
    assert_eq!(held.len(), 6, "half of the bound");
    let read = running.tracker.unfinished();
    assert!(read < BACKLOG / 2, "{read} were read");

    for key in ["two", "three", "four", "five", "six", "seven", "eight"] {
        cluster.publish_as(key, 1).await;
    }
    let of_other = async {
        loop {
            let record = running.record().await;
            if Some(TopicPartition::of(&record.record_offset)) != busy {
                return record;
            }
        }
    };
    let record = tokio::time::timeout(LIMIT, of_other).await.expect("it is read");
    assert!(audio.admit(record).is_some());
    held.clear();

    let mut rest = 0;
    while rest < BACKLOG - 6 {
        let deferred = tokio::select! {
            biased;
            record = audio.deferred() => Some(record),
            record = running.record() => audio.admit(record),
        };
        rest += usize::from(deferred.is_some_and(|record| {
            running.tracker.release(&record.record_offset);
            Some(TopicPartition::of(&record.record_offset)) == busy
        }));
    }
}

/// librdkafka alone would leave it paused: it keeps a pause beyond the assignment.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_paused_when_it_was_taken_away_is_read_when_it_comes_back() {
    const RECORDS: usize = 40;
    let mut cluster = Cluster::quick(2);
    cluster.config.in_flight_records_max = 2;
    cluster.config.revoke_wait_ms_max = 100;
    cluster.publish(RECORDS).await;
    let first = cluster.start();
    let mut read: HashSet<(i32, i64)> = HashSet::new();
    let mut take = |record: &Record| {
        first.tracker.release(&record.record_offset);
        read.insert((record.record_offset.partition, record.record_offset.offset));
        read.len()
    };
    let mut in_flight = first.records(2).await;
    let of_one = |record: &Record| record.record_offset.partition == in_flight[0].record_offset.partition;
    // Only a partition that has started is paused.
    if in_flight.iter().all(of_one) {
        in_flight.push(first.record().await);
    }

    let second = cluster.start();
    let moved = first.revoked().await.partitions;
    assert_eq!(moved.len(), 1);
    in_flight.iter().map(&mut take).for_each(drop);
    take(&first.record().await); // what it was left is read on
    second.source.close(Duration::ZERO).await.unwrap();

    while take(&first.record().await) < RECORDS {}
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_bytes_in_flight_pause_the_source() {
    let cluster = Cluster::quick(1);
    cluster.publish(1).await;
    let running = cluster.start();
    running.record().await; // it has started
    let hold = running
        .tracker
        .budget()
        .hold(running.tracker.budget().bytes_max());
    tokio::time::sleep(Duration::from_secs(1)).await; // several rounds of the loop, also on a busy machine

    cluster.publish(5).await;
    assert!(running.is_silent().await);

    drop(hold);
    assert_eq!(texts(&running.records(5).await), numbers(0..5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_moves_waits_for_its_records_and_repeats_none() {
    // Under the classic protocol the mock, unlike Apache Kafka, takes no offsets while members join;
    // `tests/kafka` has that case.
    let mut cluster = Cluster::quick(4);
    cluster.config.revoke_wait_ms_max = 5_000;
    cluster.publish(40).await;
    let first = cluster.start();
    let records = first.records(40).await;

    let second = cluster.start();
    let revocation = first.revoked().await;
    assert!(!revocation.lost);
    for record in &records {
        first.tracker.release(&record.record_offset); // while the group waits
    }

    let mut moved = Vec::new();
    while moved.len() < revocation.partitions.len() {
        match second.event().await {
            SourceEvent::Assigned { partitions, .. } => moved.extend(partitions),
            other => panic!("a record was repeated: {other:?}"),
        }
    }
    moved.sort();
    let mut revoked = revocation.partitions.clone();
    revoked.sort();
    assert_eq!(moved, revoked);
    assert!(second.is_silent().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_waits_no_longer_than_its_limit_and_voids_what_is_unfinished() {
    let mut cluster = Cluster::new(2);
    cluster.config.revoke_wait_ms_max = 300;
    cluster.publish(10).await;
    let first = cluster.start();
    let records = first.records(10).await;

    let second = cluster.start();
    let revocation = first.revoked().await;

    let of_moved = |record: &&Record| {
        revocation
            .partitions
            .contains(&TopicPartition::of(&record.record_offset))
    };
    let moved: Vec<&Record> = records.iter().filter(of_moved).collect();
    let mut expected: Vec<String> = moved.iter().map(|record| text(record)).collect();
    let mut again = texts(&second.records(moved.len()).await);
    expected.sort();
    again.sort();
    assert_eq!(again, expected);
    for record in moved {
        assert_eq!(first.tracker.release(&record.record_offset), Release::Void);
    }
}

/// The lag of the first partition of `topic`, as Prometheus reads it.
fn lag_of(topic: &str) -> Option<i64> {
    let text = crate::telemetry::metrics::render(&crate::telemetry::metrics::install().unwrap());
    let series = format!("speechverse_kafka_consumer_lag_records{{topic=\"{topic}\",partition=\"0\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value.map(|value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_counts_what_is_not_finished_and_is_absent_when_it_is_not_known() {
    let mut cluster = Cluster::quick(1);
    cluster.topic = "speechverse.lag";
    cluster.mock.create_topic(cluster.topic, 1, 1).unwrap();
    let sink = Sink::new(&cluster.config).unwrap();
    for number in 0..10 {
        let record = OutgoingRecord {
            topic: cluster.topic.into(),
            ..outgoing(&number.to_string())
        };
        sink.send(record).await.unwrap();
    }
    let running = cluster.start();
    let records = running.records(10).await;
    for record in &records[..7] {
        running.tracker.release(&record.record_offset);
    }

    until("a lag of three", || lag_of(cluster.topic) == Some(3)).await;
    cluster.mock.broker_down(1).unwrap();
    until("no lag without a broker", || lag_of(cluster.topic).is_none()).await;
    cluster.mock.broker_up(1).unwrap();
    until("a lag of three again", || lag_of(cluster.topic) == Some(3)).await;

    running.source.close(Duration::ZERO).await.unwrap();
    assert_eq!(lag_of(cluster.topic), None, "the partition is not ours any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_monitor_tells_partitions_broker_and_outage() {
    const LIMIT: Duration = Duration::from_millis(500);
    let cluster = Cluster::quick(1);
    cluster.mock.broker_down(1).unwrap();
    let running = cluster.start();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(running.monitor.check(LIMIT).is_err(), "no broker has been there");

    cluster.mock.broker_up(1).unwrap();
    until("a broker and partitions", || running.monitor.check(LIMIT).is_ok()).await;
    cluster.mock.broker_down(1).unwrap();
    until("an outage", || running.monitor.check(LIMIT).is_err()).await;
    let problem = running.monitor.check(LIMIT).unwrap_err();
    assert!(problem.contains("has had no"), "{problem}");
    cluster.mock.broker_up(1).unwrap();

    until("a broker again", || running.monitor.check(LIMIT).is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_records_nobody_takes_ends() {
    let cluster = Cluster::quick(1);
    let Running { source, events, .. } = cluster.start();

    drop(events);

    until("the end of the thread", || !source.is_running()).await;
    assert!(matches!(source.close(LIMIT).await, Err(KafkaError::Ended)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_outlives_a_broker_that_is_away() {
    let cluster = Cluster::quick(1);
    cluster.publish(2).await;
    let running = cluster.start();
    running.records(2).await;

    cluster.mock.broker_down(1).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(running.source.is_running());
    cluster.mock.broker_up(1).unwrap();

    cluster.publish(1).await;
    assert_eq!(texts(&running.records(1).await), ["0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_name_that_is_not_text_does_not_stop_the_source() {
    use std::io::Write;
    use std::os::unix::ffi::OsStrExt;
    use std::process::{Command, Stdio};

    let cluster = Cluster::quick(1);
    let header = std::ffi::OsStr::from_bytes(b"bad\xff\xfename=value");
    let kcat = Command::new("kcat")
        .args(["-P", "-b", &cluster.config.bootstrap, "-t", TOPIC, "-H"])
        .arg(header)
        .stdin(Stdio::piped())
        .spawn();
    let Ok(mut kcat) = kcat else {
        crate::testing::skip(
            "a_header_name_that_is_not_text_does_not_stop_the_source",
            "kcat is not installed",
        );
        return;
    };
    kcat.stdin.take().unwrap().write_all(b"poison").unwrap();
    assert!(kcat.wait().unwrap().success());
    cluster.publish(1).await;

    let records = cluster.start().records(2).await;

    assert_eq!(texts(&records), ["poison", "0"]);
    assert_eq!(records[0].headers[0].0, "bad\u{fffd}\u{fffd}name");
    assert_eq!(records[0].headers[0].1.as_deref(), Some(b"value".as_slice()));
}

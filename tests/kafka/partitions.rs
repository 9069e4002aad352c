//! Topics that get more partitions while they are read.

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};

use super::*;

/// The embedded broker adds no partitions to a topic.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_takes_partitions_that_are_added() {
    let Some(bench) = Bench::apache().await else {
        return speechverse::testing::skip(
            "a_reader_takes_partitions_that_are_added",
            "SPEECHVERSE_KAFKA is not set; scripts/kafka/suite.sh starts one and sets it",
        );
    };
    let topic = bench.requests();
    let mut reader = Reader::open(&bench.config, topic, ReadFrom::End, STEP)
        .await
        .unwrap();
    assert_eq!(reader.take_new_partitions(STEP).await.unwrap(), 0);

    let admin: AdminClient<_> = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &bench.config.bootstrap)
        .create()
        .unwrap();
    let (partitions, options) = ([NewPartitions::new(topic, 5)], AdminOptions::new());
    let made = admin.create_partitions(&partitions, &options).await.unwrap();
    assert!(made[0].is_ok(), "{made:?}");
    let began = Instant::now();
    let mut taken = 0;
    while taken < 2 {
        assert!(began.elapsed() < STEP, "{taken} of 2 partitions");
        taken += reader.take_new_partitions(STEP).await.unwrap();
    }
    assert_eq!(reader.take_new_partitions(STEP).await.unwrap(), 0);

    bench.publish(0..50).await;
    let mut places = BTreeMap::<i32, Vec<i64>>::new();
    while places.values().map(Vec::len).sum::<usize>() < 50 {
        match reader.next(STEP).await.unwrap() {
            Read::Record(record) => {
                let place = record.record_offset;
                places.entry(place.partition).or_default().push(place.offset);
            }
            Read::CaughtUp => {}
            Read::TimedOut => panic!("{places:?}"),
        }
    }
    assert_eq!(places.len(), 5, "{places:?}");
    for (partition, offsets) in places {
        let all: Vec<i64> = (0..offsets.len() as i64).collect();
        assert_eq!(offsets, all, "{partition}");
    }
}

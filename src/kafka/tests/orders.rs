//! The control topic: one partition, and where it ends.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_topic_of_several_partitions_is_refused_with_the_remedy() {
    let cluster = Cluster::new(4);
    for (_, topic) in cluster.config.topics.all() {
        if topic != TOPIC {
            cluster.mock.create_topic(topic, 4, 1).unwrap();
        }
    }

    let error = admin::ensure_topics(&cluster.config, LIMIT).await.unwrap_err();

    assert!(
        matches!(error, KafkaError::OrdersOvertake { partitions: 4, .. }),
        "{error}"
    );
    let message = error.to_string();
    for word in [
        "speechverse.control",
        "4 partitions",
        "--delete --topic",
        "kafka.topics.control",
    ] {
        assert!(message.contains(word), "{word}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_partition_is_the_offset_of_the_next_record() {
    let cluster = Cluster::new(1);
    let end = || admin::end_of(&cluster.config, TOPIC, 0, LIMIT);
    assert_eq!(end().await.unwrap(), 0);

    cluster.publish(3).await;

    assert_eq!(end().await.unwrap(), 3);
}

//! Exactly once: outcomes wait for the source's transactions.

use speechverse::kafka::config::Delivery;

use super::*;

/// An outcome may wait for another one that has not come here yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_wait_for_a_transaction_hold_nothing_up() {
    let mut kafka = Kafka::start().await;
    kafka.config.delivery = Delivery::ExactlyOnce;
    kafka.config.commit_interval_ms = 4_500;
    let harness = Harness::reading(kafka, 4, 1, DRAIN, |_| {}).await;
    let answer = |number| harness.publisher.tell(harness.answer(number, "yes".into()));
    answer(0).await.unwrap();
    until("the first transaction", || {
        harness.requests.tracker.unfinished() == 3
    })
    .await;

    for number in 1..4 {
        answer(number).await.unwrap(); // the next transaction is seconds away
    }
    let report = RecordsDeleted {
        partition: TopicPartition::new("requests", 3),
        first_offset: 17,
        records: 21,
    };
    harness.deleted.send_async(report).await.unwrap();

    harness.event().await;
    assert_eq!(
        harness.requests.tracker.unfinished(),
        3,
        "they wait for the transaction still"
    );
    harness.requests.idle().await;
    assert_eq!(harness.results(4).await.len(), 4);
}

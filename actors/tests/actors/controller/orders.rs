//! Orders: what is refused, given back, expired, or not carried out again.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_order_becomes_a_dead_letter_and_the_next_order_is_carried_out() {
    let harness = Harness::new(|_| {}).await;

    harness.order(r#"{"command": "retrian"}"#).await;
    harness.order(r#"{"command": "pause"}"#).await;
    let letter = next(&harness.letters).await;
    harness.event().await;
    until("the order is released", || {
        harness.orders.tracker.unfinished() == 1
    })
    .await;

    assert_eq!(letter.rejection.reason, Reason::InvalidCommand);
    assert!(harness.training.is_paused());
    assert!(is_silent(&harness.letters).await);
    assert_eq!(
        harness.orders.tracker.unfinished(),
        1,
        "the dead letter's offset is the publisher's to release"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_that_this_process_cannot_carry_out_are_refused_with_the_reason() {
    let harness = Harness::new(|trainer| trainer.enabled = false).await;

    harness.order(r#"{"command": "retrain"}"#).await;
    assert!(harness.refusal().await.2.contains("trainer.enabled"));

    let harness = Harness::new(|_| {}).await;
    harness
        .order(r#"{"command": "retrain", "id": "../elsewhere"}"#)
        .await;
    assert!(harness.refusal().await.2.contains("../elsewhere"));
    assert!(harness.cycles.try_recv().is_err());
    harness.orders.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_a_controller_had_in_hand_when_it_died_is_given_back() {
    let harness = Harness::between(busy_probe(), busy_probe(), |_| {}).await;
    // The publisher takes two events; the controller waits with a third.
    for _ in 0..3 {
        harness.order(r#"{"command": "pause"}"#).await;
    }
    until("two orders are carried out", || {
        harness.orders.tracker.unfinished() == 1
    })
    .await;
    tokio::time::sleep(A_WHILE).await;

    harness.controller.kill();
    let back = next(&harness.found).await;

    assert_eq!(back.record.record_offset.offset, 2);
    assert_eq!(back.stage, Stage::Control);
    assert!(harness.found.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_from_before_the_start_expire_and_later_ones_are_carried_out() {
    let before = [
        r#"{"command": "retrain", "id": "old-1"}"#,
        r#"{"command": "rollback", "id": "old-2"}"#,
        r#"{"command": "pause"}"#,
    ];
    let harness = Harness::after(&before, busy_probe(), probe(), |_| {}).await;

    for (id, command) in [
        ("old-1", "retrain"),
        ("old-2", "rollback"),
        ("order-speechverse.control-0-2", "pause"),
    ] {
        let expired = harness.expiry().await;
        assert_eq!((expired.0.as_str(), expired.1.as_str()), (id, command));
        assert!(expired.2.contains("before this process started"), "{}", expired.2);
    }
    harness.orders.idle().await;
    assert!(!harness.training.is_paused());
    assert!(harness.cycles.try_recv().is_err());
    assert_eq!(harness.current.get().version(), "tiny-0002");

    harness.order(r#"{"command": "pause", "id": "new"}"#).await;
    assert_eq!(harness.carried_out().await, ("new".into(), "pause".into()));
    assert!(harness.training.is_paused());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_is_read_again_is_not_carried_out_again() {
    let harness = Harness::new(|_| {}).await;
    harness.order(r#"{"command": "retrain", "id": "run-1"}"#).await;
    harness.order(r#"{"command": "rollback"}"#).await;
    assert_eq!(harness.carried_out().await.1, "retrain");
    harness.event().await;
    assert_eq!(harness.carried_out().await.1, "rollback");
    harness.orders.idle().await;
    next(&harness.cycles).await;

    // The group's offsets are lost: another member of another group begins with the first order again.
    let again = harness
        .kafka
        .feed_as("another-group", &harness.kafka.config.topics.control);
    let first = again.record().await;
    harness.inject(first).await;
    let second = again.record().await;
    harness.inject(second).await;

    assert!(is_silent(&harness.events).await);
    assert!(is_silent(&harness.cycles).await);
    assert_eq!(harness.current.get().version(), "tiny-0001");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_over_the_age_limit_or_from_another_partition_is_reported_and_not_carried_out() {
    let harness = Harness::new(|_| {}).await;
    let now = jiff::Timestamp::now().as_millisecond();
    let age_ms = AGE_MAX.as_millis() as i64;
    let order = |offset: i64, partition: i32, timestamp_ms: Option<i64>| {
        let mut record = record(0);
        record.record_offset.topic = Arc::from("speechverse.control");
        record.record_offset.offset = offset;
        record.record_offset.partition = partition;
        record.value = Some(Bytes::from_static(br#"{"command": "pause"}"#));
        record.timestamp_ms = timestamp_ms;
        record
    };

    harness.inject(order(0, 0, Some(now - age_ms - 5_000))).await;
    let (_, command, reason) = harness.expiry().await;
    assert_eq!(command, "pause");
    assert!(reason.contains("service.order_age_seconds_max"), "{reason}");

    harness.inject(order(1, 1, Some(now))).await;
    assert!(harness.refusal().await.2.contains("overtake each other"));
    assert!(!harness.training.is_paused());

    let in_time = [
        None,
        Some(now + age_ms),
        Some(i64::MAX),
        Some(now - age_ms + 60_000),
    ];
    for (offset, timestamp_ms) in (2..).zip(in_time) {
        harness.inject(order(offset, 0, timestamp_ms)).await;
        assert_eq!(harness.carried_out().await.1, "pause", "{timestamp_ms:?}");
    }
}

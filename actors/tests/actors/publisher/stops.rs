//! Stops and failures of the publisher: what is on its way.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_waits_for_the_sends_that_are_on_their_way() {
    // The sink collects for half a second before it sends, so nothing is there when the stop is asked for.
    let harness = Harness::new(3, 8, |sink| {
        let slow = ("linger.ms".to_owned(), "500".to_owned());
        sink.producer = [slow].into_iter().collect();
    })
    .await;
    for number in 0..3 {
        harness
            .publisher
            .tell(harness.answer(number, "yes".into()))
            .await
            .unwrap();
    }

    stop(&harness.publisher).await;

    assert_eq!(harness.requests.tracker.unfinished(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_waits_as_long_as_a_drain_may_take_and_no_longer() {
    // Sends that take six seconds, and no broker at all.
    let slow = Harness::new(1, 8, |sink| {
        let linger = ("linger.ms".to_owned(), "6000".to_owned());
        sink.producer = [linger].into_iter().collect();
    })
    .await;
    let hasty = Harness::draining(1, 8, Duration::from_millis(200), |sink| {
        sink.bootstrap = nobody_listens().to_string();
    })
    .await;
    for harness in [&slow, &hasty] {
        harness
            .publisher
            .tell(harness.answer(0, "yes".into()))
            .await
            .unwrap();
    }

    let began = std::time::Instant::now();
    stop(&hasty.publisher).await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(hasty.requests.tracker.unfinished(), 1);
    stop(&slow.publisher).await;
    assert_eq!(slow.requests.tracker.unfinished(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_broker_does_not_take_before_a_stop_is_not_released() {
    let harness = Harness::new(1, 8, |sink| {
        sink.bootstrap = nobody_listens().to_string();
        sink.send_timeout_ms = 300;
    })
    .await;

    harness
        .publisher
        .tell(harness.answer(0, "yes".into()))
        .await
        .unwrap();
    stop(&harness.publisher).await; // not before the last try has failed

    assert_eq!(harness.requests.tracker.unfinished(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sends_that_are_repeated_outlive_a_publisher_that_fails() {
    let address = nobody_listens();
    let harness = Harness::new(1, 8, |sink| {
        sink.bootstrap = address.to_string();
        sink.send_timeout_ms = 300;
        let quick = ("reconnect.backoff.max.ms".to_owned(), "200".to_owned());
        sink.producer = [quick].into_iter().collect();
    })
    .await;
    let answer = harness.answer(0, "yes".into());
    harness.publisher.tell(answer).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await; // it is being repeated

    harness.publisher.kill();
    harness.publisher.wait_for_shutdown().await;
    tokio::time::sleep(Duration::from_secs(1)).await; // several tries fail after the end
    let _other = Kafka::start_at(address).await;

    harness.requests.idle().await;
}

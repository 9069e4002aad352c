//! Requests and streams that are refused: nothing more is done for them, and nobody else notices.

use jiff::{SignedDuration, Timestamp};

use super::windows::{harness, sound};
use super::*;

/// The next chunk of a stream, with further headers.
fn chunk(number: usize, is_final: bool, further: &[(&str, String)]) -> Vec<(String, Option<Bytes>)> {
    let further = further.iter().map(|(name, value)| header(name, value.clone()));
    let place = [
        header("ce_session", "talk"),
        header("ce_sequence", number.to_string()),
        header("ce_final", is_final.to_string()),
    ];
    place.into_iter().chain(further).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_of_a_stream_that_is_broken_or_silent_are_not_worked_on_any_more() {
    let harness = harness().await;
    for is_broken in [true, false] {
        harness
            .request(7, sound(&[(2.5, true)]), chunk(0, false, &[]))
            .await;
        harness.forward().await;
        let order = harness.utterance().await;
        assert!(!order.context.is_void());

        if is_broken {
            harness
                .request(7, sound(&[(0.5, true)]), chunk(2, false, &[]))
                .await;
            harness.forward().await;
        } else {
            harness.clock.advance(Duration::from_secs(61));
        }
        for _ in 0..1 + usize::from(is_broken) {
            let letter = next(&harness.letters).await;
            assert_eq!(letter.rejection.reason, Reason::BrokenStream);
        }

        assert!(order.context.is_void(), "before its letters");
        order.context.complete();
    }
    assert!(harness.found.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_strangers_put_into_headers_of_chunks_does_not_stay_in_memory_nor_fill_the_source() {
    let harness = harness().await;
    let tracker = harness.requests.tracker.clone();
    let foreign = [("foreign", "x".repeat(400_000))];
    for number in 0..6 {
        let headers = chunk(number, false, &foreign);
        harness.request(7, sound(&[(0.1, false)]), headers).await;
        harness.forward().await;
    }

    // Two that are whole, and the headers of the first.
    until("they are taken up", || {
        tracker.unfinished() == 6 && tracker.budget().bytes() < 1_300_000
    })
    .await;
    harness.clock.advance(Duration::from_secs(61));

    for number in 0..6 {
        let letter = next(&harness.letters).await;
        let is_whole = number == 0 || number > 3;
        let mut headers = letter.record.headers.iter();
        assert_eq!(headers.any(|(name, _)| name == "foreign"), is_whole, "{number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_deadline_is_past_when_it_begins_never_reaches_the_device() {
    let harness = harness().await;
    let past = harness.clock.time().to_string();
    for task in ["asr", "emotion"] {
        let headers = [("ce_deadline", past.clone()), ("ce_task", task.to_owned())];
        harness
            .request(7, sound(&[(2.5, true)]), chunk(0, false, &headers))
            .await;
        harness.forward().await;

        let letter = next(&harness.letters).await;

        assert_eq!(letter.rejection.reason, Reason::DeadlineExceeded, "{task}");
    }
    assert!(is_silent(&harness.utterances).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_s_deadline_is_not_moved_by_the_time_of_day() {
    let harness = harness().await;
    let deadline: Timestamp = harness.clock.time() + SignedDuration::from_secs(30);
    let headers = [
        ("ce_deadline", deadline.to_string()),
        ("ce_task", "emotion".to_owned()),
    ];
    let by = harness.clock.now() + Duration::from_secs(30);
    for (number, (jump, passed, is_late)) in [(3_600, 10, false), (-3_600, 30, true)].into_iter().enumerate()
    {
        harness
            .request(number, sound(&[(0.5, true)]), chunk(0, false, &headers))
            .await;
        harness.forward().await;
        until("it has begun", || harness.requests.tracker.busy() == 0).await;
        tokio::time::sleep(crate::support::A_WHILE).await;
        harness.clock.jump(SignedDuration::from_secs(jump));
        harness.clock.advance(Duration::from_secs(passed));
        harness
            .request(8, sound(&[(0.5, true)]), chunk(1, true, &[]))
            .await;
        harness.forward().await;

        if is_late {
            for _ in 0..2 {
                let letter = next(&harness.letters).await;
                assert_eq!(letter.rejection.reason, Reason::DeadlineExceeded);
            }
            continue;
        }
        let utterance = harness.utterance().await;
        assert_eq!(utterance.context.deadline, Some(by));
        let record_offsets = utterance.context.earlier.clone();
        let last = utterance.context.complete().record.record_offset;
        for record_offset in record_offsets.iter().chain([&last]) {
            harness.requests.tracker.release(record_offset);
        }
        harness.clock.jump(SignedDuration::from_secs(-jump));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_refused_does_not_barge_in() {
    let harness = Harness::new(probe(), probe()).await;
    let headers = |further: &[(&str, String)]| {
        let further = further.iter().map(|(name, value)| header(name, value.clone()));
        let common = [header("ce_session", "talk"), header("ce_bargein", "true")];
        common.into_iter().chain(further).collect::<Vec<_>>()
    };
    harness.request(0, pcm(1_600, 0.25), headers(&[])).await;
    harness.forward().await;
    let running = harness.utterance().await;
    let past = [("ce_deadline", harness.clock.time().to_string())];
    harness.request(1, pcm(1_600, 0.25), headers(&past)).await;
    harness.request(2, Bytes::from_static(b""), headers(&[])).await;

    for reason in [Reason::DeadlineExceeded, Reason::EmptyValue] {
        harness.forward().await;
        assert_eq!(next(&harness.letters).await.rejection.reason, reason);
    }
    assert!(!running.context.interrupt.is_set());
    harness.request(3, pcm(1_600, 0.25), headers(&[])).await;
    harness.forward().await;
    let next_one = harness.utterance().await;

    assert!(running.context.interrupt.is_set());
    assert!(!next_one.context.interrupt.is_set());
}

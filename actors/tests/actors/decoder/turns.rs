//! Whose answer goes first, and whose is given up.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_late_is_given_up_while_it_is_generated_and_its_slot_is_free() {
    let harness = Harness::new(1).await;
    let mut late = harness.long(0);
    late.context.request.partials = true;
    late.context.deadline = Some(harness.clock.now() + Duration::from_secs(5));
    let mut waiting = harness.utterance(1, "one", 0.3);
    waiting.context.deadline = late.context.deadline;

    harness.tell(late).await;
    harness.tell(waiting).await;
    next(&harness.partials).await; // it is being generated
    harness.clock.advance(Duration::from_secs(5));
    let letters = [next(&harness.letters).await, next(&harness.letters).await];

    for (letter, number) in letters.iter().zip([1, 0]) {
        assert_eq!(letter.record.record_offset, record(number).record_offset);
        assert_eq!(letter.rejection.reason, Reason::DeadlineExceeded);
        assert_eq!(letter.rejection.stage, Stage::Decode);
    }
    harness.is_well().await;
    assert!(harness.answers.is_empty() && is_silent(&harness.found).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_take_turns_for_a_slot_and_interactive_goes_first() {
    let harness = Harness::new(1).await;
    let utterance = |number: usize, key, priority| {
        let mut utterance = harness.long(number);
        utterance.context = queued_as(utterance.context, key, priority, &harness.orphans);
        utterance
    };
    let utterances = [
        utterance(0, "first", Priority::Interactive),
        utterance(1, "bulk", Priority::Bulk),
        utterance(2, "chatty", Priority::Interactive),
        utterance(3, "chatty", Priority::Interactive),
        utterance(4, "chatty", Priority::Interactive),
        utterance(5, "other", Priority::Interactive),
    ];

    for utterance in utterances {
        harness.tell(utterance).await;
    }
    let mut order = Vec::new();
    for _ in 0..6 {
        order.push(harness.answer().await.0);
    }

    assert_eq!(order, [0, 2, 5, 3, 4, 1]);
}

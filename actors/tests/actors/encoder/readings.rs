//! Readings of utterances in progress.

use speechverse::wire::answer::Segment;
use speechverse_actors::messages::{EncodeSoFar, SoFar};
use speechverse_actors::reading::Reading;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reading_is_given_up_when_its_utterance_is_answered() {
    let harness = Harness::new(1, FOREVER_MS).await;
    let reading = Reading::default();
    let state = harness.utterance(0, vec![LASTS; 20]).context.complete();
    let so_far = SoFar {
        turn: reading.turn().unwrap(),
        segment: Segment {
            number: 0,
            begin_seconds: 0.0,
            end_seconds: 1.0,
            is_settled: false,
            confirmed: None,
        },
        request: state.request,
        key: None,
        is_to_confirm: false,
    };
    let order = EncodeSoFar {
        samples: vec![LASTS; 20],
        adapter: adapter("one", LayerMix::Last, 2, 4),
        so_far,
    };
    harness.encoder.tell(order).await.unwrap();
    assert_eq!(next(&harness.calls).await, [20]);
    harness.tell(1, 0.25, 40).await;
    assert!(is_silent(&harness.features).await, "the reading is still wanted");

    reading.set_answered(true);

    assert_eq!(harness.result().await, (1, vec![0.25; 4]));
    assert!(reading.turn().is_some(), "its turn is over");
}

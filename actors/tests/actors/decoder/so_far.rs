//! Utterances in progress: words that the language model confirms, and answers that begin with them.

use speechverse::inference::Generation;
use speechverse::wire::answer::Segment;
use speechverse_actors::messages::{ReadSoFar, SoFar};
use speechverse_actors::reading::{ReadSegment, Reading};

use super::*;

/// The answer to segment 0 of a stream of which two tokens are confirmed, 70 and 71.
pub(super) fn confirmed() -> ReadSegment {
    let stream = Reading::default();
    let hypothesis = Generation {
        ids: vec![70, 71, 72, 73, 74],
        log_probs: vec![-1.0; 5],
        ..Generation::default()
    };
    for _ in 0..2 {
        let turn = stream.turn().unwrap();
        turn.agree(0, 0.3, &hypothesis, |_| true);
    }
    ReadSegment {
        reading: stream,
        number: 0,
        cut_seconds: None,
    }
}

/// A reading of segment 0 of a stream in which `sound` is heard so far.
async fn reading(harness: &Harness, reading: &Reading, sound: f64, is_to_confirm: bool) {
    let DecodeUtterance {
        features,
        adapter,
        context,
    } = harness.utterance(0, "one", sound);
    let turn = reading.turn().expect("no other one is on its way");
    let request = context.request.clone();
    context.complete();
    let so_far = SoFar {
        turn,
        segment: Segment {
            number: 0,
            begin_seconds: 0.5,
            end_seconds: 1.5,
            is_settled: false,
            confirmed: None,
        },
        request,
        key: None,
        is_to_confirm,
    };
    let order = ReadSoFar {
        features,
        adapter,
        so_far,
    };
    harness.decoder.tell(order).await.unwrap();
    until("it is read", || reading.turn().is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readings_and_the_answer_begin_with_what_is_confirmed() {
    let harness = Harness::new(2).await;
    let segment = confirmed();
    let stream = segment.reading.clone();
    harness.tell(harness.utterance(0, "one", 0.3)).await;
    let alone = harness.answer().await.2;
    let confirmed = stream.confirmed(0);

    reading(&harness, &stream, 0.3, true).await;
    let read = next(&harness.partials).await.answer;
    let mut settled = harness.utterance(1, "one", 0.3);
    settled.context.so_far = Some(segment);
    harness.tell(settled).await;
    let settled = harness.answer().await.2;

    assert_eq!(confirmed.ids, [70, 71]);
    let segment = read.segment.clone().unwrap();
    let begin = segment.confirmed.unwrap();
    assert_eq!(
        (read.kind, segment.is_settled, begin.len()),
        (AnswerKind::Partial, false, 2)
    );
    let keeps_words = |text: &str| {
        let behind = text.strip_prefix(&begin);
        behind.is_some_and(|behind| behind.is_empty() || behind.starts_with(' '))
    };
    assert!(keeps_words(&read.text), "{read:?}");
    assert!(keeps_words(&settled), "`{settled}` and `{begin}`");
    assert!(
        !alone.starts_with(&begin),
        "the sound alone says something else: `{alone}`"
    );
    assert_eq!(
        stream.confirmed(0).ids,
        confirmed.ids,
        "one reading more confirms nothing"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_a_stream_that_was_read_is_not_published_in_parts_whose_ids_the_readings_have() {
    let harness = Harness::new(2).await;
    let mut utterance = harness.long(0);
    utterance.context.request.partials = true;
    utterance.context.so_far = Some(confirmed());

    harness.tell(utterance).await;
    harness.answer().await;

    assert!(is_silent(&harness.partials).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_language_model_reads_nothing_while_there_is_something_to_answer() {
    let harness = Harness::new(2).await;
    let stream = Reading::default();
    harness.tell(harness.long(0)).await;

    reading(&harness, &stream, 0.3, true).await;
    harness.answer().await;

    assert!(harness.partials.is_empty(), "this version has no CTC head");
    reading(&harness, &stream, 0.3, false).await;
    assert!(harness.partials.is_empty(), "it is not time to confirm");
    harness.is_well().await;
}

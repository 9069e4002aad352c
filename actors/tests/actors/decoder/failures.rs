//! Errors, panics and deaths: each costs the request at fault and no other.

use std::sync::atomic::AtomicBool;

use speechverse::wire::answer::Segment;
use speechverse::wire::dead_letter::Rejection;
use speechverse_actors::messages::{
    Joined, RequestContext, WindowAnswer, WindowDone, WindowOwner, WindowPart,
};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn features_that_do_not_fit_become_a_dead_letter_and_those_beside_them_are_answered() {
    let harness = Harness::new(4).await;
    let mut wrong = harness.utterance(1, "one", 0.3);
    wrong.features = with_frames(Tensor::zeros([20, 3], (Kind::Float, Device::Cpu)));
    let mut endless = harness.utterance(2, "one", 0.3);
    endless.features = with_frames(Tensor::zeros([20_000, WIDTH as i64], (Kind::Float, Device::Cpu)));

    harness.tell(harness.utterance(0, "one", 0.3)).await;
    harness.tell(wrong).await;
    harness.tell(endless).await;
    harness.tell(harness.utterance(3, "one", 0.3)).await;
    let letters = [next(&harness.letters).await, next(&harness.letters).await];

    assert_eq!(letters[0].record.record_offset, record(1).record_offset);
    assert_eq!(letters[0].rejection.reason, Reason::InternalError);
    assert_eq!(letters[1].record.record_offset, record(2).record_offset);
    assert_eq!(letters[1].rejection.reason, Reason::AudioTooLong);
    assert!(
        letters
            .iter()
            .all(|letter| letter.rejection.stage == Stage::Decode)
    );
    let mut answered = [harness.answer().await.0, harness.answer().await.0];
    answered.sort_unstable();
    assert_eq!(answered, [0, 3]);
    assert!(is_silent(&harness.found).await);
}

/// Two healthy requests beside one whose prompt makes the model fail, all started together or later: it
/// becomes a dead letter with its reason, the others are answered as if it had not been there.
async fn one_of_three_fails_when_the_model(failure: u8, reason: &str) {
    let harness = Harness::new(4).await;
    harness.tell(harness.long(0)).await;
    let alone = harness.answer().await.2;
    harness.failure.set(failure);
    let mut bad = harness.long(1);
    // Four frames are one position.
    bad.features = with_frames(Tensor::ones(
        [4 * BAD_POSITIONS, WIDTH as i64],
        (Kind::Float, Device::Cpu),
    ));

    harness.tell(harness.long(0)).await;
    harness.tell(bad).await;
    harness.tell(harness.long(2)).await;
    let letter = next(&harness.letters).await;
    let mut answers = [harness.answer().await, harness.answer().await];

    assert_eq!(letter.record.record_offset, record(1).record_offset);
    assert_eq!(letter.rejection.reason, Reason::InternalError);
    assert_eq!(letter.rejection.stage, Stage::Decode);
    assert!(
        letter.rejection.message.contains(reason),
        "{}",
        letter.rejection.message
    );
    answers.sort();
    assert_eq!(
        answers.map(|(number, _, text)| (number, text)),
        [(0, alone.clone()), (2, alone)]
    );
    for _ in 0..5 {
        harness.is_well().await; // more often than there are slots
    }
    assert!(harness.letters.is_empty() && is_silent(&harness.found).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_fails_ends_its_own_request_with_its_reason() {
    one_of_three_fails_when_the_model(FailureSwitch::PREFILL_FAILS, "empty").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_panics_ends_its_own_request_with_its_reason() {
    one_of_three_fails_when_the_model(FailureSwitch::PREFILL_PANICS, "on purpose").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_fails_ends_the_request_at_fault_with_its_reason() {
    one_of_three_fails_when_the_model(FailureSwitch::STEP_FAILS, "empty").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_panics_ends_the_request_at_fault_with_its_reason() {
    one_of_three_fails_when_the_model(FailureSwitch::STEP_PANICS, "on purpose").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_decoder_held_when_it_died_is_handed_back_and_its_successor_answers() {
    let harness = Harness::before(busy_probe(), 2, 4).await;
    for number in 0..3 {
        harness.tell(harness.utterance(number, "one", 0.3)).await;
    }
    // Two answers are with the publisher; the decoder waits with the third until it dies.
    until("it has taken all", || took_all(&harness.decoder)).await;
    tokio::time::sleep(crate::support::A_WHILE).await;

    harness.decoder.kill();
    let back = next(&harness.found).await;
    harness.tell(harness.utterance(3, "one", 0.3)).await;
    let mut outcomes = vec![back.record.record_offset.offset];
    for _ in 0..3 {
        outcomes.push(harness.answer().await.0);
    }

    outcomes.sort_unstable();
    assert_eq!(outcomes, [0, 1, 2, 3], "each has exactly one outcome");
    assert!(is_silent(&harness.found).await);
}

/// Who joins a recording that is given up while a window's last token is made.
#[derive(Debug, Default)]
struct GivenUp(AtomicBool);

impl WindowOwner for GivenUp {
    fn keep(&self, done: WindowDone) -> Option<WindowDone> {
        self.0.store(true, Ordering::SeqCst);
        Some(done)
    }

    fn answered(&self, _: usize, _: WindowAnswer) -> Option<Joined> {
        None
    }

    fn failed(&self, _: Rejection) -> Option<RequestContext> {
        None
    }

    fn is_over(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_a_window_of_a_recording_that_is_given_up_is_not_published() {
    let harness = Harness::new(2).await;
    let owner = Arc::new(GivenUp::default());
    let mut window = harness.utterance(0, "one", 0.3);
    window.context.request.partials = true;
    window.context.is_window(WindowPart {
        owner: owner.clone(),
        number: 0,
        segment: Segment {
            number: 0,
            begin_seconds: 0.0,
            end_seconds: 1.0,
            is_settled: true,
            confirmed: None,
        },
        place: None,
    });

    harness.tell(window).await;
    until("it is answered", || owner.is_over()).await;

    harness.is_well().await;
    assert!(harness.partials.is_empty());
}

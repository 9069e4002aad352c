//! Answers that end because somebody speaks again.

use speechverse::wire::answer::Flag;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_in_progress_ends_with_what_there_is_of_it_when_its_session_goes_on() {
    let harness = Harness::new(4).await;
    let mut utterance = harness.long(0);
    utterance.context.request.partials = true;
    let interrupt = utterance.context.interrupt.clone();
    harness.tell(utterance).await;
    let partial = next(&harness.partials).await.answer;

    interrupt.set();
    let PublishAnswer { answer, context } = next(&harness.answers).await;

    assert!(answer.flags.contains(&Flag::Cancelled), "{:?}", answer.flags);
    assert!(!answer.flags.contains(&Flag::Truncated), "{:?}", answer.flags);
    assert!(
        answer.text.starts_with(&partial.text),
        "{} {}",
        answer.text,
        partial.text
    );
    assert!(answer.text.len() < 100, "{}", answer.text);
    context.complete();
    harness.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_prompt_is_not_read_yet_is_answered_with_the_words_that_are_confirmed() {
    let harness = Harness::in_parts(probe(), 2, 8, 4).await;
    let mut utterance = harness.utterance(0, "one", 0.3);
    utterance.context.so_far = Some(super::so_far::confirmed());
    utterance.context.interrupt.set();

    harness.tell(utterance).await;
    let PublishAnswer { answer, context } = next(&harness.answers).await;

    context.complete();
    assert!(answer.flags.contains(&Flag::Cancelled), "{:?}", answer.flags);
    assert!(!answer.flags.contains(&Flag::Truncated), "{:?}", answer.flags);
    assert_eq!((answer.text.as_str(), answer.tokens), ("gh", 2));
    harness.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_has_not_begun_is_answered_with_nothing() {
    let harness = Harness::new(1).await;
    let first = harness.long(0);
    let second = harness.long(1);
    second.context.interrupt.set();
    harness.tell(first).await;
    harness.tell(second).await;

    let mut answers = Vec::new();
    for _ in 0..2 {
        let PublishAnswer { answer, context } = next(&harness.answers).await;
        context.complete();
        answers.push(answer);
    }

    answers.sort_by(|one, other| one.request_id.cmp(&other.request_id));
    assert!(!answers[0].flags.contains(&Flag::Cancelled));
    assert!(answers[0].text.len() >= 100);
    assert!(answers[1].flags.contains(&Flag::Cancelled));
    assert!(answers[1].text.len() < 100, "{}", answers[1].text);
    assert!(harness.letters.is_empty() && harness.found.is_empty());
}

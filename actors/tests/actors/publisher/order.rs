//! In which order it sends, and what it does not send.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn dead_letters_are_written_in_the_order_in_which_they_came() {
    let harness = Harness::new(60, 64, |_| {}).await;

    for record in &harness.records {
        drop(context(record.clone(), &harness.orphans)); // the publisher takes several at a time
    }
    harness.requests.idle().await;

    let letters = harness.dead_letters(60).await;
    let ids: Vec<String> = letters.iter().map(|letter| text_of(letter, "ce_id")).collect();
    let wanted: Vec<String> = (0..60).map(|number| format!("request-{number}")).collect();
    assert_eq!(ids, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_of_a_record_is_not_sent_when_its_partition_is_gone() {
    let harness = Harness::new(2, 8, |_| {}).await;
    let answer = harness.answer(0, "yes".into());
    let rejection = Rejection::new(Reason::NotAudio, Stage::Ingest, "no sound");
    let letter = PublishDeadLetter::at_admission(harness.records[1].clone(), rejection);
    let Harness {
        publisher,
        kafka,
        requests,
        ..
    } = harness;

    requests.leave().await;
    publisher.tell(answer).await.unwrap();
    publisher.tell(letter).await.unwrap();
    stop(&publisher).await;

    // Whatever it had sent would stand before this.
    for topic in [&kafka.config.topics.results, &kafka.config.topics.dead_letters] {
        kafka.write(topic, None, vec![header("x", "the first")]).await;
        assert_eq!(text_of(&kafka.read(topic, 1).await[0], "x"), "the first");
    }
}

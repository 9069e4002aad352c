//! Corrections: which request they are about, which one is in force, and what they may say.

use std::collections::BTreeMap;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_correction_supersedes_the_earlier_one_also_after_a_restart() {
    let harness = Harness::new(10_000, |_| {}).await;
    harness.admitted(1, 700, None).await;
    for target in ["he was not ill", "he was not an ill man"] {
        harness.correct("request-1", target, &[]).await;
    }
    harness.stored(2).await;
    harness.labels.idle().await;
    assert_eq!(harness.targets(), ["he was not an ill man"]);

    harness.collector.kill(); // with all that it remembered
    harness
        .correct("request-1", "he was not an ill disposed young man", &[])
        .await;
    harness.stored(3).await;
    harness.labels.idle().await;

    assert_eq!(harness.targets(), ["he was not an ill disposed young man"]);
    assert!(is_silent(&harness.letters).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correction_that_comes_before_its_request_waits_for_it() {
    let harness = Harness::new(10_000, |_| {}).await;
    for target in ["first", "second"] {
        harness.correct("request-1", target, &[]).await;
    }
    harness.correct("request-2", "third", &[]).await;
    until("they are read", || harness.labels.tracker.unfinished() == 3).await;
    harness
        .clock
        .advance(harness.correction_wait - Duration::from_millis(1));
    assert!(is_silent(&harness.letters).await);
    assert_eq!((harness.store.len(), harness.labels.tracker.unfinished()), (0, 3));

    harness.admitted(1, 700, None).await;
    harness.stored(2).await;

    assert_eq!(harness.targets(), ["second"]);
    until("what is stored is released", || {
        harness.labels.tracker.unfinished() == 1
    })
    .await;
    harness.admitted(2, 700, None).await;
    harness.labels.idle().await;
    assert_eq!(harness.targets(), ["second", "third"]);
    assert!(is_silent(&harness.letters).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correction_whose_request_does_not_come_is_refused_after_a_while() {
    let harness = Harness::new(10_000, |store| store.corrections_waiting_max = 2).await;
    for number in 0..3 {
        harness.correct(&format!("request-{number}"), "hello", &[]).await;
    }

    // A third one exceeds the limit: the one that has waited longest goes at once.
    let first = next(&harness.letters).await;
    assert!(is_silent(&harness.letters).await);
    harness.clock.advance(harness.correction_wait);
    let letters = [first, next(&harness.letters).await, next(&harness.letters).await];

    for (number, letter) in letters.iter().enumerate() {
        assert_eq!(letter.rejection.reason, Reason::UnknownSubject);
        assert!(
            letter.rejection.message.contains(&format!("`request-{number}`")),
            "{}",
            letter.rejection
        );
    }
    assert_eq!(
        harness.labels.tracker.unfinished(),
        3,
        "released by the publisher"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correction_is_about_the_request_of_its_source() {
    let harness = Harness::new(10_000, |_| {}).await;
    for (samples, source) in [(700, "/phone"), (900, "/kitchen")] {
        harness
            .admitted_as(1, samples, |request| request.source = Some(source.to_owned()))
            .await;
    }
    until("it has both", || took_all(&harness.collector)).await;

    harness
        .correct("request-1", "said in the kitchen", &[("ce_source", "/kitchen")])
        .await;
    let named = [("ce_source", "/kitchen"), ("ce_subjectsource", "/phone")];
    harness.correct("request-1", "said on the phone", &named).await;
    harness.stored(2).await;
    harness
        .correct("request-1", "said by whom?", &[("ce_source", "/labels")])
        .await;
    let letter = next(&harness.letters).await;

    let lengths: Vec<(String, usize)> = (harness.samples().into_iter())
        .map(|(_, target, _, samples)| (target, samples))
        .collect();
    assert_eq!(
        lengths,
        [
            ("said in the kitchen".to_owned(), 900),
            ("said on the phone".to_owned(), 700)
        ]
    );
    assert_eq!(letter.rejection.reason, Reason::UnknownSubject);
    for part in ["/kitchen, /phone", "ce_subjectsource"] {
        assert!(letter.rejection.message.contains(part), "{}", letter.rejection);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correction_is_one_of_the_answers_that_the_request_or_its_task_allows() {
    let harness = Harness::new(10_000, |_| {}).await;
    harness
        .admitted_as(1, 700, |request| {
            request.labels = Some(vec!["lamp_on".to_owned(), "lamp_off".to_owned()]);
        })
        .await;
    harness.admitted(2, 900, Some("intent")).await;
    until("it has both", || took_all(&harness.collector)).await;

    for (subject, target, part) in [
        ("request-1", "lamp on", "lamp_on, lamp_off"),
        ("request-2", "Fly_To_The_Moon", "play_radio"),
    ] {
        harness.correct(subject, target, &[]).await;
        let letter = next(&harness.letters).await;

        assert_eq!(
            (letter.rejection.reason, letter.rejection.stage),
            (Reason::InvalidSample, Stage::Collect)
        );
        assert!(letter.rejection.message.contains(part), "{}", letter.rejection);
    }
    harness.correct("request-1", "lamp_off", &[]).await;
    harness.correct("request-2", "play_radio", &[]).await;
    harness.stored(2).await;
    // The labels of the request are known of its sample, too.
    harness.collector.kill();
    harness.correct("request-1", "lamp up", &[]).await;

    let letter = next(&harness.letters).await;
    assert!(
        letter.rejection.message.contains("lamp_on, lamp_off"),
        "{}",
        letter.rejection
    );
    assert_eq!(harness.targets(), ["lamp_off", "play_radio"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sample_keeps_the_fields_of_its_request_and_whether_its_answer_is_constrained() {
    let harness = Harness::new(10_000, |_| {}).await;
    let fields = |word: &str| BTreeMap::from([("keyword".to_owned(), word.to_owned())]);
    harness
        .admitted_as(1, 700, |request| {
            request.task = Some("keyword_search".to_owned());
            request.fields = fields("radio");
            request.constrained = true;
        })
        .await;
    until("it has the request", || took_all(&harness.collector)).await;

    harness.correct("request-1", "no", &[]).await;
    let searched = [
        ("ce_task", "keyword_search"),
        ("ce_fields", r#"{"keyword": "lamp"}"#),
    ];
    let labelled = [searched.as_slice(), &[("ce_target", "yes")]].concat();
    harness.label(Some(pcm(800, 0.5)), &labelled).await;
    let free = [labelled.as_slice(), &[("ce_constrain", "no")]].concat();
    harness.label(Some(pcm(850, 0.5)), &free).await;
    let listed = [("ce_labels", r#"["on", "off"]"#), ("ce_target", "off")];
    harness.label(Some(pcm(900, 0.5)), &listed).await;
    harness.stored(4).await;
    // A correction of what is stored keeps them, too.
    harness.labels.idle().await;
    harness.collector.kill();
    harness.correct("request-1", "yes", &[]).await;
    harness.stored(5).await;

    let mut found: Vec<_> = (harness.whole_samples().into_iter())
        .map(|sample| {
            (
                sample.audio.len(),
                sample.target,
                sample.fields,
                sample.constrained,
            )
        })
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            (700, "yes".to_owned(), fields("radio"), true),
            (800, "yes".to_owned(), fields("lamp"), true),
            (850, "yes".to_owned(), fields("lamp"), false),
            (900, "off".to_owned(), BTreeMap::new(), true),
        ]
    );
}

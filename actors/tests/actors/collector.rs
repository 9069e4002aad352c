//! `SampleCollector`: what becomes of labels, corrections, repeats, and of what the store refuses.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kameo::prelude::*;
use speechverse::audio::AudioLimits;
use speechverse::config::store::StoreConfig;
use speechverse::store::{SampleStore, Split};
use speechverse::wire::dead_letter::{Reason, Stage};
use speechverse::wire::request::{Request, RequestLimits};
use speechverse_actors::collector::{CollectorArgs, SampleCollector};
use speechverse_actors::messages::{LostAndFound, LostTicket, PublishDeadLetter, UtteranceAdmitted};

use crate::support::{
    Feed, Kafka, PATIENCE, Touchy, header, instructions, is_silent, next, pcm, probe, record,
    start_in_thread, took_all, until,
};

struct Desk {
    collector: ActorRef<SampleCollector>,
    store: Arc<SampleStore>,
    letters: flume::Receiver<PublishDeadLetter>,
    found: flume::Receiver<LostTicket>,
    kafka: Kafka,
    labels: Feed,
    _dir: tempfile::TempDir,
}

impl Desk {
    /// A collector that remembers `remembered` samples of sound.
    async fn new(remembered: usize, settings: impl FnOnce(&mut StoreConfig)) -> Self {
        let kafka = Kafka::start().await;
        let labels = kafka.feed(&kafka.config.topics.labels);
        let dir = tempfile::tempdir().unwrap();
        let mut config = StoreConfig {
            dir: dir.path().join("samples"),
            correction_wait_ms: 200, // so that a test that waits for its end does not wait long
            ..StoreConfig::default()
        };
        settings(&mut config);
        let store = Arc::new(SampleStore::open(&config).unwrap());
        let (publisher, letters) = probe();
        let (lost, found) = LostAndFound::new();
        let args = CollectorArgs {
            events: labels.events.clone(),
            ledger: labels.ledger.clone(),
            store: Arc::clone(&store),
            audio: AudioLimits::default(),
            limits: RequestLimits::default(),
            instructions: Arc::new(Touchy),
            lost,
            remembered_bytes_max: remembered * size_of::<f32>(),
            correction_wait: Duration::from_millis(config.correction_wait_ms),
            corrections_waiting_max: config.corrections_waiting_max,
            publisher,
        };
        Self {
            collector: start_in_thread(args, 64).await,
            store,
            letters,
            found,
            kafka,
            labels,
            _dir: dir,
        }
    }

    async fn label(&self, audio: Option<Bytes>, headers: &[(&str, &str)]) {
        let headers = headers
            .iter()
            .map(|(name, value)| header(name, value.as_bytes().to_vec()))
            .chain([header("content-type", "audio/L16;rate=16000;channels=1")])
            .collect();
        self.kafka
            .write(&self.kafka.config.topics.labels, audio, headers)
            .await;
    }

    /// Tells the collector of request `number`, with `samples` samples of sound.
    async fn admitted(&self, number: usize, samples: usize, task: Option<&str>) {
        self.admitted_as(number, samples, |request| request.task = task.map(str::to_owned))
            .await;
    }

    async fn admitted_as(&self, number: usize, samples: usize, change: impl FnOnce(&mut Request)) {
        let record = record(number);
        let mut request = Request::parse(&record, &RequestLimits::default(), &instructions()).unwrap();
        request.instruction = format!("instruction {number}");
        change(&mut request);
        let fact = UtteranceAdmitted {
            request,
            receipt: record.receipt,
            samples: Arc::from(vec![0.25; samples]),
        };
        self.collector.tell(fact).await.unwrap();
    }

    /// Corrects a request: its id, the right answer, further headers.
    async fn correct(&self, subject: &str, target: &str, more: &[(&str, &str)]) {
        let own = [("ce_subject", subject), ("ce_target", target)];
        let headers: Vec<(&str, &str)> = own.iter().chain(more).copied().collect();
        self.label(None, &headers).await;
    }

    /// The targets that may be trained on, in order.
    fn targets(&self) -> Vec<String> {
        let mut targets: Vec<String> = self.samples().into_iter().map(|sample| sample.1).collect();
        targets.sort();
        targets
    }

    async fn stored(&self, count: usize) {
        until("the samples are stored", || self.store.len() >= count).await;
        assert_eq!(self.store.len(), count);
    }

    /// Every sample in the store: instruction, target, task, samples of sound.
    fn samples(&self) -> Vec<(String, String, String, usize)> {
        let snapshot = self.store.snapshot();
        let mut samples: Vec<_> = [Split::Train, Split::HeldOut]
            .into_iter()
            .flat_map(|split| {
                snapshot
                    .samples(split)
                    .map(|stored| stored.unwrap().sample)
                    .collect::<Vec<_>>()
            })
            .map(|sample| (sample.instruction, sample.target, sample.task, sample.audio.len()))
            .collect();
        samples.sort();
        samples
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_that_comes_twice_is_stored_once_and_released_twice() {
    let desk = Desk::new(0, |_| {}).await;

    for _ in 0..2 {
        desk.label(Some(pcm(800, 0.25)), &[("ce_target", "hello"), ("ce_id", "same")])
            .await;
    }
    desk.label(Some(pcm(800, 0.5)), &[("ce_target", "hello")]).await;
    desk.stored(2).await;

    desk.labels.idle().await;
    assert_eq!(desk.store.len(), 2);
    assert!(is_silent(&desk.letters).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correction_is_stored_with_the_sound_the_instruction_and_the_task_of_its_request() {
    let desk = Desk::new(10_000, |_| {}).await;
    desk.admitted(1, 700, Some("translation")).await;
    desk.admitted(2, 900, None).await;
    until("it has heard of both", || took_all(&desk.collector)).await;

    desk.label(None, &[("ce_subject", "request-1"), ("ce_target", "guten Tag")])
        .await;
    desk.label(None, &[("ce_subject", "request-2"), ("ce_target", "hello")])
        .await;
    desk.stored(2).await;

    desk.labels.idle().await;
    let sample = |number: usize, target: &str, task: &str, length| {
        (
            format!("instruction {number}"),
            target.to_owned(),
            task.to_owned(),
            length,
        )
    };
    assert_eq!(
        desk.samples(),
        [
            sample(1, "guten Tag", "translation", 700),
            sample(2, "hello", "asr", 900)
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_request_is_forgotten_when_the_sound_of_all_is_too_much() {
    let desk = Desk::new(2_000, |_| {}).await;
    for number in 0..3 {
        desk.admitted(number, 900, None).await; // two of them fit
    }
    // A request that is read again counts once.
    desk.admitted(2, 900, None).await;
    until("it has heard of all", || took_all(&desk.collector)).await;

    for number in 0..3 {
        let subject = format!("request-{number}");
        desk.label(None, &[("ce_subject", &subject), ("ce_target", "hello")])
            .await;
    }
    let letter = next(&desk.letters).await;
    desk.stored(2).await;
    until("all are looked at", || desk.labels.ledger.unfinished() == 1).await;

    assert_eq!(letter.rejection.reason, Reason::UnknownSubject);
    assert!(
        letter.rejection.message.contains("request-0"),
        "{}",
        letter.rejection.message
    );
    assert!(is_silent(&desk.letters).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_kept_becomes_a_dead_letter_that_the_collector_does_not_release_itself() {
    let desk = Desk::new(0, |store| {
        store.tasks_max = 1;
        store.audio_seconds_max = 1.0;
    })
    .await;

    desk.label(Some(pcm(800, 0.25)), &[("ce_target", "hello")]).await;
    desk.stored(1).await;
    let too_long = pcm(17_000, 0.25);
    desk.label(Some(pcm(800, 0.5)), &[("ce_target", "")]).await;
    desk.label(Some(too_long), &[("ce_target", "hello")]).await;
    desk.label(Some(Bytes::from_static(b"x")), &[("ce_target", "hello")])
        .await;
    let mut reasons = Vec::new();
    for _ in 0..3 {
        let letter = next(&desk.letters).await;
        assert_eq!(letter.rejection.stage, Stage::Collect);
        reasons.push(letter.rejection.reason);
    }

    assert_eq!(
        reasons,
        [
            Reason::InvalidSample,
            Reason::StoreRefused,
            Reason::TruncatedAudio
        ]
    );
    // Their offsets wait until the publisher has the broker's word for it.
    assert_eq!(desk.labels.ledger.unfinished(), 3);
    desk.label(Some(pcm(800, 0.75)), &[("ce_target", "hello")]).await;
    desk.stored(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sample_that_may_not_be_trained_on_is_kept_out_of_what_the_trainer_sees() {
    let desk = Desk::new(0, |_| {}).await;

    desk.label(
        Some(pcm(800, 0.25)),
        &[("ce_target", "secret"), ("ce_train", "no")],
    )
    .await;
    desk.label(Some(pcm(800, 0.5)), &[("ce_target", "hello")]).await;
    until("both are looked at", || {
        let counts = desk.store.counts();
        counts
            .iter()
            .map(|count| count.samples + count.withheld)
            .sum::<usize>()
            == 2
    })
    .await;

    desk.labels.idle().await;
    let targets: Vec<String> = desk.samples().into_iter().map(|sample| sample.1).collect();
    assert_eq!(targets, ["hello"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_dies_and_comes_back_goes_on_with_the_next_label() {
    let desk = Desk::new(0, |_| {}).await;
    desk.label(Some(pcm(800, 0.25)), &[("ce_target", "hello")]).await;
    desk.stored(1).await;

    desk.collector.kill();
    desk.label(Some(pcm(800, 0.5)), &[("ce_target", "hello")]).await;
    desk.stored(2).await;

    tokio::time::timeout(PATIENCE, desk.labels.ledger.idle())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_at_which_the_collector_panics_is_handed_back_and_the_next_is_stored() {
    let desk = Desk::new(0, |_| {}).await;

    desk.label(
        Some(pcm(800, 0.25)),
        &[("ce_target", "hello"), ("ce_task", Touchy::SORE)],
    )
    .await;
    desk.label(Some(pcm(800, 0.5)), &[("ce_target", "hello")]).await;
    let back = next(&desk.found).await;

    assert_eq!((back.record.receipt.offset, back.stage), (0, Stage::Collect));
    desk.stored(1).await;
    assert!(desk.letters.is_empty() && desk.found.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_correction_supersedes_the_earlier_one_also_after_a_restart() {
    let desk = Desk::new(10_000, |_| {}).await;
    desk.admitted(1, 700, None).await;
    for target in ["he was not ill", "he was not an ill man"] {
        desk.correct("request-1", target, &[]).await;
    }
    desk.stored(2).await;
    desk.labels.idle().await;
    assert_eq!(desk.targets(), ["he was not an ill man"]);

    desk.collector.kill(); // with all that it remembered
    desk.correct("request-1", "he was not an ill disposed young man", &[])
        .await;
    desk.stored(3).await;
    desk.labels.idle().await;

    assert_eq!(desk.targets(), ["he was not an ill disposed young man"]);
    assert!(is_silent(&desk.letters).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correction_that_comes_before_its_request_waits_for_it() {
    let desk = Desk::new(10_000, |store| store.correction_wait_ms = 60_000).await;
    for target in ["first", "second"] {
        desk.correct("request-1", target, &[]).await;
    }
    desk.correct("request-2", "third", &[]).await;
    until("they are read", || desk.labels.ledger.unfinished() == 3).await;
    tokio::time::sleep(Duration::from_millis(300)).await; // some looks at the clock
    assert_eq!((desk.store.len(), desk.labels.ledger.unfinished()), (0, 3));

    desk.admitted(1, 700, None).await;
    desk.stored(2).await;

    assert_eq!(desk.targets(), ["second"]);
    until("what is stored is released", || {
        desk.labels.ledger.unfinished() == 1
    })
    .await;
    desk.admitted(2, 700, None).await;
    desk.labels.idle().await;
    assert_eq!(desk.targets(), ["second", "third"]);
    assert!(is_silent(&desk.letters).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correction_whose_request_does_not_come_is_refused_after_a_while() {
    let desk = Desk::new(10_000, |store| {
        store.correction_wait_ms = 300;
        store.corrections_waiting_max = 2;
    })
    .await;
    for number in 0..3 {
        desk.correct(&format!("request-{number}"), "hello", &[]).await;
    }

    // There is no room for a third one: the one that has waited longest goes first.
    let letters = [
        next(&desk.letters).await,
        next(&desk.letters).await,
        next(&desk.letters).await,
    ];

    for (number, letter) in letters.iter().enumerate() {
        assert_eq!(letter.rejection.reason, Reason::UnknownSubject);
        assert!(
            letter.rejection.message.contains(&format!("`request-{number}`")),
            "{}",
            letter.rejection
        );
    }
    assert_eq!(desk.labels.ledger.unfinished(), 3, "released by the publisher");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correction_is_about_the_request_of_its_source() {
    let desk = Desk::new(10_000, |_| {}).await;
    for (samples, source) in [(700, "/phone"), (900, "/desk")] {
        desk.admitted_as(1, samples, |request| request.source = Some(source.to_owned()))
            .await;
    }
    until("it has heard of both", || took_all(&desk.collector)).await;

    desk.correct("request-1", "said at the desk", &[("ce_source", "/desk")])
        .await;
    let named = [("ce_source", "/desk"), ("ce_subjectsource", "/phone")];
    desk.correct("request-1", "said on the phone", &named).await;
    desk.stored(2).await;
    desk.correct("request-1", "said by whom?", &[("ce_source", "/labels")])
        .await;
    let letter = next(&desk.letters).await;

    let lengths: Vec<(String, usize)> = (desk.samples().into_iter())
        .map(|(_, target, _, samples)| (target, samples))
        .collect();
    assert_eq!(
        lengths,
        [
            ("said at the desk".to_owned(), 900),
            ("said on the phone".to_owned(), 700)
        ]
    );
    assert_eq!(letter.rejection.reason, Reason::UnknownSubject);
    for part in ["/desk, /phone", "ce_subjectsource"] {
        assert!(letter.rejection.message.contains(part), "{}", letter.rejection);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correction_is_one_of_the_answers_that_the_request_or_its_task_allows() {
    let desk = Desk::new(10_000, |_| {}).await;
    desk.admitted_as(1, 700, |request| {
        request.labels = Some(vec!["lamp_on".to_owned(), "lamp_off".to_owned()]);
    })
    .await;
    desk.admitted(2, 900, Some("intent")).await;
    until("it has heard of both", || took_all(&desk.collector)).await;

    for (subject, target, part) in [
        ("request-1", "lamp on", "lamp_on, lamp_off"),
        ("request-2", "Fly_To_The_Moon", "play_radio"),
    ] {
        desk.correct(subject, target, &[]).await;
        let letter = next(&desk.letters).await;

        assert_eq!(
            (letter.rejection.reason, letter.rejection.stage),
            (Reason::InvalidSample, Stage::Collect)
        );
        assert!(letter.rejection.message.contains(part), "{}", letter.rejection);
    }
    desk.correct("request-1", "lamp_off", &[]).await;
    desk.correct("request-2", "play_radio", &[]).await;
    desk.stored(2).await;
    // The labels of the request are known of its sample, too.
    desk.collector.kill();
    desk.correct("request-1", "lamp up", &[]).await;

    let letter = next(&desk.letters).await;
    assert!(
        letter.rejection.message.contains("lamp_on, lamp_off"),
        "{}",
        letter.rejection
    );
    assert_eq!(desk.targets(), ["lamp_off", "play_radio"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_labelled_sample_whose_target_is_none_of_its_tasks_labels_is_refused_with_the_list() {
    let desk = Desk::new(0, |_| {}).await;

    desk.label(
        Some(pcm(800, 0.25)),
        &[("ce_task", "intent"), ("ce_target", "Fly_To_The_Moon")],
    )
    .await;
    let letter = next(&desk.letters).await;

    assert_eq!(
        (letter.rejection.reason, letter.rejection.stage),
        (Reason::InvalidSample, Stage::Collect)
    );
    assert!(
        letter.rejection.message.contains("play_radio"),
        "{}",
        letter.rejection
    );
    assert!(desk.store.is_empty());
}

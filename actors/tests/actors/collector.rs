//! `SampleCollector`: what becomes of labels, corrections, repeats, and of what the store refuses.

use std::sync::Arc;

use bytes::Bytes;
use kameo::prelude::*;
use speechverse::audio::AudioLimits;
use speechverse::store::config::StoreConfig;
use speechverse::store::{SampleStore, Split};
use speechverse::wire::dead_letter::{Reason, Stage};
use speechverse::wire::request::{Request, RequestLimits};
use speechverse_actors::collector::{CollectorArgs, SampleCollector};
use speechverse_actors::messages::{OrphanQueue, OrphanedRecord, PublishDeadLetter, UtteranceAdmitted};

use crate::support::{
    FailingEncoder, Feed, Kafka, PATIENCE, header, instructions, is_silent, next, pcm, probe, record,
    start_in_thread, took_all, until,
};

struct Harness {
    collector: ActorRef<SampleCollector>,
    store: Arc<SampleStore>,
    letters: flume::Receiver<PublishDeadLetter>,
    found: flume::Receiver<OrphanedRecord>,
    kafka: Kafka,
    labels: Feed,
    _dir: tempfile::TempDir,
}

impl Harness {
    /// A collector that remembers `remembered` samples of sound.
    async fn new(remembered: usize, settings: impl FnOnce(&mut StoreConfig)) -> Self {
        let kafka = Kafka::start().await;
        let labels = kafka.feed(&kafka.config.topics.labels);
        let dir = tempfile::tempdir().unwrap();
        let mut config = StoreConfig {
            dir: dir.path().join("samples"),
            ..StoreConfig::default()
        };
        settings(&mut config);
        let store = Arc::new(SampleStore::open(&config).unwrap());
        let (publisher, letters) = probe();
        let (lost, found) = OrphanQueue::new();
        let args = CollectorArgs {
            events: labels.events.clone(),
            tracker: labels.tracker.clone(),
            store: Arc::clone(&store),
            audio: AudioLimits::default(),
            limits: RequestLimits::default(),
            instructions: Arc::new(FailingEncoder),
            lost,
            remembered_bytes_max: remembered * size_of::<f32>(),
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
        let record = record(number);
        let mut request = Request::parse(&record, &RequestLimits::default(), &instructions()).unwrap();
        request.task = task.map(str::to_owned);
        request.instruction = format!("instruction {number}");
        let fact = UtteranceAdmitted {
            request,
            record_offset: record.record_offset,
            samples: Arc::from(vec![0.25; samples]),
        };
        self.collector.tell(fact).await.unwrap();
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
    let harness = Harness::new(0, |_| {}).await;

    for _ in 0..2 {
        harness
            .label(Some(pcm(800, 0.25)), &[("ce_target", "hello"), ("ce_id", "same")])
            .await;
    }
    harness
        .label(Some(pcm(800, 0.5)), &[("ce_target", "hello")])
        .await;
    harness.stored(2).await;

    harness.labels.idle().await;
    assert_eq!(harness.store.len(), 2);
    assert!(is_silent(&harness.letters).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correction_is_stored_with_the_sound_the_instruction_and_the_task_of_its_request() {
    let harness = Harness::new(10_000, |_| {}).await;
    harness.admitted(1, 700, Some("translate")).await;
    harness.admitted(2, 900, None).await;
    until("it has heard of both", || took_all(&harness.collector)).await;

    harness
        .label(None, &[("ce_subject", "request-1"), ("ce_target", "guten Tag")])
        .await;
    harness
        .label(None, &[("ce_subject", "request-2"), ("ce_target", "hello")])
        .await;
    harness.stored(2).await;

    harness.labels.idle().await;
    let sample = |number: usize, target: &str, task: &str, length| {
        (
            format!("instruction {number}"),
            target.to_owned(),
            task.to_owned(),
            length,
        )
    };
    assert_eq!(
        harness.samples(),
        [
            sample(1, "guten Tag", "translate", 700),
            sample(2, "hello", "asr", 900)
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_request_is_forgotten_when_the_sound_of_all_is_too_much() {
    let harness = Harness::new(2_000, |_| {}).await;
    for number in 0..3 {
        harness.admitted(number, 900, None).await; // two of them fit
    }
    // A request that is read again counts once.
    harness.admitted(2, 900, None).await;
    until("it has heard of all", || took_all(&harness.collector)).await;

    for number in 0..3 {
        let subject = format!("request-{number}");
        harness
            .label(None, &[("ce_subject", &subject), ("ce_target", "hello")])
            .await;
    }
    let letter = next(&harness.letters).await;
    harness.stored(2).await;
    until("all are looked at", || harness.labels.tracker.unfinished() == 1).await;

    assert_eq!(letter.rejection.reason, Reason::UnknownSubject);
    assert!(
        letter.rejection.message.contains("request-0"),
        "{}",
        letter.rejection.message
    );
    assert!(is_silent(&harness.letters).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_kept_becomes_a_dead_letter_that_the_collector_does_not_release_itself() {
    let harness = Harness::new(0, |store| {
        store.tasks_max = 1;
        store.audio_seconds_max = 1.0;
    })
    .await;

    harness
        .label(Some(pcm(800, 0.25)), &[("ce_target", "hello")])
        .await;
    harness.stored(1).await;
    let too_long = pcm(17_000, 0.25);
    harness.label(Some(pcm(800, 0.5)), &[("ce_target", "")]).await;
    harness.label(Some(too_long), &[("ce_target", "hello")]).await;
    harness
        .label(Some(Bytes::from_static(b"x")), &[("ce_target", "hello")])
        .await;
    let mut reasons = Vec::new();
    for _ in 0..3 {
        let letter = next(&harness.letters).await;
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
    assert_eq!(harness.labels.tracker.unfinished(), 3);
    harness
        .label(Some(pcm(800, 0.75)), &[("ce_target", "hello")])
        .await;
    harness.stored(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sample_that_may_not_be_trained_on_is_kept_out_of_what_the_trainer_sees() {
    let harness = Harness::new(0, |_| {}).await;

    harness
        .label(
            Some(pcm(800, 0.25)),
            &[("ce_target", "secret"), ("ce_train", "no")],
        )
        .await;
    harness
        .label(Some(pcm(800, 0.5)), &[("ce_target", "hello")])
        .await;
    until("both are looked at", || {
        let counts = harness.store.counts();
        counts
            .iter()
            .map(|count| count.samples + count.withheld)
            .sum::<usize>()
            == 2
    })
    .await;

    harness.labels.idle().await;
    let targets: Vec<String> = harness.samples().into_iter().map(|sample| sample.1).collect();
    assert_eq!(targets, ["hello"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_dies_and_comes_back_goes_on_with_the_next_label() {
    let harness = Harness::new(0, |_| {}).await;
    harness
        .label(Some(pcm(800, 0.25)), &[("ce_target", "hello")])
        .await;
    harness.stored(1).await;

    harness.collector.kill();
    harness
        .label(Some(pcm(800, 0.5)), &[("ce_target", "hello")])
        .await;
    harness.stored(2).await;

    tokio::time::timeout(PATIENCE, harness.labels.tracker.idle())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_at_which_the_collector_panics_is_handed_back_and_the_next_is_stored() {
    let harness = Harness::new(0, |_| {}).await;

    harness
        .label(
            Some(pcm(800, 0.25)),
            &[("ce_target", "hello"), ("ce_task", FailingEncoder::SORE)],
        )
        .await;
    harness
        .label(Some(pcm(800, 0.5)), &[("ce_target", "hello")])
        .await;
    let back = next(&harness.found).await;

    assert_eq!(
        (back.record.record_offset.offset, back.stage),
        (0, Stage::Collect)
    );
    harness.stored(1).await;
    assert!(harness.letters.is_empty() && harness.found.is_empty());
}

//! `SampleCollector`: what becomes of labels, corrections, repeats, and of what the store refuses.

mod corrections;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kameo::prelude::*;
use speechverse::audio::{AudioLimits, Damage, encode_wav};
use speechverse::store::config::StoreConfig;
use speechverse::store::{Sample, SampleStore, Split};
use speechverse::util::Clock;
use speechverse::wire::dead_letter::{Reason, Stage};
use speechverse::wire::request::{Request, RequestLimits};
use speechverse_actors::collector::{CollectorArgs, SampleCollector};
use speechverse_actors::messages::{
    AdmittedRequest, OrphanQueue, OrphanedRecord, PublishDeadLetter, UtteranceAdmitted,
};

use crate::support::{
    Feed, Kafka, PanickingInstructions, header, instructions, is_silent, next, pcm, probe, record,
    start_in_thread, took_all, until,
};

struct Harness {
    clock: Clock,
    correction_wait: Duration,
    collector: ActorRef<SampleCollector>,
    store: Arc<SampleStore>,
    letters: flume::Receiver<PublishDeadLetter>,
    found: flume::Receiver<OrphanedRecord>,
    kafka: Kafka,
    labels: Feed,
    _dir: tempfile::TempDir,
}

impl Harness {
    /// A collector that remembers requests of the size of `remembered` samples of sound.
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
        let (orphans, found) = OrphanQueue::new();
        let clock = Clock::manual();
        let correction_wait = Duration::from_millis(config.correction_wait_ms);
        let args = CollectorArgs {
            clock: clock.clone(),
            events: labels.events.clone(),
            tracker: labels.tracker.clone(),
            store: Arc::clone(&store),
            audio: AudioLimits::default(),
            limits: RequestLimits::default(),
            instructions: Arc::new(PanickingInstructions),
            orphans,
            remembered_bytes_max: remembered * size_of::<f32>(),
            correction_wait,
            corrections_waiting_max: config.corrections_waiting_max,
            publisher,
        };
        Self {
            clock,
            correction_wait,
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

    /// Sends the collector request `number`, with `samples` samples of sound.
    async fn admitted(&self, number: usize, samples: usize, task: Option<&str>) {
        self.admitted_as(number, samples, |request| request.task = task.map(str::to_owned))
            .await;
    }

    async fn admitted_as(&self, number: usize, samples: usize, change: impl FnOnce(&mut AdmittedRequest)) {
        self.admitted_with(number, samples, Damage::default(), change)
            .await;
    }

    async fn admitted_with(
        &self,
        number: usize,
        samples: usize,
        damage: Damage,
        change: impl FnOnce(&mut AdmittedRequest),
    ) {
        let record = record(number);
        let request = Request::parse(&record, &RequestLimits::default(), &instructions()).unwrap();
        let mut request = AdmittedRequest::from(&request);
        request.instruction = format!("instruction {number}");
        change(&mut request);
        let fact = UtteranceAdmitted {
            request,
            record_offset: record.record_offset,
            samples: Arc::from(vec![0.25; samples]),
            damage,
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
        let mut samples: Vec<_> = (self.whole_samples().into_iter())
            .map(|sample| (sample.instruction, sample.target, sample.task, sample.audio.len()))
            .collect();
        samples.sort();
        samples
    }

    /// Every sample in the store, in order of target.
    fn whole_samples(&self) -> Vec<Sample> {
        let snapshot = self.store.snapshot();
        let sides = [Split::Train, Split::HeldOut].into_iter();
        let mut samples: Vec<Sample> = sides
            .flat_map(|split| snapshot.samples(split).collect::<Vec<_>>())
            .map(|stored| stored.unwrap().sample)
            .collect();
        samples.sort_by(|a, b| a.target.cmp(&b.target));
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
    harness.admitted(1, 700, Some("translation")).await;
    harness.admitted(2, 900, None).await;
    until("it has both", || took_all(&harness.collector)).await;

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
            sample(1, "guten Tag", "translation", 700),
            sample(2, "hello", "instruction", 900)
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_request_is_forgotten_when_the_sound_of_all_is_too_much() {
    let harness = Harness::new(20_000, |_| {}).await;
    for number in 0..3 {
        harness.admitted(number, 9_000, None).await; // two of them fit
    }
    // A request that is read again counts once.
    harness.admitted(2, 9_000, None).await;
    until("it has all", || took_all(&harness.collector)).await;

    for number in 0..3 {
        let subject = format!("request-{number}");
        harness
            .label(None, &[("ce_subject", &subject), ("ce_target", "hello")])
            .await;
    }
    harness.stored(2).await;
    harness.clock.advance(harness.correction_wait);
    let letter = next(&harness.letters).await;
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

    harness.labels.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_at_which_the_collector_panics_is_handed_back_and_the_next_is_stored() {
    let harness = Harness::new(0, |_| {}).await;

    harness
        .label(
            Some(pcm(800, 0.25)),
            &[("ce_target", "hello"), ("ce_task", PanickingInstructions::PANICS)],
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_labelled_sample_whose_target_is_none_of_its_tasks_labels_is_refused_with_the_list() {
    let harness = Harness::new(0, |_| {}).await;

    harness
        .label(
            Some(pcm(800, 0.25)),
            &[("ce_task", "intent"), ("ce_target", "Fly_To_The_Moon")],
        )
        .await;
    let letter = next(&harness.letters).await;

    assert_eq!(
        (letter.rejection.reason, letter.rejection.stage),
        (Reason::InvalidSample, Stage::Collect)
    );
    assert!(
        letter.rejection.message.contains("play_radio"),
        "{}",
        letter.rejection
    );
    assert!(harness.store.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sound_of_which_a_part_is_missing_is_no_sample() {
    let harness = Harness::new(10_000, |_| {}).await;
    let whole = encode_wav(&[0.25; 16_000]);
    let without = |seconds: f64| {
        Some(Bytes::copy_from_slice(
            &whole[..whole.len() - (seconds * 32_000.0) as usize],
        ))
    };
    let lacking = |undecoded_seconds: f64| Damage {
        undecoded_seconds,
        cut_short: true,
        ..Damage::default()
    };
    harness.admitted_with(1, 700, lacking(0.3), |_| {}).await;
    harness.admitted_with(2, 900, lacking(0.02), |_| {}).await;
    until("it has both", || took_all(&harness.collector)).await;

    // The header declares one second. A labelled sample, then a correction.
    harness
        .label(without(0.3), &[("ce_target", "one two three")])
        .await;
    let labelled = next(&harness.letters).await;
    harness.correct("request-1", "one two three", &[]).await;
    let corrected = next(&harness.letters).await;

    for letter in [labelled, corrected] {
        assert_eq!(
            (letter.rejection.reason, letter.rejection.stage),
            (Reason::InvalidSample, Stage::Collect)
        );
        assert!(
            letter
                .rejection
                .message
                .contains("0.30 s of its sound cannot be decoded"),
            "{}",
            letter.rejection
        );
    }
    // A recorder's last piece is not a loss.
    harness.label(without(0.02), &[("ce_target", "one")]).await;
    harness.correct("request-2", "two", &[]).await;
    harness.stored(2).await;
    assert_eq!(harness.targets(), ["one", "two"]);
}

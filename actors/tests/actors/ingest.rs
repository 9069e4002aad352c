//! `AudioIngest`: admission, back-pressure up to the source, and who is not waited for.

mod long_recordings;
mod refusals;
mod streams;
mod windows;

use std::time::Duration;

use bytes::Bytes;
use kameo::prelude::*;
use speechverse::audio::config::{AudioConfig, SpeechConfig};
use speechverse::inference::config::DecoderConfig;
use speechverse::kafka::{SourceEvent, TopicPartition};
use speechverse::models::adapter::AdapterSnapshot;
use speechverse::models::config::LayerMix;
use speechverse::training::Control;
use speechverse::util::Clock;
use speechverse::wire::dead_letter::{Reason, Stage};
use speechverse::wire::request::{Priority, RequestLimits};
use speechverse_actors::current::CurrentAdapter;
use speechverse_actors::ingest::{AudioIngest, IngestArgs};
use speechverse_actors::messages::{
    EncodeSoFar, EncodeUtterance, OrphanQueue, OrphanedRecord, PublishAnswer, PublishDeadLetter,
    PublishPartial, UtteranceAdmitted,
};

use crate::support::{
    AUDIO_SECONDS_MAX, Feed, Kafka, PanickingInstructions, adapter, busy_probe, header, is_silent, next, pcm,
    probe, record, start_in_thread, until,
};

/// Speech found by loudness, whatever models there are.
fn by_level() -> SpeechConfig {
    SpeechConfig {
        detector: "no such folder".into(),
        ..SpeechConfig::default()
    }
}

type Ends<M> = (Recipient<M>, flume::Receiver<M>);

/// An ingest with the topic that it reads; the test hands the records on.
struct Harness {
    clock: Clock,
    ingest: ActorRef<AudioIngest>,
    to_ingest: flume::Sender<SourceEvent>,
    utterances: flume::Receiver<EncodeUtterance>,
    facts: flume::Receiver<UtteranceAdmitted>,
    letters: flume::Receiver<PublishDeadLetter>,
    readings: flume::Receiver<EncodeSoFar>,
    answered: flume::Receiver<PublishAnswer>,
    partials: flume::Receiver<PublishPartial>,
    current: CurrentAdapter,
    training: Control,
    found: flume::Receiver<OrphanedRecord>,
    kafka: Kafka,
    requests: Feed,
}

impl Harness {
    /// Swaps the version that answers.
    fn serve(&self, version: AdapterSnapshot) {
        let changed = self.current.change(|| Ok::<_, std::convert::Infallible>(version));
        changed.unwrap();
    }

    async fn new(encoder: Ends<EncodeUtterance>, collector: Ends<UtteranceAdmitted>) -> Self {
        Self::with(encoder, collector, AudioConfig::default(), by_level()).await
    }

    async fn with(
        encoder: Ends<EncodeUtterance>,
        collector: Ends<UtteranceAdmitted>,
        audio: AudioConfig,
        speech: SpeechConfig,
    ) -> Self {
        Self::reading(Kafka::start().await, encoder, collector, audio, speech).await
    }

    async fn reading(
        kafka: Kafka,
        encoder: Ends<EncodeUtterance>,
        collector: Ends<UtteranceAdmitted>,
        audio: AudioConfig,
        speech: SpeechConfig,
    ) -> Self {
        let (so_far, readings) = probe();
        let (answers, answered) = probe();
        let (tell_partials, partials) = probe();
        let requests = kafka.feed(&kafka.config.topics.requests);
        let (to_ingest, events) = flume::bounded(2);
        let (publisher, letters) = probe();
        let (orphans, found) = OrphanQueue::new();
        let current = CurrentAdapter::new(adapter("one", LayerMix::Last, 2, 4));
        let training = Control::new();
        let clock = Clock::manual();
        let args = IngestArgs {
            clock: clock.clone(),
            events,
            tracker: requests.tracker.clone(),
            audio,
            speech,
            decoder: DecoderConfig::default(),
            limits: RequestLimits::default(),
            instructions: std::sync::Arc::new(PanickingInstructions),
            adapter: current.clone(),
            orphans,
            training: Some(training.clone()),
            encoder: encoder.0,
            so_far,
            collector: Some(collector.0),
            answers,
            partials: tell_partials,
            publisher,
        };
        Self {
            clock,
            ingest: start_in_thread(args, 4).await,
            to_ingest,
            utterances: encoder.1,
            facts: collector.1,
            letters,
            readings,
            answered,
            partials,
            current,
            training,
            found,
            kafka,
            requests,
        }
    }

    /// Publishes `request-NUMBER`: so many samples of sound.
    async fn request(&self, number: usize, audio: Bytes, mut headers: Vec<(String, Option<Bytes>)>) {
        headers.push(header("ce_id", format!("request-{number}")));
        headers.push(header("content-type", "audio/L16;rate=16000;channels=1"));
        self.kafka
            .write(&self.kafka.config.topics.requests, Some(audio), headers)
            .await;
    }

    /// Hands the next record of the topic to the ingest.
    async fn forward(&self) {
        let event = SourceEvent::Record(self.requests.record().await);
        self.to_ingest.send_async(event).await.unwrap();
    }

    async fn utterance(&self) -> EncodeUtterance {
        next(&self.utterances).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_utterance_is_pinned_to_the_version_of_the_moment_it_is_admitted() {
    let harness = Harness::new(probe(), probe()).await;
    for number in 0..2 {
        harness.request(number, pcm(1_600, 0.25), Vec::new()).await;
    }

    harness.forward().await;
    let before = harness.utterance().await;
    harness.serve(adapter("two", LayerMix::Last, 2, 4));
    harness.forward().await;
    let after = harness.utterance().await;

    assert_eq!(before.adapter.version(), "one");
    assert_eq!(after.adapter.version(), "two");
    assert_eq!(before.context.request.id, "request-0");
    assert_eq!(before.samples.len(), 1_600);
    assert_eq!(before.context.audio_seconds, 0.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_encoder_is_busy_records_wait_in_the_source_and_none_is_lost() {
    let harness = Harness::new(busy_probe(), probe()).await;
    for number in 0..12 {
        harness.request(number, pcm(1_600, 0.25), Vec::new()).await;
    }

    // The encoder has one in hand and one in its mailbox, the ingest waits with a third, two are in the
    // channel.
    for _ in 0..5 {
        harness.forward().await;
    }
    let sixth = harness.requests.record().await;
    until("the channel is full", || harness.to_ingest.is_full()).await;
    tokio::time::sleep(crate::support::A_WHILE).await;
    let refused = harness.to_ingest.try_send(SourceEvent::Record(sixth));

    let Err(flume::TrySendError::Full(sixth)) = refused else {
        panic!("a sixth record must not be taken")
    };
    for number in 0..5 {
        assert_eq!(
            harness.utterance().await.context.complete().request.id,
            format!("request-{number}")
        );
    }
    harness.to_ingest.send_async(sixth).await.unwrap();
    assert_eq!(
        harness.utterance().await.context.complete().request.id,
        "request-5"
    );
    assert!(is_silent(&harness.found).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sound_of_an_utterance_counts_as_in_flight_and_training_waits_until_its_outcome() {
    let harness = Harness::new(probe(), probe()).await;
    let before = harness.requests.tracker.budget().bytes();
    harness.request(0, pcm(1_600, 0.25), Vec::new()).await;
    harness.forward().await;
    let utterance = harness.utterance().await;

    let with_record = harness.requests.tracker.budget().bytes() - before;
    assert!(harness.training.is_paused());
    drop(utterance.context.complete());

    assert_eq!(
        with_record - (harness.requests.tracker.budget().bytes() - before),
        1_600 * 4
    );
    assert!(!harness.training.is_paused());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_busy_is_not_waited_for() {
    let harness = Harness::new(probe(), busy_probe()).await;

    for number in 0..6 {
        harness.request(number, pcm(1_600, 0.25), Vec::new()).await;
        harness.forward().await;
        assert_eq!(
            harness.utterance().await.context.complete().request.id,
            format!("request-{number}")
        );
    }

    // One in hand, one in the mailbox; the others went without it.
    assert_eq!(next(&harness.facts).await.request.id, "request-0");
    next(&harness.facts).await;
    assert!(is_silent(&harness.facts).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_may_not_be_trained_on_is_not_shown_to_the_collector() {
    let harness = Harness::new(probe(), probe()).await;
    harness
        .request(0, pcm(1_600, 0.25), vec![header("ce_train", "no")])
        .await;
    harness.request(1, pcm(800, 0.25), Vec::new()).await;

    for _ in 0..2 {
        harness.forward().await;
        harness.utterance().await.context.complete();
    }

    let fact = next(&harness.facts).await;
    assert_eq!((fact.request.id.as_str(), fact.samples.len()), ("request-1", 800));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_a_revoked_partition_is_nobodys_and_the_next_is_admitted() {
    let harness = Harness::new(probe(), probe()).await;
    let mut of_before = record(7);
    of_before.value = Some(pcm(1_600, 0.25));
    of_before
        .headers
        .push(header("content-type", "audio/L16;rate=16000;channels=1"));
    of_before.record_offset.epoch = 99;
    harness.request(0, pcm(1_600, 0.25), Vec::new()).await;

    harness
        .to_ingest
        .send_async(SourceEvent::Record(of_before))
        .await
        .unwrap();
    harness.forward().await;

    assert_eq!(
        harness.utterance().await.context.complete().request.id,
        "request-0"
    );
    assert!(is_silent(&harness.letters).await);
    assert!(harness.found.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_ingest_held_when_it_died_is_handed_back_and_its_successor_reads_on() {
    let harness = Harness::new(busy_probe(), probe()).await;
    for number in 0..4 {
        harness.request(number, pcm(1_600, 0.25), Vec::new()).await;
    }
    // Two are with the encoder; the ingest waits with the third until it dies.
    for _ in 0..3 {
        harness.forward().await;
    }
    until("it has taken all", || harness.to_ingest.is_empty()).await;
    tokio::time::sleep(crate::support::A_WHILE).await;

    harness.ingest.kill();
    let back = next(&harness.found).await;
    harness.forward().await;

    assert_eq!(back.record.record_offset.offset, 2);
    for offset in [0, 1, 3] {
        assert_eq!(
            harness
                .utterance()
                .await
                .context
                .complete()
                .record
                .record_offset
                .offset,
            offset
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_at_which_the_ingest_panics_is_handed_back_and_the_next_is_admitted() {
    let harness = Harness::new(probe(), probe()).await;
    harness
        .request(
            0,
            pcm(800, 0.25),
            vec![header("ce_task", PanickingInstructions::PANICS)],
        )
        .await;
    harness.request(1, pcm(800, 0.25), Vec::new()).await;

    for _ in 0..2 {
        harness.forward().await;
    }
    let back = next(&harness.found).await;

    assert_eq!((back.record.record_offset.offset, back.stage), (0, Stage::Ingest));
    assert_eq!(
        harness.utterance().await.context.complete().request.id,
        "request-1"
    );
    assert!(harness.letters.is_empty() && harness.found.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_sound_that_is_quiet_throughout_is_said_to_be_without_speech() {
    let harness = Harness::new(probe(), probe()).await;
    let hum = |samples: usize, level: f32| -> bytes::Bytes {
        let pair = [level, -level].map(|value| ((value * 32_767.0) as i16).to_be_bytes());
        pair.as_flattened().repeat(samples / 2).into()
    };
    let mut word = pcm(16_000, 0.0).to_vec();
    word.extend_from_slice(&hum(960, 0.1));
    // A constant value is no sound, however large it is.
    for (number, sound) in [
        pcm(1_600, 0.25),
        hum(1_600, 0.0005),
        hum(1_600, 0.25),
        word.into(),
    ]
    .into_iter()
    .enumerate()
    {
        harness.request(number, sound, Vec::new()).await;
    }

    let mut found = Vec::new();
    for _ in 0..4 {
        harness.forward().await;
        found.push(harness.utterance().await.context.no_speech);
    }

    assert_eq!(found, [true, true, false, false]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_as_much_audio_is_in_flight_as_is_allowed_no_further_record_is_taken() {
    let harness = Harness::new(probe(), probe()).await;
    let whole = (AUDIO_SECONDS_MAX * 16_000.0) as usize;
    let mut records = Vec::new();
    for (number, samples) in [(0, whole), (1, 1_600)] {
        let task = vec![header("ce_task", "emotion")]; // asked about as a whole
        harness.request(number, pcm(samples, 0.25), task).await;
        records.push(harness.requests.record().await);
    }
    for record in records {
        harness
            .to_ingest
            .send_async(SourceEvent::Record(record))
            .await
            .unwrap();
    }

    let first = harness.utterance().await;
    let audio = harness.requests.tracker.budget().audio().clone();
    assert_eq!(audio.seconds(), AUDIO_SECONDS_MAX);
    assert!(is_silent(&harness.utterances).await);
    drop(first.context.complete());

    assert_eq!(harness.utterance().await.context.request.id, "request-1");
    until("nothing is in flight", || audio.seconds() == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_is_past_is_refused_and_another_one_goes_by_the_pipeline_s_clock() {
    let harness = Harness::new(probe(), probe()).await;
    let time = harness.clock.time();
    for (number, deadline) in [(0, time), (1, time + Duration::from_secs(10))] {
        let headers = vec![
            header("ce_deadline", deadline.to_string()),
            header("ce_priority", "bulk"),
        ];
        harness.request(number, pcm(1_600, 0.25), headers).await;
        harness.forward().await;
    }

    let letter = next(&harness.letters).await;
    let utterance = harness.utterance().await;

    assert_eq!(letter.rejection.reason, Reason::DeadlineExceeded);
    assert_eq!(letter.rejection.stage, Stage::Ingest);
    let entry = utterance.context.queue_entry();
    assert_eq!(
        entry.deadline,
        Some(harness.clock.now() + Duration::from_secs(10))
    );
    assert_eq!(
        (entry.key.as_ref(), entry.priority),
        (&b"key"[..], Priority::Bulk)
    );
}

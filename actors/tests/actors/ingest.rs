//! `AudioIngest`: admission, back-pressure up to the source, and who is not waited for.

use bytes::Bytes;
use kameo::prelude::*;
use speechverse::audio::AudioLimits;
use speechverse::config::model::LayerMix;
use speechverse::kafka::SourceEvent;
use speechverse::training::Control;
use speechverse::wire::dead_letter::{Reason, Stage};
use speechverse::wire::request::RequestLimits;
use speechverse_actors::current::CurrentAdapter;
use speechverse_actors::ingest::{AudioIngest, IngestArgs};
use speechverse_actors::messages::{
    EncodeUtterance, LostAndFound, LostTicket, PublishDeadLetter, UtteranceAdmitted,
};

use crate::support::{
    Feed, Kafka, Touchy, adapter, busy_probe, header, is_silent, next, pcm, probe, record, start_in_thread,
    until,
};

type Ends<M> = (Recipient<M>, flume::Receiver<M>);

/// An ingest with the topic that it reads; the test hands the records on.
struct Desk {
    ingest: ActorRef<AudioIngest>,
    to_ingest: flume::Sender<SourceEvent>,
    utterances: flume::Receiver<EncodeUtterance>,
    facts: flume::Receiver<UtteranceAdmitted>,
    letters: flume::Receiver<PublishDeadLetter>,
    current: CurrentAdapter,
    training: Control,
    found: flume::Receiver<LostTicket>,
    kafka: Kafka,
    requests: Feed,
}

impl Desk {
    async fn new(encoder: Ends<EncodeUtterance>, collector: Ends<UtteranceAdmitted>) -> Self {
        let kafka = Kafka::start().await;
        let requests = kafka.feed(&kafka.config.topics.requests);
        let (to_ingest, events) = flume::bounded(2);
        let (publisher, letters) = probe();
        let (lost, found) = LostAndFound::new();
        let current = CurrentAdapter::new(adapter("one", LayerMix::Last, 2, 4));
        let training = Control::new();
        let args = IngestArgs {
            events,
            ledger: requests.ledger.clone(),
            audio: AudioLimits::default(),
            limits: RequestLimits::default(),
            instructions: std::sync::Arc::new(Touchy),
            no_speech_below_dbfs: -60.0,
            adapter: current.clone(),
            lost,
            training: Some(training.clone()),
            encoder: encoder.0,
            collector: collector.0,
            publisher,
        };
        Self {
            ingest: start_in_thread(args, 4).await,
            to_ingest,
            utterances: encoder.1,
            facts: collector.1,
            letters,
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
    async fn hand_on(&self) {
        let event = SourceEvent::Record(self.requests.record().await);
        self.to_ingest.send_async(event).await.unwrap();
    }

    async fn utterance(&self) -> EncodeUtterance {
        next(&self.utterances).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_utterance_is_pinned_to_the_version_of_the_moment_it_is_admitted() {
    let desk = Desk::new(probe(), probe()).await;
    for number in 0..2 {
        desk.request(number, pcm(1_600, 0.25), Vec::new()).await;
    }

    desk.hand_on().await;
    let before = desk.utterance().await;
    let two = adapter("two", LayerMix::Last, 2, 4);
    desk.current
        .change(|| Ok::<_, std::convert::Infallible>(two))
        .unwrap();
    desk.hand_on().await;
    let after = desk.utterance().await;

    assert_eq!(before.adapter.version(), "one");
    assert_eq!(after.adapter.version(), "two");
    assert_eq!(before.ticket.request.id, "request-0");
    assert_eq!(before.samples.len(), 1_600);
    assert_eq!(before.ticket.audio_seconds, 0.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_encoder_is_busy_records_wait_in_the_source_and_none_is_lost() {
    let desk = Desk::new(busy_probe(), probe()).await;
    for number in 0..12 {
        desk.request(number, pcm(1_600, 0.25), Vec::new()).await;
    }

    // The encoder has one in hand and one in its mailbox, the ingest waits with a third, two are in the channel.
    for _ in 0..5 {
        desk.hand_on().await;
    }
    let sixth = desk.requests.record().await;
    until("the channel is full", || desk.to_ingest.is_full()).await;
    tokio::time::sleep(crate::support::A_WHILE).await;
    let refused = desk.to_ingest.try_send(SourceEvent::Record(sixth));

    let Err(flume::TrySendError::Full(sixth)) = refused else {
        panic!("there must be no room for a sixth record")
    };
    for number in 0..5 {
        assert_eq!(
            desk.utterance().await.ticket.settle().request.id,
            format!("request-{number}")
        );
    }
    desk.to_ingest.send_async(sixth).await.unwrap();
    assert_eq!(desk.utterance().await.ticket.settle().request.id, "request-5");
    assert!(is_silent(&desk.found).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sound_of_an_utterance_counts_as_in_flight_and_training_waits_until_its_outcome() {
    let desk = Desk::new(probe(), probe()).await;
    let before = desk.requests.ledger.budget().bytes();
    desk.request(0, pcm(1_600, 0.25), Vec::new()).await;
    desk.hand_on().await;
    let utterance = desk.utterance().await;

    let with_record = desk.requests.ledger.budget().bytes() - before;
    assert!(desk.training.is_paused());
    drop(utterance.ticket.settle());

    assert_eq!(
        with_record - (desk.requests.ledger.budget().bytes() - before),
        1_600 * 4
    );
    assert!(!desk.training.is_paused());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_busy_is_not_waited_for() {
    let desk = Desk::new(probe(), busy_probe()).await;

    for number in 0..6 {
        desk.request(number, pcm(1_600, 0.25), Vec::new()).await;
        desk.hand_on().await;
        assert_eq!(
            desk.utterance().await.ticket.settle().request.id,
            format!("request-{number}")
        );
    }

    // One in hand, one in the mailbox; the others went without it.
    assert_eq!(next(&desk.facts).await.request.id, "request-0");
    next(&desk.facts).await;
    assert!(is_silent(&desk.facts).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_may_not_be_trained_on_is_not_shown_to_the_collector() {
    let desk = Desk::new(probe(), probe()).await;
    desk.request(0, pcm(1_600, 0.25), vec![header("ce_train", "no")])
        .await;
    desk.request(1, pcm(800, 0.25), Vec::new()).await;

    for _ in 0..2 {
        desk.hand_on().await;
        desk.utterance().await.ticket.settle();
    }

    let fact = next(&desk.facts).await;
    assert_eq!((fact.request.id.as_str(), fact.samples.len()), ("request-1", 800));
    assert!(
        fact.request.audio.is_empty(),
        "the bytes are not kept beside the samples"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_a_revoked_partition_is_nobodys_and_the_next_is_admitted() {
    let desk = Desk::new(probe(), probe()).await;
    let mut of_before = record(7);
    of_before.value = Some(pcm(1_600, 0.25));
    of_before
        .headers
        .push(header("content-type", "audio/L16;rate=16000;channels=1"));
    of_before.receipt.epoch = 99;
    desk.request(0, pcm(1_600, 0.25), Vec::new()).await;

    desk.to_ingest
        .send_async(SourceEvent::Record(of_before))
        .await
        .unwrap();
    desk.hand_on().await;

    assert_eq!(desk.utterance().await.ticket.settle().request.id, "request-0");
    assert!(is_silent(&desk.letters).await);
    assert!(desk.found.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_stream_is_refused_chunk_by_chunk_and_a_whole_one_answers_for_all_its_records() {
    let desk = Desk::new(probe(), probe()).await;
    let chunk = |session: &'static str, sequence: u64, last: bool| {
        vec![
            header("ce_session", session),
            header("ce_sequence", sequence.to_string()),
            header("ce_final", last.to_string()),
        ]
    };
    desk.request(0, pcm(800, 0.25), chunk("broken", 0, false)).await;
    desk.request(1, pcm(800, 0.25), chunk("whole", 0, false)).await;
    desk.request(2, pcm(800, 0.25), chunk("broken", 2, true)).await;
    desk.request(3, pcm(800, 0.25), chunk("whole", 1, true)).await;

    for _ in 0..4 {
        desk.hand_on().await;
    }

    for offset in [0, 2] {
        let letter = next(&desk.letters).await;
        assert_eq!(letter.record.receipt.offset, offset);
        assert_eq!(letter.rejection.reason, Reason::BrokenStream);
        assert_eq!(letter.rejection.stage, Stage::Ingest);
        assert_eq!(letter.audio_seconds, 0.0, "it never counted as in flight");
    }
    let utterance = desk.utterance().await;
    assert_eq!(utterance.samples.len(), 1_600);
    assert_eq!(utterance.ticket.record.receipt.offset, 3);
    let earlier: Vec<i64> = utterance
        .ticket
        .earlier
        .iter()
        .map(|receipt| receipt.offset)
        .collect();
    assert_eq!(earlier, [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_ingest_held_when_it_died_is_handed_back_and_its_successor_reads_on() {
    let desk = Desk::new(busy_probe(), probe()).await;
    for number in 0..4 {
        desk.request(number, pcm(1_600, 0.25), Vec::new()).await;
    }
    // Two are with the encoder; the ingest waits with the third until it dies.
    for _ in 0..3 {
        desk.hand_on().await;
    }
    until("it has taken all", || desk.to_ingest.is_empty()).await;
    tokio::time::sleep(crate::support::A_WHILE).await;

    desk.ingest.kill();
    let back = next(&desk.found).await;
    desk.hand_on().await;

    assert_eq!(back.record.receipt.offset, 2);
    for offset in [0, 1, 3] {
        assert_eq!(
            desk.utterance().await.ticket.settle().record.receipt.offset,
            offset
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_of_an_unfinished_stream_are_handed_back_when_the_ingest_dies_and_the_rest_is_refused() {
    let desk = Desk::new(probe(), probe()).await;
    for number in 0..3 {
        let headers = vec![
            header("ce_session", "stream"),
            header("ce_sequence", number.to_string()),
            header("ce_final", (number == 2).to_string()),
        ];
        desk.request(number, pcm(800, 0.25), headers).await;
    }
    for _ in 0..2 {
        desk.hand_on().await;
    }
    until("it has taken both", || desk.to_ingest.is_empty()).await;
    tokio::time::sleep(crate::support::A_WHILE).await;

    desk.ingest.kill();
    let mut back = [next(&desk.found).await, next(&desk.found).await].map(|lost| lost.record.receipt.offset);
    desk.hand_on().await;
    let letter = next(&desk.letters).await;

    back.sort_unstable();
    assert_eq!(back, [0, 1]);
    assert_eq!(letter.record.receipt.offset, 2);
    assert_eq!(letter.rejection.reason, Reason::BrokenStream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_at_which_the_ingest_panics_is_handed_back_and_the_next_is_admitted() {
    let desk = Desk::new(probe(), probe()).await;
    desk.request(0, pcm(800, 0.25), vec![header("ce_task", Touchy::SORE)])
        .await;
    desk.request(1, pcm(800, 0.25), Vec::new()).await;

    for _ in 0..2 {
        desk.hand_on().await;
    }
    let back = next(&desk.found).await;

    assert_eq!((back.record.receipt.offset, back.stage), (0, Stage::Ingest));
    assert_eq!(desk.utterance().await.ticket.settle().request.id, "request-1");
    assert!(desk.letters.is_empty() && desk.found.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_sound_that_is_quiet_throughout_is_said_to_be_without_speech() {
    let desk = Desk::new(probe(), probe()).await;
    let mut word = pcm(16_000, 0.0).to_vec();
    word.extend_from_slice(&pcm(960, 0.1));
    for (number, sound) in [pcm(1_600, 0.0), pcm(1_600, 0.0005), pcm(1_600, 0.25), word.into()]
        .into_iter()
        .enumerate()
    {
        desk.request(number, sound, Vec::new()).await;
    }

    let mut found = Vec::new();
    for _ in 0..4 {
        desk.hand_on().await;
        found.push(desk.utterance().await.ticket.no_speech);
    }

    assert_eq!(found, [true, true, false, false]);
}

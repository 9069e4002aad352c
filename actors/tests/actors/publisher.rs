//! `Publisher`: nothing is released before it is acknowledged, whatever happens on the way.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kameo::prelude::*;
use speechverse::kafka::config::KafkaConfig;
use speechverse::kafka::{RecordsDeleted, Release, Sink, TopicPartition};
use speechverse::util::Clock;
use speechverse::wire::Record;
use speechverse::wire::answer::{Answer, AnswerKind, Timing};
use speechverse::wire::dead_letter::{
    HEADERS_OMITTED_HEADER, KEY_OMITTED_HEADER, Reason, Rejection, Stage, VALUE_OMITTED_HEADER,
};
use speechverse::wire::event::{Event, EventKind};
use speechverse_actors::messages::{OrphanQueue, PublishAnswer, PublishDeadLetter, PublishPartial};
use speechverse_actors::publisher::{Publisher, PublisherArgs};

use crate::support::{Feed, Kafka, context, fill, header, stop, text_of, until};

mod order;
mod stops;
mod transactions;

/// How long a stop waits where the test says nothing else.
const DRAIN: Duration = Duration::from_secs(10);

/// A publisher with the requests that it answers.
struct Harness {
    publisher: ActorRef<Publisher>,
    kafka: Kafka,
    requests: Feed,
    records: Vec<Record>,
    orphans: OrphanQueue,
    deleted: flume::Sender<RecordsDeleted>,
}

impl Harness {
    /// Reads `count` requests; what the publisher writes goes where `sink` says.
    async fn new(count: usize, sends_max: usize, sink: impl FnOnce(&mut KafkaConfig)) -> Self {
        Self::draining(count, sends_max, DRAIN, sink).await
    }

    /// As [`new`](Self::new), with another time for its stop.
    async fn draining(
        count: usize,
        sends_max: usize,
        drain: Duration,
        sink: impl FnOnce(&mut KafkaConfig),
    ) -> Self {
        Self::reading(Kafka::start().await, count, sends_max, drain, sink).await
    }

    /// As [`draining`](Self::draining), of requests on a broker that is there already.
    async fn reading(
        kafka: Kafka,
        count: usize,
        sends_max: usize,
        drain: Duration,
        sink: impl FnOnce(&mut KafkaConfig),
    ) -> Self {
        let topics = kafka.config.topics.clone();
        for number in 0..count {
            let id = header("ce_id", format!("request-{number}"));
            kafka
                .write(&topics.requests, Some(Bytes::from_static(b"sound")), vec![id])
                .await;
        }
        let requests = kafka.feed(&topics.requests);
        let mut records = Vec::new();
        for _ in 0..count {
            records.push(requests.record().await);
        }
        let mut config = kafka.config.clone();
        sink(&mut config);
        let (orphans, found) = OrphanQueue::new();
        let (deleted, reports) = flume::bounded(4);
        let args = PublisherArgs {
            sink: Sink::new(&config).unwrap(),
            trackers: HashMap::from([(topics.requests.clone(), requests.tracker.clone())]),
            topics,
            source: Arc::from("/test"),
            orphans: found,
            deleted: reports,
            clock: Clock::system(), // what it waits for is the producer, which has a clock of its own
            sends_max,
            drain,
        };
        Self {
            publisher: Publisher::spawn_with_mailbox(args, kameo::mailbox::bounded(1)),
            kafka,
            requests,
            records,
            orphans,
            deleted,
        }
    }

    fn answer(&self, number: usize, text: String) -> PublishAnswer {
        let context = context(self.records[number].clone(), &self.orphans);
        let request = &context.request;
        let answer = Answer {
            id: Answer::id_of(None, &request.id, AnswerKind::Final, 0),
            request_id: request.id.clone(),
            request_source: None,
            session: None,
            kind: AnswerKind::Final,
            task: None,
            instruction: request.instruction.clone(),
            text,
            label: None,
            fields: BTreeMap::new(),
            adapter: "one".to_owned(),
            score: -0.5,
            flags: Vec::new(),
            audio_seconds: 1.0,
            audio_unheard_seconds: 0.0,
            segment: None,
            words: Vec::new(),
            tokens: 3,
            timing_ms: Timing::default(),
        };
        PublishAnswer { answer, context }
    }

    async fn results(&self, count: usize) -> Vec<Record> {
        self.kafka.read(&self.kafka.config.topics.results, count).await
    }

    /// The first event.
    async fn event(&self) -> Event {
        let events = self.kafka.read(&self.kafka.config.topics.events, 1).await;
        serde_json::from_slice(events[0].value.as_ref().unwrap()).unwrap()
    }

    async fn dead_letters(&self, count: usize) -> Vec<Record> {
        self.kafka
            .read(&self.kafka.config.topics.dead_letters, count)
            .await
    }
}

/// An address of this machine where nobody listens yet.
fn nobody_listens() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_broker_is_away_nothing_is_released_and_few_wait_then_everything_is_sent() {
    let address = nobody_listens();
    let harness = Harness::new(6, 2, |sink| {
        sink.bootstrap = address.to_string();
        sink.send_timeout_ms = 300; // so that the publisher has to repeat
        let quick = ("reconnect.backoff.max.ms".to_owned(), "200".to_owned());
        sink.producer = [quick].into_iter().collect();
    })
    .await;

    let (taken, refused) = fill(&harness.publisher, |number| {
        harness.answer(number.min(5), "yes".into())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await; // several sends time out

    // Two are on their way, one waits for its turn, one is in the mailbox.
    assert_eq!(taken, 4);
    assert_eq!(harness.requests.tracker.unfinished(), 6);

    let other = Kafka::start_at(address).await;
    harness.publisher.tell(refused).await.unwrap();
    harness
        .publisher
        .tell(harness.answer(5, "yes".into()))
        .await
        .unwrap();
    harness.requests.idle().await;
    let mut ids: Vec<String> = other
        .read(&other.config.topics.results, 6)
        .await
        .iter()
        .map(|record| text_of(record, "ce_id"))
        .collect();
    ids.sort();
    let wanted: Vec<String> = (0..6).map(|number| format!("request-{number}:final")).collect();
    assert_eq!(ids, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_too_large_for_the_topic_goes_without_its_value_and_says_so() {
    let harness = Harness::new(1, 8, |sink| sink.message_bytes_max = 2_048).await;

    harness
        .publisher
        .tell(harness.answer(0, "x".repeat(5_000)))
        .await
        .unwrap();
    harness.requests.idle().await;

    let results = harness.results(1).await;
    assert_eq!(results[0].value, None);
    assert_eq!(results[0].key, harness.records[0].key);
    assert_eq!(text_of(&results[0], "ce_subject"), "request-0");
    let omitted: usize = text_of(&results[0], VALUE_OMITTED_HEADER).parse().unwrap();
    assert!(omitted > 5_000, "{omitted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_is_too_large_even_without_its_value_is_named_and_released_all_the_same() {
    let harness = Harness::new(3, 8, |sink| sink.message_bytes_max = 2_048).await;
    let mut wordy = harness.records[0].clone();
    wordy.headers.push(header("ce_instruction", vec![b'x'; 5_000]));
    let mut busy = harness.records[2].clone();
    busy.headers.extend((0..500).map(|_| header("x-mine", "1234567")));
    let mut long_key = harness.records[1].clone();
    long_key.key = Some(Bytes::from(vec![b'k'; 5_000]));

    for record in [wordy, long_key, busy] {
        let rejection = Rejection::new(Reason::HeaderTooLarge, Stage::Ingest, "too much");
        let letter = PublishDeadLetter::at_admission(record, rejection);
        harness.publisher.tell(letter).await.unwrap();
    }
    harness.requests.idle().await;

    let letters = harness.dead_letters(3).await;
    let mut offsets: Vec<String> = letters
        .iter()
        .map(|letter| text_of(letter, "__connect.errors.offset"))
        .collect();
    offsets.sort();
    assert_eq!(offsets, ["0", "1", "2"]);
    for letter in &letters {
        assert_eq!(text_of(letter, "speechverse_reason"), "header_too_large");
        match text_of(letter, "__connect.errors.offset").as_str() {
            "0" => assert_eq!(text_of(letter, HEADERS_OMITTED_HEADER), "1"),
            "1" => assert_eq!(text_of(letter, KEY_OMITTED_HEADER), "5000"),
            // Its own id, 500 others, nine of ours and the note about the value; fifteen stay.
            _ => assert_eq!(text_of(letter, HEADERS_OMITTED_HEADER), "496"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_the_broker_takes_in_no_form_becomes_a_dead_letter_of_its_record() {
    let harness = Harness::new(1, 8, |sink| sink.message_bytes_max = 2_048).await;
    let mut order = harness.answer(0, "yes".into());
    order.answer.id = "i".repeat(1_900); // a header that cannot be left out, and too long beside the others

    harness.publisher.tell(order).await.unwrap();
    harness.requests.idle().await;

    let letter = harness.dead_letters(1).await.swap_remove(0);
    assert_eq!(text_of(&letter, "ce_id"), "request-0");
    assert_eq!(letter.value, harness.records[0].value);
    assert_eq!(text_of(&letter, "speechverse_reason"), "answer_refused");
    assert_eq!(text_of(&letter, "__connect.errors.stage"), "publish");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_which_the_broker_takes_no_word_is_an_event_and_released() {
    let harness = Harness::new(2, 8, |sink| sink.message_bytes_max = 1_024).await;
    let rejection = Rejection::new(Reason::NotAudio, Stage::Ingest, "x".repeat(1_000));
    let mut letter = PublishDeadLetter::at_admission(harness.records[1].clone(), rejection);
    letter.earlier = vec![harness.records[0].record_offset.clone()];

    harness.publisher.tell(letter).await.unwrap();
    harness.requests.idle().await;

    let EventKind::RecordRefused { offset, reason, .. } = harness.event().await.what else {
        panic!("another event");
    };
    assert_eq!(offset, 1);
    assert!(reason.contains("too large"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_retention_deleted_are_an_event() {
    let harness = Harness::new(0, 8, |_| {}).await;
    let report = RecordsDeleted {
        partition: TopicPartition::new("requests", 3),
        first_offset: 17,
        records: 21,
    };

    harness.deleted.send_async(report).await.unwrap();

    let event = harness.event().await;
    assert_eq!(event.id, "requests/3");
    let expected = EventKind::RecordsDeleted {
        topic: "requests".into(),
        partition: 3,
        first_offset: 17,
        records: 21,
    };
    assert_eq!(event.what, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_context_that_a_stage_dropped_becomes_a_dead_letter_that_settles_its_earlier_records_too() {
    let harness = Harness::new(3, 8, |_| {}).await;
    let mut dropped = context(harness.records[2].clone(), &harness.orphans);
    let earlier = harness.records[..2]
        .iter()
        .map(|record| record.record_offset.clone())
        .collect();
    dropped.hold(harness.requests.tracker.budget().hold(1), earlier);
    dropped.queue_for(Stage::Decode);

    drop(dropped);
    harness.requests.idle().await;

    let letter = harness.dead_letters(1).await.swap_remove(0);
    assert_eq!(letter.value, harness.records[2].value);
    assert_eq!(text_of(&letter, "ce_id"), "request-2");
    assert_eq!(text_of(&letter, "speechverse_request_id"), "request-2");
    assert_eq!(text_of(&letter, "speechverse_reason"), "internal_error");
    assert_eq!(text_of(&letter, "__connect.errors.stage"), "decode");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_settles_the_earlier_records_of_its_stream_and_no_other() {
    let harness = Harness::new(3, 8, |_| {}).await;
    let mut order = harness.answer(1, "yes".into());
    let budget = harness.requests.tracker.budget();
    order
        .context
        .hold(budget.hold(1), vec![harness.records[0].record_offset.clone()]);

    harness.publisher.tell(order).await.unwrap();
    harness.results(1).await;

    until("two are released", || harness.requests.tracker.unfinished() == 1).await;
    assert_eq!(
        harness
            .requests
            .tracker
            .release(&harness.records[0].record_offset),
        Release::Unknown
    );
    assert_eq!(
        harness.requests.tracker.unfinished(),
        1,
        "the third is nobody's yet"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_answers_stand_before_their_final_one_and_release_nothing() {
    let harness = Harness::new(2, 8, |_| {}).await;
    for number in 0..5 {
        let of = harness.answer(0, "ye".into());
        let answer = Answer {
            id: Answer::id_of(None, "request-0", AnswerKind::Partial, number),
            kind: AnswerKind::Partial,
            ..of.answer
        };
        let inner = of.context.complete();
        let partial = PublishPartial {
            answer,
            reply_topic: None,
            key: inner.record.key,
            trace: inner.request.trace,
        };
        harness.publisher.tell(partial).await.unwrap();
    }
    harness.results(5).await;
    assert_eq!(harness.requests.tracker.unfinished(), 2);

    harness
        .publisher
        .tell(harness.answer(0, "yes".into()))
        .await
        .unwrap();
    until("the answered request is released", || {
        harness.requests.tracker.unfinished() == 1
    })
    .await;

    let ids: Vec<String> = harness
        .results(6)
        .await
        .iter()
        .map(|record| text_of(record, "ce_id"))
        .collect();
    let mut wanted: Vec<String> = (0..5)
        .map(|number| format!("request-0:partial:{number}"))
        .collect();
    wanted.push("request-0:final".into());
    assert_eq!(ids, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_go_to_the_topic_that_their_request_names() {
    let harness = Harness::new(2, 8, |_| {}).await;
    let replies = &harness.kafka.config.topics.events; // any topic but the one for results
    let mut named = harness.answer(0, "here".into());
    named.context.request.reply_topic = Some(Arc::from(replies.as_str()));
    let partial = PublishPartial {
        answer: Answer {
            kind: AnswerKind::Partial,
            ..named.answer.clone()
        },
        reply_topic: named.context.request.reply_topic.clone(),
        key: named.context.record.key.clone(),
        trace: named.context.request.trace.clone(),
    };

    harness.publisher.tell(partial).await.unwrap();
    harness.publisher.tell(named).await.unwrap();
    harness
        .publisher
        .tell(harness.answer(1, "there".into()))
        .await
        .unwrap();
    harness.requests.idle().await;

    let text =
        |record: &Record| -> Answer { serde_json::from_slice(record.value.as_ref().unwrap()).unwrap() };
    let there: Vec<Answer> = harness.kafka.read(replies, 2).await.iter().map(text).collect();
    assert_eq!(
        there.iter().map(|answer| answer.kind).collect::<Vec<_>>(),
        [AnswerKind::Partial, AnswerKind::Final]
    );
    assert_eq!(text(&harness.results(1).await[0]).text, "there");
}

//! What every module here needs: probes behind recipients, records with contexts, a broker with a source.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use embedded_broker::{BrokerConfig, EmbeddedBroker};
use kameo::error::{Infallible, SendError};
use kameo::prelude::*;
use kameo::supervision::RestartPolicy;
use speechverse::kafka::admin::ensure_topics;
use speechverse::kafka::config::{Delivery, KafkaConfig};
use speechverse::kafka::{
    Budget, ConnectionMonitor, OffsetTracker, Read, ReadFrom, Reader, Sink, Source, SourceConfig, SourceEvent,
};
use speechverse::models::adapter::{AdapterConfig, AdapterSnapshot, SpeechAdapter};
use speechverse::models::config::{AdapterSettings, LayerMix};
use speechverse::models::{EncoderInfo, LanguageModelInfo};
use speechverse::registry::{Draft, ModelIdentity};
use speechverse::store::{Sample, SampleSource};
use speechverse::text::{ResolvedPrompt, TaskTable, TemplateVariables, TextError};
use speechverse::wire::headers::Headers;
use speechverse::wire::request::{Instructions, Priority, Request, RequestLimits};
use speechverse::wire::{OutgoingRecord, Record, RecordOffset};
use speechverse_actors::fair_queue::QUANTUM_SECONDS;
use speechverse_actors::ingest::TaskInstructions;
use speechverse_actors::messages::{OrphanQueue, RequestContext, request_span};
use speechverse_actors::supervisor::Supervisor;

/// Longest that a test waits for what must happen.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);
/// Audio that a feed has in flight at most, seconds.
pub(crate) const AUDIO_SECONDS_MAX: f64 = 30.0;
/// How long a test waits for what must not happen.
pub(crate) const A_WHILE: Duration = Duration::from_millis(300);

/// Passes on what it is sent; where nobody takes that, it holds its sender back.
pub(crate) struct Probe<M: Send + 'static> {
    sent: flume::Sender<M>,
}

impl<M: Send + 'static> Actor for Probe<M> {
    type Args = flume::Sender<M>;
    type Error = Infallible;

    async fn on_start(sent: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        Ok(Self { sent })
    }
}

impl<M: Send + 'static> Message<M> for Probe<M> {
    type Reply = ();

    async fn handle(&mut self, message: M, _: &mut Context<Self, Self::Reply>) {
        let _ = self.sent.send_async(message).await; // a test that has ended receives nothing
    }
}

/// A neighbour that takes everything at once.
pub(crate) fn probe<M: Send + 'static>() -> (Recipient<M>, flume::Receiver<M>) {
    let (sender, receiver) = flume::unbounded();
    let probe = Probe::spawn_with_mailbox(sender, kameo::mailbox::bounded(64));
    (probe.recipient(), receiver)
}

/// A neighbour that is busy: it has one message in hand and one in its mailbox until the test takes them.
pub(crate) fn busy_probe<M: Send + 'static>() -> (Recipient<M>, flume::Receiver<M>) {
    let (sender, receiver) = flume::bounded(0);
    let probe = Probe::spawn_with_mailbox(sender, kameo::mailbox::bounded(1));
    (probe.recipient(), receiver)
}

/// The next thing that arrives.
pub(crate) async fn next<T>(from: &flume::Receiver<T>) -> T {
    tokio::time::timeout(WAIT_MAX, from.recv_async())
        .await
        .expect("something arrives in time")
        .expect("the sender lives")
}

/// Whether nothing arrives for a while.
pub(crate) async fn is_silent<T>(from: &flume::Receiver<T>) -> bool {
    tokio::time::timeout(A_WHILE, from.recv_async()).await.is_err()
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {WAIT_MAX:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sends messages until the mailbox has refused one for a while; returns how many it took, and the one that
/// it refused.
pub(crate) async fn fill<A, M>(actor: &ActorRef<A>, mut make: impl FnMut(usize) -> M) -> (usize, M)
where
    A: Actor + Message<M>,
    M: Send + 'static,
{
    const ENOUGH: usize = 50;
    const LONG: Duration = Duration::from_secs(1);
    let (mut taken, mut refused, mut offer) = (0, Instant::now(), make(0));
    while taken < ENOUGH && refused.elapsed() < LONG {
        offer = match actor.tell(offer).try_send() {
            Ok(()) => {
                (taken, refused) = (taken + 1, Instant::now());
                make(taken)
            }
            Err(SendError::MailboxFull(offer)) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                offer
            }
            Err(error) => panic!("{error}"),
        }
    }
    (taken, offer)
}

/// Whether an actor has taken every message out of its mailbox.
pub(crate) fn took_all<A: Actor>(actor: &ActorRef<A>) -> bool {
    let mailbox = actor.mailbox_sender();
    mailbox.capacity() == mailbox.max_capacity()
}

/// Starts a stage that has no thread of its own, as the pipeline does.
pub(crate) async fn start<A: Actor>(args: A::Args, mailbox: usize) -> ActorRef<A> {
    let stage = A::spawn_with_mailbox(args, kameo::mailbox::bounded(mailbox));
    stage.wait_for_startup().await;
    stage
}

/// Starts a stage as the pipeline does: on its own thread, below a supervisor that restarts it.
pub(crate) async fn start_in_thread<A>(args: A::Args, mailbox: usize) -> ActorRef<A>
where
    A: Actor,
    A::Args: Clone + Send + Sync + 'static,
{
    let supervisor = Supervisor::spawn_with_mailbox((), kameo::mailbox::bounded(4));
    let stage = A::supervise_with(&supervisor, move || args.clone())
        .restart_policy(RestartPolicy::Transient)
        .restart_limit(5, Duration::from_secs(60))
        .spawn_in_thread_with_mailbox(kameo::mailbox::bounded(mailbox))
        .await;
    stage.wait_for_startup().await;
    // Dropped, it would take its children with it.
    std::mem::forget(supervisor);
    stage
}

/// Asks an actor to finish what it has and to end, and waits until it has.
pub(crate) async fn stop<A: Actor>(actor: &ActorRef<A>) {
    actor.stop_gracefully().await.unwrap();
    // Not `wait_for_shutdown`, which returns before `on_stop`.
    tokio::time::timeout(WAIT_MAX, actor.wait_for_shutdown_with_result(|_| ()))
        .await
        .expect("it ends in time");
}

pub(crate) fn header(name: &str, value: impl Into<Bytes>) -> (String, Option<Bytes>) {
    (name.to_owned(), Some(value.into()))
}

/// Instructions without tasks.
pub(crate) fn instructions() -> TaskInstructions {
    TaskInstructions {
        tasks: Arc::default(),
        default: "Transcribe the speech.".to_owned(),
    }
}

/// The shipped tasks.
pub(crate) fn shipped() -> TaskInstructions {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/tasks");
    TaskInstructions {
        tasks: Arc::new(TaskTable::load(&folder).unwrap()),
        ..instructions()
    }
}

/// Instructions with the shipped tasks that panic at one name.
pub(crate) struct PanickingInstructions;

impl PanickingInstructions {
    pub(crate) const PANICS: &str = "panics";
}

impl Instructions for PanickingInstructions {
    fn of_task(
        &self,
        names: &str,
        variables: &TemplateVariables,
        own: Option<&str>,
    ) -> Result<ResolvedPrompt, TextError> {
        assert_ne!(names, Self::PANICS, "on purpose");
        shipped().of_task(names, variables, own)
    }

    fn default_instruction(&self) -> String {
        instructions().default
    }
}

/// A record of the request topic that no broker ever saw; its request's id is `request-N`.
pub(crate) fn record(number: usize) -> Record {
    Record {
        record_offset: RecordOffset {
            topic: Arc::from("speechverse.requests"),
            partition: 0,
            offset: number as i64,
            epoch: 1,
        },
        key: Some(Bytes::from(format!("key-{number}"))),
        value: Some(Bytes::from_static(b"sound")),
        headers: vec![header("ce_id", format!("request-{number}"))],
        timestamp_ms: None,
    }
}

/// The context of a record with a request in it, and with one second of sound.
pub(crate) fn context(record: Record, orphans: &OrphanQueue) -> RequestContext {
    let request = Request::parse(&record, &RequestLimits::default(), &instructions()).unwrap();
    let span = request_span(&record.record_offset, &request);
    RequestContext::new(record, request, 1.0, span, orphans.clone())
}

/// The same utterance under another key and priority, and twice as long as a key may have ahead of the
/// others.
pub(crate) fn queued_as(
    context: RequestContext,
    key: &'static str,
    priority: Priority,
    orphans: &OrphanQueue,
) -> RequestContext {
    let mut state = context.complete();
    state.record.key = Some(Bytes::from_static(key.as_bytes()));
    state.request.priority = priority;
    let seconds = 2.0 * QUANTUM_SECONDS;
    let mut context = RequestContext::new(state.record, state.request, seconds, state.span, orphans.clone());
    context.queue_for(state.stage);
    context
}

/// An adapter version between an encoder of two layers and a language model.
pub(crate) fn adapter(
    version: &str,
    mix: LayerMix,
    encoder_width: usize,
    llm_width: usize,
) -> AdapterSnapshot {
    let encoder = EncoderInfo {
        layers: 2,
        width: encoder_width as i64,
        frames_per_second: 50.0,
        max_samples: None,
    };
    let llm = LanguageModelInfo {
        width: llm_width as i64,
        vocab: 264,
        layers: 2,
        max_positions: 4096,
    };
    let settings = AdapterSettings {
        mix,
        ..AdapterSettings::default()
    };
    let config = AdapterConfig::new(&settings, &encoder, &llm).unwrap();
    let seed = version.bytes().map(u64::from).sum();
    SpeechAdapter::new(config, 0.3, seed, tch::Device::Cpu)
        .unwrap()
        .snapshot(version)
        .unwrap()
}

/// An embedded broker with the topics, and a producer.
pub(crate) struct Kafka {
    pub(crate) config: KafkaConfig,
    sink: Sink,
    _broker: EmbeddedBroker,
}

impl Kafka {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(address: std::net::SocketAddr) -> Self {
        let broker = EmbeddedBroker::start(BrokerConfig {
            address,
            ..BrokerConfig::default()
        })
        .await
        .unwrap();
        let config = KafkaConfig {
            bootstrap: broker.bootstrap(),
            partitions: 1, // so that records keep their order
            ..KafkaConfig::default()
        };
        ensure_topics(&config, WAIT_MAX).await.unwrap();
        Self {
            sink: Sink::new(&config).unwrap(),
            config,
            _broker: broker,
        }
    }

    pub(crate) async fn write(
        &self,
        topic: &str,
        value: Option<Bytes>,
        headers: Vec<(String, Option<Bytes>)>,
    ) {
        let record = OutgoingRecord {
            topic: Arc::from(topic),
            key: Some(Bytes::from_static(b"key")),
            value,
            headers,
        };
        self.sink.send(record).await.unwrap();
    }

    /// Joins the group that reads `topic`.
    pub(crate) fn feed(&self, topic: &str) -> Feed {
        self.feed_as(&self.config.group_id, topic)
    }

    /// Joins a group of another name.
    pub(crate) fn feed_as(&self, group_id: &str, topic: &str) -> Feed {
        let budget = Budget::with_audio(self.config.in_flight_bytes_max, AUDIO_SECONDS_MAX);
        let tracker = match self.config.delivery {
            Delivery::AtLeastOnce => OffsetTracker::new(budget),
            Delivery::ExactlyOnce => OffsetTracker::transactional(budget),
        };
        let config = SourceConfig {
            kafka: KafkaConfig {
                group_id: group_id.to_owned(),
                ..self.config.clone()
            },
            topics: vec![topic.to_owned()],
            monitor: ConnectionMonitor::default(),
        };
        let (source, events) = Source::start(config, tracker.clone()).unwrap();
        Feed {
            events,
            tracker,
            source,
        }
    }

    /// What is in `topic`: the first `count` records.
    pub(crate) async fn read(&self, topic: &str, count: usize) -> Vec<Record> {
        let mut reader = Reader::open(&self.config, topic, ReadFrom::Beginning, WAIT_MAX)
            .await
            .unwrap();
        let deadline = Instant::now() + WAIT_MAX;
        let mut records = Vec::new();
        while records.len() < count {
            match reader
                .next(deadline.saturating_duration_since(Instant::now()))
                .await
                .unwrap()
            {
                Read::Record(record) => records.push(record),
                Read::CaughtUp => {}
                Read::TimedOut => panic!("{topic} has {} records, {count} are awaited", records.len()),
            }
        }
        records
    }
}

/// A source with its channel and its tracker.
pub(crate) struct Feed {
    pub(crate) events: flume::Receiver<SourceEvent>,
    pub(crate) tracker: OffsetTracker,
    source: Source,
}

impl Feed {
    pub(crate) async fn record(&self) -> Record {
        loop {
            match next(&self.events).await {
                SourceEvent::Record(record) => return record,
                SourceEvent::Failed(error) => panic!("{error}"),
                SourceEvent::Assigned { .. } | SourceEvent::Revoked(_) => {}
            }
        }
    }

    /// Leaves the group, whatever is in flight.
    pub(crate) async fn leave(self) {
        self.source.close(Duration::ZERO).await.unwrap();
    }

    /// Waits until every record that was read is released.
    pub(crate) async fn idle(&self) {
        until("every record_offset comes back", || {
            self.tracker.unfinished() == 0
        })
        .await;
    }
}

/// A header of a record as text.
pub(crate) fn text_of(record: &Record, name: &str) -> String {
    let bytes = Headers::new(&record.headers).bytes(name).unwrap_or_default();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Sound of one value, as `audio/L16`.
pub(crate) fn pcm(samples: usize, value: f32) -> Bytes {
    let sample = ((value * 32_767.0) as i16).to_be_bytes();
    Bytes::from(sample.repeat(samples))
}

/// Labelled sample `number`: half a second of its own.
pub(crate) fn sample(number: usize) -> Sample {
    let pitch = 0.05 + 0.01 * number as f32;
    Sample {
        audio: (0..8_000)
            .map(|index| (index as f32 * pitch).sin() * 0.3)
            .collect(),
        instruction: "Transcribe the speech.".to_owned(),
        target: format!("sentence number {number}"),
        task: "asr".to_owned(),
        source: SampleSource {
            topic: "speechverse.labels".to_owned(),
            partition: 0,
            offset: number as i64,
        },
        request_source: String::new(),
        request_id: format!("sample-{number}"),
        labels: Vec::new(),
        fields: BTreeMap::new(),
        constrained: false,
        written_ms: 0,
        received_ms: 0,
        may_train: true,
    }
}

/// A version to publish.
pub(crate) fn draft(
    parent: Option<&str>,
    encoder: ModelIdentity,
    llm: ModelIdentity,
    adapter: AdapterSnapshot,
) -> Draft {
    Draft {
        parent: parent.map(str::to_owned),
        encoder,
        llm,
        curriculum: serde_json::Value::Null,
        data_digest: String::new(),
        metrics: BTreeMap::new(),
        settings: serde_json::Value::Null,
        adapter,
        lora: None,
        extra: Vec::new(),
    }
}

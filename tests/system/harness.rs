//! `Sandbox`: broker, tiny models and a pipeline, started and stopped for a test.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use embedded_broker::{BrokerConfig, EmbeddedBroker};
use speechverse::config::Settings;
use speechverse::kafka::config::KafkaConfig;
use speechverse::kafka::{Read, ReadFrom, Reader, Sink};
use speechverse::testing::{TinyModels, publish_first_version};
use speechverse::wire::answer::Answer;
use speechverse::wire::event::{Event, EventKind};
use speechverse::wire::headers::Headers;
use speechverse::wire::{OutgoingRecord, Record};
use speechverse_pipelines::serving::Pipeline;

/// Longest that a test waits for anything.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(90);
/// Where the tests' recordings are.
pub(crate) const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

pub(crate) type Header = (String, Option<Bytes>);

pub(crate) fn header(name: &str, value: impl Into<Bytes>) -> Header {
    (name.to_owned(), Some(value.into()))
}

/// A tone of some length as a 16 kHz WAV file; the pitch distinguishes recordings.
pub(crate) fn tone(seconds: f64, pitch_hz: f64) -> Bytes {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 16_000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::new(&mut bytes, spec).unwrap();
    for index in 0..(seconds * 16_000.0) as usize {
        let phase = index as f64 / 16_000.0 * pitch_hz * std::f64::consts::TAU;
        writer.write_sample((phase.sin() * 9_000.0) as i16).unwrap();
    }
    writer.finalize().unwrap();
    Bytes::from(bytes.into_inner())
}

/// The Kafka that tests run on instead of embedded brokers of their own, `host:port`.
const REAL_KAFKA: &str = "SPEECHVERSE_SYSTEM_KAFKA";
/// Sandboxes of this process, so that each has topics and a group of its own.
static SANDBOXES: AtomicUsize = AtomicUsize::new(0);

/// A broker, and a folder with tiny models, a registry with one version, and settings for them.
pub(crate) struct Sandbox {
    pub(crate) settings: Settings,
    broker: Option<EmbeddedBroker>,
    _dir: tempfile::TempDir,
}

impl Sandbox {
    pub(crate) async fn new() -> Self {
        Self::with_llm(|models| models.llm.clone()).await
    }

    /// As [`new`](Self::new), with another of the tiny language models.
    pub(crate) async fn with_llm(choose: fn(&TinyModels) -> std::path::PathBuf) -> Self {
        if std::env::var_os("RUST_LOG").is_some() {
            speechverse::telemetry::logs::init_lines(&Default::default());
        }
        let dir = tempfile::tempdir().unwrap();
        let models = TinyModels::write(dir.path(), 7);
        let mut settings = Settings::default();
        let broker = match std::env::var(REAL_KAFKA) {
            Ok(bootstrap) => {
                on_real_kafka(&mut settings.kafka, bootstrap);
                None
            }
            Err(_) => {
                // So little that what the broker keeps reaches its bound early in the memory test.
                let config = BrokerConfig {
                    message_bytes_max: 4 << 20,
                    bytes_per_topic_max: 8 << 20,
                    ..BrokerConfig::default()
                };
                let broker = EmbeddedBroker::start(config).await.unwrap();
                settings.kafka.bootstrap = broker.bootstrap();
                Some(broker)
            }
        };
        settings.model.llm = choose(&models);
        settings.model.encoder = models.encoder;
        settings.model.precision = "f32".parse().unwrap();
        settings.model.threads = 1;
        settings.service.tasks_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tasks");
        settings.kafka.commit_interval_ms = 50;
        settings.kafka.message_bytes_max = 3_900_000;
        settings.adapters.dir = dir.path().join("adapters");
        settings.adapters.prefix = "tiny".into();
        settings.store.dir = dir.path().join("samples");
        settings.trainer.runs_dir = dir.path().join("runs");
        settings.trainer.curriculum = dir.path().join("online.toml");
        settings.trainer.yield_to_serving = false;
        settings.http.listen = "127.0.0.1:0".parse().unwrap();
        settings.decoder.tokens_max = 8;
        settings.decoder.positions_max = 1024;
        settings.decoder.slots = 4;
        settings.audio.seconds_max = 40.0;
        settings.audio.whole_seconds_max = 40.0;
        settings.speech.detector = Default::default();
        // So gentle that the candidate is its parent's equal, on a handful of samples: this is about the
        // loop, not about learning. Neither would do in earnest, so the gate is set to let such a candidate
        // through.
        settings.trainer.improvement_min = -1e-9;
        settings.trainer.held_out_samples_min = 1;
        std::fs::write(
            &settings.trainer.curriculum,
            "[validation]\nevery_steps = 100\n[[stage]]\nkind = \"asr\"\nsteps_max = 3\nbatch_rows = 4\nlearning_rate = 1e-9\n",
        )
        .unwrap();
        publish_first_version(
            &settings.adapters.dir,
            &settings.model.encoder,
            &settings.model.llm,
        );
        Self {
            settings,
            broker,
            _dir: dir,
        }
    }

    pub(crate) async fn start(&self) -> Pipeline {
        Pipeline::start(self.settings.clone()).await.unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        let kafka = &self.settings.kafka;
        let open = |topic: String| async move {
            Reader::open(kafka, &topic, ReadFrom::Beginning, WAIT_MAX)
                .await
                .unwrap()
        };
        Client {
            sink: Sink::new(kafka).unwrap(),
            results: open(kafka.topics.results.clone()).await,
            dead_letters: open(kafka.topics.dead_letters.clone()).await,
            events: open(kafka.topics.events.clone()).await,
            settings: self.settings.clone(),
        }
    }

    pub(crate) async fn end(self, pipeline: Pipeline) {
        pipeline.stop().await.unwrap();
        if let Some(broker) = self.broker {
            broker.shutdown().await;
        }
    }
}

/// A broker that others use too: topics and a group that nobody else has.
fn on_real_kafka(kafka: &mut KafkaConfig, bootstrap: String) {
    let number = SANDBOXES.fetch_add(1, Ordering::Relaxed);
    let began = jiff::Timestamp::now().as_millisecond(); // a process id comes again
    let own = format!("system.{began}.{}.{number}", std::process::id());
    kafka.bootstrap = bootstrap;
    kafka.group_id = own.clone();
    let topics = &mut kafka.topics;
    for topic in [
        &mut topics.requests,
        &mut topics.results,
        &mut topics.labels,
        &mut topics.control,
        &mut topics.events,
        &mut topics.dead_letters,
    ] {
        *topic = format!("{own}.{topic}");
    }
}

/// A user of the topics.
pub(crate) struct Client {
    sink: Sink,
    results: Reader,
    dead_letters: Reader,
    events: Reader,
    settings: Settings,
}

impl Client {
    async fn send(&self, topic: &str, key: &str, value: Option<Bytes>, headers: Vec<Header>) {
        let record = OutgoingRecord {
            topic: Arc::from(topic),
            key: Some(Bytes::from(key.to_owned())),
            value,
            headers,
        };
        self.sink.send(record).await.unwrap();
    }

    /// Publishes a request; records with the same key stay in order.
    pub(crate) async fn request(&self, id: &str, key: &str, audio: Bytes, mut headers: Vec<Header>) {
        headers.push(header("ce_id", id.to_owned()));
        self.send(&self.settings.kafka.topics.requests, key, Some(audio), headers)
            .await;
    }

    pub(crate) async fn label(&self, value: Option<Bytes>, headers: Vec<Header>) {
        self.send(&self.settings.kafka.topics.labels, "labels", value, headers)
            .await;
    }

    pub(crate) async fn order(&self, json: &str) {
        let value = Some(Bytes::from(json.to_owned()));
        self.send(&self.settings.kafka.topics.control, "control", value, Vec::new())
            .await;
    }

    /// The next answer.
    pub(crate) async fn answer(&mut self) -> (Answer, Record) {
        let record = next(&mut self.results, "an answer").await;
        let value = record.value.clone().expect("an answer has a value");
        (serde_json::from_slice(&value).unwrap(), record)
    }

    /// The next `count` answers by request id; a repeated id fails the test.
    pub(crate) async fn answers(&mut self, count: usize) -> std::collections::BTreeMap<String, Answer> {
        let mut answers = std::collections::BTreeMap::new();
        for _ in 0..count {
            let (answer, _) = self.answer().await;
            let id = answer.request_id.clone();
            assert!(
                answers.insert(id.clone(), answer).is_none(),
                "request {id} was answered twice"
            );
        }
        answers
    }

    /// The next dead letter: request id (empty without one), reason, record.
    pub(crate) async fn dead_letter(&mut self) -> (String, String, Record) {
        let record = next(&mut self.dead_letters, "a dead letter").await;
        let headers = Headers::new(&record.headers);
        let text = |name: &str| {
            headers
                .bytes(name)
                .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
                .unwrap_or_default()
        };
        (text("ce_id"), text("speechverse_reason"), record)
    }

    /// The first event from here on that `wanted` accepts.
    pub(crate) async fn event(&mut self, wanted: impl Fn(&EventKind) -> bool) -> Event {
        self.next_event(|event| wanted(&event.what)).await
    }

    /// The first event from here on that is about `id`.
    pub(crate) async fn event_of(&mut self, id: &str) -> Event {
        self.next_event(|event| event.id == id).await
    }

    async fn next_event(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            let record = next(&mut self.events, "an event").await;
            let event: Event = serde_json::from_slice(&record.value.expect("an event has a value")).unwrap();
            if wanted(&event) {
                return event;
            }
        }
    }

    /// Whether no further answer comes for a while.
    pub(crate) async fn is_quiet(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.results.next(left).await.unwrap() {
                Read::Record(_) => return false,
                Read::TimedOut => return true,
                Read::CaughtUp => {}
            }
        }
    }
}

async fn next(reader: &mut Reader, what: &str) -> Record {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match reader.next(left).await.unwrap() {
            Read::Record(record) => return record,
            Read::CaughtUp => {}
            Read::TimedOut => panic!("{what} did not come within {WAIT_MAX:?}"),
        }
    }
}

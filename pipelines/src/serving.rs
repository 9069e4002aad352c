//! The serving pipeline: topics → ingest → encoder → decoder → publisher → topics, with collector, trainer
//! and controller beside it, supervised.
//!
//! Stages start from the far end backwards, each past its start-up before the source opens, and stop from the
//! source forwards: stop reading, finish what is in flight, commit, then let go.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use embedded_broker::EmbeddedBroker;
use kameo::error::HookError;
use kameo::prelude::*;
use kameo::supervision::RestartPolicy;
use speechverse::config::Settings;
use speechverse::kafka::admin::ensure_topics;
use speechverse::kafka::config::KafkaConfig;
use speechverse::kafka::{Budget, ConnectionMonitor, OffsetTracker, Sink, Source, SourceConfig, SourceEvent};
use speechverse::models::encoders::whisper::Window;
use speechverse::models::open_encoder;
use speechverse::models::responder::{Responder, ResponderSizes};
use speechverse::models::speech_llm::SpeechLlm;
use speechverse::nn::accel::{Placement, configure_threads, cpu_capability};
use speechverse::store::SampleStore;
use speechverse::telemetry::metrics;
use speechverse::text::TaskTable;
use speechverse::training::Control;
use speechverse::wire::request::RequestLimits;
use speechverse_actors::collector::{CollectorArgs, SampleCollector};
use speechverse_actors::controller::{Controller, ControllerArgs};
use speechverse_actors::current::CurrentAdapter;
use speechverse_actors::decoder::{Decoder, DecoderArgs};
use speechverse_actors::encoder::{Encoder, EncoderArgs};
use speechverse_actors::ingest::{AudioIngest, IngestArgs, TaskInstructions};
use speechverse_actors::messages::OrphanQueue;
use speechverse_actors::publisher::{Publisher, PublisherArgs};
use speechverse_actors::supervisor::Supervisor;
use speechverse_actors::trainer::{Trainer, TrainerArgs};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::adapters;
use crate::health::{self, HttpState, Phase, Readiness};

/// Longest wait for a broker that should be there, at the start.
const BROKER_WAIT: Duration = Duration::from_secs(30);
/// A stage that fails more often than this within [`RESTART_WINDOW`] stays down, and the process ends: its
/// supervisor outside (systemd, Kubernetes) has the better view.
const RESTARTS_MAX: u32 = 5;
/// See [`RESTARTS_MAX`].
const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// Sends to Kafka that may be on their way at once.
const SENDS_MAX: usize = 256;
/// Audio of answered requests that is remembered for corrections, bytes: about four minutes.
const REMEMBERED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Records of the label and control topics that may be in flight, bytes.
const SIDE_BUDGET_BYTES: u64 = 64 * 1024 * 1024;

/// Where a running pipeline can be reached.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Kafka brokers.
    pub bootstrap: String,
    /// Metrics and health.
    pub http: SocketAddr,
    /// Version that new requests are pinned to.
    pub adapter: String,
}

/// A running pipeline. Stop it with [`Pipeline::stop`].
pub struct Pipeline {
    addresses: Addresses,
    settings: Settings,
    broker: Option<EmbeddedBroker>,
    sink: Sink,
    requests: Source,
    labels: Source,
    control: Source,
    training: Control,
    lost: OrphanQueue,
    store: Arc<SampleStore>,
    stages: Stages,
    readiness: Readiness,
    http_stop: CancellationToken,
}

struct Stages {
    supervisor: ActorRef<Supervisor>,
    ingest: ActorRef<AudioIngest>,
    encoder: ActorRef<Encoder>,
    decoder: ActorRef<Decoder>,
    publisher: ActorRef<Publisher>,
    collector: ActorRef<SampleCollector>,
    controller: ActorRef<Controller>,
    trainer: ActorRef<Trainer>,
}

impl Pipeline {
    /// Starts everything and returns when requests are answered.
    ///
    /// # Errors
    /// The first thing that is wrong: a setting, a model folder, the broker, an address.
    pub async fn start(mut settings: Settings) -> anyhow::Result<Self> {
        settings.validate()?;
        let prometheus = metrics::install().context("cannot install the metrics recorder")?;
        let placement = Placement::resolve(settings.model.device, settings.model.precision)?;
        info!(placement = %placement, cpu = %cpu_capability(), "where the networks compute");
        let identities = Arc::new(adapters::identities(&settings)?);
        let (registry, loaded) = adapters::open(&settings, None, &identities)?;
        let current = CurrentAdapter::new(loaded.adapter);
        let tasks = TaskTable::load(&settings.service.tasks_dir).context("task files")?;
        let store = Arc::new(SampleStore::open(&settings.store).context("sample store")?);

        let broker = match settings.kafka.embedded {
            true => Some(
                EmbeddedBroker::start(settings.broker.clone())
                    .await
                    .context("embedded broker")?,
            ),
            false => None,
        };
        if let Some(broker) = &broker {
            settings.kafka.bootstrap = broker.bootstrap();
        }
        let created = ensure_topics(&settings.kafka, BROKER_WAIT)
            .await
            .context("Kafka topics")?;
        if !created.is_empty() {
            info!(topics = ?created, "topics created");
        }

        health::counters_at_zero(&settings.kafka.topics);
        let readiness = Readiness::default();
        let networks_warm = readiness.condition("networks");
        let (monitor, deleted) = ConnectionMonitor::new();
        readiness.require("kafka", {
            let (monitor, limit) = (
                monitor.clone(),
                Duration::from_millis(settings.kafka.unreachable_ms_max),
            );
            move || monitor.check(limit)
        });
        let http_stop = CancellationToken::new();
        let http_state = HttpState {
            metrics: prometheus,
            readiness: readiness.clone(),
            adapter: {
                let current = current.clone();
                Arc::new(move || current.get().version().to_owned())
            },
            facts: Arc::new(facts(&settings, &placement)),
        };
        let http = health::serve(settings.http.listen, http_state, http_stop.clone()).await?;

        let sink = Sink::watched(&settings.kafka, &monitor).context("Kafka producer")?;
        let (lost, found) = OrphanQueue::new();
        let training = Control::new();
        let supervisor = Supervisor::spawn_with_mailbox((), kameo::mailbox::bounded(4)); // it gets no messages
        let trackers = Ledgers::new(&settings.kafka, monitor);

        let publisher_args = PublisherArgs {
            sink: sink.clone(),
            trackers: trackers.by_topic(&settings.kafka),
            topics: settings.kafka.topics.clone(),
            source: Arc::from(settings.service.source.as_str()),
            lost: found,
            deleted,
            sends_max: SENDS_MAX,
            drain: Duration::from_millis(settings.service.drain_ms_max),
        };
        let publisher = Publisher::supervise_with(&supervisor, move || publisher_args.clone())
            .restart_policy(RestartPolicy::Transient)
            .restart_limit(RESTARTS_MAX, RESTART_WINDOW)
            .spawn_with_mailbox(kameo::mailbox::bounded(64)) // smooths bursts; the sends have a bound of their own
            .await;
        started("publisher", &publisher).await?;

        let decoder_args = decoder_args(&settings, &placement, &publisher);
        let decoder = Decoder::supervise_with(&supervisor, move || decoder_args.clone())
            .restart_policy(RestartPolicy::Transient)
            .restart_limit(RESTARTS_MAX, RESTART_WINDOW)
            .spawn_in_thread_with_mailbox(kameo::mailbox::bounded(settings.decoder.slots)) // the next round of slots
            .await;
        started("decoder", &decoder).await?;

        let encoder_args = encoder_args(&settings, &placement, &decoder, &publisher);
        let encoder = Encoder::supervise_with(&supervisor, move || encoder_args.clone())
            .restart_policy(RestartPolicy::Transient)
            .restart_limit(RESTARTS_MAX, RESTART_WINDOW)
            .spawn_in_thread_with_mailbox(kameo::mailbox::bounded(settings.encoder.batch_windows_max)) // the next batch
            .await;
        started("encoder", &encoder).await?;
        networks_warm.met();

        let trainer_args = TrainerArgs {
            config: settings.trainer.clone(),
            adapters: settings.adapters.clone(),
            model: settings.model.clone(),
            store: Arc::clone(&store),
            registry: registry.clone(),
            current: current.clone(),
            control: training.clone(),
            publisher: publisher.clone().recipient(),
        };
        let trainer = Trainer::supervise_with(&supervisor, move || trainer_args.clone())
            .restart_policy(RestartPolicy::Transient)
            .restart_limit(RESTARTS_MAX, RESTART_WINDOW)
            .spawn_in_thread_with_mailbox(kameo::mailbox::bounded(1)) // one cycle may wait while one runs
            .await;
        started("trainer", &trainer).await?;

        let instructions = Arc::new(TaskInstructions {
            tasks: Arc::new(tasks),
            default: settings.service.default_instruction.clone(),
        });
        let (labels, label_events) = trackers.source(&settings.kafka, Side::Labels)?;
        let collector_args = CollectorArgs {
            events: label_events,
            tracker: trackers.labels.clone(),
            store: Arc::clone(&store),
            audio: settings.audio.limits(),
            limits: RequestLimits::default(),
            instructions: instructions.clone(),
            lost: lost.clone(),
            remembered_bytes_max: REMEMBERED_BYTES_MAX,
            publisher: publisher.clone().recipient(),
        };
        let collector = SampleCollector::supervise_with(&supervisor, move || collector_args.clone())
            .restart_policy(RestartPolicy::Transient)
            .restart_limit(RESTARTS_MAX, RESTART_WINDOW)
            .spawn_in_thread_with_mailbox(kameo::mailbox::bounded(64)) // facts that may be lost when it is busy
            .await;
        started("collector", &collector).await?;

        let (control, control_events) = trackers.source(&settings.kafka, Side::Control)?;
        let controller_args = ControllerArgs {
            events: control_events,
            tracker: trackers.control.clone(),
            lost: lost.clone(),
            config: settings.trainer.clone(),
            registry,
            identities,
            current: current.clone(),
            store: Arc::clone(&store),
            control: training.clone(),
            trainer: trainer.clone().recipient(),
            publisher: publisher.clone().recipient(),
            dead_letters: publisher.clone().recipient(),
        };
        let controller = Controller::supervise_with(&supervisor, move || controller_args.clone())
            .restart_policy(RestartPolicy::Transient)
            .restart_limit(RESTARTS_MAX, RESTART_WINDOW)
            .spawn_with_mailbox(kameo::mailbox::bounded(4)) // it gets no messages; orders have their own channel
            .await;
        started("controller", &controller).await?;

        let (requests, request_events) = trackers.source(&settings.kafka, Side::Requests)?;
        let ingest_args = IngestArgs {
            events: request_events,
            tracker: trackers.requests.clone(),
            audio: settings.audio.limits(),
            limits: RequestLimits::default(),
            instructions,
            no_speech_below_dbfs: settings.audio.no_speech_below_dbfs,
            adapter: current.clone(),
            lost: lost.clone(),
            training: settings.trainer.yield_to_serving.then(|| training.clone()),
            encoder: encoder.clone().recipient(),
            collector: collector.clone().recipient(),
            publisher: publisher.clone().recipient(),
        };
        let ingest = AudioIngest::supervise_with(&supervisor, move || ingest_args.clone())
            .restart_policy(RestartPolicy::Transient)
            .restart_limit(RESTARTS_MAX, RESTART_WINDOW)
            .spawn_in_thread_with_mailbox(kameo::mailbox::bounded(4)) // it gets no messages; records have their own channel
            .await;
        started("ingest", &ingest).await?;

        readiness.set(Phase::Ready);
        until_ready(&readiness, &[&requests, &labels, &control]).await?;
        let addresses = Addresses {
            bootstrap: settings.kafka.bootstrap.clone(),
            http,
            adapter: current.get().version().to_owned(),
        };
        info!(bootstrap = %addresses.bootstrap, %http, adapter = %addresses.adapter, "ready");
        Ok(Self {
            addresses,
            settings,
            broker,
            sink,
            requests,
            labels,
            control,
            training,
            lost,
            store,
            stages: Stages {
                supervisor,
                ingest,
                encoder,
                decoder,
                publisher,
                collector,
                controller,
                trainer,
            },
            readiness,
            http_stop,
        })
    }

    /// Where it can be reached.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Its settings, with the real address of an embedded broker.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Waits until something that cannot be restarted has ended, and says what.
    pub async fn broken(&self) -> String {
        const LOOK_EVERY: Duration = Duration::from_millis(500);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let sources = [
                ("requests", &self.requests),
                ("labels", &self.labels),
                ("control", &self.control),
            ];
            if let Some((name, _)) = sources.iter().find(|(_, source)| !source.is_running()) {
                return format!("the source of {name} has ended");
            }
            let stages = &self.stages;
            let alive = [
                ("ingest", stages.ingest.is_alive()),
                ("encoder", stages.encoder.is_alive()),
                ("decoder", stages.decoder.is_alive()),
                ("publisher", stages.publisher.is_alive()),
                ("collector", stages.collector.is_alive()),
                ("controller", stages.controller.is_alive()),
            ];
            if let Some((name, _)) = alive.iter().find(|(_, alive)| !alive) {
                return format!("the {name} failed more than {RESTARTS_MAX} times");
            }
        }
    }

    /// Stops reading, finishes what is in flight within the drain time, commits, and lets everything go.
    ///
    /// # Errors
    /// When records in flight were not finished in time; they are read again after the next start.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.readiness.set(Phase::Draining);
        self.training.stop();
        let drain = Duration::from_millis(self.settings.service.drain_ms_max);
        let (requests, labels, control) = tokio::join!(
            self.requests.close(drain),
            self.labels.close(drain),
            self.control.close(drain)
        );
        self.lost.close();
        let stages = self.stages;
        // From the source forwards; each finishes what it holds.
        ended(&stages.ingest).await;
        ended(&stages.controller).await;
        ended(&stages.collector).await;
        ended(&stages.trainer).await;
        ended(&stages.encoder).await;
        ended(&stages.decoder).await;
        ended(&stages.publisher).await;
        ended(&stages.supervisor).await;
        drop(stages);
        released(self.store, drain).await;
        if let Err(error) = self.sink.close(drain).await {
            error!(%error, "the producer did not close cleanly");
        }
        self.http_stop.cancel();
        if let Some(broker) = self.broker {
            broker.shutdown().await;
        }
        let unfinished = requests?.unfinished + labels?.unfinished + control?.unfinished;
        if unfinished > 0 {
            anyhow::bail!(
                "{unfinished} records were not finished in time; they are read again after the next start"
            );
        }
        info!("stopped");
        Ok(())
    }
}

/// Waits until nothing is lacking, the partitions last; a group may take its time to share them out.
async fn until_ready(readiness: &Readiness, sources: &[&Source]) -> anyhow::Result<()> {
    const LOOK_EVERY: Duration = Duration::from_millis(10);
    const SAY_EVERY: Duration = Duration::from_secs(10);
    let mut said = Instant::now();
    loop {
        let lacks = readiness.lacks();
        if lacks.is_empty() {
            return Ok(());
        }
        if sources.iter().any(|source| !source.is_running()) {
            anyhow::bail!("a Kafka consumer has ended before it had partitions, its log says why");
        }
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            info!(?lacks, "not ready yet");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits for a stage's start-up.
async fn started<A>(name: &str, stage: &ActorRef<A>) -> anyhow::Result<()>
where
    A: Actor,
    A::Error: std::fmt::Display,
{
    let words = |error: HookError<&A::Error>| anyhow::anyhow!("the {name} did not start: {error}");
    stage
        .wait_for_startup_with_result(|result| result.map_err(words))
        .await
}

/// Stops a stage and waits for its end, what it still does in `on_stop` included.
async fn ended<A: Actor>(stage: &ActorRef<A>) {
    // An error says that it has ended before.
    let _ = stage.stop_gracefully().await;
    // Not `wait_for_shutdown`, which returns when the mailbox is closed: `on_stop` runs after that.
    stage.wait_for_shutdown_with_result(|_| ()).await;
}

/// Waits until nobody else holds the sample store, so that its lock is free when this returns: a stage's
/// memory goes a moment after the stage has said that it ended.
async fn released(store: Arc<SampleStore>, limit: Duration) {
    let deadline = tokio::time::Instant::now() + limit;
    while Arc::strong_count(&store) > 1 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn decoder_args(settings: &Settings, placement: &Placement, publisher: &ActorRef<Publisher>) -> DecoderArgs {
    let (model, config, placement) = (
        settings.model.clone(),
        settings.decoder.clone(),
        placement.clone(),
    );
    let options = settings.decoding.options(config.tokens_max);
    let sizes = ResponderSizes {
        slots: config.slots,
        positions_max: config.positions_max,
        answer_positions: config.tokens_max,
    };
    DecoderArgs {
        config,
        build: Arc::new(move || {
            configure_threads(model.threads);
            let llm = SpeechLlm::open(&model.llm, model.system.as_deref(), &placement)?;
            Ok(Responder::new(llm, placement.device, &sizes, options))
        }),
        publisher: publisher.clone().recipient(),
        partials: publisher.clone().recipient(),
        dead_letters: publisher.clone().recipient(),
    }
}

fn encoder_args(
    settings: &Settings,
    placement: &Placement,
    decoder: &ActorRef<Decoder>,
    publisher: &ActorRef<Publisher>,
) -> EncoderArgs {
    let (model, placement) = (settings.model.clone(), placement.clone());
    EncoderArgs {
        config: settings.encoder.clone(),
        build: Arc::new(move || {
            configure_threads(model.threads);
            open_encoder(&model.encoder, Window::Clip, &placement)
        }),
        decoder: decoder.clone().recipient(),
        publisher: publisher.clone().recipient(),
    }
}

/// What the status page shows.
fn facts(settings: &Settings, placement: &Placement) -> Vec<(&'static str, String)> {
    let name = |path: &std::path::Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    vec![
        ("encoder", name(&settings.model.encoder)),
        ("language model", name(&settings.model.llm)),
        ("device", placement.to_string()),
        ("broker", settings.kafka.bootstrap.clone()),
        ("requests", settings.kafka.topics.requests.clone()),
        ("results", settings.kafka.topics.results.clone()),
    ]
}

/// One tracker a source: each is a group of its own, so that orders and labels never wait behind audio.
struct Ledgers {
    requests: OffsetTracker,
    labels: OffsetTracker,
    control: OffsetTracker,
    monitor: ConnectionMonitor,
}

#[derive(Clone, Copy)]
enum Side {
    Requests,
    Labels,
    Control,
}

impl Ledgers {
    fn new(kafka: &KafkaConfig, monitor: ConnectionMonitor) -> Self {
        Self {
            monitor,
            requests: OffsetTracker::new(Budget::new(kafka.in_flight_bytes_max)),
            labels: OffsetTracker::new(Budget::new(SIDE_BUDGET_BYTES)),
            control: OffsetTracker::new(Budget::new(SIDE_BUDGET_BYTES)),
        }
    }

    fn by_topic(&self, kafka: &KafkaConfig) -> HashMap<String, OffsetTracker> {
        HashMap::from([
            (kafka.topics.requests.clone(), self.requests.clone()),
            (kafka.topics.labels.clone(), self.labels.clone()),
            (kafka.topics.control.clone(), self.control.clone()),
        ])
    }

    fn source(
        &self,
        kafka: &KafkaConfig,
        side: Side,
    ) -> anyhow::Result<(Source, flume::Receiver<SourceEvent>)> {
        let mut kafka = kafka.clone();
        let (topic, tracker) = match side {
            Side::Requests => (kafka.topics.requests.clone(), &self.requests),
            Side::Labels => {
                kafka.group_id.push_str("-labels");
                (kafka.topics.labels.clone(), &self.labels)
            }
            Side::Control => {
                kafka.group_id.push_str("-control");
                (kafka.topics.control.clone(), &self.control)
            }
        };
        let config = SourceConfig {
            kafka,
            topics: vec![topic],
            monitor: self.monitor.clone(),
        };
        Source::start(config, tracker.clone()).context("Kafka consumer")
    }
}

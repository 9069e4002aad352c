//! The serving pipeline: topics → ingest → encoder → decoder → publisher → topics, with collector, trainer
//! and controller beside it, supervised. A process has both halves, or one of them ([`Role`]).
//!
//! Stages start from the far end backwards, each past its start-up before the source opens, and stop from the
//! source forwards: stop reading, finish what is in flight, commit, then let go.

mod answering;
mod following;
mod learning;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use embedded_broker::EmbeddedBroker;
use kameo::prelude::*;
use speechverse::config::Settings;
use speechverse::inference::VoiceDetector;
use speechverse::kafka::admin::ensure_topics;
use speechverse::kafka::{ConnectionMonitor, Sink, Source};
use speechverse::nn::accel::{Placement, cpu_capability};
use speechverse::registry::{ModelIdentity, Registry};
use speechverse::store::SampleStore;
use speechverse::telemetry::metrics;
use speechverse::text::TaskTable;
use speechverse::training::Control;
use speechverse::util::Clock;
use speechverse::wire::request::RequestLimits;
use speechverse_actors::current::CurrentAdapter;
use speechverse_actors::ingest::TaskInstructions;
use speechverse_actors::messages::OrphanQueue;
use speechverse_actors::publisher::{Publisher, PublisherArgs};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::adapters;
use crate::health::{self, HttpState, Phase, Readiness};
use crate::role::Role;
use crate::stages::{Runs, StageSpec, Stages};
use crate::trackers::Trackers;

/// Longest wait for a broker that should be there, at the start.
const BROKER_WAIT: Duration = Duration::from_secs(30);
/// Sends to Kafka that may be on their way at once.
const SENDS_MAX: usize = 256;

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
    /// With what they read, for messages.
    sources: Vec<(&'static str, Source)>,
    training: Control,
    orphans: OrphanQueue,
    /// Of a process that learns.
    store: Option<Arc<SampleStore>>,
    stages: Stages,
    readiness: Readiness,
    /// Ends what runs beside the stages: the HTTP server, and following the registry.
    beside_stop: CancellationToken,
}

/// What both halves need.
struct Common {
    role: Role,
    settings: Settings,
    placement: Placement,
    identities: Arc<(ModelIdentity, ModelIdentity)>,
    registry: Registry,
    current: CurrentAdapter,
    instructions: Arc<TaskInstructions>,
    /// What a request may be.
    limits: RequestLimits,
    trackers: Trackers,
    orphans: OrphanQueue,
    training: Control,
    clock: Clock,
    publisher: ActorRef<Publisher>,
}

impl Pipeline {
    /// Starts everything and returns when requests are answered.
    ///
    /// # Errors
    /// The first thing that is wrong: a setting, a model folder, the broker, an address.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        Self::start_as(Role::All, settings).await
    }

    /// Starts the stages of a role and returns when they take records.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_as(role: Role, mut settings: Settings) -> anyhow::Result<Self> {
        settings.validate()?;
        let prometheus = metrics::install().context("cannot install the metrics recorder")?;
        let placement = Placement::resolve(settings.model.device, settings.model.precision)?;
        info!(?role, placement = %placement, cpu = %cpu_capability(), "where the networks compute");
        let identities = Arc::new(adapters::identities(&settings)?);
        let (registry, loaded) = adapters::open(&settings, None, &identities)?;
        let current = CurrentAdapter::new(loaded.adapter);
        let detector = VoiceDetector::open(&settings.speech, &settings.audio)
            .context("voice activity detector (`speech.detector`)")?
            .name();
        let tasks = Arc::new(TaskTable::load(&settings.service.tasks_dir).context("task files")?);
        let store = match role.learns() {
            true => Some(Arc::new(
                SampleStore::open(&settings.store).context("sample store")?,
            )),
            false => None,
        };

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
        let (monitor, deleted) = ConnectionMonitor::new();
        readiness.require("kafka", {
            let (monitor, limit) = (
                monitor.clone(),
                Duration::from_millis(settings.kafka.unreachable_ms_max),
            );
            move || monitor.check(limit)
        });
        let beside_stop = CancellationToken::new();
        let http_state = HttpState {
            metrics: prometheus,
            readiness: readiness.clone(),
            adapter: {
                let current = current.clone();
                Arc::new(move || current.get().version().to_owned())
            },
            facts: Arc::new(health::facts(role, &settings, &placement, detector)),
        };
        let http = health::serve(&settings.http.listen, http_state, beside_stop.clone()).await?;

        let sink = Sink::watched(&settings.kafka, &monitor).context("Kafka producer")?;
        let (orphans, found) = OrphanQueue::new();
        let clock = Clock::system();
        let mut stages = Stages::new();
        let trackers = Trackers::new(&settings, monitor);
        let publisher_args = PublisherArgs {
            sink: sink.clone(),
            trackers: trackers.by_topic(&settings.kafka),
            topics: settings.kafka.topics.clone(),
            source: Arc::from(settings.service.source.as_str()),
            orphans: found,
            deleted,
            clock: clock.clone(),
            sends_max: SENDS_MAX,
            drain: Duration::from_millis(settings.service.drain_ms_max),
        };
        let spec = StageSpec {
            name: "publisher",
            mailbox: 64, // smooths bursts; the sends have a bound of their own
            runs: Runs::OnRuntime,
            required: true,
        };
        let publisher: ActorRef<Publisher> = stages.start(spec, publisher_args).await?;
        let common = Common {
            role,
            placement,
            identities,
            registry,
            current,
            instructions: Arc::new(TaskInstructions {
                tasks,
                default: settings.service.default_instruction.clone(),
            }),
            limits: RequestLimits {
                reply_topics: (settings.kafka.topics.replies.iter())
                    .map(|topic| topic.as_str().into())
                    .collect(),
                ..RequestLimits::default()
            },
            trackers,
            orphans,
            training: Control::new(),
            clock,
            publisher,
            settings,
        };

        let mut sources = Vec::new();
        let networks = match role.answers() {
            true => {
                let warm = readiness.condition("networks");
                let networks = answering::start_networks(&common, &mut stages).await?;
                warm.met();
                Some(networks)
            }
            false => None,
        };
        let collector = match &store {
            Some(store) => Some(learning::start(&common, store, &mut stages, &mut sources).await?),
            None => None,
        };
        if let Some(networks) = networks {
            answering::start_ingest(&common, networks, collector, &mut stages, &mut sources).await?;
        }
        following::start(&common, beside_stop.clone());

        readiness.set(Phase::Ready);
        until_ready(&readiness, &sources).await?;
        let Common {
            settings,
            current,
            orphans,
            training,
            ..
        } = common;
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
            sources,
            training,
            orphans,
            store,
            stages,
            readiness,
            beside_stop,
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
        const POLL_INTERVAL: Duration = Duration::from_millis(500);
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            if let Some((name, _)) = self.sources.iter().find(|(_, source)| !source.is_running()) {
                return format!("the source of {name} has ended");
            }
            if let Some(reason) = self.stages.broken() {
                return reason;
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
        let closing: JoinSet<_> = (self.sources.into_iter())
            .map(|(_, source)| source.close(drain))
            .collect();
        let closed = closing.join_all().await;
        self.orphans.close();
        self.stages.stop().await; // from the source forwards; each finishes what it holds
        if let Some(store) = self.store {
            released(store, drain).await;
        }
        if let Err(error) = self.sink.close(drain).await {
            error!(%error, "the producer did not close cleanly");
        }
        self.beside_stop.cancel();
        if let Some(broker) = self.broker {
            broker.shutdown().await;
        }
        let mut unfinished = 0;
        for source in closed {
            unfinished += source?.unfinished;
        }
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
async fn until_ready(readiness: &Readiness, sources: &[(&str, Source)]) -> anyhow::Result<()> {
    const POLL_INTERVAL: Duration = Duration::from_millis(10);
    const SAY_EVERY: Duration = Duration::from_secs(10);
    let mut said = Instant::now();
    loop {
        let lacks = readiness.lacks();
        if lacks.is_empty() {
            return Ok(());
        }
        if sources.iter().any(|(_, source)| !source.is_running()) {
            anyhow::bail!("a Kafka consumer has ended before it had partitions, its log says why");
        }
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            info!(?lacks, "not ready yet");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Waits until nobody else holds the sample store, so that its lock is free when this returns: a stage's
/// memory goes a moment after the stage has said that it ended.
async fn released(store: Arc<SampleStore>, limit: Duration) {
    let deadline = tokio::time::Instant::now() + limit;
    while Arc::strong_count(&store) > 1 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

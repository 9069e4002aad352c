//! The serving pipeline: topics → ingest → encoder → decoder → publisher → topics, with collector, trainer
//! and controller beside it, supervised.
//!
//! Stages start from the far end backwards, each past its start-up before the source opens, and stop from the
//! source forwards: stop reading, finish what is in flight, commit, then let go.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use embedded_broker::EmbeddedBroker;
use kameo::prelude::*;
use speechverse::audio::AudioLimits;
use speechverse::config::Settings;
use speechverse::inference::speech_llm::SpeechLlm;
use speechverse::inference::{EngineConfig, FeatureExtractor, Generator, VoiceDetector};
use speechverse::kafka::admin::{end_of, ensure_topics};
use speechverse::kafka::{ConnectionMonitor, Sink, Source};
use speechverse::models::encoders::whisper::Window;
use speechverse::models::open_encoder;
use speechverse::nn::accel::{Placement, configure_threads, cpu_capability};
use speechverse::store::SampleStore;
use speechverse::telemetry::metrics;
use speechverse::text::TaskTable;
use speechverse::training::Control;
use speechverse::util::Clock;
use speechverse::wire::request::{Priority, RequestLimits};
use speechverse_actors::collector::{CollectorArgs, SampleCollector};
use speechverse_actors::controller::{Controller, ControllerArgs, OrdersDue, Schedule};
use speechverse_actors::current::CurrentAdapter;
use speechverse_actors::decoder::{Decoder, DecoderArgs};
use speechverse_actors::encoder::{Encoder, EncoderArgs};
use speechverse_actors::ingest::{AudioIngest, IngestArgs, TaskInstructions};
use speechverse_actors::messages::{DecoderPlaces, OrphanQueue};
use speechverse_actors::publisher::{Publisher, PublisherArgs};
use speechverse_actors::trainer::{Trainer, TrainerArgs};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::adapters;
use crate::health::{self, HttpState, Phase, Readiness};
use crate::stages::{Runs, StageSpec, Stages};
use crate::trackers::{Side, Trackers};

/// Longest wait for a broker that should be there, at the start.
const BROKER_WAIT: Duration = Duration::from_secs(30);
/// Sends to Kafka that may be on their way at once.
const SENDS_MAX: usize = 256;
/// Audio of answered requests that is remembered for corrections, bytes: about four minutes.
const REMEMBERED_BYTES_MAX: usize = 16 * 1024 * 1024;

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
    orphans: OrphanQueue,
    store: Arc<SampleStore>,
    stages: Stages,
    readiness: Readiness,
    http_stop: CancellationToken,
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
        let detector = VoiceDetector::open(&settings.speech, &settings.audio)
            .context("voice activity detector (`speech.detector`)")?
            .name();
        let tasks = Arc::new(TaskTable::load(&settings.service.tasks_dir).context("task files")?);
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
        let orders_end = end_of(&settings.kafka, &settings.kafka.topics.control, 0, BROKER_WAIT)
            .await
            .context("end of the control topic")?;

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
            facts: Arc::new(health::facts(&settings, &placement, detector)),
        };
        let http = health::serve(&settings.http.listen, http_state, http_stop.clone()).await?;

        let sink = Sink::watched(&settings.kafka, &monitor).context("Kafka producer")?;
        let (orphans, found) = OrphanQueue::new();
        let training = Control::new();
        let clock = Clock::system();
        let schedule = Schedule::open(&settings.trainer, clock.clone());
        let mut stages = Stages::new();
        let trackers = Trackers::new(&settings, monitor);
        // A batch of the encoder, or the next round of slots.
        let places_each = settings.decoder.slots.max(settings.encoder.batch_windows_max);
        let places = DecoderPlaces::new(places_each);

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

        let waiting_max = Priority::ALL.len() * places_each;
        let decoder_args = decoder_args(&settings, &placement, &current, &publisher, waiting_max, &clock);
        let spec = StageSpec {
            name: "decoder",
            mailbox: waiting_max, // one for each place
            runs: Runs::OnItsOwnThread,
            required: true,
        };
        let decoder: ActorRef<Decoder> = stages.start(spec, decoder_args).await?;

        let encoder_args = encoder_args(
            &settings, &placement, &current, &decoder, &publisher, places, &clock,
        );
        let spec = StageSpec {
            name: "encoder",
            mailbox: settings.encoder.batch_windows_max, // the next batch
            runs: Runs::OnItsOwnThread,
            required: true,
        };
        let encoder: ActorRef<Encoder> = stages.start(spec, encoder_args).await?;
        networks_warm.met();

        let trainer_args = TrainerArgs {
            config: settings.trainer.clone(),
            adapters: settings.adapters.clone(),
            model: settings.model.clone(),
            engine: settings.engine(),
            tasks: Arc::clone(&tasks),
            store: Arc::clone(&store),
            registry: registry.clone(),
            current: current.clone(),
            control: training.clone(),
            publisher: publisher.clone().recipient(),
        };
        let spec = StageSpec {
            name: "trainer",
            mailbox: 1, // one cycle may wait while one runs
            runs: Runs::OnItsOwnThread,
            required: false,
        };
        let trainer: ActorRef<Trainer> = stages.start(spec, trainer_args).await?;

        let instructions = Arc::new(TaskInstructions {
            tasks,
            default: settings.service.default_instruction.clone(),
        });
        let (labels, label_events) = trackers.source(&settings.kafka, Side::Labels)?;
        let collector_args = CollectorArgs {
            events: label_events,
            tracker: trackers.labels.clone(),
            store: Arc::clone(&store),
            audio: AudioLimits {
                seconds_max: settings.audio.whole_seconds_max,
                ..settings.audio.limits()
            },
            limits: RequestLimits::default(),
            instructions: instructions.clone(),
            orphans: orphans.clone(),
            remembered_bytes_max: REMEMBERED_BYTES_MAX,
            clock: clock.clone(),
            correction_wait: Duration::from_millis(settings.store.correction_wait_ms),
            corrections_waiting_max: settings.store.corrections_waiting_max,
            publisher: publisher.clone().recipient(),
        };
        let spec = StageSpec {
            name: "collector",
            mailbox: 64, // facts that may be lost when it is busy
            runs: Runs::OnItsOwnThread,
            required: true,
        };
        let collector: ActorRef<SampleCollector> = stages.start(spec, collector_args).await?;

        let (control, control_events) = trackers.source(&settings.kafka, Side::Control)?;
        let controller_args = ControllerArgs {
            events: control_events,
            tracker: trackers.control.clone(),
            due: OrdersDue::from_offset(orders_end),
            order_age_max: Duration::from_secs(settings.service.order_age_seconds_max),
            orphans: orphans.clone(),
            clock: clock.clone(),
            schedule,
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
        let spec = StageSpec {
            name: "controller",
            mailbox: 4, // it gets no messages; orders have their own channel
            runs: Runs::OnRuntime,
            required: true,
        };
        let _: ActorRef<Controller> = stages.start(spec, controller_args).await?;

        let (requests, request_events) = trackers.source(&settings.kafka, Side::Requests)?;
        let ingest_args = IngestArgs {
            events: request_events,
            tracker: trackers.requests.clone(),
            clock,
            audio: settings.audio.clone(),
            speech: settings.speech.clone(),
            decoder: settings.decoder.clone(),
            limits: RequestLimits {
                reply_topics: settings
                    .kafka
                    .topics
                    .replies
                    .iter()
                    .map(|topic| topic.as_str().into())
                    .collect(),
                ..RequestLimits::default()
            },
            instructions,
            adapter: current.clone(),
            orphans: orphans.clone(),
            training: settings.trainer.yield_to_serving.then(|| training.clone()),
            encoder: encoder.clone().recipient(),
            so_far: encoder.clone().recipient(),
            collector: collector.clone().recipient(),
            answers: publisher.clone().recipient(),
            partials: publisher.clone().recipient(),
            publisher: publisher.clone().recipient(),
        };
        let spec = StageSpec {
            name: "ingest",
            mailbox: 4, // it gets no messages; records have their own channel
            runs: Runs::OnItsOwnThread,
            required: true,
        };
        let _: ActorRef<AudioIngest> = stages.start(spec, ingest_args).await?;

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
            orphans,
            store,
            stages,
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
        const POLL_INTERVAL: Duration = Duration::from_millis(500);
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let sources = [
                ("requests", &self.requests),
                ("labels", &self.labels),
                ("control", &self.control),
            ];
            if let Some((name, _)) = sources.iter().find(|(_, source)| !source.is_running()) {
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
        let (requests, labels, control) = tokio::join!(
            self.requests.close(drain),
            self.labels.close(drain),
            self.control.close(drain)
        );
        self.orphans.close();
        self.stages.stop().await; // from the source forwards; each finishes what it holds
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
    const POLL_INTERVAL: Duration = Duration::from_millis(10);
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

/// A stage that blocks on the device starts warmed up with the version that serves then, so that `ready`
/// means it.
fn decoder_args(
    settings: &Settings,
    placement: &Placement,
    current: &CurrentAdapter,
    publisher: &ActorRef<Publisher>,
    queue_max: usize,
    clock: &Clock,
) -> DecoderArgs {
    let (model, placement, current) = (settings.model.clone(), placement.clone(), current.clone());
    let engine = EngineConfig {
        preallocate: true,
        prefill_positions_max: settings.decoder.prefill_positions_max,
        ..settings.engine()
    };
    DecoderArgs {
        config: settings.decoder.clone(),
        queue_max,
        bulk_share: settings.admission.bulk_share,
        clock: clock.clone(),
        default_instruction: settings.service.default_instruction.clone(),
        build: Arc::new(move || {
            configure_threads(model.threads);
            let llm = SpeechLlm::open(&model.llm, model.system.as_deref(), &placement)?;
            let mut generator = Generator::new(llm, &engine);
            generator.warm_up(&current.get())?;
            Ok(generator)
        }),
        publisher: publisher.clone().recipient(),
        partials: publisher.clone().recipient(),
        dead_letters: publisher.clone().recipient(),
    }
}

fn encoder_args(
    settings: &Settings,
    placement: &Placement,
    current: &CurrentAdapter,
    decoder: &ActorRef<Decoder>,
    publisher: &ActorRef<Publisher>,
    places: DecoderPlaces,
    clock: &Clock,
) -> EncoderArgs {
    let (model, placement, current) = (settings.model.clone(), placement.clone(), current.clone());
    let (batch_windows_max, cache_bytes_max) = (
        settings.encoder.batch_windows_max,
        settings.encoder.cache_bytes_max,
    );
    EncoderArgs {
        config: settings.encoder.clone(),
        queue_max: settings.kafka.in_flight_records_max,
        bulk_share: settings.admission.bulk_share,
        places,
        clock: clock.clone(),
        build: Arc::new(move || {
            configure_threads(model.threads);
            let encoder = open_encoder(&model.encoder, Window::Clip, &placement)?;
            let extractor = FeatureExtractor::new(encoder, batch_windows_max).with_cache(cache_bytes_max);
            extractor.warm_up(&current.get())?;
            Ok(extractor)
        }),
        decoder: decoder.clone().recipient(),
        reader: decoder.clone().recipient(),
        publisher: publisher.clone().recipient(),
    }
}

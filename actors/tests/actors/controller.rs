//! `Controller`: orders, and cycles by the schedule.

mod orders;
mod schedule;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kameo::prelude::*;
use speechverse::kafka::SourceEvent;
use speechverse::models::config::LayerMix;
use speechverse::registry::{Draft, Expected, ModelIdentity, Registry};
use speechverse::store::SampleStore;
use speechverse::store::config::StoreConfig;
use speechverse::training::Control;
use speechverse::training::trainer_config::TrainerConfig;
use speechverse::util::Clock;
use speechverse::wire::Record;
use speechverse::wire::dead_letter::{Reason, Stage};
use speechverse::wire::event::{Event, EventKind};
use speechverse_actors::controller::{Controller, ControllerArgs, OrdersDue, Schedule};
use speechverse_actors::current::CurrentAdapter;
use speechverse_actors::messages::{
    OrphanQueue, OrphanedRecord, PublishDeadLetter, PublishEvent, StartCycle,
};

use crate::support::{
    A_WHILE, Feed, Kafka, Probe, WAIT_MAX, adapter, busy_probe, draft, is_silent, next, probe, record,
    sample, start, until,
};

fn identity(name: &str) -> ModelIdentity {
    ModelIdentity {
        name: name.to_owned(),
        digest: format!("sha256:{name}"),
    }
}

/// The schedule is looked at this often.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Age from which orders are not carried out here.
const AGE_MAX: Duration = Duration::from_secs(3600);

type Ends<M> = (Recipient<M>, flume::Receiver<M>);

struct Harness {
    args: ControllerArgs,
    clock: Clock,
    controller: ActorRef<Controller>,
    cycles: flume::Receiver<StartCycle>,
    events: flume::Receiver<PublishEvent>,
    letters: flume::Receiver<PublishDeadLetter>,
    found: flume::Receiver<OrphanedRecord>,
    training: Control,
    current: CurrentAdapter,
    registry: Registry,
    store: Arc<SampleStore>,
    kafka: Kafka,
    orders: Feed,
    inject: flume::Sender<SourceEvent>,
    _dir: tempfile::TempDir,
}

impl Harness {
    /// Serves `tiny-0002`; before that, `tiny-0001` was served, and before that `tiny-0003`, by another
    /// language model.
    async fn new(settings: impl FnOnce(&mut TrainerConfig)) -> Self {
        Self::between(busy_probe(), probe(), settings).await
    }

    async fn between(
        trainer: Ends<StartCycle>,
        publisher: Ends<PublishEvent>,
        settings: impl FnOnce(&mut TrainerConfig),
    ) -> Self {
        Self::after(&[], trainer, publisher, settings).await
    }

    /// As [`between`](Self::between), with orders that lay in the topic before.
    async fn after(
        before: &[&'static str],
        trainer: Ends<StartCycle>,
        publisher: Ends<PublishEvent>,
        settings: impl FnOnce(&mut TrainerConfig),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        publish_versions(dir.path());
        Self::on(dir, Clock::manual(), before, trainer, publisher, settings).await
    }

    /// A process on the files of an earlier one.
    async fn on(
        dir: tempfile::TempDir,
        clock: Clock,
        before: &[&'static str],
        (trainer, cycles): Ends<StartCycle>,
        publisher: Ends<PublishEvent>,
        settings: impl FnOnce(&mut TrainerConfig),
    ) -> Self {
        let registry = Registry::open(dir.path().join("adapters")).unwrap();
        let store = Arc::new(open_store(dir.path()));
        let kafka = Kafka::start().await;
        for order in before {
            write_order(&kafka, order).await;
        }
        let due = OrdersDue::from_offset(before.len() as i64);
        let orders = kafka.feed(&kafka.config.topics.control);
        let (inject, events_in) = flume::bounded(64);
        let (read, passed_on) = (orders.events.clone(), inject.clone());
        tokio::spawn(async move {
            while let Ok(event) = read.recv_async().await {
                let _ = passed_on.send_async(event).await; // a test that has ended
            }
        });
        let (publisher, events) = publisher;
        let (orphans, found) = OrphanQueue::new();
        let (dead_letters, letters) = probe();
        let mut config = TrainerConfig {
            samples_min: 1,
            runs_dir: dir.path().join("runs"),
            ..TrainerConfig::default()
        };
        settings(&mut config);
        let training = Control::new();
        let current = CurrentAdapter::new(registry.load_current().unwrap().adapter);
        let args = ControllerArgs {
            clock: clock.clone(),
            schedule: Schedule::open(&config, clock.clone()),
            events: events_in,
            tracker: orders.tracker.clone(),
            due,
            order_age_max: AGE_MAX,
            orphans,
            config,
            registry: registry.clone(),
            identities: Arc::new((identity("encoder"), identity("llm"))),
            current: current.clone(),
            store: Arc::clone(&store),
            control: training.clone(),
            trainer,
            publisher,
            dead_letters,
        };
        Self {
            clock,
            controller: start(args.clone(), 4).await,
            args,
            cycles,
            events,
            letters,
            found,
            training,
            current,
            registry,
            store,
            kafka,
            orders,
            inject,
            _dir: dir,
        }
    }

    /// Ends the controller, and lets go of everything but the files and the clock.
    async fn end(self) -> (tempfile::TempDir, Clock) {
        self.controller.stop_gracefully().await.unwrap();
        self.controller.wait_for_shutdown().await;
        drop(self.args);
        until("the store is free", || Arc::strong_count(&self.store) == 1).await;
        (self._dir, self.clock)
    }

    async fn order(&self, json: &'static str) {
        write_order(&self.kafka, json).await;
    }

    /// Lets the controller read a record that the source does not bring.
    async fn inject(&self, record: Record) {
        self.inject.send_async(SourceEvent::Record(record)).await.unwrap();
    }

    async fn event(&self) -> Event {
        next(&self.events).await.event
    }

    /// The next event, which has to say that an order was carried out: id, command.
    async fn carried_out(&self) -> (String, String) {
        let event = self.event().await;
        let EventKind::CommandObeyed { command } = event.what else {
            panic!("not carried out: {event:?}")
        };
        (event.id, command)
    }

    /// The next event, which has to say that an order came too late: id, command, reason.
    async fn expiry(&self) -> (String, String, String) {
        let event = self.event().await;
        let EventKind::CommandExpired { command, reason } = event.what else {
            panic!("not expired: {event:?}")
        };
        (event.id, command, reason)
    }

    /// The next event, which has to be a refusal: id, command, reason.
    async fn refusal(&self) -> (String, String, String) {
        let event = self.event().await;
        let EventKind::CommandRefused { command, reason } = event.what else {
            panic!("not a refusal: {event:?}")
        };
        (event.id, command, reason)
    }
}

/// The versions that [`Harness::new`] tells of.
fn publish_versions(dir: &Path) {
    let registry = Registry::open(dir.join("adapters")).unwrap();
    let version = |parent: Option<&str>, llm: &str| {
        let adapter = adapter("draft", LayerMix::Paper, 4, 6);
        registry
            .publish(
                "tiny",
                &draft(parent, identity("encoder"), identity(llm), adapter),
            )
            .unwrap()
            .version
    };
    assert_eq!(version(None, "llm"), "tiny-0001");
    assert_eq!(version(Some("tiny-0001"), "llm"), "tiny-0002");
    assert_eq!(version(Some("tiny-0002"), "another"), "tiny-0003");
    for version in ["tiny-0003", "tiny-0001", "tiny-0002"] {
        registry.promote(version, Expected::Any).unwrap();
    }
}

async fn write_order(kafka: &Kafka, json: &'static str) {
    let value = Some(Bytes::from_static(json.as_bytes()));
    kafka.write(&kafka.config.topics.control, value, Vec::new()).await;
}

fn open_store(dir: &Path) -> SampleStore {
    SampleStore::open(&StoreConfig {
        dir: dir.join("samples"),
        task_samples_max: 8,
        ..StoreConfig::default()
    })
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_cycle_runs_one_waits_and_a_third_order_is_refused() {
    let harness = Harness::new(|_| {}).await;

    for order in [
        r#"{"command": "retrain", "id": "run-1"}"#,
        r#"{"command": "retrain", "id": "run-2"}"#,
    ] {
        harness.order(order).await;
        assert_eq!(harness.carried_out().await.1, "retrain");
        tokio::time::sleep(A_WHILE).await; // the trainer takes it up, if it is free
    }
    harness.order(r#"{"command": "retrain", "id": "run-3"}"#).await;
    let (id, command, reason) = harness.refusal().await;

    assert_eq!((id.as_str(), command.as_str()), ("run-3", "retrain"));
    assert!(reason.contains("is running"), "{reason}");
    let runs =
        [next(&harness.cycles).await, next(&harness.cycles).await].map(|cycle| (cycle.run, cycle.trigger));
    assert_eq!(
        runs,
        [("run-1".into(), "order".into()), ("run-2".into(), "order".into())]
    );
    harness.orders.idle().await; // refused or carried out, the order is finished
    harness.order(r#"{"command": "retrain"}"#).await;
    assert_eq!(next(&harness.cycles).await.run, "run-speechverse.control-0-3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgotten_samples_leave_the_store_and_unknown_ones_are_passed_over() {
    let harness = Harness::new(|_| {}).await;
    let ids: Vec<String> = (0..3)
        .map(|number| match harness.store.put(&sample(number)).unwrap() {
            speechverse::store::Put::Stored { id, .. } => id.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    let unknown = "ab".repeat(32);
    let order = format!(
        r#"{{"command": "forget", "id": "f-1", "samples": ["{}", "{unknown}", "{}"]}}"#,
        ids[0], ids[2]
    );

    harness.order(order.leak()).await;

    assert_eq!(harness.carried_out().await, ("f-1".into(), "forget".into()));
    let left: Vec<String> = harness
        .store
        .snapshot()
        .all()
        .map(|sample| sample.id.to_string())
        .collect();
    assert_eq!(left, ids[1..2]);
    harness.orders.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause_and_resume_reach_the_training_and_are_reported() {
    let harness = Harness::new(|_| {}).await;
    harness.order(r#"{"command": "pause", "id": "p-1"}"#).await;
    assert_eq!(harness.carried_out().await, ("p-1".into(), "pause".into()));
    assert!(harness.training.is_paused());

    harness.order(r#"{"command": "resume"}"#).await;
    let resumed = ("order-speechverse.control-0-1".into(), "resume".into());
    assert_eq!(harness.carried_out().await, resumed);
    assert!(!harness.training.is_paused());
    harness.orders.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_serves_the_version_before_and_a_promotion_the_named_one() {
    let harness = Harness::new(|_| {}).await;
    let swapped = |event: Event| match event.what {
        EventKind::AdapterSwapped { from, to, reason } => (from, to, reason),
        other => panic!("{other:?}"),
    };
    let words = |from: &str, to: &str, reason: &str| (from.to_owned(), to.to_owned(), reason.to_owned());

    harness.order(r#"{"command": "rollback"}"#).await;
    assert_eq!(
        swapped(harness.event().await),
        words("tiny-0002", "tiny-0001", "rollback")
    );
    assert_eq!(harness.carried_out().await.1, "rollback");
    assert_eq!(harness.current.get().version(), "tiny-0001");
    assert_eq!(harness.registry.current().unwrap().as_deref(), Some("tiny-0001"));

    harness
        .order(r#"{"command": "promote", "version": "tiny-0002"}"#)
        .await;
    assert_eq!(
        swapped(harness.event().await),
        words("tiny-0001", "tiny-0002", "promote")
    );
    assert_eq!(harness.carried_out().await.1, "promote");
    assert_eq!(harness.current.get().version(), "tiny-0002");
    assert_eq!(harness.registry.current().unwrap().as_deref(), Some("tiny-0002"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_rollback_by_name_a_rollback_goes_further_back_and_not_to_the_version_that_was_left() {
    let harness = Harness::new(|_| {}).await;

    harness
        .order(r#"{"command": "rollback", "version": "tiny-0001"}"#)
        .await;
    let swapped = harness.event().await.what;
    assert!(
        matches!(&swapped, EventKind::AdapterSwapped { from, to, reason }
            if from == "tiny-0002" && to == "tiny-0001" && reason == "rollback"),
        "{swapped:?}"
    );
    assert_eq!(harness.carried_out().await.1, "rollback");
    harness.order(r#"{"command": "rollback"}"#).await;
    let (_, _, reason) = harness.refusal().await;

    assert!(reason.contains("tiny-0003"), "{reason}"); // of another language model
    harness
        .order(r#"{"command": "rollback", "version": "tiny-0003"}"#)
        .await;
    assert!(harness.refusal().await.2.contains("another"));
    assert_eq!(harness.current.get().version(), "tiny-0001");
    assert_eq!(harness.registry.current().unwrap().as_deref(), Some("tiny-0001"));
}

/// Puts a pipe in place of an empty file of a version: who verifies the version waits there, once a time that
/// it is read.
fn pipe_in_place_of(path: &Path) -> std::thread::JoinHandle<std::fs::File> {
    std::fs::remove_file(path).unwrap();
    assert!(
        std::process::Command::new("mkfifo")
            .arg(path)
            .status()
            .unwrap()
            .success()
    );
    let path = path.to_owned();
    std::thread::spawn(move || std::fs::OpenOptions::new().write(true).open(path).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_version_is_read_once_and_not_on_a_thread_that_others_need() {
    let harness = Harness::new(|_| {}).await;
    let empty = harness._dir.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let version = Draft {
        extra: vec![("pipe".to_owned(), empty)],
        ..draft(
            None,
            identity("encoder"),
            identity("llm"),
            adapter("draft", LayerMix::Paper, 4, 6),
        )
    };
    harness.registry.publish_as("tiny-0004", &version).unwrap();
    let opened = pipe_in_place_of(&harness.registry.root().join("tiny-0004/pipe"));

    harness
        .order(r#"{"command": "promote", "version": "tiny-0004"}"#)
        .await;
    until("the version is read", || opened.is_finished()).await;
    let (sender, receiver) = std::sync::mpsc::channel();
    tokio::spawn(async move { sender.send(()) });
    // Blocks the test's thread on purpose: what the runtime's only worker does is what counts.
    let others_go_on = receiver.recv_timeout(WAIT_MAX).is_ok();
    drop(opened.join().unwrap()); // the end of the pipe; a second reader would wait for ever

    assert!(others_go_on, "the runtime's worker waits for the disk");
    assert!(matches!(harness.event().await.what, EventKind::AdapterSwapped { to, .. } if to == "tiny-0004"));
    assert_eq!(harness.current.get().version(), "tiny-0004");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_for_other_networks_is_refused_and_nothing_changes() {
    let harness = Harness::new(|_| {}).await;

    harness
        .order(r#"{"command": "promote", "version": "tiny-0003", "id": "p-3"}"#)
        .await;
    let (id, command, reason) = harness.refusal().await;

    assert_eq!((id.as_str(), command.as_str()), ("p-3", "promote"));
    assert!(reason.contains("another"), "{reason}");
    assert_eq!(harness.current.get().version(), "tiny-0002");
    assert_eq!(harness.registry.current().unwrap().as_deref(), Some("tiny-0002"));
    harness.orders.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_to_a_version_for_other_networks_is_refused_and_the_registry_stays_where_it_was() {
    let harness = Harness::new(|_| {}).await;
    harness.order(r#"{"command": "rollback"}"#).await;
    harness.event().await;
    harness.carried_out().await;
    assert_eq!(harness.current.get().version(), "tiny-0001");

    harness.order(r#"{"command": "rollback"}"#).await;
    let (_, command, reason) = harness.refusal().await;

    assert_eq!(command, "rollback");
    assert!(reason.contains("another"), "{reason}");
    assert_eq!(harness.current.get().version(), "tiny-0001");
    assert_eq!(harness.registry.current().unwrap().as_deref(), Some("tiny-0001"));
}

/// A trainer that has ended.
async fn nobody() -> Ends<StartCycle> {
    let (sender, receiver) = flume::unbounded();
    let probe = Probe::spawn_with_mailbox(sender, kameo::mailbox::bounded(1));
    probe.kill();
    probe.wait_for_shutdown().await;
    (probe.recipient(), receiver)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_trainer_the_refusal_says_so() {
    let harness = Harness::between(nobody().await, probe(), |_| {}).await;

    harness.order(r#"{"command": "retrain"}"#).await;
    let (_, command, reason) = harness.refusal().await;

    assert_eq!(command, "retrain");
    assert!(reason.contains("the trainer is not running"), "{reason}");
    harness.orders.idle().await;
}

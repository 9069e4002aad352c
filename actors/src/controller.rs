//! `Controller`: carries out orders from the control topic, and starts training cycles by the schedule.
//!
//! Takes records of the control topic from a source's channel; sends [`StartCycle`], [`PublishEvent`] and
//! [`PublishDeadLetter`]. Orders are carried out in the order of the topic's one partition, each at most
//! once: what lay in the topic before this process started, what was carried out already, and what is older
//! than the age limit is not carried out, whatever offset the group begins with. Each order has one event
//! that says what became of it. Its offset is released then; a cycle goes on after that, and an order that a
//! crash interrupts has to be given again. What the schedule counts, and a pause, outlive the process
//! ([`Schedule`]).

mod schedule;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use kameo::error::{Infallible, SendError};
use kameo::mailbox::{MailboxReceiver, Signal};
use kameo::prelude::*;
use speechverse::kafka::{OffsetTracker, SourceEvent};
use speechverse::registry::{Expected, LoadedVersion, ModelIdentity, Registry, RegistryError};
use speechverse::store::{ContentHash, SampleStore};
use speechverse::training::Control;
use speechverse::training::trainer_config::TrainerConfig;
use speechverse::util::Clock;
use speechverse::wire::Record;
use speechverse::wire::control::{Command, Order};
use speechverse::wire::dead_letter::Stage;
use speechverse::wire::event::{Event, EventKind};
use tracing::{error, info};

use crate::current::{CurrentAdapter, Swap};
use crate::inbox::{Arrival, Inbox};
use crate::messages::{OrphanQueue, PublishDeadLetter, PublishEvent, RecordGuard, StartCycle};

pub use schedule::Schedule;

/// How often the schedule is looked at.
const SCHEDULE_INTERVAL: Duration = Duration::from_secs(2);

/// Which orders are still to be carried out. Clones are the same, so that a controller that is started again
/// goes on where the one before was.
#[derive(Clone, Debug)]
pub struct OrdersDue {
    start: i64,
    next: Arc<AtomicI64>,
}

impl OrdersDue {
    /// Orders at `offset` of the control topic's partition and behind it: where the topic ended when the
    /// process started.
    pub fn from_offset(offset: i64) -> Self {
        Self {
            start: offset,
            next: Arc::new(AtomicI64::new(offset)),
        }
    }
}

/// Everything a [`Controller`] needs to start, and to start again.
#[derive(Clone)]
pub struct ControllerArgs {
    /// Records of the control topic.
    pub events: flume::Receiver<SourceEvent>,
    /// Which offsets are finished.
    pub tracker: OffsetTracker,
    /// Which orders are still to be carried out.
    pub due: OrdersDue,
    /// An order that was written longer ago is not carried out.
    pub order_age_max: Duration,
    /// Where orders go that it was at when it failed.
    pub orphans: OrphanQueue,
    /// When the schedule is looked at.
    pub clock: Clock,
    /// How long ago the last cycle was, what came since, and whether training is paused.
    pub schedule: Schedule,
    /// When to train by oneself.
    pub config: TrainerConfig,
    /// Versions to promote and to roll back to.
    pub registry: Registry,
    /// The networks that a version has to fit: encoder and language model.
    pub identities: Arc<(ModelIdentity, ModelIdentity)>,
    /// The serving version.
    pub current: CurrentAdapter,
    /// What there is to learn from.
    pub store: Arc<SampleStore>,
    /// Pauses training.
    pub control: Control,
    /// Runs cycles.
    pub trainer: Recipient<StartCycle>,
    /// Where its events go.
    pub publisher: Recipient<PublishEvent>,
    /// Takes what is no order.
    pub dead_letters: Recipient<PublishDeadLetter>,
}

/// Whether the networks of this process go with a version.
type Fits<'a> = &'a dyn Fn(&LoadedVersion) -> Result<(), RegistryError>;

/// The ordering stage.
pub struct Controller {
    args: ControllerArgs,
    inbox: Inbox,
    /// Why the schedule could not start a cycle, logged once.
    logged: Option<String>,
}

impl Actor for Controller {
    type Args = ControllerArgs;
    type Error = Infallible;

    async fn on_start(args: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        if args.schedule.is_paused() {
            info!("training is paused by an earlier order, until one to `resume`");
            args.control.pause();
        }
        args.schedule.save(args.store.stored()).await;
        Ok(Self {
            logged: None,
            inbox: Inbox::new(
                "orders",
                args.events.clone(),
                args.tracker.budget().audio().clone(),
                SCHEDULE_INTERVAL,
                args.clock.clone(),
            ),
            args,
        })
    }

    /// Takes records as they come, beside the mailbox, and looks at the schedule.
    async fn next(
        &mut self,
        _: WeakActorRef<Self>,
        mailbox: &mut MailboxReceiver<Self>,
    ) -> Result<Option<Signal<Self>>, Self::Error> {
        loop {
            match self.inbox.next(mailbox).await {
                Arrival::Signal(signal) => return Ok(signal),
                Arrival::Record(record) => self.handle_order(record).await,
                Arrival::Tick => self.follow_schedule().await,
                Arrival::Revoked(_) => {}
            }
        }
    }

    async fn on_stop(&mut self, _: WeakActorRef<Self>, _: ActorStopReason) -> Result<(), Self::Error> {
        self.args.schedule.save(self.args.store.stored()).await;
        Ok(())
    }
}

impl Controller {
    async fn handle_order(&mut self, record: Record) {
        let record = RecordGuard::new(record, Stage::Control, self.args.orphans.clone());
        let order = match Order::parse(&record) {
            Ok(order) => order,
            Err(rejection) => {
                let letter = PublishDeadLetter::at_admission(record.complete(), rejection);
                if let Err(error) = self.args.dead_letters.tell(letter).await {
                    error!(error = %error.to_string(), "publisher is gone");
                }
                return;
            }
        };
        let record_offset = &record.record_offset;
        let (id, command) = (order.id_at(record_offset), order.command.name());
        let next = self.args.due.next.load(Ordering::Acquire);
        if record_offset.partition != 0 {
            let reason = format!(
                "it came from partition {} of `{}`, and orders of several partitions overtake each other: send orders to \
                 partition 0, or make the topic anew with one partition",
                record_offset.partition, record_offset.topic
            );
            self.reject(&id, command, reason).await;
        } else if (self.args.due.start..next).contains(&record_offset.offset) {
            info!(
                id,
                command,
                offset = record_offset.offset,
                "order read again, it was taken up before"
            );
        } else if let Some(reason) = self.too_late(&record) {
            info!(id, command, reason, "order expired");
            let command = command.to_owned();
            self.tell(&id, EventKind::CommandExpired { command, reason })
                .await;
        } else {
            // Before it is carried out: if that fails half-way, it must not be carried out a second time.
            self.args
                .due
                .next
                .store(record_offset.offset + 1, Ordering::Release);
            match &order.command {
                Command::Forget { samples } => info!(id, command, samples = samples.len(), "order received"),
                other => info!(id, command = ?other, "order received"),
            }
            match self.carry_out(order.command, &id).await {
                Ok(()) => {
                    let command = command.to_owned();
                    self.tell(&id, EventKind::CommandObeyed { command }).await;
                }
                Err(reason) => self.reject(&id, command, reason).await,
            }
        }
        self.args.tracker.release(&record.complete().record_offset);
    }

    /// Why an order is not carried out any more.
    fn too_late(&self, record: &Record) -> Option<String> {
        let (offset, start) = (record.record_offset.offset, self.args.due.start);
        if offset < start {
            return Some(format!(
                "it lay in the topic before this process started (offset {offset}, orders are carried out from {start} on): give \
                 it again if it is still wanted"
            ));
        }
        let written = jiff::Timestamp::from_millisecond(record.timestamp_ms?).ok()?;
        let age = Duration::try_from(jiff::Timestamp::now().duration_since(written)).ok()?; // none for the future
        let limit = self.args.order_age_max;
        (age > limit).then(|| {
            format!(
                "it was written {} s ago, at most {} s are allowed (`service.order_age_seconds_max`)",
                age.as_secs(),
                limit.as_secs()
            )
        })
    }

    async fn carry_out(&mut self, command: Command, id: &str) -> Result<(), String> {
        match command {
            Command::Retrain => self.start_cycle(id, "order").await,
            Command::Promote { version } => {
                let promote = move |registry: &Registry, fits: Fits<'_>| {
                    let loaded = registry.load(&version)?;
                    fits(&loaded)?;
                    registry.promote_loaded(&loaded, Expected::Any)?;
                    Ok(loaded)
                };
                self.serve("promote", promote).await
            }
            Command::Rollback { version } => {
                let roll_back = move |registry: &Registry, fits: Fits<'_>| match version {
                    None => registry.rollback(fits),
                    Some(version) => registry.rollback_to(&version, fits),
                };
                self.serve("rollback", roll_back).await
            }
            Command::Pause => {
                self.args.control.pause();
                self.keep_paused(true).await;
                Ok(())
            }
            Command::Resume => {
                self.args.control.resume();
                self.keep_paused(false).await;
                Ok(())
            }
            Command::Forget { samples } => self.forget(samples).await,
        }
    }

    /// Removes samples for good; those that are not in the store are passed over.
    async fn forget(&self, samples: Vec<String>) -> Result<(), String> {
        let ids: Vec<ContentHash> = samples.iter().filter_map(|id| ContentHash::parse(id)).collect();
        let store = Arc::clone(&self.args.store);
        match tokio::task::spawn_blocking(move || store.forget(&ids)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("not all samples are forgotten: {error}")),
            Err(error) => {
                error!(%error, "forgetting samples panicked");
                Err(format!("a fault of this program: {error}"))
            }
        }
    }

    async fn keep_paused(&self, paused: bool) {
        self.args.schedule.set_paused(paused);
        self.args.schedule.save(self.args.store.stored()).await;
    }

    async fn start_cycle(&mut self, run: &str, trigger: &str) -> Result<(), String> {
        if !self.args.config.enabled {
            return Err("this process does not train: `trainer.enabled` is false".into());
        }
        if !is_plain(run) {
            return Err(format!(
                "run id `{}`: use letters, digits, `-`, `_`, `.`",
                run.escape_debug()
            ));
        }
        let order = StartCycle {
            run: run.to_owned(),
            trigger: trigger.to_owned(),
        };
        self.args
            .trainer
            .tell(order)
            .try_send()
            .map_err(|error| match error {
                SendError::MailboxFull(_) => {
                    "a cycle is running and another one is waiting already".to_owned()
                }
                _ => "the trainer is not running: its log says why".to_owned(),
            })?;
        self.logged = None;
        let stored = self.args.store.stored();
        self.args.schedule.cycle_ordered(stored);
        self.args.schedule.save(stored).await;
        Ok(())
    }

    /// Starts a cycle when enough is new, or enough time has passed with anything new. Where that cannot be,
    /// it says why once, and looks again.
    async fn follow_schedule(&mut self) {
        let (config, schedule) = (&self.args.config, &self.args.schedule);
        let stored = self.args.store.stored();
        schedule.save(stored).await;
        if !config.enabled || self.args.store.len() < config.samples_min {
            return;
        }
        let new = schedule.new_samples(stored);
        let enough = config.new_samples_trigger > 0 && new >= config.new_samples_trigger as u64;
        let interval = Duration::from_secs(config.interval_minutes * 60);
        let due = config.interval_minutes > 0 && new > 0 && schedule.since_last_cycle() >= interval;
        if !enough && !due {
            return;
        }
        let run = format!("auto-{}", jiff::Timestamp::now().as_second());
        let trigger = if enough {
            format!("{new} new samples")
        } else {
            "schedule".to_owned()
        };
        if let Err(reason) = self.start_cycle(&run, &trigger).await
            && self.logged.as_ref() != Some(&reason)
        {
            self.logged = Some(reason.clone());
            self.reject(&run, "retrain", reason).await;
        }
    }

    /// Makes another version the registry's current one, by `choose`, and pins new utterances to it; or says
    /// why not. The version is read and hashed once, on a thread that may block.
    async fn serve<C>(&self, command: &str, choose: C) -> Result<(), String>
    where
        C: FnOnce(&Registry, Fits<'_>) -> Result<LoadedVersion, RegistryError> + Send + 'static,
    {
        let (registry, current) = (self.args.registry.clone(), self.args.current.clone());
        let identities = Arc::clone(&self.args.identities);
        let change = move || {
            let fits = |loaded: &LoadedVersion| loaded.check_models(&identities.0, &identities.1);
            current.change(|| choose(&registry, &fits).map(|loaded| loaded.adapter))
        };
        match tokio::task::spawn_blocking(change).await {
            Ok(Ok(Swap { from, to })) => {
                let reason = command.to_owned();
                self.tell(&to.clone(), EventKind::AdapterSwapped { from, to, reason })
                    .await;
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => {
                error!(%error, command, "an order panicked");
                Err(format!("a fault of this program: {error}"))
            }
        }
    }

    async fn reject(&self, id: &str, command: &str, reason: String) {
        info!(id, command, reason, "order refused");
        let command = command.to_owned();
        self.tell(id, EventKind::CommandRefused { command, reason }).await;
    }

    async fn tell(&self, id: &str, what: EventKind) {
        let event = Event::now(id, what);
        if let Err(error) = self.args.publisher.tell(PublishEvent { event }).await {
            error!(error = %error.to_string(), "publisher is gone, an event is lost");
        }
    }
}

/// Whether a name can be that of a folder anywhere.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || "-_.".contains(character))
}

//! The half that learns: collector, trainer and controller, with the sources of labels and orders.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kameo::prelude::*;
use speechverse::audio::AudioLimits;
use speechverse::kafka::Source;
use speechverse::kafka::admin::end_of;
use speechverse::store::SampleStore;
use speechverse::wire::request::RequestLimits;
use speechverse_actors::collector::{CollectorArgs, SampleCollector};
use speechverse_actors::controller::{Controller, ControllerArgs, OrdersDue, Schedule};
use speechverse_actors::listener::{ListenerArgs, RequestListener};
use speechverse_actors::messages::UtteranceAdmitted;
use speechverse_actors::trainer::{Trainer, TrainerArgs};

use super::{BROKER_WAIT, Common};
use crate::stages::{Runs, StageSpec, Stages};
use crate::trackers::Side;

/// Starts trainer, collector and controller; returns who remembers requests for corrections.
pub(super) async fn start(
    common: &Common,
    store: &Arc<SampleStore>,
    stages: &mut Stages,
    sources: &mut Vec<(&'static str, Source)>,
) -> anyhow::Result<Recipient<UtteranceAdmitted>> {
    let settings = &common.settings;
    let orders_end = end_of(&settings.kafka, &settings.kafka.topics.control, 0, BROKER_WAIT)
        .await
        .context("end of the control topic")?;
    let schedule = Schedule::open(&settings.trainer, common.clock.clone());
    let trainer_args = TrainerArgs {
        config: settings.trainer.clone(),
        adapters: settings.adapters.clone(),
        model: settings.model.clone(),
        engine: settings.engine(),
        tasks: Arc::clone(&common.instructions.tasks),
        store: Arc::clone(store),
        registry: common.registry.clone(),
        current: common.current.clone(),
        control: common.training.clone(),
        publisher: common.publisher.clone().recipient(),
    };
    let spec = StageSpec {
        name: "trainer",
        mailbox: 1, // one cycle may wait while one runs
        runs: Runs::OnItsOwnThread,
        required: false,
    };
    let trainer: ActorRef<Trainer> = stages.start(spec, trainer_args).await?;

    let (labels, label_events) = common.trackers.source(&settings.kafka, Side::Labels)?;
    sources.push(("labels", labels));
    let audio = AudioLimits {
        seconds_max: settings.audio.whole_seconds_max,
        ..settings.audio.limits()
    };
    let collector_args = CollectorArgs {
        events: label_events,
        tracker: common.trackers.labels.clone(),
        store: Arc::clone(store),
        audio,
        limits: RequestLimits::default(),
        instructions: common.instructions.clone(),
        orphans: common.orphans.clone(),
        remembered_bytes_max: settings.store.remembered_bytes_max,
        clock: common.clock.clone(),
        correction_wait: Duration::from_millis(settings.store.correction_wait_ms),
        corrections_waiting_max: settings.store.corrections_waiting_max,
        publisher: common.publisher.clone().recipient(),
    };
    let spec = StageSpec {
        name: "collector",
        mailbox: 64, // facts that may be lost when it is busy
        runs: Runs::OnItsOwnThread,
        required: true,
    };
    let collector: ActorRef<SampleCollector> = stages.start(spec, collector_args).await?;
    if !common.role.answers() {
        let listener_args = ListenerArgs {
            kafka: settings.kafka.clone(),
            open_wait: BROKER_WAIT,
            audio,
            limits: common.limits.clone(),
            instructions: common.instructions.clone(),
            collector: collector.clone().recipient(),
        };
        let spec = StageSpec {
            name: "listener",
            mailbox: 4, // it gets no messages
            runs: Runs::OnItsOwnThread,
            required: false,
        };
        let _: ActorRef<RequestListener> = stages.start(spec, listener_args).await?;
    }

    let (control, control_events) = common.trackers.source(&settings.kafka, Side::Control)?;
    sources.push(("control", control));
    let controller_args = ControllerArgs {
        events: control_events,
        tracker: common.trackers.control.clone(),
        due: OrdersDue::from_offset(orders_end),
        order_age_max: Duration::from_secs(settings.service.order_age_seconds_max),
        orphans: common.orphans.clone(),
        clock: common.clock.clone(),
        schedule,
        config: settings.trainer.clone(),
        registry: common.registry.clone(),
        identities: Arc::clone(&common.identities),
        current: common.current.clone(),
        store: Arc::clone(store),
        control: common.training.clone(),
        trainer: trainer.recipient(),
        publisher: common.publisher.clone().recipient(),
        dead_letters: common.publisher.clone().recipient(),
    };
    let spec = StageSpec {
        name: "controller",
        mailbox: 4, // it gets no messages; orders have their own channel
        runs: Runs::OnRuntime,
        required: true,
    };
    let _: ActorRef<Controller> = stages.start(spec, controller_args).await?;
    Ok(collector.recipient())
}

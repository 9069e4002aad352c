//! The stages of a pipeline, in one table that start, health and stop go through.
//!
//! Stages start from the far end of the graph backwards, each past its start-up before the next begins, and
//! stop in the opposite order, so that each finishes what it holds while the stages behind it still run.

use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kameo::error::HookError;
use kameo::prelude::*;
use kameo::supervision::RestartPolicy;
use speechverse::telemetry::metrics;
use speechverse_actors::supervisor::Supervisor;

/// A stage that fails more often than this within [`RESTART_WINDOW`] stays down, and the process ends: its
/// supervisor outside (systemd, Kubernetes) has the better view.
const RESTARTS_MAX: u32 = 5;
/// See [`RESTARTS_MAX`].
const RESTART_WINDOW: Duration = Duration::from_secs(60);

/// Where a stage's code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// On the runtime's threads: it never blocks.
    OnRuntime,
    /// On a thread of its own: it computes or waits for the disk.
    OnItsOwnThread,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct StageSpec {
    /// Its name in logs, metrics and messages.
    pub name: &'static str,
    /// Messages that may wait for it.
    pub mailbox: usize,
    /// Where it runs.
    pub runs: Runs,
    /// Whether the pipeline cannot go on without it.
    pub required: bool,
}

type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A stage that was started.
struct Running {
    spec: StageSpec,
    is_alive: Box<dyn Fn() -> bool + Send + Sync>,
    stop: Box<dyn FnOnce() -> Stop + Send + Sync>,
}

/// The stages that run, in the order in which they were started.
pub struct Stages {
    supervisor: ActorRef<Supervisor>,
    running: Vec<Running>,
}

impl Default for Stages {
    fn default() -> Self {
        Self::new()
    }
}

impl Stages {
    /// No stages yet, and the supervisor that restarts them.
    pub fn new() -> Self {
        Self {
            supervisor: Supervisor::spawn_with_mailbox((), kameo::mailbox::bounded(4)), // it gets no messages
            running: Vec::new(),
        }
    }

    /// Starts a stage and waits until its start-up is over. After a panic the supervisor starts it anew with
    /// the same arguments, which counts as a restart.
    ///
    /// # Errors
    /// When its start-up fails.
    pub async fn start<A>(&mut self, spec: StageSpec, args: A::Args) -> anyhow::Result<ActorRef<A>>
    where
        A: Actor,
        A::Args: Clone + Send + Sync,
        A::Error: Display,
    {
        let name = spec.name;
        let started_before = AtomicBool::new(false);
        let args = move || {
            metrics::stage_started(name, started_before.swap(true, Ordering::AcqRel));
            args.clone()
        };
        let builder = A::supervise_with(&self.supervisor, args)
            .restart_policy(RestartPolicy::Transient)
            .restart_limit(RESTARTS_MAX, RESTART_WINDOW);
        let mailbox = kameo::mailbox::bounded(spec.mailbox);
        let stage = match spec.runs {
            Runs::OnRuntime => builder.spawn_with_mailbox(mailbox).await,
            Runs::OnItsOwnThread => builder.spawn_in_thread_with_mailbox(mailbox).await,
        };
        let words = |error: HookError<&A::Error>| anyhow::anyhow!("the {name} did not start: {error}");
        stage
            .wait_for_startup_with_result(|result| result.map_err(words))
            .await?;
        let (watched, stopped) = (stage.clone(), stage.clone());
        self.running.push(Running {
            spec,
            is_alive: Box::new(move || watched.is_alive()),
            stop: Box::new(move || Box::pin(async move { ended(&stopped).await })),
        });
        Ok(stage)
    }

    /// The first required stage that has ended for good, in words.
    pub fn broken(&self) -> Option<String> {
        self.running
            .iter()
            .find(|stage| stage.spec.required && !(stage.is_alive)())
            .map(|stage| format!("the {} failed more than {RESTARTS_MAX} times", stage.spec.name))
    }

    /// Stops all stages, the one started last first; each finishes what it holds.
    pub async fn stop(mut self) {
        while let Some(stage) = self.running.pop() {
            (stage.stop)().await;
        }
        ended(&self.supervisor).await;
    }
}

/// Stops a stage and waits for its end, what it still does in `on_stop` included.
async fn ended<A: Actor>(stage: &ActorRef<A>) {
    // An error says that it has ended before.
    let _ = stage.stop_gracefully().await;
    // Not `wait_for_shutdown`, which returns when the mailbox is closed: `on_stop` runs after that.
    stage.wait_for_shutdown_with_result(|_| ()).await;
}

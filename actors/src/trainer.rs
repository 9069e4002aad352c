//! `Trainer`: a training cycle turns stored samples into a candidate, judges it, and swaps it in.
//!
//! Receives [`StartCycle`], sends [`PublishEvent`]. Trains on its own thread, with its own copy of the
//! networks for as long as the cycle lasts. Between two steps it gives way to serving. The candidate starts
//! from the serving version, is compared with it on held-out samples, and is promoted when it is better,
//! there are enough of them to tell, and the version that it started from is current still
//! ([`gate`](crate::gate)); anything else is a normal outcome too. What is held out is for the gate alone:
//! the best step of a cycle is chosen by samples set aside from those to train on. Either way the cycle's
//! folder keeps log and plot, and no weights.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kameo::error::Infallible;
use kameo::prelude::*;
use speechverse::inference::EngineConfig;
use speechverse::models::adapter::AdapterSnapshot;
use speechverse::models::config::ModelConfig;
use speechverse::registry::config::AdaptersConfig;
use speechverse::registry::{Expected, Registry, RegistryError};
use speechverse::store::SampleStore;
use speechverse::telemetry::metrics;
use speechverse::text::TaskTable;
use speechverse::training::config::TrainingConfig;
use speechverse::training::evaluate::{EvaluateOptions, Evaluation, evaluate};
use speechverse::training::prepare::{self, prepare};
use speechverse::training::trainer_config::TrainerConfig;
use speechverse::training::{
    Control, Engine, EngineArgs, Example, Networks, TrainEvent, TrainingError, draft,
};
use speechverse::wire::event::{Event, EventKind, Verdict};
use tracing::{error, info, warn};

use crate::current::{CurrentAdapter, Swap};
use crate::gate::{Decision, Scores, decide};
use crate::messages::{PublishEvent, StartCycle};

use held_out::ask_as_serving;
use samples::{Stored, read};

pub use samples::{Sides, sides};

mod held_out;
mod samples;

/// Longest wait for this process to serve a version that was promoted a moment ago.
const CATCH_UP_WAIT: Duration = Duration::from_secs(5);

/// Everything a [`Trainer`] needs to start, and to start again.
#[derive(Clone)]
pub struct TrainerArgs {
    /// When and how to train.
    pub config: TrainerConfig,
    /// How new versions are named.
    pub adapters: AdaptersConfig,
    /// The serving networks; a cycle trains for the same.
    pub model: ModelConfig,
    /// The serving engine; the gate judges the answers that it gives.
    pub engine: EngineConfig,
    /// Which metric each task is judged by.
    pub tasks: Arc<TaskTable>,
    /// Where samples come from.
    pub store: Arc<SampleStore>,
    /// Where versions go.
    pub registry: Registry,
    /// The serving version.
    pub current: CurrentAdapter,
    /// Pauses and stops a cycle.
    pub control: Control,
    /// Where its events go.
    pub publisher: Recipient<PublishEvent>,
}

/// The learning stage.
pub struct Trainer {
    args: TrainerArgs,
}

impl Actor for Trainer {
    type Args = TrainerArgs;
    type Error = Infallible;

    async fn on_start(args: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        Ok(Self { args })
    }
}

/// What a cycle came to.
struct Outcome {
    verdict: Verdict,
    reason: String,
    version: Option<String>,
    metrics: BTreeMap<String, f64>,
    /// What serves now, where that has changed.
    swap: Option<Swap>,
}

impl Message<StartCycle> for Trainer {
    type Reply = ();

    async fn handle(&mut self, message: StartCycle, _: &mut Context<Self, Self::Reply>) {
        let StartCycle { run, trigger } = message;
        info!(run, trigger, "training cycle begins");
        metrics::training_started();
        self.catch_up();
        let parent = self.args.current.get();
        let cycle = std::panic::AssertUnwindSafe(|| self.cycle(&run, &trigger, &parent));
        let outcome = match std::panic::catch_unwind(cycle) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Outcome::failed(format!("{error:#}")),
            Err(_) => Outcome::failed("the trainer panicked; its log has the place".to_owned()),
        };
        metrics::training_finished(outcome.verdict.as_str());
        match outcome.verdict {
            Verdict::Failed => error!(run, reason = %outcome.reason, "training cycle failed"),
            verdict => {
                info!(run, verdict = verdict.as_str(), reason = %outcome.reason, "training cycle ended")
            }
        }
        if let Some(Swap { from, to }) = outcome.swap {
            let reason = format!("training cycle `{run}`");
            self.tell(to.clone(), EventKind::AdapterSwapped { from, to, reason })
                .await;
        }
        let finished = EventKind::CycleFinished {
            verdict: outcome.verdict,
            reason: outcome.reason,
            version: outcome.version,
            metrics: outcome.metrics,
        };
        self.tell(run, finished).await;
    }
}

impl Outcome {
    fn failed(reason: String) -> Self {
        Self {
            verdict: Verdict::Failed,
            reason,
            version: None,
            metrics: BTreeMap::new(),
            swap: None,
        }
    }
}

impl Trainer {
    async fn tell(&self, id: String, what: EventKind) {
        let event = Event::now(id, what);
        if let Err(error) = self.args.publisher.tell(PublishEvent { event }).await {
            warn!(error = %error.to_string(), "publisher is gone, an event is lost");
        }
    }

    /// Publishes without waiting: progress that does not get through is not missed.
    fn tell_if_possible(&self, id: &str, what: EventKind) {
        let event = Event::now(id, what);
        let _ = self.args.publisher.tell(PublishEvent { event }).try_send();
    }

    fn cycle(&self, run: &str, trigger: &str, parent: &AdapterSnapshot) -> anyhow::Result<Outcome> {
        let started = Instant::now();
        if let Some(reason) = self.superseded(parent)? {
            return Ok(Outcome::failed(reason));
        }
        let snapshot = Arc::new(self.args.store.snapshot());
        let sides = sides(&snapshot);
        if let Some(reason) = sides.too_few(&self.args.config) {
            return Ok(Outcome::failed(reason));
        }
        let Sides {
            train,
            valid,
            held_out,
        } = sides;
        self.tell_if_possible(
            run,
            EventKind::CycleStarted {
                trigger: trigger.to_owned(),
                parent: parent.version().to_owned(),
                train_samples: train.len(),
                valid_samples: valid.len(),
                held_out_samples: held_out.len(),
            },
        );
        let config = self.settings(run)?;
        let start_lora = match parent.lora() {
            None => None,
            Some(_) if !config.keeps_lora() => {
                let curriculum = self.args.config.curriculum.display();
                return Ok(Outcome::failed(format!(
                    "`{}` has low-rank updates of the language model, which no stage of `{curriculum}` would keep",
                    parent.version()
                )));
            }
            Some(_) => Some(self.args.registry.folder(parent.version())?.join("lora")),
        };
        let networks = Networks::load_to_train(&config.model)?;
        let examples = |stored: Vec<Stored>| -> Vec<Example> {
            stored.into_iter().map(|stored| stored.example).collect()
        };
        let held_out = read(&snapshot, &held_out);
        let train = examples(read(&snapshot, &train));
        let valid = examples(read(&snapshot, &valid));
        if train.is_empty() {
            return Ok(Outcome::failed("no sample to train on could be read".to_owned()));
        }
        let constrained: HashSet<String> = (held_out.iter())
            .filter(|stored| stored.constrained)
            .map(|stored| stored.example.id.clone())
            .collect();
        let mut judged = prepare(examples(held_out), &unlimited(&config), &networks.speech_llm)?;
        for sample in &mut judged.samples {
            let is_constrained = constrained.contains(&sample.example.id);
            ask_as_serving(sample, is_constrained, &self.args.tasks);
        }
        let judge = |adapter: &AdapterSnapshot| -> anyhow::Result<Scores> {
            let control = &self.args.control;
            let found = judge(&networks, adapter, &judged.samples, &self.args.engine, control)?;
            let answered = found.rows.len();
            let scores = Scores::of(found.scores);
            // The answer to a question of several tasks is in the score of each, and is one.
            let samples = scores.samples.min(answered);
            Ok(Scores { samples, ..scores })
        };
        // A judgement that was stopped halfway is none.
        let stopped = || Outcome::failed("the cycle was stopped".to_owned());
        let before = judge(parent)?;
        if self.args.control.is_stopped() {
            return Ok(stopped());
        }
        if before.samples == 0 {
            return Ok(Outcome::failed("no held-out sample could be answered".to_owned()));
        }
        let _weights = RunWeights::new(&config.output);
        let engine = Engine::new(EngineArgs {
            config: config.clone(),
            networks: &networks,
            train,
            valid,
            start_from: Some((parent.clone(), start_lora)),
            resume: false,
            control: self.args.control.clone(),
        })?;
        let outcome = engine.run(&mut |event| self.progress(run, event))?;
        if outcome.stopped {
            return Ok(stopped());
        }
        let after = judge(&outcome.adapter)?;
        if self.args.control.is_stopped() {
            return Ok(stopped());
        }
        let Decision {
            mut verdict,
            keep,
            mut reason,
        } = decide(&before, &after, &self.args.config);
        let mut metrics = BTreeMap::from([
            ("held_out_error_before".to_owned(), before.overall),
            ("held_out_error_after".to_owned(), after.overall),
            ("held_out_samples".to_owned(), after.samples as f64),
            ("steps".to_owned(), outcome.steps as f64),
            ("seconds".to_owned(), started.elapsed().as_secs_f64()),
        ]);
        for (side, scores) in [("before", &before), ("after", &after)] {
            let named = scores.by_task.iter().map(|(task, score)| {
                let name = format!("held_out_{task}_{}_{side}", score.metric.name());
                (name, score.score)
            });
            metrics.extend(named);
        }
        let (mut version, mut swap) = (None, None);
        if keep {
            let mut draft = draft(&config, &networks, &outcome, Some(parent.version().to_owned()));
            draft.data_digest = snapshot.digest();
            draft.metrics.extend(
                metrics
                    .iter()
                    .map(|(name, value)| (name.clone(), serde_json::json!(value))),
            );
            let candidate = self
                .args
                .registry
                .publish(&self.args.adapters.prefix, &draft)?
                .version;
            match verdict {
                Verdict::Promoted => match self.promote(&candidate, parent) {
                    Ok(promoted) => swap = Some(promoted),
                    Err(error @ RegistryError::Moved { .. }) => {
                        warn!(run, %error, "the candidate is not promoted");
                        verdict = Verdict::Refused;
                        reason = format!("{reason}; {error}; `{candidate}` is kept, an order can promote it");
                    }
                    Err(error) => return Err(error.into()),
                },
                _ => reason = format!("{reason}; `{candidate}` is kept, an order can promote it"),
            }
            version = Some(candidate);
        }
        Ok(Outcome {
            verdict,
            reason,
            version,
            metrics,
            swap,
        })
    }

    /// Waits until this process serves the registry's current version, where one was promoted a moment ago.
    fn catch_up(&self) {
        let deadline = Instant::now() + CATCH_UP_WAIT;
        let serves_it =
            |current: Option<String>| current.as_deref() == Some(self.args.current.get().version());
        while Instant::now() < deadline && !self.args.registry.current().is_ok_and(serves_it) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Why a candidate of `parent` could not be promoted whatever it is worth: the registry's current version
    /// is another.
    fn superseded(&self, parent: &AdapterSnapshot) -> Result<Option<String>, RegistryError> {
        let current = self.args.registry.current()?;
        let same = current.as_deref() == Some(parent.version());
        Ok((!same).then(|| {
            format!(
                "this process serves `{}`, and the registry's current version is {}: a candidate would undo that; promote the \
                 one that is to be trained on",
                parent.version(),
                current.map_or_else(|| "none".to_owned(), |current| format!("`{current}`"))
            )
        }))
    }

    /// Makes a candidate serve in place of its parent, if that is current still.
    fn promote(&self, candidate: &str, parent: &AdapterSnapshot) -> Result<Swap, RegistryError> {
        let expected = Expected::Version(parent.version());
        self.args.current.change(|| {
            let loaded = self.args.registry.promote(candidate, expected)?;
            Ok(loaded.adapter)
        })
    }

    /// The curriculum's settings, with the serving networks and a folder of this run's own.
    fn settings(&self, run: &str) -> anyhow::Result<TrainingConfig> {
        let mut config = TrainingConfig::load(&self.args.config.curriculum)?;
        config.model = self.args.model.clone();
        config.run = run.to_owned();
        config.output = self.free_folder(run);
        config.checkpoint.registry = None;
        Ok(config)
    }

    /// A folder that no earlier run of that name has used.
    fn free_folder(&self, run: &str) -> PathBuf {
        let dir = &self.args.config.runs_dir;
        let mut folder = dir.join(run);
        let mut number = 2;
        while folder.exists() {
            folder = dir.join(format!("{run}-{number}"));
            number += 1;
        }
        folder
    }

    fn progress(&self, run: &str, event: &TrainEvent) {
        const TELL_EVERY_STEPS: u64 = 10;
        if let TrainEvent::Step { kind, step, loss, .. } = event {
            metrics::training_step(*loss);
            if *step == 1 || step % TELL_EVERY_STEPS == 0 {
                self.tell_if_possible(
                    run,
                    EventKind::CycleProgress {
                        stage: kind.clone(),
                        step: *step,
                        loss: *loss,
                    },
                );
            }
        }
    }
}

/// The weights in the folder of a cycle's run. A cycle is never resumed, and what is published is in the
/// registry, so they are removed when the cycle ends, however it does; log and plot stay.
struct RunWeights {
    folders: [PathBuf; 2],
}

impl RunWeights {
    /// Those of the run with this folder.
    fn new(run: &Path) -> Self {
        Self {
            folders: ["checkpoint", "best"].map(|name| run.join(name)),
        }
    }
}

impl Drop for RunWeights {
    fn drop(&mut self) {
        for folder in &self.folders {
            if folder.exists()
                && let Err(error) = std::fs::remove_dir_all(folder)
            {
                warn!(folder = %folder.display(), %error, "failed to remove the weights of an ended cycle");
            }
        }
    }
}

/// What the promotion gate judges an adapter by: its answers to held-out samples, given by the serving
/// engine, with a score for each task by the task's own metric.
///
/// # Errors
/// [`TrainingError`] when the adapter does not fit the networks.
pub fn judge(
    networks: &Networks,
    adapter: &AdapterSnapshot,
    held_out: &[prepare::Sample],
    engine: &EngineConfig,
    control: &Control,
) -> Result<Evaluation, TrainingError> {
    let options = EvaluateOptions {
        engine: engine.clone(),
        by_ctc: false,
    };
    let found = evaluate(networks, adapter, held_out, &options, control, &mut |_| ())?;
    for reason in &found.unreadable {
        warn!(reason, "a held-out sample has no answer");
    }
    Ok(found)
}

/// A curriculum's settings without the limits that keep samples out of training: serving has others.
fn unlimited(config: &TrainingConfig) -> TrainingConfig {
    let mut config = config.clone();
    config.data.seconds_max = f64::INFINITY;
    config.data.seconds_min = 0.0;
    config.data.target_tokens_max = usize::MAX;
    config
}

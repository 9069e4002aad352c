//! `Trainer`: a training cycle turns stored samples into a candidate, judges it, and swaps it in.
//!
//! Receives [`StartCycle`], sends [`PublishEvent`]. Trains on its own thread, with its own copy of the
//! networks for as long as the cycle lasts. Between two steps it gives way to serving. The candidate starts
//! from the serving version, is compared with it on held-out samples, and is promoted when it is no worse
//! than allowed; refusal is a normal outcome. Either way the cycle's folder keeps settings, log and verdict.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kameo::error::Infallible;
use kameo::prelude::*;
use speechverse::inference::EngineConfig;
use speechverse::models::adapter::AdapterSnapshot;
use speechverse::models::config::ModelConfig;
use speechverse::registry::Registry;
use speechverse::scoring::Metric;
use speechverse::store::{SampleRef, SampleStore, Snapshot, Split};
use speechverse::telemetry::metrics;
use speechverse::text::TaskTable;
use speechverse::training::config::TrainingConfig;
use speechverse::training::evaluate::{EvaluateOptions, Evaluation, TaskScore, evaluate};
use speechverse::training::prepare::{self, prepare};
use speechverse::training::trainer_config::{AdaptersConfig, TrainerConfig};
use speechverse::training::{
    AudioSource, Control, Engine, EngineArgs, Example, Networks, TrainEvent, TrainingError, draft,
};
use speechverse::wire::event::{Event, EventKind, Verdict};
use tracing::{error, info, warn};

use crate::current::CurrentAdapter;
use crate::messages::{PublishEvent, StartCycle};

/// Fewest held-out samples that a candidate is judged by; training samples make up what the store lacks.
const HELD_OUT_MIN: usize = 2;

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
    /// Tells the world.
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
}

impl Message<StartCycle> for Trainer {
    type Reply = ();

    async fn handle(&mut self, message: StartCycle, _: &mut Context<Self, Self::Reply>) {
        let StartCycle { run, trigger } = message;
        info!(run, trigger, "training cycle begins");
        metrics::training_started();
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
        if let (Verdict::Promoted, Some(version)) = (outcome.verdict, &outcome.version) {
            self.tell(
                version.clone(),
                EventKind::AdapterSwapped {
                    from: parent.version().to_owned(),
                    to: version.clone(),
                    reason: format!("training cycle `{run}`"),
                },
            )
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

    /// Tells without waiting: progress that does not get through is not missed.
    fn tell_if_possible(&self, id: &str, what: EventKind) {
        let event = Event::now(id, what);
        let _ = self.args.publisher.tell(PublishEvent { event }).try_send();
    }

    fn cycle(&self, run: &str, trigger: &str, parent: &AdapterSnapshot) -> anyhow::Result<Outcome> {
        let started = Instant::now();
        let snapshot = Arc::new(self.args.store.snapshot());
        let (train, held_out) = sides(&snapshot);
        let all = train.len() + held_out.len();
        if all < self.args.config.samples_min {
            let needed = self.args.config.samples_min;
            return Ok(Outcome::failed(format!(
                "the store has {all} samples that may be trained on, `trainer.samples_min` is {needed}"
            )));
        }
        self.tell_if_possible(
            run,
            EventKind::CycleStarted {
                trigger: trigger.to_owned(),
                parent: parent.version().to_owned(),
                train_samples: train.len(),
                held_out_samples: held_out.len(),
            },
        );
        let config = self.settings(run)?;
        let start_lora = match parent.lora() {
            None => None,
            Some(_) if !config.stages.iter().any(|stage| stage.kind.has_lora()) => {
                let curriculum = self.args.config.curriculum.display();
                return Ok(Outcome::failed(format!(
                    "`{}` has low-rank updates of the language model, which no stage of `{curriculum}` would keep",
                    parent.version()
                )));
            }
            Some(_) => Some(self.args.registry.folder(parent.version())?.join("lora")),
        };
        let networks = Networks::load(&config.model)?;
        let examples = |refs: &[SampleRef]| -> anyhow::Result<Vec<Example>> {
            refs.iter().map(|sample| example(&snapshot, sample)).collect()
        };
        let held_out = examples(&held_out)?;
        let train = examples(&train)?;
        let mut judged = prepare(held_out.clone(), &unlimited(&config), &networks.speech_llm)?;
        for sample in &mut judged.samples {
            if let Ok(task) = self.args.tasks.get(&sample.example.task) {
                sample.metrics = vec![(task.name.clone(), Metric::of_task(task.metric)[0])];
            }
        }
        let judge = |adapter: &AdapterSnapshot| -> anyhow::Result<Vec<TaskScore>> {
            let control = &self.args.control;
            Ok(judge(&networks, adapter, &judged.samples, &self.args.engine, control)?.scores)
        };
        // A judgement that was stopped halfway is none.
        let stopped = || Outcome::failed("the cycle was stopped".to_owned());
        let before = judge(parent)?;
        if self.args.control.is_stopped() {
            return Ok(stopped());
        }
        if before.is_empty() {
            return Ok(Outcome::failed("no held-out sample could be answered".to_owned()));
        }
        let engine = Engine::new(EngineArgs {
            config: config.clone(),
            networks: &networks,
            train,
            valid: held_out,
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
        let answers: usize = after.iter().map(|score| score.answers).sum();
        let mut metrics = BTreeMap::from([
            ("held_out_samples".to_owned(), answers as f64),
            ("steps".to_owned(), outcome.steps as f64),
            ("seconds".to_owned(), started.elapsed().as_secs_f64()),
        ]);
        for (side, scores) in [("before", &before), ("after", &after)] {
            let named = scores.iter().map(|score| {
                let name = format!("held_out_{}_{}_{side}", score.task, score.metric.name());
                (name, score.score)
            });
            metrics.extend(named);
        }
        let allowed = self.args.config.wer_regression_max;
        let (figures, worse) = compare(&before, &after, allowed);
        if worse {
            return Ok(Outcome {
                verdict: Verdict::Refused,
                reason: format!("{figures}; at most {:.2} worse is allowed", allowed * 100.0),
                version: None,
                metrics,
            });
        }
        let mut draft = draft(&config, &networks, &outcome, Some(parent.version().to_owned()));
        draft.data_digest = snapshot.digest();
        draft.metrics.extend(
            metrics
                .iter()
                .map(|(name, value)| (name.clone(), serde_json::json!(value))),
        );
        let manifest = self.args.registry.publish(&self.args.adapters.prefix, &draft)?;
        self.args.registry.promote(&manifest.version)?;
        self.args.current.swap(outcome.adapter.renamed(&manifest.version));
        Ok(Outcome {
            verdict: Verdict::Promoted,
            reason: figures,
            version: Some(manifest.version),
            metrics,
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

/// The figures of both sides for people, and whether some task is worse than allowed. A task that has no
/// score any more is.
fn compare(before: &[TaskScore], after: &[TaskScore], allowed: f64) -> (String, bool) {
    let mut figures = Vec::with_capacity(before.len());
    let mut worse = false;
    for old in before {
        let new = after.iter().find(|new| new.task == old.task);
        let (shown, passes) = match new {
            Some(new) => (format!("{:.2}", new.score), new.error() <= old.error() + allowed),
            None => ("nothing".to_owned(), false),
        };
        worse |= !passes;
        figures.push(format!(
            "{} {} {:.2} before, {shown} after",
            old.task, old.metric, old.score
        ));
    }
    (format!("on held-out samples {}", figures.join(", ")), worse)
}

/// The two sides of a snapshot. Where fewer than [`HELD_OUT_MIN`] are held out, some training samples (those
/// with the lowest identity, so the choice is stable) are held out of this cycle.
fn sides(snapshot: &Snapshot) -> (Vec<SampleRef>, Vec<SampleRef>) {
    let mut train: Vec<SampleRef> = snapshot.refs(Split::Train).collect();
    let mut held_out: Vec<SampleRef> = snapshot.refs(Split::HeldOut).collect();
    train.sort_by_key(|sample| sample.id);
    while held_out.len() < HELD_OUT_MIN && train.len() > HELD_OUT_MIN {
        held_out.push(train.remove(0));
    }
    (train, held_out)
}

fn example(snapshot: &Arc<Snapshot>, sample: &SampleRef) -> anyhow::Result<Example> {
    let stored = snapshot.load(sample)?;
    let (reader, place) = (Arc::clone(snapshot), sample.clone());
    Ok(Example {
        id: stored.id.to_string(),
        audio: AudioSource::Lazy(Arc::new(move || {
            reader
                .load(&place)
                .map(|stored| stored.sample.audio)
                .map_err(|error| error.to_string())
        })),
        seconds: f64::from(sample.audio_seconds),
        task: stored.sample.task,
        instruction: Some(stored.sample.instruction),
        target: stored.sample.target,
        targets: BTreeMap::new(),
        variables: Arc::default(),
        domain: None,
        text: None,
    })
}

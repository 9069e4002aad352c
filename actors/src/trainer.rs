//! `Trainer`: a training cycle turns stored samples into a candidate, judges it, and swaps it in.
//!
//! Receives [`StartCycle`], sends [`PublishEvent`]. Trains on its own thread, with its own copy of the networks for as
//! long as the cycle lasts. Between two steps it gives way to serving. The candidate starts from the serving version,
//! is compared with it on held-out samples, and is promoted when it is no worse than allowed; refusal is a normal
//! outcome. Either way the cycle's folder keeps settings, log and verdict.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kameo::error::Infallible;
use kameo::prelude::*;
use speechverse::models::adapter::AdapterSnapshot;
use speechverse::models::config::ModelConfig;
use speechverse::models::speech_llm::Learned;
use speechverse::registry::Registry;
use speechverse::store::{SampleRef, SampleStore, Snapshot, Split};
use speechverse::telemetry::metrics;
use speechverse::training::config::TrainingConfig;
use speechverse::training::evaluate::{EvaluateOptions, evaluate};
use speechverse::training::prepare::{Prepared, prepare};
use speechverse::training::trainer_config::{AdaptersConfig, TrainerConfig};
use speechverse::training::{AudioSource, Control, Engine, EngineArgs, Example, Networks, TrainEvent, draft};
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
        let judged = prepare(held_out.clone(), &config, &networks.speech_llm)?;
        let before = self.judge(&networks, parent, &judged)?;
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
            return Ok(Outcome::failed("the cycle was stopped".to_owned()));
        }
        let after = self.judge(&networks, &outcome.adapter, &judged)?;
        let metrics = BTreeMap::from([
            ("held_out_wer_before".to_owned(), before),
            ("held_out_wer_after".to_owned(), after),
            ("held_out_samples".to_owned(), judged.samples.len() as f64),
            ("steps".to_owned(), outcome.steps as f64),
            ("seconds".to_owned(), started.elapsed().as_secs_f64()),
        ]);
        let allowed = before + self.args.config.wer_regression_max;
        let figures = format!("word error rate on held-out samples {before:.4} before, {after:.4} after");
        if after > allowed {
            return Ok(Outcome {
                verdict: Verdict::Refused,
                reason: format!("{figures}, at most {allowed:.4} is allowed"),
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

    /// Word error rate of an adapter on the held-out samples.
    fn judge(
        &self,
        networks: &Networks,
        adapter: &AdapterSnapshot,
        judged: &Prepared,
    ) -> anyhow::Result<f64> {
        let device = networks.placement.device;
        let learned = Learned::frozen(adapter, networks.speech_llm.llm(), device)?;
        let options = EvaluateOptions::default();
        let result = evaluate(
            networks,
            &learned,
            &judged.samples,
            &options,
            &self.args.control,
            &mut |_| (),
        )?;
        Ok(result.wer())
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

/// The two sides of a snapshot. Where fewer than [`HELD_OUT_MIN`] are held out, some training samples (those with the
/// lowest identity, so the choice is stable) are held out of this cycle.
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

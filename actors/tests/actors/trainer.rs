//! `Trainer`: whole cycles on tiny networks, one after the other, and what becomes of their candidates.
//!
//! The curriculum is so gentle that a candidate is its parent's equal, and the store holds eight samples.
//! What the gate makes of that is tested beside it; here [`promote_equals`] lets such candidates through,
//! where a test is about what comes after.

mod held_out;

use std::path::Path;
use std::sync::Arc;

use kameo::prelude::*;
use speechverse::inference::{DecodeOptions, EngineConfig};
use speechverse::models::config::LayerMix;
use speechverse::registry::config::AdaptersConfig;
use speechverse::registry::{Expected, Registry, identify};
use speechverse::store::config::StoreConfig;
use speechverse::store::{Sample, SampleStore, Split};
use speechverse::testing::{ENCODER_WIDTH, LLM_WIDTH, TinyModels};
use speechverse::text::TaskTable;
use speechverse::training::Control;
use speechverse::training::trainer_config::TrainerConfig;
use speechverse::wire::event::{Event, EventKind, Verdict};
use speechverse_actors::current::CurrentAdapter;
use speechverse_actors::messages::{PublishEvent, StartCycle};
use speechverse_actors::trainer::{Trainer, TrainerArgs};

use crate::support::{adapter, draft, is_silent, next, probe, sample, start_in_thread};

struct Harness {
    trainer: ActorRef<Trainer>,
    events: flume::Receiver<PublishEvent>,
    control: Control,
    current: CurrentAdapter,
    registry: Registry,
    dir: tempfile::TempDir,
    held_out_seconds: Vec<f32>,
    train_samples: usize,
}

/// So gentle that the candidate is as good as its parent.
const CURRICULUM: &str = "[validation]\nevery_steps = 100\n[[stage]]\nkind = \"asr\"\nsteps_max = 3\nbatch_rows = 4\n\
    learning_rate = 1e-9\n";

impl Harness {
    async fn new(settings: impl FnOnce(&mut TrainerConfig)) -> Self {
        Self::with_samples((0..8).map(sample).collect(), settings).await
    }

    async fn with_samples(samples: Vec<Sample>, settings: impl FnOnce(&mut TrainerConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let models = TinyModels::write(dir.path(), 7);
        let store = SampleStore::open(&StoreConfig {
            dir: dir.path().join("samples"),
            ..StoreConfig::default()
        })
        .unwrap();
        for sample in &samples {
            store.put(sample).unwrap();
        }
        let snapshot = store.snapshot();
        let held_out_seconds = (snapshot.refs(Split::HeldOut))
            .map(|sample| sample.audio_seconds)
            .collect();
        let train_samples = snapshot.refs(Split::Train).count();
        let registry = Registry::open(dir.path().join("adapters")).unwrap();
        let first = adapter("draft", LayerMix::Paper, ENCODER_WIDTH, LLM_WIDTH);
        let identities = [&models.encoder, &models.llm].map(|folder| identify(folder).unwrap());
        let [encoder, llm] = identities;
        registry
            .publish("tiny", &draft(None, encoder, llm, first))
            .unwrap();
        registry.promote("tiny-0001", Expected::Any).unwrap();
        let current = CurrentAdapter::new(registry.load("tiny-0001").unwrap().adapter);
        let curriculum = dir.path().join("online.toml");
        std::fs::write(&curriculum, CURRICULUM).unwrap();
        let mut config = TrainerConfig {
            curriculum,
            runs_dir: dir.path().join("runs"),
            samples_min: 8,
            ..TrainerConfig::default()
        };
        settings(&mut config);
        let mut model = speechverse::models::config::ModelConfig {
            encoder: models.encoder,
            llm: models.llm,
            threads: 1,
            ..Default::default()
        };
        model.precision = "f32".parse().unwrap();
        let tasks = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/tasks");
        let tasks = TaskTable::load(Path::new(tasks)).unwrap();
        let engine = EngineConfig::offline(4, DecodeOptions::greedy(16));
        let (publisher, events) = probe();
        let control = Control::new();
        let args = TrainerArgs {
            config,
            adapters: AdaptersConfig {
                dir: registry.root().to_owned(),
                prefix: "tiny".to_owned(),
                ..AdaptersConfig::default()
            },
            model,
            engine,
            tasks: Arc::new(tasks),
            store: Arc::new(store),
            registry: registry.clone(),
            current: current.clone(),
            control: control.clone(),
            publisher,
        };
        Self {
            trainer: start_in_thread(args, 1).await,
            events,
            control,
            current,
            registry,
            dir,
            held_out_seconds,
            train_samples,
        }
    }

    async fn start(&self, run: &str) {
        let order = StartCycle {
            run: run.to_owned(),
            trigger: "order".to_owned(),
        };
        self.trainer.tell(order).await.unwrap();
    }

    /// Every event up to the end of a cycle: what it is called, and the id it is about. Then verdict and
    /// reason.
    async fn cycle(&self) -> (Vec<(&'static str, String)>, Verdict, String) {
        let mut names = Vec::new();
        loop {
            let Event { id, what, .. } = next(&self.events).await.event;
            let name = match &what {
                EventKind::CycleStarted { .. } => "started",
                EventKind::CycleProgress { .. } => "progress",
                EventKind::AdapterSwapped { .. } => "swapped",
                EventKind::CycleFinished { .. } => "finished",
                other => panic!("{other:?}"),
            };
            names.push((name, id));
            if let EventKind::CycleFinished { verdict, reason, .. } = what {
                return (names, verdict, reason);
            }
        }
    }

    /// What is in a folder, in order.
    fn left_in(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join(folder)).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// A number in the first event of a kind in the log of a run.
    fn logged(&self, run: &str, event: &str, key: &str) -> usize {
        let log = self.dir.path().join("runs").join(run).join("log.jsonl");
        let log = std::fs::read_to_string(log).unwrap();
        let mut lines = log
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let line = lines.find(|line| line["event"] == event).unwrap();
        line[key].as_u64().unwrap() as usize
    }

    fn assert_nothing_changed(&self) {
        assert_eq!(self.current.get().version(), "tiny-0001");
        assert_eq!(self.registry.versions().unwrap(), ["tiny-0001"]);
        assert_eq!(self.registry.current().unwrap().as_deref(), Some("tiny-0001"));
    }
}

/// Lets a candidate through that is its parent's equal on the two samples that eight leave for a verdict.
fn promote_equals(trainer: &mut TrainerConfig) {
    trainer.improvement_min = -1e-9;
    trainer.held_out_samples_min = 2;
}

fn about(run: &str, names: &[&'static str]) -> Vec<(&'static str, String)> {
    names.iter().map(|name| (*name, run.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_that_the_gate_refuses_changes_nothing_and_the_next_cycle_runs_in_a_folder_of_its_own() {
    let harness = Harness::new(|trainer| trainer.held_out_samples_min = 2).await;

    harness.start("run").await;
    harness.start("run").await;

    for _ in 0..2 {
        let (events, verdict, reason) = harness.cycle().await;
        assert_eq!(events, about("run", &["started", "progress", "finished"]));
        assert_eq!(verdict, Verdict::Refused, "{reason}");
        assert!(reason.contains("an equal one is not promoted"), "{reason}");
        assert!(reason.contains("on 2 held-out samples"), "{reason}");
    }
    harness.assert_nothing_changed();
    for folder in ["runs/run", "runs/run-2"] {
        assert_eq!(harness.left_in(folder), ["log.jsonl", "loss.svg"], "{folder}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_sample_that_judges_a_candidate_has_chosen_its_step() {
    let samples = (0..32).map(sample).collect();
    let harness = Harness::with_samples(samples, promote_equals).await;
    let held_out = harness.held_out_seconds.len();
    assert!(held_out > 1, "the store holds some out by itself");

    harness.start("run").await;
    let started = next(&harness.events).await.event.what;
    let (_, verdict, reason) = harness.cycle().await;

    assert_eq!(verdict, Verdict::Promoted, "{reason}");
    let EventKind::CycleStarted {
        train_samples,
        valid_samples,
        held_out_samples,
        ..
    } = started
    else {
        panic!("{started:?}")
    };
    assert_eq!(held_out_samples, held_out);
    assert_eq!(train_samples + valid_samples, harness.train_samples);
    let count = |event: &str, key: &str| harness.logged("run", event, key);
    assert_eq!(count("run_started", "train_samples"), train_samples);
    assert_eq!(count("run_started", "valid_samples"), valid_samples);
    assert_eq!(count("validated", "clips"), valid_samples);
    let metrics = harness.registry.manifest("tiny-0002").unwrap().metrics;
    assert_eq!(metrics["held_out_samples"], held_out as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_that_the_gate_lets_through_serves_from_now_on_and_the_next_cycle_starts_from_it() {
    let harness = Harness::new(promote_equals).await;

    harness.start("run-1").await;
    let (events, verdict, reason) = harness.cycle().await;

    assert_eq!(verdict, Verdict::Promoted, "{reason}");
    let mut wanted = about("run-1", &["started", "progress", "finished"]);
    wanted.insert(2, ("swapped", "tiny-0002".to_owned()));
    assert_eq!(events, wanted);
    assert_eq!(harness.current.get().version(), "tiny-0002");
    assert_eq!(harness.registry.current().unwrap().as_deref(), Some("tiny-0002"));
    assert_eq!(harness.left_in("runs/run-1"), ["log.jsonl", "loss.svg"]);
    let manifest = harness.registry.manifest("tiny-0002").unwrap();
    assert_eq!(manifest.parent.as_deref(), Some("tiny-0001"));
    assert!(!manifest.data_digest.is_empty());

    harness.start("run-2").await;
    assert_eq!(harness.cycle().await.1, Verdict::Promoted);
    assert_eq!(
        harness.registry.manifest("tiny-0003").unwrap().parent.as_deref(),
        Some("tiny-0002")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_the_minimum_of_held_out_samples_a_candidate_is_undecided_and_kept_for_an_order() {
    let harness = Harness::new(|trainer| {
        promote_equals(trainer);
        trainer.held_out_samples_min = 3;
    })
    .await;

    harness.start("run").await;
    let (events, verdict, reason) = harness.cycle().await;

    assert_eq!(verdict, Verdict::Undecided, "{reason}");
    assert_eq!(events, about("run", &["started", "progress", "finished"]));
    assert!(
        reason.contains("2 samples are too few") && reason.contains("tiny-0002"),
        "{reason}"
    );
    assert_eq!(harness.current.get().version(), "tiny-0001");
    assert_eq!(harness.registry.current().unwrap().as_deref(), Some("tiny-0001"));
    assert_eq!(harness.registry.versions().unwrap(), ["tiny-0001", "tiny-0002"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cycle_does_not_undo_what_was_ordered_while_it_ran() {
    let harness = Harness::new(promote_equals).await;
    harness.start("run-1").await;
    assert_eq!(harness.cycle().await.1, Verdict::Promoted);
    harness.control.pause();
    harness.start("run-2").await;
    let started = next(&harness.events).await.event;
    assert!(
        matches!(started.what, EventKind::CycleStarted { .. }),
        "{started:?}"
    );

    let back = harness
        .current
        .change(|| harness.registry.rollback(|_| Ok(())).map(|loaded| loaded.adapter));
    assert_eq!(back.unwrap().to, "tiny-0001");
    harness.control.resume();
    let (events, verdict, reason) = harness.cycle().await;

    assert_eq!(verdict, Verdict::Refused, "{reason}");
    assert!(
        reason.contains("`tiny-0003` was to replace `tiny-0002`"),
        "{reason}"
    );
    assert!(events.iter().all(|(name, _)| *name != "swapped"), "{events:?}");
    assert_eq!(harness.current.get().version(), "tiny-0001");
    assert_eq!(harness.registry.current().unwrap().as_deref(), Some("tiny-0001"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cycle_does_not_begin_where_another_process_has_changed_the_current_version() {
    let harness = Harness::new(promote_equals).await;
    harness.start("run-1").await;
    assert_eq!(harness.cycle().await.1, Verdict::Promoted);
    harness.registry.rollback(|_| Ok(())).unwrap(); // this process serves `tiny-0002` still

    harness.start("run-2").await;
    let (events, verdict, reason) = harness.cycle().await;

    assert_eq!(events, about("run-2", &["finished"]));
    assert_eq!(verdict, Verdict::Failed);
    assert!(
        reason.contains("`tiny-0002`") && reason.contains("`tiny-0001`"),
        "{reason}"
    );
    assert_eq!(harness.registry.current().unwrap().as_deref(), Some("tiny-0001"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_cycle_waits_until_it_is_resumed() {
    let harness = Harness::new(promote_equals).await;
    harness.control.pause();

    harness.start("run").await;
    let started = next(&harness.events).await.event;
    assert!(
        matches!(started.what, EventKind::CycleStarted { .. }),
        "{started:?}"
    );
    tokio::time::sleep(std::time::Duration::from_secs(2)).await; // longer than a whole cycle takes
    assert!(is_silent(&harness.events).await);
    harness.assert_nothing_changed();

    harness.control.resume();
    assert_eq!(harness.cycle().await.1, Verdict::Promoted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cycle_that_is_stopped_has_failed_and_changes_nothing() {
    let harness = Harness::new(promote_equals).await;
    harness.control.stop();

    harness.start("run").await;
    let (_, verdict, reason) = harness.cycle().await;

    assert_eq!(verdict, Verdict::Failed);
    assert!(reason.contains("stopped"), "{reason}");
    harness.assert_nothing_changed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cycle_that_cannot_run_says_why_and_the_trainer_takes_the_next_order() {
    let harness = Harness::new(promote_equals).await;
    let curriculum = harness.dir.path().join("online.toml");
    std::fs::write(&curriculum, "[[stage]]\nkind = \"no such stage\"\n").unwrap();

    harness.start("run-1").await;
    let (_, verdict, reason) = harness.cycle().await;
    assert_eq!(verdict, Verdict::Failed);
    assert!(reason.contains("no such stage"), "{reason}");
    harness.assert_nothing_changed();

    std::fs::write(&curriculum, CURRICULUM).unwrap();
    harness.start("run-2").await;
    assert_eq!(harness.cycle().await.1, Verdict::Promoted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_with_too_few_samples_is_not_trained_on() {
    let harness = Harness::new(|trainer| trainer.samples_min = 9).await;

    harness.start("run").await;
    let (events, verdict, reason) = harness.cycle().await;

    assert_eq!(events, about("run", &["finished"]));
    assert_eq!(verdict, Verdict::Failed);
    assert!(
        reason.contains("8 samples") && reason.contains("is 9"),
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gate_judges_a_task_by_its_own_metric_and_hears_clips_longer_than_training_takes() {
    let samples = (0..16).map(|number| {
        let mut sample = sample(number);
        sample.task = "emotion".to_owned();
        sample.target = ["happy", "sad"][number % 2].to_owned();
        if number >= 8 {
            // Longer than the encoder's window of 30 s, and than the curriculum's clips.
            sample.audio = (0..490_000)
                .map(|at| (at as f32 * (0.05 + 0.01 * number as f32)).sin() * 0.3)
                .collect();
        }
        sample
    });
    let harness = Harness::with_samples(samples.collect(), |trainer| {
        promote_equals(trainer);
        let curriculum = format!("{CURRICULUM}tasks = [\"emotion\"]\n");
        std::fs::write(&trainer.curriculum, curriculum).unwrap();
    })
    .await;
    assert!(
        harness.held_out_seconds.iter().any(|seconds| *seconds > 30.0),
        "a long clip is held out: {:?}",
        harness.held_out_seconds
    );

    harness.start("run").await;
    let (_, verdict, reason) = harness.cycle().await;

    assert_eq!(verdict, Verdict::Promoted, "{reason}");
    let metrics = harness.registry.manifest("tiny-0002").unwrap().metrics;
    let held_out: Vec<&String> = metrics
        .keys()
        .filter(|name| name.starts_with("held_out_"))
        .collect();
    assert_eq!(
        held_out,
        [
            "held_out_emotion_uar_after",
            "held_out_emotion_uar_before",
            "held_out_error_after",
            "held_out_error_before",
            "held_out_samples"
        ]
    );
    assert_eq!(metrics["held_out_samples"], harness.held_out_seconds.len() as f64);
}

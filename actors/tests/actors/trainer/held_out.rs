//! What the gate asks about held-out samples, and what becomes of samples that cannot be read.

use std::collections::BTreeMap;

use serde_json::Value;

use super::*;

/// The metrics of a cycle on sixteen samples that `change` makes of the usual ones, and how many of them
/// judge; `tasks` are learned.
async fn metrics_of(tasks: &[&str], change: impl Fn(Sample) -> Sample) -> (BTreeMap<String, Value>, usize) {
    let samples = (0..16).map(|number| change(sample(number)));
    let harness = Harness::with_samples(samples.collect(), |trainer| {
        promote_equals(trainer);
        let curriculum = format!("{CURRICULUM}tasks = {tasks:?}\n");
        std::fs::write(&trainer.curriculum, curriculum).unwrap();
    })
    .await;

    harness.start("run").await;
    let (_, verdict, reason) = harness.cycle().await;

    assert_eq!(verdict, Verdict::Promoted, "{reason}");
    let metrics = harness.registry.manifest("tiny-0002").unwrap().metrics;
    (metrics, harness.held_out_seconds.len().max(2)) // training samples make up what the store lacks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gate_constrains_an_answer_to_the_labels_that_its_sample_lists() {
    for (task, score) in [
        ("emotion", "held_out_emotion_uar_before"),
        ("instruction", "held_out_instruction_labels_accuracy_before"),
    ] {
        for (constrained, right) in [(false, 0.0), (true, 100.0)] {
            let (metrics, _) = metrics_of(&[task], |sample| Sample {
                task: task.to_owned(),
                target: "happy".to_owned(),
                labels: vec!["happy".to_owned()],
                constrained,
                ..sample
            })
            .await;

            assert_eq!(metrics[score], right, "{task}, constrained: {constrained}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gate_judges_the_answer_to_several_tasks_for_each_of_them() {
    let (metrics, judging) = metrics_of(&["asr", "intent"], |sample| Sample {
        task: "asr,intent".to_owned(),
        target: "ASR: play it | Intent: play_radio |".to_owned(),
        ..sample
    })
    .await;

    let held_out: Vec<&str> = (metrics.keys())
        .filter(|name| name.ends_with("_before"))
        .map(String::as_str)
        .collect();
    assert_eq!(
        held_out,
        [
            "held_out_asr_wer_before",
            "held_out_error_before",
            "held_out_intent_accuracy_before"
        ]
    );
    assert_eq!(metrics["held_out_samples"], judging as f64, "each counts once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_sample_that_the_disk_has_changed_is_left_out_of_the_cycle() {
    let harness = Harness::with_samples((0..24).map(sample).collect(), |trainer| {
        promote_equals(trainer);
        trainer.held_out_samples_min = 1; // it may be one of those that judge
    })
    .await;
    let mut files = harness.left_in("samples").into_iter();
    let segment = files.find(|name| name.ends_with(".segment")).unwrap();
    let path = harness.dir.path().join("samples").join(segment);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();

    harness.start("run").await;
    let (_, verdict, reason) = harness.cycle().await;

    assert_eq!(verdict, Verdict::Promoted, "{reason}");
    let metrics = harness.registry.manifest("tiny-0002").unwrap().metrics;
    let learned = ["train_samples", "valid_samples"].map(|key| harness.logged("run", "run_started", key));
    let judged = metrics["held_out_samples"].as_f64().unwrap() as usize;
    assert_eq!(learned.iter().sum::<usize>() + judged, 23);
}

//! Answering and learning in processes of their own.

use std::time::{Duration, Instant};

use speechverse::config::Settings;
use speechverse::registry::Registry;
use speechverse::store::SampleStore;
use speechverse::wire::event::{EventKind, Verdict};
use speechverse_pipelines::role::Role;
use speechverse_pipelines::serving::Pipeline;

use crate::harness::{Client, Sandbox, WAIT_MAX, header, tone};

async fn start(role: Role, settings: &Settings) -> Pipeline {
    Pipeline::start_as(role, settings.clone()).await.unwrap()
}

/// Asks until an answer names `version`; those before it name `before`.
async fn served(client: &mut Client, before: &str, version: &str) {
    let deadline = Instant::now() + WAIT_MAX;
    for number in 0.. {
        let id = format!("until-{version}-{number}");
        client.request(&id, "k", tone(0.5, 200.0), Vec::new()).await;
        let (answer, _) = client.answer().await;
        if answer.adapter == version {
            return;
        }
        assert_eq!(answer.adapter, before);
        assert!(Instant::now() < deadline, "{version} is not served");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_process_learns_or_promotes_another_answers_with_and_corrections_find_their_requests() {
    let mut sandbox = Sandbox::new().await;
    sandbox.settings.kafka.topics.replies = vec!["elsewhere".into()];
    sandbox.settings.store.correction_wait_ms = 3_000;
    let settings = &sandbox.settings;
    let serving = start(Role::Serving, settings).await;
    let trainer = start(Role::Trainer, settings).await;
    let mut client = sandbox.client().await;
    for number in 0..22 {
        let audio = tone(0.6 + 0.05 * f64::from(number), 120.0 + 15.0 * f64::from(number));
        let target = header("ce_target", format!("sentence number {number}"));
        client
            .label(Some(audio), vec![header("ce_task", "asr"), target])
            .await;
    }
    client.request("before", "k", tone(0.5, 200.0), Vec::new()).await;
    let elsewhere = vec![header("ce_replytopic", "elsewhere")];
    client
        .request("elsewhere", "k", tone(0.5, 250.0), elsewhere)
        .await;
    client
        .request("private", "k", tone(0.5, 300.0), vec![header("ce_train", "no")])
        .await;
    let answers = client.answers(2).await;
    for subject in ["before", "elsewhere", "private"] {
        let headers = vec![header("ce_subject", subject), header("ce_target", "hello")];
        client.label(None, headers).await;
    }
    let (_, reason, _) = client.dead_letter().await;

    client
        .order("{\"command\": \"retrain\", \"id\": \"run-1\"}")
        .await;
    let finished = client
        .event(|what| matches!(what, EventKind::CycleFinished { .. }))
        .await;
    served(&mut client, "tiny-0001", "tiny-0002").await;
    // As `adapters promote` does, while both run.
    let registry = Registry::open(&settings.adapters.dir).unwrap();
    registry.rollback(|_| Ok(())).unwrap();
    served(&mut client, "tiny-0002", "tiny-0001").await;
    // One that cannot be served, and one that can.
    let pointer = settings.adapters.dir.join("current");
    std::fs::write(&pointer, "tiny-0099\n").unwrap();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    served(&mut client, "", "tiny-0001").await;
    std::fs::write(&pointer, "tiny-0002\n").unwrap();
    served(&mut client, "tiny-0001", "tiny-0002").await;

    let EventKind::CycleFinished { verdict, version, .. } = &finished.what else {
        unreachable!("asked for above")
    };
    assert_eq!(*verdict, Verdict::Promoted, "{:?}", finished.what);
    assert_eq!(version.as_deref(), Some("tiny-0002"));
    assert_eq!(reason, "unknown_subject"); // of what may not be trained on
    assert!(answers.values().all(|answer| answer.adapter == "tiny-0001"));
    trainer.stop().await.unwrap();
    let store = SampleStore::open(&settings.store).unwrap();
    for request in ["before", "elsewhere"] {
        let corrected = store.of_request("", request).unwrap().unwrap();
        assert_eq!(corrected.sample.target, "hello");
        assert_eq!(corrected.sample.audio.len(), 8_000);
    }
    assert_eq!(store.of_request("", "private").unwrap(), None);
    sandbox.end(serving).await;
}

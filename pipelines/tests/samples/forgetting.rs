//! Samples that are forgotten.

use std::sync::Arc;

use speechverse::kafka::{Read, ReadFrom, Reader, Sink};
use speechverse::store::ContentHash;
use speechverse::wire::control::{Command, Order};
use speechverse::wire::event::{Event, EventKind};

use super::support::{LIMIT, broker};
use super::*;

#[test]
fn what_is_forgotten_is_in_no_file_of_the_store() {
    let place = Place::filled();
    let holds = |text: &str| {
        let mut files = std::fs::read_dir(place.path("samples")).unwrap();
        files.any(|file| {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            bytes.windows(text.len()).any(|window| window == text.as_bytes())
        })
    };

    let (code, said, words) = place.run(&["forget", "--request", "r-1", "--dry-run"]);
    assert_eq!(code, 0, "{words}");
    assert!(said.contains("2 samples would be forgotten"), "{said}");
    assert!(holds("target one") && holds("target 1"));

    let (code, said, words) = place.run(&["forget", "--request", "r-1"]);
    assert_eq!(code, 0, "{words}");
    assert!(said.contains("2 samples forgotten"), "{said}");
    assert!(!holds("target one") && !holds("r-1\u{16}") && !holds("target 1\u{0}"));
    assert_eq!(
        place.targets(&["list"]),
        ["target 0", "target 2", "target 3", "yes", "target 12"]
    );

    let id = place.rows(&["list", "--request", "r-2"])[0]["id"]
        .as_str()
        .unwrap()[..16]
        .to_owned();
    assert_eq!(place.run(&["forget", &id]).0, 0);
    assert_eq!(place.run(&["forget", &id]).0, 1, "it is not there any more");
    assert_eq!(place.run(&["forget", "--state", "withheld"]).0, 0);
    assert_eq!(place.targets(&["list"]), ["target 0", "target 3", "yes"]);
    let (code, said, _) = place.run(&["forget", "--all"]);
    assert_eq!((code, said.contains("3 samples forgotten")), (0, true), "{said}");
    assert_eq!(place.rows(&["list"]).len(), 0);
}

#[test]
fn forgetting_needs_to_be_told_what_and_a_store_that_nobody_writes() {
    let place = Place::filled();
    let (code, _, words) = place.run(&["forget"]);
    assert_eq!(code, 2);
    assert!(words.contains("--all"), "{words}");
    assert_eq!(place.run(&["forget", "--limit", "3"]).0, 2);
    assert_eq!(place.run(&["forget", "abc", "--task", "asr"]).0, 2);

    let writer = place.store();
    let (code, _, words) = place.run(&["forget", "--request", "r-1"]);
    assert_eq!(code, 1);
    assert!(
        words.contains("open in another process") && words.contains("--live"),
        "{words}"
    );
    let manifest = place.path("rows.jsonl");
    std::fs::write(
        &manifest,
        r#"{"audio_filepath": "0.wav", "duration": 1.0, "text": "x"}"#,
    )
    .unwrap();
    let (code, _, words) = place.run(&["import", "--manifest", manifest.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(words.contains("speechverse label"), "{words}");
    assert_eq!(writer.len(), 7);
}

#[test]
fn an_empty_or_short_filter_is_no_order_to_forget_everything() {
    let place = Place::filled();
    let id = place.rows(&["list"])[0]["id"].as_str().unwrap().to_owned();

    for wrong in [
        &["--id", ""][..],
        &["--id", &id[..3]],
        &["--request", ""],
        &["--task", ""],
        &[""],
        &[&id[..3]],
        &[&id, "--limit", "1"],
    ] {
        let (code, _, words) = place.run(&[&["forget"], wrong].concat());

        assert_eq!(code, 2, "{wrong:?}: {words}");
    }
    assert_eq!(place.rows(&["list"]).len(), 7);
    assert_eq!(place.run(&["forget", "--id", &id[..16], "--limit", "1"]).0, 0);
    assert_eq!(place.rows(&["list"]).len(), 6);
}

#[test]
fn the_help_says_what_is_not_forgotten() {
    let output = support::speechverse(&["samples", "forget", "--help"])
        .output()
        .unwrap();
    let help = String::from_utf8_lossy(&output.stdout);

    for part in [
        "topics",
        "`feature_cache.dir`",
        "`trainer.runs_dir`",
        "runs now",
        "corrections",
    ] {
        assert!(help.contains(part), "{part}: {help}");
    }
}

/// A pipeline that has the store and carries out the orders to forget, as the controller does.
#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_runs_is_ordered_to_forget_and_waited_for() {
    let place = Arc::new(Place::filled());
    let (broker, config) = broker().await;
    let mut orders = Reader::open(&config, &config.topics.control, ReadFrom::End, LIMIT)
        .await
        .unwrap();
    let store = place.store();
    let (bootstrap, there) = (config.bootstrap.clone(), Arc::clone(&place));
    let command = tokio::task::spawn_blocking(move || {
        there.run(&["forget", "--live", "--request", "r-1", "--bootstrap", &bootstrap])
    });

    let order = loop {
        if let Read::Record(record) = orders.next(LIMIT).await.unwrap() {
            break Order::parse(&record).unwrap();
        }
    };
    let Command::Forget { samples } = order.command else {
        panic!("{order:?}")
    };
    let ids: Vec<ContentHash> = samples.iter().map(|id| ContentHash::parse(id).unwrap()).collect();
    assert_eq!(store.forget(&ids).unwrap().samples, 2);
    let obeyed = EventKind::CommandObeyed {
        command: "forget".to_owned(),
    };
    let event = Event::now(order.id.unwrap(), obeyed);
    let topic = Arc::from(config.topics.events.as_str());
    Sink::new(&config)
        .unwrap()
        .send(event.to_record(topic, "/pipeline"))
        .await
        .unwrap();

    let (code, said, words) = command.await.unwrap();
    assert_eq!(code, 0, "{words}");
    assert!(said.contains("2 samples forgotten by the pipeline"), "{said}");
    broker.shutdown().await;
}

//! Several answers to one question: which of them is in force, whatever comes in between.

use std::collections::BTreeMap;
use std::path::Path;

use tempfile::TempDir;

use super::*;

const SEND_TIME_MS: i64 = 1_700_000_000_000;

fn open(dir: &Path) -> SampleStore {
    SampleStore::open(&StoreConfig {
        dir: dir.to_owned(),
        fsync: FsyncPolicy::Interval, // no need to wait for the disk
        ..StoreConfig::default()
    })
    .unwrap()
}

/// The answer `target` of the request `/phone`, `r-1`, in record `offset` of partition 0.
fn answer(target: &str, offset: i64) -> Sample {
    Sample {
        audio: (0..80).map(|at| at as f32 / 128.0).collect(),
        instruction: "Transcribe the speech.".to_owned(),
        target: target.to_owned(),
        task: "asr".to_owned(),
        source: SampleSource {
            topic: "labels".to_owned(),
            partition: 0,
            offset,
        },
        request_source: "/phone".to_owned(),
        request_id: "r-1".to_owned(),
        labels: Vec::new(),
        fields: BTreeMap::new(),
        constrained: false,
        written_ms: SEND_TIME_MS + offset,
        received_ms: SEND_TIME_MS + 50 + offset,
        may_train: true,
    }
}

fn put(store: &SampleStore, sample: &Sample) -> Option<ContentHash> {
    match store.put(sample).unwrap() {
        Put::Stored { supersedes, .. } | Put::Duplicate { supersedes, .. } => supersedes,
        other => panic!("{other:?}"),
    }
}

/// Targets that may be trained on, in order.
fn targets(store: &SampleStore) -> Vec<String> {
    let snapshot = store.snapshot();
    let of = |split| {
        snapshot
            .samples(split)
            .map(|stored| stored.unwrap().sample.target)
    };
    let mut targets: Vec<String> = of(Split::Train).chain(of(Split::HeldOut)).collect();
    targets.sort();
    targets
}

/// The targets now, and after a restart.
fn targets_for_good(dir: &Path, store: SampleStore) -> Vec<String> {
    let now = targets(&store);
    drop(store);
    assert_eq!(targets(&open(dir)), now, "a restart changes what is in force");
    now
}

#[test]
fn the_last_of_several_answers_is_in_force_and_the_earlier_ones_are_superseded() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());

    let superseded: Vec<_> = (["first", "second", "third"].into_iter().enumerate())
        .map(|(at, target)| put(&store, &answer(target, at as i64)))
        .collect();

    assert_eq!(
        superseded.iter().map(Option::is_some).collect::<Vec<_>>(),
        [false, true, true]
    );
    let counts = store.counts();
    let sum = |of: fn(&TaskCount) -> usize| counts.iter().map(of).sum::<usize>();
    assert_eq!(
        (sum(|count| count.samples), sum(|count| count.superseded)),
        (1, 2)
    );
    assert_eq!(targets_for_good(dir.path(), store), ["third"]);
}

#[test]
fn a_correction_after_a_restart_supersedes_the_one_before_it() {
    let dir = TempDir::new().unwrap();
    put(&open(dir.path()), &answer("first", 3));
    let store = open(dir.path());

    assert!(put(&store, &answer("second", 4)).is_some());

    assert_eq!(targets_for_good(dir.path(), store), ["second"]);
}

#[test]
fn records_that_come_again_after_a_crash_change_nothing() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let (first, second) = (answer("first", 1), answer("second", 2));
    let elsewhere = Sample {
        source: SampleSource {
            partition: 1,
            ..first.source.clone()
        },
        ..answer("elsewhere", 0)
    };
    for sample in [&elsewhere, &first, &second] {
        put(&store, sample);
    }

    for sample in [&first, &elsewhere, &second, &first] {
        assert_eq!(put(&store, sample), None);
    }
    // One that had not been stored the first time, and comes again after a later one.
    let late = store.put(&answer("late", 0)).unwrap();

    assert!(matches!(late, Put::Outdated { .. }), "{late:?}");
    assert_eq!(targets_for_good(dir.path(), store), ["second"]);
}

#[test]
fn in_a_topic_that_was_made_anew_the_later_time_counts() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    put(&store, &answer("first", 7));

    let anew = Sample {
        written_ms: SEND_TIME_MS + 60_000,
        ..answer("second", 0)
    };
    put(&store, &anew);

    assert_eq!(targets_for_good(dir.path(), store), ["second"]);
}

#[test]
fn an_answer_that_is_given_again_stands_again() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    put(&store, &answer("first", 0));
    put(&store, &answer("second", 1));

    assert!(put(&store, &answer("first", 2)).is_some());

    assert_eq!(store.len(), 2);
    assert_eq!(targets_for_good(dir.path(), store), ["first"]);
}

#[test]
fn requests_of_other_sources_ids_instructions_or_recordings_keep_their_answers() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let changes: [fn(&mut Sample); 5] = [
        |_| {},
        |sample| sample.request_source = "/desk".to_owned(),
        |sample| sample.request_id = "r-2".to_owned(),
        |sample| sample.instruction = "Which language is it?".to_owned(),
        |sample| sample.audio[0] = 0.5,
    ];

    for (at, change) in changes.into_iter().enumerate() {
        let mut sample = answer(&format!("target {at}"), at as i64);
        change(&mut sample);
        assert_eq!(put(&store, &sample), None);
    }

    assert_eq!(targets_for_good(dir.path(), store).len(), 5);
}

#[test]
fn a_sample_that_two_requests_share_stays_as_long_as_one_stands_by_it() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let other = |target: &str, offset| Sample {
        request_id: "r-2".to_owned(),
        ..answer(target, offset)
    };
    put(&store, &answer("shared", 0));
    put(&store, &other("shared", 1));

    put(&store, &answer("changed", 2));
    assert_eq!(targets(&store), ["changed", "shared"]);
    put(&store, &other("changed", 3));

    assert_eq!(targets_for_good(dir.path(), store), ["changed"]);
}

#[test]
fn the_same_sample_under_ever_new_names_takes_no_more_space() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let named = |number: i64| Sample {
        request_id: format!("r-{number}"),
        ..answer("same", number)
    };
    (0..50).for_each(|number| _ = put(&store, &named(number)));
    let bytes = store.bytes();

    (50..1_000).for_each(|number| _ = put(&store, &named(number)));

    assert_eq!((store.len(), store.bytes()), (1, bytes));
}

#[test]
fn an_answer_that_may_not_be_trained_on_takes_the_earlier_one_with_it() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    put(&store, &answer("first", 0));

    let withheld = Sample {
        may_train: false,
        ..answer("second", 1)
    };
    put(&store, &withheld);

    assert!(store.of_request("/phone", "r-1").unwrap().is_none());
    assert!(targets_for_good(dir.path(), store).is_empty());
}

#[test]
fn the_sample_of_a_request_is_found_by_source_and_id_also_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    put(&store, &answer("first", 0));
    let second = Sample {
        labels: vec!["first".to_owned(), "second".to_owned()],
        ..answer("second", 1)
    };
    put(&store, &second);
    let desk = Sample {
        request_source: "/desk".to_owned(),
        ..answer("third", 2)
    };
    put(&store, &desk);
    drop(store);
    let store = open(dir.path());

    assert_eq!(store.sources_of("r-1"), ["/desk", "/phone"]);
    assert_eq!(store.of_request("/phone", "r-1").unwrap().unwrap().sample, second);
    assert_eq!(store.of_request("/desk", "r-1").unwrap().unwrap().sample, desk);
    assert!(store.of_request("/phone", "r-2").unwrap().is_none());
    assert!(store.sources_of("r-2").is_empty());
}

#[test]
fn what_a_lost_segment_had_superseded_is_counted_right_and_a_new_answer_can_come() {
    let dir = TempDir::new().unwrap();
    let config = StoreConfig {
        dir: dir.path().to_owned(),
        fsync: FsyncPolicy::Interval,
        task_samples_max: 8, // a segment a sample
        ..StoreConfig::default()
    };
    let store = SampleStore::open(&config).unwrap();
    for offset in 0..12 {
        put(&store, &answer(&format!("target {offset}"), offset));
    }
    assert_eq!(targets(&store), ["target 11"]);
    put(&store, &answer("target 5", 12)); // still there
    for offset in 13..40 {
        let other = Sample {
            request_id: format!("r-{offset}"),
            ..answer(&format!("other {offset}"), offset)
        };
        put(&store, &other); // pushes all of the first request out
    }
    drop(store);

    let store = SampleStore::open(&config).unwrap();
    put(&store, &answer("target 5", 41));

    assert!(targets(&store).contains(&"target 5".to_owned()));
    assert_eq!(
        targets(&store)
            .iter()
            .filter(|target| target.starts_with("target"))
            .count(),
        1
    );
}

#[test]
fn samples_under_the_interval_policy_are_synced_by_themselves() {
    let dir = TempDir::new().unwrap();
    let store = SampleStore::open(&StoreConfig {
        dir: dir.path().to_owned(),
        fsync: FsyncPolicy::Interval,
        fsync_interval_ms: 20,
        ..StoreConfig::default()
    })
    .unwrap();
    let put = store.put(&answer("first", 0)).unwrap();
    assert!(matches!(put, Put::Stored { durable: false, .. }), "{put:?}");

    // No further put comes: the samples before a quiet night must not wait for the morning.
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while store.inner().has_unsynced() {
        assert!(std::time::Instant::now() < deadline, "nothing was synced");
        std::thread::sleep(Duration::from_millis(5));
    }
}

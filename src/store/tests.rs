//! The store as its callers see it, and what crashes and broken disks may do to it.

mod crashes;
mod forgetting;
mod forgetting_faults;
mod reading;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::store::config::FsyncPolicy;

fn config(dir: &Path) -> StoreConfig {
    StoreConfig {
        dir: dir.to_owned(),
        fsync: FsyncPolicy::Interval, // the tests cut files themselves; no need to wait for the disk
        ..StoreConfig::default()
    }
}

/// A sample whose content is a function of `number`.
fn sample(number: u32, task: &str) -> Sample {
    let samples = 20 + number as usize % 50;
    Sample {
        audio: (0..samples)
            .map(|i| ((number as usize * 31 + i) % 1000) as f32 / 1024.0)
            .collect(),
        instruction: "Transcribe the speech.".to_owned(),
        target: format!("target {number}"),
        task: task.to_owned(),
        source: SampleSource {
            topic: "speechverse.labels".to_owned(),
            partition: (number % 3) as i32,
            offset: i64::from(number),
        },
        request_source: String::new(),
        request_id: format!("request-{number}"),
        labels: Vec::new(),
        fields: BTreeMap::new(),
        constrained: false,
        written_ms: 1_700_000_000_000 + i64::from(number),
        received_ms: 1_700_000_000_000 + i64::from(number),
        may_train: true,
    }
}

fn put(store: &SampleStore, sample: &Sample) -> ContentHash {
    match store.put(sample).unwrap() {
        Put::Stored { id, .. } => id,
        other => panic!("{other:?}"),
    }
}

fn duplicate(id: ContentHash, withdrawn: bool) -> Put {
    Put::Duplicate {
        id,
        withdrawn,
        supersedes: None,
    }
}

fn contents(store: &SampleStore) -> BTreeMap<ContentHash, Sample> {
    let snapshot = store.snapshot();
    [Split::Train, Split::HeldOut]
        .into_iter()
        .flat_map(|split| snapshot.samples(split).collect::<Vec<_>>())
        .map(|stored| stored.unwrap())
        .map(|stored| (stored.id, stored.sample))
        .collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "segment"));
    paths.sort();
    paths
}

#[test]
fn a_sample_comes_back_as_it_was_put_also_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let store = SampleStore::open(&StoreConfig {
        fsync: FsyncPolicy::EveryPut,
        ..config(dir.path())
    })
    .unwrap();
    let first = sample(1, "asr");

    let put = store.put(&first).unwrap();

    assert!(matches!(put, Put::Stored { durable: true, .. }), "{put:?}");
    assert!(contents(&store).into_values().eq([first.clone()]));
    drop(store);
    let store = SampleStore::open(&config(dir.path())).unwrap();
    assert!(contents(&store).into_values().eq([first]));
    assert_eq!(store.open_report().samples, 1);
}

#[test]
fn the_same_content_is_stored_once_also_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let store = SampleStore::open(&config(dir.path())).unwrap();
    let id = put(&store, &sample(1, "asr"));
    let again = Sample {
        request_id: "another".to_owned(),
        ..sample(1, "asr")
    };

    let duplicate = duplicate(id, false);
    assert_eq!(store.put(&again).unwrap(), duplicate);
    drop(store);
    let store = SampleStore::open(&config(dir.path())).unwrap();
    assert_eq!(store.put(&again).unwrap(), duplicate);
    assert_eq!(store.len(), 1);
}

#[test]
fn what_may_not_be_trained_on_is_in_no_snapshot() {
    let dir = TempDir::new().unwrap();
    let store = SampleStore::open(&config(dir.path())).unwrap();
    put(&store, &sample(1, "asr"));
    put(
        &store,
        &Sample {
            may_train: false,
            ..sample(2, "asr")
        },
    );

    let counts = store.counts();

    assert_eq!(contents(&store).len(), 1);
    let sum = |of: fn(&TaskCount) -> usize| counts.iter().map(of).sum::<usize>();
    assert_eq!((sum(|count| count.samples), sum(|count| count.withheld)), (1, 1));
}

#[test]
fn a_sample_that_is_withdrawn_stays_withdrawn_and_leaves_earlier_snapshots_alone() {
    let dir = TempDir::new().unwrap();
    let store = SampleStore::open(&config(dir.path())).unwrap();
    let id = put(&store, &sample(1, "asr"));
    put(&store, &sample(2, "asr"));
    let before = store.snapshot();
    let withdrawal = Sample {
        may_train: false,
        ..sample(1, "asr")
    };

    assert_eq!(store.put(&withdrawal).unwrap(), duplicate(id, true));
    assert_eq!(store.put(&withdrawal).unwrap(), duplicate(id, false));

    assert_eq!(contents(&store).len(), 1);
    assert_eq!(before.len(Split::Train) + before.len(Split::HeldOut), 2);
    drop(store);
    let store = SampleStore::open(&config(dir.path())).unwrap();
    assert!(!contents(&store).contains_key(&id));
    assert_eq!(store.len(), 2);
}

#[test]
fn a_recording_stays_on_its_side_when_the_share_changes() {
    let dir = TempDir::new().unwrap();
    let mut config = config(dir.path());
    let store = SampleStore::open(&config).unwrap();
    for number in 0..200 {
        put(&store, &sample(number, "asr"));
    }
    let held: BTreeSet<ContentHash> = store
        .snapshot()
        .refs(Split::HeldOut)
        .map(|sample| sample.id)
        .collect();
    assert!(
        (5..40).contains(&held.len()),
        "{} of 200 are held out",
        held.len()
    );
    drop(store);

    config.held_out_fraction = 0.9;
    let store = SampleStore::open(&config).unwrap();
    for number in 0..200 {
        let other_question = Sample {
            instruction: "Translate.".to_owned(),
            ..sample(number, "translation")
        };
        put(&store, &other_question);
    }

    let snapshot = store.snapshot();
    let sides = |task: &str, split| {
        let of_task = snapshot.refs(split).filter(|sample| sample.task.as_ref() == task);
        of_task
            .map(|sample| snapshot.load(&sample).unwrap().sample.request_id)
            .collect::<BTreeSet<String>>()
    };
    assert_eq!(
        snapshot
            .refs(Split::HeldOut)
            .filter(|sample| held.contains(&sample.id))
            .count(),
        held.len()
    );
    assert_eq!(sides("asr", Split::HeldOut), sides("translation", Split::HeldOut));
    assert_eq!(sides("asr", Split::Train), sides("translation", Split::Train));
}

#[test]
fn a_second_process_cannot_open_the_store() {
    let dir = TempDir::new().unwrap();
    let _store = SampleStore::open(&config(dir.path())).unwrap();

    let error = SampleStore::open(&config(dir.path())).unwrap_err();

    assert!(matches!(error, StoreError::Locked { .. }), "{error:?}");
    assert!(
        error.to_string().contains(&std::process::id().to_string()),
        "{error}"
    );
}

#[test]
fn samples_that_cannot_be_kept_are_refused_with_the_reason() {
    let dir = TempDir::new().unwrap();
    let config = StoreConfig {
        audio_seconds_max: 1.0,
        text_bytes_max: 100,
        tasks_max: 1,
        ..config(dir.path())
    };
    let store = SampleStore::open(&config).unwrap();
    put(&store, &sample(0, "asr"));
    let refused = |change: fn(&mut Sample)| {
        let mut sample = sample(1, "asr");
        change(&mut sample);
        match store.put(&sample).unwrap() {
            Put::Refused { refusal } => refusal.to_string(),
            other => panic!("{other:?}"),
        }
    };

    assert!(refused(|sample| sample.audio.clear()).contains("no audio"));
    assert!(refused(|sample| sample.audio[3] = f32::NAN).contains("audio sample 3 is NaN"));
    assert!(refused(|sample| sample.audio = vec![0.0; 16_001]).contains("16001"));
    assert!(refused(|sample| sample.target = "x".repeat(101)).contains("target has 101 bytes"));
    let long_field = refused(|sample| {
        sample.fields = BTreeMap::from([("word".to_owned(), "x".repeat(97))]);
    });
    assert!(
        long_field.contains("list of fields has 101 bytes"),
        "{long_field}"
    );
    assert!(refused(|sample| sample.task = "another".to_owned()).contains("`another`"));
    assert_eq!(store.len(), 1);
}

#[test]
fn a_task_above_its_quota_loses_its_oldest_samples_and_no_other_task_does() {
    let dir = TempDir::new().unwrap();
    let config = StoreConfig {
        task_samples_max: 80,
        ..config(dir.path())
    };
    let store = SampleStore::open(&config).unwrap();
    put(&store, &sample(10_000, "intent"));
    for number in 0..300 {
        put(&store, &sample(number, "asr"));
        assert!(store.len() <= 81);
    }

    let check = |store: &SampleStore| {
        let found: BTreeSet<String> = contents(store)
            .into_values()
            .map(|sample| sample.request_id)
            .collect();
        assert!(found.contains("request-10000"));
        let newest = (300 - 70..300).map(|number| format!("request-{number}"));
        assert!(newest.into_iter().all(|id| found.contains(&id)), "{found:?}");
    };
    check(&store);
    drop(store);
    check(&SampleStore::open(&config).unwrap());
}

#[test]
fn above_the_bytes_the_largest_task_loses_its_oldest_segment() {
    let dir = TempDir::new().unwrap();
    let config = StoreConfig {
        segment_bytes_max: 4_096,
        bytes_max: 40_000,
        ..config(dir.path())
    };
    let store = SampleStore::open(&config).unwrap();
    put(&store, &sample(10_000, "intent"));
    for number in 0..1_000 {
        put(&store, &sample(number, "asr"));
    }

    assert!(store.bytes() <= 40_000, "{}", store.bytes());
    let on_disk: u64 = segments(dir.path())
        .iter()
        .map(|path| path.metadata().unwrap().len())
        .sum();
    assert_eq!(on_disk, store.bytes());
    let found: BTreeSet<String> = contents(&store)
        .into_values()
        .map(|sample| sample.request_id)
        .collect();
    assert!(found.contains("request-10000") && found.contains("request-999") && !found.contains("request-0"));
}

#[test]
fn a_snapshot_outlives_the_eviction_of_what_it_holds() {
    let dir = TempDir::new().unwrap();
    let config = StoreConfig {
        task_samples_max: 16,
        ..config(dir.path())
    };
    let store = SampleStore::open(&config).unwrap();
    for number in 0..10 {
        put(&store, &sample(number, "asr"));
    }
    let snapshot = store.snapshot();
    let digest = snapshot.digest();

    for number in 10..200 {
        put(&store, &sample(number, "asr"));
    }

    let samples: Vec<StoredSample> = snapshot
        .samples(Split::Train)
        .chain(snapshot.samples(Split::HeldOut))
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(samples.len(), 10);
    assert_eq!(snapshot.digest(), digest);
    assert_ne!(store.snapshot().digest(), digest);
    let files = segments(dir.path()).len();
    drop(snapshot);
    assert!(
        segments(dir.path()).len() < files,
        "evicted files go with the last snapshot"
    );
}

#[test]
fn the_digest_depends_on_the_contents_and_not_on_their_order() {
    let (one, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (one, other) = (
        SampleStore::open(&config(one.path())).unwrap(),
        SampleStore::open(&config(other.path())).unwrap(),
    );
    for number in 0..20 {
        put(&one, &sample(number, "asr"));
        put(&other, &sample(19 - number, "asr"));
    }
    assert_eq!(one.snapshot().digest(), other.snapshot().digest());

    put(&other, &sample(20, "asr"));

    assert_ne!(one.snapshot().digest(), other.snapshot().digest());
}

#[test]
fn a_snapshot_names_the_offsets_that_it_came_from() {
    let dir = TempDir::new().unwrap();
    let store = SampleStore::open(&config(dir.path())).unwrap();
    for number in [4, 10, 7, 3] {
        put(&store, &sample(number, "asr")); // partitions 1, 1, 1, 0
    }

    let sources = store.snapshot().sources();

    let ranges: Vec<(i32, i64, i64)> = sources
        .iter()
        .map(|(low, high)| (low.partition, low.offset, high.offset))
        .collect();
    assert_eq!(ranges, [(0, 3, 3), (1, 4, 10)]);
}

#[test]
fn a_damaged_record_in_the_middle_is_skipped_and_counted() {
    let dir = TempDir::new().unwrap();
    let store = SampleStore::open(&config(dir.path())).unwrap();
    let ids: Vec<ContentHash> = (0..5).map(|number| put(&store, &sample(number, "asr"))).collect();
    drop(store);
    let path = &segments(dir.path())[0];
    let mut bytes = std::fs::read(path).unwrap();
    let needle = b"target 2";
    let at = bytes
        .windows(needle.len())
        .position(|window| window == needle)
        .unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();

    let store = SampleStore::open(&config(dir.path())).unwrap();

    assert_eq!(store.open_report().damaged, 1);
    assert_eq!(store.open_report().torn_bytes, 0);
    let found: BTreeSet<ContentHash> = contents(&store).into_keys().collect();
    let expected: BTreeSet<ContentHash> = [0, 1, 3, 4].map(|index| ids[index]).into();
    assert_eq!(found, expected);
    put(&store, &sample(2, "asr"));
}

#[test]
fn damage_after_the_start_is_an_error_for_that_sample_alone() {
    let dir = TempDir::new().unwrap();
    let store = SampleStore::open(&StoreConfig {
        held_out_fraction: 0.0,
        ..config(dir.path())
    })
    .unwrap();
    for number in 0..3 {
        put(&store, &sample(number, "asr"));
    }
    let path = &segments(dir.path())[0];
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(8).position(|window| window == b"target 1").unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();

    let snapshot = store.snapshot();
    let results: Vec<bool> = snapshot
        .samples(Split::Train)
        .map(|sample| sample.is_ok())
        .collect();

    assert_eq!(results, [true, false, true]);
}

#[test]
fn a_file_in_which_nothing_can_be_read_is_put_aside() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("000000000007-asr.segment"), [7; 500]).unwrap();
    std::fs::write(dir.path().join("000000000008-asr.segment"), b"SVSM").unwrap();
    std::fs::write(dir.path().join("notes.txt"), b"mine").unwrap();

    let store = SampleStore::open(&config(dir.path())).unwrap();

    assert_eq!(store.open_report().unreadable, 1);
    assert!(segments(dir.path()).is_empty());
    assert!(dir.path().join("000000000007-asr.segment.damaged").exists());
    assert!(dir.path().join("notes.txt").exists());
    put(&store, &sample(1, "asr"));
    assert!(segments(dir.path())[0].to_string_lossy().contains("000000000009"));
}

#[test]
fn a_disk_that_refuses_is_an_error_and_the_sample_can_be_put_again() {
    let dir = TempDir::new().unwrap();
    let store = SampleStore::open(&config(dir.path())).unwrap();
    put(&store, &sample(1, "asr"));
    let away = dir.path().with_extension("away");
    std::fs::rename(dir.path(), &away).unwrap();

    let error = store.put(&sample(2, "intent")).unwrap_err(); // needs a new file in a folder that is gone
    assert!(matches!(error, StoreError::Io { .. }), "{error:?}");

    std::fs::rename(&away, dir.path()).unwrap();
    put(&store, &sample(2, "intent"));
    assert_eq!(contents(&store).len(), 2);
}

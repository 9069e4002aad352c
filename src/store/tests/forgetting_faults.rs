//! Forgetting on a disk that has changed files, beside evicted segments, readers and other threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use super::forgetting::{fill, ids, lengths, of_request, on_disk, open, small_segments, view};
use super::*;

/// Four samples in one segment, which is `path`.
fn four_samples(dir: &Path) -> (SampleStore, Vec<ContentHash>, PathBuf) {
    let store = SampleStore::open(&config(dir)).unwrap();
    let found = (0..4).map(|number| put(&store, &sample(number, "asr"))).collect();
    store.sync().unwrap();
    (store, found, segments(dir).remove(0))
}

/// Changes a bit where `text` is first.
fn spoil(path: &Path, text: &str) {
    let mut bytes = std::fs::read(path).unwrap();
    let found = bytes
        .windows(text.len())
        .position(|window| window == text.as_bytes());
    bytes[found.unwrap()] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn remaining(store: &SampleStore) -> BTreeSet<ContentHash> {
    ids(store, |_| true).into_iter().collect()
}

#[test]
fn damage_in_a_segment_that_is_written_anew_goes_with_it() {
    let dir = TempDir::new().unwrap();
    let store = SampleStore::open(&config(dir.path())).unwrap();
    let found: Vec<ContentHash> = (0..4).map(|number| put(&store, &sample(number, "asr"))).collect();
    drop(store);
    let path = &segments(dir.path())[0];
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(8).position(|window| window == b"target 2").unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
    let store = SampleStore::open(&config(dir.path())).unwrap();

    store.forget(&found[..1]).unwrap();

    let now = view(&store);
    drop(store);
    let store = SampleStore::open(&config(dir.path())).unwrap();
    assert_eq!((store.len(), store.open_report().damaged), (2, 0));
    assert_eq!(view(&store), now);
}

#[test]
fn a_sample_that_the_disk_changed_after_the_start_is_forgotten_too() {
    let dir = TempDir::new().unwrap();
    let (store, found, path) = four_samples(dir.path());
    spoil(&path, "target 2");

    let report = store.forget(&found[2..3]).unwrap();

    assert_eq!((report.samples, report.segments), (1, 1));
    let expected: BTreeSet<ContentHash> = [found[0], found[1], found[3]].into();
    assert_eq!(remaining(&store), expected);
    assert!(!on_disk(dir.path(), "arget 2"), "its text and what is near");
    assert_eq!(lengths(dir.path()), store.bytes());
    assert_eq!(contents(&store).len(), 3);
    drop(store);
    let store = SampleStore::open(&config(dir.path())).unwrap();
    assert_eq!((remaining(&store), store.open_report().damaged), (expected, 0));
}

#[test]
fn a_segment_whose_beginning_is_broken_keeps_its_whole_records() {
    let dir = TempDir::new().unwrap();
    let (store, found, path) = four_samples(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..60].fill(7); // nothing is left to tell the marker by but what the store knows
    std::fs::write(&path, bytes).unwrap();

    store.forget(&found[3..]).unwrap();

    assert_eq!(remaining(&store), found[1..3].iter().copied().collect());
    assert!(!on_disk(dir.path(), "target 0") && !on_disk(dir.path(), "target 3"));
    assert_eq!(contents(&store).len(), 2);
    drop(store);
    assert_eq!(SampleStore::open(&config(dir.path())).unwrap().len(), 2);
}

#[test]
fn a_segment_in_which_nothing_can_be_read_any_more_goes_as_a_whole() {
    let dir = TempDir::new().unwrap();
    let (store, found, path) = four_samples(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.fill(7);
    std::fs::write(&path, bytes).unwrap();

    assert_eq!(store.forget(&found[..1]).unwrap().samples, 1);

    assert!(store.is_empty() && segments(dir.path()).is_empty());
    put(&store, &sample(5, "asr"));
}

#[test]
fn a_segment_that_cannot_be_read_is_an_error_that_names_it_and_its_samples_stay_known() {
    let dir = TempDir::new().unwrap();
    let (store, found, path) = four_samples(dir.path());
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();

    let error = store.forget(&found[..1]).unwrap_err();

    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert_eq!(store.len(), 4);
    put(&store, &sample(5, "asr"));
}

#[test]
fn a_sample_that_is_known_still_is_an_error() {
    let dir = TempDir::new().unwrap();
    let (store, found, _) = four_samples(dir.path());
    let stray = ContentHash([9; 32]);
    store.inner().index.places.insert(stray, (77, 0));

    let error = store.forget(&[found[0], stray]).unwrap_err();

    assert!(
        matches!(error, StoreError::NotForgotten { samples: 1, .. }),
        "{error}"
    );
}

#[test]
fn segments_without_anything_about_the_samples_are_not_read() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    fill(&store);
    let gone = of_request(&store, "request-20");
    let before = super::forgetting::files(dir.path());
    let concerned = |bytes: &[u8]| {
        let holds = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        let id = |id: &ContentHash| holds(&id.0);
        gone.iter().any(id)
    };
    let others: Vec<PathBuf> = (before.iter())
        .filter(|(_, bytes)| !concerned(bytes))
        .map(|(name, _)| dir.path().join(name))
        .collect();
    assert!(others.len() >= 2 && others.len() < before.len(), "{others:?}");
    for path in &others {
        std::fs::remove_file(path).unwrap();
    }

    let report = store.forget(&gone).unwrap();

    assert_eq!(report.segments, before.len() - others.len());
    assert!(!on_disk(dir.path(), "again-20") && !on_disk(dir.path(), "corrected 20"));
}

#[test]
fn a_sample_that_is_on_disk_twice_is_forgotten_twice() {
    let dir = TempDir::new().unwrap();
    let (store, found, path) = four_samples(dir.path());
    drop(store);
    std::fs::copy(path, dir.path().join("000000000007-asr.segment")).unwrap();
    let store = SampleStore::open(&config(dir.path())).unwrap();
    assert_eq!(store.len(), 4);

    let report = store.forget(&found[1..2]).unwrap();

    assert_eq!((report.samples, report.segments), (1, 2));
    assert!(!on_disk(dir.path(), "target 1"));
    let now = view(&store);
    drop(store);
    let store = SampleStore::open(&config(dir.path())).unwrap();
    assert_eq!((view(&store), store.len()), (now, 3));
}

/// 16 samples at most, so that each segment has two; the oldest are evicted and held by the snapshot.
fn with_evicted(dir: &Path) -> (SampleStore, Vec<ContentHash>, Snapshot) {
    let store = SampleStore::open(&StoreConfig {
        task_samples_max: 16,
        ..config(dir)
    })
    .unwrap();
    let mut found: Vec<ContentHash> = (0..16)
        .map(|number| put(&store, &sample(number, "asr")))
        .collect();
    let snapshot = store.snapshot();
    found.extend((16..22).map(|number| put(&store, &sample(number, "asr"))));
    (store, found, snapshot)
}

#[test]
fn a_sample_in_an_evicted_segment_that_a_snapshot_holds_is_forgotten_at_once() {
    let dir = TempDir::new().unwrap();
    let (store, found, snapshot) = with_evicted(dir.path());
    assert!(on_disk(dir.path(), "request-5") && !remaining(&store).contains(&found[5]));

    let report = store.forget(&found[5..6]).unwrap();

    assert_eq!((report.samples, report.segments), (1, 1));
    assert!(!on_disk(dir.path(), "target 5"));
    for sample in snapshot.all() {
        match snapshot.load(&sample) {
            Ok(stored) => assert_eq!(stored.id, sample.id),
            Err(error) => {
                assert!(matches!(error, StoreError::Forgotten { .. }), "{error:?}");
                assert!(
                    found[4..6].contains(&sample.id),
                    "another evicted segment is untouched"
                );
            }
        }
    }
    assert_eq!(store.forget(&found[5..6]).unwrap(), Forgotten::default());
    // A kill: what is in the folder now is what the next start finds.
    let later = TempDir::new().unwrap();
    for (name, bytes) in super::forgetting::files(dir.path()) {
        std::fs::write(later.path().join(name), bytes).unwrap();
    }
    assert!(!remaining(&SampleStore::open(&config(later.path())).unwrap()).contains(&found[5]));
}

#[test]
fn a_sample_that_was_evicted_and_put_again_is_forgotten_in_both_places() {
    let dir = TempDir::new().unwrap();
    let (store, _, _snapshot) = with_evicted(dir.path());
    let again = put(&store, &sample(5, "asr"));

    let report = store.forget(&[again]).unwrap();

    assert_eq!((report.samples, report.segments), (1, 2));
    assert!(!on_disk(dir.path(), "target 5"));
}

#[test]
fn evicted_segments_are_not_remembered_longer_than_their_files() {
    let dir = TempDir::new().unwrap();
    let (store, _, snapshot) = with_evicted(dir.path());
    assert_eq!(store.inner().evicted.len(), 3);

    drop(snapshot);

    store.forget(&[]).unwrap();
    assert!(store.inner().evicted.is_empty());
}

#[test]
fn a_reader_of_before_finds_what_stays_and_what_is_forgotten_is_a_clean_error() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    fill(&store);
    let reader = SampleReader::open(&small_segments(dir.path())).unwrap();
    let snapshot = reader.snapshot();
    let whole: HashMap<ContentHash, Sample> = snapshot
        .all()
        .map(|sample| (sample.id, snapshot.load(&sample).unwrap().sample))
        .collect();
    let mut gone = Vec::new();

    for request in ["request-8", "request-41", "request-9"] {
        let more = of_request(&store, request);
        store.forget(&more).unwrap();
        gone.extend(more);

        for sample in snapshot.all() {
            match snapshot.load(&sample) {
                Ok(stored) => assert_eq!(stored.sample, whole[&sample.id]),
                Err(error) => {
                    assert!(matches!(error, StoreError::Forgotten { .. }), "{error:?}");
                    assert!(gone.contains(&sample.id), "{error}");
                }
            }
        }
    }
}

#[test]
fn other_threads_read_while_segments_are_written_anew_and_deleted() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    fill(&store);
    let snapshots = [
        store.snapshot(),
        SampleReader::open(&small_segments(dir.path()))
            .unwrap()
            .snapshot(),
    ];
    let all = ids(&store, |_| true);
    let end = AtomicBool::new(false);

    std::thread::scope(|threads| {
        for (number, snapshot) in snapshots.iter().enumerate() {
            let end = &end;
            threads.spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    for sample in snapshot.all() {
                        match snapshot.load(&sample) {
                            Ok(stored) => assert_eq!(stored.id, sample.id),
                            Err(StoreError::Forgotten { .. }) => {}
                            // The reader has no part in the store, and this segment is gone.
                            Err(StoreError::Io { source, .. }) if number == 1 => {
                                assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            });
        }
        for id in &all {
            store.forget(&[*id]).unwrap();
        }
        end.store(true, Ordering::Relaxed);
    });

    assert!(store.is_empty());
}

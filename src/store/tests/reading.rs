//! A reader beside the process that writes.

use super::*;

fn all(snapshot: &Snapshot) -> BTreeMap<ContentHash, (Split, SampleState)> {
    (snapshot.all())
        .map(|sample| (sample.id, (sample.split, sample.state)))
        .collect()
}

/// A store with samples that are in use, superseded and withheld, of two tasks, in many segments.
fn filled(dir: &Path) -> SampleStore {
    let store = SampleStore::open(&StoreConfig {
        segment_bytes_max: 4_096,
        held_out_fraction: 0.3,
        ..config(dir)
    })
    .unwrap();
    for number in 0..120 {
        put(
            &store,
            &sample(number, if number % 3 == 0 { "intent" } else { "asr" }),
        );
    }
    for number in (0..120).step_by(7) {
        let correction = Sample {
            target: format!("corrected {number}"),
            written_ms: 1_800_000_000_000,
            ..sample(number, if number % 3 == 0 { "intent" } else { "asr" })
        };
        assert!(matches!(
            store.put(&correction).unwrap(),
            Put::Stored {
                supersedes: Some(_),
                ..
            }
        ));
    }
    for number in (0..120).step_by(11) {
        let withdrawal = Sample {
            may_train: false,
            ..sample(number, if number % 3 == 0 { "intent" } else { "asr" })
        };
        store.put(&withdrawal).unwrap();
    }
    store
}

#[test]
fn a_reader_beside_the_writer_sees_what_it_holds_with_sides_and_states() {
    let dir = TempDir::new().unwrap();
    let store = filled(dir.path());

    let reader = SampleReader::open(&config(dir.path())).unwrap();

    let snapshot = reader.snapshot();
    let found = all(&snapshot);
    assert_eq!(found, all(&store.snapshot()));
    assert_eq!(reader.counts(), store.counts());
    assert_eq!(snapshot.digest(), store.snapshot().digest());
    for state in SampleState::ALL {
        assert!(found.values().any(|(_, found)| *found == state), "{state:?}");
    }
    for sample in snapshot.all() {
        assert_eq!(snapshot.load(&sample).unwrap().id, sample.id);
    }
    put(&store, &sample(1_000, "asr")); // the lock is the writer's still
    assert!(matches!(
        SampleStore::open(&config(dir.path())),
        Err(StoreError::Locked { .. })
    ));
}

#[test]
fn a_record_that_is_being_appended_is_not_seen_and_not_cut() {
    let dir = TempDir::new().unwrap();
    let store = SampleStore::open(&config(dir.path())).unwrap();
    let first = put(&store, &sample(1, "asr"));
    let whole = std::fs::read(&segments(dir.path())[0]).unwrap().len();
    let second = put(&store, &sample(2, "asr"));
    drop(store);
    let path = segments(dir.path()).remove(0);
    let bytes = std::fs::read(&path).unwrap();

    for length in whole..=bytes.len() {
        std::fs::write(&path, &bytes[..length]).unwrap();

        let reader = SampleReader::open(&config(dir.path())).unwrap();

        let expected: &[ContentHash] = if length == bytes.len() {
            &[first, second]
        } else {
            &[first]
        };
        let snapshot = reader.snapshot();
        let found: BTreeSet<ContentHash> = snapshot.all().map(|sample| sample.id).collect();
        assert_eq!(found, expected.iter().copied().collect(), "{length} bytes");
        assert_eq!(
            std::fs::read(&path).unwrap(),
            bytes[..length],
            "a reader writes nothing"
        );
        assert_eq!((reader.report().damaged, reader.report().torn_bytes), (0, 0));
    }
}

#[test]
fn readers_work_while_a_writer_appends_and_evicts() {
    let dir = TempDir::new().unwrap();
    let config = StoreConfig {
        segment_bytes_max: 4_096,
        task_samples_max: 80,
        ..config(dir.path())
    };
    let store = SampleStore::open(&config).unwrap();
    put(&store, &sample(0, "asr"));
    let end = std::sync::atomic::AtomicBool::new(false);

    std::thread::scope(|threads| {
        threads.spawn(|| {
            for number in 1..3_000 {
                put(&store, &sample(number, "asr"));
            }
            end.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let mut readings = 0;
        while !end.load(std::sync::atomic::Ordering::Relaxed) || readings == 0 {
            let snapshot = SampleReader::open(&config).unwrap().snapshot();
            readings += 1;
            for sample in snapshot.all() {
                match snapshot.load(&sample) {
                    Ok(stored) => assert_eq!(stored.id, sample.id),
                    // Evicted since.
                    Err(StoreError::Io { source, .. }) => {
                        assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });

    let reader = SampleReader::open(&config).unwrap();
    assert_eq!(all(&reader.snapshot()), all(&store.snapshot()));
}

#[test]
fn a_reader_changes_nothing_in_a_folder_and_makes_none() {
    let dir = TempDir::new().unwrap();
    let missing = config(&dir.path().join("missing"));

    let error = SampleReader::open(&missing).unwrap_err();

    assert!(matches!(error, StoreError::Missing { .. }), "{error:?}");
    assert!(error.to_string().contains("`store.dir`"), "{error}");
    assert!(!missing.dir.exists());

    std::fs::write(dir.path().join("000000000007-asr.segment"), [7; 500]).unwrap();
    std::fs::write(dir.path().join("000000000008-asr.segment"), b"SVSM").unwrap();
    let reader = SampleReader::open(&config(dir.path())).unwrap();
    assert_eq!(reader.report().unreadable, 1, "the other is being made");
    let files: BTreeSet<PathBuf> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    let names = ["000000000007-asr.segment", "000000000008-asr.segment"];
    assert_eq!(files, names.map(|name| dir.path().join(name)).into());
}

#[test]
fn a_sample_is_found_by_every_request_that_sent_it() {
    let dir = TempDir::new().unwrap();
    let store = SampleStore::open(&config(dir.path())).unwrap();
    put(&store, &sample(1, "asr"));
    let again = Sample {
        request_id: "another".to_owned(),
        ..sample(1, "asr")
    };
    store.put(&again).unwrap();

    let reader = SampleReader::open(&config(dir.path())).unwrap();
    for snapshot in [store.snapshot(), reader.snapshot()] {
        let found = snapshot.all().next().unwrap();
        assert!(snapshot.is_of_request(&found, "request-1"));
        assert!(snapshot.is_of_request(&found, "another"));
        assert!(!snapshot.is_of_request(&found, "request-2"));
    }
}

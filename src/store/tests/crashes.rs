//! What a crash or a broken disk leaves behind, byte by byte.

use super::*;

/// Puts `count` samples and returns, after each, the length of the segment file it went to.
fn fill(dir: &Path, count: u32) -> Vec<(ContentHash, PathBuf, u64)> {
    let store = SampleStore::open(&StoreConfig {
        segment_bytes_max: 4_096,
        ..config(dir)
    })
    .unwrap();
    let task = |number: u32| if number % 4 == 3 { "intent" } else { "asr" };
    (0..count)
        .map(|number| {
            let before: BTreeMap<PathBuf, u64> = lengths(dir);
            let id = put(&store, &sample(number, task(number)));
            let grown = lengths(dir)
                .into_iter()
                .find(|(path, length)| before.get(path) != Some(length));
            let (path, length) = grown.unwrap();
            (id, path, length)
        })
        .collect()
}

fn lengths(dir: &Path) -> BTreeMap<PathBuf, u64> {
    segments(dir)
        .into_iter()
        .map(|path| {
            let length = path.metadata().unwrap().len();
            (path, length)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_crash_at_any_byte_takes_what_was_being_written_and_nothing_else(
        count in 1_u32..60,
        cut in any::<prop::sample::Index>(),
        garbage in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let dir = TempDir::new().unwrap();
        let written = fill(dir.path(), count);
        // A crash tears the segment that was being written: the last of some task.
        let (_, torn, _) = written.last().unwrap();
        let length = torn.metadata().unwrap().len();
        let cut = cut.index(length as usize + 1) as u64;
        let mut bytes = std::fs::read(torn).unwrap();
        let lost = bytes.split_off(cut as usize);
        // By chance what stands there may be what was to be written.
        let spared = lost.iter().zip(&garbage).take_while(|(lost, found)| lost == found).count() as u64;
        bytes.extend(&garbage); // a file system may have grown the file before it wrote the data
        std::fs::write(torn, bytes).unwrap();

        let store = SampleStore::open(&config(dir.path())).unwrap();

        let expected: BTreeSet<ContentHash> = written
            .iter()
            .filter(|(_, path, end)| path != torn || *end <= cut + spared)
            .map(|(id, _, _)| *id)
            .collect();
        let found = contents(&store);
        prop_assert_eq!(found.keys().copied().collect::<BTreeSet<_>>(), expected);
        let numbers: BTreeMap<String, Sample> = (0..count)
            .map(|number| sample(number, if number % 4 == 3 { "intent" } else { "asr" }))
            .map(|sample| (sample.request_id.clone(), sample))
            .collect();
        for sample in found.values() {
            prop_assert_eq!(Some(sample), numbers.get(&sample.request_id));
        }
        for number in 0..count {
            store.put(&sample(number, if number % 4 == 3 { "intent" } else { "asr" })).unwrap();
        }
        prop_assert_eq!(contents(&store).len(), count as usize);
        drop(store);
        let store = SampleStore::open(&config(dir.path())).unwrap();
        prop_assert_eq!(contents(&store).len(), count as usize);
        prop_assert_eq!(store.open_report().torn_bytes, 0);
    }

    #[test]
    fn broken_bytes_anywhere_cost_the_records_they_hit_and_no_others(
        count in 1_u32..40,
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1_u8..), 1..6),
    ) {
        let dir = TempDir::new().unwrap();
        let written = fill(dir.path(), count);
        let paths = segments(dir.path());
        let mut spoilt: BTreeSet<(PathBuf, u64)> = BTreeSet::new();
        for (file, byte, mask) in hits {
            let path = &paths[file.index(paths.len())];
            let mut bytes = std::fs::read(path).unwrap();
            let at = byte.index(bytes.len());
            bytes[at] ^= mask;
            std::fs::write(path, bytes).unwrap();
            spoilt.insert((path.clone(), at as u64));
        }

        let store = SampleStore::open(&config(dir.path())).unwrap();

        let found = contents(&store);
        let mut begins: BTreeMap<&PathBuf, u64> = BTreeMap::new();
        for (id, path, end) in &written {
            let begin = begins.insert(path, *end).unwrap_or(24);
            let header_hit = spoilt.iter().any(|(hit, at)| hit == path && *at < 24);
            let hit = spoilt.iter().any(|(hit, at)| hit == path && (begin..*end).contains(at));
            if !hit && !header_hit {
                prop_assert!(found.contains_key(id), "{id} in {path:?} {begin}..{end} was not hit: {spoilt:?}");
            }
        }
        for sample in found.values() {
            let number: u32 = sample.request_id.trim_start_matches("request-").parse().unwrap();
            prop_assert_eq!(sample, &super::tests::sample(number, &sample.task));
        }
    }

    #[test]
    fn a_file_of_anything_is_opened_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), magic in any::<bool>()) {
        let dir = TempDir::new().unwrap();
        let mut content = if magic { b"SVSMPL\x00\x01".to_vec() } else { Vec::new() };
        content.extend(bytes);
        std::fs::write(dir.path().join("000000000001-x.segment"), content).unwrap();

        let store = SampleStore::open(&config(dir.path())).unwrap();

        prop_assert!(store.is_empty());
        put(&store, &sample(1, "asr"));
    }
}

/// In a process of its own, in which at last no file may have any bytes.
#[test]
fn a_disk_that_is_full_while_a_segment_is_made_leaves_nothing_in_the_way_of_the_next_try() {
    const IS_OWN: &str = "SPEECHVERSE_TEST_OWN_PROCESS";
    const NAME: &str =
        "a_disk_that_is_full_while_a_segment_is_made_leaves_nothing_in_the_way_of_the_next_try";
    if std::env::var_os(IS_OWN).is_none() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--nocapture"])
            .env(IS_OWN, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{child:?}");
        return;
    }
    let dir = TempDir::new().unwrap();
    let store = SampleStore::open(&config(dir.path())).unwrap();
    let limit_files = |bytes| {
        let limit = libc::rlimit {
            rlim_cur: bytes,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: nothing but numbers is passed on.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
    };
    // SAFETY: no handler of ours is replaced; a write beyond the limit is an error instead of the end.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };

    limit_files(0);
    let error = store.put(&sample(1, "asr")).unwrap_err();
    let StoreError::Io { source, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(source.kind(), std::io::ErrorKind::FileTooLarge);
    limit_files(libc::RLIM_INFINITY);

    put(&store, &sample(1, "asr"));
    assert_eq!(contents(&store).len(), 1);
}

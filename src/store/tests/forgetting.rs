//! What is forgotten leaves the files, and what stays is as a fresh start would find it.

use std::collections::HashMap;

use super::*;
use crate::store::sample::Question;

pub(super) fn small_segments(dir: &Path) -> StoreConfig {
    StoreConfig {
        segment_bytes_max: 4_096,
        held_out_fraction: 0.3,
        ..config(dir)
    }
}

pub(super) fn open(dir: &Path) -> SampleStore {
    SampleStore::open(&small_segments(dir)).unwrap()
}

pub(super) fn task(number: u32) -> &'static str {
    if number.is_multiple_of(3) { "intent" } else { "asr" }
}

/// 60 requests; some are corrected, some sent again under another id, some withheld afterwards.
pub(super) fn fill(store: &SampleStore) {
    for number in 0..60 {
        put(store, &sample(number, task(number)));
    }
    for number in (0..60).step_by(4) {
        let correction = Sample {
            target: format!("corrected {number}"),
            written_ms: 1_800_000_000_000,
            ..sample(number, task(number))
        };
        put(store, &correction);
    }
    for number in (0..60).step_by(5) {
        let again = Sample {
            request_id: format!("again-{number}"),
            ..sample(number, task(number))
        };
        store.put(&again).unwrap();
    }
    for number in (0..60).step_by(7) {
        let withdrawal = Sample {
            may_train: false,
            ..sample(number, task(number))
        };
        store.put(&withdrawal).unwrap();
    }
    store.sync().unwrap();
}

/// Everything that the index says.
pub(super) fn view(store: &SampleStore) -> String {
    let inner = store.inner();
    let index = &inner.index;
    let segments: BTreeMap<u64, String> = (index.segments.iter())
        .map(|(id, segment)| {
            // Notes about no sample, which stand in for others, are about nothing that can be forgotten.
            let mentions: BTreeSet<&ContentHash> =
                segment.mentions.iter().filter(|id| id.0 != [0; 32]).collect();
            let (task, bytes, entries) = (&segment.task, segment.bytes, &segment.entries);
            (*id, format!("{task} {bytes} {entries:?} {mentions:?}"))
        })
        .collect();
    let places: BTreeMap<ContentHash, (u64, usize)> =
        index.places.iter().map(|(id, place)| (*id, *place)).collect();
    let sides: BTreeMap<[u8; 16], (Split, usize)> = index
        .sides
        .iter()
        .map(|(recording, side)| (*recording, *side))
        .collect();
    let claims: BTreeMap<[u8; 16], String> = (index.claims.iter())
        .map(|(Question(question), claim)| (*question, format!("{claim:?}")))
        .collect();
    format!(
        "{segments:#?} {places:#?} {sides:#?} {claims:#?} {:#?}",
        index.shared
    )
}

pub(super) fn ids(store: &SampleStore, wanted: impl Fn(&SampleRef) -> bool) -> Vec<ContentHash> {
    let snapshot = store.snapshot();
    snapshot.all().filter(wanted).map(|sample| sample.id).collect()
}

/// The samples of a request.
pub(super) fn of_request(store: &SampleStore, id: &str) -> Vec<ContentHash> {
    let snapshot = store.snapshot();
    ids(store, |sample| snapshot.is_of_request(sample, id))
}

pub(super) fn states(snapshot: &Snapshot) -> HashMap<ContentHash, SampleState> {
    snapshot.all().map(|sample| (sample.id, sample.state)).collect()
}

pub(super) fn on_disk(dir: &Path, needle: &str) -> bool {
    segments(dir).iter().any(|path| {
        let bytes = std::fs::read(path).unwrap();
        bytes
            .windows(needle.len())
            .any(|window| window == needle.as_bytes())
    })
}

#[test]
fn what_is_forgotten_is_in_no_file_and_the_rest_is_as_a_start_finds_it() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    fill(&store);
    let forgotten: BTreeSet<ContentHash> = ["request-8", "request-20", "request-35", "request-41"]
        .iter()
        .flat_map(|id| of_request(&store, id))
        .collect();
    assert_eq!(forgotten.len(), 6, "two of them were corrected");
    assert!(on_disk(dir.path(), "corrected 8") && on_disk(dir.path(), "request-41"));
    let before = states(&store.snapshot());
    let bytes = store.bytes();

    let report = store
        .forget(&forgotten.iter().copied().collect::<Vec<_>>())
        .unwrap();

    assert_eq!((report.samples, report.bytes), (6, bytes - store.bytes()));
    for text in [
        "corrected 8",
        "target 8",
        "request-20",
        "again-20",
        "request-35",
        "request-41",
    ] {
        assert!(!on_disk(dir.path(), text), "{text}");
    }
    assert_eq!(lengths(dir.path()), store.bytes());
    let mut expected = before;
    expected.retain(|id, _| !forgotten.contains(id));
    assert_eq!(states(&store.snapshot()), expected);
    let now = view(&store);
    drop(store);
    let store = open(dir.path());
    assert_eq!(view(&store), now);
    assert_eq!(store.open_report().damaged, 0);
    put(&store, &sample(8, "intent"));
    assert!(store.forget(&[]).unwrap() == Forgotten::default());
}

pub(super) fn lengths(dir: &Path) -> u64 {
    segments(dir)
        .iter()
        .map(|path| path.metadata().unwrap().len())
        .sum()
}

#[test]
fn any_choice_of_samples_leaves_what_a_start_finds_and_the_states_of_the_others() {
    proptest!(ProptestConfig::with_cases(40), |(chosen in prop::collection::vec(any::<bool>(), 75), twice: bool)| {
        let dir = TempDir::new().unwrap();
        let store = open(dir.path());
        fill(&store);
        let all = ids(&store, |_| true);
        let forgotten: Vec<ContentHash> = (all.iter().zip(chosen.iter().cycle()))
            .filter_map(|(id, chosen)| chosen.then_some(*id))
            .collect();
        let mut expected = states(&store.snapshot());
        expected.retain(|id, _| !forgotten.contains(id));

        if twice {
            let (some, others) = forgotten.split_at(forgotten.len() / 2);
            store.forget(some).unwrap();
            store.forget(others).unwrap();
        } else {
            store.forget(&forgotten).unwrap();
        }

        prop_assert_eq!(states(&store.snapshot()), expected.clone());
        let now = view(&store);
        drop(store);
        let store = open(dir.path());
        prop_assert_eq!(view(&store), now);
        let reader = SampleReader::open(&small_segments(dir.path())).unwrap();
        prop_assert_eq!(states(&reader.snapshot()), expected);
        for number in 0..60 {
            store.put(&sample(number, task(number))).unwrap();
        }
    });
}

#[test]
fn what_a_forgotten_correction_had_superseded_stays_so() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let first = put(&store, &sample(1, "asr"));
    let correction = Sample {
        target: "corrected".to_owned(),
        written_ms: 1_800_000_000_000,
        ..sample(1, "asr")
    };
    let second = put(&store, &correction);

    store.forget(&[second]).unwrap();

    assert_eq!(
        states(&store.snapshot()),
        HashMap::from([(first, SampleState::Superseded)])
    );
    assert!(!on_disk(dir.path(), "corrected"));
    drop(store);
    let store = open(dir.path());
    assert_eq!(
        states(&store.snapshot()),
        HashMap::from([(first, SampleState::Superseded)])
    );
    store.forget(&[first]).unwrap();
    assert!(store.is_empty());
    assert!(
        !on_disk(dir.path(), "asr") || lengths(dir.path()) < 500,
        "a note without texts may stay"
    );
}

#[test]
fn a_store_that_has_forgotten_everything_is_empty_and_goes_on() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    fill(&store);

    let all = ids(&store, |_| true);
    let report = store.forget(&all).unwrap();

    assert_eq!(report.samples, all.len());
    assert!(store.is_empty() && segments(dir.path()).is_empty() && store.counts().is_empty());
    put(&store, &sample(1, "asr"));
    drop(store);
    assert_eq!(open(dir.path()).len(), 1);
}

#[test]
fn the_segment_that_is_written_can_be_written_on_after_it_forgot() {
    let dir = TempDir::new().unwrap();
    let store = SampleStore::open(&config(dir.path())).unwrap();
    let gone: Vec<ContentHash> = (0..3).map(|number| put(&store, &sample(number, "asr"))).collect();

    store.forget(&gone[1..2]).unwrap();
    put(&store, &sample(10, "asr"));

    assert_eq!(segments(dir.path()).len(), 1);
    let found = contents(&store);
    drop(store);
    let store = SampleStore::open(&config(dir.path())).unwrap();
    assert_eq!((contents(&store), store.open_report().torn_bytes), (found, 0));
    assert_eq!(store.len(), 3);
}

#[test]
fn a_snapshot_still_reads_what_stays_and_what_is_forgotten_is_a_clean_error() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    fill(&store);
    let snapshot = store.snapshot();
    let whole: HashMap<ContentHash, Sample> = snapshot
        .all()
        .map(|sample| (sample.id, snapshot.load(&sample).unwrap().sample))
        .collect();
    let gone = [of_request(&store, "request-8"), of_request(&store, "request-41")].concat();

    store.forget(&gone[..1]).unwrap();
    store.forget(&gone[1..]).unwrap(); // a segment may be written anew twice

    for sample in snapshot.all() {
        match snapshot.load(&sample) {
            Ok(stored) => assert_eq!(stored.sample, whole[&sample.id]),
            Err(error) => {
                assert!(matches!(error, StoreError::Forgotten { .. }), "{error:?}");
                assert!(gone.contains(&sample.id));
            }
        }
    }
    assert!(
        !ids(&store, |sample| gone.contains(&sample.id))
            .iter()
            .any(|_| true)
    );
}

/// Files of a folder, by name.
pub(super) fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.file_name().is_some_and(|name| name != "lock"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(&path).unwrap())
        })
        .collect()
}

#[test]
fn a_crash_at_any_point_leaves_each_segment_old_or_new_and_no_state_changed() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    fill(&store);
    let gone: BTreeSet<ContentHash> = ["request-8", "request-20", "request-0", "request-50"]
        .iter()
        .flat_map(|id| of_request(&store, id))
        .collect();
    let before_states = states(&store.snapshot());
    drop(store);
    let store = open(dir.path());
    let mut stages = vec![files(dir.path())];

    let ids_gone: Vec<ContentHash> = gone.iter().copied().collect();
    let report = store
        .inner()
        .forget(&ids_gone, &mut || stages.push(files(dir.path())));

    assert!(report.unwrap().segments >= 4);
    for (done, stage) in stages.iter().enumerate() {
        let next = stages.get(done + 1).unwrap_or(stage);
        let new = next.iter().find(|(name, bytes)| stage.get(*name) != Some(*bytes));
        for torn in [None, Some(0), Some(30), Some(usize::MAX)] {
            let dir = TempDir::new().unwrap();
            for (name, bytes) in stage {
                std::fs::write(dir.path().join(name), bytes).unwrap();
            }
            if let (Some(torn), Some((name, new))) = (torn, new) {
                let unfinished = dir.path().join(format!("{name}.unfinished"));
                std::fs::write(unfinished, &new[..torn.min(new.len())]).unwrap();
            }

            let reader = SampleReader::open(&small_segments(dir.path())).unwrap();
            let store = open(dir.path());

            let found = states(&store.snapshot());
            assert_eq!(states(&reader.snapshot()), found);
            for (id, state) in &before_states {
                match found.get(id) {
                    Some(found) => assert_eq!(found, state, "{done} segments, {id}"),
                    None => assert!(gone.contains(id), "{id} is lost"),
                }
            }
            let names: Vec<String> = files(dir.path()).into_keys().collect();
            assert!(names.iter().all(|name| name.ends_with(".segment")), "{names:?}");
            let left = ids(&store, |sample| gone.contains(&sample.id));
            store.forget(&left).unwrap();
            assert!(ids(&store, |sample| gone.contains(&sample.id)).is_empty());
            assert!(!on_disk(dir.path(), "corrected 20") && !on_disk(dir.path(), "target 50"));
        }
    }
}

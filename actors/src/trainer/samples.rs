//! The samples of a cycle: which are learned from, which validate and which judge, and how they are read.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use speechverse::store::{SampleRef, Snapshot, Split, StoreError};
use speechverse::training::trainer_config::TrainerConfig;
use speechverse::training::{AudioSource, Example};
use tracing::warn;

use crate::question::variables_of;

/// Fewest samples that a candidate is looked at with; training samples make up what the store lacks. How many
/// a verdict takes is `trainer.held_out_samples_min`.
const HELD_OUT_MIN: usize = 2;
/// One in so many of the samples to train on validates a cycle's steps instead, at least one.
const VALIDATED_SHARE: usize = 10;

/// What a cycle does with the samples of a snapshot; each is in one of these, together with all others of its
/// recording.
#[derive(Clone, Debug)]
pub struct Sides {
    /// To learn from.
    pub train: Vec<SampleRef>,
    /// To choose the best step by.
    pub valid: Vec<SampleRef>,
    /// To judge the candidate by.
    pub held_out: Vec<SampleRef>,
}

impl Sides {
    /// Samples of all sides.
    pub fn len(&self) -> usize {
        self.train.len() + self.valid.len() + self.held_out.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Why a cycle does not even begin with so few samples; none where there are enough.
    pub fn too_few(&self, config: &TrainerConfig) -> Option<String> {
        let (all, needed) = (self.len(), config.samples_min);
        (all < needed).then(|| {
            format!("the store has {all} samples that may be trained on, `trainer.samples_min` is {needed}")
        })
    }
}

/// The sides of a snapshot. Where fewer than two samples are held out, some training samples are held out of
/// this cycle; one in ten of the others validates.
pub fn sides(snapshot: &Snapshot) -> Sides {
    let mut train: Vec<SampleRef> = snapshot.refs(Split::Train).collect();
    let mut held_out: Vec<SampleRef> = snapshot.refs(Split::HeldOut).collect();
    if held_out.len() < HELD_OUT_MIN && train.len() > HELD_OUT_MIN {
        held_out.extend(set_aside(&mut train, HELD_OUT_MIN - held_out.len()));
    }
    let count = (train.len() / VALIDATED_SHARE).max(1);
    let valid = set_aside(&mut train, count);
    Sides {
        train,
        valid,
        held_out,
    }
}

/// Takes at least `count` samples away, as whole recordings; less where only one recording would be left.
/// Recordings with few samples go first, so that it is not much more, and among these the ones with the
/// lowest identity, so that the choice is stable.
fn set_aside(samples: &mut Vec<SampleRef>, count: usize) -> Vec<SampleRef> {
    let mut sizes: BTreeMap<[u8; 16], usize> = BTreeMap::new();
    for sample in samples.iter() {
        *sizes.entry(sample.recording).or_default() += 1;
    }
    let mut recordings: Vec<(usize, [u8; 16])> = (sizes.into_iter())
        .map(|(recording, size)| (size, recording))
        .collect();
    recordings.sort_unstable();
    recordings.pop(); // one stays
    let (mut taken, mut found) = (HashSet::new(), 0);
    for (size, recording) in recordings {
        if found >= count {
            break;
        }
        taken.insert(recording);
        found += size;
    }
    samples
        .extract_if(.., |sample| taken.contains(&sample.recording))
        .collect()
}

/// A sample of the store as an example.
pub(super) struct Stored {
    pub(super) example: Example,
    /// Whether its answer is constrained to the labels in force.
    pub(super) constrained: bool,
}

/// Reads samples. One that the disk has changed is left out: it must not fail every cycle from now on.
pub(super) fn read(snapshot: &Arc<Snapshot>, samples: &[SampleRef]) -> Vec<Stored> {
    let readable = samples.iter().filter_map(|sample| {
        let stored = stored(snapshot, sample);
        stored
            .inspect_err(|error| {
                warn!(id = %sample.id, task = %sample.task, %error, "a stored sample cannot be read, the cycle leaves it out");
            })
            .ok()
    });
    readable.collect()
}

fn stored(snapshot: &Arc<Snapshot>, place: &SampleRef) -> Result<Stored, StoreError> {
    let stored = snapshot.load(place)?;
    let (id, sample) = (stored.id.to_string(), stored.sample);
    let variables = variables_of(&sample);
    let (reader, place) = (Arc::clone(snapshot), place.clone());
    let seconds = f64::from(place.audio_seconds);
    let example = Example {
        audio: AudioSource::Lazy {
            id: id.clone(),
            load: Arc::new(move || {
                reader
                    .load(&place)
                    .map(|stored| stored.sample.audio)
                    .map_err(|error| error.to_string())
            }),
        },
        id,
        seconds,
        task: sample.task,
        instruction: Some(sample.instruction),
        target: sample.target,
        targets: BTreeMap::new(),
        variables: Arc::new(variables),
        domain: None,
        text: None,
    };
    Ok(Stored {
        example,
        constrained: sample.constrained,
    })
}

#[cfg(test)]
mod tests {
    use speechverse::store::config::StoreConfig;
    use speechverse::store::{Sample, SampleSource, SampleStore};

    use super::*;

    /// A snapshot of recordings with so many samples each, of which none is held out by the store.
    fn snapshot(samples_of_recordings: &[usize]) -> Snapshot {
        let folder = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            dir: folder.path().to_owned(),
            held_out_fraction: 0.0,
            ..StoreConfig::default()
        };
        let store = SampleStore::open(&config).unwrap();
        for (recording, samples) in samples_of_recordings.iter().enumerate() {
            for number in 0..*samples {
                let sample = Sample {
                    audio: vec![recording as f32 / 1_024.0; 100],
                    instruction: format!("question {number}"),
                    target: "yes".to_owned(),
                    task: "instruction".to_owned(),
                    source: SampleSource {
                        topic: "labels".to_owned(),
                        partition: 0,
                        offset: (recording * 1_000 + number) as i64,
                    },
                    request_source: String::new(),
                    request_id: format!("{recording}-{number}"),
                    labels: Vec::new(),
                    fields: BTreeMap::new(),
                    constrained: false,
                    written_ms: 0,
                    received_ms: 0,
                    may_train: true,
                };
                store.put(&sample).unwrap();
            }
        }
        store.snapshot()
    }

    fn recordings(samples: &[SampleRef]) -> HashSet<[u8; 16]> {
        samples.iter().map(|sample| sample.recording).collect()
    }

    #[test]
    fn all_samples_of_a_recording_are_on_one_side() {
        let Sides {
            train,
            valid,
            held_out,
        } = sides(&snapshot(&[5; 20]));

        assert_eq!((train.len(), valid.len(), held_out.len()), (85, 10, 5));
        let all = [&train, &valid, &held_out].map(|side| recordings(side));
        assert_eq!(all.each_ref().map(HashSet::len), [17, 2, 1]);
        assert!(all[0].is_disjoint(&all[1]) && all[0].is_disjoint(&all[2]) && all[1].is_disjoint(&all[2]));
    }

    #[test]
    fn a_recording_with_most_of_the_samples_is_learned_from() {
        let sizes = [80, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];

        let Sides {
            train,
            valid,
            held_out,
        } = sides(&snapshot(&sizes));

        assert_eq!((train.len(), valid.len(), held_out.len()), (80, 8, 2));
    }

    #[test]
    fn a_single_recording_is_learned_from_and_judges_nothing() {
        let sides = sides(&snapshot(&[12]));

        assert_eq!(
            (sides.train.len(), sides.valid.len(), sides.held_out.len()),
            (12, 0, 0)
        );
    }
}

use proptest::prelude::*;

use super::*;

fn sample(audio: Vec<f32>) -> Sample {
    Sample {
        audio,
        instruction: "Transcribe.".to_owned(),
        target: "lights on".to_owned(),
        task: "asr".to_owned(),
        source: SampleSource {
            topic: "labels".to_owned(),
            partition: 3,
            offset: 77,
        },
        request_source: "/phone".to_owned(),
        request_id: "r-1".to_owned(),
        labels: vec!["lights on".to_owned(), "lights off".to_owned()],
        fields: BTreeMap::from([("room".to_owned(), "kitchen".to_owned())]),
        constrained: false,
        written_ms: 1_699_999_999_999,
        received_ms: 1_700_000_000_000,
        may_train: true,
    }
}

#[test]
fn sixteen_bit_audio_comes_back_exactly() {
    let audio: Vec<f32> = (-32_768..32_768)
        .step_by(97)
        .map(|value| value as f32 / 32_768.0)
        .collect();

    let stored = Asked::new(&sample(audio.clone())).into_stored();

    assert_eq!(stored.sample, sample(audio));
    assert!(!stored.rounded && !stored.clipped);
}

#[test]
fn audio_that_sixteen_bits_cannot_hold_is_flagged() {
    let rounded = Asked::new(&sample(vec![0.1])).into_stored();
    let clipped = Asked::new(&sample(vec![-1.5, 1.5])).into_stored();

    assert!(rounded.rounded && !rounded.clipped);
    assert!((rounded.sample.audio[0] - 0.1).abs() <= 0.5 / FULL_SCALE);
    assert!(clipped.clipped);
    assert_eq!(clipped.sample.audio, [-1.0, 32_767.0 / 32_768.0]);
}

#[test]
fn identity_is_audio_instruction_and_target_and_nothing_else() {
    let of = |change: fn(&mut Sample)| {
        let mut sample = sample(vec![0.25; 4]);
        change(&mut sample);
        Written::new(&sample).content
    };
    let same = of(|_| {});

    assert_eq!(of(|sample| sample.request_id = "other".to_owned()), same);
    assert_eq!(of(|sample| sample.source.offset = 0), same);
    assert_ne!(of(|sample| sample.audio[0] = 0.5), same);
    assert_ne!(of(|sample| sample.target = "lights off".to_owned()), same);
    assert_ne!(of(|sample| sample.instruction = "Translate.".to_owned()), same);
    let moved = of(|sample| {
        sample.instruction = "Transcribe.l".to_owned();
        sample.target = "ights on".to_owned();
    });
    assert_ne!(moved, same);
}

#[test]
fn a_question_is_what_is_asked_and_the_request_that_asks_it() {
    let of = |change: fn(&mut Sample)| {
        let mut sample = sample(vec![0.25; 4]);
        change(&mut sample);
        Asked::new(&sample).claim().question
    };
    let same = of(|_| {});

    assert_eq!(of(|sample| sample.target = "lights off".to_owned()), same);
    assert_eq!(of(|sample| sample.source.offset = 0), same);
    assert_ne!(of(|sample| sample.request_source = "/other".to_owned()), same);
    assert_ne!(of(|sample| sample.request_id = "r-2".to_owned()), same);
    assert_ne!(of(|sample| sample.instruction = "Translate.".to_owned()), same);
    assert_ne!(of(|sample| sample.task = "intent".to_owned()), same);
    assert_ne!(of(|sample| sample.audio[0] = 0.5), same);
}

/// The sample of an entry that was written and read.
fn read_back(entry: &Entry, number: u8) -> StoredSample {
    let bytes = entry.to_bytes();
    assert_eq!(bytes[0], number, "the number of the variant is on disk");
    let read = Entry::from_bytes(&bytes).unwrap();
    read.into_sample().unwrap().into_stored()
}

#[test]
fn a_sample_of_the_time_before_requests_had_a_source_is_read() {
    let written = Written::new(&sample(vec![0.25; 4]));
    let stored = read_back(&Entry::Sample(Box::new(written)), 0);

    let wanted = Sample {
        request_source: String::new(),
        labels: Vec::new(),
        fields: BTreeMap::new(),
        written_ms: 1_700_000_000_000,
        ..sample(vec![0.25; 4])
    };
    assert_eq!(stored.sample, wanted);
}

#[test]
fn a_sample_of_the_time_before_fields_were_kept_is_read() {
    let Asked {
        request_source,
        labels,
        written_ms,
        sample: written,
        ..
    } = Asked::new(&sample(vec![0.25; 4]));
    let named = Named {
        request_source,
        labels,
        written_ms,
        sample: written,
    };
    let stored = read_back(&Entry::Named(Box::new(named)), 2);

    let wanted = Sample {
        fields: BTreeMap::new(),
        constrained: true, // it lists labels
        ..sample(vec![0.25; 4])
    };
    assert_eq!(stored.sample, wanted);
}

#[test]
fn fields_and_constraint_come_back_from_disk() {
    let stored = read_back(&Entry::Asked(Box::new(Asked::new(&sample(vec![0.25; 4])))), 4);

    assert_eq!(stored.sample, sample(vec![0.25; 4]));
}

#[test]
fn the_asked_share_of_recordings_is_held_out() {
    let held = (0..20_000_u32)
        .filter(|number| {
            let hash: [u8; 32] = Sha256::digest(number.to_le_bytes()).into();
            is_held_out(hash[..16].try_into().unwrap(), 0.1)
        })
        .count();

    assert!((1_800..2_200).contains(&held), "{held} of 20000");
    assert!(!is_held_out(&[0; 16], 0.0));
}

proptest! {
    #[test]
    fn bytes_that_are_no_record_are_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(entry) = Entry::from_bytes(&bytes) {
            prop_assert_eq!(entry.to_bytes(), bytes);
        }
    }
}

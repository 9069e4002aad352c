use super::*;
use crate::training::config::TelephoneCodec;
use crate::training::example::AudioSource;
use proptest::prelude::*;

fn examples(count: usize) -> Arc<Vec<Example>> {
    let one = |at: usize| Example {
        id: format!("e{at}"),
        audio: AudioSource::Samples(vec![0.1; 100 * (1 + at % 7)].into()),
        seconds: 0.1 * (1 + at % 7) as f64,
        task: "asr".into(),
        instruction: None,
        targets: Default::default(),
        variables: Default::default(),
        target: "x".into(),
        domain: None,
        text: None,
    };
    Arc::new((0..count).map(one).collect())
}

fn args(examples: Arc<Vec<Example>>) -> BatchReaderArgs {
    let count = examples.len();
    let choices = PromptVariants::verbatim(vec!["a".to_owned(), "b".to_owned()].into());
    BatchReaderArgs {
        examples,
        variants: vec![choices; count],
        weights: vec![1.0; count],
        rows_max: 4,
        seconds_max: 2.0,
        augment: Some(AugmentConfig {
            noise: 0.5,
            ..Default::default()
        }),
        features: None,
        noises: Noises::default(),
        samples_max: None,
        seed: 1,
        stage: 0,
        start: (0, 0),
        ahead: 2,
    }
}

#[test]
fn a_reader_that_starts_later_gives_what_an_earlier_one_would_have_given() {
    let whole = BatchReader::start(args(examples(30))).unwrap();
    let all: Vec<LoadedBatch> = (0..20).map(|_| whole.next().unwrap()).collect();
    let later = all
        .iter()
        .position(|batch| batch.epoch == 1 && batch.position == 2)
        .unwrap();

    let resumed = BatchReader::start(BatchReaderArgs {
        start: (1, 2),
        ..args(examples(30))
    })
    .unwrap();

    for expected in &all[later..later + 4] {
        let found = resumed.next().unwrap();
        assert_eq!((found.epoch, found.position), (expected.epoch, expected.position));
        assert_eq!(
            (&found.rows, &found.instructions),
            (&expected.rows, &expected.instructions)
        );
        let samples = |batch: &LoadedBatch| -> Vec<Vec<f32>> {
            let clips = batch.clips.iter();
            clips.map(|clip| clip.audio().unwrap().to_vec()).collect()
        };
        assert_eq!(samples(&found), samples(expected));
    }
}

#[test]
fn epochs_differ_in_order() {
    let seconds = vec![1.0; 64];
    let plan = |epoch| plan_epoch(&seconds, &[1.0; 64], 8, 100.0, &[1, 0, epoch]);

    assert_eq!(plan(0), plan(0));
    assert_ne!(plan(0), plan(1));
}

#[test]
fn a_weight_is_the_mean_number_of_visits_per_epoch() {
    let weights: Vec<f64> = (0..400).map(|at| if at < 200 { 2.0 } else { 0.25 }).collect();
    let plan = plan_epoch(&[1.0; 400], &weights, 8, 100.0, &[1]);
    let heavy = plan.iter().flatten().filter(|row| **row < 200).count();
    let light = plan.iter().flatten().filter(|row| **row >= 200).count();

    assert_eq!(heavy, 400);
    assert!((20..80).contains(&light), "{light}");
}

#[test]
fn an_unreadable_clip_is_told_and_left_out() {
    let mut list: Vec<Example> = examples(3).to_vec();
    list[1].audio = AudioSource::File("no/such/file.wav".into());

    let reader = BatchReader::start(args(Arc::new(list))).unwrap();
    let batch = reader.next().unwrap();

    assert_eq!(batch.rows.len(), 2);
    assert!(batch.unreadable[0].contains("e1") && batch.unreadable[0].contains("no/such/file.wav"));
}

#[test]
fn nothing_to_read_is_an_error_and_not_an_endless_loop() {
    assert!(BatchReader::start(args(examples(0))).is_err());
    let nothing = BatchReaderArgs {
        weights: vec![0.0; 3],
        ..args(examples(3))
    };
    assert!(BatchReader::start(nothing).is_err());
}

proptest! {
    #[test]
    fn every_sample_is_in_one_batch_and_no_batch_exceeds_its_limits(
        seconds in proptest::collection::vec(0.1f64..20.0, 1..300), rows in 1usize..20, limit in 1.0f64..60.0, seed in any::<u64>()
    ) {
        let plan = plan_epoch(&seconds, &vec![1.0; seconds.len()], rows, limit, &[seed]);
        let mut seen: Vec<usize> = plan.iter().flatten().copied().collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..seconds.len()).collect::<Vec<_>>());
        for batch in &plan {
            let longest = batch.iter().map(|row| seconds[*row]).fold(0.0, f64::max);
            prop_assert!(batch.len() <= rows && (batch.len() == 1 || longest * batch.len() as f64 <= limit));
        }
    }
}

#[test]
fn masks_of_features_have_no_part_in_their_name_and_changes_of_the_audio_have() {
    let folder = tempfile::tempdir().unwrap();
    let features = StageFeatures {
        cache: FeatureCache::open(folder.path(), 1_000).unwrap(),
        common: "an encoder".to_owned(),
        variants: 1,
    };
    let audio = AudioSource::Lazy {
        id: "a clip".to_owned(),
        load: Arc::new(|| unreachable!("a name needs no samples")),
    };
    let noises = Noises::default();
    let key = |config: AugmentConfig| {
        let changes = Changes {
            config: &config,
            noises: &noises,
            turn: 0,
        };
        features.key(&audio, Some(&changes)).unwrap()
    };
    let plain = AugmentConfig::default();

    let masked = AugmentConfig {
        time_masks: 2,
        time_mask_frames_max: 7,
        feature_masks: 3,
        feature_mask_width_max: 5,
        ..plain.clone()
    };
    let louder = AugmentConfig {
        gain: 0.7,
        ..plain.clone()
    };

    assert_eq!(key(masked), key(plain.clone()));
    assert_ne!(key(louder), key(plain));
}

#[test]
fn which_noises_were_recorded_is_part_of_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let features = StageFeatures {
        cache: FeatureCache::open(folder.path(), 1_000).unwrap(),
        common: "an encoder".to_owned(),
        variants: 3,
    };
    let audio = AudioSource::Lazy {
        id: "a clip".to_owned(),
        load: Arc::new(|| unreachable!("a name needs no samples")),
    };
    let config = AugmentConfig::default();
    let key = |noises: &[Vec<f32>]| {
        let changes = Changes {
            config: &config,
            noises: &Noises::new(noises.to_vec()),
            turn: 4,
        };
        features.key(&audio, Some(&changes)).unwrap()
    };

    let without = FeatureKey::new(&audio, "an encoder", "{} variant 1").unwrap();
    assert_eq!(key(&[]), without);
    let (street, rain, crowd) = (vec![0.1; 9], vec![0.2; 8], vec![0.3; 8]);
    let first = key(&[street.clone(), rain.clone()]);
    assert_eq!(key(&[street.clone(), rain.clone()]), first);
    let others = [
        vec![],
        vec![street.clone()],
        vec![street.clone(), crowd],
        vec![street.clone(), rain[1..].to_vec()],
        vec![rain, street],
    ];
    for other in others {
        assert_ne!(key(&other), first, "{other:?}");
    }
}

/// Settings that have their defaults are not named, so their defaults must stay what they are: another one
/// would find features of the old one.
#[test]
fn settings_of_changes_are_named_by_what_differs_from_defaults_that_never_change() {
    let default = serde_json::to_string(&AugmentConfig::default()).unwrap();
    assert_eq!(
        default,
        concat!(
            r#"{"gain":0.0,"gain_db_max":9.0,"speed":0.0,"speed_change_max":0.1,"noise":0.0,"noise_db_min":10.0,"#,
            r#""noise_db_max":30.0,"telephone":0.0,"telephone_codecs":["none"],"reverberation":0.0,"#,
            r#""reverberation_seconds_max":0.6,"time_masks":0,"time_mask_frames_max":20,"feature_masks":0,"#,
            r#""feature_mask_width_max":32}"#
        )
    );
    let config = AugmentConfig {
        telephone: 0.5,
        gain: 1.0,
        telephone_codecs: vec![TelephoneCodec::Gsm],
        ..AugmentConfig::default()
    };
    assert_eq!(
        config.differing_from_defaults(),
        r#"{"gain":1.0,"telephone":0.5,"telephone_codecs":["gsm"]}"#
    );
}

#[test]
fn a_sound_that_is_drawn_is_another_in_each_epoch_and_the_same_for_each_variant_of_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let features = StageFeatures {
        cache: FeatureCache::open(folder.path(), 1_000).unwrap(),
        common: "an encoder".to_owned(),
        variants: 2,
    };
    let mut example = examples(1)[0].clone();
    example.audio = AudioSource::Drawn {
        id: "anything".to_owned(),
        draw: Arc::new(|random| Ok((0..50).map(|_| random.unit() as f32).collect())),
    };
    let (config, noises) = (AugmentConfig::default(), Noises::default());
    let load = |turn, seed, features: Option<&StageFeatures>| {
        let changes = Changes {
            config: &config,
            noises: &noises,
            turn,
        };
        let random = &mut SplitMix::new(&[seed]);
        let clip = load_clip(&example, None, Some(&changes), features, random).unwrap();
        clip.audio().unwrap().to_vec()
    };

    assert_ne!(load(0, 1, None), load(0, 2, None));
    assert_eq!(load(0, 1, None), load(0, 1, None));
    let cached = |turn, seed| load(turn, seed, Some(&features));
    assert_eq!(cached(0, 1), cached(2, 2));
    assert_ne!(cached(0, 1), cached(1, 1));
}

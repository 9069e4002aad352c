//! Runs on cached features, with CTC segments for positions, and with clips in which nothing is said.

use super::*;
use crate::models::config::{Activation, Positions};

/// Clips as WAV files under `folder`.
pub(super) fn in_files(folder: &Path, mut list: Vec<Example>) -> Vec<Example> {
    std::fs::create_dir_all(folder).unwrap();
    for (at, example) in list.iter_mut().enumerate() {
        let path = folder.join(format!("{at}.wav"));
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: 16_000,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut wav = hound::WavWriter::create(&path, spec).unwrap();
        for sample in example.audio.load().unwrap() {
            wav.write_sample((sample * 32_000.0) as i16).unwrap();
        }
        wav.finalize().unwrap();
        example.audio = AudioSource::File(path);
    }
    list
}

fn cached(place: &Place, name: &str, stages: Vec<StageConfig>) -> TrainingConfig {
    let mut config = place.config(name, stages);
    for stage in &mut config.stages {
        stage.cached = true;
    }
    config.feature_cache.dir = Some(place.folder.path().join("features"));
    config.augment.time_masks = 1;
    config.augment.time_mask_frames_max = 3;
    config.validation.transcribed_clips_max = 0;
    config
}

fn train_on(place: &Place, config: TrainingConfig, train: &[Example], valid: &[Example]) -> TrainOutcome {
    let args = EngineArgs {
        train: train.to_vec(),
        valid: valid.to_vec(),
        ..place.args(config)
    };
    Engine::new(args).unwrap().run(&mut |_| {}).unwrap()
}

#[test]
fn a_clip_is_encoded_once_and_a_run_that_finds_its_features_equals_the_one_that_made_them() {
    let place = Place::new();
    let train = in_files(&place.folder.path().join("train"), examples(8));
    let valid = in_files(&place.folder.path().join("valid"), examples(4));
    let stages = || vec![stage(StageKind::CtcAlign, 8), stage(StageKind::LoraWarmup, 8)];

    let first = train_on(&place, cached(&place, "first", stages()), &train, &valid);
    // Nothing can be decoded any more; keys are made of size and time of the files.
    for example in train.iter().chain(&valid) {
        let AudioSource::File(path) = &example.audio else {
            panic!("written above");
        };
        let facts = std::fs::metadata(path).unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        std::io::Write::write_all(&mut &file, &vec![b'x'; facts.len() as usize]).unwrap();
        file.set_modified(facts.modified().unwrap()).unwrap();
        assert!(example.audio.load().is_err());
    }
    let second = train_on(&place, cached(&place, "second", stages()), &train, &valid);

    assert!(second.adapter.same_content(&first.adapter));
    assert_eq!(lora_bytes(&second), lora_bytes(&first));
    assert_eq!(second.best, first.best);
}

#[test]
fn the_layer_mix_rests_where_features_are_cached_and_learns_where_not() {
    let place = Place::new();
    let train = in_files(&place.folder.path().join("train"), examples(8));
    let mix = |outcome: &TrainOutcome| outcome.adapter.mix_weights().to_vec();
    let stages = || vec![stage(StageKind::CtcAlign, 4)];
    let fresh = {
        let info = place.networks.speech_llm.llm().info();
        let form = AdapterSettings::default();
        let config = AdapterConfig::new(&form, &place.networks.encoder.info(), &info).unwrap();
        let adapter = SpeechAdapter::new(config, 1.0, 1, tch::Device::Cpu).unwrap();
        adapter.snapshot("fresh").unwrap().mix_weights().to_vec()
    };

    let rests = train_on(&place, cached(&place, "rests", stages()), &train, &[]);
    let learns = train_on(&place, place.config("learns", stages()), &train, &[]);

    assert_eq!(mix(&rests), fresh);
    assert_ne!(mix(&learns), fresh);
}

#[test]
fn segments_are_read_after_an_alignment_beside_clips_in_which_nothing_is_said() {
    let place = Place::new();
    let mut train = examples(8);
    train[6].target = String::new();
    train[6].text = Some(String::new());
    // What was said is not known of one clip, and is something else than the answer of another.
    train[7].task = "mood".into();
    train[7].target = "happy".into();
    train[5].task = "mood".into();
    train[5].target = "sad".into();
    train[5].text = Some("ab".into());
    let config = |name, stage| {
        let mut config = place.config(name, vec![stage]);
        config.prompts.insert("mood".into(), vec!["How?".into()]);
        config
    };
    let align = config("align", stage(StageKind::CtcAlign, 6));
    let aligned = train_on(&place, align, &train, &examples(4));
    let classes = aligned.adapter.tensors()["ctc.classes"]
        .integers()
        .unwrap()
        .to_vec();
    let multitask = StageConfig {
        ctc_weight: 0.3,
        ..stage(StageKind::Multitask, 6)
    };
    let mut config = config("segments", multitask);
    config.adapter.positions = Some(Positions::CtcSegments);
    config.adapter.summary = Some(true);
    let args = EngineArgs {
        // Fewer words than before: the head keeps those that it knows.
        train: train[4..].to_vec(),
        start_from: Some((aligned.adapter.clone(), None)),
        ..place.args(config)
    };

    let outcome = Engine::new(args).unwrap().run(&mut |_| {}).unwrap();

    assert_eq!((outcome.steps, outcome.skipped), (6, 0));
    assert!(outcome.lora.is_some());
    let form = outcome.adapter.config();
    assert_eq!((form.positions, form.summary), (Positions::CtcSegments, true));
    let known = outcome.adapter.tensors()["ctc.classes"].integers().unwrap();
    assert!(
        classes.iter().all(|class| known.contains(class)),
        "{classes:?} {known:?}"
    );
    let moved = |name: &str| outcome.adapter.tensors()[name] != aligned.adapter.tensors()[name];
    assert!(moved("ctc.blank") && moved("downsample.0.conv.weight"));
    // The same weights in the other form of segments: what comes before the head learns through it too.
    let mut posteriors = place.config("posteriors", vec![stage(StageKind::Asr, 2)]);
    posteriors.adapter.positions = Some(Positions::CtcPosteriors);
    let args = EngineArgs {
        start_from: Some((outcome.adapter.clone(), None)),
        ..place.args(posteriors)
    };
    let other = Engine::new(args).unwrap().run(&mut |_| {}).unwrap();
    assert_eq!((other.steps, other.skipped), (2, 0));
    assert_eq!(other.adapter.config().positions, Positions::CtcPosteriors);
    let convolution = |adapter: &AdapterSnapshot| adapter.tensors()["downsample.0.conv.weight"].clone();
    assert!(convolution(&other.adapter) != convolution(&outcome.adapter));
    // A next run whose settings say nothing about the form goes on in this one.
    let args = EngineArgs {
        start_from: Some((outcome.adapter.clone(), outcome.lora.clone())),
        ..place.args(place.config("on", vec![stage(StageKind::Asr, 1)]))
    };
    let on = Engine::new(args).unwrap().run(&mut |_| {}).unwrap();
    let kept = on.adapter.config();
    assert_eq!((kept.positions, kept.summary), (form.positions, form.summary));
}

/// Clips of the task `mood`, and settings whose adapter has a summary.
fn moods(place: &Place) -> (Vec<Example>, impl Fn(&str, Vec<StageConfig>) -> TrainingConfig) {
    let mut clips = examples(12);
    for (at, example) in clips.iter_mut().enumerate() {
        example.task = "mood".into();
        example.target = ["happy", "sad"][at % 2].into();
    }
    let tasks = place.folder.path().join("tasks");
    std::fs::create_dir_all(&tasks).unwrap();
    let file = "name = \"mood\"\ndescription = \"Mood.\"\nmetric = \"uar\"\nprompts = [\"How is it?\"]\ninstruction = \"How?\"\n[answer]\nformat = \"label\"\n\
                [[labels]]\nname = \"happy\"\n[[labels]]\nname = \"sad\"\n";
    std::fs::write(tasks.join("mood.toml"), file).unwrap();
    let config = move |name: &str, stages| {
        let mut config = place.config(name, stages);
        config.tasks_dir = Some(tasks.clone());
        config.adapter.summary = Some(true);
        config
    };
    (clips, config)
}

fn align_moods(steps: u64) -> StageConfig {
    StageConfig {
        summary_tasks: vec!["mood".into()],
        ..stage(StageKind::SummaryAlign, steps)
    }
}

#[test]
fn an_alignment_of_the_summary_moves_it_alone() {
    let place = Place::new();
    let (clips, config) = moods(&place);
    let first = config("first", vec![stage(StageKind::Multitask, 2)]);
    let first = train_on(&place, first, &clips, &[]);
    assert!(first.adapter.config().summary_tasks.is_empty());
    let mut losses = Vec::new();
    let args = EngineArgs {
        train: clips.clone(),
        valid: clips[..4].to_vec(),
        start_from: Some((first.adapter.clone(), first.lora.clone())),
        ..place.args(config("aligned", vec![align_moods(40)]))
    };

    let engine = Engine::new(args).unwrap();
    let aligned = engine.run(&mut |event| {
        if let TrainEvent::Validated { loss, .. } = event {
            losses.push(*loss);
        }
    });

    let aligned = aligned.unwrap();
    assert_eq!(aligned.adapter.config().summary_tasks, ["mood"]);
    // No stage touches the low-rank updates: they stay part of the result.
    assert_eq!(lora_bytes(&aligned), lora_bytes(&first));
    assert!(aligned.adapter.lora().is_some());
    for (name, tensor) in aligned.adapter.tensors() {
        let moved = *tensor != first.adapter.tensors()[name];
        assert_eq!(moved, name.starts_with("summary."), "{name}");
    }
    assert!(losses.last() < losses.first(), "{losses:?}");

    // A next-token stage that names no task of the summary leaves it as it was aligned; one that does, not.
    for (name, tasks, frozen) in [
        ("frozen", vec![], true),
        ("learns", vec!["mood".to_owned()], false),
    ] {
        let next = StageConfig {
            summary_tasks: tasks,
            ..stage(StageKind::Multitask, 2)
        };
        let args = EngineArgs {
            train: clips.clone(),
            valid: Vec::new(),
            start_from: Some((aligned.adapter.clone(), aligned.lora.clone())),
            ..place.args(config(name, vec![next]))
        };
        let next = Engine::new(args).unwrap().run(&mut |_| {}).unwrap();
        for (tensor, value) in next.adapter.tensors() {
            let same = *value == aligned.adapter.tensors()[tensor];
            assert!(
                !tensor.starts_with("summary.") || same == frozen,
                "{name} {tensor}"
            );
        }
        assert!(!next.adapter.same_content(&aligned.adapter));
    }
}

#[test]
fn an_alignment_of_what_is_said_moves_nothing_else_and_makes_each_clips_positions_once() {
    let place = Place::new();
    let (mut clips, config) = moods(&place);
    for example in clips.iter_mut().filter(|example| example.target == "sad") {
        let tone: Vec<f32> = (0..5_000u16)
            .map(|at| (f32::from(at) * 0.2).sin() * 0.3)
            .collect();
        example.audio = AudioSource::Samples(tone.into()); // the others are noise
    }
    let clips = in_files(&place.folder.path().join("clips"), clips);
    let form = |mut config: TrainingConfig, sentence: bool| {
        config.adapter.summary = None;
        config.adapter.positions = Some(Positions::CtcSegments);
        config.adapter.sentence = sentence.then_some(true);
        config
    };
    let first = form(config("first", vec![stage(StageKind::CtcAlign, 6)]), false);
    let first = train_on(&place, first, &examples(8), &[]);
    let align = |cached: bool| StageConfig {
        sentence_tasks: vec!["mood".into()],
        segment_dropout: 0.0,
        augment: false,
        cached,
        ..stage(StageKind::SentenceAlign, 60)
    };
    let run = |name: &str, cached: bool| {
        let mut losses = Vec::new();
        let mut config = form(config(name, vec![align(cached)]), true);
        config.feature_cache.dir = Some(place.folder.path().join("features"));
        config.validation.every_steps = 30;
        let args = EngineArgs {
            train: clips.clone(),
            valid: clips.clone(),
            start_from: Some((first.adapter.clone(), None)),
            ..place.args(config)
        };
        let outcome = Engine::new(args).unwrap().run(&mut |event| {
            if let TrainEvent::Validated { loss, .. } = event {
                losses.push(*loss);
            }
        });
        (outcome.unwrap(), losses)
    };

    let (aligned, losses) = run("aligned", true);

    let version = aligned.adapter.config();
    assert!(version.sentence && version.sentence_tasks == ["mood"] && version.ctc_trained);
    let tensors = first.adapter.tensors();
    for (name, tensor) in aligned.adapter.tensors() {
        let kept = tensors.get(name) == Some(tensor);
        assert_eq!(kept, !name.starts_with("sentence."), "{name}");
    }
    assert!(losses.len() == 2 && losses[1] < 0.1, "0.69 by chance: {losses:?}");
    // Without a cache positions are made anew in each step, of f32 instead of bf16.
    let (_, anew) = run("anew", false);
    for (kept, anew) in losses.iter().zip(&anew) {
        assert!((kept - anew).abs() < 0.1, "{losses:?} {anew:?}");
    }
    // Behind it, other stages let it rest.
    let args = EngineArgs {
        train: clips.clone(),
        start_from: Some((aligned.adapter.clone(), None)),
        ..place.args(config("on", vec![stage(StageKind::Multitask, 2)]))
    };
    let on = Engine::new(args).unwrap().run(&mut |_| {}).unwrap();
    assert!(on.adapter.config().sentence_tasks == ["mood"]);
    let name = "sentence.conv.weight";
    assert_eq!(on.adapter.tensors()[name], aligned.adapter.tensors()[name]);
}

#[test]
fn dropout_of_what_is_said_leaves_the_segments_that_are_kept_as_they_are() {
    let place = Place::new();
    let (clips, config) = moods(&place);
    let clips = in_files(&place.folder.path().join("clips"), clips);
    let form = |name: &str, stage: StageConfig| {
        let mut config = config(name, vec![stage]);
        config.adapter.activation = Some(Activation::Gelu); // layers with inner values
        config.adapter.positions = Some(Positions::CtcSegments);
        config.adapter.summary = None;
        config.feature_cache.dir = Some(place.folder.path().join("features"));
        config.validation.every_steps = 1;
        config
    };
    let align = |steps: u64, learning_rate: f64, dropout: f64| StageConfig {
        sentence_tasks: vec!["mood".into()],
        segment_dropout: 0.0,
        augment: false,
        cached: true,
        learning_rate,
        dropout,
        ..stage(StageKind::SentenceAlign, steps)
    };
    let run = |name: &str, start: &AdapterSnapshot, stage: StageConfig| {
        let (mut steps, mut validations) = (Vec::new(), Vec::new());
        let mut config = form(name, stage);
        config.adapter.sentence = Some(true);
        let args = EngineArgs {
            train: clips.clone(),
            valid: clips.clone(),
            start_from: Some((start.clone(), None)),
            ..place.args(config)
        };
        let outcome = Engine::new(args).unwrap().run(&mut |event| match event {
            TrainEvent::Step { loss, .. } => steps.push(*loss),
            TrainEvent::Validated { loss, .. } => validations.push(*loss),
            _ => {}
        });
        (outcome.unwrap().adapter, steps, validations)
    };
    let first = form("first", stage(StageKind::CtcAlign, 6));
    let first = train_on(&place, first, &examples(8), &[]);
    let (aligned, ..) = run("aligned", &first.adapter, align(20, 5e-3, 0.0));

    // Steps so small that no weight changes: what differs is dropout's doing.
    let (_, whole, without) = run("without", &aligned, align(3, 1e-9, 0.0));
    let (_, dropped, with) = run("with", &aligned, align(3, 1e-9, 0.5));

    assert_eq!((without.len(), with.len()), (3, 3));
    assert_ne!(whole, dropped, "the sentence embedding has dropout");
    for (with, without) in with.iter().zip(&without) {
        assert!((with - without).abs() < 1e-5, "{with}, {without} without");
    }
}

#[test]
fn a_lora_to_start_from_waits_for_the_stages_that_have_one_also_where_a_run_is_resumed() {
    let place = Place::new();
    let (clips, config) = moods(&place);
    let first = config("first", vec![stage(StageKind::Multitask, 8)]);
    let first = train_on(&place, first, &clips, &[]);
    let run = |name: &str, stop_after: Option<u64>, resume: bool| {
        let tasks = StageConfig {
            learning_rate: 1e-8,
            ..stage(StageKind::Multitask, 1)
        };
        let args = EngineArgs {
            train: clips.clone(),
            valid: Vec::new(),
            start_from: Some((first.adapter.clone(), first.lora.clone())),
            resume,
            ..place.args(config(name, vec![align_moods(4), tasks]))
        };
        run_until(args, stop_after)
    };

    let whole = run("whole", None, false);
    assert!(run("stopped", Some(3), false).stopped);
    let resumed = run("stopped", None, true);

    let updates = |folder: &Path| {
        let (llm, device) = (place.networks.speech_llm.llm(), tch::Device::Cpu);
        let set = checkpoint::read_lora(folder, llm, device).unwrap();
        let all: Vec<Tensor> = (set.parameters().into_values())
            .map(|tensor| tensor.detach().flatten(0, -1))
            .collect();
        Tensor::cat(&all, 0)
    };
    let moved = (updates(whole.lora.as_ref().unwrap()) - updates(first.lora.as_ref().unwrap()))
        .abs()
        .max();
    assert!(moved.double_value(&[]) < 1e-6, "{moved:?}");
    assert_eq!(lora_bytes(&resumed), lora_bytes(&whole));
    assert!(resumed.adapter.same_content(&whole.adapter));
}

#[test]
fn a_lora_that_was_learned_outlives_a_stage_that_aligns_labels_however_often_it_is_resumed() {
    let place = Place::new();
    let (clips, config) = moods(&place);
    let run = |name: &str, stop_after: Option<u64>, resume: bool| {
        let stages = vec![stage(StageKind::Multitask, 2), align_moods(5)];
        let mut config = config(name, stages);
        config.checkpoint.every_steps = 1;
        let args = EngineArgs {
            train: clips.clone(),
            valid: clips.clone(),
            resume,
            ..place.args(config)
        };
        run_until(args, stop_after)
    };

    let whole = run("whole", None, false);
    assert!(run("stopped", Some(4), false).stopped);
    assert!(run("stopped", Some(1), true).stopped);
    let resumed = run("stopped", None, true);

    assert_eq!(lora_bytes(&resumed), lora_bytes(&whole));
    assert!(resumed.adapter.same_content(&whole.adapter));
}

#[test]
fn a_stage_whose_clips_have_nothing_that_it_learns_is_refused() {
    let place = Place::new();
    let (clips, config) = moods(&place);
    let align = StageConfig {
        summary_tasks: vec!["unheard-of".into()],
        ..align_moods(2)
    };
    let clips: Vec<Example> = (clips.into_iter())
        .map(|clip| Example {
            task: "unheard-of".into(),
            instruction: Some("What is it?".into()),
            ..clip
        })
        .collect();
    let args = EngineArgs {
        train: clips,
        valid: Vec::new(),
        ..place.args(config("nothing", vec![align]))
    };

    let refused = Engine::new(args).unwrap().run(&mut |_| {}).unwrap_err();

    assert!(matches!(refused, TrainingError::NoExamples { .. }), "{refused}");
}

#[test]
fn a_form_that_does_not_fit_the_start_is_refused_and_so_are_segments_that_nobody_aligned() {
    let place = Place::new();
    let start = train_on(
        &place,
        place.config("start", vec![stage(StageKind::Asr, 1)]),
        &examples(4),
        &[],
    );
    let asked = |activation, positions| {
        let mut config = place.config("next", vec![stage(StageKind::Asr, 1)]);
        config.adapter.activation = Some(activation);
        config.adapter.positions = Some(positions);
        let args = EngineArgs {
            start_from: Some((start.adapter.clone(), None)),
            ..place.args(config)
        };
        let ran = Engine::new(args).and_then(|engine| engine.run(&mut |_| {}));
        ran.unwrap_err().to_string()
    };

    let other = asked(Activation::Gelu, Positions::Frames);
    assert!(other.contains("Gelu") && other.contains("`positions`"), "{other}");
    let nobody = asked(Activation::None, Positions::CtcSegments);
    assert!(nobody.contains("CTC head"), "{nobody}");
}

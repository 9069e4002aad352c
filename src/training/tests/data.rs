//! What a run reads: samples of tasks, of files that are damaged or missing, of manifests.

use super::aligned::in_files;
use super::*;

#[test]
fn a_stage_without_samples_of_its_task_is_an_error_that_says_so() {
    let place = Place::new();
    let config = place.config(
        "empty",
        vec![StageConfig {
            tasks: Some(vec!["intent".into()]),
            ..stage(StageKind::Asr, 2)
        }],
    );

    let error = Engine::new(place.args(config))
        .unwrap()
        .run(&mut |_| {})
        .unwrap_err()
        .to_string();

    assert!(
        error.contains("stage 0") && error.contains("8 samples"),
        "{error}"
    );
}

#[test]
fn too_many_unreadable_clips_end_the_run_and_name_one() {
    let place = Place::new();
    let mut args = place.args(place.config("unreadable", vec![stage(StageKind::CtcAlign, 50)]));
    for example in &mut args.train[2..] {
        example.audio = AudioSource::Lazy {
            id: "gone".to_owned(),
            load: Arc::new(|| Err("`gone.wav`: no such file".into())),
        };
    }

    let error = Engine::new(args)
        .unwrap()
        .run(&mut |_| {})
        .unwrap_err()
        .to_string();

    assert!(error.contains("gone.wav"), "{error}");
}

#[test]
fn recordings_that_are_damaged_a_little_are_trained_on_and_counted_once_each() {
    let place = Place::new();
    let mut args = place.args(place.config("damaged", vec![stage(StageKind::CtcAlign, 6)]));
    args.train = in_files(&place.folder.path().join("damaged"), args.train);
    for example in &args.train[..3] {
        let AudioSource::File(path) = &example.audio else {
            panic!("written above");
        };
        // 50 ms of what the header declares are missing.
        let whole = std::fs::read(path).unwrap();
        std::fs::write(path, &whole[..whole.len() - 1_600]).unwrap();
    }

    let mut reported = None;
    let outcome = Engine::new(args)
        .unwrap()
        .run(&mut |event| {
            if let TrainEvent::RunFinished { damaged, .. } = event {
                reported = Some(*damaged);
            }
        })
        .unwrap();

    assert_eq!((outcome.damaged, reported), (3, Some(3)));
}

#[test]
fn samples_that_do_not_fit_are_left_out_and_counted() {
    let place = Place::new();
    let mut config = place.config("filters", vec![stage(StageKind::Asr, 1)]);
    config.data.target_tokens_max = 4;
    let mut list = examples(5);
    list[0].seconds = 99.0;
    list[1].seconds = 0.01;
    list[2].target = "far too long a target".into();
    list[3].target = " ?! ".into();
    list[4].target = "It's".into();

    let prepared = prepare(list.clone(), &config, &place.networks.speech_llm).unwrap();
    list[4].target = "no".into();
    list[4].task = "unknown".into();
    let error = prepare(list, &config, &place.networks.speech_llm)
        .unwrap_err()
        .to_string();

    assert_eq!(prepared.samples.len(), 0, "it's has four tokens and an end");
    assert_eq!(prepared.left_out.values().sum::<usize>(), 5);
    assert_eq!(prepared.left_out.len(), 4);
    assert!(error.contains("unknown") && error.contains("clip-4"), "{error}");
}

#[test]
fn targets_are_trained_in_the_spelling_of_their_tasks() {
    let place = Place::new();
    let mut config = place.config("spelling", vec![stage(StageKind::Multitask, 1)]);
    config.tasks_dir = Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tasks"));
    config.data.target_tokens_max = 1_000;
    let row = |task: &str, target: &str, targets: &[(&str, &str)]| Example {
        task: task.into(),
        target: target.into(),
        targets: targets
            .iter()
            .map(|(name, target)| ((*name).into(), (*target).into()))
            .collect(),
        ..example(0)
    };
    let spelled = |list: Vec<Example>| {
        let prepared = prepare(list, &config, &place.networks.speech_llm).unwrap();
        let targets = prepared.samples.into_iter().map(|sample| sample.example.target);
        (targets.collect::<Vec<_>>(), prepared.left_out)
    };

    let (targets, left_out) = spelled(vec![
        row("asr", "Turn on, the Radio!", &[]),
        row("intent", " Play_Radio", &[]),
        row("slots", "TIME=now", &[]),
        row("keywords", "Radio,radio, News", &[]),
        row(
            "asr,intent",
            "",
            &[("asr", "Turn it on | off."), ("intent", "play_radio")],
        ),
        row("asr,keywords", "ASR: Yes. | KWE: Yes, |", &[]),
    ]);
    let (_, refused) = spelled(vec![
        row("intent", "dance", &[]),
        row("slots", "colour = red;", &[]),
        row("asr,intent", "", &[("asr", "a")]),
        row("asr,intent", "", &[("asr", "a"), ("intent", "dance")]),
    ]);

    assert_eq!(
        targets,
        [
            "turn on the radio",
            "play_radio",
            "time = now;",
            "radio, news",
            "ASR: turn it on off | Intent: play_radio |",
            "ASR: yes | KWE: yes |",
        ]
    );
    assert!(left_out.is_empty(), "{left_out:?}");
    assert_eq!(refused["an answer that is not among the labels"], 3);
    assert_eq!(refused["no target for one of its tasks"], 1);
}

#[test]
fn a_multitask_stage_trains_on_tasks_from_files_and_on_compound_examples() {
    let place = Place::new();
    let mut config = place.config("tasks", vec![stage(StageKind::Multitask, 4)]);
    config.tasks_dir = Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tasks"));
    config.data.compound_share = 1.0;
    config.data.target_tokens_max = 1_000;
    let mut args = place.args(config);
    for example in &mut args.train {
        example.task.clear();
        example.targets = [("asr", example.target.as_str()), ("emotion", "sad")]
            .map(|(name, target)| (name.to_owned(), target.to_owned()))
            .into();
        example.target.clear();
    }
    let mut started = None;

    let outcome = Engine::new(args)
        .unwrap()
        .run(&mut |event| {
            if let TrainEvent::StageStarted { samples, .. } = event {
                started = Some(*samples);
            }
        })
        .unwrap();

    assert_eq!(started, Some(3 * 8));
    assert_eq!((outcome.steps, outcome.skipped), (4, 0));
}

#[test]
fn an_offline_run_reads_manifests_and_publishes_what_it_learned() {
    let place = Place::new();
    let data = place.folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut lines = String::new();
    for at in 0..6 {
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: 16_000,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut wav = hound::WavWriter::create(data.join(format!("{at}.wav")), spec).unwrap();
        for sample in clip(at) {
            wav.write_sample((sample * 32_000.0) as i16).unwrap();
        }
        wav.finalize().unwrap();
        let seconds = clip(at).len() as f64 / 16_000.0;
        lines += &format!(
            "{{\"audio_filepath\": \"{at}.wav\", \"duration\": {seconds}, \"text\": \"{}\"}}\n",
            WORDS[at % 4]
        );
    }
    std::fs::write(data.join("train.jsonl"), lines).unwrap();
    let mut config = place.config(
        "offline",
        vec![stage(StageKind::CtcAlign, 2), stage(StageKind::LoraWarmup, 2)],
    );
    config.adapter.mix = LayerMix::Softmax;
    config.data.train = vec![data.join("train.jsonl")];
    config.data.valid = config.data.train.clone();
    config.checkpoint.registry = Some(place.folder.path().join("adapters"));
    config.checkpoint.prefix = "demo".into();
    let args = TrainArgs {
        config: config.clone(),
        resume: false,
        control: Control::new(),
    };

    let report = run(args, &mut |_| {}).unwrap();

    let registry = Registry::open(place.folder.path().join("adapters")).unwrap();
    let loaded = registry.load_current().unwrap();
    assert_eq!(report.version.as_deref(), Some("demo-0001"));
    assert_eq!(loaded.manifest.version, "demo-0001");
    assert!(loaded.adapter.same_content(&report.outcome.adapter));
    loaded
        .check_models(&place.networks.encoder_identity, &place.networks.llm_identity)
        .unwrap();
    assert!(
        loaded.manifest.files.contains_key("log.jsonl") && loaded.manifest.files.contains_key("loss.svg")
    );
    let lora = checkpoint::read_lora(
        &loaded.lora.unwrap(),
        place.networks.speech_llm.llm(),
        tch::Device::Cpu,
    )
    .unwrap();
    let shapes: BTreeMap<String, Vec<i64>> = lora
        .parameters()
        .into_iter()
        .map(|(name, tensor)| (name, Tensor::size(&tensor)))
        .collect();
    assert_eq!(shapes.len(), 8);
    // A next run may start from what was published.
    let again = TrainingConfig {
        run: "again".into(),
        output: place.folder.path().join("again"),
        start_from: Some(registry.folder("demo-0001").unwrap()),
        ..config
    };
    let report = run(
        TrainArgs {
            config: again,
            resume: false,
            control: Control::new(),
        },
        &mut |_| {},
    )
    .unwrap();
    assert_eq!(report.version.as_deref(), Some("demo-0002"));
}

use super::*;

fn parse(text: &str) -> Result<TrainingConfig, String> {
    let config: TrainingConfig = toml::from_str(text).map_err(|error| error.to_string())?;
    config.validate().map_err(|error| error.to_string())?;
    Ok(config)
}

#[test]
fn a_misspelt_key_is_an_error_that_names_the_key() {
    let error = parse("[[stage]]\nkind = \"asr\"\nlearning_rat = 0.1\n").unwrap_err();

    assert!(error.contains("learning_rat"), "{error}");
}

#[test]
fn a_stage_without_an_end_is_refused() {
    let error = parse("[[stage]]\nkind = \"asr\"\nlearning_rate = 0.1\n").unwrap_err();

    assert!(error.contains("never end"), "{error}");
}

#[test]
fn the_shipped_curricula_parse_and_validate() {
    for name in ["demo", "demo-longer", "demo-tasks", "demo-large", "paper"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("configs/curriculum/{name}.toml"));
        let config = TrainingConfig::load(&path).unwrap();

        assert!(!config.stages.is_empty(), "{name}");
    }
}

#[test]
fn tasks_to_align_with_are_named_where_they_mean_something() {
    let stage_of = |kind: &str, embedding: &str, tasks: &str| {
        parse(&format!(
            "[[stage]]\nkind = \"{kind}\"\nlearning_rate = 0.1\nsteps_max = 1\n{embedding}_tasks = [{tasks}]\n"
        ))
    };
    let stage = |kind: &str, tasks: &str| stage_of(kind, "summary", tasks);

    let aligns = stage("summary_align", "\"emotion\"").unwrap();
    assert!(aligns.stages[0].takes("emotion") && !aligns.stages[0].takes("asr"));
    assert!(stage("multitask", "\"emotion\"").is_ok());
    let error = stage("summary_align", "").unwrap_err();
    assert!(error.contains("names no task"), "{error}");
    for kind in ["ctc_align", "sentence_align"] {
        let error = stage(kind, "\"emotion\"").unwrap_err();
        assert!(error.contains("belongs to a `summary_align` stage"), "{error}");
    }
    let aligns = stage_of("sentence_align", "sentence", "\"intent\"").unwrap();
    assert!(aligns.stages[0].takes("intent") && !aligns.stages[0].takes("asr"));
    let error = stage_of("sentence_align", "sentence", "").unwrap_err();
    assert!(error.contains("names no task"), "{error}");
    for kind in ["ctc_align", "multitask"] {
        let error = stage_of(kind, "sentence", "\"intent\"").unwrap_err();
        assert!(error.contains("belongs to a `sentence_align` stage"), "{error}");
    }
}

#[test]
fn a_cached_stage_needs_a_folder_for_the_features() {
    let stage = "[[stage]]\nkind = \"ctc_align\"\nlearning_rate = 0.1\nsteps_max = 1\ncached = true\n";

    let error = parse(stage).unwrap_err();

    assert!(error.contains("feature_cache.dir"), "{error}");
    parse(&format!("[feature_cache]\ndir = \"f\"\n{stage}")).unwrap();
}

#[test]
fn settings_survive_being_written_and_read_again() {
    let stage = StageConfig {
        steps_max: Some(3),
        ..StageConfig::new(StageKind::CtcAlign, 1e-3)
    };
    let config = TrainingConfig {
        stages: vec![stage],
        ..TrainingConfig::default()
    };

    let again: TrainingConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();

    assert_eq!(again, config);
}

#[test]
fn only_a_multitask_stage_takes_every_task_by_default() {
    let asr = StageConfig::new(StageKind::Asr, 1e-3);
    let multitask = StageConfig::new(StageKind::Multitask, 1e-3);

    assert!(asr.takes("asr") && !asr.takes("intent"));
    assert!(multitask.takes("asr") && multitask.takes("intent"));
    assert!(multitask.takes("asr,intent") && !asr.takes("asr,intent"));
}

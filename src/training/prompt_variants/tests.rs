use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::text::TaskLabel;
use crate::training::example::AudioSource;

fn config(compound_share: f64) -> TrainingConfig {
    let mut config = TrainingConfig {
        tasks_dir: Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tasks")),
        ..TrainingConfig::default()
    };
    config.data.compound_share = compound_share;
    config
}

fn example(id: &str, task: &str, targets: &[(&str, &str)]) -> Example {
    Example {
        id: id.into(),
        audio: AudioSource::Samples(vec![0.0].into()),
        seconds: 1.0,
        task: task.into(),
        instruction: None,
        target: String::new(),
        targets: targets
            .iter()
            .map(|(name, target)| ((*name).into(), (*target).into()))
            .collect(),
        variables: Arc::default(),
        domain: None,
        text: None,
    }
}

fn with_field(mut example: Example, name: &str, value: &str) -> Example {
    let variables = Arc::make_mut(&mut example.variables);
    variables.fields.insert(name.into(), value.into());
    example
}

fn variants(config: &TrainingConfig, example: &Example) -> Result<PromptVariants, TrainingError> {
    let tasks = TaskCatalog::load(config)?;
    let layout = tasks.layout_of(example)?;
    tasks.variants_of(example, layout)
}

#[test]
fn prompts_are_drawn_uniformly_and_the_same_ones_for_the_same_seed() {
    let all = variants(
        &config(0.0),
        &with_field(example("e", "translation", &[]), "target_lang", "fr"),
    )
    .unwrap();
    let draw = |seed| {
        let mut random = SplitMix::new(&[seed]);
        (0..9_000).map(|_| all.draw(&mut random)).collect::<Vec<_>>()
    };

    let drawn = draw(1);

    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for prompt in &drawn {
        assert!(prompt.contains("French"), "{prompt}");
        *counts.entry(prompt).or_default() += 1;
    }
    let table = TaskTable::load(config(0.0).tasks_dir.as_deref().unwrap()).unwrap();
    let expected = table.get("translation").unwrap().training_prompts().count();
    assert_eq!(counts.len(), expected);
    // Chi-squared over 18 prompts, 17 degrees of freedom: 40.8 is exceeded once in a thousand.
    let mean = drawn.len() as f64 / expected as f64;
    let spread: f64 = counts
        .values()
        .map(|count| (*count as f64 - mean).powi(2) / mean)
        .sum();
    assert!(spread < 40.8, "{spread}");
    assert_eq!(drawn, draw(1));
    assert_ne!(drawn, draw(2));
    assert_eq!(all.first(), "Translate the speech into French.");
}

#[test]
fn held_out_prompts_are_never_drawn() {
    let table = TaskTable::load(config(0.0).tasks_dir.as_deref().unwrap()).unwrap();
    for task in table.iter() {
        let mut asked = example("e", &task.name, &[]);
        asked.variables = Arc::new(task.example_variables());
        let all = variants(&config(0.0), &asked).unwrap();
        let mut random = SplitMix::new(&[3]);
        let drawn: BTreeSet<String> = (0..400).map(|_| all.draw(&mut random)).collect();
        for held_out in &task.held_out_prompts {
            let held_out = task.fill(held_out, &asked.variables).unwrap();
            assert!(!drawn.contains(&held_out), "{}: {held_out}", task.name);
        }
    }
}

#[test]
fn a_rows_own_instruction_counts_before_the_settings_prompts_and_these_before_the_files() {
    let mut config = config(0.0);
    config.prompts.insert(
        "translation".into(),
        vec!["To {target_language}!".into(), "{{x}}".into()],
    );
    config
        .prompts
        .insert("unlisted".into(), vec!["Just {so}.".into()]);
    let mut asked = with_field(example("e", "translation", &[]), "target_lang", "de");

    let of_settings = variants(&config, &asked).unwrap();
    asked.instruction = Some("Word for {word}.".into());
    let own = variants(&config, &asked).unwrap();
    let verbatim = variants(&config, &example("e", "unlisted", &[])).unwrap();

    assert_eq!(of_settings.first(), "To German!");
    assert_eq!(own.first(), "Word for {word}.");
    assert_eq!(verbatim.first(), "Just {so}.");
}

#[test]
fn without_task_files_transcription_has_an_instruction_and_nothing_else_has() {
    let config = TrainingConfig::default();

    assert_eq!(
        variants(&config, &example("e", "asr", &[])).unwrap().first(),
        "Transcribe the speech."
    );
    for task in ["intent", "asr,intent"] {
        let error = variants(&config, &example("e7", task, &[]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("`e7`") && error.contains("tasks_dir"), "{error}");
    }
}

#[test]
fn without_task_files_a_compound_sample_with_its_own_instruction_is_taught_as_it_stands() {
    let mut asked = example("e", "asr,intent", &[]);
    asked.instruction = Some("Do both.".into());

    let found = variants(&TrainingConfig::default(), &asked).unwrap();

    assert_eq!(found.first(), "Do both.");
}

#[test]
fn a_compound_sample_outlives_its_tasks_where_it_has_an_instruction_and_a_target_of_its_own() {
    let label = TaskLabel {
        name: "happy".into(),
        description: String::new(),
    };
    for (task, labels) in [
        ("asr,vanished", None),
        ("emotion,intent", Some(vec![label])), // labels that no one task takes
    ] {
        let mut asked = example("e7", task, &[]);
        Arc::make_mut(&mut asked.variables).labels = labels;
        let without = variants(&config(0.0), &asked).unwrap_err().to_string();
        asked.instruction = Some("Do both.".into());
        asked.target = "ASR: a | Vanished: b |".into();

        let found = variants(&config(0.0), &asked).unwrap();

        assert_eq!(found.first(), "Do both.");
        assert!(found.layout().is_none());
        assert!(without.contains("task"), "{without}");
        // Targets by task cannot be written without a layout.
        asked.targets.insert("asr".into(), "a".into());
        assert!(variants(&config(0.0), &asked).is_err());
    }
}

#[test]
fn an_instruction_of_its_own_stays_as_it_is_whatever_the_layout_of_the_answer() {
    let table = TaskTable::load(config(0.0).tasks_dir.as_deref().unwrap()).unwrap();
    let tasks = table.list("asr,emotion").unwrap();
    let layout = Arc::new(JointLayout::new(&tasks, &TemplateVariables::default()).unwrap());

    let all = PromptVariants::verbatim(vec!["Do both.".to_owned()].into()).answered_in(Some(layout.clone()));

    assert_eq!(all.layout(), Some(&layout));
    assert_eq!(all.first(), "Do both.");
    assert_eq!(all.draw(&mut SplitMix::new(&[1])), "Do both.");
}

#[test]
fn a_row_that_lacks_what_its_prompts_need_is_named() {
    let error = variants(&config(0.0), &example("m.jsonl:7", "keyword_search", &[]))
        .unwrap_err()
        .to_string();

    assert!(
        error.contains("m.jsonl:7") && error.contains("`{keyword}`"),
        "{error}"
    );
}

#[test]
fn a_row_with_several_targets_is_an_example_for_each_and_a_share_of_them_is_also_compound() {
    let rows = |count: usize| -> Vec<Example> {
        (0..count)
            .map(|at| {
                example(
                    &format!("m:{at}"),
                    "",
                    &[("asr", "a"), ("intent", "b"), ("keywords", "c")],
                )
            })
            .collect()
    };
    let expand = |share: f64, seed: u64| {
        let mut config = config(share);
        config.seed = seed;
        TaskCatalog::load(&config)
            .unwrap()
            .expand(rows(400), &config)
            .unwrap()
    };
    let compound = |examples: &[Example]| -> Vec<String> {
        let several = examples.iter().filter(|example| example.task.contains(','));
        several.map(|example| example.id.clone()).collect()
    };

    let some = expand(0.25, 1);

    assert_eq!(some.len() - compound(&some).len(), 3 * 400);
    assert!(
        (60..140).contains(&compound(&some).len()),
        "{}",
        compound(&some).len()
    );
    assert_eq!(compound(&some), compound(&expand(0.25, 1)));
    assert_ne!(compound(&some), compound(&expand(0.25, 2)));
    assert_eq!(compound(&expand(0.0, 1)).len(), 0);
    assert_eq!(compound(&expand(1.0, 1)).len(), 400);
    let kinds: BTreeSet<&str> = some.iter().map(|example| example.task.as_str()).collect();
    assert_eq!(
        kinds.into_iter().collect::<Vec<_>>(),
        ["asr", "asr,intent", "asr,keywords", "intent", "keywords"]
    );
    assert_eq!(
        (some[1].id.as_str(), some[1].target.as_str()),
        ("m:0/intent", "b")
    );
}

#[test]
fn a_compound_example_draws_a_prompt_for_each_task_and_a_frame() {
    let all = variants(
        &config(0.0),
        &example("e", "asr,emotion", &[("asr", "x"), ("emotion", "sad")]),
    )
    .unwrap();
    let mut random = SplitMix::new(&[5]);

    let drawn: BTreeSet<String> = (0..2_000).map(|_| all.draw(&mut random)).collect();

    assert!(drawn.len() > 1_000, "{}", drawn.len());
    assert!(
        drawn.iter().all(
            |text| text.contains("=== Task: Emotion ===") && text.ends_with(" ASR: ... | Emotion: ... |")
        )
    );
    assert!(
        all.first()
            .contains("=== Task: ASR ===\nTranscribe the speech.\n")
    );
}

#[test]
fn given_labels_go_to_the_one_target_that_takes_them() {
    let labelled = |targets: &[(&str, &str)]| {
        let mut row = example("e", "", targets);
        let label = TaskLabel {
            name: "b".into(),
            description: "second".into(),
        };
        Arc::make_mut(&mut row.variables).labels = Some(vec![label]);
        row
    };
    let config = config(1.0);
    let tasks = TaskCatalog::load(&config).unwrap();

    let good = tasks
        .expand(vec![labelled(&[("asr", "a"), ("intent", "b")])], &config)
        .unwrap();
    let bad = tasks
        .expand(vec![labelled(&[("intent", "b"), ("emotion", "sad")])], &config)
        .unwrap_err()
        .to_string();

    assert_eq!(good.len(), 3);
    assert_eq!(good[0].variables.labels, None);
    assert_eq!(good[1].variables.labels.as_ref().unwrap().len(), 1);
    for example in &good {
        let layout = tasks.layout_of(example).unwrap();
        let asked = tasks.variants_of(example, layout).unwrap().first();
        assert_eq!(
            asked.contains("- b: second;"),
            example.task.contains("intent"),
            "{asked}"
        );
    }
    assert!(bad.contains("2 of its `targets`"), "{bad}");
}

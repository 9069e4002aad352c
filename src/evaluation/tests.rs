//! Plans and reports without networks; whole evaluations on tiny ones are in `pipelines/tests/eval.rs`.

use std::path::Path;
use std::sync::Arc;

use super::variants::PromptSource;
use super::*;
use crate::scoring::Metric;
use crate::text::{TaskTable, TemplateVariables};
use crate::training::{AudioSource, Example};

fn tasks() -> TaskTable {
    TaskTable::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tasks")).unwrap()
}

fn example(at: usize, task: &str, target: &str) -> Example {
    Example {
        id: format!("m.jsonl:{at}"),
        audio: AudioSource::Samples(vec![0.1; 1600].into()),
        seconds: 0.1,
        task: task.to_owned(),
        instruction: None,
        target: target.to_owned(),
        domain: None,
        text: None,
        variables: Arc::default(),
        targets: std::collections::BTreeMap::new(),
    }
}

fn dataset(examples: Vec<Example>) -> Vec<Dataset> {
    vec![Dataset {
        refused: Default::default(),
        name: "m".into(),
        examples,
    }]
}

const ALL: Choices = Choices {
    constrained: None,
    cascade: true,
    prompts: Some(PromptChoice::All),
    grid: true,
    joint: true,
};

/// The variants that want something about a recording.
fn names<'p>(plan: &'p Plan<'_>, recording: usize) -> Vec<&'p str> {
    plan.wanted
        .iter()
        .filter(|wanted| wanted.recording == recording)
        .map(|wanted| plan.variants[wanted.variant].name.as_str())
        .collect()
}

#[test]
fn every_study_asks_what_concerns_it_and_equal_questions_are_asked_once() {
    let mut intent = example(1, "intent", "play_radio");
    intent.text = Some("turn on the radio".into());
    let datasets = dataset(vec![intent, example(2, "asr", "hello")]);

    let plan = Plan::new(&datasets, &tasks(), &ALL);

    // Four sources, three prompts, the grid, joint decoding without and with.
    assert_eq!(names(&plan, 0).len(), 4 + 3 + 4 + 2);
    assert_eq!(
        names(&plan, 1),
        ["speech LLM", "P1, trained on", "P2, new", "P3, new"]
    );
    let recording = &plan.recordings[0];
    // About audio: the transcript; the default free and constrained, with and without descriptions; two new
    // prompts; the joint prompt. About texts: one each.
    let about = |source| {
        recording
            .questions
            .iter()
            .filter(|(from, _)| *from == source)
            .count()
    };
    assert_eq!(about(Source::Audio), 1 + 4 + 2 + 1);
    for source in [Source::Transcript, Source::Reference, Source::TaughtReference] {
        assert_eq!(about(source), 1, "{source:?}");
    }
    assert_eq!(plan.recordings[1].questions.len(), 3);
    assert!(plan.problems.is_empty());
}

#[test]
fn descriptions_and_constraint_are_as_the_grid_says() {
    let datasets = dataset(vec![example(1, "intent", "play_radio")]);
    let choices = Choices {
        grid: true,
        ..Choices::default()
    };

    let plan = Plan::new(&datasets, &tasks(), &choices);

    for wanted in plan
        .wanted
        .iter()
        .filter(|wanted| plan.variants[wanted.variant].table == Table::Constraint)
    {
        let variant = &plan.variants[wanted.variant];
        let (_, ask) = &plan.recordings[0].questions[wanted.question];
        assert_eq!(ask.instruction.contains("- play_radio: "), variant.descriptions);
        assert_eq!(ask.instruction.contains("- play_radio;"), !variant.descriptions);
        assert_eq!(Some(!ask.grammar.is_free()), variant.constrained);
    }
}

#[test]
fn without_a_choice_answers_are_constrained_as_serving_constrains_them() {
    let labels = Arc::new(TemplateVariables::default().with_labels(&["a".into()]));
    let own = |labels: Option<&Arc<TemplateVariables>>| Example {
        instruction: Some("Why?".into()),
        variables: labels.map_or_else(Arc::default, Arc::clone),
        ..example(1, "intent", "a")
    };
    for (row, constrained) in [
        (example(1, "intent", "play_radio"), true),
        (own(None), false),
        (own(Some(&labels)), true),
    ] {
        let datasets = dataset(vec![row]);
        let plan = Plan::new(&datasets, &tasks(), &Choices::default());

        let (_, question) = &plan.recordings[0].questions[0];
        assert_eq!(
            !question.grammar.is_free(),
            constrained,
            "{}",
            question.instruction
        );
    }
}

#[test]
fn a_rows_own_words_and_labels_are_used() {
    let mut row = example(1, "intent", "a");
    row.instruction = Some("Mine {labels}".into());
    row.variables = Arc::new(TemplateVariables::default().with_labels(&["a".into(), "b".into()]));
    let datasets = dataset(vec![row]);
    let choices = Choices {
        constrained: Some(true),
        prompts: Some(PromptChoice::HeldOut),
        ..Choices::default()
    };

    let plan = Plan::new(&datasets, &tasks(), &choices);

    let questions = &plan.recordings[0].questions;
    assert_eq!(questions[0].1.instruction, "Mine {labels}");
    assert_eq!(
        questions[0].1.grammar.choice(),
        Some(&["a".to_owned(), "b".to_owned()][..])
    );
    assert!(questions[1].1.instruction.contains("- a;\n- b;"));
    assert!(
        plan.variants
            .iter()
            .all(|variant| variant.prompt != PromptSource::Trained)
    );
}

#[test]
fn a_row_that_cannot_be_asked_is_a_problem_and_the_others_are_asked() {
    let datasets = dataset(vec![
        example(1, "unheard_of", "x"),
        example(2, "keyword_search", "yes"),
        example(3, "asr", "x"),
    ]);

    let plan = Plan::new(&datasets, &tasks(), &ALL);

    assert_eq!(plan.problems.len(), 2, "{:?}", plan.problems);
    assert!(plan.problems[0].contains("m.jsonl:1") && plan.problems[0].contains("unheard_of"));
    assert!(plan.problems[1].contains("m.jsonl:2") && plan.problems[1].contains("keyword"));
    assert!(!names(&plan, 2).is_empty());
}

#[test]
fn a_keyword_is_also_searched_for_in_the_transcript() {
    let mut row = example(1, "keyword_search", "yes");
    let fields = [("keyword".to_owned(), "radio".to_owned())];
    row.variables = Arc::new(TemplateVariables {
        fields: fields.into(),
        ..TemplateVariables::default()
    });
    let datasets = dataset(vec![row, example(2, "asr", "hello")]);
    let choices = Choices {
        cascade: true,
        ..Choices::default()
    };

    let plan = Plan::new(&datasets, &tasks(), &choices);

    let search = "search: keyword in transcript";
    assert_eq!(
        names(&plan, 0),
        ["speech LLM", "cascade: transcript → LLM", search]
    );
    assert_eq!(names(&plan, 1), ["speech LLM"]);
    // The transcript is asked for once, for both.
    let recording = &plan.recordings[0];
    assert_eq!(recording.questions.len(), 3);
    let wanted = plan
        .wanted
        .iter()
        .find(|wanted| plan.variants[wanted.variant].name == search);
    assert_eq!(wanted.map(|wanted| wanted.question), recording.transcript);
    assert!(plan.problems.is_empty());
}

/// Answers of two variants to an intent task and of one to transcription.
#[test]
fn a_row_of_several_tasks_that_cannot_be_taken_apart_names_the_task_at_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let row =
        r#"{"audio_filepath": "a", "duration": 1, "task": "asr,nonsense", "target": "ASR: the radio |"}"#;
    std::fs::write(&path, row).unwrap();
    let datasets = Dataset::read(&[path], None, &tasks()).unwrap();

    let plan = Plan::new(&datasets, &tasks(), &Choices::default());

    assert_eq!(plan.problems.len(), 1);
    assert!(plan.problems[0].contains("`nonsense`"), "{}", plan.problems[0]);
}

fn answered() -> Answered {
    let mut rows = Vec::new();
    for at in 0..40 {
        let (task, target) = if at % 2 == 0 {
            ("intent", "play_radio")
        } else {
            ("asr", "the cat sat down")
        };
        let variants: &[(Table, &str)] = match task {
            "intent" => &[(Table::Joint, "without"), (Table::Joint, "with")],
            _ => &[(Table::Variants, "speech LLM")],
        };
        for (table, variant) in variants {
            let hypothesis = match (*variant, at % 4) {
                ("without", 0) => "something | else",
                ("speech LLM", _) => "the cut sat down",
                _ => target,
            };
            rows.push(Row {
                table: *table,
                variant: (*variant).to_owned(),
                dataset: "m".into(),
                id: format!("m.jsonl:{at}"),
                task: task.into(),
                language: None,
                domain: Some(if at < 20 { "home" } else { "open" }.into()),
                instruction: "?".into(),
                reference: target.into(),
                hypothesis: hypothesis.into(),
                answer: None,
                transcript: None,
                score: None,
                agreement: None,
                support: None,
                finished: true,
            });
        }
    }
    Answered {
        rows,
        problems: vec!["m.jsonl:99: is gone | away\nforever".into()],
        audio_seconds: 4.0,
        seconds: 1.0,
    }
}

#[test]
fn rows_become_scores_with_intervals_comparisons_and_parts() {
    let answered = answered();

    let report = Report::new(&answered, Vec::new(), &tasks(), Facts::default());

    let find = |variant: &str, metric| {
        report
            .scores
            .iter()
            .find(|score| score.variant == variant && score.metric == metric)
            .unwrap()
    };
    let (without, with) = (find("without", Metric::Accuracy), find("with", Metric::Accuracy));
    assert_eq!((without.score, with.score), (Some(50.0), Some(100.0)));
    assert_eq!(without.utterances, 20);
    assert!(without.interval.unwrap().low < 40.0 && without.interval.unwrap().high > 60.0);
    assert!(without.against_first.is_none());
    let against = with.against_first.unwrap();
    assert_eq!(against.difference, 50.0);
    assert!(against.interval.low > 25.0 && against.p < 0.01);
    assert_eq!(without.classes["play_radio"].score, Some(50.0));
    assert_eq!(without.domains["home"].count, 10);
    let wer = find("speech LLM", Metric::Wer);
    assert_eq!((wer.score, wer.main), (Some(25.0), true));
    assert!(!find("speech LLM", Metric::Cer).main);
    assert!(report.metrics["accuracy"].signature.contains("exact match"));
}

#[test]
fn class_answers_stand_beside_the_majority_class() {
    let row = |at: usize, task: &str, reference: &str, hypothesis: &str| Row {
        variant: "speech LLM".to_owned(),
        dataset: "m".into(),
        id: at.to_string(),
        task: task.into(),
        reference: reference.into(),
        hypothesis: hypothesis.into(),
        ..Row::default()
    };
    let mut rows: Vec<Row> = (["happy", "sad", "sad", "sad"].iter().enumerate())
        .map(|(at, emotion)| row(at, "emotion", emotion, "happy"))
        .collect();
    rows.push(row(4, "asr", "", "words"));
    rows.push(row(5, "asr", "words", "words"));
    let answered = Answered {
        rows,
        ..Answered::default()
    };

    let report = Report::new(&answered, Vec::new(), &tasks(), Facts::default());

    let majority: Vec<_> = (report.scores.iter())
        .filter(|score| score.variant == "majority class")
        .map(|score| (score.task.as_str(), score.metric, score.score, score.main))
        .collect();
    assert!(
        majority.contains(&("emotion", Metric::Uar, Some(50.0), true)),
        "{majority:?}"
    );
    assert!(majority.contains(&("emotion", Metric::Accuracy, Some(75.0), false)));
    assert!(majority.iter().all(|(task, ..)| *task == "emotion"));
    let text = super::markdown::markdown(&report);
    assert!(text.contains("| majority class | 50.0 ["), "{text}");
    assert!(text.contains("| speech LLM | m | 1 | 1 (100.0 %) |"), "{text}");
}

#[test]
fn a_report_is_written_as_json_that_reads_back_as_markdown_and_as_pictures() {
    let answered = answered();
    let report = Report::new(&answered, Vec::new(), &tasks(), Facts::default());
    let folder = tempfile::tempdir().unwrap();

    let files = write_report(&report, &answered.rows, &folder.path().join("new/report")).unwrap();

    let read = |name: &str| std::fs::read_to_string(folder.path().join("new/report").join(name)).unwrap();
    let again: Report = serde_json::from_str(&read("report.json")).unwrap();
    assert_eq!(again.schema, "speechverse.eval/1");
    assert_eq!(again.scores.len(), report.scores.len());
    assert_eq!(read("rows.jsonl").lines().count(), answered.rows.len());
    let text = read("report.md");
    assert!(text.contains("| without | 50.0 ["), "{text}");
    assert!(text.contains("is gone \\| away forever"));
    let columns = |line: &&str| line.replace("\\|", "").matches('|').count();
    let table: Vec<&str> = text
        .lines()
        .skip_while(|line| !line.starts_with("| system |"))
        .take(3)
        .collect();
    assert!(table.iter().all(|line| columns(line) == columns(&table[0])));
    assert_eq!(files.len(), 3 + 2);
    let picture = read("joint-intent.svg");
    assert!(
        picture.contains("<svg") && picture.contains("without") && picture.contains("100.0 [100.0, 100.0]")
    );
}

#[test]
fn a_row_with_answers_to_several_tasks_is_scored_for_each_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let rows = r#"{"audio_filepath": "a", "duration": 1, "targets": {"asr": "turn on the radio", "intent": "x"}, "labels": ["x", "y"]}
{"audio_filepath": "a", "duration": 1, "task": "asr,keywords", "target": "ASR: the radio | KWE: radio |"}
{"audio_filepath": "a", "duration": 1, "text": "hello"}
{"audio_filepath": "a", "duration": 1, "targets": {"asr": "good day", "translation": "guten Tag"}, "source_lang": "en", "target_lang": "de"}
"#;
    std::fs::write(&path, rows).unwrap();

    let datasets = Dataset::read(&[path.clone(), path], Some(4), &tasks()).unwrap();

    assert_eq!(
        (datasets[0].name.as_str(), datasets[1].name.as_str()),
        ("rows", "rows 2")
    );
    let found: Vec<(&str, &str)> = datasets[0]
        .examples
        .iter()
        .map(|example| (example.task.as_str(), example.target.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            ("asr", "turn on the radio"),
            ("intent", "x"),
            ("asr", "the radio"),
            ("keywords", "radio"),
            ("asr", "hello"),
            ("asr", "good day"),
            ("translation", "guten Tag"),
        ]
    );
    let target_lang = |at: usize| datasets[0].examples[at].variables.fields.get("target_lang");
    assert_eq!((target_lang(5), target_lang(6)), (None, Some(&"de".to_owned())));
    assert_eq!(datasets[0].examples[1].text.as_deref(), Some("turn on the radio"));
    assert!(
        datasets[0].examples[0].variables.labels.is_none()
            && datasets[0].examples[1].variables.labels.is_some()
    );
}

#[test]
fn answers_of_other_programs_stand_beside_ours_and_are_compared_on_the_same_utterances() {
    let folder = tempfile::tempdir().unwrap();
    let ours = folder.path().join("ours/rows.jsonl");
    let theirs = folder.path().join("theirs.jsonl");
    std::fs::create_dir(folder.path().join("ours")).unwrap();
    let row = |answer: &str| {
        format!("{{\"reference\": \"hallo welt\", \"hypothesis\": \"{answer}\", \"task\": \"asr\"}}\n")
    };
    std::fs::write(&ours, row("hallo welt") + &row("hallo")).unwrap();
    std::fs::write(&theirs, row("hallo") + "\n" + &row("")).unwrap();
    let mut rows = read_rows(&[ours, theirs.clone()]).unwrap();
    // The empty line counts.
    rows[3].id = "2".into();
    let mut stray = rows[0].clone();
    stray.task = "unheard_of".into();
    rows.push(stray);
    let answered = Answered {
        rows,
        ..Answered::default()
    };

    let report = Report::new(&answered, Vec::new(), &tasks(), Facts::default());

    let wer: Vec<&super::report::Score> = report.scores.iter().filter(|score| score.main).collect();
    assert_eq!((wer[0].variant.as_str(), wer[0].score), ("ours", Some(25.0)));
    assert_eq!((wer[1].variant.as_str(), wer[1].score), ("theirs", Some(75.0)));
    assert_eq!(wer[1].against_first.unwrap().difference, 50.0);
    assert_eq!(report.problems.len(), 1);
    assert!(report.problems[0].contains("unheard_of"));

    std::fs::write(&theirs, "{\"reference\": 1}").unwrap();
    assert!(read_rows(&[theirs]).unwrap_err().to_string().contains("line 1"));
}

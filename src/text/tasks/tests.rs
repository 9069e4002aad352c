//! The shipped tasks, and what a task file may say.

use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::text::answer::ParsedAnswer;

const GOOD: &str = "name = 'x'\ndescription = 'd'\ninstruction = 'Do it.'\nmetric = 'wer'\n";

fn load(text: &str) -> Result<TaskTable, TextError> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x.toml"), text).unwrap();
    std::fs::write(folder.path().join("notes.md"), "not a task").unwrap();
    TaskTable::load(folder.path())
}

fn shipped() -> TaskTable {
    TaskTable::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tasks")).unwrap()
}

fn fields(pairs: &[(&str, &str)]) -> TemplateVariables {
    TemplateVariables {
        fields: pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
        ..TemplateVariables::default()
    }
}

#[test]
fn the_papers_tasks_and_ours_are_shipped_with_their_metrics_and_answer_formats() {
    use AnswerFormat::{Keywords, Label, Slots, Text};
    use TaskMetric::{Accuracy, Bleu, KeywordF1, SluF1, TokenF1, Uar, Wer};
    let table = shipped();

    let found: Vec<_> = table
        .iter()
        .map(|task| (task.name.as_str(), task.answer.format, task.metric))
        .collect();

    assert_eq!(
        found,
        [
            ("accent", Label, Uar),
            ("age_group", Label, Uar),
            ("asr", Text, Wer),
            ("command", Label, Accuracy),
            ("domain", Label, Accuracy),
            ("emotion", Label, Uar),
            ("instruct", Text, TokenF1),
            ("intent", Label, Accuracy),
            ("keyword_search", Label, Accuracy),
            ("keywords", Keywords, KeywordF1),
            ("native_english", Label, Uar),
            ("question", Text, TokenF1),
            ("sentiment", Label, Uar),
            ("slots", Slots, SluF1),
            ("sound", Label, Accuracy),
            ("speaker_count", Label, Uar),
            ("speech_detection", Label, Uar),
            ("translation", Text, Bleu),
        ]
    );
    assert_eq!(table.get("asr").unwrap().instruction, "Transcribe the speech.");
}

#[test]
fn every_shipped_task_has_fifteen_wordings_and_two_held_out_all_different() {
    let mut all = BTreeSet::new();
    for task in shipped().iter() {
        let training: Vec<&str> = task.training_prompts().collect();

        assert!(training.len() >= 15, "{}: {}", task.name, training.len());
        assert!(task.held_out_prompts.len() >= 2, "{}", task.name);
        for variant in training
            .into_iter()
            .chain(task.held_out_prompts.iter().map(String::as_str))
        {
            let words: Vec<String> = variant
                .split(|c: char| !c.is_alphanumeric())
                .filter(|word| !word.is_empty())
                .map(str::to_lowercase)
                .collect();
            assert!(all.insert(words.join(" ")), "{}: `{variant}` twice", task.name);
        }
    }
}

#[test]
fn every_shipped_wording_can_be_filled_and_shows_what_to_choose_from() {
    for task in shipped().iter() {
        let variables = task.example_variables();
        for variant in task
            .training_prompts()
            .chain(task.held_out_prompts.iter().map(String::as_str))
        {
            let instruction = task.fill(variant, &variables).unwrap();

            assert!(!instruction.contains(['{', '}']), "{}: {instruction}", task.name);
            for label in &task.labels {
                assert!(
                    instruction.to_lowercase().contains(&label.name),
                    "{}: `{instruction}` without {}",
                    task.name,
                    label.name
                );
            }
            for field in task.fields.values() {
                assert!(
                    instruction.contains(&field.example),
                    "{}: {instruction}",
                    task.name
                );
            }
        }
        for label in &task.labels {
            assert!(!label.description.is_empty(), "{}: {}", task.name, label.name);
        }
    }
}

#[test]
fn training_prompts_of_intents_and_slots_describe_every_label() {
    let table = shipped();
    for name in ["intent", "slots"] {
        let task = table.get(name).unwrap();
        for variant in task.training_prompts() {
            let instruction = task.fill(variant, &TemplateVariables::default()).unwrap();
            for TaskLabel { name, description } in &task.labels {
                let line = format!("- {name}: {description};");
                assert!(instruction.lines().any(|found| found == line), "{instruction}");
            }
        }
    }
}

#[test]
fn held_out_wordings_are_clearly_other_words_than_those_trained_on() {
    let words = |variant: &str| -> BTreeSet<String> {
        let split = variant.split(|c: char| !c.is_alphanumeric() && c != '_');
        split
            .filter(|word| word.len() > 3)
            .map(str::to_lowercase)
            .collect()
    };
    for task in shipped().iter() {
        for held_out in &task.held_out_prompts {
            let held_out_words = words(held_out);
            for trained in task.training_prompts() {
                let both = words(trained).intersection(&held_out_words).count();
                assert!(
                    2 * both <= held_out_words.len(),
                    "{}: `{held_out}` is close to `{trained}`",
                    task.name
                );
            }
        }
    }
}

#[test]
fn the_papers_answers_to_turn_on_the_radio_now_are_read_by_their_tasks() {
    let table = shipped();
    for (name, answer) in [
        ("intent", "play_radio"),
        ("keyword_search", "yes"),
        ("emotion", "neutral"),
        ("sentiment", "neutral"),
        ("accent", "American"),
        ("speaker_count", "one"),
        ("speech_detection", "speech"),
    ] {
        let task = table.get(name).unwrap();
        let ParsedAnswer::Label(label) = task.answer.format.parse(answer) else {
            panic!("{name}");
        };
        assert!(task.labels.iter().any(|known| known.name == label), "{name}");
    }
    let slots = table.get("slots").unwrap().answer.format.parse("time = now;");
    assert_eq!(slots.labels(), ["time"]);
    let words = table.get("keywords").unwrap().answer.format.parse("radio");
    assert_eq!(words, ParsedAnswer::Keywords(vec!["radio".into()]));
}

#[test]
fn the_known_members_of_the_papers_lists_are_there() {
    let table = shipped();
    let names = |task: &str| -> Vec<String> {
        let labels = &table.get(task).unwrap().labels;
        labels.iter().map(|label| label.name.clone()).collect()
    };

    assert_eq!(names("slots"), ["date", "place_name", "person", "time"]);
    for intent in ["datetime_query", "qa_definition", "calendar_remove", "play_radio"] {
        assert!(names("intent").contains(&intent.to_owned()), "{intent}");
    }
    assert_eq!(names("accent").len(), 5);
    assert_eq!(names("emotion"), ["neutral", "happy", "sad", "angry"]);
}

#[test]
fn a_language_code_is_written_out_and_a_language_that_was_never_trained_goes_in_as_it_is() {
    let table = shipped();
    let ask = |pairs: &[(&str, &str)]| {
        table
            .ask("translation", &fields(pairs), None)
            .unwrap()
            .instruction
    };

    assert_eq!(
        ask(&[("target_lang", "ro")]),
        "Translate the speech into Romanian."
    );
    assert_eq!(
        ask(&[("target_language", "Welsh")]),
        "Translate the speech into Welsh."
    );
}

#[test]
fn a_place_without_a_value_is_an_error_that_names_task_and_place() {
    let error = shipped()
        .ask("translation", &TemplateVariables::default(), None)
        .unwrap_err()
        .to_string();

    assert!(
        error.contains("`translation`") && error.contains("`{target_language}`"),
        "{error}"
    );
    assert!(error.contains("`target_lang`"), "{error}");
}

#[test]
fn what_is_filled_in_is_never_a_place_itself() {
    let asked = shipped()
        .ask(
            "keyword_search",
            &fields(&[("keyword", "{labels} {keyword}")]),
            None,
        )
        .unwrap();

    assert!(
        asked.instruction.contains("\"{labels} {keyword}\""),
        "{}",
        asked.instruction
    );
}

#[test]
fn given_labels_replace_the_tasks_own_and_keep_its_descriptions() {
    let table = shipped();
    let labels = ["play_radio".to_owned(), "order_pizza".to_owned()];
    let mut variables = TemplateVariables::default().with_labels(&labels);

    let asked = table.ask("intent", &variables, None).unwrap();
    variables.bare_labels = true;
    let bare = table.ask("intent", &variables, None).unwrap();

    assert!(
        asked.instruction.contains("- play_radio: wants to listen"),
        "{}",
        asked.instruction
    );
    assert!(
        asked.instruction.contains("- order_pizza;"),
        "{}",
        asked.instruction
    );
    assert!(
        !asked.instruction.contains("calendar_remove"),
        "{}",
        asked.instruction
    );
    assert!(
        bare.instruction.contains("- play_radio;\n- order_pizza;"),
        "{}",
        bare.instruction
    );
    assert_eq!(asked.grammar.choice(), Some(&labels[..]));
}

#[test]
fn labels_given_to_a_task_of_free_text_are_the_answers_to_choose_from() {
    let labels = ["on".to_owned(), "off".to_owned()];

    let asked = shipped()
        .ask("asr", &TemplateVariables::default().with_labels(&labels), None)
        .unwrap();

    assert_eq!(asked.grammar.choice(), Some(&labels[..]));
    assert_eq!(asked.instruction, "Transcribe the speech.");
}

#[test]
fn labels_that_would_break_the_answers_layout_are_refused() {
    let table = shipped();
    for bad in [&["a=b"][..], &["a;"], &["a", "A"], &[" "], &["a\nb"]] {
        let labels: Vec<String> = bad.iter().map(|label| (*label).to_owned()).collect();
        let error = table
            .ask("slots", &TemplateVariables::default().with_labels(&labels), None)
            .unwrap_err();
        assert!(matches!(error, TextError::Label { .. }), "{error}");
    }
}

#[test]
fn a_task_is_added_by_adding_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let shipped_folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tasks");
    for entry in std::fs::read_dir(shipped_folder).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    // The example of docs/TASKS.md.
    let page = include_str!("../../../docs/TASKS.md");
    let (_, rest) = page
        .split_once("```toml\n")
        .expect("the page has an example file");
    let (file, _) = rest.split_once("```").expect("the example ends");
    std::fs::write(folder.path().join("urgency.toml"), file).unwrap();

    let table = TaskTable::load(folder.path()).unwrap();
    let task = table.get("urgency").unwrap();
    let asked = table
        .ask("asr,urgency", &fields(&[("listener", "a nurse")]), None)
        .unwrap();

    for variant in task
        .training_prompts()
        .chain(task.held_out_prompts.iter().map(String::as_str))
    {
        task.fill(variant, &task.example_variables()).unwrap();
    }
    assert!(asked.instruction.contains("a nurse"), "{}", asked.instruction);
    let read = asked.joint.unwrap().by_task("ASR: help | Urgency: urgent |");
    assert_eq!(read["urgency"], "urgent");
}

#[test]
fn a_misspelt_key_is_an_error_that_names_the_file_and_the_key() {
    let error = load(&format!("{GOOD}promts = ['a']\n")).unwrap_err().to_string();

    assert!(error.contains("x.toml") && error.contains("promts"), "{error}");
}

#[test]
fn an_unknown_placeholder_is_an_error_that_names_the_file_and_the_placeholder() {
    let error = load(&format!(
        "{GOOD}prompts = ['Say {{it}} in {{language}}.']\n[fields.it]\ndescription = 'd'\nexample = 'e'\n"
    ))
    .unwrap_err()
    .to_string();

    assert!(
        error.contains("x.toml") && error.contains("`{language}`"),
        "{error}"
    );
}

#[test]
fn a_task_that_does_not_hold_together_is_refused() {
    assert!(load(GOOD).is_ok());
    for bad in [
        GOOD.replace("'x'", "'y'"),
        GOOD.replace("'x'", "'X x'"),
        GOOD.replace("'Do it.'", "' '"),
        GOOD.replace("'wer'", "'werr'"),
        GOOD.replace("Do it", "Do {it}"),
        format!("{GOOD}prompts = ['a', 'a']\n"),
        format!("{GOOD}prompts = ['a']\nheld_out_prompts = ['a']\n"),
        format!("{GOOD}held_out_prompts = ['Do it.']\n"),
        format!("{GOOD}held_out_prompts = ['Do {{ it.']\n"),
        format!("{GOOD}[answer]\nformat = 'yes'\n"),
        format!("{GOOD}[answer]\nheading = 'a: b'\n"),
        format!("{GOOD}[fields.labels]\ndescription = 'd'\nexample = 'e'\n"),
        format!("{GOOD}[fields.a]\ndescription = 'd'\nexample = ''\n"),
        format!("{GOOD}[[labels]]\nname = 'l'\n[[labels]]\nname = 'l'\n"),
        format!("{GOOD}[[labels]]\nname = 'l'\nmeaning = 'm'\n"),
        format!("{GOOD}[answer]\nformat = 'slots'\n[[labels]]\nname = 'a;b'\n"),
        format!("{GOOD}[answer]\nformat = 'labels'\n[[labels]]\nname = 'none'\n"),
    ] {
        assert!(matches!(load(&bad), Err(TextError::Task { .. })), "{bad}");
    }
}

#[test]
fn two_tasks_with_one_heading_are_refused() {
    let task = |name: &str| Task {
        name: name.into(),
        ..toml::from_str(&format!("{GOOD}[answer]\nheading = 'H'\n")).unwrap()
    };

    let error = TaskTable::from_tasks([task("a"), task("b")])
        .unwrap_err()
        .to_string();

    assert!(error.contains("heading") && error.contains("`a`"), "{error}");
}

#[test]
fn an_unknown_task_is_an_error_that_lists_the_known_ones() {
    let table = load(GOOD).unwrap();
    for names in ["asr", "x,asr", "x,", ""] {
        let error = table.list(names).unwrap_err();
        assert!(matches!(error, TextError::UnknownTask { .. }), "{error}");
        assert!(error.to_string().ends_with("known tasks: x"), "{error}");
    }
}

#[test]
fn a_task_named_twice_is_refused() {
    let error = load(GOOD).unwrap().list("x, x").unwrap_err().to_string();

    assert!(error.contains("`x` is there twice"), "{error}");
}

proptest! {
    #[test]
    fn no_task_file_makes_the_reader_panic(
        more in "(prompts|labels|answer|fields|\\[|\\]|=|'|\\{[a-z]{0,3}\\}?|\\}|\n|format|heading|a|,| ){0,30}"
    ) {
        let _ = load(&format!("{GOOD}{more}"));
    }
}

#[test]
fn a_task_says_what_has_to_be_said_for_its_labels() {
    let shipped = shipped();
    let spoken = |task: &str, variables: &TemplateVariables| shipped.get(task).unwrap().spoken(variables);
    let words = |words: &str, said: &str, unsaid: &str| {
        Some(Spoken::Words {
            words: words.into(),
            said: said.into(),
            unsaid: unsaid.into(),
        })
    };

    let radio = fields(&[("keyword", " radio ")]);
    assert_eq!(
        spoken("keyword_search", &radio).unwrap(),
        words("radio", "yes", "no")
    );
    let other = radio
        .clone()
        .with_labels(&["present".to_owned(), "absent".to_owned()]);
    let found = spoken("keyword_search", &other).unwrap();
    assert_eq!(found, words("radio", "present", "absent"));
    let other = radio.clone().with_labels(&["No".to_owned(), "yes".to_owned()]);
    let found = spoken("keyword_search", &other).unwrap();
    assert_eq!(found, words("radio", "yes", "No"));
    assert_eq!(spoken("keyword_search", &fields(&[])).unwrap(), None);
    let one = radio.clone().with_labels(&["yes".to_owned()]);
    assert_eq!(spoken("keyword_search", &one).unwrap(), None);
    assert_eq!(spoken("command", &fields(&[])).unwrap(), Some(Spoken::Labels));
    assert_eq!(spoken("emotion", &fields(&[])).unwrap(), None);
    assert_eq!(
        shipped.ask("keyword_search", &radio, None).unwrap().spoken,
        words("radio", "yes", "no")
    );
    assert_eq!(
        shipped.ask("asr,keyword_search", &radio, None).unwrap().spoken,
        None
    );

    let (task, labels) = SPEECH_DETECTION;
    let named: Vec<&str> = (shipped.get(task).unwrap().labels.iter())
        .map(|label| label.name.as_str())
        .collect();
    assert_eq!(named, labels);
}

#[test]
fn what_has_to_be_said_is_the_labels_or_a_field_of_two_labels() {
    let label = "[[labels]]\nname = 'a'\n[[labels]]\nname = 'b'\n";
    let field = "[fields.word]\ndescription = 'd'\nexample = 'e'\n";
    let task = |format: &str, spoken: &str, labels: &str| {
        load(&format!(
            "{GOOD}[answer]\nformat = '{format}'\nspoken = '{spoken}'\n{field}{labels}"
        ))
    };

    task("label", "word", label).unwrap();
    task("label", "labels", "").unwrap();
    for (format, spoken, labels) in [
        ("label", "other", label),
        ("label", "word", ""),
        ("text", "labels", ""),
    ] {
        let error = task(format, spoken, labels).unwrap_err().to_string();
        assert!(error.contains("`answer.spoken`"), "{error}");
    }
}

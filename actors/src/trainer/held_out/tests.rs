use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use speechverse::text::{OutputGrammar, Spoken, TemplateVariables};
use speechverse::training::prompt_variants::PromptVariants;
use speechverse::training::{AudioSource, Example};

use super::*;

/// The shipped tasks.
fn tasks() -> TaskTable {
    TaskTable::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/tasks")).unwrap()
}

/// A held-out sample as training prepares it.
fn sample(task: &str, variables: TemplateVariables) -> Sample {
    let instruction = "Answer in my words.".to_owned();
    Sample {
        example: Example {
            id: "sample".to_owned(),
            audio: AudioSource::Samples(Arc::from([0.0])),
            seconds: 1.0,
            task: task.to_owned(),
            instruction: Some(instruction.clone()),
            target: "yes".to_owned(),
            targets: BTreeMap::new(),
            variables: Arc::new(variables),
            domain: None,
            text: None,
        },
        answer: Vec::new(),
        ctc: None,
        label: None,
        variants: PromptVariants::verbatim(Arc::from([instruction])),
        metrics: vec![("as prepared".to_owned(), Metric::Wer)],
        grammar: OutputGrammar::free(),
        spoken: None,
    }
}

fn labels(names: &[&str]) -> TemplateVariables {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    TemplateVariables::default().with_labels(&names)
}

fn asked(task: &str, variables: TemplateVariables, constrained: bool) -> Sample {
    let mut sample = sample(task, variables);
    ask_as_serving(&mut sample, constrained, &tasks());
    sample
}

fn metrics(sample: &Sample) -> Vec<(&str, Metric)> {
    let metrics = sample.metrics.iter();
    metrics.map(|(task, metric)| (task.as_str(), *metric)).collect()
}

#[test]
fn an_instruction_alone_is_constrained_to_its_labels_and_judged_by_accuracy() {
    for task in [OPEN_TASK, "asr"] {
        let asked = asked(task, labels(&["lamp_on", "lamp_off"]), true);

        assert_eq!(asked.grammar, OutputGrammar::one_of(["lamp_on", "lamp_off"]));
    }
    let with_labels = asked(OPEN_TASK, labels(&["lamp_on"]), true);
    let without = asked(OPEN_TASK, TemplateVariables::default(), false);

    assert_eq!(metrics(&with_labels), [(OPEN_CHOICE, Metric::Accuracy)]);
    assert_eq!(metrics(&without), [(OPEN_TASK, Metric::Wer)]);
    assert!(without.grammar.is_free());
}

#[test]
fn an_answer_is_constrained_where_its_request_said_so_and_only_there() {
    let emotion =
        |variables: TemplateVariables, constrained| asked("emotion", variables, constrained).grammar;

    assert!(emotion(labels(&["happy"]), false).is_free());
    assert!(emotion(TemplateVariables::default(), false).is_free());
    assert_eq!(
        emotion(labels(&["happy"]), true),
        OutputGrammar::one_of(["happy"])
    );
    assert!(
        !emotion(TemplateVariables::default(), true).is_free(),
        "the task's own labels"
    );
}

#[test]
fn keyword_search_listens_for_the_word_that_its_request_gave() {
    let mut variables = TemplateVariables::default();
    variables.fields.insert("keyword".to_owned(), "radio".to_owned());

    let asked = asked("keyword_search", variables, true);

    let Some(Spoken::Words { words, .. }) = &asked.spoken else {
        panic!("{:?}", asked.spoken)
    };
    assert_eq!(words, "radio");
    assert_eq!(metrics(&asked), [("keyword_search", Metric::Accuracy)]);
}

#[test]
fn the_answer_to_several_tasks_is_laid_out_as_serving_does_and_judged_for_each() {
    let asked = asked("asr,intent", TemplateVariables::default(), true);

    assert_eq!(asked.variants.first(), "Answer in my words.");
    assert_eq!(
        metrics(&asked),
        [("asr", Metric::Wer), ("intent", Metric::Accuracy)]
    );
    let layout = asked.variants.layout().unwrap();
    assert_eq!(asked.grammar, layout.grammar());
    let answers = layout.by_task("ASR: play it | Intent: play_radio |");
    assert_eq!(
        (answers["asr"].as_str(), answers["intent"].as_str()),
        ("play it", "play_radio")
    );
}

#[test]
fn a_question_that_serving_cannot_ask_any_more_is_judged_as_free_text() {
    for (task, variables) in [
        ("a task that is gone", TemplateVariables::default()),
        ("asr,a task that is gone", TemplateVariables::default()),
        ("emotion,intent", labels(&["happy"])),
    ] {
        let asked = asked(task, variables, true);

        assert_eq!(metrics(&asked), [(task, Metric::Wer)]);
        assert!(asked.grammar.is_free() && asked.variants.layout().is_none());
    }
}

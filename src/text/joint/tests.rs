//! Compound prompts and their answers.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::inference::grammar::CompiledGrammar;
use crate::testing::fixture;
use crate::text::Tokenizer;
use crate::text::tasks::TaskTable;
use crate::text::tiny::byte_tokenizer_json;

fn table() -> TaskTable {
    TaskTable::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tasks")).unwrap()
}

fn layout(names: &str) -> JointLayout {
    let table = table();
    JointLayout::new(&table.list(names).unwrap(), &TemplateVariables::default()).unwrap()
}

fn some(values: &[&str]) -> Vec<Option<String>> {
    values.iter().map(|value| Some((*value).to_owned())).collect()
}

#[test]
fn a_compound_prompt_names_the_tasks_in_order_and_ends_with_the_layout_of_the_answer() {
    let asked = table()
        .ask("asr,keywords", &TemplateVariables::default(), None)
        .unwrap();

    assert_eq!(
        asked.instruction,
        "Work through these tasks on the recording, one after the other.\n\
         === Task: ASR ===\nTranscribe the speech.\n\
         === Task: KWE ===\nList the keywords of the speech, separated by commas.\n\
         Put all results into one line of this form: ASR: ... | KWE: ... |"
    );
}

#[test]
fn every_frame_of_a_compound_prompt_is_another_one() {
    let layout = layout("asr,emotion");
    let all: std::collections::BTreeSet<String> = (0..JointLayout::VARIANTS)
        .map(|variant| layout.instruction(&["a", "b"], variant))
        .collect();

    assert_eq!(all.len(), JointLayout::VARIANTS);
    assert!(
        all.iter()
            .all(|text| text.ends_with(" ASR: ... | Emotion: ... |"))
    );
}

#[test]
fn the_papers_answer_is_written_and_read() {
    let layout = layout("asr,keywords");
    let text = layout.write(&["turn on the radio now", "radio, now"]);

    assert_eq!(text, "ASR: turn on the radio now | KWE: radio, now |");
    assert_eq!(layout.read(&text), some(&["turn on the radio now", "radio, now"]));
    assert_eq!(layout.by_task(&text)["keywords"], "radio, now");
}

#[test]
fn what_is_missing_is_missing_and_the_rest_is_read() {
    let layout = layout("asr,intent,keywords");
    for (text, expected) in [
        ("", [None, None, None]),
        ("no heading at all", [None, None, None]),
        ("ASR: a | KWE: k |", [Some("a"), None, Some("k")]),
        ("ASR: a | Intent: i", [Some("a"), Some("i"), None]),
        (
            "|| asr : a ||| INTENT:i | | KWE: |",
            [Some("a"), Some("i"), Some("")],
        ),
        ("KWE: k | ASR: a |", [Some("a"), None, Some("k")]),
        ("ASR: a | ASR: b | KWE: k |", [Some("a"), None, Some("k")]),
        (
            "ASR: a | b | c: d | KWE: k |",
            [Some("a | b | c: d"), None, Some("k")],
        ),
        (r"ASR: a \| b \\ c \d |", [Some(r"a | b \ c \d"), None, None]),
        ("lead ASR: x | KWE: k |", [None, None, Some("k")]),
        ("ASR:", [Some(""), None, None]),
    ] {
        let expected: Vec<Option<String>> = expected.iter().map(|value| value.map(str::to_owned)).collect();
        assert_eq!(layout.read(text), expected, "{text}");
    }
}

#[test]
fn every_task_has_an_entry_even_when_the_answer_lacks_it() {
    let fields = layout("asr,intent").by_task("Intent: play_radio |");

    assert_eq!(
        fields.into_iter().collect::<Vec<_>>(),
        [
            ("asr".to_owned(), String::new()),
            ("intent".to_owned(), "play_radio".to_owned())
        ]
    );
}

#[test]
fn the_shape_of_a_compound_answer_constrains_the_parts_that_have_labels() {
    let table = table();
    let labels = ["a".to_owned(), "b".to_owned()];
    let asked = table
        .ask(
            "asr,intent",
            &TemplateVariables::default().with_labels(&labels),
            None,
        )
        .unwrap();

    assert_eq!(
        asked.grammar.pieces,
        [
            GrammarPiece::Literal("ASR:".into()),
            GrammarPiece::Free { stop: Some('|') },
            GrammarPiece::Literal("| Intent: ".into()),
            GrammarPiece::Choice(labels.to_vec().into()),
            GrammarPiece::Literal(" |".into()),
        ]
    );
    assert_eq!(asked.joint.unwrap().write(&["x", "b"]), "ASR: x | Intent: b |");
}

#[test]
fn a_constrained_answer_may_be_spelled_as_it_is_trained_also_where_nothing_is_said() {
    let variables = TemplateVariables::default().with_labels(&["a".to_owned(), "b".to_owned()]);
    let tokenizers = [
        Tokenizer::from_bytes(byte_tokenizer_json().as_bytes()).unwrap(),
        Tokenizer::open(&fixture("t5_tokenizer")).unwrap(),
    ];
    for tokenizer in tokenizers {
        let token_bytes = tokenizer.token_bytes().unwrap();
        for names in ["asr,intent", "intent,asr", "asr,keywords,intent"] {
            let asked = table().ask(names, &variables, None).unwrap();
            let layout = asked.joint.unwrap();
            let grammar = CompiledGrammar::new(&asked.grammar, token_bytes.clone(), &[]).unwrap();
            let fits = |text: &str| {
                let ids = tokenizer.encode_plain(text).unwrap();
                let mut ids = ids.iter();
                let end = ids.try_fold(grammar.begin(), |progress, id| grammar.advance(&progress, *id));
                end.is_some_and(|end| grammar.may_end(&end))
            };
            for (words, label, allowed) in [("on", "b", true), ("", "a", true), ("on", "c", false)] {
                let fields = layout.fields().iter();
                let values: Vec<&str> = fields
                    .map(|field| if field.labels.is_empty() { words } else { label })
                    .collect();
                let text = layout.write(&values);

                assert_eq!(fits(&text), allowed, "{text}");
            }
        }
    }
}

#[test]
fn labels_that_could_go_to_two_tasks_or_to_none_are_refused() {
    let table = table();
    let variables = TemplateVariables::default().with_labels(&["a".to_owned()]);
    for names in ["intent,slots", "asr,keywords"] {
        let error = table.ask(names, &variables, None).unwrap_err().to_string();
        assert!(error.contains("expected 1"), "{error}");
    }
    let separator = TemplateVariables::default().with_labels(&["a|b".to_owned()]);
    assert!(matches!(
        table.ask("asr,intent", &separator, None),
        Err(TextError::Label { .. })
    ));
    assert!(table.ask("intent", &separator, None).is_ok());
}

proptest! {
    #[test]
    fn what_was_written_is_read_back(
        values in proptest::collection::vec("\\PC{0,30}|[a-z|\\\\: \nKWE]{0,20}|KWE: x \\| ASR: y", 3)
    ) {
        let layout = layout("asr,intent,keywords");
        let text = layout.write(&values);
        let expected: Vec<Option<String>> =
            values.iter().map(|value| Some(value.trim().to_owned())).collect();
        prop_assert_eq!(layout.read(&text), expected, "{}", text);
    }

    #[test]
    fn no_text_makes_the_reader_panic_and_every_task_has_one_entry(
        text in "\\PC{0,60}|([|\\\\:]|ASR|KWE| |a){0,20}"
    ) {
        let layout = layout("asr,keywords");
        prop_assert_eq!(layout.by_task(&text).len(), 2);
    }
}

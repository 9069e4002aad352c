//! Answers of a structure: random schemas and regular expressions, random models, any limit that is not below
//! the least.

use proptest::prelude::{
    BoxedStrategy, Just, ProptestConfig, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use proptest::strategy::Strategy as Strategy_;
use serde_json::{Value, json};

use super::constrained::{answer, strategies};
use super::random_model::RandomModel;
use super::shapes::{END, compiled, spelt};
use super::*;
use crate::inference::grammar::{Allowed, CompiledGrammar};
use crate::text::{GrammarPiece, OutputGrammar, Structure, StructureKind, TokenBytes, Tokenizer};

/// Every byte, and pieces that go across the seams of JSON.
fn vocabulary() -> Arc<TokenBytes> {
    let pieces = [
        "{\"", "\":", "\": ", "\": \"", "\",", "\", \"", "\"}", "}]", "]}", "[]", "{}", "[[", "true",
        "false", "null", "ab", "abc", "12", "20", "0.", "-1", "é", "name", "kids", ", ", "\n", "  ", "\\u00",
        "(", "((", ")",
    ];
    let bytes = (0..=255u8).map(|byte| vec![byte].into_boxed_slice());
    let mut texts: Vec<Box<[u8]>> = bytes.collect();
    texts.extend(
        pieces
            .iter()
            .filter(|piece| piece.len() > 1)
            .map(|piece| piece.as_bytes().into()),
    );
    let count = texts.len() as i64 + 2;
    Arc::new(TokenBytes::new(texts.into_iter().zip(2..).collect(), count))
}

/// The vocabulary of a T5 in small: characters and pieces, no bytes, neither brackets nor braces.
fn t5_vocabulary() -> Arc<TokenBytes> {
    let tokenizer = Tokenizer::open(&fixture("t5_tokenizer")).unwrap();
    tokenizer.token_bytes().unwrap()
}

fn grammar(kind: StructureKind, source: &str, token_bytes: &Arc<TokenBytes>) -> Arc<CompiledGrammar> {
    let structure = Structure::new(kind, source).unwrap_or_else(|error| panic!("{source}: {error}"));
    compiled(
        &OutputGrammar::of(GrammarPiece::Structure(Arc::new(structure))),
        token_bytes,
    )
}

/// A schema, up to three deep.
fn schema() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "string"})),
        (0u8..4, 0u8..3).prop_map(
            |(least, more)| json!({"type": "string", "minLength": least, "maxLength": least + more})
        ),
        Just(json!({"type": "string", "pattern": "^[a-c]+[0-9]?$"})),
        Just(json!({"type": "string", "format": "date"})),
        (-30i32..30, 0i32..200)
            .prop_map(|(least, more)| json!({"type": "integer", "minimum": least, "maximum": least + more})),
        Just(json!({"type": "number", "minimum": 0, "maximum": 1})),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "null"})),
        prop::collection::vec("[a-d \"é]{0,4}", 1..4).prop_map(|texts| json!({ "enum": texts })),
        Just(json!({"const": {"a": [1, "b"]}})),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let properties = prop::collection::btree_map("[a-d]{1,3}", (inner.clone(), any::<bool>()), 0..4);
        prop_oneof![
            (inner.clone(), 0u8..3, 0u8..3).prop_map(|(item, least, more)| {
                json!({"type": "array", "items": item, "minItems": least, "maxItems": least + more})
            }),
            prop::collection::vec(inner.clone(), 1..3).prop_map(|options| json!({ "anyOf": options })),
            (properties, any::<bool>()).prop_map(|(properties, closed)| {
                let required: Vec<&String> = properties
                    .iter()
                    .filter(|(_, (_, required))| *required)
                    .map(|(name, _)| name)
                    .collect();
                let mut schema = json!({
                    "type": "object",
                    "properties": properties.iter().map(|(name, (of, _))| (name.clone(), of.clone()))
                        .collect::<serde_json::Map<_, _>>(),
                    "required": required,
                });
                if closed {
                    schema["additionalProperties"] = json!(false);
                }
                schema
            }),
        ]
    })
    .boxed()
}

/// A regular expression that does not match texts with white space at their ends.
fn pattern() -> BoxedStrategy<String> {
    let leaf = prop_oneof![
        "[a-d]{1,3}",
        Just("[a-z]".to_owned()),
        Just("\\d".to_owned()),
        Just("[^\\s\"]".to_owned()),
        Just("\\p{Greek}".to_owned()),
        Just("é|ab".to_owned()).prop_map(|text| format!("(?:{text})")),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.concat()),
            prop::collection::vec(inner.clone(), 2..4).prop_map(|parts| format!("(?:{})", parts.join("|"))),
            (
                inner.clone(),
                prop_oneof!["\\*", "\\+", "\\?", "\\{2\\}", "\\{1,3\\}", "\\{2,\\}"]
            )
                .prop_map(|(part, times)| format!("(?:{part}){times}")),
        ]
    })
    .boxed()
}

/// Answers of a model that does not like to end, in every way of decoding; each inside its limit.
fn answers(
    grammar: &Arc<CompiledGrammar>,
    token_bytes: &TokenBytes,
    seed: u64,
    spare: usize,
) -> Vec<(Strategy, String)> {
    let mut model = RandomModel::new(token_bytes.vocabulary(), seed);
    model.biases = vec![(END, -20.0)];
    let tokens_max = grammar.tokens_min() + spare;
    let each = strategies().map(|strategy| {
        let found = answer(&model, Some(grammar), strategy, tokens_max);
        let text = spelt(token_bytes, &found.ids);
        assert!(
            found.ended && found.log_probs.len() <= tokens_max,
            "{strategy:?} {text:?}"
        );
        (strategy, text.trim().to_owned())
    });
    each.into()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_answer_of_a_schema_is_valid_and_ends_inside_its_limit(
        schema in schema(), seed in any::<u64>(), spare in 0usize..30
    ) {
        let token_bytes = vocabulary();
        let grammar = grammar(StructureKind::JsonSchema, &schema.to_string(), &token_bytes);
        let validator = jsonschema::validator_for(&schema).unwrap();
        for (strategy, text) in answers(&grammar, &token_bytes, seed, spare) {
            let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert!(is_json, "{:?} {}: {}", strategy, schema, text);
            match serde_json::from_str::<Value>(&text) {
                Ok(value) => prop_assert!(validator.is_valid(&value), "{:?} {}: {}", strategy, schema, text),
                // JSON all the same (RFC 8259, section 6), but nothing that the validator can hold.
                Err(error) => prop_assert!(error.to_string().contains("number out of range"), "{error}: {}", text),
            }
        }
    }

    #[test]
    fn an_answer_of_a_regular_expression_matches_and_ends_inside_its_limit(
        pattern in pattern(), seed in any::<u64>(), spare in 0usize..30
    ) {
        let token_bytes = vocabulary();
        let grammar = grammar(StructureKind::Regex, &pattern, &token_bytes);
        let whole = regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
        for (strategy, text) in answers(&grammar, &token_bytes, seed, spare) {
            prop_assert!(whole.is_match(&text), "{:?} {}: {:?}", strategy, pattern, text);
        }
    }

    #[test]
    fn answers_of_different_structures_side_by_side_are_those_that_each_has_alone(
        schemas in prop::collection::vec(schema(), 2..4), pattern in pattern(), seed in any::<u64>()
    ) {
        let token_bytes = vocabulary();
        let mut grammars: Vec<_> = (schemas.iter())
            .map(|schema| grammar(StructureKind::JsonSchema, &schema.to_string(), &token_bytes))
            .collect();
        grammars.push(grammar(StructureKind::Regex, &pattern, &token_bytes));
        let model = RandomModel::new(token_bytes.vocabulary(), seed);
        let asked = |grammar: &Arc<CompiledGrammar>| Prompt {
            grammar: Some(Arc::clone(grammar)),
            ..prompt(&model, &[5], DecodeOptions::greedy(grammar.tokens_min() + 8))
        };
        let vocabulary = token_bytes.vocabulary();

        let together = generate_all(&model, grammars.iter().map(asked).collect(), 3, &[END], vocabulary, &[]).unwrap();

        for (grammar, beside) in grammars.iter().zip(together) {
            let alone = generate_all(&model, vec![asked(grammar)], 1, &[END], vocabulary, &[]).unwrap().remove(0);
            prop_assert_eq!(beside.ids, alone.ids);
        }
    }
}

#[test]
fn a_recursive_grammar_ends_wherever_its_answer_has_gone() {
    let token_bytes = vocabulary();
    let tree = json!({
        "$ref": "#/$defs/node",
        "$defs": {"node": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["name", "kids"],
            "additionalProperties": false,
        }},
    });
    let sums = "start: expr\nexpr: term | expr \"+\" term\nterm: NUMBER | \"(\" expr \")\"\nNUMBER: /[0-9]+/\n%ignore \" \"\n";
    let ambiguous = "start: \"a\" start? start? | \"b\"";
    for (kind, source) in [
        (StructureKind::JsonSchema, tree.to_string()),
        (StructureKind::Lark, sums.to_owned()),
        (StructureKind::Lark, ambiguous.to_owned()),
    ] {
        let grammar = grammar(kind, &source, &token_bytes);
        let validator = jsonschema::validator_for(&tree).unwrap();
        for seed in 0..6 {
            for (strategy, text) in answers(&grammar, &token_bytes, seed, 60) {
                match kind {
                    StructureKind::JsonSchema => {
                        let value: Value = serde_json::from_str(&text).unwrap();
                        assert!(validator.is_valid(&value), "{strategy:?} {text}");
                    }
                    _ if source == sums => {
                        let depth = text.chars().fold(0i32, |depth, letter| {
                            let depth = depth + i32::from(letter == '(') - i32::from(letter == ')');
                            assert!(depth >= 0, "{text}");
                            depth
                        });
                        assert_eq!(depth, 0, "{text}");
                    }
                    _ => assert!(text.chars().all(|letter| "ab".contains(letter)), "{text}"),
                }
            }
        }
    }
}

#[test]
fn a_limit_below_the_least_is_refused_with_a_shortest_answer() {
    let token_bytes = vocabulary();
    let grammar = grammar(StructureKind::Regex, "abcab[0-9]{3}", &token_bytes);

    let refused = grammar.check_tokens(4).unwrap_err().to_string();

    // `abc`, `ab`, three digits and the end, or fewer where two digits are one token.
    assert_eq!(grammar.tokens_min(), 6);
    assert!(refused.contains("takes 6 tokens"), "{refused}");
    assert!(grammar.check_tokens(6).is_ok());
}

#[test]
fn a_vocabulary_of_pieces_writes_every_form_that_it_can_spell() {
    let token_bytes = t5_vocabulary();
    assert!(!token_bytes.spells_every_byte());
    for pattern in [
        r"\d\d:\d\d",
        "(caf|th)é!",
        "[éöü]{2}(, [éß])*",
        r"\p{Lu}\w{1,12}( \p{Lu}\w*)?",
        "yes|no|[a-z]+/é",
    ] {
        let grammar = grammar(StructureKind::Regex, pattern, &token_bytes);
        let whole = regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
        for seed in 0..4 {
            for (strategy, text) in answers(&grammar, &token_bytes, seed, 9) {
                assert!(whole.is_match(&text), "{strategy:?} {pattern} {text:?}");
            }
        }
    }
    for schema in [
        json!({"type": "integer", "minimum": 7}),
        json!({"enum": ["hall", "café", 3]}),
        json!({"type": "string", "minLength": 2, "maxLength": 5}),
    ] {
        let grammar = grammar(StructureKind::JsonSchema, &schema.to_string(), &token_bytes);
        let validator = jsonschema::validator_for(&schema).unwrap();
        for (strategy, text) in answers(&grammar, &token_bytes, 1, 9) {
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!(validator.is_valid(&value), "{strategy:?} {text}");
        }
    }

    let object = Structure::new(StructureKind::JsonSchema, r#"{"type": "object"}"#).unwrap();
    let object = OutputGrammar::of(GrammarPiece::Structure(Arc::new(object)));
    let refused = CompiledGrammar::new(&object, token_bytes, &[END]).unwrap_err();
    assert!(
        refused.to_string().contains("vocabulary cannot spell"),
        "{refused}"
    );
}

#[test]
fn an_ambiguous_grammar_takes_bounded_work_and_its_answers_end_inside_their_limits() {
    let token_bytes = vocabulary();
    // Each level can be read in two ways that end in different texts: 2^24 stacks before the first byte.
    let mut doubled = String::from("start: a0\n");
    for level in 0..24 {
        let next = level + 1;
        doubled += &format!("a{level}: a{next} \"x\" | a{next} \"yy\"\n");
    }
    doubled += "a24: \"z\"";
    // Very many terminals at once, most of which go on for ever.
    let many = (0..900).map(|at| format!("/[a-z]*{at}q/")).collect::<Vec<_>>();
    let many = format!("start: item+\nitem: {}", many.join(" | "));
    // Calls nested as deep as a source allows.
    let mut nested = String::from("start: a0\n");
    for level in 0..3_000 {
        nested += &format!("a{level}: a{} \"x\"\n", level + 1);
    }
    nested += "a3000: \"z\"";
    for source in [doubled.as_str(), &many] {
        let grammar = grammar(StructureKind::Lark, source, &token_bytes);
        answers(&grammar, &token_bytes, 3, 12);
    }
    let grammar = grammar(StructureKind::Lark, &nested, &token_bytes);
    let (mut progress, mut text) = (grammar.begin(), Vec::new());
    for left in (2..=grammar.tokens_min()).rev() {
        let Allowed::Only(ids) = &*grammar.allowed(&progress, left) else {
            panic!("very few tokens go on from here")
        };
        text.push(ids[0]);
        progress = grammar.advance(&progress, ids[0]).unwrap();
    }
    assert!(grammar.may_end(&progress));
    assert_eq!(spelt(&token_bytes, &text), format!("z{}", "x".repeat(3_000)));
}

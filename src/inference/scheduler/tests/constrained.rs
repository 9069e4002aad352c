//! Constrained answers: random shapes, random vocabularies, random models.

use std::collections::BTreeSet;

use proptest::prelude::{
    Just, ProptestConfig, any, prop, prop_assert, prop_assert_eq, prop_assume, prop_oneof, proptest,
};
use proptest::strategy::Strategy as Strategy_;

use super::random_model::RandomModel;
use super::*;
use crate::inference::grammar::{Allowed, CompiledGrammar};
use crate::nn::random::SplitMix;
use crate::text::answer::NONE;
use crate::text::{GrammarPiece, OutputGrammar, TokenBytes};

/// The token that ends an answer.
pub(super) const END: i64 = 0;
/// A control token that is of no use here.
const CONTROL: i64 = 1;

/// A vocabulary over few letters, so that much is a prefix of much: single characters (or all bytes) and
/// random pieces.
fn vocabulary(seed: u64, every_byte: bool) -> Arc<TokenBytes> {
    const LETTERS: &[char] = &['a', 'b', ' ', ',', ';', '=', '|', 'n', 'o', 'e', 'é'];
    let mut dice = SplitMix::new(&[seed, 17]);
    let mut pieces: BTreeSet<Vec<u8>> = BTreeSet::new();
    if every_byte {
        pieces.extend((0..=255u8).map(|byte| vec![byte]));
    } else {
        pieces.extend(LETTERS.iter().map(|letter| letter.to_string().into_bytes()));
    }
    for _ in 0..60 {
        let length = 2 + dice.below(4);
        let piece: String = (0..length).map(|_| LETTERS[dice.below(LETTERS.len())]).collect();
        pieces.insert(piece.into_bytes());
    }
    for piece in [" = ", "; ", ", ", "none", " |", " | b", "\n", "\n\n"] {
        pieces.insert(piece.as_bytes().to_vec());
    }
    let tokens: Vec<(Box<[u8]>, i64)> = pieces.into_iter().map(Vec::into_boxed_slice).zip(2..).collect();
    let count = tokens.len() as i64 + 2;
    Arc::new(TokenBytes::new(tokens, count))
}

pub(super) fn spelt(token_bytes: &TokenBytes, ids: &[i64]) -> String {
    let bytes: Vec<u8> = ids
        .iter()
        .flat_map(|id| token_bytes.bytes(*id).unwrap())
        .copied()
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A way to write a text, by chance.
fn spell(token_bytes: &TokenBytes, text: &str, dice: &mut SplitMix) -> Vec<i64> {
    let mut ids = Vec::new();
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let begins: Vec<&(Box<[u8]>, i64)> = (token_bytes.tokens().iter())
            .filter(|(bytes, _)| rest.starts_with(bytes))
            // Half a character may be where nothing goes on.
            .filter(|(bytes, _)| token_bytes.spells_every_byte() || std::str::from_utf8(bytes).is_ok())
            .collect();
        let (bytes, id) = begins[dice.below(begins.len())];
        ids.push(*id);
        rest = &rest[bytes.len()..];
    }
    ids
}

/// Whether a text fits, said in another way than the automaton does.
fn fits(pieces: &[GrammarPiece], text: &str) -> bool {
    let Some((piece, rest)) = pieces.split_first() else {
        return text.is_empty();
    };
    let after = |start: &str| text.strip_prefix(start).is_some_and(|text| fits(rest, text));
    match piece {
        GrammarPiece::Literal(literal) => after(literal),
        GrammarPiece::Free { stop } => {
            let places = (0..=text.len()).filter(|place| text.is_char_boundary(*place));
            places.into_iter().any(|place| {
                let (free, text) = text.split_at(place);
                !stop.is_some_and(|stop| free.contains(stop)) && fits(rest, text)
            })
        }
        GrammarPiece::Choice(labels) => labels.iter().any(|label| after(label)),
        GrammarPiece::Choices(labels) => {
            after(NONE) || several(labels, &mut Vec::new(), text, &|text| fits(rest, text))
        }
        GrammarPiece::Slots(labels) => after(NONE) || slots(labels, text, &|text| fits(rest, text)),
        GrammarPiece::Structure(_) => panic!("structures have tests of their own"),
    }
}

fn several<'l>(
    labels: &'l [String],
    used: &mut Vec<&'l str>,
    text: &str,
    then: &dyn Fn(&str) -> bool,
) -> bool {
    labels.iter().any(|label| {
        let Some(text) = text
            .strip_prefix(label.as_str())
            .filter(|_| !used.contains(&label.as_str()))
        else {
            return false;
        };
        used.push(label);
        let more = |text: &str, used: &mut Vec<&'l str>| several(labels, used, text, then);
        let good = then(text) || text.strip_prefix(", ").is_some_and(|text| more(text, used));
        used.pop();
        good
    })
}

fn slots(labels: &[String], text: &str, then: &dyn Fn(&str) -> bool) -> bool {
    labels.iter().any(|label| {
        let value = text
            .strip_prefix(label.as_str())
            .and_then(|text| text.strip_prefix(" = "));
        let Some((value, text)) = value.and_then(|text| text.split_once(';')) else {
            return false;
        };
        let good = !value.trim().is_empty() && !value.contains('|');
        good && (then(text)
            || text
                .strip_prefix(' ')
                .is_some_and(|text| slots(labels, text, then)))
    })
}

/// A text that fits, by chance.
fn example(pieces: &[GrammarPiece], dice: &mut SplitMix) -> String {
    let mut text = String::new();
    for piece in pieces {
        match piece {
            GrammarPiece::Literal(literal) => text += literal,
            GrammarPiece::Structure(_) => panic!("structures have tests of their own"),
            GrammarPiece::Free { .. } => text += ["", "a", "bon a", "é;n=o"][dice.below(4)],
            GrammarPiece::Choice(labels) => text += &labels[dice.below(labels.len())],
            GrammarPiece::Choices(labels) | GrammarPiece::Slots(labels) => {
                let mut order: Vec<&String> = labels.iter().collect();
                dice.shuffle(&mut order);
                order.truncate(dice.below(labels.len() + 1));
                let is_slots = matches!(piece, GrammarPiece::Slots(_));
                let parts: Vec<String> = (order.iter())
                    .map(|label| match is_slots {
                        true => format!("{label} = {};", ["a", "no é", " b "][dice.below(3)]),
                        false => (*label).clone(),
                    })
                    .collect();
                match (parts.is_empty(), is_slots) {
                    (true, _) => text += NONE,
                    (false, true) => text += &parts.join(" "),
                    (false, false) => text += &parts.join(", "),
                }
            }
        }
    }
    text
}

fn label() -> impl Strategy_<Value = String> {
    "[abnoe][abnoe, é]{0,4}[abnoe]|[abno]|none|a|a, b|ab|no|é"
}

fn labels() -> impl Strategy_<Value = Arc<[String]>> {
    prop::collection::btree_set(label(), 1..6).prop_map(|labels| labels.into_iter().collect())
}

fn piece() -> impl Strategy_<Value = GrammarPiece> {
    prop_oneof![
        labels().prop_map(GrammarPiece::Choice),
        labels().prop_map(GrammarPiece::Choices),
        labels().prop_map(GrammarPiece::Slots),
        Just(GrammarPiece::Free { stop: Some('|') }),
    ]
}

/// One part, or several between literals as in joint decoding.
fn source() -> impl Strategy_<Value = OutputGrammar> {
    let joint = prop::collection::vec(piece(), 2..4).prop_map(|parts| {
        let mut pieces = vec![GrammarPiece::Literal("a: ".replace(':', "b").into())];
        for part in parts {
            pieces.push(part);
            pieces.push(GrammarPiece::Literal(" | bob ".into()));
        }
        pieces.pop();
        pieces.push(GrammarPiece::Literal(" |".into()));
        OutputGrammar { pieces }
    });
    let alone = piece().prop_filter("free text alone is no grammar", |piece| {
        !matches!(piece, GrammarPiece::Free { .. })
    });
    prop_oneof![3 => alone.prop_map(OutputGrammar::of), 2 => joint]
}

pub(super) fn compiled(source: &OutputGrammar, token_bytes: &Arc<TokenBytes>) -> Arc<CompiledGrammar> {
    Arc::new(CompiledGrammar::new(source, Arc::clone(token_bytes), &[END]).unwrap())
}

fn allows(allowed: &Allowed, id: i64) -> bool {
    match allowed {
        Allowed::Only(ids) => ids.contains(&id),
        Allowed::AllBut(ids) => !ids.contains(&id),
    }
}

pub(super) fn strategies() -> [Strategy; 4] {
    let beam = |width, length_penalty| {
        Strategy::Beam(BeamSettings {
            width,
            length_penalty,
            early_stopping: EarlyStopping::No,
        })
    };
    let sampling = Sampling {
        temperature: 1.5,
        top_k: 0,
        top_p: 0.95,
        seed: 3,
    };
    [
        Strategy::Greedy,
        beam(3, 1.0),
        beam(5, 0.0),
        Strategy::Sample(sampling),
    ]
}

pub(super) fn answer(
    model: &RandomModel,
    grammar: Option<&Arc<CompiledGrammar>>,
    strategy: Strategy,
    tokens_max: usize,
) -> Generation {
    let prompt = Prompt {
        grammar: grammar.cloned(),
        ..prompt(
            model,
            &[5],
            DecodeOptions {
                strategy,
                stop_loops: false,
                ..DecodeOptions::greedy(tokens_max)
            },
        )
    };
    let vocabulary = model.info().vocab;
    generate_all(model, vec![prompt], 8, &[END], vocabulary, &[])
        .unwrap()
        .remove(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whoever_follows_allowed_tokens_writes_what_fits_and_is_never_stuck(
        source in source(), seed in any::<u64>(), every_byte in any::<bool>()
    ) {
        let token_bytes = vocabulary(seed, every_byte);
        let grammar = compiled(&source, &token_bytes);
        let mut dice = SplitMix::new(&[seed]);
        let (mut progress, mut ids) = (grammar.begin(), Vec::new());
        loop {
            let allowed = grammar.allowed(&progress, usize::MAX);
            let all: Vec<i64> = (0..token_bytes.vocabulary()).filter(|id| allows(&allowed, *id)).collect();
            prop_assert!(!all.is_empty(), "stuck after {:?}", spelt(&token_bytes, &ids));
            prop_assert!(!all.contains(&CONTROL));
            for id in (0..token_bytes.vocabulary()).filter(|_| ids.len() < 4) {
                prop_assert_eq!(all.contains(&id), grammar.advance(&progress, id).is_some());
            }
            let ends = all.contains(&END);
            if ends {
                let text = spelt(&token_bytes, &ids);
                prop_assert!(fits(&source.pieces, text.trim()), "{:?} is no {:?}", text, source);
            }
            // Bytes that begin a character only now and then, or the text gets broken.
            let whole = |id: &i64| token_bytes.bytes(*id).is_some_and(|bytes| bytes.is_ascii());
            let likely: Vec<i64> = all.iter().copied().filter(whole).collect();
            let pool = if likely.is_empty() || dice.chance(0.05) && !every_byte { &all } else { &likely };
            let id = pool[dice.below(pool.len())];
            if ends && (dice.chance(0.5) || ids.len() > 60) || id == END {
                break;
            }
            if ids.len() > 400 {
                // Free text may go on for ever.
                break;
            }
            progress = grammar.advance(&progress, id).unwrap();
            ids.push(id);
        }
    }

    #[test]
    fn what_fits_is_allowed_however_it_is_tokenised(
        source in source(), seed in any::<u64>(), every_byte in any::<bool>(), blanks in 0usize..3
    ) {
        let token_bytes = vocabulary(seed, every_byte);
        let grammar = compiled(&source, &token_bytes);
        let mut dice = SplitMix::new(&[seed, 5]);
        let text = example(&source.pieces, &mut dice);
        prop_assert!(fits(&source.pieces, &text), "{:?}", text);
        let around = [("", ""), (" ", "\n"), ("\n\n", " ")][blanks];
        let text = format!("{}{}{}", around.0, text, around.1);
        let mut progress = grammar.begin();
        for id in spell(&token_bytes, &text, &mut dice) {
            let next = grammar.advance(&progress, id);
            prop_assert!(next.is_some(), "{:?} in {:?} for {:?}", token_bytes.bytes(id), text, source);
            progress = next.unwrap();
        }
        prop_assert!(grammar.may_end(&progress));
    }

    #[test]
    fn a_free_greedy_answer_that_fits_comes_out_the_same_when_constrained(
        source in source(), seed in any::<u64>(), every_byte in any::<bool>()
    ) {
        let token_bytes = vocabulary(seed, every_byte);
        let grammar = compiled(&source, &token_bytes);
        let mut dice = SplitMix::new(&[seed, 6]);
        let text = example(&source.pieces, &mut dice);
        let mut model = RandomModel::new(token_bytes.vocabulary(), seed);
        model.forced = spell(&token_bytes, &text, &mut dice);
        model.forced.push(END);

        let free = answer(&model, None, Strategy::Greedy, 200);
        let constrained = answer(&model, Some(&grammar), Strategy::Greedy, 200);

        prop_assert_eq!(spelt(&token_bytes, &free.ids), text);
        prop_assert_eq!(&free.ids, &constrained.ids);
        prop_assert_eq!(free.log_probs, constrained.log_probs);
        prop_assert!(constrained.ended);
    }

    #[test]
    fn whatever_a_model_likes_a_choice_is_one_of_the_labels_and_known_as_such(
        labels in labels(), seed in any::<u64>(), every_byte in any::<bool>()
    ) {
        let token_bytes = vocabulary(seed, every_byte);
        let source = OutputGrammar::one_of(labels.iter().cloned());
        let grammar = compiled(&source, &token_bytes);
        let mut model = RandomModel::new(token_bytes.vocabulary(), seed);
        // It would rather write control tokens than anything else.
        model.biases = vec![(CONTROL, 30.0)];
        for strategy in strategies() {
            let found = answer(&model, Some(&grammar), strategy, 60);
            let text = spelt(&token_bytes, &found.ids);
            prop_assert!(found.ended, "{:?} {:?}", strategy, text);
            prop_assert_eq!(found.label.map(|label| labels[label].as_str()), Some(text.trim()));
            prop_assert!(found.log_probs.iter().all(|log_prob| log_prob.is_finite() && *log_prob <= 0.0));
        }
    }

    #[test]
    fn a_free_greedy_answer_of_any_model_is_chosen_again_from_a_list_that_holds_it(
        labels in labels(), seed in any::<u64>()
    ) {
        let token_bytes = vocabulary(seed, false);
        let mut model = RandomModel::new(token_bytes.vocabulary(), seed);
        model.biases = vec![(END, 4.0), (CONTROL, -30.0)];
        let free = answer(&model, None, Strategy::Greedy, 40);
        let whole = spelt(&token_bytes, &free.ids);
        let text = whole.trim().to_owned();
        let blanks = [whole.trim_end().len(), whole.trim_start().len()].map(|length| length - text.len());
        // More white space than that around an answer is not allowed.
        prop_assume!(blanks.iter().all(|count| *count <= crate::inference::grammar::BLANKS_MAX));
        prop_assume!(free.ended && !text.is_empty());
        let all: Vec<String> = labels.iter().cloned().chain([text.clone()]).collect();
        let grammar = compiled(&OutputGrammar::one_of(all.iter().cloned()), &token_bytes);

        let constrained = answer(&model, Some(&grammar), Strategy::Greedy, 40);

        prop_assert_eq!(&constrained.ids, &free.ids);
        prop_assert_eq!(constrained.label.map(|label| all[label].as_str()), Some(text.as_str()));
    }

    #[test]
    fn an_answer_never_ends_outside_its_list_while_one_of_the_list_fits(
        labels in labels(), seed in any::<u64>(), every_byte in any::<bool>(), spare in 0usize..8, love in 0usize..4
    ) {
        let token_bytes = vocabulary(seed, every_byte);
        let grammar = compiled(&OutputGrammar::one_of(labels.iter().cloned()), &token_bytes);
        // One token may spell a label and blanks around it.
        let padded = |label: &String| -> Vec<String> {
            (0..25).map(|blanks| format!("{}{label}{}", " ".repeat(blanks / 5), " ".repeat(blanks % 5))).collect()
        };
        let shortest = labels.iter().flat_map(padded).map(|text| fewest(&token_bytes, &text)).min().unwrap() + 1;
        prop_assert_eq!(grammar.tokens_min(), shortest);
        prop_assert!(grammar.check_tokens(shortest - 1).is_err());
        let mut model = RandomModel::new(token_bytes.vocabulary(), seed);
        // It likes blanks, or to write on, better than to come to an end.
        let blank = |bytes: &[u8]| bytes.trim_ascii().is_empty();
        let blanks = token_bytes.tokens().iter().filter(|(bytes, _)| blank(bytes)).map(|(_, id)| (*id, 20.0));
        model.biases = match love {
            0 => blanks.collect(),
            1 => vec![(END, -20.0)],
            2 => blanks.chain([(END, -20.0)]).collect(),
            _ => Vec::new(),
        };
        for strategy in strategies() {
            let found = answer(&model, Some(&grammar), strategy, shortest + spare);
            let text = spelt(&token_bytes, &found.ids);
            prop_assert!(found.ended && found.log_probs.len() <= shortest + spare, "{:?} {:?}", strategy, text);
            prop_assert_eq!(found.label.map(|label| labels[label].as_str()), Some(text.trim()));
        }
    }

    #[test]
    fn an_answer_of_any_shape_comes_to_its_end_within_the_fewest_tokens_and_more(
        source in source(), seed in any::<u64>(), every_byte in any::<bool>(), spare in 0usize..6
    ) {
        let token_bytes = vocabulary(seed, every_byte);
        let grammar = compiled(&source, &token_bytes);
        let tokens_max = grammar.tokens_min() + spare;
        let mut model = RandomModel::new(token_bytes.vocabulary(), seed);
        model.biases = vec![(END, -20.0)];
        for strategy in strategies() {
            let found = answer(&model, Some(&grammar), strategy, tokens_max);
            let text = spelt(&token_bytes, &found.ids);
            prop_assert!(found.ended && found.log_probs.len() <= tokens_max, "{:?} {:?}", strategy, text);
            // Half a character is a matter of free text.
            let whole = !text.contains(char::REPLACEMENT_CHARACTER);
            prop_assert!(!whole || fits(&source.pieces, text.trim()), "{:?} is no {:?}", text, source);
        }
    }

    #[test]
    fn several_labels_come_each_at_most_once_by_greedy_and_by_beams(
        labels in labels(), seed in any::<u64>(), every_byte in any::<bool>()
    ) {
        let token_bytes = vocabulary(seed, every_byte);
        let source = OutputGrammar::of(GrammarPiece::Choices(Arc::clone(&labels)));
        let grammar = compiled(&source, &token_bytes);
        let model = RandomModel::new(token_bytes.vocabulary(), seed);
        for strategy in strategies() {
            let found = answer(&model, Some(&grammar), strategy, 150);
            let text = spelt(&token_bytes, &found.ids);
            prop_assert!(found.ended, "{:?} {:?}", strategy, text);
            prop_assert!(fits(&source.pieces, text.trim()), "{:?} is no {:?}", text, source);
        }
    }
}

#[test]
fn a_text_that_the_vocabulary_cannot_spell_is_refused_by_name() {
    let token_bytes = vocabulary(1, false);

    let refused = CompiledGrammar::new(
        &OutputGrammar::one_of(["ab", "xyz"]),
        Arc::clone(&token_bytes),
        &[END],
    );

    assert!(refused.unwrap_err().to_string().contains("xyz"));
    for source in [OutputGrammar { pieces: vec![] }, OutputGrammar::one_of([" "])] {
        assert!(CompiledGrammar::new(&source, Arc::clone(&token_bytes), &[END]).is_err());
    }
}

#[test]
fn half_a_word_without_the_other_half_in_the_vocabulary_is_no_way_to_begin() {
    let tokens = [&b"ab"[..], b"a", b"cd", b"abc", b"abcd"];
    let tokens = tokens.iter().map(|bytes| (*bytes).into()).zip(2..).collect();
    let token_bytes = Arc::new(TokenBytes::new(tokens, 7));

    let grammar = compiled(&OutputGrammar::one_of(["abcd"]), &token_bytes);

    // `a` and `abc` fit, but nothing leads on from them.
    assert_eq!(
        *grammar.allowed(&grammar.begin(), usize::MAX),
        Allowed::Only(vec![2, 6])
    );
}

#[test]
fn a_list_without_an_answer_of_so_few_tokens_is_refused_with_the_shortest_one() {
    let tokens = [&b"ab"[..], b"a", b"b", b"c"];
    let tokens = tokens.iter().map(|bytes| (*bytes).into()).zip(2..).collect();
    let token_bytes = Arc::new(TokenBytes::new(tokens, 6));
    let grammar = compiled(&OutputGrammar::one_of(["ccc", "abc", "abcab"]), &token_bytes);

    let refused = grammar.check_tokens(2).unwrap_err().to_string();

    assert!(refused.contains("`abc`, takes 3 tokens"), "{refused}");
    assert!(grammar.check_tokens(3).is_ok());
    let model = RandomModel::new(6, 1);
    let asked = Prompt {
        grammar: Some(grammar),
        ..prompt(&model, &[5], DecodeOptions::greedy(2))
    };
    assert!(generate_all(&model, vec![asked], 1, &[END], 6, &[]).is_err());
}

/// Fewest tokens that spell a text, said in another way than the automaton does.
fn fewest(token_bytes: &TokenBytes, text: &str) -> usize {
    let mut fewest = vec![usize::MAX; text.len() + 1];
    fewest[0] = 0;
    for at in 0..text.len() {
        for (bytes, _) in token_bytes.tokens() {
            if fewest[at] < usize::MAX && text.as_bytes()[at..].starts_with(bytes) {
                let end = at + bytes.len();
                fewest[end] = fewest[end].min(fewest[at] + 1);
            }
        }
    }
    fewest[text.len()]
}

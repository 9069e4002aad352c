//! Random grammars and vocabularies, and what fits a grammar, read without an automaton.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::{Just, prop, prop_oneof};
use proptest::strategy::Strategy as Strategy_;

use crate::inference::grammar::CompiledGrammar;
use crate::text::answer::NONE;
use crate::text::{GrammarPiece, OutputGrammar, TokenBytes};
use crate::util::random::SplitMix;

/// The token that ends an answer.
pub(super) const END: i64 = 0;

/// A vocabulary over few letters, so that much is a prefix of much: single characters (or all bytes) and
/// random pieces.
pub(super) fn vocabulary(seed: u64, every_byte: bool) -> Arc<TokenBytes> {
    const LETTERS: &[char] = &['a', 'b', ' ', ',', ';', '=', '|', 'n', 'o', 'e', 'é'];
    let mut random = SplitMix::new(&[seed, 17]);
    let mut pieces: BTreeSet<Vec<u8>> = BTreeSet::new();
    if every_byte {
        pieces.extend((0..=255u8).map(|byte| vec![byte]));
    } else {
        pieces.extend(LETTERS.iter().map(|letter| letter.to_string().into_bytes()));
    }
    for _ in 0..60 {
        let length = 2 + random.below(4);
        let piece: String = (0..length)
            .map(|_| LETTERS[random.below(LETTERS.len())])
            .collect();
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
pub(super) fn spell(token_bytes: &TokenBytes, text: &str, random: &mut SplitMix) -> Vec<i64> {
    let mut ids = Vec::new();
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let begins: Vec<&(Box<[u8]>, i64)> = (token_bytes.tokens().iter())
            .filter(|(bytes, _)| rest.starts_with(bytes))
            // Half a character may be where nothing goes on.
            .filter(|(bytes, _)| token_bytes.spells_every_byte() || std::str::from_utf8(bytes).is_ok())
            .collect();
        let (bytes, id) = begins[random.below(begins.len())];
        ids.push(*id);
        rest = &rest[bytes.len()..];
    }
    ids
}

/// Whether a text fits, said in another way than the automaton does.
pub(super) fn fits(pieces: &[GrammarPiece], text: &str) -> bool {
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

pub(super) fn several<'l>(
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

pub(super) fn slots(labels: &[String], text: &str, then: &dyn Fn(&str) -> bool) -> bool {
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
pub(super) fn example(pieces: &[GrammarPiece], random: &mut SplitMix) -> String {
    let mut text = String::new();
    for piece in pieces {
        match piece {
            GrammarPiece::Literal(literal) => text += literal,
            GrammarPiece::Structure(_) => panic!("structures have tests of their own"),
            GrammarPiece::Free { .. } => text += ["", "a", "bon a", "é;n=o"][random.below(4)],
            GrammarPiece::Choice(labels) => text += &labels[random.below(labels.len())],
            GrammarPiece::Choices(labels) | GrammarPiece::Slots(labels) => {
                let mut order: Vec<&String> = labels.iter().collect();
                random.shuffle(&mut order);
                order.truncate(random.below(labels.len() + 1));
                let is_slots = matches!(piece, GrammarPiece::Slots(_));
                let parts: Vec<String> = (order.iter())
                    .map(|label| match is_slots {
                        true => format!("{label} = {};", ["a", "no é", " b "][random.below(3)]),
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

pub(super) fn label() -> impl Strategy_<Value = String> {
    "[abnoe][abnoe, é]{0,4}[abnoe]|[abno]|none|a|a, b|ab|no|é"
}

pub(super) fn labels() -> impl Strategy_<Value = Arc<[String]>> {
    prop::collection::btree_set(label(), 1..6).prop_map(|labels| labels.into_iter().collect())
}

pub(super) fn piece() -> impl Strategy_<Value = GrammarPiece> {
    prop_oneof![
        labels().prop_map(GrammarPiece::Choice),
        labels().prop_map(GrammarPiece::Choices),
        labels().prop_map(GrammarPiece::Slots),
        Just(GrammarPiece::Free { stop: Some('|') }),
    ]
}

/// One part, or several between literals as in joint decoding.
pub(super) fn source() -> impl Strategy_<Value = OutputGrammar> {
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

//! Forms of answers that requests bring along.

use std::sync::Arc;

use speechverse::inference::grammar::{Allowed, CompiledGrammar};
use speechverse::text::{GrammarPiece, OutputGrammar, Structure, StructureKind, TokenBytes};

/// The token that ends an answer.
const END: i64 = 0;

/// The first byte says which language the others are. Where they can be kept, an answer is written, a byte a
/// token; the source itself says which of the allowed ones. It has to end in time.
pub(crate) fn structure(data: &[u8]) -> bool {
    let Some((first, source)) = data.split_first() else {
        return false;
    };
    let kind = StructureKind::ALL[usize::from(first % 3)];
    let Ok(structure) = Structure::new(kind, &String::from_utf8_lossy(source)) else {
        return false;
    };
    let tokens = (0..=255u8).map(|byte| Box::from([byte])).zip(1..).collect();
    let token_bytes = Arc::new(TokenBytes::new(tokens, 257));
    let grammar = OutputGrammar::of(GrammarPiece::Structure(Arc::new(structure)));
    let Ok(grammar) = CompiledGrammar::new(&grammar, token_bytes, &[END]) else {
        return false;
    };
    let least = grammar.tokens_min();
    if least > 200 {
        return true;
    }
    let mut progress = grammar.begin();
    for left in (1..=least + 16).rev() {
        let choice = usize::from(
            source[left % source.len().max(1)..]
                .first()
                .copied()
                .unwrap_or_default(),
        );
        let id = match &*grammar.allowed(&progress, left) {
            Allowed::Only(ids) => ids[choice % ids.len()],
            Allowed::AllBut(ids) => (0..257)
                .cycle()
                .skip(choice)
                .find(|id| !ids.contains(id))
                .unwrap_or(END),
        };
        if id == END {
            return true;
        }
        progress = grammar.advance(&progress, id).expect("an allowed token leads on");
    }
    panic!("the answer has not ended");
}

//! `OutputGrammar`: what an answer may look like, from left to right.
//!
//! Plain data, made for one task or for several (joint decoding). Constrained decoding turns it into an automaton;
//! nothing here knows tokens. Texts are what the tokenizer gives back when the whole answer is decoded at once.

use std::sync::Arc;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrammarPiece {
    /// Exactly this text.
    Literal(Arc<str>),
    /// Any text, also none. It never holds `stop`: what begins with `stop` belongs to the next piece. Without
    /// `stop` it goes on to the end of the answer.
    Free {
        /// The character at which the text is over.
        stop: Option<char>,
    },
    /// Exactly one of these texts; not empty.
    Choice(Arc<[String]>),
    /// At least one of these texts, each at most once, in any order, `", "` between them; or the one word
    /// [`NONE`](super::NONE), alone.
    Choices(Arc<[String]>),
    /// At least one `label = value;`, a space between two of them, where `label` is one of these and may come
    /// again, and `value` is free text, not blank, that holds neither `;` nor `|`; or the
    /// one word [`NONE`](super::NONE), alone.
    Slots(Arc<[String]>),
}

/// The parts of an answer, in order. After the last one the answer ends.
///
/// Where a grammar has several parts, each is followed by a literal that begins with ` |`, and no free text, no listed
/// text and no slot value holds that character: `ASR: turn on the radio | Intent: play_radio |` is
/// literal `ASR: `, free up to `|`, literal ` | Intent: `, choice, literal ` |`.
///
/// A free part may end in a space before its literal; readers trim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputGrammar {
    /// The parts; never empty.
    pub pieces: Vec<GrammarPiece>,
}

impl OutputGrammar {
    /// A grammar of one part.
    pub fn of(piece: GrammarPiece) -> Self {
        Self { pieces: vec![piece] }
    }

    /// Free text and nothing else: no constraint.
    pub fn free() -> Self {
        Self::of(GrammarPiece::Free { stop: None })
    }

    /// One of these texts and nothing else.
    pub fn one_of(labels: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::of(GrammarPiece::Choice(labels.into_iter().map(Into::into).collect()))
    }

    /// Whether every text fits, so that constraining would change nothing.
    pub fn is_free(&self) -> bool {
        self.pieces == [GrammarPiece::Free { stop: None }]
    }

    /// The allowed answers, where the answer is one choice and nothing else.
    pub fn choice(&self) -> Option<&[String]> {
        match self.pieces.as_slice() {
            [GrammarPiece::Choice(labels)] => Some(labels),
            _ => None,
        }
    }
}

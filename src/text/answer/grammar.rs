//! `OutputGrammar`: what an answer may look like, from left to right.
//!
//! Plain data, made for one task or for several (joint decoding). Constrained decoding turns it into an
//! automaton; nothing here knows tokens. Texts are what the tokenizer gives back when the whole answer is
//! decoded at once.

use std::sync::Arc;

use super::Structure;

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
    /// A text of this form; the only part of its grammar.
    Structure(Arc<Structure>),
}

/// The parts of an answer, in order. After the last one the answer ends.
///
/// Where a grammar has several parts, each is followed by a literal that begins with `|`, or with ` |` behind
/// what is not free, and no free text, no listed text and no slot value holds that character: `ASR: turn on
/// the radio | Intent: play_radio |` is literal `ASR:`, free up to `|`, literal `| Intent: `, choice, literal
/// ` |`.
///
/// A free part has the blanks around it, so that it may be empty as it is trained, `ASR: | Intent: other |`;
/// readers trim.
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

    /// The form that its request brought along.
    pub fn structure(&self) -> Option<&Structure> {
        match self.pieces.as_slice() {
            [GrammarPiece::Structure(structure)] => Some(structure),
            _ => None,
        }
    }

    /// The allowed answers, where the answer is one choice and nothing else.
    pub fn choice(&self) -> Option<&[String]> {
        match self.pieces.as_slice() {
            [GrammarPiece::Choice(labels)] => Some(labels),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Arc<[String]> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_target_is_compared_as_labels_are_and_a_refusal_lists_them() {
        let known = labels(&["Lamp_On", "lamp_off"]);
        let one = OutputGrammar::of(GrammarPiece::Choice(known.clone()));
        let several = OutputGrammar::of(GrammarPiece::Choices(known.clone()));
        let slots = OutputGrammar::of(GrammarPiece::Slots(known));

        for (shape, good, bad) in [
            (
                &one,
                vec![" lamp_on ", "LAMP_OFF"],
                vec!["lamp on", "none", "lamp_on, lamp_off"],
            ),
            (
                &several,
                vec!["lamp_off, lamp_on", "none"],
                vec!["lamp_on, lamp_up", ""],
            ),
            (
                &slots,
                vec!["lamp_on = now;", "None"],
                vec!["lamp_up = now;", "lamp_on", ""],
            ),
        ] {
            for target in good {
                assert_eq!(shape.check(target), Ok(()), "{target}");
            }
            for target in bad {
                let reason = shape.check(target).unwrap_err();
                assert!(reason.ends_with("allowed are: Lamp_On, lamp_off"), "{reason}");
            }
        }
        assert_eq!(OutputGrammar::free().check("anything"), Ok(()));
    }

    #[test]
    fn a_list_that_no_message_can_hold_is_counted() {
        let known: Vec<String> = (0..1_000)
            .map(|number| format!("label number {number}"))
            .collect();

        let reason = OutputGrammar::one_of(&known).check("another").unwrap_err();

        assert!(reason.len() < 2_000 && reason.ends_with(" more"), "{reason}");
    }
}

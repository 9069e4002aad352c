//! `Constraint`: what a constrained answer may go on with, token by token.
//!
//! An answer is held to an [`AnswerShape`] on the level of bytes: whatever way a tokenizer could write an allowed answer is
//! allowed, across the seams of its parts too, and a little white space (four bytes) may stand before and after it. So a free greedy answer that fits the
//! shape comes out the same when it is constrained, as every token of it is allowed where it was the likeliest of all.
//! Log-probabilities stay those of the full distribution, so that scores say how much the model was bent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::automaton::{Automaton, State};
use crate::models::ModelError;
use crate::text::{AnswerPiece, AnswerShape, Spelling};

/// Answers under way whose next tokens are remembered.
const REMEMBERED_MAX: usize = 1024;

/// A compiled shape; shared by all answers that are held to it.
#[derive(Debug)]
pub struct Constraint {
    automaton: Automaton,
    spelling: Arc<Spelling>,
    end_ids: Vec<i64>,
    /// Places from which tokens lead on; absent where every byte is a token, so that all do.
    alive: Option<Vec<bool>>,
    /// The allowed answers, trimmed, where the shape is one choice.
    choice: Vec<String>,
    has_free_text: bool,
    remembered: Mutex<HashMap<State, Arc<Allowed>>>,
}

/// Where a constrained answer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress(State);

/// The tokens that an answer may go on with, the tokens that end it among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// These.
    Only(Vec<i64>),
    /// All but these.
    AllBut(Vec<i64>),
}

impl Constraint {
    /// Compiles a shape for a vocabulary; `end_ids` are the tokens that end an answer.
    ///
    /// # Errors
    /// [`ModelError::Constraint`] when the shape is empty, or the vocabulary cannot spell a listed text.
    pub fn new(shape: &AnswerShape, spelling: Arc<Spelling>, end_ids: &[i64]) -> Result<Self, ModelError> {
        for piece in &shape.pieces {
            if let AnswerPiece::Choice(texts) | AnswerPiece::Choices(texts) | AnswerPiece::Slots(texts) =
                piece
                && let Some(text) = texts.iter().find(|text| !spelling.can_spell(text.trim()))
            {
                return Err(ModelError::Constraint {
                    reason: format!(
                        "the language model's vocabulary cannot spell `{}`",
                        text.escape_debug()
                    ),
                });
            }
        }
        let automaton = Automaton::new(shape)?;
        let mut made = Self {
            automaton,
            spelling,
            end_ids: end_ids.to_vec(),
            alive: None,
            choice: shape
                .choice()
                .unwrap_or_default()
                .iter()
                .map(|text| text.trim().to_owned())
                .collect(),
            has_free_text: (shape.pieces.iter())
                .any(|piece| matches!(piece, AnswerPiece::Free { .. } | AnswerPiece::Slots(_))),
            remembered: Mutex::default(),
        };
        if !made.spelling.spells_every_byte() {
            made.alive = Some(made.automaton.alive(|state, good| made.leads_to(state, good)));
        }
        if !made.lives(&made.automaton.start()) {
            return Err(ModelError::Constraint {
                reason: "the language model's vocabulary cannot spell any allowed answer".to_owned(),
            });
        }
        Ok(made)
    }

    /// Where every answer begins.
    pub fn begin(&self) -> Progress {
        Progress(self.automaton.start())
    }

    /// Whether parts of an answer are free text, in which a model may go round in circles.
    pub fn has_free_text(&self) -> bool {
        self.has_free_text
    }

    /// What the answer may go on with. Never empty where the answer got by allowed tokens.
    pub fn allowed(&self, progress: &Progress) -> Arc<Allowed> {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = remembered.get(&progress.0) {
            return Arc::clone(known);
        }
        let found = Arc::new(self.find_allowed(&progress.0));
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(progress.0.clone(), Arc::clone(&found));
        found
    }

    /// Where the answer is after one more token; none when it is not allowed. An end token changes nothing.
    pub fn advance(&self, progress: &Progress, id: i64) -> Option<Progress> {
        if self.end_ids.contains(&id) {
            return self.automaton.accepts(&progress.0).then(|| progress.clone());
        }
        let mut state = progress.0.clone();
        for byte in self.spelling.bytes(id)? {
            state = self.automaton.step(&state, *byte);
        }
        self.lives(&state).then_some(Progress(state))
    }

    /// Whether the answer may end here.
    pub fn may_end(&self, progress: &Progress) -> bool {
        self.automaton.accepts(&progress.0)
    }

    /// Which of the listed answers these tokens are, where the shape is one choice.
    pub fn label(&self, ids: &[i64]) -> Option<usize> {
        let bytes: Vec<u8> = (ids.iter())
            .flat_map(|id| self.spelling.bytes(*id).unwrap_or_default())
            .copied()
            .collect();
        let text = std::str::from_utf8(&bytes).ok()?.trim();
        self.choice.iter().position(|label| label == text)
    }

    fn lives(&self, state: &State) -> bool {
        match &self.alive {
            None => !state.is_empty(),
            Some(alive) => self.automaton.any_alive(state, alive),
        }
    }

    fn find_allowed(&self, state: &State) -> Allowed {
        let mut only = Vec::new();
        self.walk(state, &mut |id, after| {
            if self.lives(after) {
                only.push(id);
            }
            true
        });
        if self.automaton.accepts(state) {
            only.extend_from_slice(&self.end_ids);
        }
        let vocabulary = usize::try_from(self.spelling.vocabulary()).unwrap_or(0);
        if only.len() * 2 <= vocabulary {
            return Allowed::Only(only);
        }
        let mut not = vec![true; vocabulary];
        for id in only.into_iter().filter_map(|id| usize::try_from(id).ok()) {
            if let Some(not) = not.get_mut(id) {
                *not = false;
            }
        }
        let but = (0i64..).zip(not).filter(|(_, not)| *not).map(|(id, _)| id);
        Allowed::AllBut(but.collect())
    }

    /// Whether some token leads from a state to a good one.
    fn leads_to(&self, state: &State, good: &dyn Fn(&State) -> bool) -> bool {
        let mut found = false;
        self.walk(state, &mut |_, after| {
            found = good(after);
            !found
        });
        found
    }

    /// Shows every token whose bytes can follow, with the state after it, until `visit` has seen enough.
    ///
    /// Tokens are in order of bytes, so what two neighbours share is walked once, and what follows a forbidden byte is
    /// skipped.
    fn walk(&self, state: &State, visit: &mut dyn FnMut(i64, &State) -> bool) {
        let mut seen = Seen::new(self, state);
        let tokens = self.spelling.tokens();
        // States after each byte of the token at hand.
        let mut path: Vec<usize> = vec![0];
        let mut before: &[u8] = &[];
        let mut at = 0;
        while let Some((bytes, id)) = tokens.get(at) {
            let shared = before
                .iter()
                .zip(bytes.iter())
                .take_while(|(a, b)| a == b)
                .count();
            path.truncate(shared.min(path.len() - 1) + 1);
            let mut forbidden = None;
            while path.len() <= bytes.len() {
                let depth = path.len() - 1;
                let next = seen.step(path[depth], bytes[depth]);
                if seen.states[next].is_empty() {
                    forbidden = Some(depth + 1);
                    break;
                }
                path.push(next);
            }
            match forbidden {
                None => {
                    if !visit(*id, &seen.states[path[bytes.len()]]) {
                        return;
                    }
                    at += 1;
                }
                Some(length) => {
                    let start = &bytes[..length];
                    at += tokens[at..].partition_point(|(bytes, _)| bytes.starts_with(start));
                }
            }
            before = bytes;
        }
    }
}

/// States met in one walk over the vocabulary, by number, and the steps between them.
struct Seen<'c> {
    automaton: &'c Automaton,
    states: Vec<State>,
    numbers: HashMap<State, usize>,
    steps: HashMap<(usize, u8), usize>,
}

impl<'c> Seen<'c> {
    fn new(constraint: &'c Constraint, state: &State) -> Self {
        Self {
            automaton: &constraint.automaton,
            states: vec![state.clone()],
            numbers: HashMap::from([(state.clone(), 0)]),
            steps: HashMap::new(),
        }
    }

    fn step(&mut self, from: usize, byte: u8) -> usize {
        if let Some(known) = self.steps.get(&(from, byte)) {
            return *known;
        }
        let state = self.automaton.step(&self.states[from], byte);
        let number = *self.numbers.entry(state.clone()).or_insert_with(|| {
            self.states.push(state);
            self.states.len() - 1
        });
        self.steps.insert((from, byte), number);
        number
    }
}

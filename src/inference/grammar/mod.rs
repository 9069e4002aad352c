//! Output grammar: what a constrained answer may go on with, token by token.
//!
//! An answer is constrained by an [`OutputGrammar`] on the level of bytes: whatever way a tokenizer could
//! write an allowed answer is allowed, across the seams of its parts too, and a little white space (four
//! bytes) may stand before and after it. So a free greedy answer that fits the grammar comes out the same
//! when it is constrained, as every token of it is allowed where it was the likeliest of all. Near the most
//! tokens that an answer may have, only what can still be brought to its end is allowed, so that no answer
//! ends outside its grammar. Log-probabilities stay those of the full distribution, so that scores say how
//! much the model was bent.

mod automaton;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::models::ModelError;
use crate::text::{GrammarPiece, OutputGrammar, TokenBytes};
#[cfg(test)]
pub(super) use automaton::BLANKS_MAX;
use automaton::{Automaton, State, Thread};

/// Answers under way whose next tokens are remembered, and the memory that they may take, bytes.
const REMEMBERED_MAX: usize = 1024;
const REMEMBERED_BYTES_MAX: usize = 8 << 20;
/// Places of a structure that one search for the tokens of a state may look at; what it has not come to is
/// not allowed there. An ordinary schema takes a few thousand.
const STRUCTURE_WORK_MAX: usize = 1 << 18;
/// What a state that a search has met counts beside its places, for the table of its steps.
const STATE_WORK: usize = 16;
/// Places whose distance from the end is remembered, and places that a search for one looks at.
const DISTANCES_MAX: usize = 1 << 16;

/// A compiled grammar; shared by all requests that ask for it.
#[derive(Debug)]
pub struct CompiledGrammar {
    automaton: Automaton,
    token_bytes: Arc<TokenBytes>,
    end_ids: Vec<i64>,
    /// The allowed answers, trimmed, where the grammar is one choice.
    choice: Vec<String>,
    has_free_text: bool,
    remembered: Mutex<Remembered>,
    /// Fewest tokens to the end of an answer, the one that ends it counted; none where no tokens lead there.
    distances: Mutex<HashMap<Thread, Option<usize>>>,
}

/// What an answer with positions enough may go on with.
#[derive(Clone, Debug)]
struct Known {
    allowed: Arc<Allowed>,
    /// Tokens with which each of them can be brought to an end.
    enough: usize,
}

/// What states may go on with.
#[derive(Debug, Default)]
struct Remembered {
    states: HashMap<State, Known>,
    bytes: usize,
}

impl Remembered {
    /// Adds one, in the place of all others where they are too many.
    fn insert(&mut self, state: State, known: Known) {
        let (Allowed::Only(ids) | Allowed::AllBut(ids)) = &*known.allowed;
        let bytes = size_of_val(ids.as_slice()) + size_of_val(state.as_slice());
        if self.states.len() >= REMEMBERED_MAX || self.bytes + bytes > REMEMBERED_BYTES_MAX {
            *self = Self::default();
        }
        self.bytes += bytes;
        self.states.insert(state, known);
    }
}

/// Where a constrained answer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrammarState(State);

/// The tokens that an answer may go on with, the tokens that end it among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// These.
    Only(Vec<i64>),
    /// All but these.
    AllBut(Vec<i64>),
}

impl CompiledGrammar {
    /// Compiles a grammar for a vocabulary; `end_ids` are the tokens that end an answer.
    ///
    /// # Errors
    /// [`ModelError::Constraint`] when the grammar is empty, or the vocabulary cannot spell a listed text.
    pub fn new(
        grammar: &OutputGrammar,
        token_bytes: Arc<TokenBytes>,
        end_ids: &[i64],
    ) -> Result<Self, ModelError> {
        for piece in &grammar.pieces {
            if let GrammarPiece::Choice(texts) | GrammarPiece::Choices(texts) | GrammarPiece::Slots(texts) =
                piece
                && let Some(text) = texts.iter().find(|text| !token_bytes.can_spell(text.trim()))
            {
                return Err(ModelError::Constraint {
                    reason: format!(
                        "the language model's vocabulary cannot spell `{}`",
                        text.escape_debug()
                    ),
                });
            }
        }
        let automaton = Automaton::new(grammar, &token_bytes)?;
        let made = Self {
            automaton,
            token_bytes,
            end_ids: end_ids.to_vec(),
            choice: grammar
                .choice()
                .unwrap_or_default()
                .iter()
                .map(|text| text.trim().to_owned())
                .collect(),
            has_free_text: (grammar.pieces.iter())
                .any(|piece| matches!(piece, GrammarPiece::Free { .. } | GrammarPiece::Slots(_))),
            remembered: Mutex::default(),
            distances: Mutex::default(),
        };
        if made.distance(&made.automaton.start()).is_none() {
            return Err(ModelError::Constraint {
                reason: "the language model's vocabulary cannot spell any allowed answer".to_owned(),
            });
        }
        Ok(made)
    }

    /// Where every answer begins.
    pub fn begin(&self) -> GrammarState {
        GrammarState(self.automaton.start())
    }

    /// Whether parts of an answer are free text, in which a model may go round in circles.
    pub fn has_free_text(&self) -> bool {
        self.has_free_text
    }

    /// Whether an allowed answer of at most `tokens_max` tokens exists, the one that ends it counted.
    ///
    /// # Errors
    /// [`ModelError::Constraint`] with the shortest one and the tokens that it takes.
    pub fn check_tokens(&self, tokens_max: usize) -> Result<(), ModelError> {
        let (text, tokens) = self.shortest();
        if tokens <= tokens_max {
            return Ok(());
        }
        Err(ModelError::Constraint {
            reason: format!(
                "the shortest allowed answer, `{}`, takes {tokens} tokens with the one that ends it, the most that are \
                 asked for are {tokens_max}",
                text.escape_debug()
            ),
        })
    }

    /// Fewest tokens of an allowed answer, the one that ends it counted.
    pub fn tokens_min(&self) -> usize {
        let distance = self.distance(&self.automaton.start());
        distance.expect("`new` refuses a grammar that no tokens spell")
    }

    /// An allowed answer of the fewest tokens, and how many these are, the one that ends it counted.
    fn shortest(&self) -> (String, usize) {
        let tokens = self.tokens_min();
        let (mut progress, mut ids) = (self.begin(), Vec::with_capacity(tokens));
        for left in (2..=tokens).rev() {
            let mut nearer = None;
            self.walk(&progress.0, &mut |id, after| {
                if self.distance(after).is_some_and(|distance| distance < left) {
                    nearer = Some((id, GrammarState(after.clone())));
                }
                nearer.is_none()
            });
            let (id, after) = nearer.expect("a place lies one token before another one, or the end");
            ids.push(id);
            progress = after;
        }
        (self.spelt(&ids), tokens)
    }

    /// What an answer may go on with that may have `left` more tokens, the one that ends it counted: whatever
    /// leaves enough of them for an allowed answer. Where no allowed answer is so short, whatever leads to
    /// the shortest ones. Never empty where the answer got by allowed tokens.
    pub fn allowed(&self, progress: &GrammarState, left: usize) -> Arc<Allowed> {
        let state = &progress.0;
        let known = self.remembered().states.get(state).cloned();
        let known = known.unwrap_or_else(|| {
            let found = self.find_allowed(state, usize::MAX);
            self.remembered().insert(state.clone(), found.clone());
            found
        });
        if left >= known.enough {
            return known.allowed;
        }
        let least = self.distance(state).unwrap_or(usize::MAX);
        self.find_allowed(state, left.max(least)).allowed
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the answer is after one more token; none when it is not allowed. An end token changes nothing.
    pub fn advance(&self, progress: &GrammarState, id: i64) -> Option<GrammarState> {
        if self.end_ids.contains(&id) {
            return self.automaton.accepts(&progress.0).then(|| progress.clone());
        }
        let mut state = progress.0.clone();
        for byte in self.token_bytes.bytes(id)? {
            state = self.automaton.step(&state, *byte, &mut 0);
        }
        self.distance(&state).map(|_| GrammarState(state))
    }

    /// Whether the answer may end here.
    pub fn may_end(&self, progress: &GrammarState) -> bool {
        self.automaton.accepts(&progress.0)
    }

    /// Which of the listed answers these tokens are, where the grammar is one choice.
    pub fn label(&self, ids: &[i64]) -> Option<usize> {
        let text = self.spelt(ids);
        self.choice.iter().position(|label| label == text.trim())
    }

    /// The listed answers, trimmed, where the grammar is one choice; else none.
    pub fn choice(&self) -> &[String] {
        &self.choice
    }

    /// What a token writes; none of a control token.
    pub(super) fn bytes(&self, id: i64) -> Option<&[u8]> {
        self.token_bytes.bytes(id)
    }

    /// What tokens write together.
    pub(super) fn spelt_bytes(&self, ids: &[i64]) -> Vec<u8> {
        let bytes = ids.iter().flat_map(|id| self.bytes(*id).unwrap_or_default());
        bytes.copied().collect()
    }

    fn spelt(&self, ids: &[i64]) -> String {
        String::from_utf8_lossy(&self.spelt_bytes(ids)).into_owned()
    }

    /// What a state may go on with so that at most `left` tokens bring the answer to an end.
    fn find_allowed(&self, state: &State, left: usize) -> Known {
        let mut only = Vec::new();
        let mut enough = 1;
        self.walk(state, &mut |id, after| {
            if let Some(distance) = self.distance(after).filter(|distance| *distance < left) {
                enough = enough.max(distance + 1);
                only.push(id);
            }
            true
        });
        // Wherever the search stopped, the shortest way to the end stays open.
        if let Some((distance, id)) = self.automaton.token_towards_end(state)
            && distance <= left
            && !only.contains(&id)
        {
            enough = enough.max(distance);
            only.push(id);
        }
        if self.automaton.accepts(state) {
            only.extend_from_slice(&self.end_ids);
        }
        let vocabulary = usize::try_from(self.token_bytes.vocabulary()).unwrap_or(0);
        let allowed = if only.len() * 2 <= vocabulary {
            Allowed::Only(only)
        } else {
            let mut not = vec![true; vocabulary];
            for id in only.into_iter().filter_map(|id| usize::try_from(id).ok()) {
                if let Some(not) = not.get_mut(id) {
                    *not = false;
                }
            }
            let but = (0i64..).zip(not).filter(|(_, not)| *not).map(|(id, _)| id);
            Allowed::AllBut(but.collect())
        };
        Known {
            allowed: Arc::new(allowed),
            enough,
        }
    }

    /// Fewest tokens to the end of an answer, the one that ends it counted; none where no tokens lead there.
    fn distance(&self, state: &State) -> Option<usize> {
        if self.automaton.costs.is_some() {
            return state
                .iter()
                .filter_map(|thread| self.automaton.distance(thread))
                .min();
        }
        let mut distances = self.distances.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |thread| match distances.get(thread) {
            Some(known) => *known,
            None => self.search(thread, &mut distances),
        };
        state.iter().filter_map(of).min()
    }

    /// Looks for the nearest end, breadth first, and notes the distances of the places on the way to it.
    fn search(&self, from: &Thread, distances: &mut HashMap<Thread, Option<usize>>) -> Option<usize> {
        if distances.len() >= DISTANCES_MAX {
            distances.clear();
        }
        // Each place with the one before it, in order of tokens from the start; those of the last round begin
        // at `first`.
        let mut reached = vec![(from.clone(), 0)];
        let mut seen = HashSet::from([from.clone()]);
        let mut nearest: Option<(usize, usize)> = None;
        let (mut first, mut tokens) = (0, 0);
        while first < reached.len() && nearest.is_none_or(|(total, _)| total > tokens + 1) {
            let last = reached.len();
            for at in first..last {
                let state = vec![reached[at].0.clone()];
                let known = distances.get(&state[0]).copied();
                let ends = self.automaton.accepts(&state).then_some(1);
                if let Some(distance) = ends.or(known.flatten()) {
                    let total = tokens + distance;
                    if nearest.is_none_or(|(so_far, _)| total < so_far) {
                        nearest = Some((total, at));
                    }
                } else if known.is_none() && reached.len() < DISTANCES_MAX {
                    self.walk(&state, &mut |_, after| {
                        for thread in after {
                            if seen.insert(thread.clone()) {
                                reached.push((thread.clone(), at));
                            }
                        }
                        true
                    });
                }
            }
            (first, tokens) = (last, tokens + 1);
        }
        let Some((total, mut at)) = nearest else {
            distances.insert(from.clone(), None);
            return None;
        };
        let mut path = vec![at];
        while at > 0 {
            at = reached[at].1;
            path.push(at);
        }
        for (passed, at) in path.into_iter().rev().enumerate() {
            distances.insert(reached[at].0.clone(), Some(total - passed));
        }
        Some(total)
    }

    /// Shows every token whose bytes can follow, with the state after it, until `visit` has seen enough.
    ///
    /// Tokens are in order of bytes, so what two neighbours share is walked once, and what begins with
    /// forbidden bytes is skipped.
    fn walk(&self, state: &State, visit: &mut dyn FnMut(i64, &State) -> bool) {
        let mut seen = Walk::new(self, state);
        let tokens = self.token_bytes.tokens();
        // States after each byte of the token at hand.
        let mut path: Vec<usize> = vec![0];
        let mut before: &[u8] = &[];
        let mut at = 0;
        while let Some((bytes, id)) = tokens.get(at) {
            if seen.work > STRUCTURE_WORK_MAX {
                return;
            }
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
                    forbidden = Some(depth);
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
                Some(depth) => {
                    let state = &seen.states[path[depth]];
                    let larger = bytes[depth].checked_add(1);
                    let next = larger.and_then(|least| self.automaton.next_byte(state, least));
                    let start = &bytes[..depth];
                    let rest = &tokens[at..];
                    at += match next {
                        Some(byte) => {
                            let next = [start, &[byte]].concat();
                            rest.partition_point(|(bytes, _)| **bytes < *next)
                        }
                        None => rest.partition_point(|(bytes, _)| bytes.starts_with(start)),
                    };
                }
            }
            before = bytes;
        }
    }
}

/// States met in one walk over the vocabulary, by number, and the steps between them.
struct Walk<'c> {
    automaton: &'c Automaton,
    states: Vec<State>,
    numbers: HashMap<State, usize>,
    /// For each state, the number of the one behind each byte, [`UNKNOWN`] at first.
    steps: Vec<[u32; 256]>,
    /// Places of a structure that were looked at.
    work: usize,
}

/// A step that was not made yet.
const UNKNOWN: u32 = u32::MAX;

impl<'c> Walk<'c> {
    fn new(constraint: &'c CompiledGrammar, state: &State) -> Self {
        Self {
            automaton: &constraint.automaton,
            states: vec![state.clone()],
            numbers: HashMap::from([(state.clone(), 0)]),
            steps: vec![[UNKNOWN; 256]],
            work: 0,
        }
    }

    fn step(&mut self, from: usize, byte: u8) -> usize {
        let known = self.steps[from][usize::from(byte)];
        if known != UNKNOWN {
            return known as usize;
        }
        let mut work = STATE_WORK;
        let state = self.automaton.step(&self.states[from], byte, &mut work);
        if self.automaton.costs.is_some() {
            self.work += work;
        }
        let number = match self.numbers.get(&state) {
            Some(number) => *number,
            None => {
                let number = self.states.len();
                self.numbers.insert(state.clone(), number);
                self.states.push(state);
                self.steps.push([UNKNOWN; 256]);
                number
            }
        };
        self.steps[from][usize::from(byte)] = u32::try_from(number).unwrap_or(UNKNOWN);
        number
    }
}

//! Structures inside the automaton: calls, and how far each place is from the end of an answer.
//!
//! A terminal is a deterministic automaton, so its places have a shortest text to its end, and that text a
//! fewest number of tokens. With these, the fewest for each rule follow (Knuth, "A generalization of
//! Dijkstra's algorithm", 1977), and a thread's distance is the sum of what its terminal, and each call that
//! it has to come back from, still take. Tokens across the seam of two terminals may make an answer shorter
//! than that, never longer: wherever the distance says `n`, there is a token that leads to `n - 1`.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::{Automaton, Edges, Node, State, Thread};
use crate::text::TokenBytes;

/// From where no tokens lead to the end.
const NEVER: u32 = u32::MAX;
/// Calls inside each other; beyond, only the shortest way to the end is left.
const DEPTH_MAX: u32 = 256;
/// Threads with one place that are followed: those with the nearest ends. An ambiguous grammar has ever more
/// ways to read an answer.
const STACKS_MAX: usize = 8;

/// How far the places of a structure are from the end of their rule or terminal.
#[derive(Debug)]
pub(in crate::inference::grammar) struct Costs {
    /// Fewest tokens; [`NEVER`] where none lead there.
    rest: Vec<u32>,
    /// The first of these tokens, in a terminal.
    first: Vec<Option<i64>>,
}

/// The calls that a thread has to come back from, the innermost first.
#[derive(Debug)]
pub(in crate::inference::grammar) struct Stack {
    /// Where to go on.
    back: u32,
    below: Option<Arc<Self>>,
    /// Fewest tokens from `back` to the end of the answer, the one that ends it counted.
    cost: u32,
    depth: u32,
    hash: u64,
}

impl Stack {
    /// The call from outside of the structure, behind which nothing but the end of the answer comes.
    pub(super) fn bottom(back: u32) -> Arc<Self> {
        Arc::new(Self {
            back,
            below: None,
            cost: 1,
            depth: 0,
            hash: 0,
        })
    }

    fn push(self: &Arc<Self>, back: u32, rest: u32) -> Arc<Self> {
        Arc::new(Self {
            back,
            below: Some(Arc::clone(self)),
            cost: self.cost.saturating_add(rest),
            depth: self.depth + 1,
            hash: (self.hash ^ u64::from(back))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29),
        })
    }
}

impl Drop for Stack {
    /// One call after the other: a grammar can nest them deeper than a thread's own stack is.
    fn drop(&mut self) {
        let mut below = self.below.take();
        while let Some(stack) = below {
            below = Arc::into_inner(stack).and_then(|mut stack| stack.below.take());
        }
    }
}

impl PartialEq for Stack {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Stack {}

impl PartialOrd for Stack {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Stack {
    /// The one with the nearest end first.
    fn cmp(&self, other: &Self) -> Ordering {
        let (mut a, mut b) = (self, other);
        loop {
            let of = |stack: &Self| (stack.cost, stack.depth, stack.hash, stack.back);
            let order = of(a).cmp(&of(b));
            match (order, &a.below, &b.below) {
                (Ordering::Equal, Some(below_a), Some(below_b)) if !Arc::ptr_eq(below_a, below_b) => {
                    (a, b) = (below_a, below_b);
                }
                _ => return order, // equal depths end together
            }
        }
    }
}

impl Hash for Stack {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.hash, self.cost, self.back).hash(state);
    }
}

impl Automaton {
    /// Adds places of a structure and all that can be reached from them without a byte, the nearest to the
    /// end first; returns how many places that took.
    ///
    /// No step leads nearer to the end, so of each place the [`STACKS_MAX`] nearest stacks are met first:
    /// what is left out is further from the end than a thread that can go the same way. A place in a terminal
    /// from which no tokens lead to the end is kept: it may be inside a token.
    pub(super) fn enter_structure(
        &self,
        places: impl IntoIterator<Item = (u32, Arc<Stack>)>,
        state: &mut State,
    ) -> usize {
        let Some(costs) = &self.costs else { return 0 };
        let far = |index: u32, stack: Arc<Stack>| {
            let distance = costs.rest[index as usize].saturating_add(stack.cost);
            Reverse((distance, index, stack))
        };
        let at =
            |index: u32, stack: Arc<Stack>| (costs.rest[index as usize] != NEVER).then(|| far(index, stack));
        let mut open: BinaryHeap<_> = (places.into_iter())
            .map(|(index, stack)| far(index, stack))
            .collect();
        let mut met: HashMap<u32, Vec<Arc<Stack>>> = HashMap::new();
        let mut work = 0;
        while let Some(Reverse((_, index, stack))) = open.pop() {
            work += 1;
            let stacks = met.entry(index).or_default();
            if stacks.len() >= STACKS_MAX || stacks.contains(&stack) {
                continue;
            }
            stacks.push(Arc::clone(&stack));
            let node = &self.nodes[index as usize];
            open.extend((node.jumps.iter()).filter_map(|jump| at(jump.to, Arc::clone(&stack))));
            let rest = costs.rest[index as usize];
            for (start, back) in &node.calls {
                let after = costs.rest[*back as usize];
                let through = costs.rest[*start as usize].saturating_add(after);
                if after == NEVER || (stack.depth >= DEPTH_MAX && through > rest) {
                    continue;
                }
                let inner = match is_end(&self.nodes[*back as usize]) {
                    true => Arc::clone(&stack),
                    false => stack.push(*back, after),
                };
                open.extend(at(*start, inner));
            }
            if node.returns {
                match &stack.below {
                    Some(below) => open.extend(at(stack.back, Arc::clone(below))),
                    None => self.enter(stack.back, None, state),
                }
            }
            if !matches!(node.edges, Edges::None) {
                state.push(Thread::inside(index, stack));
            }
        }
        work
    }

    /// Fewest tokens from a thread to the end of the answer, where there is a structure.
    pub(in crate::inference::grammar) fn distance(&self, thread: &Thread) -> Option<usize> {
        let rest = self.costs.as_ref()?.rest[thread.node as usize];
        let behind = thread.stack.as_ref().map_or(0, |stack| stack.cost);
        (rest != NEVER).then(|| rest.saturating_add(behind) as usize)
    }

    /// In a structure, the distance of the thread that is nearest to the end of the answer, and a token that
    /// leads there.
    pub(in crate::inference::grammar) fn token_towards_end(&self, state: &State) -> Option<(usize, i64)> {
        let first = &self.costs.as_ref()?.first;
        let of = |thread: &Thread| Some((self.distance(thread)?, first[thread.node as usize]?));
        state.iter().filter_map(of).min()
    }
}

/// Whether a rule is over here in any case.
fn is_end(node: &Node) -> bool {
    node.returns && node.jumps.is_empty() && node.calls.is_empty() && matches!(node.edges, Edges::None)
}

impl Costs {
    /// Computes the distances; at `end` the answer is over but for the token that says so.
    pub(super) fn new(nodes: &[Node], end: u32, token_bytes: &TokenBytes) -> Self {
        let mut costs = Self {
            rest: vec![NEVER; nodes.len()],
            first: vec![None; nodes.len()],
        };
        costs.terminals(nodes, token_bytes);
        costs.rest[end as usize] = 1;
        costs.rules(nodes);
        costs
    }

    /// The places of terminals: the shortest text from each, and the fewest tokens that spell it. Bytes and
    /// characters that are tokens by themselves go first, so that there are some wherever a text of these
    /// leads to the end.
    fn terminals(&mut self, nodes: &[Node], token_bytes: &TokenBytes) {
        let mut next: Vec<Option<(&[u8], u32)>> = vec![None; nodes.len()];
        let mut order: Vec<u32> = Vec::new();
        let mut known = vec![false; nodes.len()];
        for (index, node) in (0..).zip(nodes) {
            if node.returns && node.calls.is_empty() && node.jumps.is_empty() {
                order.push(index);
                known[index as usize] = true;
            }
        }
        for pieces in [
            characters(token_bytes),
            BYTES.iter().map(|byte| &byte[..]).collect(),
        ] {
            let before = before(nodes, &pieces);
            let mut at = 0;
            while let Some(to) = order.get(at).copied() {
                at += 1;
                for (spelt, from) in &before[to as usize] {
                    if !std::mem::replace(&mut known[*from as usize], true) {
                        next[*from as usize] = Some((spelt, to));
                        order.push(*from);
                    }
                }
            }
        }
        for index in order {
            let Some(mut step) = next[index as usize] else {
                self.rest[index as usize] = 0;
                continue;
            };
            let mut spelt = Vec::new();
            loop {
                let (piece, to) = step;
                spelt.extend_from_slice(piece);
                if let Some(id) = token_bytes.id_of(&spelt) {
                    let rest = self.rest[to as usize].saturating_add(1);
                    if rest < self.rest[index as usize] {
                        self.rest[index as usize] = rest;
                        self.first[index as usize] = Some(id);
                    }
                }
                match next[to as usize] {
                    Some(further) if token_bytes.is_prefix(&spelt) => step = further,
                    _ => break,
                }
            }
        }
    }

    /// The places of rules, once those of terminals are known: the nearest to the end first.
    fn rules(&mut self, nodes: &[Node]) {
        // What leads to a place by a free step, or is one half of a call with another place.
        let mut users: Vec<Vec<(u32, Option<u32>)>> = vec![Vec::new(); nodes.len()];
        for (index, node) in (0..).zip(nodes) {
            for jump in &node.jumps {
                users[jump.to as usize].push((index, None));
            }
            for (start, back) in &node.calls {
                users[*start as usize].push((index, Some(*back)));
                users[*back as usize].push((index, Some(*start)));
            }
            if node.returns {
                self.rest[index as usize] = 0;
            }
        }
        let mut open: BinaryHeap<Reverse<(u32, u32)>> = (0..)
            .zip(&self.rest)
            .filter(|(_, rest)| **rest != NEVER)
            .map(|(index, rest)| Reverse((*rest, index)))
            .collect();
        while let Some(Reverse((rest, index))) = open.pop() {
            if rest > self.rest[index as usize] {
                continue;
            }
            for (user, other) in &users[index as usize] {
                let other = other.map_or(0, |other| self.rest[other as usize]);
                let through = rest.saturating_add(other);
                if through < self.rest[*user as usize] {
                    self.rest[*user as usize] = through;
                    open.push(Reverse((through, *user)));
                }
            }
        }
    }
}

/// Every byte as a text.
static BYTES: [[u8; 1]; 256] = {
    let mut bytes = [[0]; 256];
    let mut at = 0;
    while at < 256 {
        bytes[at] = [at as u8];
        at += 1;
    }
    bytes
};

/// The tokens that spell one byte; where these are not all bytes, those that spell one character too.
fn characters(token_bytes: &TokenBytes) -> Vec<&[u8]> {
    let is_character =
        |bytes: &[u8]| std::str::from_utf8(bytes).is_ok_and(|text| text.chars().nth(1).is_none());
    let every_byte = token_bytes.spells_every_byte();
    (token_bytes.tokens().iter())
        .map(|(bytes, _)| &**bytes)
        .filter(|bytes| bytes.len() == 1 || (!every_byte && is_character(bytes)))
        .collect()
}

/// For each place of a terminal, those from which one of `texts` leads there, with the first of these texts.
fn before<'t>(nodes: &[Node], texts: &[&'t [u8]]) -> Vec<Vec<(&'t [u8], u32)>> {
    let mut before: Vec<Vec<(&[u8], u32)>> = vec![Vec::new(); nodes.len()];
    for (from, node) in (0..).zip(nodes) {
        if !matches!(node.edges, Edges::Ranges(_)) {
            continue;
        }
        for text in texts {
            let to = (text.iter()).try_fold(from, |at, byte| nodes[at as usize].edges.after(*byte));
            if let Some(to) = to
                && before[to as usize].last().is_none_or(|(_, last)| *last != from)
            {
                before[to as usize].push((text, from));
            }
        }
    }
    before
}

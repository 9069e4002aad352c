//! Structures inside the automaton: calls, and how far each place is from the end of an answer.
//!
//! A terminal is a deterministic automaton, so its places have a shortest text to its end, and that text a
//! fewest number of tokens. With these, the fewest for each rule follow (Knuth, "A generalization of Dijkstra's
//! algorithm", 1977), and a thread's distance is the sum of what its terminal, and each call that it has to
//! come back from, still take. Tokens across the seam of two terminals may make an answer shorter than that,
//! never longer: wherever the distance says `n`, there is a token that leads to `n - 1`.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::automaton::{Automaton, Edges, Node, State, Thread};
use crate::text::TokenBytes;

/// From where no tokens lead to the end.
const NEVER: u32 = u32::MAX;
/// Calls inside each other; beyond, only the shortest way to the end is left.
const DEPTH_MAX: u32 = 256;
/// Threads with one place that are followed, and threads of a state: those with the nearest ends.
const STACKS_MAX: usize = 8;
const THREADS_MAX: usize = 4_096;

/// How far the places of a structure are from the end of their rule or terminal.
#[derive(Debug)]
pub(super) struct Costs {
    /// Fewest tokens; [`NEVER`] where none lead there.
    rest: Vec<u32>,
    /// The first of these tokens, in a terminal.
    first: Vec<Option<i64>>,
}

/// The calls that a thread has to come back from, the innermost first.
#[derive(Debug)]
pub(super) struct Stack {
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
    /// Adds a place of a structure and all that can be reached from it without a byte.
    pub(super) fn call(&self, index: u32, stack: Arc<Stack>, state: &mut State) {
        let costs = self.costs.as_ref().expect("only a structure has calls");
        let mut seen = HashSet::new();
        let mut open = vec![(index, stack)];
        while let Some((index, stack)) = open.pop() {
            let rest = costs.rest[index as usize];
            if rest == NEVER || !seen.insert((index, Arc::clone(&stack))) {
                continue;
            }
            let node = &self.nodes[index as usize];
            for jump in &node.jumps {
                open.push((jump.to, Arc::clone(&stack)));
            }
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
                open.push((*start, inner));
            }
            if node.returns {
                match &stack.below {
                    Some(below) => open.push((stack.back, Arc::clone(below))),
                    None => self.enter(stack.back, None, state),
                }
            }
            if !matches!(node.edges, Edges::None) {
                state.push(Thread::inside(index, stack));
            }
        }
    }

    /// Fewest tokens from a thread to the end of the answer, where there is a structure.
    pub(super) fn distance(&self, thread: &Thread) -> Option<usize> {
        let rest = self.costs.as_ref()?.rest[thread.node as usize];
        let behind = thread.stack.as_ref().map_or(0, |stack| stack.cost);
        (rest != NEVER).then(|| rest.saturating_add(behind) as usize)
    }

    /// In a structure, the distance of the thread that is nearest to the end of the answer, and a token that leads
    /// there.
    pub(super) fn token_towards_end(&self, state: &State) -> Option<(usize, i64)> {
        let first = &self.costs.as_ref()?.first;
        let of = |thread: &Thread| Some((self.distance(thread)?, first[thread.node as usize]?));
        state.iter().filter_map(of).min()
    }
}

/// Whether a rule is over here in any case.
fn is_end(node: &Node) -> bool {
    node.returns && node.jumps.is_empty() && node.calls.is_empty() && matches!(node.edges, Edges::None)
}

/// Leaves those threads of a tidy state that are nearest to their ends, where there are very many: an ambiguous
/// grammar has ever more ways to read an answer. Threads with the same place read the same bytes until their
/// terminal is complete, so the nearest of them can stand for the others.
pub(super) fn thin_out(state: &mut State) {
    let (mut node, mut count) = (u32::MAX, 0);
    state.retain(|thread| {
        count = if thread.node == node { count + 1 } else { 0 };
        node = thread.node;
        count < STACKS_MAX
    });
    if state.len() > THREADS_MAX {
        state.sort_by(|a, b| a.stack.cmp(&b.stack));
        state.truncate(THREADS_MAX);
        state.sort_unstable();
    }
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

    /// The places of terminals: the shortest text from each, and the fewest tokens that spell it. Bytes that
    /// are tokens by themselves go first, so that there are some wherever a text of such bytes leads to the
    /// end.
    fn terminals(&mut self, nodes: &[Node], token_bytes: &TokenBytes) {
        let mut next: Vec<Option<(u8, u32)>> = vec![None; nodes.len()];
        let mut order: Vec<u32> = Vec::new();
        let mut known = vec![false; nodes.len()];
        let mut before: Vec<Vec<(u8, u8, u32)>> = vec![Vec::new(); nodes.len()];
        for (index, node) in (0..).zip(nodes) {
            if let Edges::Ranges(edges) = &node.edges {
                for (first, last, to) in edges {
                    before[*to as usize].push((*first, *last, index));
                }
            }
            if node.returns && node.calls.is_empty() && node.jumps.is_empty() {
                order.push(index);
                known[index as usize] = true;
            }
        }
        for single in [true, false] {
            let mut at = 0;
            while let Some(to) = order.get(at).copied() {
                at += 1;
                for (first, last, from) in &before[to as usize] {
                    let spelt = |byte: &u8| !single || token_bytes.id_of(&[*byte]).is_some();
                    if known[*from as usize] {
                        continue;
                    }
                    if let Some(byte) = (*first..=*last).find(spelt) {
                        known[*from as usize] = true;
                        next[*from as usize] = Some((byte, to));
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
                let (byte, to) = step;
                spelt.push(byte);
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

    /// The places of rules, once those of terminals are known.
    fn rules(&mut self, nodes: &[Node]) {
        loop {
            let mut changed = false;
            for (index, node) in nodes.iter().enumerate().rev() {
                if node.calls.is_empty() && node.jumps.is_empty() && !node.returns {
                    continue;
                }
                let over = if node.returns { 0 } else { NEVER };
                let jumps = node.jumps.iter().map(|jump| self.rest[jump.to as usize]);
                let calls = (node.calls.iter()).map(|(start, back)| {
                    self.rest[*start as usize].saturating_add(self.rest[*back as usize])
                });
                let least = jumps.chain(calls).min().unwrap_or(NEVER).min(over);
                if least < self.rest[index] {
                    (self.rest[index], changed) = (least, true);
                }
            }
            if !changed {
                return;
            }
        }
    }
}

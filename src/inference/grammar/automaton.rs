//! The automaton over bytes that recognises the answers of an [`OutputGrammar`].
//!
//! Built as a graph of places with edges for bytes and free jumps (Thompson's construction); what it can be
//! in after some bytes is a set of [`Thread`]s, so that, from outside, it is deterministic. A thread
//! remembers which texts of a list of several it has used, and in a structure the calls that it has to come
//! back from ([`Stack`]). A prefix of an allowed answer never leads to an empty set, and a non-empty set
//! always leads on to an allowed answer, byte by byte.

mod structure;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::models::ModelError;
use crate::text::answer::NONE;
use crate::text::{GrammarPiece, Network, OutputGrammar, TokenBytes};
use structure::{Costs, Stack};

/// White space that may stand before and after an answer, bytes; readers trim it. Free answers begin with a
/// blank or an empty line now and then, and a bound keeps a model from writing nothing else.
pub(in crate::inference) const BLANKS_MAX: usize = 4;
/// Bytes of all allowed texts together.
const BYTES_MAX: usize = 1 << 20;
const NOWHERE: u32 = u32::MAX;

/// Where the automaton can be, sorted and without repeats; empty for what is not allowed.
pub(super) type State = Vec<Thread>;

/// One place where the automaton can be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Thread {
    pub(super) node: u32,
    /// Texts of the list at hand that were used, in order of number.
    used: Option<Arc<[u32]>>,
    /// In a structure: where to go on when the terminal at hand is complete.
    pub(super) stack: Option<Arc<Stack>>,
}

impl Thread {
    /// One inside a structure.
    pub(super) fn inside(node: u32, stack: Arc<Stack>) -> Self {
        Self {
            node,
            used: None,
            stack: Some(stack),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) edges: Edges,
    pub(super) jumps: Vec<Jump>,
    /// Whether the answer may end here.
    accepts: bool,
    /// In a list of several texts: the numbers of those that can still be written from here.
    ahead: Option<(u32, u32)>,
    /// In a structure: where a rule or terminal begins, and the place to go on from when it returns.
    pub(super) calls: Vec<(u32, u32)>,
    /// In a structure: whether the rule or terminal may be over here.
    pub(super) returns: bool,
}

#[derive(Debug, Default)]
pub(super) enum Edges {
    #[default]
    None,
    Few(Vec<(u8, u32)>),
    /// By byte.
    All(Box<[u32; 256]>),
    /// First and last byte, in order.
    Ranges(Vec<(u8, u8, u32)>),
}

impl Edges {
    /// The place behind a byte.
    pub(super) fn after(&self, byte: u8) -> Option<u32> {
        match self {
            Self::None => None,
            Self::Few(edges) => (edges.iter())
                .find(|(label, _)| *label == byte)
                .map(|(_, to)| *to),
            Self::All(edges) => Some(edges[usize::from(byte)]).filter(|to| *to != NOWHERE),
            Self::Ranges(edges) => {
                let at = edges.partition_point(|(_, last, _)| *last < byte);
                (edges.get(at).filter(|(first, _, _)| *first <= byte)).map(|(_, _, to)| *to)
            }
        }
    }
}

/// A step that takes no byte.
#[derive(Clone, Copy, Debug)]
pub(super) struct Jump {
    pub(super) to: u32,
    /// The text of a list that is complete with it.
    completes: Option<u32>,
}

/// Recognises allowed answers byte by byte.
#[derive(Debug)]
pub(super) struct Automaton {
    pub(super) nodes: Vec<Node>,
    /// Of a structure.
    pub(super) costs: Option<Costs>,
}

impl Automaton {
    /// Builds the automaton of a grammar.
    ///
    /// # Errors
    /// [`ModelError::Constraint`] for a grammar without parts, a list without texts, texts without end, or a
    /// structure beside other parts.
    pub(super) fn new(grammar: &OutputGrammar, token_bytes: &TokenBytes) -> Result<Self, ModelError> {
        let mut made = Self {
            nodes: Vec::new(),
            costs: None,
        };
        made.check(grammar)?;
        let start = made.node();
        let mut at = made.blanks(start);
        for piece in &grammar.pieces {
            at = match piece {
                GrammarPiece::Literal(text) => made.literal(at, text),
                GrammarPiece::Free { stop } => made.free(at, *stop),
                GrammarPiece::Choice(texts) => made.choice(at, texts),
                GrammarPiece::Choices(texts) => made.choices(at, texts),
                GrammarPiece::Slots(texts) => made.slots(at, texts),
                GrammarPiece::Structure(structure) => made.structure(at, structure.network()),
            };
        }
        let end = made.blanks(at);
        made.nodes[end as usize].accepts = true;
        if let [GrammarPiece::Structure(_)] = grammar.pieces.as_slice() {
            made.costs = Some(Costs::new(&made.nodes, end, token_bytes));
        }
        Ok(made)
    }

    fn check(&self, grammar: &OutputGrammar) -> Result<(), ModelError> {
        let wrong = |reason: &str| {
            Err(ModelError::Constraint {
                reason: reason.to_owned(),
            })
        };
        if grammar.pieces.is_empty() {
            return wrong("there is no part of an answer");
        }
        let mut bytes = 0;
        for piece in &grammar.pieces {
            match piece {
                GrammarPiece::Structure(_) if grammar.pieces.len() > 1 => {
                    return wrong("a structure stands beside other parts of an answer");
                }
                GrammarPiece::Structure(_) => {}
                GrammarPiece::Literal(text) => bytes += text.len(),
                GrammarPiece::Free { .. } => {}
                GrammarPiece::Choice(texts) | GrammarPiece::Choices(texts) | GrammarPiece::Slots(texts) => {
                    if texts.iter().all(|text| text.trim().is_empty()) {
                        return wrong("a list of allowed texts is empty");
                    }
                    bytes += texts.iter().map(String::len).sum::<usize>();
                }
            }
        }
        if bytes > BYTES_MAX {
            return wrong(&format!(
                "the allowed texts have {bytes} bytes, at most {BYTES_MAX} are allowed"
            ));
        }
        Ok(())
    }

    fn node(&mut self) -> u32 {
        self.nodes.push(Node::default());
        u32::try_from(self.nodes.len() - 1).expect("bounded by `BYTES_MAX`")
    }

    fn jump(&mut self, from: u32, to: u32) {
        self.nodes[from as usize].jumps.push(Jump { to, completes: None });
    }

    fn edge(&mut self, from: u32, byte: u8, to: u32) {
        match &mut self.nodes[from as usize].edges {
            Edges::Few(edges) => edges.push((byte, to)),
            edges => *edges = Edges::Few(vec![(byte, to)]),
        }
    }

    fn edges_to(&mut self, from: u32, of: impl Fn(u8) -> u32) {
        let mut all = Box::new([NOWHERE; 256]);
        for byte in 0..=255u8 {
            all[usize::from(byte)] = of(byte);
        }
        self.nodes[from as usize].edges = Edges::All(all);
    }

    // Each part begins at a place that has no edges yet, so that no place has two edges for one byte.

    /// Up to [`BLANKS_MAX`] blanks from `at` on; returns the place behind them.
    fn blanks(&mut self, at: u32) -> u32 {
        let after = self.node();
        let mut at = at;
        for _ in 0..BLANKS_MAX {
            self.jump(at, after);
            let next = self.node();
            for byte in [b' ', b'\n', b'\t', b'\r', 0x0b, 0x0c] {
                self.edge(at, byte, next);
            }
            at = next;
        }
        self.jump(at, after);
        after
    }

    fn literal(&mut self, at: u32, text: &str) -> u32 {
        let mut at = at;
        for byte in text.bytes() {
            let next = self.node();
            self.edge(at, byte, next);
            at = next;
        }
        at
    }

    /// Any text that does not hold `stop`.
    fn free(&mut self, at: u32, stop: Option<char>) -> u32 {
        let mut buffer = [0; 4];
        let stop = stop.map_or(&[][..], |stop| stop.encode_utf8(&mut buffer).as_bytes());
        let nodes: Vec<u32> = (0..stop.len().max(1)).map(|_| self.node()).collect();
        let after = self.node();
        self.jump(at, nodes[0]);
        for (matched, node) in nodes.iter().enumerate() {
            // A character's first byte is none of its others, so a broken match begins at most anew.
            self.edges_to(*node, |byte| match stop {
                [] => nodes[0],
                _ if byte == stop[matched] => nodes.get(matched + 1).copied().unwrap_or(NOWHERE),
                [first, ..] if byte == *first => nodes.get(1).copied().unwrap_or(NOWHERE),
                _ => nodes[0],
            });
            self.jump(*node, after);
        }
        after
    }

    /// The texts as a tree from `at` on; `leaves` gets the place where each ends, in order of text.
    fn tree(&mut self, at: u32, texts: &[String]) -> (u32, Vec<u32>) {
        // A place of its own: what is before may be reached again.
        let root = self.node();
        self.jump(at, root);
        let mut children: BTreeMap<(u32, u8), u32> = BTreeMap::new();
        let leaves = texts
            .iter()
            .map(|text| {
                text.bytes().fold(root, |node, byte| {
                    if let Some(known) = children.get(&(node, byte)) {
                        return *known;
                    }
                    let next = self.node();
                    self.edge(node, byte, next);
                    children.insert((node, byte), next);
                    next
                })
            })
            .collect();
        (root, leaves)
    }

    fn choice(&mut self, at: u32, texts: &[String]) -> u32 {
        let (_, leaves) = self.tree(at, &sorted(texts));
        let after = self.node();
        for leaf in leaves {
            self.jump(leaf, after);
        }
        after
    }

    /// At least one text, none twice, `", "` between them; or nothing but [`NONE`].
    fn choices(&mut self, at: u32, texts: &[String]) -> u32 {
        let texts = sorted(texts);
        let count = u32::try_from(texts.len()).expect("bounded by `BYTES_MAX`");
        let first_node = self.nodes.len();
        let (root, leaves) = self.tree(at, &texts);
        let between = self.node();
        // Sorted texts below a node are neighbours.
        for node in first_node..self.nodes.len() {
            self.nodes[node].ahead = Some((count, 0));
        }
        self.nodes[between as usize].ahead = Some((0, count));
        for (number, text) in (0..).zip(&texts) {
            let mut node = root;
            self.widen(node, number);
            for byte in text.bytes() {
                node = self.edge_of(node, byte);
                self.widen(node, number);
            }
        }
        let comma = self.node();
        self.nodes[comma as usize].ahead = Some((0, count));
        self.edge(between, b',', comma);
        self.edge(comma, b' ', root);
        let after = self.node();
        for (number, leaf) in (0..).zip(leaves) {
            for to in [between, after] {
                self.nodes[leaf as usize].jumps.push(Jump {
                    to,
                    completes: Some(number),
                });
            }
        }
        let none = self.literal_aside(at, NONE);
        self.jump(none, after);
        after
    }

    fn literal_aside(&mut self, at: u32, text: &str) -> u32 {
        let aside = self.node();
        self.jump(at, aside);
        self.literal(aside, text)
    }

    fn widen(&mut self, node: u32, number: u32) {
        let ahead = &mut self.nodes[node as usize].ahead;
        let (low, high) = ahead.unwrap_or((number, 0));
        *ahead = Some((low.min(number), high.max(number + 1)));
    }

    fn edge_of(&self, node: u32, byte: u8) -> u32 {
        self.nodes[node as usize].edges.after(byte).unwrap_or(NOWHERE)
    }

    /// `label = value;` at least once, a blank between two; or nothing but [`NONE`].
    fn slots(&mut self, at: u32, labels: &[String]) -> u32 {
        let (root, leaves) = self.tree(at, &sorted(labels));
        let equals = self.node();
        for leaf in leaves {
            self.jump(leaf, equals);
        }
        let blank = self.literal(equals, " = ");
        let value = self.node();
        let done = self.node();
        let is_blank = |byte: u8| byte.is_ascii_whitespace() || byte == 0x0b;
        self.edges_to(blank, |byte| match byte {
            b';' | b'|' => NOWHERE,
            byte if is_blank(byte) => blank,
            _ => value,
        });
        self.edges_to(value, |byte| match byte {
            b';' => done,
            b'|' => NOWHERE,
            _ => value,
        });
        self.edge(done, b' ', root);
        let after = self.node();
        self.jump(done, after);
        let none = self.literal_aside(at, NONE);
        self.jump(none, after);
        after
    }

    /// The places of a network, called from `at`; returns the place behind.
    fn structure(&mut self, at: u32, network: &Network) -> u32 {
        let base = u32::try_from(self.nodes.len()).expect("at the beginning");
        self.nodes.extend(network.nodes.iter().map(|node| {
            Node {
                edges: match node.edges.as_slice() {
                    [] => Edges::None,
                    edges => Edges::Ranges(
                        edges
                            .iter()
                            .map(|(first, last, to)| (*first, *last, base + to))
                            .collect(),
                    ),
                },
                jumps: (node.jumps.iter())
                    .map(|to| Jump {
                        to: base + to,
                        completes: None,
                    })
                    .collect(),
                calls: node
                    .calls
                    .iter()
                    .map(|(start, back)| (base + start, base + back))
                    .collect(),
                returns: node.returns,
                ..Node::default()
            }
        }));
        let after = self.node();
        self.nodes[at as usize].calls.push((base + network.start, after));
        after
    }

    /// Where every answer begins.
    pub(super) fn start(&self) -> State {
        self.at(0)
    }

    fn at(&self, node: u32) -> State {
        let mut state = State::new();
        self.enter(node, None, &mut state);
        tidy(&mut state);
        state
    }

    /// Adds a place and all that can be reached from it without a byte.
    pub(super) fn enter(&self, index: u32, used: Option<Arc<[u32]>>, state: &mut State) {
        let node = &self.nodes[index as usize];
        if !node.calls.is_empty() {
            let begun = |(start, back): &(u32, u32)| (*start, Stack::bottom(*back));
            self.enter_structure(node.calls.iter().map(begun), state);
        }
        for jump in &node.jumps {
            match jump.completes {
                None => self.enter(jump.to, used.clone(), state),
                Some(number) => {
                    let so_far = used.as_deref().unwrap_or(&[]);
                    if let Err(place) = so_far.binary_search(&number) {
                        let mut with = so_far.to_vec();
                        with.insert(place, number);
                        self.enter(jump.to, Some(with.into()), state);
                    }
                }
            }
        }
        let exhausted = node.ahead.is_some_and(|(low, high)| {
            let taken =
                (used.iter().flat_map(|used| used.iter())).filter(|number| (low..high).contains(number));
            taken.count() == high.saturating_sub(low) as usize
        });
        let leads_on = node.accepts || !matches!(node.edges, Edges::None);
        if leads_on && !exhausted {
            let used = used.filter(|_| node.ahead.is_some());
            let stack = None;
            state.push(Thread {
                node: index,
                used,
                stack,
            });
        }
    }

    /// Where the automaton is after one more byte; `work` grows by the places that were looked at.
    pub(super) fn step(&self, state: &[Thread], byte: u8, work: &mut usize) -> State {
        let mut next = State::new();
        let mut inside = Vec::new();
        for thread in state {
            let to = self.edge_of(thread.node, byte);
            match &thread.stack {
                _ if to == NOWHERE => {}
                None => self.enter(to, thread.used.clone(), &mut next),
                Some(stack) => inside.push((to, Arc::clone(stack))),
            }
        }
        *work += state.len() + self.enter_structure(inside, &mut next);
        tidy(&mut next);
        next
    }

    /// Whether the answer may end here.
    pub(super) fn accepts(&self, state: &[Thread]) -> bool {
        state
            .iter()
            .any(|thread| self.nodes[thread.node as usize].accepts)
    }

    /// The smallest byte from `least` on that some place has an edge for.
    pub(super) fn next_byte(&self, state: &[Thread], least: u8) -> Option<u8> {
        let of = |thread: &Thread| match &self.nodes[thread.node as usize].edges {
            Edges::None => None,
            Edges::Few(edges) => edges
                .iter()
                .map(|(byte, _)| *byte)
                .filter(|byte| *byte >= least)
                .min(),
            Edges::All(edges) => (least..=255).find(|byte| edges[usize::from(*byte)] != NOWHERE),
            Edges::Ranges(edges) => {
                let at = edges.partition_point(|(_, last, _)| *last < least);
                edges.get(at).map(|(first, _, _)| (*first).max(least))
            }
        };
        state.iter().filter_map(of).min()
    }
}

fn tidy(state: &mut State) {
    state.sort_unstable();
    state.dedup();
}

/// The texts without white space around them, in order, each once.
fn sorted(texts: &[String]) -> Vec<String> {
    let mut texts: Vec<String> = (texts.iter().map(|text| text.trim().to_owned()))
        .filter(|text| !text.is_empty())
        .collect();
    texts.sort_unstable();
    texts.dedup();
    texts
}

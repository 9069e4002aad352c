//! [`Network`]: what is kept of a grammar that `llguidance` has read.

use std::collections::HashMap;

use llguidance::api::ParserLimits;
use llguidance::derivre::StateID;
use llguidance::earley::lexerspec::{LexemeIdx, LexerSpec};
use llguidance::earley::regexvec::{LexemeSet, RegexVec};
use llguidance::earley::{CGrammar, CSymIdx};

/// Most places of a network, and edges between them.
const NODES_MAX: usize = 1 << 15;
const EDGES_MAX: usize = 1 << 17;
/// Work that `llguidance` may do on the automata of all terminals, in its own units: about 100 ms.
const AUTOMATA_FUEL: u64 = 1_000_000;
/// Most steps to the next rule without a byte; more is an ambiguity that costs time at each byte.
const CALLS_MAX: usize = 4_096;

/// Places that are connected by bytes, free steps and calls. A place has edges for bytes (it belongs to a
/// terminal, whose automaton is deterministic), or steps and calls (it belongs to a rule).
#[derive(Debug, Default)]
pub struct Network {
    /// The places.
    pub nodes: Vec<NetworkNode>,
    /// Where an answer begins; it ends where this rule returns.
    pub start: u32,
}

/// A place of a [`Network`].
#[derive(Debug, Default)]
pub struct NetworkNode {
    /// First and last byte, and the place behind; in order, without overlap.
    pub edges: Vec<(u8, u8, u32)>,
    /// Places that are reached without a byte.
    pub jumps: Vec<u32>,
    /// Where a rule or terminal begins, and the place to go on from when it returns.
    pub calls: Vec<(u32, u32)>,
    /// Whether the rule or terminal may be over here.
    pub returns: bool,
}

/// The line of a library's message that says what is wrong, without the source around it, as long as a header
/// of a dead letter can hold.
pub(super) fn shortened(message: &str) -> String {
    const CHARS_MAX: usize = 300;
    let cause = message
        .lines()
        .find_map(|line| line.trim().strip_prefix("error: "));
    let line = cause.or_else(|| message.lines().next()).unwrap_or_default();
    match line.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line.to_owned(),
    }
}

/// Turns a grammar of `llguidance` into a network.
pub(super) struct Builder<'g> {
    grammar: &'g CGrammar,
    terminals: RegexVec,
    network: Network,
    /// Where each symbol begins.
    symbols: HashMap<CSymIdx, u32>,
    /// Where each terminal begins.
    lexemes: HashMap<LexemeIdx, u32>,
    /// Symbols whose rules are not built yet.
    open: Vec<CSymIdx>,
    /// Edges so far.
    edges: usize,
    /// Whether what is between terminals may come once only; in JSON it holds all white space at once.
    skip_once: bool,
}

impl<'g> Builder<'g> {
    pub(super) fn new(
        grammar: &'g CGrammar,
        mut limits: ParserLimits,
        skip_once: bool,
    ) -> Result<Self, String> {
        let mut terminals = (grammar.lexer_spec().to_regex_vec(&mut limits))
            .map_err(|error| shortened(&error.to_string()))?;
        terminals.set_fuel(AUTOMATA_FUEL);
        terminals.set_max_states(NODES_MAX);
        Ok(Self {
            grammar,
            terminals,
            network: Network::default(),
            symbols: HashMap::new(),
            lexemes: HashMap::new(),
            open: Vec::new(),
            edges: 0,
            skip_once,
        })
    }

    pub(super) fn build(mut self) -> Result<Network, String> {
        self.network.start = self.symbol(self.grammar.start())?;
        while let Some(symbol) = self.open.pop() {
            self.rules(symbol)?;
        }
        if !self.over(true)[self.network.start as usize] {
            return Err("no text is of this form: its rules never come to an end".to_owned());
        }
        self.check_left_recursion()?;
        Ok(self.network)
    }

    fn spec(&self) -> &'g LexerSpec {
        self.grammar.lexer_spec()
    }

    fn node(&mut self) -> Result<u32, String> {
        if self.network.nodes.len() >= NODES_MAX {
            return Err(format!("it takes more than {NODES_MAX} states; make it smaller"));
        }
        self.network.nodes.push(NetworkNode::default());
        Ok(u32::try_from(self.network.nodes.len() - 1).expect("bounded by `NODES_MAX`"))
    }

    fn at(&mut self, node: u32) -> &mut NetworkNode {
        &mut self.network.nodes[node as usize]
    }

    /// Where a symbol begins.
    fn symbol(&mut self, symbol: CSymIdx) -> Result<u32, String> {
        if let Some(start) = self.symbols.get(&symbol) {
            return Ok(*start);
        }
        let start = self.node()?;
        self.symbols.insert(symbol, start);
        self.open.push(symbol);
        Ok(start)
    }

    /// Builds what a symbol may be. A rule that begins with its own symbol is a repetition behind the others.
    fn rules(&mut self, symbol: CSymIdx) -> Result<(), String> {
        let start = self.symbols[&symbol];
        let data = self.grammar.sym_data(symbol);
        if data.props.max_tokens < usize::MAX {
            return Err("`max_tokens` cannot be kept here".to_owned());
        }
        let end = self.node()?;
        self.at(end).returns = true;
        if let Some(lexeme) = data.lexeme {
            let called = self.lexeme(lexeme)?;
            let skip = self.spec().skip_id(self.spec().lexeme_spec(lexeme).class());
            let skip = self.lexeme(skip)?;
            let after = if self.skip_once { self.node()? } else { end };
            self.at(start).calls.push((called, after));
            self.at(after).calls.push((skip, end));
            self.at(after).returns = true;
            return Ok(());
        }
        if data.is_nullable {
            self.at(start).jumps.push(end);
        }
        for rule in self.grammar.rules_of(symbol) {
            let (parts, _, _) = self.grammar.rule_rhs(*rule);
            let (mut at, parts) = match parts {
                [first, rest @ ..] if *first == symbol => (end, rest),
                parts => (start, parts),
            };
            for (number, part) in parts.iter().enumerate() {
                let called = self.symbol(*part)?;
                let next = if number + 1 == parts.len() {
                    end
                } else {
                    self.node()?
                };
                self.at(at).calls.push((called, next));
                at = next;
            }
        }
        Ok(())
    }

    /// Builds the automaton of a terminal, without the states from which it never matches.
    fn lexeme(&mut self, lexeme: LexemeIdx) -> Result<u32, String> {
        if let Some(start) = self.lexemes.get(&lexeme) {
            return Ok(*start);
        }
        let lazy = self.terminals.lazy_regexes().contains(lexeme);
        let mut alone = LexemeSet::new(self.spec().lexemes.len());
        alone.add(lexeme);
        let initial = self.terminals.initial_state(&alone);
        if !initial.is_dead() && self.terminals.possible_lookahead_len(initial) > 0 {
            return Err("`stop` cannot be kept here".to_owned());
        }
        let start = self.node()?;
        let mut nodes: HashMap<StateID, u32> = HashMap::from([(initial, start)]);
        let mut open = vec![(initial, start)];
        let mut before: HashMap<u32, Vec<u32>> = HashMap::new();
        while let Some((state, node)) = open.pop() {
            if self.edges > EDGES_MAX {
                return Err(format!("it takes more than {EDGES_MAX} edges; make it smaller"));
            }
            let matches = !state.is_dead() && self.terminals.state_desc(state).greedy_accepting.is_some();
            self.at(node).returns = matches;
            if lazy && matches {
                continue; // it ends where it first matches
            }
            for byte in 0..=255u8 {
                let next = self.terminals.transition(state, byte);
                if next.is_dead() {
                    continue;
                }
                let to = match nodes.get(&next) {
                    Some(to) => *to,
                    None => {
                        let to = self.node()?;
                        nodes.insert(next, to);
                        open.push((next, to));
                        to
                    }
                };
                match self.at(node).edges.last_mut() {
                    Some((_, last, same)) if *same == to && *last + 1 == byte => *last = byte,
                    _ => {
                        self.at(node).edges.push((byte, byte, to));
                        before.entry(to).or_default().push(node);
                        self.edges += 1;
                    }
                }
            }
        }
        if let Some(error) = self.terminals.get_error() {
            return Err(format!(
                "a terminal of it takes too much work; make it smaller ({})",
                shortened(&error)
            ));
        }
        let ends: Vec<u32> = nodes
            .values()
            .copied()
            .filter(|node| self.network.nodes[*node as usize].returns)
            .collect();
        let mut useful = vec![false; self.network.nodes.len()];
        let mut open = ends;
        while let Some(node) = open.pop() {
            if !std::mem::replace(&mut useful[node as usize], true) {
                open.extend(before.remove(&node).unwrap_or_default());
            }
        }
        for node in nodes.values() {
            self.at(*node).edges.retain(|(_, _, to)| useful[*to as usize]);
        }
        self.lexemes.insert(lexeme, start);
        Ok(start)
    }

    /// Refuses rules that begin with themselves by way of others, for which a network has no end of calls,
    /// and places from which very many rules begin.
    fn check_left_recursion(&self) -> Result<(), String> {
        let nodes = &self.network.nodes;
        let empty = self.over(false);
        // The symbol that a place was last reached from.
        let mut seen: Vec<Option<CSymIdx>> = vec![None; nodes.len()];
        let mut open = Vec::new();
        for (symbol, start) in &self.symbols {
            let mut count = 0;
            open.push(*start);
            while let Some(node) = open.pop() {
                // What it leads to without a byte, calls that return at once included; a call begins another
                // rule.
                let node = &nodes[node as usize];
                let calls = node.calls.iter();
                let through = calls.clone().filter(|(start, _)| empty[*start as usize]);
                let next = (node.jumps.iter().copied())
                    .chain(through.map(|(_, back)| *back))
                    .chain(calls.map(|(start, _)| *start));
                for next in next {
                    if next == *start {
                        return Err(format!(
                            "rule `{}` begins with itself by way of other rules; write it as a repetition",
                            self.grammar.sym_name(*symbol)
                        ));
                    }
                    if seen[next as usize] != Some(*symbol) {
                        seen[next as usize] = Some(*symbol);
                        open.push(next);
                        count += 1;
                    }
                }
                if count > CALLS_MAX {
                    return Err(format!(
                        "more than {CALLS_MAX} rules can begin at one place; make it smaller"
                    ));
                }
            }
        }
        Ok(())
    }

    /// For each place, whether its rule can be over from there: without a byte, or with some.
    fn over(&self, with_bytes: bool) -> Vec<bool> {
        let nodes = &self.network.nodes;
        // What leads to a place by a free step, or is one half of a call with another place.
        let mut users: Vec<Vec<(u32, Option<u32>)>> = vec![Vec::new(); nodes.len()];
        let mut found = vec![false; nodes.len()];
        let mut open = Vec::new();
        for (index, node) in (0..).zip(nodes) {
            for to in &node.jumps {
                users[*to as usize].push((index, None));
            }
            for (start, back) in &node.calls {
                users[*start as usize].push((index, Some(*back)));
                users[*back as usize].push((index, Some(*start)));
            }
            if node.returns || (with_bytes && !node.edges.is_empty()) {
                found[index as usize] = true;
                open.push(index);
            }
        }
        while let Some(node) = open.pop() {
            for (user, other) in &users[node as usize] {
                let over = other.is_none_or(|other| found[other as usize]);
                if over && !std::mem::replace(&mut found[*user as usize], true) {
                    open.push(*user);
                }
            }
        }
        found
    }
}

//! `Structure`: a form of answers that a request brings along, as a JSON schema, a regular expression or a
//! grammar.
//!
//! `llguidance` reads the three languages and gives one context-free grammar whose terminals are regular
//! expressions. What is kept of it is a [`Network`]: an automaton over bytes for each terminal and one for
//! each rule, whose edges call others (a recursive transition network; Woods, CACM 1970). Constrained decoding
//! runs it, because the parser of `llguidance` does not say how far an answer is from its end
//! (docs/decisions/0017).

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use llguidance::Logger;
use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::derivre::StateID;
use llguidance::earley::lexerspec::{LexemeIdx, LexerSpec};
use llguidance::earley::regexvec::{LexemeSet, RegexVec};
use llguidance::earley::{CGrammar, CSymIdx};
use serde_json::{Value, json};

use crate::text::TextError;

/// Longest source, bytes.
pub const STRUCTURE_BYTES_MAX: usize = 64 * 1024;
/// Most rules and terminals.
const SYMBOLS_MAX: usize = 16_384;
/// Most places of a network.
const NODES_MAX: usize = 1 << 15;
/// Work that `llguidance` may do, in its own units: about 20 ms for the syntax, 100 ms for the automata.
const SYNTAX_FUEL: u64 = 1_000_000;
const AUTOMATA_FUEL: u64 = 1_000_000;
/// Most steps to the next rule without a byte; more is an ambiguity that costs time at each byte.
const CALLS_MAX: usize = 4_096;
/// Stack of the thread that reads a source. Its parsers are recursive, and a source of
/// [`STRUCTURE_BYTES_MAX`] can hold nothing but opening brackets.
const STACK_BYTES: usize = 512 << 20; // address space; memory is taken as it is used

/// Language of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StructureKind {
    /// The answer is JSON that the schema accepts.
    JsonSchema,
    /// The regular expression matches the whole answer.
    Regex,
    /// The answer is a text of a grammar in the dialect of Lark that `llguidance` reads.
    Lark,
}

impl StructureKind {
    /// Every member.
    pub const ALL: [Self; 3] = [Self::JsonSchema, Self::Regex, Self::Lark];

    /// What it is called in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::JsonSchema => "JSON schema",
            Self::Regex => "regular expression",
            Self::Lark => "grammar",
        }
    }

    /// The request header that carries it.
    pub fn header(self) -> &'static str {
        match self {
            Self::JsonSchema => "ce_jsonschema",
            Self::Regex => "ce_regex",
            Self::Lark => "ce_grammar",
        }
    }
}

/// A form of answers, read and ready for any vocabulary.
#[derive(Debug)]
pub struct Structure {
    kind: StructureKind,
    source: String,
    network: Network,
}

impl PartialEq for Structure {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, &self.source) == (other.kind, &other.source)
    }
}

impl Eq for Structure {}

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

impl Structure {
    /// Reads a structure.
    ///
    /// # Errors
    /// [`TextError::Structure`]: what is wrong with the source, or which limit it exceeds.
    pub fn new(kind: StructureKind, source: &str) -> Result<Self, TextError> {
        let wrong = |reason: String| TextError::Structure {
            kind: kind.name(),
            reason,
        };
        if source.len() > STRUCTURE_BYTES_MAX {
            return Err(wrong(format!(
                "it has {} bytes, at most {STRUCTURE_BYTES_MAX} are allowed",
                source.len()
            )));
        }
        let read = || catch_unwind(AssertUnwindSafe(|| read(kind, source)));
        let network = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("structure".to_owned())
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, read);
            match thread.map(|thread| thread.join()) {
                Ok(Ok(Ok(read))) => read,
                Ok(_) => Err("it cannot be read: its reader gave up".to_owned()),
                Err(error) => Err(format!("no thread to read it: {error}")),
            }
        });
        Ok(Self {
            kind,
            source: source.to_owned(),
            network: network.map_err(wrong)?,
        })
    }

    /// Its language.
    pub fn kind(&self) -> StructureKind {
        self.kind
    }

    /// What recognises its answers.
    pub fn network(&self) -> &Network {
        &self.network
    }
}

/// Reads a source with `llguidance` and takes over its grammar.
fn read(kind: StructureKind, source: &str) -> Result<Network, String> {
    let grammar = match kind {
        StructureKind::Regex => TopLevelGrammar::from_regex(source),
        StructureKind::Lark => TopLevelGrammar::from_lark(source.to_owned()),
        StructureKind::JsonSchema => TopLevelGrammar::from_json_schema(schema(source)?),
    };
    let limits = ParserLimits {
        initial_lexer_fuel: SYNTAX_FUEL,
        max_grammar_size: SYMBOLS_MAX,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    let grammar = GrammarInit::Serialized(grammar)
        .to_cgrammar(None, &mut Logger::new(0, 0), limits.clone(), Vec::new())
        .map_err(|error| shortened(&format!("{error:#}")))?;
    let spec = grammar.lexer_spec();
    if let [warning, ..] = spec.render_warnings().as_slice() {
        return Err(shortened(warning));
    }
    for (present, what) in [
        (grammar.parametric(), "rules with parameters"),
        (spec.has_stop, "`stop`"),
        (spec.has_max_tokens, "`max_tokens`"),
        (spec.has_temperature, "`temperature`"),
        (spec.special_token_rx.is_some(), "special tokens"),
    ] {
        if present {
            return Err(format!("{what} cannot be kept here"));
        }
    }
    Builder::new(&grammar, limits, kind)?.build()
}

/// The schema with the white space that may stand between its parts: a little, so that a model cannot write
/// nothing else.
fn schema(source: &str) -> Result<Value, String> {
    let mut schema: Value =
        serde_json::from_str(source).map_err(|error| format!("it is no JSON: {error}"))?;
    match &mut schema {
        Value::Object(object) => {
            object.insert(
                "x-guidance".to_owned(),
                json!({ "whitespace_pattern": r"[ \n]{1,8}" }),
            );
        }
        Value::Bool(_) => {}
        _ => return Err("a schema is a JSON object, `true` or `false`".to_owned()),
    }
    Ok(schema)
}

/// The line of a library's message that says what is wrong, without the source around it, as long as a header of
/// a dead letter can hold.
fn shortened(message: &str) -> String {
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
struct Builder<'g> {
    grammar: &'g CGrammar,
    terminals: RegexVec,
    network: Network,
    /// Where each symbol begins.
    symbols: HashMap<CSymIdx, u32>,
    /// Where each terminal begins.
    lexemes: HashMap<LexemeIdx, u32>,
    /// Symbols whose rules are not built yet.
    open: Vec<CSymIdx>,
    /// Whether what is between terminals may come once only; in JSON it holds all white space at once.
    skip_once: bool,
}

impl<'g> Builder<'g> {
    fn new(grammar: &'g CGrammar, mut limits: ParserLimits, kind: StructureKind) -> Result<Self, String> {
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
            skip_once: kind == StructureKind::JsonSchema,
        })
    }

    fn build(mut self) -> Result<Network, String> {
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

    /// Refuses rules that begin with themselves by way of others, for which a network has no end of calls, and
    /// places from which very many rules begin.
    fn check_left_recursion(&self) -> Result<(), String> {
        let nodes = &self.network.nodes;
        let empty = self.over(false);
        // What a place leads to without a byte, calls that return at once included; a call begins another
        // rule.
        let next = |node: u32| {
            let node = &nodes[node as usize];
            let through = node
                .calls
                .iter()
                .filter(|(start, _)| empty[*start as usize])
                .map(|(_, back)| *back);
            let begun = node.calls.iter().map(|(start, _)| *start);
            node.jumps
                .iter()
                .copied()
                .chain(through)
                .collect::<Vec<u32>>()
                .into_iter()
                .chain(begun)
        };
        for start in self.symbols.values() {
            let mut seen = std::collections::HashSet::new();
            let mut open: Vec<u32> = next(*start).collect();
            while let Some(node) = open.pop() {
                if node == *start {
                    let names = self.symbols.iter().find(|(_, known)| *known == start);
                    let name = names.map_or("", |(symbol, _)| self.grammar.sym_name(*symbol));
                    return Err(format!(
                        "rule `{name}` begins with itself by way of other rules; write it as a repetition"
                    ));
                }
                if seen.insert(node) {
                    open.extend(next(node));
                }
            }
            if seen.len() > CALLS_MAX {
                return Err(format!(
                    "more than {CALLS_MAX} rules can begin at one place; make it smaller"
                ));
            }
        }
        Ok(())
    }

    /// For each place, whether its rule can be over from there: without a byte, or with some.
    fn over(&self, with_bytes: bool) -> Vec<bool> {
        let nodes = &self.network.nodes;
        let at_once = |node: &NetworkNode| node.returns || (with_bytes && !node.edges.is_empty());
        let mut found: Vec<bool> = nodes.iter().map(at_once).collect();
        loop {
            let mut changed = false;
            for (at, node) in nodes.iter().enumerate().rev() {
                let over = |to: &u32| found[*to as usize];
                let now = node.jumps.iter().any(over)
                    || (node.calls.iter()).any(|(start, back)| over(start) && over(back));
                if now && !found[at] {
                    (found[at], changed) = (true, true);
                }
            }
            if !changed {
                return found;
            }
        }
    }
}

//! `Structure`: a form of answers that a request brings along, as a JSON schema, a regular expression or a
//! grammar.
//!
//! `llguidance` reads the three languages and gives one context-free grammar whose terminals are regular
//! expressions. What is kept of it is a [`Network`]: an automaton over bytes for each terminal and one for
//! each rule, whose edges call others (a recursive transition network; Woods, CACM 1970). Constrained
//! decoding runs it, because the parser of `llguidance` does not say how far an answer is from its end
//! (docs/decisions/0017).

use std::panic::{AssertUnwindSafe, catch_unwind};

use llguidance::Logger;
use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use serde_json::{Value, json};

use crate::text::TextError;

mod network;

use network::{Builder, shortened};
pub use network::{Network, NetworkNode};

/// Longest source, bytes.
pub const STRUCTURE_BYTES_MAX: usize = 64 * 1024;
/// Most rules and terminals.
const SYMBOLS_MAX: usize = 16_384;
/// Work that `llguidance` may do on the syntax, in its own units: about 20 ms.
const SYNTAX_FUEL: u64 = 1_000_000;
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

    /// Memory that it takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        let node = |node: &NetworkNode| {
            let (edges, jumps, calls) = (&*node.edges, &*node.jumps, &*node.calls);
            size_of_val(node) + size_of_val(edges) + size_of_val(jumps) + size_of_val(calls)
        };
        self.source.len() + self.network.nodes.iter().map(node).sum::<usize>()
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
    Builder::new(&grammar, limits, kind == StructureKind::JsonSchema)?.build()
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

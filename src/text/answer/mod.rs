//! Answers: what they may look like, how targets are written, how what a model wrote is read.

mod check;
mod format;
mod grammar;
mod structure;

pub use format::{AnswerFormat, ParsedAnswer, SlotLabel};
pub use grammar::{GrammarPiece, OutputGrammar};
pub use structure::{Network, NetworkNode, STRUCTURE_BYTES_MAX, Structure, StructureKind};

/// The answer of a task that lists things, when there is none of them.
pub const NONE: &str = "none";

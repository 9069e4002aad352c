//! Answers: what they may look like, how targets are written, how what a model wrote is read.

mod shape;

pub use shape::{AnswerPiece, AnswerShape};

/// The answer of a task with a list of things, when there is none of them.
pub const NONE: &str = "none";

//! `speechverse eval`: manifests in, scores with intervals out, in the shape of the paper's tables.
//!
//! | file | one thought |
//! |---|---|
//! | [`plan`] | variants (rows of a table) and what each asks of each recording; equal ones are asked once |
//! | [`run()`] | the questions answered: first about audio, then about texts in place of audio |
//! | [`report`] | rows become scores, intervals, comparisons, breakdowns |
//! | [`markdown`], [`plot`] | the report for people |
//!
//! Source of the tables: SpeechVerse (arXiv 2405.08295), tables 2 and 3 (variants), 5 (prompts), 7
//! (descriptions and constraint), 9 (joint decoding).

pub mod markdown;
pub mod plan;
pub mod plot;
pub mod report;
pub mod run;

pub use plan::{Choices, Dataset, Plan, PromptChoice, Source, Table, Variant};
pub use report::{Facts, Report};
pub use run::{Answered, Row, read_rows, run};

#[cfg(test)]
mod tests;

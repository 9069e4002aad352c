//! `speechverse eval`: manifests in, scores with intervals out, in the shape of the paper's tables.
//!
//! | file | one thought |
//! |---|---|
//! | [`variants`] | the rows of the tables |
//! | [`dataset`] | the recordings of a manifest |
//! | [`plan`] | what each variant asks of each recording; equal questions are asked once |
//! | [`run()`] | the questions answered: first about audio, then about texts in place of audio |
//! | [`report`] | rows become scores, intervals, comparisons, breakdowns |
//! | [`invention`] | how often words are answered where none were said |
//! | [`support`] | how well the flag `unsupported` tells wrong transcripts from right ones |
//! | [`markdown`], [`plot`] | the report for people |
//! | [`write_report`] | all of it as files |
//!
//! Source of the tables: SpeechVerse (arXiv 2405.08295), tables 2 and 3 (variants), 5 (prompts), 7
//! (descriptions and constraint), 9 (joint decoding).

pub mod dataset;
mod files;
pub mod invention;
pub mod markdown;
pub mod plan;
pub mod plot;
pub mod report;
pub mod run;
pub mod support;
pub mod variants;

pub use dataset::Dataset;
pub use files::write_report;
pub use plan::Plan;
pub use report::{Facts, Report};
pub use run::{Answered, Row, read_rows, run};
pub use variants::{Choices, PromptChoice, Source, Table, Variant};

#[cfg(test)]
mod tests;

//! BEST-RQ pre-training: hide stretches of speech, and have the encoder say which random label each hidden
//! frame had.
//!
//! | file | one thought |
//! |---|---|
//! | [`masking`] | which frames are hidden, and by what |
//! | [`objective`] | a batch as a masked_batch, its loss and its gradients |
//! | [`codes`] | how labels are distributed, what a blind guesser would reach |
//! | [`events`] | what a run reports, and its picture |
//! | `run` | the run: batches, steps, validation, checkpoints, resume |
//!
//! Source: Chiu et al. (arXiv 2202.01855); SpeechVerse's figures (arXiv 2405.08295, appendix A.1).

pub mod codes;
pub mod config;
pub mod events;
pub mod masking;
pub mod objective;
mod run;

pub use events::PretrainEvent;
pub use run::{PretrainArgs, PretrainOutcome, pretrain};

#[cfg(test)]
mod tests;

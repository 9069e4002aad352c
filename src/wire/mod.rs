//! What travels on topics: records, requests, answers, dead letters, headers.

pub mod answer;
mod attributes;
pub mod control;
pub mod dead_letter;
mod envelope;
pub mod event;
pub mod headers;
pub mod label;
mod limits;
mod number;
mod record;
<<<<<<< HEAD
pub mod redrive;
=======
mod rejection;
>>>>>>> e1b5f01 (Untie files that import each other in audio, evaluation, weights, wire and the fuzz targets)
pub mod request;
#[cfg(test)]
mod tests;
pub mod trace;

pub use record::{OutgoingRecord, Record, RecordOffset};

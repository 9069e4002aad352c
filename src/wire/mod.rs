//! What travels on topics: records, requests, answers, dead letters, headers.

pub mod answer;
pub mod asyncapi;
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
pub mod redrive;
mod rejection;
pub mod request;
#[cfg(test)]
mod tests;
pub mod trace;

pub use record::{OutgoingRecord, Record, RecordOffset};

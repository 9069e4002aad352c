//! The only module that names rdkafka: source, sink, offset tracker, rebalance.
//!
//! [`Source`] reads as a member of the group and hands out records with record_offsets. At least once, a
//! record_offset goes back to the [`OffsetTracker`] when the broker has acknowledged the answer that a
//! [`Sink`] wrote, and the source commits what the tracker calls finished. Exactly once, the answer
//! itself goes to the tracker, and the source writes it and commits its offset in one transaction.
//! [`Reader`] reads outside any group; [`admin`] looks after topics. A [`ConnectionMonitor`] knows
//! whether they reach a broker.

pub mod admin;
mod answered;
mod audio_gauge;
mod bootstrap;
mod budget;
mod client;
pub mod config;
mod convert;
mod error;
mod monitor;
mod offset_tracker;
mod reader;
mod settlement;
mod sink;
mod source;
mod transactions;

pub use audio_gauge::{AudioGauge, AudioHold};
pub use budget::{Budget, BudgetHold, OffsetTracker};
pub use client::check_properties;
pub use error::{KafkaError, SinkError};
pub use monitor::{ConnectionMonitor, RecordsDeleted};
pub use offset_tracker::{Admission, OffsetTable, Position, Release, TopicPartition};
pub use reader::{Read, ReadFrom, Reader};
pub use settlement::Settled;
pub use sink::{Sink, Written};
pub use source::{Closed, Revocation, Source, SourceConfig, SourceEvent};

#[cfg(test)]
mod tests;

//! The only room that says rdkafka: source, sink, offset ledger, rebalance.
//!
//! [`Source`] reads as a member of the group and hands out records with receipts; a receipt goes back to the
//! [`Ledger`] when the broker has acknowledged the answer that a [`Sink`] wrote; the source commits what the ledger
//! calls finished. [`Reader`] reads outside any group; [`admin`] looks after topics.

pub mod admin;
mod budget;
mod client;
mod convert;
mod error;
mod ledger;
mod reader;
mod sink;
mod source;

pub use budget::{Budget, BudgetHold, Ledger};
pub use client::check_properties;
pub use error::{KafkaError, SinkError};
pub use ledger::{Admission, OffsetLedger, Position, Release, TopicPartition};
pub use reader::{Read, ReadFrom, Reader};
pub use sink::{Sink, Written};
pub use source::{Closed, PartitionLag, Revocation, Source, SourceConfig, SourceEvent};

#[cfg(test)]
mod tests;

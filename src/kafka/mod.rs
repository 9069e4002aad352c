//! The only room that says rdkafka: source, sink, offset ledger, rebalance.

mod ledger;

pub use ledger::{Admission, OffsetLedger, Position, Release, TopicPartition};

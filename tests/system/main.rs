//! The whole system: audio in on a topic, an answer out on another, on tiny random models, and on embedded
//! brokers or the Kafka that `SPEECHVERSE_SYSTEM_KAFKA` names.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod clients;
mod delivery;
mod harness;
mod learning;
mod outage;
mod roles;
mod serving;
mod soak;
mod streams;

//! The whole system: audio in on a topic, an answer out on another, on tiny random models and the embedded
//! broker.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod delivery;
mod harness;
mod learning;
mod outage;
mod roles;
mod serving;
mod soak;
mod streams;

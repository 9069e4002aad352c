//! One actor at a time, driven through its mailbox: probes stand in for its neighbours, and each stage is
//! made to fail on purpose.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod collector;
mod controller;
mod decoder;
mod encoder;
mod ingest;
mod messages;
mod publisher;
mod support;
mod trainer;

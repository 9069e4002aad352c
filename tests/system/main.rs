//! The whole system: audio in on a topic, an answer out on another, on tiny random models and the embedded broker.

mod bad_input;
mod harness;
mod learning;
mod outage;
mod serving;
mod soak;

//! Settings that people write: load, overlay, validate.

pub mod broker;

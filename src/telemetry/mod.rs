//! The metrics catalogue and the tracing set-up.

pub mod logs;
pub mod metrics;

//! The metrics catalogue and the tracing set-up.

//! Settings that people write: load, overlay, validate.

pub mod model;
pub mod training;

//! Settings that people write: load, overlay, validate.

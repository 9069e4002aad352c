//! One network run on given input, with every number it makes laid open: for comparison with reference implementations.

pub use super::probe_encoder::encoder;

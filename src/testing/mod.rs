//! Fakes, tiny models and builders for tests (feature `testsuite`).

mod real;
mod skip;
mod tiny;

pub use real::real_model;
pub use skip::skip;
pub use tiny::{ENCODER_LAYERS, ENCODER_WIDTH, LLM_WIDTH, TinyModels, VOCABULARY};

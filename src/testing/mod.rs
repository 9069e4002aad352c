//! Fakes, tiny models and builders for tests (feature `testsuite`).

mod generate;
mod real;
mod skip;
mod tiny;

pub use generate::{generate_alike, generate_all};
pub use real::real_model;
pub use skip::skip;
pub use tiny::{ENCODER_LAYERS, ENCODER_WIDTH, LLM_WIDTH, TinyModels, VOCABULARY};

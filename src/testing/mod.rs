//! Fakes, tiny models and builders for tests (feature `testsuite`).

mod fixtures;
mod generate;
mod hooked;
mod publish;
mod real;
mod skip;
mod tiny;

pub use fixtures::fixture;
pub use generate::{generate_alike, generate_all};
pub use hooked::{HookedModel, Pass, PassPoint};
pub use publish::publish_first_version;
pub use real::real_model;
pub use skip::skip;
pub use tiny::{ENCODER_LAYERS, ENCODER_WIDTH, LLM_WIDTH, TinyModels, VOCABULARY};

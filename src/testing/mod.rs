//! Fakes, tiny models and builders for tests (feature `testsuite`).

mod skip;

pub use skip::skip;

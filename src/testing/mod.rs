//! Fakes, tiny models and builders for tests (feature `testsuite`).

//! What we know: data, models, settings. No actors live here.

pub mod audio;
pub mod config;
pub mod evaluation;
pub mod inference;
pub mod kafka;
pub mod models;
pub mod nn;
pub mod registry;
pub mod scoring;
pub mod store;
pub mod telemetry;
#[cfg(any(test, feature = "testsuite"))]
pub mod testing;
pub mod text;
pub mod training;
pub mod util;
pub mod weights;
pub mod wire;

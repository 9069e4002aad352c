//! Metrics, logs and traces: the catalogue of metrics, the guard that counts a stage's work, the set-up of
//! logging.

pub mod config;
pub mod logs;
pub mod metrics;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod spans;
mod stage;

pub use stage::StageItem;

//! Metrics, logs and traces: the catalogue of metrics, the guard that counts a stage's work, the set-up of
//! logging.

pub mod config;
#[cfg(feature = "testsuite")]
mod faults;
pub mod logs;
pub mod metrics;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod spans;
mod stage;

pub use stage::StageItem;

/// Where a test may let `stage` panic (`SPEECHVERSE_TEST_PANICS`), with a work item in hand; nothing without
/// the feature `testsuite`.
pub fn fault_point(stage: &'static str) {
    #[cfg(feature = "testsuite")]
    faults::strike(stage);
    #[cfg(not(feature = "testsuite"))]
    let _ = stage;
}

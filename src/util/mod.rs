//! Small helpers that every module may use: the clock, random numbers from a seed, the error of settings,
//! hexadecimal text, files that are not what their names promise.

mod clock;
mod config_error;
mod file_content;
#[cfg(feature = "testsuite")]
mod jumps;
pub mod random;

pub use clock::{Clock, Ticks};
pub use config_error::{ConfigError, ENV_PREFIX};
pub use file_content::{file_mistaken_for, mistaken_for};

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

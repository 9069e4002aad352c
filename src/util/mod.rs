//! Small helpers that every module may use: the clock, the error of settings, hexadecimal text.

mod clock;
mod config_error;

pub use clock::Clock;
pub use config_error::{ConfigError, ENV_PREFIX};
/// Bytes as lower-case hexadecimal digits.
pub use hex::encode as hex;

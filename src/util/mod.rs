//! Small helpers that every module may use: the error of settings, hexadecimal text.

mod config_error;

pub use config_error::{ConfigError, ENV_PREFIX};

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

//! Small helpers that every module may use: the error of settings, hexadecimal text.

mod config_error;
mod hex;

pub use config_error::{ConfigError, ENV_PREFIX};
pub use hex::hex;

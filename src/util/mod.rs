//! Small helpers that every module may use: the error of settings, hexadecimal text, files that are not
//! what their names promise.

mod config_error;
mod file_content;
mod hex;

pub use config_error::{ConfigError, ENV_PREFIX};
pub use file_content::{file_mistaken_for, mistaken_for};
pub use hex::hex;

//! Small helpers that every module may use: the clock, the error of settings, hexadecimal text.

mod clock;
mod config_error;
mod hex;

pub use clock::Clock;
pub use config_error::{ConfigError, ENV_PREFIX};
pub use hex::hex;

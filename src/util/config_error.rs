//! `ConfigError`: what is wrong with the settings, and where.

use std::fmt::Display;
use std::path::PathBuf;

/// Prefix of the environment variables that override settings.
pub const ENV_PREFIX: &str = "SPEECHVERSE__";

/// What is wrong with the settings, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the settings file `{}`: {source}", path.display())]
    Read {
        /// File that was asked for.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not TOML, or a key is unknown or has the wrong type.
    #[error("settings file `{}`: {message}", path.display())]
    Parse {
        /// File that was read.
        path: PathBuf,
        /// Line, column, key and what was expected.
        message: String,
    },
    /// An environment variable does not fit the setting it names.
    #[error("environment variable `{variable}`: {message}")]
    Environment {
        /// Its name.
        variable: String,
        /// Key and what was expected.
        message: String,
    },
    /// A value is out of its range, or two settings contradict each other.
    #[error("setting `{key}`: {message}")]
    Invalid {
        /// Dotted name of the setting.
        key: String,
        /// What was found and what is allowed.
        message: String,
    },
}

impl ConfigError {
    /// An error about the setting `key`.
    pub fn invalid(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid {
            key: key.into(),
            message: message.into(),
        }
    }

    /// Checks that `low <= value <= high`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] that names the key, the value and the range.
    pub fn range<T: PartialOrd + Display>(key: &str, value: T, low: T, high: T) -> Result<(), Self> {
        if value >= low && value <= high {
            return Ok(());
        }
        Err(Self::invalid(key, format!("{value} is outside {low}..={high}")))
    }
}

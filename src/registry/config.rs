//! The `[adapters]` table: where adapter versions live, and which one serves.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::util::ConfigError;

/// The `[adapters]` table: where adapter versions live.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptersConfig {
    /// The registry: a folder with one folder a version and a `current` pointer.
    pub dir: PathBuf,
    /// Serve this version instead of the one that `current` names; empty: follow `current`.
    pub version: String,
    /// A shipped adapter folder that an empty registry starts from; empty: an empty registry is an error.
    pub seed: PathBuf,
    /// Prefix of the names of new versions: `demo` makes `demo-0003`.
    pub prefix: String,
}

impl Default for AdaptersConfig {
    fn default() -> Self {
        Self {
            dir: "data/adapters".into(),
            version: String::new(),
            seed: "configs/adapters/demo-0012".into(),
            prefix: "demo".to_owned(),
        }
    }
}

impl AdaptersConfig {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let plain = |text: &str| {
            text.chars()
                .all(|character| character.is_ascii_alphanumeric() || "-_.".contains(character))
        };
        super::check_prefix(&self.prefix)
            .map_err(|error| ConfigError::invalid("adapters.prefix", error.to_string()))?;
        if !plain(&self.version) {
            return Err(ConfigError::invalid(
                "adapters.version",
                format!("`{}`: use the name of a version folder", self.version),
            ));
        }
        Ok(())
    }
}

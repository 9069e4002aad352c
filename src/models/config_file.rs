//! Reading the JSON settings of a model folder: bounded, and with the file's name in every error.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::ModelError;

/// Largest settings file read, bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Reads a settings file.
///
/// # Errors
/// [`ModelError::File`] when it is missing, too large, or not what `T` expects.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let unusable = |reason: String| ModelError::File {
        path: path.to_path_buf(),
        reason,
    };
    let size = std::fs::metadata(path)
        .map_err(|error| unusable(error.to_string()))?
        .len();
    if size > CONFIG_BYTES_MAX {
        return Err(unusable(format!(
            "it has {size} bytes, at most {CONFIG_BYTES_MAX} are read"
        )));
    }
    let text = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))
}

/// The error for a key that asks for what the code does not do.
pub(super) fn refuse<T>(
    path: &Path,
    key: &'static str,
    found: String,
    expected: &str,
) -> Result<T, ModelError> {
    Err(ModelError::Unsupported {
        path: path.to_path_buf(),
        key,
        found,
        expected: expected.to_owned(),
    })
}

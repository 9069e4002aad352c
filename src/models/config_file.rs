//! What reading the settings of a model folder has in common for all networks.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ModelError;
use crate::util::mistaken_for;

/// A configuration file is a few hundred bytes; this bounds what is read.
const CONFIG_BYTES_MAX: u64 = 16 << 20; // 16 MiB

/// The text of a model folder's `config.json`, and the file's path for errors.
pub(super) fn read(folder: &Path) -> Result<(String, PathBuf), ModelError> {
    let path = folder.join("config.json");
    Ok((read_text(&path)?, path))
}

/// A settings file as `T`.
///
/// # Errors
/// [`ModelError::File`] when it is missing, too large, or not what `T` expects.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    serde_json::from_str(&read_text(path)?).map_err(|error| ModelError::File {
        path: path.to_path_buf(),
        reason: error.to_string(),
    })
}

fn read_text(path: &Path) -> Result<String, ModelError> {
    let file_error = |reason: String| ModelError::File {
        path: path.to_path_buf(),
        reason,
    };
    let bytes = std::fs::metadata(path)
        .map_err(|error| file_error(error.to_string()))?
        .len();
    if bytes > CONFIG_BYTES_MAX {
        return Err(file_error(format!(
            "it has {bytes} bytes, at most {CONFIG_BYTES_MAX} are read"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| file_error(error.to_string()))?;
    match mistaken_for(text.as_bytes()) {
        Some(found) => Err(file_error(format!("it is {found}"))),
        None => Ok(text),
    }
}

/// `model_type` of a model folder, and the path of the file that says so.
pub(super) fn model_type(folder: &Path) -> Result<(String, PathBuf), ModelError> {
    #[derive(Deserialize)]
    struct Raw {
        model_type: String,
    }
    let path = folder.join("config.json");
    let raw: Raw = read_json(&path)?;
    Ok((raw.model_type, path))
}

/// Refuses a key that asks for what is not done.
///
/// # Errors
/// [`ModelError::Unsupported`], always.
pub(super) fn refuse<T>(
    path: &Path,
    key: &'static str,
    found: impl ToString,
    expected: &str,
) -> Result<T, ModelError> {
    Err(unsupported(path, key, found, expected))
}

/// The error for a key that asks for what is not done.
pub(super) fn unsupported(
    path: &Path,
    key: &'static str,
    found: impl ToString,
    expected: &str,
) -> ModelError {
    ModelError::Unsupported {
        path: path.to_path_buf(),
        key,
        found: found.to_string(),
        expected: expected.to_owned(),
    }
}

/// Quantised weights are not what their names say.
pub(super) fn refuse_quantised(quantisation: Option<&Value>, path: &Path) -> Result<(), ModelError> {
    match quantisation.filter(|it| !it.is_null()) {
        Some(found) => Err(unsupported(
            path,
            "quantization_config",
            found,
            "unquantised weights (F32, F16 or BF16)",
        )),
        None => Ok(()),
    }
}

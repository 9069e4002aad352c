//! What reading `config.json` has in common for all networks.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::ModelError;

/// A configuration file is a few hundred bytes; this bounds what is read.
const CONFIG_BYTES_MAX: u64 = 16 << 20; // 16 MiB

/// The text of a model folder's `config.json`, and the file's path for errors.
pub(super) fn read(folder: &Path) -> Result<(String, PathBuf), ModelError> {
    let path = folder.join("config.json");
    let file_error = |reason: String| ModelError::File {
        path: path.clone(),
        reason,
    };
    let bytes = std::fs::metadata(&path)
        .map_err(|error| file_error(error.to_string()))?
        .len();
    if bytes > CONFIG_BYTES_MAX {
        return Err(file_error(format!(
            "it has {bytes} bytes, at most {CONFIG_BYTES_MAX} are read"
        )));
    }
    let text = std::fs::read_to_string(&path).map_err(|error| file_error(error.to_string()))?;
    Ok((text, path))
}

/// `model_type` of a model folder, and the path of the file that says so.
pub(super) fn model_type(folder: &Path) -> Result<(String, PathBuf), ModelError> {
    #[derive(Deserialize)]
    struct Raw {
        model_type: String,
    }
    let (text, path) = read(folder)?;
    match serde_json::from_str::<Raw>(&text) {
        Ok(raw) => Ok((raw.model_type, path)),
        Err(error) => Err(ModelError::File {
            path,
            reason: error.to_string(),
        }),
    }
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

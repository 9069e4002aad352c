//! Which network a folder holds: its name, and a digest of what decides its numbers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::RegistryError;
use super::manifest::sha256_file;
use crate::util::hex;

/// Remembers the digests of large files; a note, never trusted when a file's size or time has changed.
const CACHE: &str = ".speechverse-digest.json";

/// A frozen network.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ModelIdentity {
    /// Name of its folder.
    pub name: String,
    /// Hex sha256 over configuration, tokenizer and weights.
    pub digest: String,
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct Cache {
    files: BTreeMap<String, CachedFile>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct CachedFile {
    bytes: u64,
    modified_nanos: u128,
    sha256: String,
}

/// Digest of a model folder: `config.json`, `preprocessor_config.json`, `tokenizer.json` and every `*.safetensors`, by name. Digests of files are
/// remembered in the folder, so that only the first call reads the weights; where the folder cannot be written, every call does.
///
/// # Errors
/// [`RegistryError::Io`] when the folder or a file cannot be read.
pub fn identify(folder: &Path) -> Result<ModelIdentity, RegistryError> {
    let cache_path = folder.join(CACHE);
    let before: Cache = std::fs::read(&cache_path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let mut now = Cache::default();
    for path in files(folder)? {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let metadata = std::fs::metadata(&path).map_err(RegistryError::io("read", &path))?;
        let modified_nanos = metadata
            .modified()
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |since| since.as_nanos());
        let known = before.files.get(&name).filter(|file| {
            file.bytes == metadata.len() && file.modified_nanos == modified_nanos && modified_nanos != 0
        });
        let file = match known {
            Some(file) => file.clone(),
            None => CachedFile {
                bytes: metadata.len(),
                modified_nanos,
                sha256: sha256_file(&path).map_err(RegistryError::io("read", &path))?,
            },
        };
        now.files.insert(name, file);
    }
    let mut hash = Sha256::new();
    for (name, file) in &now.files {
        hash.update(format!("{name}\0{}\n", file.sha256));
    }
    if now.files != before.files {
        let note = serde_json::to_vec_pretty(&now).expect("strings and numbers only");
        if let Err(error) = std::fs::write(&cache_path, note) {
            tracing::debug!(%error, folder = %folder.display(), "could not remember the model's digest");
        }
    }
    let name = folder
        .canonicalize()
        .ok()
        .and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "model".into());
    Ok(ModelIdentity {
        name,
        digest: hex(&hash.finalize()),
    })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(RegistryError::io("list", folder))? {
        let path = entry.map_err(RegistryError::io("list", folder))?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let decides = ["config.json", "preprocessor_config.json", "tokenizer.json"].contains(&name.as_str())
            || name.ends_with(".safetensors");
        if decides && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

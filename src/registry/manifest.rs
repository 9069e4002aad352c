//! What a version says about itself, and whether its files still are what it says.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::identity::sha256_file;
use super::{ADAPTER, ModelIdentity, RegistryError};

/// The manifest's file name.
pub(super) const MANIFEST: &str = "manifest.json";
const MANIFEST_BYTES_MAX: u64 = 4 << 20; // 4 MiB
const FORMAT: u32 = 1;

/// `manifest.json` of a version. Unknown keys pass, so that later programs may add some.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct VersionManifest {
    /// Format of this file: 1.
    pub format: u32,
    /// Name of the version, equal to its folder's.
    pub version: String,
    /// Version that it was trained from; absent: from fresh values.
    pub parent: Option<String>,
    /// When it was published, RFC 3339.
    pub created: String,
    /// The frozen encoder.
    pub encoder: ModelIdentity,
    /// The frozen language model.
    pub llm: ModelIdentity,
    /// Stages that were run.
    pub curriculum: serde_json::Value,
    /// Digest of the samples that were trained on.
    pub data_digest: String,
    /// What was measured.
    pub metrics: BTreeMap<String, serde_json::Value>,
    /// Settings of the run.
    pub settings: serde_json::Value,
    /// Every other file of the folder, by relative path.
    pub files: BTreeMap<String, FileDigest>,
}

/// Size and digest of a file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct FileDigest {
    /// Size in bytes.
    pub bytes: u64,
    /// Hex sha256.
    pub sha256: String,
}

impl VersionManifest {
    /// The format that this program writes.
    pub(super) fn format() -> u32 {
        FORMAT
    }

    /// Checks size and digest of every file listed.
    ///
    /// # Errors
    /// [`RegistryError::Corrupt`] with the first file that differs.
    pub fn verify(&self, folder: &Path) -> Result<(), RegistryError> {
        for (name, expected) in &self.files {
            let path = folder.join(name);
            let corrupt = |reason: String| RegistryError::Corrupt {
                version: self.version.clone(),
                path: path.clone(),
                reason,
            };
            let size = std::fs::metadata(&path)
                .map_err(|error| corrupt(format!("cannot be read: {error}")))?
                .len();
            if size != expected.bytes {
                return Err(corrupt(format!(
                    "has {size} bytes, the manifest says {}",
                    expected.bytes
                )));
            }
            let found = sha256_file(&path).map_err(|error| corrupt(format!("cannot be read: {error}")))?;
            if found != expected.sha256 {
                return Err(corrupt(format!(
                    "has sha256 {found}, the manifest says {}",
                    expected.sha256
                )));
            }
        }
        Ok(())
    }
}

/// Reads and checks a manifest, not the files that it lists.
pub(super) fn read_manifest(folder: &Path, version: &str) -> Result<VersionManifest, RegistryError> {
    let path = folder.join(MANIFEST);
    let corrupt = |reason: String| RegistryError::Corrupt {
        version: version.to_owned(),
        path: path.clone(),
        reason,
    };
    let file = std::fs::File::open(&path).map_err(RegistryError::io("read", &path))?;
    let mut text = Vec::new();
    file.take(MANIFEST_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(RegistryError::io("read", &path))?;
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(corrupt(format!("is larger than {MANIFEST_BYTES_MAX} bytes")));
    }
    let manifest: VersionManifest =
        serde_json::from_slice(&text).map_err(|error| corrupt(format!("is malformed: {error}")))?;
    if manifest.format != FORMAT {
        return Err(corrupt(format!(
            "has format {}, this program knows {FORMAT}",
            manifest.format
        )));
    }
    if manifest.version != version {
        return Err(corrupt(format!(
            "names version `{}`, its folder is `{version}`",
            manifest.version
        )));
    }
    for name in manifest.files.keys() {
        let inside = !name.is_empty()
            && Path::new(name)
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            return Err(corrupt(format!(
                "lists `{name}`, which is not a file of the folder"
            )));
        }
    }
    if !manifest.files.contains_key(ADAPTER) {
        return Err(corrupt(format!("does not list `{ADAPTER}`")));
    }
    Ok(manifest)
}

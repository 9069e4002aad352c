//! Publishing: a folder under a temporary name, synced, then renamed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::identity::sha256_file;
use super::manifest::{FileDigest, MANIFEST, VersionManifest};
use super::{ADAPTER, LORA, ModelIdentity, Registry, RegistryError, check_name};
use crate::models::adapter::AdapterSnapshot;

const README: &str = "README.md";
/// Attempts at a name that others keep taking.
const ATTEMPTS_MAX: usize = 100;

/// A version that is not published yet.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Version that it was trained from.
    pub parent: Option<String>,
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
    /// The adapter; its own version name is replaced.
    pub adapter: AdapterSnapshot,
    /// Folder with LoRA files in `peft`'s layout; plain files in it are copied.
    pub lora: Option<PathBuf>,
    /// Further files (log, plot): name in the version folder, and where it is now.
    pub extra: Vec<(String, PathBuf)>,
}

impl Registry {
    /// Publishes a draft under the next name of `prefix` and returns it. Nobody sees a part of it: a crash
    /// leaves the version whole or absent.
    ///
    /// # Errors
    /// [`RegistryError`] when a name or a file is wrong or cannot be written.
    pub fn publish(&self, prefix: &str, draft: &Draft) -> Result<VersionManifest, RegistryError> {
        for _ in 0..ATTEMPTS_MAX {
            let version = self.next_version(prefix)?;
            match self.publish_as(&version, draft) {
                // Another process took the name between our look and our rename.
                Err(RegistryError::Exists { .. }) => {}
                other => return other,
            }
        }
        Err(RegistryError::Exists {
            version: self.next_version(prefix)?,
        })
    }

    /// Publishes a draft under a given name.
    ///
    /// # Errors
    /// [`RegistryError::Exists`], and as for [`publish`](Self::publish).
    pub fn publish_as(&self, version: &str, draft: &Draft) -> Result<VersionManifest, RegistryError> {
        check_name(version)?;
        let target = self.root().join(version);
        if target.exists() {
            return Err(RegistryError::Exists {
                version: version.to_owned(),
            });
        }
        let part = self.root().join(temporary_name(version));
        if part.exists() {
            std::fs::remove_dir_all(&part).map_err(RegistryError::io("remove", &part))?;
        }
        let result = self.write_and_rename(version, draft, &part, &target);
        if result.is_err() {
            let _ = std::fs::remove_dir_all(&part);
        }
        result
    }

    fn write_and_rename(
        &self,
        version: &str,
        draft: &Draft,
        part: &Path,
        target: &Path,
    ) -> Result<VersionManifest, RegistryError> {
        std::fs::create_dir(part).map_err(RegistryError::io("make", part))?;
        draft.adapter.renamed(version).write(&part.join(ADAPTER))?;
        let mut names = vec![ADAPTER.to_owned()];
        if let Some(lora) = &draft.lora {
            let folder = part.join(LORA);
            std::fs::create_dir(&folder).map_err(RegistryError::io("make", &folder))?;
            for entry in std::fs::read_dir(lora).map_err(RegistryError::io("list", lora))? {
                let from = entry.map_err(RegistryError::io("list", lora))?.path();
                if from.is_file()
                    && let Some(name) = from.file_name().and_then(|name| name.to_str())
                {
                    copy_synced(&from, &folder.join(name))?;
                    names.push(format!("{LORA}/{name}"));
                }
            }
            sync_dir(&folder)?;
        }
        for (name, from) in &draft.extra {
            let plain = !name.is_empty()
                && !name.contains(['/', '\0'])
                && ![MANIFEST, README, ADAPTER, LORA, "..", "."].contains(&name.as_str());
            if !plain {
                return Err(RegistryError::Name { name: name.clone() });
            }
            copy_synced(from, &part.join(name))?;
            names.push(name.clone());
        }
        let mut manifest = VersionManifest {
            format: VersionManifest::format(),
            version: version.to_owned(),
            parent: draft.parent.clone(),
            created: jiff::Timestamp::now()
                .round(jiff::Unit::Second)
                .unwrap_or_else(|_| jiff::Timestamp::now())
                .to_string(),
            encoder: draft.encoder.clone(),
            llm: draft.llm.clone(),
            curriculum: draft.curriculum.clone(),
            data_digest: draft.data_digest.clone(),
            metrics: draft.metrics.clone(),
            settings: draft.settings.clone(),
            files: BTreeMap::new(),
        };
        write_synced(&part.join(README), card(&manifest, draft).as_bytes())?;
        names.push(README.to_owned());
        for name in names {
            let path = part.join(&name);
            let bytes = std::fs::metadata(&path)
                .map_err(RegistryError::io("read", &path))?
                .len();
            let sha256 = sha256_file(&path).map_err(RegistryError::io("read", &path))?;
            manifest.files.insert(name, FileDigest { bytes, sha256 });
        }
        let json = serde_json::to_vec_pretty(&manifest).expect("strings, numbers and JSON values only");
        write_synced(&part.join(MANIFEST), &json)?;
        sync_dir(part)?;
        // A folder cannot be renamed over one that has files in it, so two publishers cannot mix.
        std::fs::rename(part, target).map_err(|error| {
            if target.exists() {
                RegistryError::Exists {
                    version: version.to_owned(),
                }
            } else {
                RegistryError::io("publish", target)(error)
            }
        })?;
        sync_dir(self.root())?;
        Ok(manifest)
    }
}

/// A hidden name that no other thread or process uses at the same time.
fn temporary_name(name: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!(
        ".tmp-{name}-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// The model card.
fn card(manifest: &VersionManifest, draft: &Draft) -> String {
    let config = draft.adapter.config();
    let mut text = format!(
        "# {}\n\nA speechverse adapter: the learned joint between the frozen speech encoder `{}` and the frozen language model `{}`. \
         It is of use with these two alone.\n\n",
        manifest.version, manifest.encoder.name, manifest.llm.name
    );
    let mut row = |key: &str, value: String| {
        let _ = writeln!(text, "- {key}: {value}");
    };
    row("created", manifest.created.clone());
    row(
        "parent",
        manifest
            .parent
            .clone()
            .unwrap_or_else(|| "none (fresh values)".into()),
    );
    row("layer mix", format!("{:?}", config.mix).to_lowercase());
    row("strides", format!("{:?}", config.strides));
    row(
        "learned numbers in the adapter",
        config.parameter_count().to_string(),
    );
    row(
        "LoRA",
        if draft.lora.is_some() {
            "yes, in `lora/` (loads in `peft`)"
        } else {
            "no"
        }
        .into(),
    );
    row("encoder digest", manifest.encoder.digest.clone());
    row("llm digest", manifest.llm.digest.clone());
    row("digest of the training samples", manifest.data_digest.clone());
    text.push_str("\n## Measured\n\n");
    if manifest.metrics.is_empty() {
        text.push_str("Nothing.\n");
    }
    for (name, value) in &manifest.metrics {
        let _ = writeln!(text, "- {name}: {value}");
    }
    text.push_str("\n`manifest.json` has the curriculum, all settings, and the sha256 of each file.\n");
    text
}

/// Puts a file of these bytes in the place of `path`: what is there afterwards, also after a power cut, is
/// the former file or the new one, whole.
///
/// # Errors
/// [`RegistryError::Io`].
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), RegistryError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = folder.join(temporary_name(&name));
    let replaced = write_synced(&part, bytes)
        .and_then(|()| std::fs::rename(&part, path).map_err(RegistryError::io("replace", path)));
    if replaced.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    replaced?;
    sync_dir(folder)
}

/// Writes a file and waits until it is on the disk.
fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), RegistryError> {
    let mut file = File::create(path).map_err(RegistryError::io("write", path))?;
    file.write_all(bytes).map_err(RegistryError::io("write", path))?;
    file.sync_all().map_err(RegistryError::io("sync", path))
}

fn copy_synced(from: &Path, to: &Path) -> Result<(), RegistryError> {
    std::fs::copy(from, to).map_err(RegistryError::io("copy", from))?;
    File::open(to)
        .and_then(|file| file.sync_all())
        .map_err(RegistryError::io("sync", to))
}

/// Waits until a folder's list of names is on the disk.
fn sync_dir(path: &Path) -> Result<(), RegistryError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(RegistryError::io("sync", path))
}

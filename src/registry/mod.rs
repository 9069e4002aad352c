//! Immutable adapter versions on disk, published by rename, with a `current` pointer.
//!
//! ```text
//! adapters/
//! ├── current                  the version in use; then what `rollback` goes back to, newest first
//! ├── .lock                    held by whoever changes `current`, threads and processes alike
//! └── demo-0001/
//!     ├── adapter.safetensors  layer mix, downsampler, optional CTC head
//!     ├── lora/                what the `peft` library loads, when there is LoRA
//!     ├── manifest.json        parent, networks, curriculum, data digest, metrics, settings, file digests
//!     └── README.md            model card
//! ```
//!
//! A version appears whole or not at all: its folder is written under a temporary name in the same directory,
//! synced, and renamed. It never changes afterwards; every file's digest is checked when it is loaded.
//!
//! `current` has one writer at a time, and a promotion may name the version that it replaces ([`Expected`]):
//! who lost a race gets an error that says so, and nothing is overwritten.

pub mod config;
mod history;
mod identity;
mod lock;
mod manifest;
mod publish;

use std::path::{Path, PathBuf};

pub use history::Expected;
pub(crate) use identity::sha256_file;
pub use identity::{ModelIdentity, identify};
pub use manifest::{FileDigest, VersionManifest};
pub use publish::{Draft, replace_file};

use crate::models::ModelError;
use crate::models::adapter::{AdapterSnapshot, LoraSnapshot};
use manifest::{MANIFEST, read_manifest};

/// Name of the pointer file.
const CURRENT: &str = "current";
/// The adapter's file in a version folder.
pub(crate) const ADAPTER: &str = "adapter.safetensors";
/// The LoRA folder in a version folder.
pub(crate) const LORA: &str = "lora";

/// What can go wrong in the registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A file or folder could not be read or written.
    #[error("registry: cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A file of a model folder is something else.
    #[error("`{}` is {found}", path.display())]
    ModelFile {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do.
        found: String,
    },
    /// Not a version's name.
    #[error(
        "`{name}` is not a version name: expected 1 to 64 of `a-z`, `0-9`, `-`, `_`, `.`, beginning with a letter or digit"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// There is no such version.
    #[error("there is no adapter version `{version}` in `{}`; there are: {}", root.display(), if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    Missing {
        /// What was asked for.
        version: String,
        /// Where.
        root: PathBuf,
        /// What is there.
        known: Vec<String>,
    },
    /// No version is current.
    #[error("no adapter version is current in `{}`; train one, or `adapters promote` one that is there", root.display())]
    NoCurrent {
        /// Where.
        root: PathBuf,
    },
    /// There is nothing to go back to.
    #[error("nothing to roll back to: `{current}` has no predecessor in `{}`", root.display())]
    NoPredecessor {
        /// What is current.
        current: String,
        /// Where.
        root: PathBuf,
    },
    /// Another version is current than the one that was to be replaced.
    #[error(
        "`{version}` was to replace {}, and {} is current now: somebody promoted or rolled back in between",
        shown(expected.as_deref()), shown(found.as_deref())
    )]
    Moved {
        /// The candidate.
        version: String,
        /// The version that it was to replace; absent: none.
        expected: Option<String>,
        /// The version that is current; absent: none.
        found: Option<String>,
    },
    /// Somebody else has been changing the pointer for too long.
    #[error("`{}` is locked by another thread or process for more than {} s: look for one that hangs", lock.display(), lock::WAIT.as_secs())]
    Busy {
        /// The lock file.
        lock: PathBuf,
    },
    /// A version is damaged.
    #[error("adapter version `{version}` is damaged: `{}` {reason}; restore it from a copy, or roll back", path.display())]
    Corrupt {
        /// Which version.
        version: String,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A version was trained for other networks.
    #[error(transparent)]
    OtherModel(#[from] Box<OtherModel>),
    /// The version exists; versions never change.
    #[error("adapter version `{version}` exists already, and versions never change")]
    Exists {
        /// Which version.
        version: String,
    },
    /// The adapter inside cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl RegistryError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

fn shown(version: Option<&str>) -> String {
    version.map_or_else(|| "no version".to_owned(), |version| format!("`{version}`"))
}

/// A version was trained for other networks than those at hand.
#[derive(Debug, thiserror::Error)]
#[error(
    "adapter version `{version}` was trained for {role} `{}` ({}), this is `{}` ({})",
    expected.name, expected.digest, found.name, found.digest
)]
pub struct OtherModel {
    /// Which version.
    pub version: String,
    /// `encoder` or `llm`.
    pub role: &'static str,
    /// The network it was trained for.
    pub expected: ModelIdentity,
    /// The network at hand.
    pub found: ModelIdentity,
}

/// A verified version.
#[derive(Clone, Debug)]
pub struct LoadedVersion {
    /// What its manifest says.
    pub manifest: VersionManifest,
    /// Its adapter, with its LoRA.
    pub adapter: AdapterSnapshot,
    /// Folder with its LoRA in `peft`'s layout, when it has one.
    pub lora: Option<PathBuf>,
}

impl LoadedVersion {
    /// Checks that the version was trained for these networks.
    ///
    /// # Errors
    /// [`RegistryError::OtherModel`] with both digests.
    pub fn check_models(&self, encoder: &ModelIdentity, llm: &ModelIdentity) -> Result<(), RegistryError> {
        for (role, expected, found) in [
            ("encoder", &self.manifest.encoder, encoder),
            ("llm", &self.manifest.llm, llm),
        ] {
            if expected.digest != found.digest {
                return Err(RegistryError::OtherModel(Box::new(OtherModel {
                    version: self.manifest.version.clone(),
                    role,
                    expected: expected.clone(),
                    found: found.clone(),
                })));
            }
        }
        Ok(())
    }
}

/// A folder of versions.
#[derive(Clone, Debug)]
pub struct Registry {
    root: PathBuf,
}

impl Registry {
    /// Opens a registry; makes its folder when there is none.
    ///
    /// # Errors
    /// [`RegistryError::Io`].
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, RegistryError> {
        let root = root.into();
        std::fs::create_dir_all(&root).map_err(RegistryError::io("make", &root))?;
        Ok(Self { root })
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Names of all versions, in order. Folders without a manifest are not versions.
    ///
    /// # Errors
    /// [`RegistryError::Io`].
    pub fn versions(&self) -> Result<Vec<String>, RegistryError> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.root).map_err(RegistryError::io("list", &self.root))? {
            let entry = entry.map_err(RegistryError::io("list", &self.root))?;
            if let Ok(name) = entry.file_name().into_string()
                && check_name(&name).is_ok()
                && entry.path().join(MANIFEST).is_file()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Manifests of all versions, in order of name; a damaged one is an error in its place. Digests are not
    /// checked.
    ///
    /// # Errors
    /// [`RegistryError::Io`].
    pub fn list(&self) -> Result<Vec<Result<VersionManifest, RegistryError>>, RegistryError> {
        Ok(self.versions()?.iter().map(|name| self.manifest(name)).collect())
    }

    /// What a version's manifest says; digests are not checked.
    ///
    /// # Errors
    /// [`RegistryError::Missing`], [`RegistryError::Corrupt`], [`RegistryError::Io`].
    pub fn manifest(&self, version: &str) -> Result<VersionManifest, RegistryError> {
        read_manifest(&self.folder(version)?, version)
    }

    /// Folder of a version that is there.
    ///
    /// # Errors
    /// [`RegistryError::Name`], [`RegistryError::Missing`].
    pub fn folder(&self, version: &str) -> Result<PathBuf, RegistryError> {
        check_name(version)?;
        let folder = self.root.join(version);
        if folder.join(MANIFEST).is_file() {
            return Ok(folder);
        }
        Err(RegistryError::Missing {
            version: version.to_owned(),
            root: self.root.clone(),
            known: self.versions().unwrap_or_default(),
        })
    }

    /// Loads a version after checking the digest of every one of its files.
    ///
    /// # Errors
    /// [`RegistryError::Missing`]; [`RegistryError::Corrupt`] with the file and what is wrong;
    /// [`RegistryError::Model`].
    pub fn load(&self, version: &str) -> Result<LoadedVersion, RegistryError> {
        let folder = self.folder(version)?;
        let manifest = read_manifest(&folder, version)?;
        manifest.verify(&folder)?;
        let lora = manifest
            .files
            .keys()
            .any(|name| name.starts_with("lora/"))
            .then(|| folder.join(LORA));
        let numbers = lora.as_deref().map(LoraSnapshot::read).transpose()?;
        let adapter = AdapterSnapshot::read(version, &folder.join(ADAPTER))?.with_lora(numbers);
        Ok(LoadedVersion {
            manifest,
            adapter,
            lora,
        })
    }

    /// Loads the version in use.
    ///
    /// # Errors
    /// [`RegistryError::NoCurrent`], and as for [`load`](Self::load).
    pub fn load_current(&self) -> Result<LoadedVersion, RegistryError> {
        let current = self.current()?.ok_or_else(|| RegistryError::NoCurrent {
            root: self.root.clone(),
        })?;
        self.load(&current)
    }

    /// The next free name with this prefix: `demo-0001`, `demo-0002` …
    ///
    /// # Errors
    /// [`RegistryError::Name`], [`RegistryError::Io`].
    pub fn next_version(&self, prefix: &str) -> Result<String, RegistryError> {
        check_name(prefix)?;
        let mut last = 0u64;
        for entry in std::fs::read_dir(&self.root).map_err(RegistryError::io("list", &self.root))? {
            let entry = entry.map_err(RegistryError::io("list", &self.root))?;
            let name = entry.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix(prefix))
                .and_then(|rest| rest.strip_prefix('-'));
            if let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) {
                last = last.max(number);
            }
        }
        let name = format!("{prefix}-{:04}", last.saturating_add(1));
        check_name(&name)?;
        Ok(name)
    }
}

/// Whether versions may be called `PREFIX-0001` and so on.
pub(crate) fn check_prefix(prefix: &str) -> Result<(), RegistryError> {
    check_name(prefix)?;
    check_name(&format!("{prefix}-99999"))
}

/// Whether a name may be a version's: no path can be built from it.
fn check_name(name: &str) -> Result<(), RegistryError> {
    let good = (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name != CURRENT;
    if good {
        Ok(())
    } else {
        Err(RegistryError::Name {
            name: name.chars().take(80).collect(),
        })
    }
}

#[cfg(test)]
mod tests;

//! The hub's list of a model's files, and which of them a model folder needs.
//!
//! Source: `GET /api/models/{repo}/revision/{revision}?blobs=true`, as
//! `HfApi.model_info(files_metadata=True)` of the Python library `huggingface_hub` reads it: `sha` is the
//! commit; a file has `blobId` (the SHA-1 of its Git blob) or, when it is kept outside Git, `lfs.sha256` and
//! `lfs.size`. These digests are also the files' names in the cache.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::HubError;

/// Most bytes of one file that is not weights: larger than any published tokenizer.
const SMALL_FILE_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of one model.
const MODEL_BYTES_MAX: u64 = 256 << 30;
/// Most files that the weights may be cut into.
const SHARDS_MAX: usize = 1_000;
/// The files beside the weights that the library reads, and what says whose work it is.
pub(super) const SMALL_FILES: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
];
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// What makes a file the one it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Digest {
    /// SHA-1 over `blob {size}\0` and the content, as Git names it.
    GitBlob(String),
    /// SHA-256 of the content.
    Sha256(String),
}

impl Digest {
    /// Its hexadecimal digits: the file's ETag and its name in the cache.
    pub(super) fn hex(&self) -> &str {
        match self {
            Self::GitBlob(hex) | Self::Sha256(hex) => hex,
        }
    }
}

/// One file of a model, as the hub's list describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HubFile {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) digest: Digest,
}

/// A model at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    repo: String,
    /// 40 hexadecimal digits.
    pub(super) commit: String,
    /// As the model's card names it.
    pub(super) licence: Option<String>,
    files: BTreeMap<String, HubFile>,
    pickle: bool,
}

#[derive(Deserialize)]
struct RawListing {
    sha: String,
    siblings: Vec<RawFile>,
    #[serde(rename = "cardData")]
    card: Option<RawCard>,
}

#[derive(Deserialize)]
struct RawCard {
    license: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawFile {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<RawLfs>,
}

#[derive(Deserialize)]
struct RawLfs {
    sha256: String,
    size: u64,
}

pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a name stays inside its folder on any system: no path, no hidden file.
fn is_plain(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.bytes().all(allowed)
}

impl Listing {
    /// Reads the hub's answer about `repo`.
    ///
    /// # Errors
    /// [`HubError::Listing`] when it is not what the hub's interface promises.
    pub(super) fn parse(repo: &str, answer: &[u8]) -> Result<Self, HubError> {
        let unusable = |reason: String| HubError::Listing {
            repo: repo.to_owned(),
            reason,
        };
        let raw: RawListing = serde_json::from_slice(answer)
            .map_err(|error| unusable(format!("it is not the expected JSON: {error}")))?;
        if !is_hex(&raw.sha, 40) {
            return Err(unusable(format!(
                "`sha` is {:?}, expected the 40 digits of a commit",
                raw.sha
            )));
        }
        let pickle = raw.siblings.iter().any(|file| {
            [".bin", ".pt", ".pth", ".pkl"]
                .iter()
                .any(|end| file.rfilename.ends_with(end))
        });
        // Names with folders in them, or that would leave the model's folder, are not files that we ask for.
        let mut files = BTreeMap::new();
        for file in raw.siblings.into_iter().filter(|file| is_plain(&file.rfilename)) {
            let (bytes, digest) = match (file.lfs, file.size, file.blob_id) {
                (Some(lfs), _, _) if is_hex(&lfs.sha256, 64) => (lfs.size, Digest::Sha256(lfs.sha256)),
                (None, Some(size), Some(blob)) if is_hex(&blob, 40) => (size, Digest::GitBlob(blob)),
                _ => continue,
            };
            let name = file.rfilename;
            files.insert(name.clone(), HubFile { name, bytes, digest });
        }
        let licence = raw
            .card
            .and_then(|card| card.license)
            .map(|licence| match licence {
                serde_json::Value::String(name) => name,
                other => other.to_string(),
            });
        Ok(Self {
            repo: repo.to_owned(),
            commit: raw.sha,
            licence,
            files,
            pickle,
        })
    }

    /// The file called `name`, which the model cannot do without.
    fn file(&self, name: &str) -> Result<HubFile, HubError> {
        self.files.get(name).cloned().ok_or_else(|| HubError::Listing {
            repo: self.repo.clone(),
            reason: format!("it has no `{name}` with its size and digest"),
        })
    }

    /// The files that are read before the weights, the index of the weights among them when there is one.
    ///
    /// # Errors
    /// [`HubError::NoSafetensors`], [`HubError::Listing`] without `config.json`, [`HubError::TooLarge`].
    pub(super) fn small_files(&self) -> Result<Vec<HubFile>, HubError> {
        let mut wanted = vec![self.file("config.json")?];
        let others = SMALL_FILES.iter().filter(|name| **name != "config.json");
        wanted.extend(others.filter_map(|name| self.files.get(*name).cloned()));
        if !self.files.contains_key(WEIGHTS) {
            let index = self.files.get(INDEX).ok_or_else(|| HubError::NoSafetensors {
                repo: self.repo.clone(),
                pickle: self.pickle,
            })?;
            wanted.push(index.clone());
        }
        for file in &wanted {
            self.check_size(format!("`{}`", file.name), file.bytes, SMALL_FILE_BYTES_MAX)?;
        }
        Ok(wanted)
    }

    /// The files of the weights; `index` is the content of [`INDEX`] when the weights are cut into several.
    ///
    /// # Errors
    /// [`HubError::Listing`] when the index is broken or names what is not there, [`HubError::TooLarge`].
    pub(super) fn weight_files(&self, index: Option<&[u8]>) -> Result<Vec<HubFile>, HubError> {
        let names = match index {
            Some(index) => shard_names(&self.repo, index)?,
            None => vec![WEIGHTS.to_owned()],
        };
        let files = names
            .iter()
            .map(|name| self.file(name))
            .collect::<Result<Vec<_>, _>>()?;
        let bytes = files
            .iter()
            .fold(0_u64, |sum, file| sum.saturating_add(file.bytes));
        self.check_size("the weights".to_owned(), bytes, MODEL_BYTES_MAX)?;
        Ok(files)
    }

    fn check_size(&self, what: String, bytes: u64, bytes_max: u64) -> Result<(), HubError> {
        if bytes <= bytes_max {
            return Ok(());
        }
        Err(HubError::TooLarge {
            repo: self.repo.clone(),
            what,
            bytes,
            bytes_max,
        })
    }
}

/// The files that the index of a checkpoint names, each once.
///
/// # Errors
/// [`HubError::Listing`] when it is not an index, or names a file that is not beside it.
pub(super) fn shard_names(repo: &str, index: &[u8]) -> Result<Vec<String>, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let unusable = |reason: String| HubError::Listing {
        repo: repo.to_owned(),
        reason: format!("`{INDEX}`: {reason}"),
    };
    let index: Index = serde_json::from_slice(index).map_err(|error| unusable(error.to_string()))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    if names.is_empty() || names.len() > SHARDS_MAX {
        return Err(unusable(format!(
            "names {} files, expected 1 to {SHARDS_MAX}",
            names.len()
        )));
    }
    match names
        .iter()
        .find(|name| !is_plain(name) || !name.ends_with(".safetensors"))
    {
        Some(odd) => Err(unusable(format!(
            "names {odd:?}, expected the name of a file `*.safetensors`"
        ))),
        None => Ok(names),
    }
}

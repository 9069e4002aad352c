//! Models of the Hugging Face hub: `organisation/name[@revision]` becomes a model folder.
//!
//! The hub's own conventions hold: `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_CACHE`, `HF_TOKEN` (or the file that
//! `hf auth login` writes), `HF_HUB_OFFLINE`, and the layout of its cache, so that what Python has fetched is
//! not fetched again. What comes is not trusted: names of files are checked, every file must have the size
//! and the digest that the hub's list of files gives, and pickle is never asked for.
//!
//! Source: `huggingface_hub` at 03333b689b5a, `constants.py` (variables) and `file_download.py` (layout of
//! the cache).

mod download;
mod error;
mod listing;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde_json::json;

pub use error::HubError;

use crate::{Destination, ImportError};
use download::HubClient;
use listing::{Digest, HubFile, INDEX, Listing, SMALL_FILES, WEIGHTS, is_hex};

const ENDPOINT: &str = "https://huggingface.co";
/// What [`fetch_from_hub`] leaves in the model's folder about where it came from.
const RECORD: &str = "source.json";

/// A model of the hub at a branch, tag or commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    repo: String,
    revision: String,
}

impl FromStr for HubModel {
    type Err = HubError;

    /// Reads `organisation/name` or `organisation/name@revision`; the revision is else `main`.
    fn from_str(text: &str) -> Result<Self, HubError> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let part = |part: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            (1..=96).contains(&part.len())
                && part.bytes().all(allowed)
                && !part.starts_with(['.', '-'])
                && !part.contains("..")
        };
        let parts: Vec<&str> = repo.split('/').collect();
        if parts.len() != 2
            || !parts.into_iter().all(part)
            || !revision.split('/').all(part)
            || revision.len() > 200
        {
            return Err(HubError::Name {
                name: text.to_owned(),
            });
        }
        Ok(Self {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
        })
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repo, self.revision)
    }
}

impl HubModel {
    /// The name without its organisation: that of the folder.
    pub fn name(&self) -> &str {
        self.repo.rsplit('/').next().unwrap_or(&self.repo)
    }
}

/// Where the hub is, and what this machine keeps of it.
#[derive(Clone)]
pub struct HubSettings {
    /// Address of the hub or of a mirror.
    pub endpoint: String,
    /// Folder of the hub's cache.
    pub cache: PathBuf,
    /// Access token; goes to the endpoint only.
    pub token: Option<String>,
    /// Whether the cache alone is used.
    pub offline: bool,
    /// Pause before the first repetition of a failed request; the following ones grow.
    pub retry_wait: Duration,
}

impl fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubSettings")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "***"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl HubSettings {
    /// Reads the hub's environment variables.
    ///
    /// # Errors
    /// [`HubError::Environment`] when none of them says where the cache is.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    /// [`from_env`](Self::from_env) from any variables.
    fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let set = |name: &str| {
            variable(name)
                .map(|value| value.trim().to_owned())
                .filter(|value| !value.is_empty())
        };
        let home = set("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| set("XDG_CACHE_HOME").map(|cache| Path::new(&cache).join("huggingface")))
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache/huggingface")))
            .ok_or_else(|| HubError::Environment {
                variable: "HF_HOME",
                reason: "neither it nor HOME is set, so there is no place for the hub's cache".to_owned(),
            })?;
        let cache = set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from);
        let token_file = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = set("HF_TOKEN").or_else(|| {
            let text = std::fs::read_to_string(token_file).ok()?;
            Some(text.trim().to_owned()).filter(|token| !token.is_empty())
        });
        let offline = set("HF_HUB_OFFLINE").map(|value| value.to_ascii_lowercase());
        Ok(Self {
            endpoint: set("HF_ENDPOINT")
                .unwrap_or_else(|| ENDPOINT.to_owned())
                .trim_end_matches('/')
                .to_owned(),
            cache,
            token,
            offline: matches!(offline.as_deref(), Some("1" | "true" | "yes" | "on")),
            retry_wait: Duration::from_secs(1),
        })
    }
}

/// What [`fetch_from_hub`] is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubProgress<'a> {
    /// A file is looked for in the cache and else downloaded.
    File {
        /// Its name.
        name: &'a str,
        /// Its size.
        bytes: u64,
    },
    /// A download goes on.
    Arrived {
        /// The file's name.
        name: &'a str,
        /// Bytes of it that are here.
        bytes: u64,
    },
}

/// A model of the hub in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubFetched {
    /// Its folder.
    pub folder: PathBuf,
    /// The commit, 40 hexadecimal digits.
    pub commit: String,
    /// Size of all its files.
    pub bytes: u64,
    /// Whether it was there already.
    pub in_place: bool,
}

/// A model whose files are all in the cache.
struct Snapshot {
    commit: String,
    licence: Option<String>,
    files: Vec<HubFile>,
}

/// Makes sure that a model of the hub lies in `models_dir`, in a folder with its name.
///
/// The files are downloaded into the hub's cache and linked from there (copied, where the cache is on another
/// file system). `source.json` beside them names repository, commit, licence and digests. A folder that holds
/// the wanted commit is left alone; for a revision that is a whole commit, without asking the hub.
///
/// # Errors
/// [`ImportError::Hub`]; [`ImportError::DestinationExists`] when the folder holds something else.
pub fn fetch_from_hub(
    model: &HubModel,
    settings: &HubSettings,
    models_dir: &Path,
    progress: &mut dyn FnMut(HubProgress<'_>),
) -> Result<HubFetched, ImportError> {
    let folder = models_dir.join(model.name());
    let recorded: serde_json::Value = std::fs::read(folder.join(RECORD))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let is_recorded = recorded["repo"] == *model.repo && recorded["commit"] == *model.revision;
    if is_hex(&model.revision, 40)
        && is_recorded
        && let Some(bytes) = whole(&folder, &recorded)
    {
        return Ok(HubFetched {
            folder,
            commit: model.revision.clone(),
            bytes,
            in_place: true,
        });
    }
    let cache = Cache::new(settings.cache.clone());
    let snapshot = if settings.offline {
        from_cache(model, &cache)?
    } else {
        from_hub(model, settings, &cache, progress)?
    };
    let bytes = snapshot.files.iter().map(|file| file.bytes).sum();
    let record = record(model, settings, &snapshot);
    let fetched = |folder, in_place| HubFetched {
        folder,
        commit: snapshot.commit.clone(),
        bytes,
        in_place,
    };
    if recorded["files"] == record["files"]
        && recorded["commit"] == record["commit"]
        && whole(&folder, &recorded) == Some(bytes)
    {
        return Ok(fetched(folder, true));
    }
    let destination = Destination::new(&folder, recorded["repo"] == *model.repo)?;
    let repo = cache.repo(at(model, &snapshot.commit));
    for file in &snapshot.files {
        let (from, to) = (
            repo.blob_path(file.digest.hex()),
            destination.folder.join(&file.name),
        );
        if std::fs::hard_link(&from, &to).is_err() {
            std::fs::copy(&from, &to).map_err(ImportError::io("copy", &from))?;
        }
    }
    let path = destination.folder.join(RECORD);
    std::fs::write(&path, format!("{record:#}\n")).map_err(ImportError::io("write", &path))?;
    destination.publish()?;
    Ok(fetched(folder, false))
}

fn at(model: &HubModel, revision: &str) -> Repo {
    Repo::with_revision(model.repo.clone(), RepoType::Model, revision.to_owned())
}

/// What `source.json` says about a model of the hub.
fn record(model: &HubModel, settings: &HubSettings, snapshot: &Snapshot) -> serde_json::Value {
    let files: serde_json::Map<_, _> = snapshot
        .files
        .iter()
        .map(|file| {
            (
                file.name.clone(),
                json!({"bytes": file.bytes, "digest": file.digest.hex()}),
            )
        })
        .collect();
    json!({
        "hub": settings.endpoint,
        "repo": model.repo,
        "revision": model.revision,
        "commit": snapshot.commit,
        "licence": snapshot.licence,
        "files": files,
    })
}

/// The size of all files of a folder, when each is there and as long as its `source.json` says.
fn whole(folder: &Path, recorded: &serde_json::Value) -> Option<u64> {
    let mut sum = 0;
    for (name, file) in recorded["files"].as_object()? {
        let bytes = file["bytes"].as_u64()?;
        let found = folder.join(name).metadata().ok()?.len();
        sum += (found == bytes).then_some(bytes)?;
    }
    Some(sum)
}

/// Brings the model's files into the cache.
fn from_hub(
    model: &HubModel,
    settings: &HubSettings,
    cache: &Cache,
    progress: &mut dyn FnMut(HubProgress<'_>),
) -> Result<Snapshot, ImportError> {
    let client = HubClient::new(settings)?;
    let listing = Listing::parse(&model.repo, &client.listing(&at(model, &model.revision))?)?;
    let repo = at(model, &listing.commit);
    let place = cache.repo(repo.clone());
    let mut get = |file: &HubFile| -> Result<PathBuf, ImportError> {
        progress(HubProgress::File {
            name: &file.name,
            bytes: file.bytes,
        });
        let blob = place.blob_path(file.digest.hex());
        let folder = blob.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(ImportError::io("create", folder))?;
        client.file(&repo, file, &blob, &mut |bytes| {
            progress(HubProgress::Arrived {
                name: &file.name,
                bytes,
            });
        })?;
        link(&place, &listing.commit, file)?;
        Ok(blob)
    };
    let mut files = listing.small_files()?;
    let mut index = None;
    for file in &files {
        let blob = get(file)?;
        if file.name == INDEX {
            index = Some(std::fs::read(&blob).map_err(ImportError::io("read", &blob))?);
        }
    }
    let weights = listing.weight_files(index.as_deref())?;
    for file in &weights {
        get(file)?;
    }
    files.extend(weights);
    if model.revision != listing.commit {
        let reference = cache.repo(at(model, &model.revision));
        reference
            .create_ref(&listing.commit)
            .map_err(ImportError::io("write below", cache.path()))?;
    }
    Ok(Snapshot {
        commit: listing.commit.clone(),
        licence: listing.licence.clone(),
        files,
    })
}

/// Makes `snapshots/{commit}/{name}` point at the file's blob, as the hub's other clients do.
fn link(place: &CacheRepo, commit: &str, file: &HubFile) -> Result<(), ImportError> {
    let folder = place.pointer_path(commit);
    std::fs::create_dir_all(&folder).map_err(ImportError::io("create", &folder))?;
    let pointer = folder.join(&file.name);
    if pointer.exists() {
        return Ok(());
    }
    let _ = std::fs::remove_file(&pointer); // it may point at a blob that is no more
    let target = Path::new("../../blobs").join(file.digest.hex());
    match std::os::unix::fs::symlink(target, &pointer) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(ImportError::io("create", &pointer)(error))
        }
        _ => Ok(()),
    }
}

/// Finds the model in the cache, whoever fetched it.
fn from_cache(model: &HubModel, cache: &Cache) -> Result<Snapshot, ImportError> {
    let missing = |missing: &str| HubError::NotCached {
        repo: model.repo.clone(),
        revision: model.revision.clone(),
        cache: cache.path().clone(),
        missing: missing.to_owned(),
    };
    let commit = if is_hex(&model.revision, 40) {
        model.revision.clone()
    } else {
        let folder = cache.path().join(at(model, &model.revision).folder_name());
        let text = std::fs::read_to_string(folder.join("refs").join(&model.revision));
        let commit = text.map_err(|_| missing("the revision"))?.trim().to_owned();
        if !is_hex(&commit, 40) {
            return Err(missing("the commit of the revision").into());
        }
        commit
    };
    let repo = cache.repo(at(model, &commit));
    // The name of a blob is its digest.
    let find = |name: &str| -> Option<HubFile> {
        let blob = std::fs::canonicalize(repo.pointer_path(&commit).join(name)).ok()?;
        let hex = blob.file_name()?.to_str()?.to_owned();
        let digest = match hex.len() {
            64 if is_hex(&hex, 64) => Digest::Sha256(hex),
            40 if is_hex(&hex, 40) => Digest::GitBlob(hex),
            _ => return None,
        };
        let bytes = repo.blob_path(digest.hex()).metadata().ok()?.len();
        Some(HubFile {
            name: name.to_owned(),
            bytes,
            digest,
        })
    };
    let mut files: Vec<HubFile> = SMALL_FILES.iter().filter_map(|name| find(name)).collect();
    if !files.iter().any(|file| file.name == "config.json") {
        return Err(missing("`config.json`").into());
    }
    let mut names = vec![WEIGHTS.to_owned()];
    if find(WEIGHTS).is_none() {
        let index = find(INDEX).ok_or_else(|| missing("`model.safetensors`"))?;
        let path = repo.blob_path(index.digest.hex());
        let content = std::fs::read(&path).map_err(ImportError::io("read", &path))?;
        names = listing::shard_names(&model.repo, &content)?;
        files.push(index);
    }
    for name in &names {
        files.push(find(name).ok_or_else(|| missing(&format!("`{name}`")))?);
    }
    for file in &files {
        download::verify(&repo.blob_path(file.digest.hex()), &file.name, file)?;
    }
    Ok(Snapshot {
        commit,
        licence: None,
        files,
    })
}

#[cfg(test)]
mod tests;

//! Which network a folder holds: its name, and a digest of what decides its values.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::RegistryError;
use crate::util::{file_mistaken_for, hex};

/// Remembers the digests of large files. A note: it counts only while size, times and inode of a file are
/// what they were, and samples of its content too, because copies, image layers and remote folders can have
/// other weights behind equal times.
const CACHE: &str = ".speechverse-digest.json";
/// A file that has changed so recently is not noted: it could change again within the same tick of the clock.
const SETTLED: Duration = Duration::from_secs(2);
/// Samples of a large file: how many, and how many bytes each. A file that is no larger than all of them is
/// read whole.
const SAMPLES: u64 = 64;
const SAMPLE_BYTES: u64 = 16 * 1024;

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
    inode: u64,
    /// Times of modification and of change, nanoseconds since the Unix epoch.
    modified_nanos: i128,
    changed_nanos: i128,
    /// Hex sha256 of samples of the content.
    samples: String,
    /// Hex sha256 of all of it.
    sha256: String,
}

/// Digest of a model folder: `config.json`, `preprocessor_config.json`, `tokenizer.json` and every
/// `*.safetensors`, by name. Digests of files are remembered in the folder, so that only the first call reads
/// the weights; where the folder cannot be written, every call does.
///
/// # Errors
/// [`RegistryError::Io`] when the folder or a file cannot be read, [`RegistryError::ModelFile`] for one that
/// is plainly something else (a pointer of Git LFS, a web page): its digest would only say that it differs.
pub fn identify(folder: &Path) -> Result<ModelIdentity, RegistryError> {
    identify_settled(folder, SETTLED)
}

/// As [`identify`]; files that changed less than `settled` ago are not noted.
fn identify_settled(folder: &Path, settled: Duration) -> Result<ModelIdentity, RegistryError> {
    let cache_path = folder.join(CACHE);
    let before: Cache = std::fs::read(&cache_path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let mut note = Cache::default();
    let mut hash = Sha256::new();
    for path in files(folder)? {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let found = file_mistaken_for(&path).map_err(RegistryError::io("read", &path))?;
        if let Some(found) = found {
            return Err(RegistryError::ModelFile { path, found });
        }
        let seen = CachedFile::look(&path).map_err(RegistryError::io("read", &path))?;
        let known = before.files.get(&name).filter(|file| file.is_as(&seen));
        let sha256 = match known {
            Some(file) => file.sha256.clone(),
            None => sha256_file(&path).map_err(RegistryError::io("read", &path))?,
        };
        hash.update(format!("{name}\0{sha256}\n"));
        if known.is_some() || seen.is_settled(settled) {
            note.files.insert(name, CachedFile { sha256, ..seen });
        }
    }
    if note.files != before.files {
        let note = serde_json::to_vec_pretty(&note).expect("strings and numbers only");
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

impl CachedFile {
    /// What a file looks like now, without its digest.
    fn look(path: &Path) -> std::io::Result<Self> {
        let about = std::fs::metadata(path)?;
        let nanos = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Ok(Self {
            bytes: about.len(),
            inode: about.ino(),
            modified_nanos: nanos(about.mtime(), about.mtime_nsec()),
            changed_nanos: nanos(about.ctime(), about.ctime_nsec()),
            samples: samples(path, about.len())?,
            sha256: String::new(),
        })
    }

    fn is_as(&self, seen: &Self) -> bool {
        let unhashed = Self {
            sha256: String::new(),
            ..self.clone()
        };
        unhashed == *seen
    }

    fn is_settled(&self, settled: Duration) -> bool {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        i128::try_from(now).unwrap_or(0) - self.changed_nanos >= settled.as_nanos() as i128
    }
}

/// Digest of pieces of a file, evenly spread from its first byte to its last.
fn samples(path: &Path, bytes: u64) -> std::io::Result<String> {
    let file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; SAMPLE_BYTES as usize];
    for number in 0..SAMPLES {
        let start = match bytes <= SAMPLES * SAMPLE_BYTES {
            true => number * SAMPLE_BYTES,
            false => (u128::from(bytes - SAMPLE_BYTES) * u128::from(number) / u128::from(SAMPLES - 1)) as u64,
        };
        let length = bytes.saturating_sub(start).min(SAMPLE_BYTES) as usize;
        file.read_exact_at(&mut buffer[..length], start.min(bytes))?;
        hash.update(&buffer[..length]);
    }
    Ok(hex(&hash.finalize()))
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

/// Hex sha256 of a file.
pub(crate) fn sha256_file(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model folder whose weights are `bytes`, modified long ago.
    fn write(folder: &Path, bytes: &[u8]) {
        let path = folder.join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(1)).unwrap();
    }

    fn noted(folder: &Path) -> Cache {
        serde_json::from_slice(&std::fs::read(folder.join(CACHE)).unwrap()).unwrap()
    }

    #[test]
    fn other_weights_of_the_same_size_and_time_are_other_weights() {
        let dir = tempfile::tempdir().unwrap();
        let now = || identify_settled(dir.path(), Duration::ZERO).unwrap().digest;
        write(dir.path(), &[1; 3_000_000]);
        let first = now();
        assert_eq!(first, now());

        let mut other = vec![1; 3_000_000];
        other[1_700_000..1_700_100].fill(2);
        write(dir.path(), &other);

        assert_ne!(first, now());
    }

    #[test]
    fn a_note_whose_times_and_inode_fit_other_content_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let now = || identify_settled(dir.path(), Duration::ZERO).unwrap().digest;
        write(dir.path(), &[1; 3_000_000]);
        let first = now();
        let mut note = noted(dir.path());
        write(dir.path(), &[2; 3_000_000]);

        // As an image layer or a remote folder may show it: everything but the content is as it was.
        let seen = CachedFile::look(&dir.path().join("model.safetensors")).unwrap();
        let file = note.files.get_mut("model.safetensors").unwrap();
        (file.inode, file.changed_nanos) = (seen.inode, seen.changed_nanos);
        std::fs::write(dir.path().join(CACHE), serde_json::to_vec(&note).unwrap()).unwrap();

        assert_ne!(first, now());
    }

    #[test]
    fn a_note_is_used_while_the_file_is_what_it_was_and_not_made_of_a_file_that_just_changed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[1; 3_000_000]);
        let fresh = identify(dir.path()).unwrap();
        assert!(!dir.path().join(CACHE).exists());

        let settled = identify_settled(dir.path(), Duration::ZERO).unwrap();
        let mut note = noted(dir.path());
        note.files.get_mut("model.safetensors").unwrap().sha256 = "remembered".into();
        std::fs::write(dir.path().join(CACHE), serde_json::to_vec(&note).unwrap()).unwrap();
        let remembered = identify(dir.path()).unwrap();

        assert_eq!(fresh, settled);
        assert_ne!(settled, remembered, "the note was read");
    }

    #[test]
    fn a_pointer_or_a_page_in_place_of_a_file_is_called_that() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n",
        );

        let error = identify(dir.path()).unwrap_err().to_string();

        assert!(
            error.contains("model.safetensors` is a pointer of Git LFS"),
            "{error}"
        );
    }

    #[test]
    fn samples_reach_both_ends_of_files_of_any_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for bytes in [0, 1, 16_383, 16_384, 1_048_576, 1_048_577, 2_000_003] {
            let digest = |content: &[u8]| {
                std::fs::write(&path, content).unwrap();
                samples(&path, content.len() as u64).unwrap()
            };
            let plain = digest(&vec![0; bytes]);
            for place in [0, bytes.saturating_sub(1)] {
                if bytes > 0 {
                    let mut changed = vec![0; bytes];
                    changed[place] = 1;
                    assert_ne!(plain, digest(&changed), "byte {place} of {bytes}");
                }
            }
        }
    }
}

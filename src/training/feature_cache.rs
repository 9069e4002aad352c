//! Features of the frozen encoder on disk, so that a clip is encoded once for many epochs, stages and runs.
//!
//! One file a clip and variant, named by a digest of all that its values depend on: the recording (path,
//! size, time of the last change; or the id of a stored sample), its augmentation and the seed of it, the
//! encoder, its precision, the layer mix. So a folder may be shared, and what no longer fits is never found.
//! Values are bf16: the mixture of the layers `[T, D]`, then the statistics of all hidden states
//! `[L+1, 2D]`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use super::TrainingError;
use super::example::AudioSource;
use crate::inference::Features;
use crate::util::hex;

/// Begins a file: name of the format, and its version.
const MAGIC: &[u8; 8] = b"svfeat02";
/// Magic, frames, width, hidden states, CRC-32C of what follows; u32 in little-endian order.
const HEADER_BYTES: usize = 24;
/// Bytes of a number.
const BF16_BYTES: usize = 2;

/// A folder of features. Cheap to clone; clones share its account of bytes.
#[derive(Clone, Debug)]
pub struct FeatureCache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    bytes_max: u64,
    bytes: AtomicU64,
    reported_full: AtomicBool,
}

/// Name of one clip's features.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct FeatureKey(String);

impl FeatureKey {
    /// The key of a recording in a file or of one that has an id, changed as `changes` says; none for audio
    /// that has neither.
    ///
    /// `common` is what all features of a stage depend on, `changes` what those of this variant do.
    pub fn new(audio: &AudioSource, common: &str, changes: &str) -> Option<Self> {
        let mut parts = match audio {
            AudioSource::File(path) => of_file(path, String::new())?,
            AudioSource::Clip(clip) => {
                let piece = clip.offset.map(|offset| format!("{offset} {}", clip.seconds));
                of_file(&clip.path, piece.unwrap_or_default())?
            }
            AudioSource::Lazy { id, .. } | AudioSource::Drawn { id, .. } => {
                vec![b"id".to_vec(), id.as_bytes().to_vec()]
            }
            AudioSource::Samples(_) => return None,
        };
        parts.extend([common, changes].map(|part| part.as_bytes().to_vec()));
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Some(Self(hex(&hash.finalize())))
    }
}

/// What tells a recording in a file from others: path, size, time of the last change, and which piece.
pub(super) fn of_file(path: &Path, piece: String) -> Option<Vec<Vec<u8>>> {
    let facts = std::fs::metadata(path).ok()?;
    let changed = facts
        .modified()
        .ok()?
        .duration_since(std::time::UNIX_EPOCH)
        .ok()?;
    Some(vec![
        std::path::absolute(path)
            .ok()?
            .into_os_string()
            .into_encoded_bytes(),
        facts.len().to_le_bytes().to_vec(),
        changed.as_nanos().to_le_bytes().to_vec(),
        piece.into_bytes(),
    ])
}

impl FeatureKey {
    /// A number for random choices that belong to these features.
    pub fn seed(&self) -> u64 {
        u64::from_str_radix(&self.0[..16], 16).expect("hexadecimal digits")
    }
}

impl FeatureCache {
    /// Opens a folder, making it where it is missing, and counts what it holds.
    ///
    /// # Errors
    /// [`TrainingError::Io`] when it cannot be made or read.
    pub fn open(dir: &Path, bytes_max: u64) -> Result<Self, TrainingError> {
        std::fs::create_dir_all(dir).map_err(TrainingError::io("make", dir))?;
        let mut bytes = 0;
        let list = |folder: &Path| std::fs::read_dir(folder).map_err(TrainingError::io("read", folder));
        for shard in list(dir)? {
            let shard = shard.map_err(TrainingError::io("read", dir))?.path();
            if shard.is_dir() {
                for file in list(&shard)?.flatten() {
                    bytes += file.metadata().map_or(0, |facts| facts.len());
                }
            }
        }
        Ok(Self {
            shared: Arc::new(Shared {
                dir: dir.to_owned(),
                bytes_max,
                bytes: AtomicU64::new(bytes),
                reported_full: AtomicBool::new(false),
            }),
        })
    }

    /// Bytes that it holds, by its own account.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    fn path(&self, key: &FeatureKey) -> PathBuf {
        self.shared.dir.join(&key.0[..2]).join(&key.0[2..])
    }

    /// The features of a key, bf16, where they are there and whole. A damaged file is removed.
    pub fn get(&self, key: &FeatureKey) -> Option<Features> {
        let path = self.path(key);
        let bytes = std::fs::read(&path).ok()?;
        let found = parse(&bytes);
        if found.is_none() {
            tracing::warn!(path = %path.display(), "removed a damaged file of features; the clip is encoded again");
            if std::fs::remove_file(&path).is_ok() {
                let length = bytes.len() as u64;
                let _ = self
                    .shared
                    .bytes
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| {
                        Some(all.saturating_sub(length))
                    });
            }
        }
        found
    }

    /// Keeps the features of a key, where the limit allows it. Warns once when there is none.
    ///
    /// # Errors
    /// [`TrainingError`] when the disk fails.
    pub fn put(&self, key: &FeatureKey, features: &Features) -> Result<(), TrainingError> {
        let (frames, statistics) = (features.frames.size(), features.statistics.size());
        let size = [frames[0], frames[1], statistics[0]];
        let mut content = Vec::new();
        for tensor in [&features.frames, &features.statistics] {
            let values = tensor
                .detach()
                .f_to_device(Device::Cpu)?
                .f_to_kind(Kind::BFloat16)?
                .f_contiguous()?;
            let begin = content.len();
            content.resize(begin + values.numel() * BF16_BYTES, 0);
            values.f_copy_data_u8(&mut content[begin..], values.numel())?;
        }
        let length = (HEADER_BYTES + content.len()) as u64;
        let shared = &self.shared;
        if shared.bytes.fetch_add(length, Ordering::Relaxed) + length > shared.bytes_max {
            shared.bytes.fetch_sub(length, Ordering::Relaxed);
            self.tell_full("it holds `feature_cache.bytes_max`: raise that, or empty the folder");
            return Ok(());
        }
        let path = self.path(key);
        match write(&path, &size, &content) {
            Ok(()) => Ok(()),
            Err(error) if disk_is_full(&error) => {
                shared.bytes.fetch_sub(length, Ordering::Relaxed);
                self.tell_full("the disk has no space left: make some, or lower `feature_cache.bytes_max`");
                Ok(())
            }
            Err(error) => Err(TrainingError::io("write", &path)(error)),
        }
    }

    /// Warns once that nothing more is kept.
    fn tell_full(&self, reason: &str) {
        if !self.shared.reported_full.swap(true, Ordering::Relaxed) {
            let dir = self.shared.dir.display();
            tracing::warn!(%dir, reason, "features are no longer kept, clips are encoded anew in every epoch");
        }
    }
}

/// Writes a file of features whole, or not at all.
fn write(path: &Path, size: &[i64; 3], content: &[u8]) -> std::io::Result<()> {
    let number = |value: i64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    std::fs::create_dir_all(path.parent().expect("a file in a shard"))?;
    // Another run may write the same file: each writes its own, and the last one stays.
    let unfinished = path.with_extension(format!("{}.new", std::process::id()));
    let fill = || {
        let mut file = std::fs::File::create(&unfinished)?;
        file.write_all(MAGIC)?;
        for size in size {
            file.write_all(&number(*size))?;
        }
        file.write_all(&crc32c::crc32c(content).to_le_bytes())?;
        file.write_all(content)?;
        std::fs::rename(&unfinished, path)
    };
    let filled = fill();
    if filled.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    filled
}

/// Whether a disk, or the share of it that one may use, is used up. Training can go on without the cache.
fn disk_is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// The features of a file's bytes; none when they are not whole.
fn parse(bytes: &[u8]) -> Option<Features> {
    let (header, content) = bytes.split_at_checked(HEADER_BYTES)?;
    let number = |at: usize| {
        let bytes = header[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes)
    };
    let [frames, width, states, sum] = [8, 12, 16, 20].map(number);
    if !header.starts_with(MAGIC) || frames == 0 || crc32c::crc32c(content) != sum {
        return None;
    }
    let bytes_of = |rows: u64| rows.checked_mul(u64::from(width))?.checked_mul(BF16_BYTES as u64);
    let mixed = usize::try_from(bytes_of(frames.into())?).ok()?;
    let (mixed, statistics) = content.split_at_checked(mixed)?;
    if bytes_of(2 * u64::from(states))? != statistics.len() as u64 {
        return None;
    }
    let tensor = |bytes: &[u8], size: [i64; 2]| Tensor::f_from_data_size(bytes, &size, Kind::BFloat16).ok();
    let (frames, width, states) = (i64::from(frames), i64::from(width), i64::from(states));
    Some(Features {
        frames: tensor(mixed, [frames, width])?,
        statistics: tensor(statistics, [states, 2 * width])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::example::Clip;

    /// Four frames of width 3, two hidden states.
    fn features() -> Features {
        let counted = |rows: i64, width: i64| {
            (Tensor::arange(rows * width, (Kind::Float, Device::Cpu)).view([rows, width]) * 0.5)
                .to_kind(Kind::BFloat16)
        };
        Features {
            frames: counted(4, 3),
            statistics: counted(2, 6),
        }
    }

    /// Bytes of the file that holds them.
    const FILE_BYTES: u64 = (HEADER_BYTES + (12 + 12) * BF16_BYTES) as u64;

    fn recording(folder: &Path, content: &[u8]) -> AudioSource {
        let path = folder.join("clip.wav");
        std::fs::write(&path, content).unwrap();
        AudioSource::File(path)
    }

    #[test]
    fn features_come_back_as_they_were_kept_and_after_opening_anew() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("cache");
        let key = FeatureKey::new(&recording(folder.path(), b"a"), "encoder", "0").unwrap();
        let cache = FeatureCache::open(&dir, 1 << 20).unwrap();
        assert!(cache.get(&key).is_none());

        cache.put(&key, &features()).unwrap();

        let again = FeatureCache::open(&dir, 1 << 20).unwrap();
        let found = again.get(&key).unwrap();
        assert_eq!(found.frames, features().frames);
        assert_eq!(found.statistics, features().statistics);
        assert_eq!(again.bytes(), cache.bytes());
        assert_eq!(again.bytes(), FILE_BYTES);
    }

    #[test]
    fn a_key_changes_with_all_that_features_depend_on() {
        let folder = tempfile::tempdir().unwrap();
        let audio = recording(folder.path(), b"a");
        let key = |audio: &AudioSource, common, changes| FeatureKey::new(audio, common, changes).unwrap();
        let first = key(&audio, "encoder", "0");

        assert_eq!(key(&audio, "encoder", "0"), first);
        assert_ne!(key(&audio, "encoder", "1"), first);
        assert_ne!(key(&audio, "another", "0"), first);
        assert_ne!(key(&recording(folder.path(), b"changed"), "encoder", "0"), first);
        let piece = |offset| {
            let clip = Clip {
                path: folder.path().join("clip.wav"),
                offset,
                seconds: 1.0,
            };
            key(&AudioSource::Clip(clip), "encoder", "0")
        };
        assert_ne!(piece(Some(0.0)), piece(Some(1.0)));
        assert_ne!(piece(Some(0.0)), piece(None));
        assert!(FeatureKey::new(&AudioSource::Samples(vec![0.0].into()), "", "").is_none());
        assert!(FeatureKey::new(&AudioSource::File("no/such.wav".into()), "", "").is_none());
    }

    #[test]
    fn a_damaged_file_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("cache");
        let key = FeatureKey::new(&recording(folder.path(), b"a"), "", "").unwrap();
        let cache = FeatureCache::open(&dir, 1 << 20).unwrap();
        cache.put(&key, &features()).unwrap();
        let whole = std::fs::read(cache.path(&key)).unwrap();
        let mut changed = whole.clone();
        changed[HEADER_BYTES + 3] ^= 1;

        for damaged in [&whole[..whole.len() - 1], &whole[..7], &changed, &[]] {
            std::fs::write(cache.path(&key), damaged).unwrap();

            assert!(cache.get(&key).is_none());
            assert!(!cache.path(&key).exists());
        }
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures_and_leaves_nothing_unfinished() {
        let of = std::io::Error::from_raw_os_error;

        assert!(disk_is_full(&of(libc::ENOSPC)) && disk_is_full(&of(libc::EDQUOT)));
        assert!(!disk_is_full(&of(libc::EACCES)));
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("ab").join("cd");
        std::fs::create_dir_all(&target).unwrap(); // a folder stands where the file should be
        assert!(write(&target, &[1, 1, 0], &[0, 0]).is_err());
        assert_eq!(std::fs::read_dir(folder.path().join("ab")).unwrap().count(), 1);
    }

    #[test]
    fn a_full_cache_keeps_nothing_more() {
        let folder = tempfile::tempdir().unwrap();
        let audio = recording(folder.path(), b"a");
        let key = |changes| FeatureKey::new(&audio, "", changes).unwrap();
        let bytes_max = FILE_BYTES + FILE_BYTES / 2;
        let cache = FeatureCache::open(&folder.path().join("cache"), bytes_max).unwrap();

        cache.put(&key("0"), &features()).unwrap();
        cache.put(&key("1"), &features()).unwrap();

        assert!(cache.get(&key("0")).is_some() && cache.get(&key("1")).is_none());
        assert_eq!(cache.bytes(), FILE_BYTES);
    }
}

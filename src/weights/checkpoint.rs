//! Opening safetensors checkpoints.
//!
//! Files are mapped, not read: opening costs milliseconds. Headers come from outside and are checked in full
//! before the first byte of data is believed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use super::WeightsError;
use super::map::WeightMap;
use crate::util::mistaken_for;

/// Largest header believed, bytes. The largest published models need well under one megabyte.
pub(super) const HEADER_BYTES_MAX: u64 = 16 << 20;
/// Largest `model.safetensors.index.json` read, bytes.
const INDEX_BYTES_MAX: u64 = 16 << 20;
/// Length of the little-endian number that opens a safetensors file, bytes.
pub(super) const PREFIX_BYTES: usize = 8;

const SINGLE_FILE: &str = "model.safetensors";
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// A checkpoint whose headers have been checked, and whose data stays on disk until asked for.
///
/// The files must not be truncated or overwritten in place while it lives, nor while a model made from it
/// lives: they are memory-mapped. Published versions are immutable and replaced by rename, which is safe.
#[derive(Debug)]
pub struct Checkpoint {
    pub(super) path: PathBuf,
    pub(super) maps: Vec<Arc<WeightMap>>,
    pub(super) entries: BTreeMap<String, Entry>,
}

/// Where one tensor lies.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) map: usize,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Byte range inside the map, already checked to lie within it.
    pub(super) range: std::ops::Range<usize>,
}

/// What a header lists.
type NamedEntries = Vec<(String, Entry)>;

/// One tensor of a checkpoint, described and not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSummary {
    /// Name in the checkpoint.
    pub name: String,
    /// Element type as safetensors spells it, such as `BF16`.
    pub dtype: String,
    /// Shape.
    pub shape: Vec<usize>,
}

impl Checkpoint {
    /// Opens the checkpoint of a model folder: `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// [`WeightsError`] when there is none, or when a header or the index is broken.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let dir = dir.as_ref();
        if dir.join(SINGLE_FILE).is_file() {
            return Self::open_file(dir.join(SINGLE_FILE));
        }
        if dir.join(INDEX_FILE).is_file() {
            return Self::open_sharded(dir);
        }
        Err(WeightsError::NoCheckpoint {
            dir: dir.to_path_buf(),
            instead: instead(dir),
        })
    }

    /// Opens one safetensors file, whatever its name.
    ///
    /// # Errors
    /// [`WeightsError`] when it cannot be read or its header is broken.
    pub fn open_file(path: impl Into<PathBuf>) -> Result<Self, WeightsError> {
        let path = path.into();
        let (map, entries) = open_map(&path, 0)?;
        Ok(Self {
            path,
            maps: vec![map],
            entries: entries.into_iter().collect(),
        })
    }

    fn open_sharded(dir: &Path) -> Result<Self, WeightsError> {
        let path = dir.join(INDEX_FILE);
        let weight_map = read_index(&path)?;
        let broken = |reason: String| WeightsError::Index {
            path: path.clone(),
            reason,
        };

        let files: BTreeSet<&String> = weight_map.values().collect();
        let mut maps = Vec::with_capacity(files.len());
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for file in &files {
            let is_plain_name = Path::new(file.as_str())
                .file_name()
                .is_some_and(|n| n == file.as_str());
            if !is_plain_name {
                return Err(broken(format!("shard name {file:?} is not a plain file name")));
            }
            if !dir.join(file).is_file() {
                return Err(broken(format!("shard `{file}` is not in the folder")));
            }
            let (map, shard) = open_map(&dir.join(file), maps.len())?;
            maps.push(map);
            for (name, entry) in shard {
                if entries.contains_key(&name) {
                    return Err(broken(format!("tensor `{name}` is in more than one shard")));
                }
                entries.insert(name, entry);
            }
        }
        let shard_order: Vec<&String> = files.into_iter().collect();
        for (name, file) in &weight_map {
            let found = entries.get(name).map(|entry| shard_order[entry.map]);
            if found != Some(file) {
                return Err(broken(format!(
                    "it places tensor `{name}` in `{file}`, which does not hold it"
                )));
            }
        }
        Ok(Self {
            path: dir.to_path_buf(),
            maps,
            entries,
        })
    }

    /// A checkpoint without tensors: a load from it finds nothing, and lists what a model declares.
    pub fn nothing() -> Self {
        Self {
            path: PathBuf::from("nothing"),
            maps: Vec::new(),
            entries: BTreeMap::new(),
        }
    }

    /// The folder or file this checkpoint was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the checkpoint holds a tensor of this name (for optional ones, such as an untied output
    /// layer).
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// All tensors in order of name, described and not read.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSummary> + '_ {
        self.entries.iter().map(|(name, entry)| TensorSummary {
            name: name.clone(),
            dtype: format!("{:?}", entry.dtype),
            shape: entry.shape.clone(),
        })
    }
}

/// What a folder without a checkpoint has in its place, as words for an error.
fn instead(dir: &Path) -> String {
    let names: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    let is_link = |name: &str| dir.join(name).is_symlink();
    if let Some(name) = [SINGLE_FILE, INDEX_FILE].iter().find(|name| is_link(name)) {
        return format!("; `{name}` is a link to a file that is not there");
    }
    let ends = |ending: &str| names.iter().find(|name| name.ends_with(ending));
    let hint = |name: &str, what: &str| format!("; `{name}` beside it {what}");
    if let Some(name) = ends(".bin").or_else(|| ends(".pt")).or_else(|| ends(".pth")) {
        hint(
            name,
            "is a pickle, which is never read: convert it to safetensors",
        )
    } else if let Some(name) = ends(".gguf") {
        hint(name, "is converted with `models import`")
    } else if let Some(name) = ends(".safetensors.part").or_else(|| ends(".incomplete")) {
        hint(name, "is a download that broke off: fetch the model again")
    } else if let Some(name) = ends(".safetensors") {
        hint(
            name,
            "has another name: rename it, or fetch the index that names it",
        )
    } else {
        String::new()
    }
}

/// Maps one safetensors file and reads where its tensors lie.
fn open_map(path: &Path, map: usize) -> Result<(Arc<WeightMap>, NamedEntries), WeightsError> {
    let file = WeightMap::open(path).map_err(|source| WeightsError::Io {
        path: path.to_path_buf(),
        source,
    })?;
    let entries = parse_header(file.bytes(), map).map_err(|reason| WeightsError::Header {
        path: path.to_path_buf(),
        reason: mistaken_for(file.bytes()).map_or(reason, |found| format!("it is {found}")),
    })?;
    Ok((file, entries))
}

/// Reads the header of a safetensors file that is wholly in `bytes`; trusts nothing it says.
pub(super) fn parse_header(bytes: &[u8], map: usize) -> Result<NamedEntries, String> {
    let prefix: [u8; PREFIX_BYTES] = bytes
        .get(..PREFIX_BYTES)
        .and_then(|prefix| prefix.try_into().ok())
        .ok_or_else(|| {
            format!(
                "it has {} bytes, fewer than the 8 of a header length",
                bytes.len()
            )
        })?;
    let header_len = u64::from_le_bytes(prefix);
    if header_len > HEADER_BYTES_MAX {
        return Err(format!(
            "its header claims {header_len} bytes, at most {HEADER_BYTES_MAX} are believed"
        ));
    }
    let data_start = PREFIX_BYTES + header_len as usize;
    let header = bytes.get(PREFIX_BYTES..data_start).ok_or_else(|| {
        format!(
            "its header claims {header_len} bytes, the whole file has {}: its end is missing",
            bytes.len()
        )
    })?;
    // Also checks that offsets are gapless and that shape times element size is each tensor's length.
    let metadata: Metadata = serde_json::from_slice(header).map_err(|error| error.to_string())?;
    let data_len = bytes.len() - data_start;
    if metadata.data_len() != data_len {
        let hint = match data_len < metadata.data_len() {
            true => "its end is missing, as where a download breaks off",
            false => "something was added to it",
        };
        return Err(format!(
            "its header describes {} bytes of data, the file has {data_len}: {hint}",
            metadata.data_len()
        ));
    }
    let entries = metadata.tensors().into_iter().map(|(name, info)| {
        let (start, end) = info.data_offsets;
        let range = data_start + start..data_start + end;
        (
            name,
            Entry {
                map,
                dtype: info.dtype,
                shape: info.shape.clone(),
                range,
            },
        )
    });
    Ok(entries.collect())
}

/// `weight_map` of a sharded checkpoint's index.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let io = |source| WeightsError::Io {
        path: path.to_path_buf(),
        source,
    };
    let broken = |reason: String| WeightsError::Index {
        path: path.to_path_buf(),
        reason,
    };

    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > INDEX_BYTES_MAX {
        return Err(broken(format!(
            "it has {size} bytes, at most {INDEX_BYTES_MAX} are read"
        )));
    }
    let text = std::fs::read(path).map_err(io)?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| {
        broken(mistaken_for(&text).map_or_else(|| error.to_string(), |found| format!("it is {found}")))
    })?;
    if index.weight_map.is_empty() {
        return Err(broken("its `weight_map` is empty".to_owned()));
    }
    Ok(index.weight_map)
}

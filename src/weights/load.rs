//! Opening safetensors checkpoints, and handing their tensors out with exact accounting.
//!
//! Files are mapped, not read: opening costs milliseconds. A tensor of a large file that is wanted as it is
//! stays in the file and is looked at there; any other is copied (and converted) once, when it is taken.
//! Headers come from outside and are checked in full before the first byte of data is believed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::folder::instead;
use super::map::{VIEWED_BYTES_MIN, WeightMap};
use super::{Mismatch, Misshapen, Mistyped, WeightsError};
use crate::util::mistaken_for;

/// Largest header believed, bytes. The largest published models need well under one megabyte.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// Largest `model.safetensors.index.json` read, bytes.
const INDEX_BYTES_MAX: u64 = 16 << 20;
/// Tensors that must hold the same are compared in pieces of this size, so that little of them is in memory
/// at a time.
const ALIAS_BYTES: usize = 4 << 20;
/// Length of the little-endian number that opens a safetensors file, bytes.
const PREFIX_BYTES: usize = 8;

pub(super) const SINGLE_FILE: &str = "model.safetensors";
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// A checkpoint whose headers have been checked, and whose data stays on disk until asked for.
///
/// The files must not be truncated or overwritten in place while it lives, nor while a model made from it
/// lives: they are memory-mapped. Published versions are immutable and replaced by rename, which is safe.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    maps: Vec<Arc<WeightMap>>,
    entries: BTreeMap<String, Entry>,
}

/// Where one tensor lies.
#[derive(Debug)]
struct Entry {
    map: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Byte range inside the map, already checked to lie within it.
    range: std::ops::Range<usize>,
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

    /// A checkpoint without tensors: a load from it finds nothing, and tells what a model declares.
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

    /// Starts an exact load: every floating-point tensor arrives on `device` as `kind`.
    pub fn loader(&self, device: Device, dtype: Kind) -> Loader<'_> {
        Loader {
            checkpoint: self,
            device,
            dtype,
            views_from: VIEWED_BYTES_MIN,
            taken: BTreeMap::new(),
            ignored: Vec::new(),
            mismatch: Mismatch {
                checkpoint: self.path.clone(),
                ..Mismatch::default()
            },
            torch: None,
        }
    }
}

/// Hands out a checkpoint's tensors by name, and at the end accounts for every one.
///
/// Failures are collected, not returned one by one: a placeholder stands in until [`finish`](Self::finish)
/// reports everything together, so code that builds a model reads straight through.
#[derive(Debug)]
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    device: Device,
    dtype: Kind,
    /// Files from this size on are looked at, not copied.
    views_from: usize,
    /// What was taken, and in which shape.
    taken: BTreeMap<String, Vec<i64>>,
    ignored: Vec<String>,
    mismatch: Mismatch,
    torch: Option<(String, tch::TchError)>,
}

impl<'a> Loader<'a> {
    /// The tensor `name`, which the model declares with `shape`, on the loader's device in its float kind.
    ///
    /// A placeholder of zeros comes back on failure; [`finish`](Self::finish) then fails and the model is
    /// dropped.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Tensor {
        self.take_as(name, shape, self.dtype)
    }

    /// As [`take`](Self::take), in a kind of its own (a norm kept in f32 beside bf16 matrices).
    pub fn take_as(&mut self, name: &str, shape: &[i64], dtype: Kind) -> Tensor {
        let Some((entry, source_kind)) = self.find(name, shape) else {
            return placeholder(shape, dtype);
        };
        let map = &self.checkpoint.maps[entry.map];
        let as_it_is = source_kind == dtype && self.device == Device::Cpu;
        if as_it_is
            && map.bytes().len() >= self.views_from
            && let Some(view) = map.view(&entry.range, shape, dtype)
        {
            return view;
        }
        let copy = tch::no_grad(|| map.copy(&entry.range, shape, source_kind, (dtype, self.device)));
        copy.unwrap_or_else(|error| {
            self.torch.get_or_insert((name.to_owned(), error));
            placeholder(shape, dtype)
        })
    }

    /// Several matrices of the same input one below the other, `[rows, columns]` each → `[sum of rows,
    /// columns]`; or several vectors, where `columns` is absent. Joined as they are read: no part is in
    /// memory twice.
    pub fn take_joined(&mut self, parts: &[(String, i64)], columns: Option<i64>) -> Tensor {
        let shape = |rows: i64| [Some(rows), columns].into_iter().flatten().collect::<Vec<i64>>();
        if let [(name, rows)] = parts {
            return self.take(name, &shape(*rows));
        }
        let rows: i64 = parts.iter().map(|(_, rows)| *rows).sum();
        let found: Vec<Option<(&Entry, Kind)>> = (parts.iter())
            .map(|(name, rows)| self.find(name, &shape(*rows)))
            .collect();
        // A shape that no file confirms may be absurd, and gets no memory.
        let Some(found) = found.into_iter().collect::<Option<Vec<_>>>() else {
            return placeholder(&shape(rows), self.dtype);
        };
        let join = || {
            let joined = Tensor::f_empty(shape(rows), (self.dtype, self.device))?;
            let mut first = 0;
            for ((_, rows), (entry, source_kind)) in parts.iter().zip(found) {
                let map = &self.checkpoint.maps[entry.map];
                let mut part = joined.f_narrow(0, first, *rows)?;
                map.copy_into(&entry.range, source_kind, &mut part)?;
                first += rows;
            }
            Ok(joined)
        };
        tch::no_grad(join).unwrap_or_else(|error| {
            self.torch.get_or_insert((parts[0].0.clone(), error));
            placeholder(&shape(rows), self.dtype)
        })
    }

    /// Counts a tensor as taken and finds it; what is wrong with it is noted.
    fn find(&mut self, name: &str, shape: &[i64]) -> Option<(&'a Entry, Kind)> {
        if self.taken.insert(name.to_owned(), shape.to_vec()).is_some() {
            self.mismatch.taken_twice.push(name.to_owned());
        }
        let checkpoint = self.checkpoint;
        let Some(entry) = checkpoint.entries.get(name) else {
            self.mismatch.missing.push(name.to_owned());
            return None;
        };
        let same_shape = entry.shape.len() == shape.len()
            && entry
                .shape
                .iter()
                .zip(shape)
                .all(|(&found, &declared)| i64::try_from(found) == Ok(declared));
        if !same_shape {
            self.mismatch.misshapen.push(Misshapen {
                name: name.to_owned(),
                declared: shape.to_vec(),
                found: entry.shape.clone(),
            });
        }
        let source_kind = float_kind(entry.dtype);
        if source_kind.is_none() {
            self.mismatch.mistyped.push(Mistyped {
                name: name.to_owned(),
                found: format!("{:?}", entry.dtype),
            });
        }
        source_kind.filter(|_| same_shape).map(|dtype| (entry, dtype))
    }

    /// Declares that `name`, where it is there, is another name of the tensor `of`: it must hold the same.
    pub fn alias(&mut self, name: &str, of: &str) {
        let checkpoint = self.checkpoint;
        let Some(entry) = checkpoint.entries.get(name) else {
            return;
        };
        self.ignored.push(name.to_owned());
        let bytes =
            |entry: &'a Entry| checkpoint.maps[entry.map].bytes()[entry.range.clone()].chunks(ALIAS_BYTES);
        let same = (checkpoint.entries.get(of)).is_some_and(|other| {
            let alike = (entry.dtype, &entry.shape) == (other.dtype, &other.shape);
            let release = |entry: &Entry, at: usize| {
                let start = entry.range.start + at * ALIAS_BYTES;
                let end = entry.range.end.min(start + ALIAS_BYTES);
                checkpoint.maps[entry.map].release(&(start..end));
            };
            alike
                && bytes(entry)
                    .zip(bytes(other))
                    .enumerate()
                    .all(|(at, (one, two))| {
                        let same = one == two;
                        release(entry, at);
                        release(other, at);
                        same
                    })
        });
        if !same {
            self.mismatch.unequal.push((name.to_owned(), of.to_owned()));
        }
    }

    /// What has been taken so far: names and declared shapes.
    pub fn declared(&self) -> &BTreeMap<String, Vec<i64>> {
        &self.taken
    }

    /// Looks at files from this size on, and copies smaller ones.
    #[cfg(test)]
    fn views_from(mut self, bytes: usize) -> Self {
        self.views_from = bytes;
        self
    }

    /// Whether the checkpoint holds this tensor, for parts that are optional.
    pub fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(name)
    }

    /// Declares that tensors whose names start with `prefix` are known and not used here.
    pub fn ignore(&mut self, prefix: &str) {
        self.ignored.push(prefix.to_owned());
    }

    /// Device that tensors are put on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Kind that tensors are converted to.
    pub fn kind(&self) -> Kind {
        self.dtype
    }

    /// Ends the load: every tensor of the checkpoint must have been taken or ignored, and every taken one
    /// found.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`] with every difference at once; [`WeightsError::Torch`] when the tensors
    /// agreed and libtorch still could not make one (out of memory).
    pub fn finish(mut self) -> Result<(), WeightsError> {
        let unexpected = self
            .checkpoint
            .entries
            .keys()
            .filter(|name| !self.taken.contains_key(*name))
            .filter(|name| !self.ignored.iter().any(|prefix| name.starts_with(prefix)))
            .cloned();
        self.mismatch.unexpected.extend(unexpected);
        if !self.mismatch.is_empty() {
            return Err(Box::new(self.mismatch).into());
        }
        match self.torch {
            Some((name, source)) => Err(WeightsError::Torch { name, source }),
            None => Ok(()),
        }
    }
}

/// Zeros that pretend to have `shape` and cost one element: the shape may come from a lying `config.json`.
fn placeholder(shape: &[i64], dtype: Kind) -> Tensor {
    let zero = Tensor::zeros([1], (dtype, Device::Cpu));
    zero.f_expand(shape, false).unwrap_or(zero)
}

/// The torch kind of a floating-point element type; `None` for integers, booleans and scaled formats.
fn float_kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F64 => Some(Kind::Double),
        _ => None,
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
fn parse_header(bytes: &[u8], map: usize) -> Result<NamedEntries, String> {
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

#[cfg(test)]
mod tests;

//! Handing the tensors of a checkpoint out, with exact accounting.
//!
//! A tensor of a large file that is wanted as it is stays in the file and is looked at there; any other is
//! copied (and converted) once, when it is taken.

use std::collections::BTreeMap;

use safetensors::Dtype;
use tch::{Device, Kind, Tensor};

use super::checkpoint::{Checkpoint, Entry};
use super::map::VIEWED_BYTES_MIN;
use super::{Mismatch, Misshapen, Mistyped, WeightsError};

/// Tensors that must hold the same are compared in pieces of this size, so that little of them is in memory
/// at a time.
const ALIAS_BYTES: usize = 4 << 20;
impl Checkpoint {
    /// Starts an exact load: every floating-point tensor arrives on `device` as `dtype`.
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
    /// The tensor `name`, which the model declares with `shape`, on the loader's device in its float dtype.
    ///
    /// A placeholder of zeros comes back on failure; [`finish`](Self::finish) then fails and the model is
    /// dropped.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Tensor {
        self.take_as(name, shape, self.dtype)
    }

    /// As [`take`](Self::take), in a dtype of its own (a norm kept in f32 beside bf16 matrices).
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

/// The dtype of a floating-point element type; `None` for integers, booleans and scaled formats.
fn float_kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F64 => Some(Kind::Double),
        _ => None,
    }
}

#[cfg(test)]
mod tests;

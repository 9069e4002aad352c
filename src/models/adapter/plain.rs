//! Tensors as plain values: what travels between threads and rests in small safetensors files.
//!
//! A `tch::Tensor` is `Send` but not `Sync`; plain values behind an `Arc` are both, so they are what is
//! shared, and each device thread makes its own tensors from them.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::{Device, Kind, Tensor};

use crate::models::ModelError;

/// Files beyond this are not adapters.
const FILE_BYTES_MAX: u64 = 4 << 30; // 4 GiB

/// Numbers of a plain tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum PlainData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit integers.
    I64(Vec<i64>),
}

/// A tensor as shape and values, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct PlainTensor {
    /// Sizes.
    pub shape: Vec<i64>,
    /// As many values as the sizes ask for.
    pub data: PlainData,
}

impl PlainTensor {
    /// Copies a tensor of any device and dtype: floats become f32, everything else i64.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when libtorch fails.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self, ModelError> {
        let float = matches!(
            tensor.kind(),
            Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double
        );
        let dtype = if float { Kind::Float } else { Kind::Int64 };
        let flat = tensor
            .detach()
            .f_to_device(Device::Cpu)?
            .f_to_kind(dtype)?
            .f_contiguous()?
            .f_view([-1])?;
        let data = if float {
            PlainData::F32(Vec::<f32>::try_from(&flat)?)
        } else {
            PlainData::I64(Vec::<i64>::try_from(&flat)?)
        };
        Ok(Self {
            shape: tensor.size(),
            data,
        })
    }

    /// A new tensor on `device`, in f32 or i64.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when libtorch fails.
    pub fn to_tensor(&self, device: Device) -> Result<Tensor, ModelError> {
        let flat = match &self.data {
            PlainData::F32(values) => Tensor::f_from_slice(values)?,
            PlainData::I64(values) => Tensor::f_from_slice(values)?,
        };
        Ok(flat.f_view(self.shape.as_slice())?.f_to_device(device)?)
    }

    /// The values, when they are floats.
    pub fn floats(&self) -> Option<&[f32]> {
        match &self.data {
            PlainData::F32(values) => Some(values),
            PlainData::I64(_) => None,
        }
    }

    /// The values, when they are integers.
    pub fn integers(&self) -> Option<&[i64]> {
        match &self.data {
            PlainData::I64(values) => Some(values),
            PlainData::F32(_) => None,
        }
    }
}

/// Named plain tensors and the words beside them: the content of a small safetensors file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlainFile {
    /// By name.
    pub tensors: BTreeMap<String, PlainTensor>,
    /// The `__metadata__` of the file.
    pub metadata: BTreeMap<String, String>,
}

impl PlainFile {
    /// The bytes of a safetensors file with this content; equal content gives equal bytes but for the order
    /// of metadata.
    ///
    /// # Errors
    /// [`ModelError::Shape`] when a tensor's values do not fill its shape.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ModelError> {
        let mut raw: Vec<(&String, Dtype, Vec<usize>, Vec<u8>)> = Vec::with_capacity(self.tensors.len());
        for (name, tensor) in &self.tensors {
            let shape = tensor
                .shape
                .iter()
                .map(|size| usize::try_from(*size).unwrap_or(usize::MAX))
                .collect();
            let (dtype, bytes) = match &tensor.data {
                PlainData::F32(values) => (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
                PlainData::I64(values) => (Dtype::I64, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            };
            raw.push((name, dtype, shape, bytes));
        }
        let mut views = Vec::with_capacity(raw.len());
        for (name, dtype, shape, bytes) in &raw {
            let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|_| ModelError::Shape {
                what: "tensor to be saved",
                expected: format!("{} bytes of values for `{name}`", bytes.len()),
                found: self.tensors[*name].shape.clone(),
            })?;
            views.push((name.as_str(), view));
        }
        let metadata: HashMap<String, String> = self
            .metadata
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        safetensors::serialize(views, Some(metadata)).map_err(|error| ModelError::Shape {
            what: "tensors to be saved",
            expected: error.to_string(),
            found: vec![],
        })
    }

    /// Parses the bytes of a safetensors file; `path` is for messages. Floats of 16 bits are widened.
    ///
    /// # Errors
    /// [`ModelError::File`] when the bytes are no such file or hold types other than F32, F16, BF16 and I64.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, ModelError> {
        let broken = |reason: String| ModelError::File {
            path: path.to_owned(),
            reason,
        };
        let (_, header) = SafeTensors::read_metadata(bytes)
            .map_err(|error| broken(format!("not a safetensors file: {error}")))?;
        let metadata = header
            .metadata()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect();
        let file = SafeTensors::deserialize(bytes)
            .map_err(|error| broken(format!("not a safetensors file: {error}")))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let raw = view.data();
            let data = match view.dtype() {
                Dtype::F32 => PlainData::F32(
                    raw.chunks_exact(4)
                        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                        .collect(),
                ),
                Dtype::BF16 => PlainData::F32(
                    raw.chunks_exact(2)
                        .map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32())
                        .collect(),
                ),
                Dtype::F16 => PlainData::F32(
                    raw.chunks_exact(2)
                        .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())
                        .collect(),
                ),
                Dtype::I64 => PlainData::I64(
                    raw.chunks_exact(8)
                        .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                        .collect(),
                ),
                other => {
                    return Err(broken(format!(
                        "tensor `{name}` is {other:?}, expected F32, F16, BF16 or I64"
                    )));
                }
            };
            let shape = view
                .shape()
                .iter()
                .map(|size| i64::try_from(*size).unwrap_or(i64::MAX))
                .collect();
            tensors.insert(name, PlainTensor { shape, data });
        }
        Ok(Self { tensors, metadata })
    }

    /// Reads a file of at most 4 GiB.
    ///
    /// # Errors
    /// [`ModelError::File`] when it cannot be read, is too large, or is not what it should be.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let broken = |reason: String| ModelError::File {
            path: path.to_owned(),
            reason,
        };
        let file = std::fs::File::open(path).map_err(|error| broken(error.to_string()))?;
        let size = file.metadata().map_err(|error| broken(error.to_string()))?.len();
        if size > FILE_BYTES_MAX {
            return Err(broken(format!(
                "has {size} bytes, expected at most {FILE_BYTES_MAX}"
            )));
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|error| broken(error.to_string()))?;
        Self::from_bytes(&bytes, path)
    }

    /// Writes the file beside its final name, syncs it, and renames it into place.
    ///
    /// # Errors
    /// [`ModelError::File`] when it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ModelError> {
        let failed = |error: std::io::Error| ModelError::File {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let bytes = self.to_bytes()?;
        let part = path.with_extension("part");
        let mut file = std::fs::File::create(&part).map_err(failed)?;
        std::io::Write::write_all(&mut file, &bytes).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&part, path).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> PlainFile {
        PlainFile {
            tensors: BTreeMap::from([
                (
                    "a".into(),
                    PlainTensor {
                        shape: vec![2, 2],
                        data: PlainData::F32(vec![1.0, -0.0, f32::MIN_POSITIVE, 3.5]),
                    },
                ),
                (
                    "b".into(),
                    PlainTensor {
                        shape: vec![3],
                        data: PlainData::I64(vec![1, -2, i64::MAX]),
                    },
                ),
                (
                    "scalar".into(),
                    PlainTensor {
                        shape: vec![],
                        data: PlainData::F32(vec![7.0]),
                    },
                ),
            ]),
            metadata: BTreeMap::from([("format".into(), "pt".into())]),
        }
    }

    #[test]
    fn a_file_returns_the_numbers_it_was_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");

        sample().write(&path).unwrap();

        assert_eq!(PlainFile::read(&path).unwrap(), sample());
    }

    #[test]
    fn a_tensor_goes_through_torch_unchanged() {
        for tensor in sample().tensors.values() {
            let again = PlainTensor::from_tensor(&tensor.to_tensor(Device::Cpu).unwrap()).unwrap();

            assert_eq!(&again, tensor);
        }
    }

    #[test]
    fn a_truncated_file_is_an_error_that_names_it() {
        let bytes = sample().to_bytes().unwrap();
        for cut in [0, 4, 20, bytes.len() - 1] {
            let error =
                PlainFile::from_bytes(&bytes[..cut], Path::new("dir/adapter.safetensors")).unwrap_err();

            assert!(error.to_string().contains("dir/adapter.safetensors"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), small in any::<bool>()) {
            if small && bytes.len() >= 8 {
                bytes[1..8].fill(0);
            }
            let _ = PlainFile::from_bytes(&bytes, Path::new("x"));
        }
    }
}

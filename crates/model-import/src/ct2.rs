//! The container of CTranslate2 models (`model.bin`, binary version 6): a table of named tensors.
//!
//! Layout, little-endian: `u32` version, specification name, `u32` revision, `u32` count; then per tensor its
//! name, `u8` rank, `u32` dimensions, `u8` type, `u32` length in bytes and the data; then `u32` count of
//! aliases and pairs of names. A name is a `u16` length and that many bytes, the last of which is NUL.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::ImportError;
use super::quants::Encoding;
use super::reader::HeadReader;

const VERSION: u32 = 6;
/// Whisper large has about 2,500.
const TENSORS_MAX: u64 = 1 << 16;
const RANK_MAX: u8 = 4;

/// One tensor of the table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ct2Tensor {
    pub(crate) shape: Vec<u64>,
    pub(crate) encoding: Encoding,
    /// Where its data starts, bytes from the start of the file.
    pub(crate) offset: u64,
}

impl Ct2Tensor {
    pub(crate) fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// The table of a `model.bin`.
#[derive(Debug)]
pub(crate) struct Ct2File {
    pub(crate) path: PathBuf,
    /// Name of the specification, `WhisperSpec` for what is handled here.
    pub(crate) specification: String,
    pub(crate) tensors: BTreeMap<String, Ct2Tensor>,
    /// Single values that are settings rather than weights (`encoder/num_heads` and the like).
    pub(crate) scalars: BTreeMap<String, f64>,
    /// Names that stand for other tensors.
    pub(crate) aliases: BTreeMap<String, String>,
}

impl Ct2File {
    /// Whether the head of the file looks like one: a small version number and a NUL-ended name.
    pub(crate) fn looks_like(head: &[u8]) -> bool {
        let Some((version, rest)) = head.split_first_chunk::<4>() else {
            return false;
        };
        let Some((length, rest)) = rest.split_first_chunk::<2>() else {
            return false;
        };
        let length = usize::from(u16::from_le_bytes(*length));
        (1..=64).contains(&u32::from_le_bytes(*version))
            && (2..=64).contains(&length)
            && rest.len() >= length
            && rest[length - 1] == 0
            && rest[..length - 1].iter().all(u8::is_ascii_alphanumeric)
    }

    /// Reads the table; the data is stepped over.
    ///
    /// # Errors
    /// [`ImportError::Malformed`] for a file that breaks the format, [`ImportError::Unsupported`] for another
    /// version.
    pub(crate) fn open(path: &Path) -> Result<Self, ImportError> {
        let mut head = HeadReader::open(path)?;
        let version = head.u32("the version")?;
        if version != VERSION {
            return Err(ImportError::Unsupported {
                path: path.to_path_buf(),
                what: format!(
                    "it is CTranslate2 binary version {version}; only version {VERSION} is handled (convert the model anew)"
                ),
            });
        }
        let mut file = Self {
            path: path.to_path_buf(),
            specification: name(&mut head, "the specification")?,
            tensors: BTreeMap::new(),
            scalars: BTreeMap::new(),
            aliases: BTreeMap::new(),
        };
        let _revision = head.u32("the revision")?;
        let declared = head.u32("the number of tensors")?;
        let count = head.count(u64::from(declared), 8, TENSORS_MAX, "tensors")?;
        for _ in 0..count {
            file.read_tensor(&mut head)?;
        }
        let declared = head.u32("the number of aliases")?;
        let count = head.count(u64::from(declared), 4, TENSORS_MAX, "aliases")?;
        for _ in 0..count {
            let alias = name(&mut head, "an alias")?;
            let target = name(&mut head, "the target of an alias")?;
            if !file.tensors.contains_key(&target) {
                return Err(head.malformed(format!(
                    "alias `{alias}` stands for `{target}`, which is not in the file"
                )));
            }
            file.aliases.insert(alias, target);
        }
        if head.remaining() != 0 {
            return Err(head.malformed(format!(
                "the table ends, but {} more bytes follow",
                head.remaining()
            )));
        }
        Ok(file)
    }

    fn read_tensor(&mut self, head: &mut HeadReader) -> Result<(), ImportError> {
        let name = name(head, "the name of a tensor")?;
        let rank = head.u8("a rank")?;
        if rank > RANK_MAX {
            return Err(head.malformed(format!(
                "tensor `{name}` has {rank} dimensions; at most {RANK_MAX} are accepted"
            )));
        }
        let mut shape = Vec::with_capacity(usize::from(rank));
        for _ in 0..rank {
            shape.push(u64::from(head.u32("a dimension")?));
        }
        let number = head.u8("a type")?;
        let length = u64::from(head.u32("the length of a tensor")?);
        let encoding = match number {
            0 => Encoding::F32,
            1 => Encoding::I8,
            2 => Encoding::I16,
            4 => Encoding::F16,
            5 => Encoding::Bf16,
            3 => {
                // 32-bit integers occur as settings only, none of which is needed.
                return head.skip(length, &name);
            }
            other => {
                return Err(head.malformed(format!("tensor `{name}` has type {other}; known are 0 to 5")));
            }
        };
        let needed = shape
            .iter()
            .try_fold(1_u64, |product, size| product.checked_mul(*size))
            .and_then(|elements| encoding.bytes_for(elements));
        if needed != Some(length) || shape.contains(&0) {
            return Err(head.malformed(format!(
                "tensor `{name}` of shape {shape:?} and type {} declares {length} bytes, which is not its size",
                encoding.name()
            )));
        }
        if rank == 0 {
            let bytes = head.bytes(length, &name)?;
            let mut value = [0.0];
            encoding.decode(&bytes, &mut value);
            self.scalars.insert(name, f64::from(value[0]));
            return Ok(());
        }
        let tensor = Ct2Tensor {
            shape,
            encoding,
            offset: head.position(),
        };
        head.skip(length, &name)?;
        if self.tensors.insert(name.clone(), tensor).is_some() {
            return Err(head.malformed(format!("tensor `{name}` occurs twice")));
        }
        Ok(())
    }
}

fn name(head: &mut HeadReader, what: &str) -> Result<String, ImportError> {
    let length = head.u16(what)?;
    let mut text = head.text(u64::from(length), u64::from(u16::MAX), what)?;
    if text.pop() != Some('\0') || text.contains('\0') {
        return Err(head.malformed(format!("{what} does not end with a NUL byte")));
    }
    Ok(text)
}

//! The GGUF container, versions 2 and 3, little-endian: metadata, then a table of tensors, then their data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::ImportError;
use super::quants::Encoding;
use super::reader::HeadReader;

/// First four bytes of every GGUF file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
const ENTRIES_MAX: u64 = 1 << 14;
const TENSORS_MAX: u64 = 1 << 16;
const ARRAY_MAX: u64 = 1 << 22;
/// Chat templates reach 20 KB; nothing else comes near.
const STRING_BYTES_MAX: u64 = 1 << 22;
const NAME_BYTES_MAX: u64 = 1 << 10;
const RANK_MAX: u32 = 4;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Any integer type, signed or not.
    Integer(i128),
    /// `f32`, kept as such so that 1e-6 stays the shortest decimal.
    Single(f32),
    /// `f64`.
    Double(f64),
    Bool(bool),
    Text(String),
    Integers(Vec<i64>),
    Texts(Vec<String>),
    /// An array of a type that nobody reads (floats, booleans), and its length.
    Unread(usize),
}

/// One entry of the tensor table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GgufTensor {
    /// Outermost first, the reverse of the file's order.
    pub(crate) shape: Vec<u64>,
    pub(crate) encoding: Encoding,
    /// Where its data starts, bytes from the start of the file.
    pub(crate) offset: u64,
}

impl GgufTensor {
    pub(crate) fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// Head of a GGUF file: everything but the weights.
#[derive(Debug)]
pub(crate) struct GgufFile {
    pub(crate) path: PathBuf,
    pub(crate) metadata: BTreeMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, GgufTensor>,
}

impl GgufFile {
    /// Reads and checks metadata and tensor table: names occur once, data lies inside the file and overlaps
    /// nowhere.
    ///
    /// # Errors
    /// [`ImportError::Malformed`] for a file that breaks the format, [`ImportError::Unsupported`] for a
    /// tensor type, version or byte order that is not handled.
    pub(crate) fn open(path: &Path) -> Result<Self, ImportError> {
        let unsupported = |what: String| ImportError::Unsupported {
            path: path.to_path_buf(),
            what,
        };
        let mut head = HeadReader::open(path)?;
        if head.bytes(4, "the magic number")? != MAGIC {
            return Err(head.malformed("the file does not start with `GGUF`"));
        }
        let version = head.u32("the version")?;
        if version & 0xffff == 0 {
            return Err(unsupported(
                "it is a big-endian GGUF file; only little-endian ones are handled".into(),
            ));
        }
        if !(2..=3).contains(&version) {
            return Err(unsupported(format!(
                "it is GGUF version {version}; versions 2 and 3 are handled"
            )));
        }
        let declared_tensors = head.u64("the number of tensors")?;
        let declared_entries = head.u64("the number of metadata entries")?;
        let tensor_count = head.count(declared_tensors, 24, TENSORS_MAX, "tensors")?;
        let entry_count = head.count(declared_entries, 13, ENTRIES_MAX, "metadata entries")?;

        let mut metadata = BTreeMap::new();
        for _ in 0..entry_count {
            let key = string(&mut head, NAME_BYTES_MAX, "a metadata key")?;
            let kind = head.u32("the type of a metadata value")?;
            let value = value(&mut head, kind, &key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(head.malformed(format!("metadata key `{key}` occurs twice")));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Integer(number)) => u64::try_from(*number)
                .ok()
                .filter(|number| number.is_power_of_two() && *number <= 1 << 20)
                .ok_or_else(|| {
                    head.malformed(format!(
                        "`general.alignment` is {number}, expected a power of two"
                    ))
                })?,
            Some(_) => return Err(head.malformed("`general.alignment` is not an integer")),
        };

        let mut tensors = BTreeMap::new();
        let mut ranges = Vec::with_capacity(tensor_count);
        for _ in 0..tensor_count {
            let name = string(&mut head, NAME_BYTES_MAX, "the name of a tensor")?;
            let (tensor, bytes) = tensor(&mut head, &name, &unsupported)?;
            ranges.push((tensor.offset, bytes, name.clone()));
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(head.malformed(format!("tensor `{name}` occurs twice")));
            }
        }
        let data = head.position().next_multiple_of(alignment);
        ranges.sort();
        let mut free_from = 0;
        for (offset, bytes, name) in &ranges {
            let end = offset.checked_add(*bytes).and_then(|end| end.checked_add(data));
            if end.is_none_or(|end| end > head.length()) {
                return Err(head.malformed(format!(
                    "tensor `{name}` should lie at {offset} and take {bytes} bytes, but the file has only {} bytes of weights",
                    head.length().saturating_sub(data)
                )));
            }
            if *offset < free_from {
                return Err(head.malformed(format!(
                    "tensor `{name}` at {offset} overlaps the one before it, which ends at {free_from}"
                )));
            }
            free_from = offset + bytes;
        }
        for tensor in tensors.values_mut() {
            tensor.offset += data;
        }
        Ok(Self {
            path: path.to_path_buf(),
            metadata,
            tensors,
        })
    }

    fn wrong(&self, key: &str, expected: &str) -> ImportError {
        let found = match self.metadata.get(key) {
            None => "nothing".to_owned(),
            Some(Value::Texts(_) | Value::Integers(_) | Value::Unread(_)) => "an array".to_owned(),
            Some(value) => format!("{value:?}").chars().take(80).collect(),
        };
        ImportError::Unsupported {
            path: self.path.clone(),
            what: format!("its metadata `{key}` should hold {expected}, found {found}"),
        }
    }

    /// The text under `key`.
    pub(crate) fn text(&self, key: &str) -> Result<&str, ImportError> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(self.wrong(key, "a text")),
        }
    }

    /// The text under `key`, if there is one.
    pub(crate) fn optional_text(&self, key: &str) -> Result<Option<&str>, ImportError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(_) => self.text(key).map(Some),
        }
    }

    /// The whole number under `key`, between 1 and `max`.
    pub(crate) fn size(&self, key: &str, max: u64) -> Result<u64, ImportError> {
        match self.metadata.get(key) {
            Some(Value::Integer(number)) => u64::try_from(*number)
                .ok()
                .filter(|number| (1..=max).contains(number)),
            _ => None,
        }
        .ok_or_else(|| self.wrong(key, &format!("a whole number from 1 to {max}")))
    }

    /// Like [`size`](Self::size), when the key is there.
    pub(crate) fn optional_size(&self, key: &str, max: u64) -> Result<Option<u64>, ImportError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(_) => self.size(key, max).map(Some),
        }
    }

    /// The positive number under `key`; a single keeps its shortest decimal form (1e-6 and not
    /// 9.99999997e-7).
    pub(crate) fn number(&self, key: &str) -> Result<f64, ImportError> {
        let number = match self.metadata.get(key) {
            Some(Value::Single(number)) => number.to_string().parse().ok(),
            Some(Value::Double(number)) => Some(*number),
            _ => None,
        };
        number
            .filter(|number: &f64| number.is_finite() && *number > 0.0)
            .ok_or_else(|| self.wrong(key, "a positive number"))
    }

    /// Whether `key` is true; absent counts as false.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, ImportError> {
        match self.metadata.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// The texts under `key`.
    pub(crate) fn texts(&self, key: &str) -> Result<&[String], ImportError> {
        match self.metadata.get(key) {
            Some(Value::Texts(texts)) => Ok(texts),
            _ => Err(self.wrong(key, "an array of texts")),
        }
    }

    /// The whole numbers under `key`.
    pub(crate) fn integers(&self, key: &str) -> Result<&[i64], ImportError> {
        match self.metadata.get(key) {
            Some(Value::Integers(numbers)) => Ok(numbers),
            _ => Err(self.wrong(key, "an array of whole numbers")),
        }
    }
}

fn string(head: &mut HeadReader, max: u64, what: &str) -> Result<String, ImportError> {
    let length = head.u64(what)?;
    head.text(length, max, what)
}

/// Bytes of a scalar of this type number, or `None` for texts, arrays and unknown types.
fn scalar_bytes(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

fn integer(kind: u32, bytes: &[u8]) -> Option<i128> {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(wide);
    Some(match kind {
        0 | 2 | 4 | 10 => i128::from(unsigned),
        1 => i128::from((unsigned as u8).cast_signed()),
        3 => i128::from((unsigned as u16).cast_signed()),
        5 => i128::from((unsigned as u32).cast_signed()),
        11 => i128::from(unsigned.cast_signed()),
        _ => return None,
    })
}

fn value(head: &mut HeadReader, kind: u32, key: &str) -> Result<Value, ImportError> {
    match kind {
        8 => Ok(Value::Text(string(head, STRING_BYTES_MAX, key)?)),
        9 => array(head, key),
        _ => {
            let Some(size) = scalar_bytes(kind) else {
                return Err(head.malformed(format!("metadata `{key}` has type {kind}; known are 0 to 12")));
            };
            let bytes = head.bytes(size, key)?;
            if let Some(number) = integer(kind, &bytes) {
                return Ok(Value::Integer(number));
            }
            match (kind, bytes.as_slice()) {
                (6, &[a, b, c, d]) => Ok(Value::Single(f32::from_le_bytes([a, b, c, d]))),
                (7, &[flag @ (0 | 1)]) => Ok(Value::Bool(flag == 1)),
                (12, &[a, b, c, d, e, f, g, h]) => {
                    Ok(Value::Double(f64::from_le_bytes([a, b, c, d, e, f, g, h])))
                }
                _ => Err(head.malformed(format!("metadata `{key}` is a truth value of neither 0 nor 1"))),
            }
        }
    }
}

fn array(head: &mut HeadReader, key: &str) -> Result<Value, ImportError> {
    let kind = head.u32(key)?;
    let declared = head.u64(key)?;
    if kind == 8 {
        let count = head.count(declared, 8, ARRAY_MAX, &format!("texts in `{key}`"))?;
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push(string(head, STRING_BYTES_MAX, key)?);
        }
        return Ok(Value::Texts(texts));
    }
    let Some(size) = scalar_bytes(kind) else {
        return Err(head.malformed(format!(
            "metadata `{key}` is an array of type {kind}; arrays of numbers, truth values or texts are handled"
        )));
    };
    let count = head.count(declared, size, ARRAY_MAX, &format!("values in `{key}`"))?;
    let bytes = head.bytes(size * count as u64, key)?;
    let numbers: Option<Vec<i64>> = bytes
        .chunks_exact(size as usize)
        .map(|bytes| integer(kind, bytes).and_then(|number| i64::try_from(number).ok()))
        .collect();
    Ok(numbers.map_or(Value::Unread(count), Value::Integers))
}

fn tensor(
    head: &mut HeadReader,
    name: &str,
    unsupported: &dyn Fn(String) -> ImportError,
) -> Result<(GgufTensor, u64), ImportError> {
    let rank = head.u32("a rank")?;
    if !(1..=RANK_MAX).contains(&rank) {
        return Err(head.malformed(format!(
            "tensor `{name}` has {rank} dimensions; 1 to {RANK_MAX} are accepted"
        )));
    }
    let mut shape = Vec::with_capacity(rank as usize);
    for _ in 0..rank {
        shape.push(head.u64("a dimension")?);
    }
    let kind = head.u32("the type of a tensor")?;
    let offset = head.u64("the place of a tensor")?;
    let Some(encoding) = Encoding::from_ggml(kind) else {
        return Err(unsupported(format!(
            "tensor `{name}` has quantisation type {kind}; handled are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K"
        )));
    };
    let columns = shape[0];
    let bytes = shape
        .iter()
        .try_fold(1_u64, |product, size| product.checked_mul(*size))
        .filter(|_| columns.is_multiple_of(encoding.block_elements()) && !shape.contains(&0))
        .and_then(|elements| encoding.bytes_for(elements));
    let Some(bytes) = bytes else {
        return Err(head.malformed(format!(
            "tensor `{name}` has the impossible shape {shape:?} for {}",
            encoding.name()
        )));
    };
    shape.reverse();
    Ok((
        GgufTensor {
            shape,
            encoding,
            offset,
        },
        bytes,
    ))
}

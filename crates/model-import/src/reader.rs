//! Bounded reading of the head of an untrusted binary file.
//!
//! Every count and length is compared with what is left of the file and with a limit of its own before a
//! byte is allocated for it, so that a lying header costs an error message and nothing else.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::ImportError;

/// Largest head (everything before the weights) that is read, bytes. Qwen2.5's, tokenizer included, has 6 MB.
const HEAD_BYTES_MAX: u64 = 64 << 20;

/// Reads little-endian numbers and strings from the start of a file, and knows how much of it is left.
pub(crate) struct HeadReader {
    path: PathBuf,
    input: BufReader<File>,
    length: u64,
    position: u64,
    consumed: u64,
}

impl HeadReader {
    /// Opens `path` for reading from its first byte.
    ///
    /// # Errors
    /// [`ImportError::Io`] when the file cannot be opened.
    pub(crate) fn open(path: &Path) -> Result<Self, ImportError> {
        let file = File::open(path).map_err(ImportError::io("open", path))?;
        let length = file
            .metadata()
            .map_err(ImportError::io("read the size of", path))?
            .len();
        Ok(Self {
            path: path.to_path_buf(),
            input: BufReader::with_capacity(1 << 16, file),
            length,
            position: 0,
            consumed: 0,
        })
    }

    /// Length of the whole file, bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Where the next read starts, bytes from the start of the file.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes between here and the end of the file.
    pub(crate) fn remaining(&self) -> u64 {
        self.length.saturating_sub(self.position)
    }

    /// An error at the current position.
    pub(crate) fn malformed(&self, what: impl Into<String>) -> ImportError {
        ImportError::Malformed {
            path: self.path.clone(),
            at: self.position,
            what: what.into(),
        }
    }

    /// Reads `count` bytes; `what` names them in the error.
    pub(crate) fn bytes(&mut self, count: u64, what: &str) -> Result<Vec<u8>, ImportError> {
        if count > self.remaining() {
            return Err(self.malformed(format!(
                "{what} should take {count} bytes, but the file ends after {} more",
                self.remaining()
            )));
        }
        if self.consumed.saturating_add(count) > HEAD_BYTES_MAX {
            return Err(self.malformed(format!(
                "the part before the weights is longer than {HEAD_BYTES_MAX} bytes"
            )));
        }
        let size = usize::try_from(count)
            .map_err(|_| self.malformed(format!("{what} of {count} bytes does not fit this machine")))?;
        let mut buffer = vec![0; size];
        self.input
            .read_exact(&mut buffer)
            .map_err(ImportError::io("read", &self.path))?;
        self.position += count;
        self.consumed += count;
        Ok(buffer)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ImportError> {
        if self.remaining() < N as u64 {
            return Err(self.malformed(format!(
                "{what} should take {N} bytes, but the file ends after {} more",
                self.remaining()
            )));
        }
        if self.consumed + N as u64 > HEAD_BYTES_MAX {
            return Err(self.malformed(format!(
                "the part before the weights is longer than {HEAD_BYTES_MAX} bytes"
            )));
        }
        let mut buffer = [0; N];
        self.input
            .read_exact(&mut buffer)
            .map_err(ImportError::io("read", &self.path))?;
        self.position += N as u64;
        self.consumed += N as u64;
        Ok(buffer)
    }

    /// Reads one byte.
    pub(crate) fn u8(&mut self, what: &str) -> Result<u8, ImportError> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    /// Reads a 16-bit number.
    pub(crate) fn u16(&mut self, what: &str) -> Result<u16, ImportError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    /// Reads a 32-bit number.
    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, ImportError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// Reads a 64-bit number.
    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, ImportError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Reads `count` bytes that must be UTF-8; `count` is at most `max`.
    pub(crate) fn text(&mut self, count: u64, max: u64, what: &str) -> Result<String, ImportError> {
        if count > max {
            return Err(self.malformed(format!(
                "{what} claims a length of {count} bytes; at most {max} are accepted"
            )));
        }
        let bytes = self.bytes(count, what)?;
        String::from_utf8(bytes).map_err(|_| self.malformed(format!("{what} is not valid UTF-8")))
    }

    /// Checks a count of things of at least `bytes_each` against the rest of the file and against `max`.
    pub(crate) fn count(
        &self,
        count: u64,
        bytes_each: u64,
        max: u64,
        what: &str,
    ) -> Result<usize, ImportError> {
        if count > max {
            return Err(self.malformed(format!("{count} {what} are declared; at most {max} are accepted")));
        }
        if count.saturating_mul(bytes_each) > self.remaining() {
            return Err(self.malformed(format!(
                "{count} {what} are declared, which cannot fit the {} bytes that are left of the file",
                self.remaining()
            )));
        }
        usize::try_from(count).map_err(|_| self.malformed(format!("{count} {what} do not fit this machine")))
    }

    /// Steps over `count` bytes of weights.
    pub(crate) fn skip(&mut self, count: u64, what: &str) -> Result<(), ImportError> {
        if count > self.remaining() {
            return Err(self.malformed(format!(
                "{what} should take {count} bytes, but the file ends after {} more",
                self.remaining()
            )));
        }
        let target = self.position + count;
        match i64::try_from(count) {
            Ok(step) => self.input.seek_relative(step),
            Err(_) => self.input.seek(SeekFrom::Start(target)).map(|_| ()),
        }
        .map_err(ImportError::io("read", &self.path))?;
        self.position = target;
        Ok(())
    }
}

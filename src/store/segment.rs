//! Segment files: how records lie on disk, and how they are found again after a crash.
//!
//! ```text
//! header   magic 8 | marker 8 | CRC32C of both 4 | zero 4
//! record   marker 8 | payload length 4 | CRC32C of marker, length and payload 4 | payload
//! ```
//!
//! Numbers are little-endian. The marker is random per file: after a damaged record the next one is found by
//! it, and audio that looks like a record (it comes from outside) cannot be taken for one.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::StoreError;
use super::sample::{Entry, PAYLOAD_BYTES_MAX};

/// First bytes of a segment; the last one is the version of the format.
const MAGIC: [u8; 8] = *b"SVSMPL\x00\x01";
pub(super) const HEADER_BYTES: usize = 24;
/// Marker, length, checksum.
const RECORD_HEADER_BYTES: usize = 16;
/// Longest file that is read as a segment: the largest setting and one record more.
const SEGMENT_BYTES_CAP: u64 = (1 << 30) + (PAYLOAD_BYTES_MAX + HEADER_BYTES + RECORD_HEADER_BYTES) as u64;

type Marker = [u8; 8];

mod file;
mod rewrite;

pub(super) use file::SegmentFile;
pub(super) use rewrite::{Kept, Rewritten, is_unfinished, rewrite};

/// The end of a segment, where records are appended.
#[derive(Debug)]
pub(super) struct Appender {
    file: File,
    path: PathBuf,
    marker: Marker,
    /// Bytes of header and whole records.
    end: u64,
    /// Written and not yet synced.
    unsynced: bool,
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    /// Payload bytes.
    pub(super) length: u32,
}

/// What a scan found.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) file: Arc<SegmentFile>,
    /// Where the last whole record ends.
    pub(super) end: u64,
    /// Bytes after it that are no record.
    pub(super) tail_bytes: u64,
    /// Stretches between whole records that are no record.
    pub(super) damaged: usize,
    /// Whether the file may be appended to.
    pub(super) header_is_whole: bool,
}

impl Appender {
    /// Makes a new segment; it is on disk when this returns.
    pub(super) fn create(dir: &Path, id: u64, task: &str) -> Result<(Self, SegmentFile), StoreError> {
        let path = dir.join(format!("{id:012}-{}.segment", slug(task)));
        let marker = fresh_marker(id);
        let header = header(&marker);
        let write = || {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            file.write_all(&header)?;
            file.sync_all()?;
            sync_folder(dir)?;
            Ok(file)
        };
        let file = write().map_err(|error: std::io::Error| {
            if error.kind() != std::io::ErrorKind::AlreadyExists {
                let _ = std::fs::remove_file(&path); // the next try needs the name; the next start removes it too
            }
            StoreError::io("create", &path)(error)
        })?;
        let segment = SegmentFile::new(id, path.clone(), marker);
        let appender = Self {
            file,
            path,
            marker,
            end: HEADER_BYTES as u64,
            unsynced: false,
        };
        Ok((appender, segment))
    }

    /// Goes on where a scan found the end, and cuts off what a crash left after it.
    pub(super) fn reopen(scan: &Scan) -> Result<Self, StoreError> {
        let path = &scan.file.path;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(StoreError::io("open", path))?;
        if scan.tail_bytes > 0 {
            file.set_len(scan.end)
                .and_then(|()| file.sync_all())
                .map_err(StoreError::io("cut the torn end of", path))?;
        }
        Ok(Self {
            file,
            path: path.clone(),
            marker: scan.file.marker,
            end: scan.end,
            unsynced: false,
        })
    }

    /// Bytes of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.end
    }

    /// Appends a record. On an error the file is as it was, as far as the system allows; do not append again.
    pub(super) fn append(&mut self, entry: &Entry) -> Result<Place, StoreError> {
        self.append_payload(&entry.to_bytes())
    }

    fn append_payload(&mut self, payload: &[u8]) -> Result<Place, StoreError> {
        let length = u32::try_from(payload.len()).expect("limits of the settings are far below 4 GiB");
        let mut record = Vec::with_capacity(RECORD_HEADER_BYTES + payload.len());
        record.extend_from_slice(&self.marker);
        record.extend_from_slice(&length.to_le_bytes());
        record.extend_from_slice(&checksum(&self.marker, payload).to_le_bytes());
        record.extend_from_slice(payload);
        if let Err(error) = self.file.write_all_at(&record, self.end) {
            let _ = self.file.set_len(self.end); // if this fails too, the next scan cuts it
            return Err(StoreError::io("write to", &self.path)(error));
        }
        let place = Place {
            offset: self.end,
            length,
        };
        self.end += record.len() as u64;
        self.unsynced = true;
        Ok(place)
    }

    /// Takes the last record back, after its sync failed.
    pub(super) fn undo(&mut self, place: Place) {
        self.end = place.offset;
        let _ = self.file.set_len(self.end); // if this fails too, the next scan may find the record, which is no harm
    }

    #[cfg(test)]
    pub(super) fn has_unsynced(&self) -> bool {
        self.unsynced
    }

    /// Makes sure that what was appended survives a power cut; returns whether there was anything to do.
    pub(super) fn sync(&mut self) -> Result<bool, StoreError> {
        if !self.unsynced {
            return Ok(false);
        }
        self.file
            .sync_data()
            .map_err(StoreError::io("sync", &self.path))?;
        self.unsynced = false;
        Ok(true)
    }
}

/// Reads a segment from disk and calls `found` with every whole record, in order; `None` when nothing in it
/// can be read.
pub(super) fn scan(
    path: &Path,
    id: u64,
    mut found: impl FnMut(Place, Entry),
) -> Result<Option<Scan>, StoreError> {
    let bytes = read_whole(path)?;
    let Some((marker, header_is_whole)) = marker_of(&bytes) else {
        return Ok(None);
    };
    let (end, damaged) = records(&bytes, &marker, &mut found);
    Ok(Some(Scan {
        file: Arc::new(SegmentFile::new(id, path.to_owned(), marker)),
        end: end as u64,
        tail_bytes: (bytes.len() - end.min(bytes.len())) as u64,
        damaged: damaged + usize::from(!header_is_whole),
        header_is_whole,
    }))
}

/// Calls `found` with every whole record of a segment's bytes, in order; returns where the last one ends, and
/// how many stretches before it are no record.
fn records(bytes: &[u8], marker: &Marker, found: &mut dyn FnMut(Place, Entry)) -> (usize, usize) {
    let mut damaged = 0;
    let (mut end, mut at) = (HEADER_BYTES, HEADER_BYTES);
    while at < bytes.len() {
        let entry = payload_at(bytes, at, marker)
            .and_then(|payload| Some((payload.len(), Entry::from_bytes(payload).ok()?)));
        match entry {
            Some((length, entry)) => {
                damaged += usize::from(at != end);
                let place = Place {
                    offset: at as u64,
                    length: length as u32, // it was read from 32 bits
                };
                found(place, entry);
                at += RECORD_HEADER_BYTES + length;
                end = at;
            }
            None => match find(&bytes[at + 1..], marker) {
                Some(distance) => at += 1 + distance,
                None => break,
            },
        }
    }
    (end, damaged)
}

/// A marker that no other file has.
fn fresh_marker(id: u64) -> Marker {
    RandomState::new()
        .hash_one((id, std::process::id()))
        .to_le_bytes()
}

/// Makes sure that names that were made, changed or removed in a folder survive a power cut.
pub(super) fn sync_folder(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The first bytes of a segment.
fn header(marker: &Marker) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(marker);
    let checksum = crc32c::crc32c(&header[..16]);
    header[16..20].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// The id in the name of a segment file.
pub(super) fn id_of(path: &Path) -> Option<u64> {
    if path.extension()? != "segment" {
        return None;
    }
    path.file_stem()?.to_str()?.split('-').next()?.parse().ok()
}

fn read_whole(path: &Path) -> Result<Vec<u8>, StoreError> {
    let mut file = File::open(path).map_err(StoreError::io("open", path))?;
    let bytes = file.metadata().map_err(StoreError::io("read", path))?.len();
    if bytes > SEGMENT_BYTES_CAP {
        return Err(StoreError::NotASegment {
            path: path.to_owned(),
            bytes,
            bytes_max: SEGMENT_BYTES_CAP,
        });
    }
    let mut content = Vec::with_capacity(bytes as usize);
    file.read_to_end(&mut content)
        .map_err(StoreError::io("read", path))?;
    Ok(content)
}

/// The marker that the header names, or, where the header is damaged (`false`), the one that the first record
/// carries.
fn marker_of(bytes: &[u8]) -> Option<(Marker, bool)> {
    let header = bytes.get(..HEADER_BYTES)?;
    let marker = |at: usize| -> Option<Marker> { bytes.get(at..at + 8)?.try_into().ok() };
    if header[..8] == MAGIC && header[16..20] == crc32c::crc32c(&header[..16]).to_le_bytes() {
        return Some((marker(8)?, true));
    }
    let of_first = marker(HEADER_BYTES)?;
    payload_at(bytes, HEADER_BYTES, &of_first).map(|_| (of_first, false))
}

/// The payload of the record at `at`, if it is whole.
fn payload_at<'a>(bytes: &'a [u8], at: usize, marker: &Marker) -> Option<&'a [u8]> {
    let header = bytes.get(at..)?.get(..RECORD_HEADER_BYTES)?;
    if header[..8] != *marker {
        return None;
    }
    let length = u32::from_le_bytes(header[8..12].try_into().ok()?) as usize;
    let expected = u32::from_le_bytes(header[12..16].try_into().ok()?);
    let payload = bytes.get(at + RECORD_HEADER_BYTES..)?.get(..length)?;
    (length <= PAYLOAD_BYTES_MAX && checksum(marker, payload) == expected).then_some(payload)
}

fn checksum(marker: &Marker, payload: &[u8]) -> u32 {
    let head = crc32c::crc32c_append(crc32c::crc32c(marker), &(payload.len() as u32).to_le_bytes());
    crc32c::crc32c_append(head, payload)
}

/// Where `marker` first appears in `bytes`.
fn find(bytes: &[u8], marker: &Marker) -> Option<usize> {
    let mut from = 0;
    while let Some(first) = bytes.get(from..)?.iter().position(|byte| *byte == marker[0]) {
        let at = from + first;
        if bytes[at..].starts_with(marker) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// The part of a task's name that may stand in a file name, for people who look at the folder.
fn slug(task: &str) -> String {
    let keep = |letter: char| {
        if letter.is_ascii_alphanumeric() {
            letter.to_ascii_lowercase()
        } else {
            '_'
        }
    };
    task.chars().take(32).map(keep).collect()
}

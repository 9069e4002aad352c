//! Writing a segment anew, without some of its records.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::{Appender, HEADER_BYTES, Place, Replaced, SegmentFile, header};
use crate::store::error::StoreError;
use crate::store::sample::Entry;

/// How the name of a file ends that is written to take the place of a segment.
const UNFINISHED: &str = "segment.unfinished";

/// What a segment that is written anew holds.
pub(in crate::store) enum Kept {
    /// A record of the old file, as it is.
    Record(Place),
    /// A record in place of an old one.
    Instead(Entry),
}

/// A segment that was written anew.
pub(in crate::store) struct Rewritten {
    /// Its end.
    pub(in crate::store) appender: Appender,
    pub(in crate::store) file: Arc<SegmentFile>,
    /// New places of the kept records, by their old offsets.
    pub(in crate::store) places: HashMap<u64, Place>,
}

/// Writes a segment anew, with these records and no others: under another name first, then over the old
/// file, which reads from the new one from then on. On an error the old file is as it was.
///
/// # Errors
/// [`StoreError::Io`]; [`StoreError::Damaged`] when a record has changed since it was found.
pub(in crate::store) fn rewrite(old: &SegmentFile, kept: &[Kept]) -> Result<Rewritten, StoreError> {
    let path = old.path.with_extension(UNFINISHED);
    let written = write_anew(old, kept, &path).and_then(|written| {
        std::fs::rename(&path, &old.path).map_err(StoreError::io("replace", &old.path))?;
        Ok(written)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&path); // if this fails too, the next start removes it
    }
    let (appender, places) = written?;
    let file = Arc::new(SegmentFile::new(old.id, old.path.clone(), old.marker));
    let _ = old.replaced.set(Replaced {
        by: Some(Arc::clone(&file)),
        places: places.clone(),
    }); // a file is replaced once
    let appender = Appender {
        path: old.path.clone(),
        ..appender
    };
    Ok(Rewritten {
        appender,
        file,
        places,
    })
}

fn write_anew(
    old: &SegmentFile,
    kept: &[Kept],
    path: &Path,
) -> Result<(Appender, HashMap<u64, Place>), StoreError> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(StoreError::io("create", path))?;
    file.write_all(&header(&old.marker))
        .map_err(StoreError::io("write to", path))?;
    let mut appender = Appender {
        file,
        path: path.to_owned(),
        marker: old.marker,
        end: HEADER_BYTES as u64,
        unsynced: false,
    };
    let mut places = HashMap::new();
    for record in kept {
        match record {
            Kept::Record(place) => {
                let new = appender.append_payload(&old.read_payload(*place)?)?;
                places.insert(place.offset, new);
            }
            Kept::Instead(entry) => {
                appender.append(entry)?;
            }
        }
    }
    appender.file.sync_all().map_err(StoreError::io("sync", path))?;
    appender.unsynced = false;
    Ok((appender, places))
}

/// Whether a file was being written to take the place of a segment.
pub(in crate::store) fn is_unfinished(path: &Path) -> bool {
    path.to_string_lossy().ends_with(&format!(".{UNFINISHED}"))
}

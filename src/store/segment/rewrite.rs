//! Writing a segment anew, without some of its records.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::file::{Replaced, SegmentFile};
use super::{Appender, HEADER_BYTES, Marker, Place, fresh_marker, header};
use crate::store::error::StoreError;
use crate::store::sample::{ContentHash, Entry};

/// How the name of a file ends that is written to take the place of a segment.
const UNFINISHED: &str = "segment.unfinished";

/// What a segment that is written anew holds.
pub(in crate::store) enum Kept {
    /// A record of the old file, as it is.
    Record {
        /// Where it lies there.
        place: Place,
        /// The sample that it is; none for a note.
        sample: Option<ContentHash>,
    },
    /// A record in place of an old one.
    Instead(Entry),
}

/// A segment that was written anew.
pub(in crate::store) struct Rewritten {
    /// Its end.
    pub(in crate::store) appender: Appender,
    pub(in crate::store) file: Arc<SegmentFile>,
    /// Where the kept samples lie in it.
    pub(in crate::store) places: HashMap<ContentHash, Place>,
}

/// Writes a segment anew, with these records and no others: under another name first, then over the old
/// file, which reads from the new one from then on. On an error the old file is as it was.
///
/// The new file has a marker of its own, by which a process that knows only the old one sees that its places
/// do not count any more.
///
/// # Errors
/// [`StoreError::Io`]; [`StoreError::Damaged`] when a record has changed since it was found.
pub(in crate::store) fn rewrite(old: &SegmentFile, kept: &[Kept]) -> Result<Rewritten, StoreError> {
    let path = old.path.with_extension(UNFINISHED);
    let marker = fresh_marker(old.id);
    let file = Arc::new(SegmentFile::new(old.id, old.path.clone(), marker));
    let written = write_anew(old, kept, &path, marker).and_then(|(appender, places)| {
        let replaced = Replaced {
            by: Some(Arc::clone(&file)),
            places: places.clone(),
        };
        old.replace(replaced, || {
            std::fs::rename(&path, &old.path).map_err(StoreError::io("replace", &old.path))
        })?;
        Ok((appender, places))
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&path); // if this fails too, the next start removes it
    }
    let (appender, places) = written?;
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
    marker: Marker,
) -> Result<(Appender, HashMap<ContentHash, Place>), StoreError> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(StoreError::io("create", path))?;
    file.write_all(&header(&marker))
        .map_err(StoreError::io("write to", path))?;
    let mut appender = Appender {
        file,
        path: path.to_owned(),
        marker,
        end: HEADER_BYTES as u64,
        unsynced: false,
    };
    let mut places = HashMap::new();
    for record in kept {
        match record {
            Kept::Record { place, sample } => {
                let new = appender.append_payload(&old.read_payload(*place)?)?;
                if let Some(sample) = sample {
                    places.entry(*sample).or_insert(new); // the index has the first, should one be there twice
                }
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

//! `SegmentFile`: reads records again, also after their file was written anew, here or by another process.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use tracing::warn;

use super::{
    HEADER_BYTES, Marker, Place, RECORD_HEADER_BYTES, marker_of, payload_at, read_whole, records, scan,
};
use crate::store::error::StoreError;
use crate::store::sample::{Asked, ContentHash, Entry};

/// A segment file, readable for as long as anybody holds it, also after its samples were evicted.
#[derive(Debug)]
pub(in crate::store) struct SegmentFile {
    pub(in crate::store) id: u64,
    pub(in crate::store) path: PathBuf,
    pub(super) marker: Marker,
    evicted: AtomicBool,
    /// What is in its place since some of its records were forgotten. Held while a record is read, and while
    /// the file is replaced or deleted, so that nobody reads the new file by the old places.
    replaced: RwLock<Option<Arc<Replaced>>>,
}

/// What took the place of a segment file.
#[derive(Debug)]
pub(super) struct Replaced {
    /// None: every record is gone.
    pub(super) by: Option<Arc<SegmentFile>>,
    /// Where the samples that stay lie in it.
    pub(super) places: HashMap<ContentHash, Place>,
}

impl SegmentFile {
    pub(super) fn new(id: u64, path: PathBuf, marker: Marker) -> Self {
        Self {
            id,
            path,
            marker,
            evicted: AtomicBool::new(false),
            replaced: RwLock::new(None),
        }
    }

    /// Reads one sample again, and checks it again; where another file has taken the place of this one, from
    /// there.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Damaged`] when the disk has changed it; [`StoreError::Forgotten`].
    pub(in crate::store) fn read(&self, content: ContentHash, place: Place) -> Result<Asked, StoreError> {
        let error = match self.read_here(place) {
            Ok(payload) => return self.sample(content, place, &payload),
            Err(error) => error,
        };
        let Some(replaced) = self.replaced_since()? else {
            return Err(error);
        };
        match (&replaced.by, replaced.places.get(&content)) {
            (Some(file), Some(place)) => file.read(content, *place),
            _ => Err(self.forgotten()),
        }
    }

    fn read_here(&self, place: Place) -> Result<Vec<u8>, StoreError> {
        let replaced = self.replaced.read().unwrap_or_else(PoisonError::into_inner);
        if replaced.is_some() {
            return Err(self.forgotten());
        }
        self.read_payload(place)
    }

    pub(super) fn read_payload(&self, place: Place) -> Result<Vec<u8>, StoreError> {
        let file = File::open(&self.path).map_err(StoreError::io("open", &self.path))?;
        let mut bytes = vec![0; RECORD_HEADER_BYTES + place.length as usize];
        file.read_exact_at(&mut bytes, place.offset)
            .map_err(StoreError::io("read", &self.path))?;
        if payload_at(&bytes, 0, &self.marker).is_none() {
            return Err(self.damaged(place, "its checksum is wrong".to_owned()));
        }
        bytes.drain(..RECORD_HEADER_BYTES);
        Ok(bytes)
    }

    fn sample(&self, content: ContentHash, place: Place, payload: &[u8]) -> Result<Asked, StoreError> {
        let entry = Entry::from_bytes(payload).map_err(|reason| self.damaged(place, reason))?;
        match entry.into_sample() {
            Some(asked) if asked.sample.content == content.0 => Ok(asked),
            Some(_) => Err(self.damaged(place, "another sample is in its place".to_owned())),
            None => Err(self.damaged(place, "no sample is in its place".to_owned())),
        }
    }

    /// What has taken the place of this file, if anything has. Another process says so by the marker only, so
    /// its file is read as a whole, once.
    fn replaced_since(&self) -> Result<Option<Arc<Replaced>>, StoreError> {
        let mut replaced = self.replacing();
        if replaced.is_none() && self.is_of_another_marker()? {
            let mut places = HashMap::new();
            let scanned = scan(&self.path, self.id, |place, entry| {
                if !entry.is_note() {
                    places.entry(ContentHash(entry.content())).or_insert(place);
                }
            });
            let by = scanned?.map(|scan| scan.file);
            *replaced = by.map(|by| Arc::new(Replaced { by: Some(by), places }));
        }
        Ok(replaced.clone())
    }

    fn is_of_another_marker(&self) -> Result<bool, StoreError> {
        let mut header = [0; HEADER_BYTES];
        let mut file = File::open(&self.path).map_err(StoreError::io("open", &self.path))?;
        let is_whole = file.read_exact(&mut header).is_ok();
        Ok(is_whole && marker_of(&header).is_some_and(|(marker, _)| marker != self.marker))
    }

    /// Calls `found` with every record that is whole, in order, also when the header is not.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::NotASegment`].
    pub(in crate::store) fn for_each(&self, mut found: impl FnMut(Place, Entry)) -> Result<(), StoreError> {
        records(&read_whole(&self.path)?, &self.marker, &mut found);
        Ok(())
    }

    /// Puts another file in the place of this one: `put` does so on disk.
    pub(super) fn replace(
        &self,
        replaced: Replaced,
        put: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut place = self.replacing();
        put()?;
        *place = Some(Arc::new(replaced));
        Ok(())
    }

    fn replacing(&self) -> RwLockWriteGuard<'_, Option<Arc<Replaced>>> {
        self.replaced.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes the file now, whoever holds it.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(in crate::store) fn delete(&self) -> Result<(), StoreError> {
        let nothing = Replaced {
            by: None,
            places: HashMap::new(),
        };
        self.replace(nothing, || {
            std::fs::remove_file(&self.path).map_err(StoreError::io("delete", &self.path))
        })?;
        self.evicted.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Deletes the file as soon as nobody holds it any more.
    pub(in crate::store) fn evict(&self) {
        self.evicted.store(true, Ordering::Relaxed);
    }

    fn forgotten(&self) -> StoreError {
        StoreError::Forgotten {
            path: self.path.clone(),
        }
    }

    fn damaged(&self, place: Place, reason: String) -> StoreError {
        StoreError::Damaged {
            path: self.path.clone(),
            offset: place.offset,
            reason,
        }
    }
}

impl Drop for SegmentFile {
    fn drop(&mut self) {
        if self.evicted.load(Ordering::Relaxed)
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != ErrorKind::NotFound
        {
            warn!(%error, path = %self.path.display(), "failed to delete an evicted segment; the next start does");
        }
    }
}

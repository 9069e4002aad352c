//! Weight files in memory without being read into it.
//!
//! A large file's tensors are views of the mapping where their dtype is the wanted one: nothing is copied,
//! pages come from disk when they are first used, and all models of one process that open the same file share
//! them. Torch does not say when the last view is gone, so a file that was ever viewed stays mapped until the
//! process ends; opened again, it is the same mapping. What is copied out instead (converted, joined with
//! others, sent to a GPU) gives its pages back at once, so that a load never holds a tensor twice.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{Advice, MmapMut, MmapOptions, UncheckedAdvice};
use tch::{Device, Kind, TchError, Tensor};

/// Smaller files are copied: they would not be worth a mapping that stays.
pub(super) const VIEWED_BYTES_MIN: usize = 64 << 20; // 64 MiB

/// Mappings that tensors look into, and the files they are of. Never emptied.
static VIEWED: Mutex<Vec<(Identity, Arc<WeightMap>)>> = Mutex::new(Vec::new());

/// What distinguishes one file's content from another's: device, inode, length, times of modification and of
/// change.
type Identity = (u64, u64, u64, (i64, i64), (i64, i64));

/// A mapped file.
#[derive(Debug)]
pub(super) struct WeightMap {
    /// Private and copy-on-write: whoever writes into a view changes neither the file nor crashes.
    bytes: MmapMut,
    identity: Identity,
}

impl WeightMap {
    /// Maps a file, or finds the mapping that is there already.
    pub(super) fn open(path: &Path) -> std::io::Result<Arc<Self>> {
        let file = File::open(path)?;
        let about = file.metadata()?;
        let identity = (
            about.dev(),
            about.ino(),
            about.len(),
            (about.mtime(), about.mtime_nsec()),
            (about.ctime(), about.ctime_nsec()),
        );
        let viewed = VIEWED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, map)) = viewed.iter().find(|(known, _)| *known == identity) {
            return Ok(map.clone());
        }
        // SAFETY: the mapping is private, and nobody truncates published weights in place (the documented
        // condition on `Checkpoint`).
        let bytes = unsafe { MmapOptions::new().no_reserve_swap().map_copy(&file) }?;
        Ok(Arc::new(Self { bytes, identity }))
    }

    /// The whole file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A tensor that looks at a range of the file; none where its numbers are not aligned.
    pub(super) fn view(self: &Arc<Self>, range: &Range<usize>, shape: &[i64], dtype: Kind) -> Option<Tensor> {
        let data = self.bytes[range.clone()].as_ptr();
        if data.align_offset(dtype.elt_size_in_bytes().max(1)) != 0 {
            return None;
        }
        let mut viewed = VIEWED.lock().unwrap_or_else(PoisonError::into_inner);
        if !viewed.iter().any(|(known, _)| *known == self.identity) {
            viewed.push((self.identity, self.clone()));
        }
        // A hint only; pages come when they are used, with it or without.
        let _ = self
            .bytes
            .advise_range(Advice::WillNeed, range.start, range.len());
        self.look(range, shape, dtype).ok()
    }

    /// Copies a range out, converted and placed, and gives its pages back.
    pub(super) fn copy(
        &self,
        range: &Range<usize>,
        shape: &[i64],
        found: Kind,
        wanted: (Kind, Device),
    ) -> Result<Tensor, TchError> {
        let mut copy = Tensor::f_empty(shape, wanted)?;
        self.copy_into(range, found, &mut copy)?;
        Ok(copy)
    }

    /// As [`copy`](Self::copy), into a tensor of the range's shape.
    pub(super) fn copy_into(
        &self,
        range: &Range<usize>,
        found: Kind,
        target: &mut Tensor,
    ) -> Result<(), TchError> {
        let data = self.bytes[range.clone()].as_ptr();
        let shape = target.size();
        let source = if data.align_offset(found.elt_size_in_bytes().max(1)) == 0 {
            self.look(range, &shape, found)?
        } else {
            Tensor::f_from_data_size(&self.bytes[range.clone()], &shape, found)?
        };
        target.f_copy_(&source)?;
        drop(source);
        self.release(range);
        Ok(())
    }

    /// A tensor over aligned bytes of the mapping, which the caller keeps alive for as long as the tensor
    /// lives.
    fn look(&self, range: &Range<usize>, shape: &[i64], dtype: Kind) -> Result<Tensor, TchError> {
        let count: i64 = shape.iter().product();
        assert_eq!(
            usize::try_from(count).map(|count| count * dtype.elt_size_in_bytes()),
            Ok(range.len()),
            "the header was checked against the shape"
        );
        // SAFETY: the bytes lie within the mapping, are as many as the shape needs, and are aligned (both
        // callers checked). `view` has put the mapping where it is never dropped; `copy_into` drops the
        // tensor before it returns. Writes through the tensor go to private pages.
        unsafe { Tensor::f_from_blob(self.bytes[range.clone()].as_ptr(), shape, &[], dtype, Device::Cpu) }
    }

    /// Gives the pages of a range back to the system; read again, they come from the file again.
    pub(super) fn release(&self, range: &Range<usize>) {
        // Whole pages only: their neighbours may be in use.
        let start = range.start.next_multiple_of(PAGE_BYTES);
        let end = range.end / PAGE_BYTES * PAGE_BYTES;
        if start < end {
            // SAFETY: nothing was ever written to these pages (weights are frozen), so dropping them loses
            // nothing: the file has the same bytes. Where it fails, memory is held for longer.
            let _ = unsafe {
                self.bytes
                    .unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start)
            };
        }
    }
}

/// A multiple of every page size in use (4, 16 and 64 KiB).
const PAGE_BYTES: usize = 64 << 10;

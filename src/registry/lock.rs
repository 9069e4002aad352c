//! The lock around changes of the `current` pointer: one writer at a time, across threads and processes.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use super::RegistryError;

/// Name of the lock file in the registry's folder.
const LOCK: &str = ".lock";
/// Longest wait for another writer, who needs no longer than it takes to hash a version.
pub(super) const WAIT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Takes the lock; it is free again when the file is dropped, or its process ends.
///
/// # Errors
/// [`RegistryError::Busy`] after [`WAIT`]; [`RegistryError::Io`].
pub(super) fn acquire(root: &Path) -> Result<File, RegistryError> {
    let path = root.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(RegistryError::io("open", &path))?;
    let deadline = Instant::now() + WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(POLL_INTERVAL),
            Err(TryLockError::WouldBlock) => return Err(RegistryError::Busy { lock: path }),
            Err(TryLockError::Error(source)) => return Err(RegistryError::io("lock", &path)(source)),
        }
    }
}

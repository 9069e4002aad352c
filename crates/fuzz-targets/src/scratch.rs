//! Temporary folders, for parsers that read files, and the settings of a store in one.

use std::path::Path;

use speechverse::store::config::{FsyncPolicy, StoreConfig};
use tempfile::TempDir;

/// A folder in memory where the system has one: most of a target's time would else go to the disk.
pub(crate) fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    made.expect("a temporary folder")
}

/// Writes the file, with the folders above it.
pub(crate) fn write(path: &Path, content: &[u8]) {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).expect("a temporary folder can be written");
    }
    std::fs::write(path, content).expect("a temporary folder can be written");
}

/// The settings of a store in `dir`, without waiting for the disk.
pub(crate) fn store_config(dir: &Path) -> StoreConfig {
    StoreConfig {
        dir: dir.to_owned(),
        fsync: FsyncPolicy::Interval,
        ..StoreConfig::default()
    }
}

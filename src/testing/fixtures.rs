//! Files that the tests bring along.

use std::path::{Path, PathBuf};

/// A file or folder of `tests/fixtures`. The variable is for a test binary that runs on a machine where it
/// was not built.
pub fn fixture(name: &str) -> PathBuf {
    let root = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).to_owned(), PathBuf::from);
    root.join("tests/fixtures").join(name)
}

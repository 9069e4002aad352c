//! Real checkpoints, which only some machines have.

use std::path::{Path, PathBuf};

/// The folder of a real model: below `SPEECHVERSE_MODELS`, else below `models` in the repository.
///
/// When it is not there, reports `test` as skipped, by name, and returns none.
pub fn real_model(test: &str, name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("SPEECHVERSE_MODELS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("models"),
        PathBuf::from,
    );
    let folder = root.join(name);
    if folder.join("model.safetensors").exists() {
        return Some(folder);
    }
    let why = format!(
        "no `{name}` in `{}`; `speechverse models fetch` gets it",
        root.display()
    );
    super::skip(test, &why);
    None
}

//! Tests that need what is missing here say so by name.

use std::io::Write;

/// Reports that the test `name` could not run here, and why.
///
/// Prints `SKIPPED: name: why` and, when the environment names a file in `SPEECHVERSE_SKIPS`, appends the
/// line to it, so that `make test` can list every skipped test at its end.
#[expect(
    clippy::print_stderr,
    reason = "the line is for the person who runs the tests"
)]
pub fn skip(name: &str, why: &str) {
    let line = format!("SKIPPED: {name}: {why}");
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("SPEECHVERSE_SKIPS") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        if let Ok(mut file) = file {
            let _ = writeln!(file, "{line}");
        }
    }
}

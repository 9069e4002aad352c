//! Commands that have to succeed.

use std::process::Command;

/// Runs a command to its end; its standard output. Fails with what it says on standard error.
pub(crate) fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

//! The `speechverse` program.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use speechverse_pipelines::cli::Cli;
use speechverse_pipelines::commands::{self, Failure};
use speechverse_pipelines::output::OutputError;

fn main() -> ExitCode {
    // Before anything else: it may start the program anew.
    speechverse::nn::accel::ensure_passive_openmp();
    speechverse::nn::accel::keep_freed_memory();
    speechverse::nn::accel::load_cuda();
    let result = match Cli::try_parse() {
        Ok(cli) => commands::run(cli),
        Err(asked) if !asked.use_stderr() => print_help(&asked),
        Err(wrong) => {
            let _ = wrong.print(); // nothing can be done where standard error is full
            return ExitCode::from(2);
        }
    };
    let (code, error) = match result {
        Ok(()) | Err(Failure::ReaderGone) => return ExitCode::SUCCESS,
        Err(Failure::Usage(error)) => (2, error),
        Err(Failure::Work(error)) => (1, error),
    };
    // The last words of a command, whatever its log level; not `eprintln`, which panics where they cannot be
    // written.
    let _ = writeln!(std::io::stderr(), "speechverse: {}", in_full(&error));
    ExitCode::from(code)
}

/// Writes the help or the version that was asked for.
fn print_help(asked: &clap::Error) -> Result<(), Failure> {
    let written = asked.print().and_then(|()| std::io::stdout().flush());
    Ok(written.map_err(OutputError::from)?)
}

/// The whole chain: what, where, and why. Where a message ends with its cause, the cause is not said again.
fn in_full(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_its_message_ends_with_is_said_once() {
        #[derive(Debug)]
        struct Unreadable(std::io::Error);
        impl std::fmt::Display for Unreadable {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "cannot read `a`: {}", self.0)
            }
        }
        impl std::error::Error for Unreadable {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }

        let error = anyhow::Error::new(Unreadable(std::io::Error::other("gone"))).context("the run failed");

        assert_eq!(in_full(&error), "the run failed: cannot read `a`: gone");
    }
}

//! The `speechverse` program.

use std::process::ExitCode;

use clap::Parser;
use speechverse_pipelines::cli::Cli;
use speechverse_pipelines::commands::{self, Failure};

#[expect(
    clippy::print_stderr,
    reason = "the last words of a command, whatever its log level"
)]
fn main() -> ExitCode {
    // Before anything else: it may start the program anew.
    speechverse::nn::accel::ensure_passive_openmp();
    speechverse::nn::accel::load_cuda();
    let cli = Cli::parse();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let (code, error) = match failure {
                Failure::Usage(error) => (2, error),
                Failure::Work(error) => (1, error),
            };
            eprintln!("speechverse: {}", in_full(&error));
            ExitCode::from(code)
        }
    }
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

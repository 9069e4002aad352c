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
            // The whole chain: what, where, and why.
            eprintln!("speechverse: {error:#}");
            ExitCode::from(code)
        }
    }
}

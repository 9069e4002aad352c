//! One file a command; what is common to them.

mod adapters;
mod ask;
mod bench;
mod clients;
mod data;
mod dead_letters;
mod doctor;
mod eval;
mod models;
mod pretrain;
mod probe;
mod publish;
mod samples;
mod serve;
mod tasks;
mod train;

use speechverse::telemetry::config::LogConfig;
use speechverse::telemetry::logs;

use crate::cli::{Cli, Command};
use crate::output::OutputError;

/// How a command failed: which exit code, and the words for standard error.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 2: the command line or a setting is wrong.
    Usage(anyhow::Error),
    /// Exit code 1: the work failed.
    Work(anyhow::Error),
    /// Exit code 0, and no words: whoever read the output has seen enough.
    ReaderGone,
}

impl Failure {
    /// A wrong command line or setting.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::Usage(error.into())
    }
}

impl From<anyhow::Error> for Failure {
    /// An [`OutputError`] anywhere in the chain keeps its meaning.
    fn from(error: anyhow::Error) -> Self {
        match error.downcast_ref() {
            Some(OutputError::ReaderGone) => Self::ReaderGone,
            _ => Self::Work(error),
        }
    }
}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Self {
        anyhow::Error::new(error).into()
    }
}

/// Runs a command to its end.
///
/// # Errors
/// [`Failure`] with the exit code and the reason.
pub fn run(cli: Cli) -> Result<(), Failure> {
    if !matches!(cli.command, Command::Serve(_)) {
        // Standard variables ask for traces of `serve`; other commands have no requests to trace.
        logs::init_lines(&LogConfig::default());
    }
    match cli.command {
        Command::Serve(args) => serve::serve(&args),
        Command::Ask(args) => ask::ask(&args),
        Command::Publish(args) => publish::publish(&args),
        Command::Results(args) => clients::results(&args),
        Command::Label(args) => clients::label(&args),
        Command::Retrain(args) => clients::retrain(&args),
        Command::DeadLetters(command) => dead_letters::dead_letters(&command),
        Command::Train(args) => train::train(&args),
        Command::Pretrain(args) => pretrain::pretrain(&args),
        Command::Eval(args) => eval::eval(&args),
        Command::Adapters(command) => adapters::run(command),
        Command::Samples(command) => samples::samples(&command),
        Command::Tasks(command) => tasks::tasks(command),
        Command::Data(command) => data::data(command),
        Command::Models(command) => models::models(command),
        Command::Bench(command) => bench::bench(&command),
        Command::Probe(command) => probe::probe(command),
        Command::Asyncapi(args) => clients::asyncapi(&args),
        Command::CheckConfig(args) => doctor::check_config(&args),
        Command::Doctor(args) => doctor::doctor(&args),
    }
}

/// The runtime of commands that wait for other machines.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    use anyhow::Context;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// Reads a file, or standard input for `-`.
fn read_input(path: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    use std::io::Read;

    use anyhow::Context;
    if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin()
            .lock()
            .read_to_end(&mut bytes)
            .context("cannot read standard input")?;
        return Ok(bytes);
    }
    std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))
}

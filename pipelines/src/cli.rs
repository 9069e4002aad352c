//! The command line: `speechverse COMMAND`. Exit codes: 0 done, 1 the work failed, 2 the command line or a
//! setting is wrong. Answers go to standard output, logs to standard error.

mod answering;
mod bench;
mod clients;
mod dead_letters;
mod models;
mod samples;
mod shared;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use answering::{Ask, Decoding, Eval, PromptSet};
pub use bench::{ArrivalKind, Bench, BenchServe};
pub use clients::{Label, Publish, Results, Retrain};
pub use models::{FloatKind, Models, Probe, WindowChoice};
pub use shared::{Broker, Form, Given, OptionalSettings, SettingsFile};

pub use dead_letters::{DeadLetterFilter, DeadLetters, Redrive};
pub use samples::{Forget, SampleFilter, Samples};

use crate::role::Role;

/// Runs SpeechVerse, a speech encoder and an instruction LLM joined by a few learnable parameters, as a
/// living pipeline on Kafka topics: it answers, keeps labelled samples, fine-tunes on them, and swaps the
/// result in.
#[derive(Debug, Parser)]
#[command(name = "speechverse", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the pipeline: requests in, answers out, until a signal.
    Serve(Serve),
    /// Answer an instruction about audio files, without Kafka.
    Ask(Ask),
    /// Publish audio files as requests.
    Publish(Publish),
    /// Print answers as they come.
    Results(Results),
    /// Send a labelled sample, or the correction of an earlier answer.
    Label(Label),
    /// Order a fine-tuning cycle.
    Retrain(Retrain),
    /// Look into the records that could not be answered, and publish them again.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Run a curriculum from manifests, offline.
    Train(Train),
    /// Pre-train a BEST-RQ speech encoder on recordings without labels.
    Pretrain(Pretrain),
    /// Answer every recording of a manifest and score the answers, task by task, with intervals.
    Eval(Eval),
    /// Look into the adapter registry.
    #[command(subcommand)]
    Adapters(Adapters),
    /// Look into the labelled samples that the pipeline keeps; export, import and forget some.
    #[command(subcommand)]
    Samples(Samples),
    /// Look into the configured tasks: their prompts, labels, answers.
    #[command(subcommand)]
    Tasks(Tasks),
    /// Make manifests of corpora, and prove that what is tested is not learned.
    #[command(subcommand)]
    Data(Data),
    /// Get, convert and inspect models.
    #[command(subcommand)]
    Models(Models),
    /// Measure a service under load.
    #[command(subcommand)]
    Bench(Bench),
    /// Run one network on given input and write its outputs as safetensors, to compare with a reference.
    #[command(subcommand)]
    Probe(Probe),
    /// Print the AsyncAPI 3 document of the topics.
    Asyncapi(OptionalSettings),
    /// Validate a settings file and print the effective settings.
    CheckConfig(SettingsFile),
    /// Say what this machine offers and what is wrong with it.
    Doctor(Doctor),
}

/// `speechverse serve`.
#[derive(Args, Debug)]
pub struct Serve {
    /// Settings file (TOML); environment variables SPEECHVERSE__TABLE__KEY override it.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Start a broker inside this process; any Kafka client can reach it at the printed address. In memory
    /// only.
    #[arg(long)]
    pub embedded_broker: bool,
    /// Which half of the pipeline this process runs. Processes of all roles share `adapters.dir`, whose
    /// current version all serve; one of them learns.
    #[arg(long, value_enum, value_name = "ROLE", default_value_t = Role::All)]
    pub role: Role,
}

/// `speechverse train`.
#[derive(Args, Debug)]
pub struct Train {
    /// Training settings (TOML): models, manifests, curriculum.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Go on from the run's latest checkpoint.
    #[arg(long)]
    pub resume: bool,
}

/// `speechverse pretrain`.
#[derive(Args, Debug)]
pub struct Pretrain {
    /// Pre-training settings (TOML): encoder, labels, masks, manifests, optimiser.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Go on from the run's latest checkpoint.
    #[arg(long)]
    pub resume: bool,
}

/// `speechverse adapters`.
#[derive(Debug, Subcommand)]
pub enum Adapters {
    /// List the versions, the current one marked.
    List {
        /// Where the registry is named.
        #[command(flatten)]
        settings: OptionalSettings,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Print the manifest of a version as JSON, once its files are verified.
    Show {
        /// Where the registry is named.
        #[command(flatten)]
        settings: OptionalSettings,
        /// Version instead of the current one.
        #[arg(value_name = "VERSION")]
        version: Option<String>,
    },
    /// Print in what the manifests of two versions differ.
    Diff {
        /// Where the registry is named.
        #[command(flatten)]
        settings: OptionalSettings,
        /// One version.
        #[arg(value_name = "VERSION")]
        one: String,
        /// The other version; without it the current one.
        #[arg(value_name = "OTHER")]
        other: Option<String>,
    },
    /// Make a version the current one.
    ///
    /// Pipelines that run on the same registry answer new requests with it within seconds; the control
    /// command `promote` does the same and has an event.
    Promote {
        /// Where the registry and the two networks are named.
        #[command(flatten)]
        settings: OptionalSettings,
        /// Which version.
        #[arg(value_name = "VERSION")]
        version: String,
    },
    /// Make the version before the current one current again.
    ///
    /// Pipelines that run on the same registry answer new requests with it within seconds; the control
    /// command `rollback` does the same and has an event.
    Rollback {
        /// Where the registry and the two networks are named.
        #[command(flatten)]
        settings: OptionalSettings,
    },
    /// Write a version's low-rank updates of the language model as a folder that the `peft` library loads.
    Export {
        /// Where the registry is named.
        #[command(flatten)]
        settings: OptionalSettings,
        /// Version instead of the current one.
        #[arg(long, value_name = "VERSION")]
        adapter: Option<String>,
        /// Folder to make.
        #[arg(value_name = "DIR")]
        out: PathBuf,
    },
}

/// `speechverse tasks`.
#[derive(Debug, Subcommand)]
pub enum Tasks {
    /// List the tasks.
    List {
        /// Where the folder of task files is named.
        #[command(flatten)]
        settings: OptionalSettings,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show what a task (or several: `asr,intent`) asks and how it is answered, its prompts filled in.
    Show {
        /// Where the folder of task files is named.
        #[command(flatten)]
        settings: OptionalSettings,
        /// What is given beside the task's name.
        #[command(flatten)]
        given: Given,
        /// Show every prompt, trained and held out, not only the default one.
        #[arg(long)]
        prompts: bool,
        /// Leave descriptions out of the list of labels.
        #[arg(long)]
        bare_labels: bool,
        /// Names of tasks, commas between them.
        #[arg(value_name = "TASK")]
        task: String,
    },
}

/// `speechverse data`.
#[derive(Debug, Subcommand)]
pub enum Data {
    /// Write manifests for every task from a folder of corpora (`CORPUS/manifest.jsonl`, and a README whose
    /// table names each corpus's origin and licence).
    Import {
        /// The folder.
        folder: PathBuf,
        /// Folder for the manifests: `TASK_train.jsonl`, `TASK_valid.jsonl`, `TASK_test.jsonl`, and
        /// `sources.json`.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Manifests whose `text`s no training row may say.
        #[arg(long = "held-out", value_name = "FILE", num_args = 1..)]
        held_out: Vec<PathBuf>,
    },
    /// Prove that no voice, sentence or recording of the test lines is in the lines for training and
    /// validation; exit code 1 and the list of those that are.
    Check {
        /// Manifests whose lines name their `split`.
        #[arg(required = true, value_name = "MANIFEST")]
        manifests: Vec<PathBuf>,
    },
}

/// `speechverse doctor`.
#[derive(Args, Debug)]
pub struct Doctor {
    /// Settings file to check against.
    #[command(flatten)]
    pub settings: OptionalSettings,
}

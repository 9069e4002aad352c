//! Commands that write to topics or read from them.

use std::path::PathBuf;

use clap::Args;
use speechverse::wire::request::Priority;

use super::shared::{Broker, Form, Given, yes_or_no};

/// `speechverse publish`.
#[derive(Args, Debug)]
pub struct Publish {
    /// How to reach the topics.
    #[command(flatten)]
    pub broker: Broker,
    /// What to do with the audio; the service's default when absent.
    #[arg(long, value_name = "TEXT")]
    pub instruction: Option<String>,
    /// Name of a configured task, or of several: `asr,intent`.
    #[arg(long, value_name = "NAME")]
    pub task: Option<String>,
    /// What is given beside instruction and task.
    #[command(flatten)]
    pub given: Given,
    /// Whether the answer is constrained to the labels (those given, else the task's); without it, `no` where
    /// an instruction of your own lists no labels.
    #[arg(long, value_name = "YES|NO", value_parser = yes_or_no)]
    pub constrain: Option<bool>,
    /// What form the answer has.
    #[command(flatten)]
    pub form: Form,
    /// `interactive`, or `bulk`: it may wait while there is something interactive.
    #[arg(long, value_name = "PRIORITY", default_value = "interactive")]
    pub priority: Priority,
    /// Give a request up that is not answered so many seconds after it is published.
    #[arg(long, value_name = "SECONDS")]
    pub deadline: Option<u32>,
    /// Wait for the answers and print them.
    #[arg(long)]
    pub wait: bool,
    /// Manifest (JSON lines) with the right answers, and with task, labels and fields where the command line
    /// names neither task nor instruction: prints each answer beside the right one, and a score for each
    /// task; repeat for more; implies --wait.
    #[arg(long, value_name = "FILE")]
    pub references: Vec<PathBuf>,
    /// Longest wait for the answers, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,
    /// Send each file in chunks as fast as it would be spoken.
    #[arg(long)]
    pub stream: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    pub json: bool,
    /// Audio files, or folders of them.
    #[arg(required = true, value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
}

/// `speechverse results`.
#[derive(Args, Debug)]
pub struct Results {
    /// How to reach the topics.
    #[command(flatten)]
    pub broker: Broker,
    /// Go on waiting for new answers instead of stopping at the end of the topic.
    #[arg(long)]
    pub follow: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    pub json: bool,
}

/// `speechverse label`.
#[derive(Args, Debug)]
pub struct Label {
    /// How to reach the topics.
    #[command(flatten)]
    pub broker: Broker,
    /// Audio files, each a labelled sample with the same right answer.
    #[arg(
        value_name = "FILE",
        required_unless_present = "request",
        conflicts_with = "request"
    )]
    pub files: Vec<PathBuf>,
    /// Id of an answered request whose answer is corrected.
    #[arg(long, value_name = "ID")]
    pub request: Option<String>,
    /// `ce_source` of that request, where requests of several sources have that id.
    #[arg(long, value_name = "SOURCE", requires = "request")]
    pub request_source: Option<String>,
    /// The instruction that the target answers.
    #[arg(long, value_name = "TEXT")]
    pub instruction: Option<String>,
    /// Name of a configured task, or of several: `asr,intent`.
    #[arg(long, value_name = "NAME")]
    pub task: Option<String>,
    /// What is given to the task's default prompt.
    #[command(flatten)]
    pub given: Given,
    /// The right answer.
    #[arg(long, value_name = "TEXT")]
    pub target: String,
}

/// `speechverse retrain`.
#[derive(Args, Debug)]
pub struct Retrain {
    /// How to reach the topics.
    #[command(flatten)]
    pub broker: Broker,
    /// Follow the cycle to its end; exit code 1 when the candidate was refused.
    #[arg(long)]
    pub wait: bool,
    /// Longest wait, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub timeout: u64,
}

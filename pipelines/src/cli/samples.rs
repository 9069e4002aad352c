//! `speechverse samples`: its commands and filters.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use speechverse::store::{SampleState, Split};

use super::shared::{Broker, OptionalSettings, time};

/// `speechverse samples`.
#[derive(Debug, Subcommand)]
pub enum Samples {
    /// List the samples, the oldest first.
    ///
    /// Can be used while a pipeline runs, as can show, select, export and forget --dry-run.
    List {
        /// Where the folder of the store is named (`store.dir`).
        #[command(flatten)]
        settings: OptionalSettings,
        /// Which ones.
        #[command(flatten)]
        filter: SampleFilter,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show everything that is known of one sample.
    Show {
        /// Where the folder of the store is named.
        #[command(flatten)]
        settings: OptionalSettings,
        /// Write its audio to this file: WAV, mono, 16 kHz, 16 bits, as it is stored.
        #[arg(long, value_name = "FILE")]
        audio: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Its id, or so many of its first digits that no other begins with them.
        #[arg(value_name = "ID", value_parser = id_digits)]
        id: String,
    },
    /// List what the next training cycle would use: which samples to learn from, which to choose the best
    /// step by, which to judge the candidate by; and say what would keep it from training or promoting.
    ///
    /// The trainer itself chooses, from all samples; filters only leave lines out.
    Select {
        /// Where the folder of the store and the trainer's settings are.
        #[command(flatten)]
        settings: OptionalSettings,
        /// Which lines.
        #[command(flatten)]
        filter: SampleFilter,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Remove samples for good: audio and texts leave the files of the store.
    ///
    /// Samples are named by ids or by filters; all states are taken, superseded and withheld ones too.
    /// While a pipeline has the store, --live orders it to forget. Only the folder of the store is changed;
    /// something of the samples may also be in:
    ///
    /// - records in the topics, until their retention deletes them;
    ///
    /// - features of the audio in a feature cache (`feature_cache.dir` of an online curriculum);
    ///
    /// - logs and checkpoints of training runs (`trainer.runs_dir`), and adapters that have learned from the
    ///   samples;
    ///
    /// - what a training cycle that runs now has read already;
    ///
    /// - requests that the pipeline remembers in memory for corrections, until others take their place or
    ///   it stops;
    ///
    /// - folders that `samples export` has written.
    Forget(Forget),
    /// Write samples as WAV files (mono, 16 kHz, 16 bits) and a manifest, `manifest.jsonl`, which `train`,
    /// `eval` and `import` read.
    ///
    /// A row's `split` is `train`, or `test` for a held-out sample; --split exports one side alone.
    /// Superseded and withheld samples are left out unless --state names them.
    /// Samples of the task `instruction` (an instruction of its own and no task) are for `train`: `eval`
    /// scores configured tasks.
    Export {
        /// Where the folder of the store is named.
        #[command(flatten)]
        settings: OptionalSettings,
        /// Which ones.
        #[command(flatten)]
        filter: SampleFilter,
        /// Folder to make, or an empty one: there the manifest comes last.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Put the labelled rows of manifests into the store.
    ///
    /// A row without an instruction gets the default one of its task. A recording that the store does not
    /// have goes to the side that the row's `split` names: `train`, or held out for `test`, `valid`, `dev`
    /// and `held_out`; without a `split` the store chooses.
    /// A row with a `written` time, as `export` writes it, never takes the place of an answer that was
    /// written later; a row without one counts as written now.
    /// The pipeline that has the store must be stopped.
    Import {
        /// Where the folders of the store and of the task files are named.
        #[command(flatten)]
        settings: OptionalSettings,
        /// Manifest (JSON lines); several may be named.
        #[arg(long = "manifest", value_name = "FILE", required = true, num_args = 1..)]
        manifests: Vec<PathBuf>,
        /// Import also what does not fit into `store.task_samples_max` or `store.bytes_max`: the oldest
        /// samples leave the store.
        #[arg(long)]
        evict: bool,
    },
}

/// `speechverse samples forget`.
#[derive(Args, Debug)]
pub struct Forget {
    /// Where the folder of the store is named, and with --live how to reach the topics.
    #[command(flatten)]
    pub broker: Broker,
    /// Only say which ones would be forgotten; can be used while a pipeline runs.
    #[arg(long)]
    pub dry_run: bool,
    /// Order the running pipeline to forget them, over the control topic, and wait until it has.
    #[arg(long, conflicts_with = "dry_run")]
    pub live: bool,
    /// With --live: longest wait for the pipeline, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,
    /// Forget every sample.
    #[arg(long, conflicts_with = "ids")]
    pub all: bool,
    /// Ids, or so many of their first digits, four at least, that no other begins with them.
    #[arg(value_name = "ID", value_parser = id_digits, conflicts_with = "limit")]
    pub ids: Vec<String>,
    /// Which ones.
    #[command(flatten)]
    pub filter: SampleFilter,
}

/// Which samples; all conditions must hold.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Filters")]
pub struct SampleFilter {
    /// Of this task; repeat for several.
    #[arg(long = "task", value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub tasks: Vec<String>,
    /// On this side: `train` or `held_out`.
    #[arg(long, value_name = "SIDE", value_parser = split)]
    pub split: Option<Split>,
    /// In this state: `in_use`, `superseded` (a later answer is in force) or `withheld` (not to be trained
    /// on); repeat for several.
    #[arg(long = "state", value_name = "STATE", value_parser = state)]
    pub states: Vec<SampleState>,
    /// Received at this time or later: RFC 3339, or so long ago (`2h`, `30min`, `1d`).
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub since: Option<Timestamp>,
    /// Received before this time: RFC 3339, or so long ago.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub until: Option<Timestamp>,
    /// Of the request of this id (`ce_id`); repeat for several.
    #[arg(long = "request", value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    pub requests: Vec<String>,
    /// Whose id begins so (to forget: four digits at least); repeat for several.
    #[arg(long = "id", value_name = "PREFIX", value_parser = id_digits)]
    pub id_prefixes: Vec<String>,
    /// At most so many, the oldest.
    #[arg(long, value_name = "NUMBER", default_value_t = usize::MAX, hide_default_value = true)]
    pub limit: usize,
}

impl SampleFilter {
    /// Whether it lets every sample through, but for the number.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
            && self.split.is_none()
            && self.states.is_empty()
            && self.since.is_none()
            && self.until.is_none()
            && self.requests.is_empty()
            && self.id_prefixes.is_empty()
    }
}

/// An id, or its first digits.
fn id_digits(text: &str) -> Result<String, String> {
    match !text.is_empty() && text.chars().all(|digit| digit.is_ascii_hexdigit()) {
        true => Ok(text.to_owned()),
        false => Err("expected hexadecimal digits, as `samples list` prints them".to_owned()),
    }
}

fn split(text: &str) -> Result<Split, String> {
    let sides = [Split::Train, Split::HeldOut];
    let found = sides.into_iter().find(|split| split.name() == text);
    found.ok_or_else(|| "expected `train` or `held_out`".to_owned())
}

fn state(text: &str) -> Result<SampleState, String> {
    let found = SampleState::ALL.into_iter().find(|state| state.name() == text);
    found.ok_or_else(|| "expected `in_use`, `superseded` or `withheld`".to_owned())
}

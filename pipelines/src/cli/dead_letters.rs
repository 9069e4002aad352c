//! `speechverse dead-letters`: its commands and filters.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use speechverse::wire::dead_letter::Reason;

use super::shared::{Broker, time};

/// `speechverse dead-letters`.
#[derive(Debug, Subcommand)]
pub enum DeadLetters {
    /// List dead letters, the oldest of each partition first, and what became of them.
    List {
        /// How to reach the topics.
        #[command(flatten)]
        broker: Broker,
        /// Which ones.
        #[command(flatten)]
        filter: DeadLetterFilter,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter: its reason and its original headers; or, with --value, write its original bytes
    /// to a file.
    Show {
        /// How to reach the topics.
        #[command(flatten)]
        broker: Broker,
        /// Write the original value to this file, byte for byte.
        #[arg(long, value_name = "FILE")]
        value: Option<PathBuf>,
        /// Its place in the dead-letter topic, as `list` prints it: PARTITION/OFFSET.
        #[arg(value_name = "PLACE", value_parser = place)]
        place: (i32, i64),
    },
    /// Publish the original records of dead letters to their topics again, each once.
    ///
    /// Without --reason and --id, only letters whose reason can pass by itself are taken, each when its
    /// back-off is over. A letter that was published again before is passed over unless --again is given.
    Redrive(Redrive),
}

/// `speechverse dead-letters redrive`.
#[derive(Args, Debug)]
pub struct Redrive {
    /// How to reach the topics.
    #[command(flatten)]
    pub broker: Broker,
    /// Which ones.
    #[command(flatten)]
    pub filter: DeadLetterFilter,
    /// Only say what would be published.
    #[arg(long)]
    pub dry_run: bool,
    /// Take letters that were published again before, too.
    #[arg(long)]
    pub again: bool,
    /// Do not wait for the end of a letter's back-off.
    #[arg(long)]
    pub now: bool,
    /// Pass over records that were tried so often already.
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    pub attempts_max: u32,
}

/// Which dead letters; all conditions must hold.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Filters")]
pub struct DeadLetterFilter {
    /// Of this reason; repeat for several.
    #[arg(long = "reason", value_name = "REASON", value_parser = reason)]
    pub reasons: Vec<Reason>,
    /// Whose record was in this topic.
    #[arg(long, value_name = "TOPIC")]
    pub topic: Option<String>,
    /// Written at this time or later: RFC 3339, or so long ago (`2h`, `30min`, `1d`).
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub since: Option<Timestamp>,
    /// Written before this time: RFC 3339, or so long ago.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub until: Option<Timestamp>,
    /// With this key.
    #[arg(long, value_name = "TEXT")]
    pub key: Option<String>,
    /// Of the request of this id (`ce_id`); repeat for several.
    #[arg(long = "id", value_name = "ID")]
    pub ids: Vec<String>,
    /// At most so many.
    #[arg(long, value_name = "NUMBER", default_value_t = usize::MAX, hide_default_value = true)]
    pub limit: usize,
}

fn reason(text: &str) -> Result<Reason, String> {
    Reason::named(text).ok_or_else(|| {
        let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        format!("expected one of {}", known.join(", "))
    })
}

fn place(text: &str) -> Result<(i32, i64), String> {
    let found = text
        .split_once('/')
        .and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)));
    found.ok_or_else(|| "expected PARTITION/OFFSET, such as 0/17".to_owned())
}

//! Arguments that several commands have.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use jiff::{Span, SpanRelativeTo, Timestamp};
use speechverse::text::StructureKind;

/// A settings file.
#[derive(Args, Clone, Debug)]
pub struct SettingsFile {
    /// Settings file of the pipeline (TOML); environment variables SPEECHVERSE__TABLE__KEY override it.
    #[arg(value_name = "FILE")]
    pub config: PathBuf,
}

/// Where the settings come from, for commands that can do without.
#[derive(Args, Clone, Debug)]
pub struct OptionalSettings {
    /// Settings file (TOML); environment variables SPEECHVERSE__TABLE__KEY override it.
    #[arg(long, value_name = "FILE", default_value = "configs/demo.toml")]
    pub config: PathBuf,
}

/// How to reach the topics.
#[derive(Args, Clone, Debug)]
pub struct Broker {
    /// Where the topics' names come from.
    #[command(flatten)]
    pub settings: OptionalSettings,
    /// Broker address `host:port`, instead of the settings'.
    #[arg(long, value_name = "HOST:PORT")]
    pub bootstrap: Option<String>,
}

/// What is given to a task beside its name.
#[derive(Args, Clone, Debug, Default)]
pub struct Given {
    /// Label, an allowed answer; repeat for each.
    #[arg(long = "label", value_name = "TEXT")]
    pub labels: Vec<String>,
    /// Value for a place of the task's prompt; repeat for each.
    #[arg(long = "field", value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub fields: Vec<(String, String)>,
}

/// The form of the answer; one of these, and without labels.
#[derive(Args, Clone, Debug, Default)]
#[group(multiple = false, conflicts_with_all = ["labels", "constrain"])]
pub struct Form {
    /// The answer is JSON that the schema in this file accepts.
    #[arg(long, value_name = "FILE")]
    pub json_schema: Option<PathBuf>,
    /// The answer is what this regular expression matches.
    #[arg(long, value_name = "PATTERN")]
    pub regex: Option<String>,
    /// The answer is a text of the grammar in this file (Lark, as llguidance reads it).
    #[arg(long, value_name = "FILE")]
    pub grammar: Option<PathBuf>,
}

impl Form {
    /// Its language and source; files are read.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn source(&self) -> anyhow::Result<Option<(StructureKind, String)>> {
        let read = |kind, path: &PathBuf| -> anyhow::Result<_> {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            Ok(Some((kind, text)))
        };
        match (&self.json_schema, &self.regex, &self.grammar) {
            (Some(path), ..) => read(StructureKind::JsonSchema, path),
            (_, Some(pattern), _) => Ok(Some((StructureKind::Regex, pattern.clone()))),
            (.., Some(path)) => read(StructureKind::Lark, path),
            _ => Ok(None),
        }
    }
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("expected NAME=VALUE, such as target_language=German")?;
    match name.trim() {
        "" => Err("the name before `=` is empty".to_owned()),
        name => Ok((name.to_owned(), value.to_owned())),
    }
}

pub(super) fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err("expected `yes` or `no`".to_owned()),
    }
}

/// A time of the calendar (RFC 3339), or so long ago.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let ago = text.parse::<Span>().ok();
    let ago = ago.and_then(|ago| ago.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
    ago.and_then(|ago| Timestamp::now().checked_sub(ago).ok())
        .ok_or_else(|| "expected a time such as 2026-01-31T12:00:00Z, or how long ago, such as 2h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_one_of_the_calendar_or_so_long_ago() {
        for (text, seconds) in [
            ("2h", 7_200),
            ("30min", 1_800),
            ("1d", 86_400),
            ("1w 1s", 604_801),
        ] {
            let found = time(text).unwrap();
            let ago = Timestamp::now().duration_since(found).as_secs();
            assert!((seconds..seconds + 60).contains(&ago), "{text}: {ago}");
        }
        assert!(time("2026-01-31T12:00:00Z").is_ok());
        for text in ["", "yesterday", "1mo", "12:00"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}

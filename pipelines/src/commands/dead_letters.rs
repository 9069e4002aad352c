//! `speechverse dead-letters list`, `show`, `redrive`: records that could not be answered.
//!
//! The topic is read twice: for the marks of earlier redrives, and then, up to where that reading ended, for
//! the letters. So only places are kept in memory, and what is written meanwhile does not count.

mod redrive;

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use speechverse::kafka::config::KafkaConfig;
use speechverse::kafka::{Read, ReadFrom, Reader};
use speechverse::wire::Record;
use speechverse::wire::dead_letter::Reason;
use speechverse::wire::redrive::{DeadLetter, Place, RedriveMark, RedriveState};

use super::clients::{BROKER_WAIT, END_WAIT, kafka};
use super::{Failure, runtime};
use crate::cli::{DeadLetterFilter, DeadLetters};
use crate::output::{self, clipped};

pub(super) fn dead_letters(command: &DeadLetters) -> Result<(), Failure> {
    match command {
        DeadLetters::List { broker, filter, json } => {
            let config = kafka(broker)?;
            runtime()?.block_on(list(&config, filter, *json))
        }
        DeadLetters::Show { broker, value, place } => {
            let config = kafka(broker)?;
            runtime()?.block_on(show(&config, *place, value.as_deref()))
        }
        DeadLetters::Redrive(args) => {
            let config = kafka(&args.broker)?;
            runtime()?.block_on(redrive::redrive(args, &config))
        }
    }
}

/// The topic as one reading found it.
struct Topic {
    /// What became of letters, by the place of their original record.
    marks: HashMap<Place, RedriveState>,
    /// By partition: the offset of its last record.
    last: HashMap<i32, i64>,
}

/// What became of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Fate {
    /// Nothing yet, and waiting does not help.
    Dead,
    /// Nothing yet: its back-off is not over.
    Waiting,
    /// Nothing yet: it may be tried again.
    Due,
    /// A redrive began, and nobody knows whether its record was published.
    InDoubt,
    /// Its record was published again.
    Redriven,
}

impl Fate {
    fn as_str(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Waiting => "waiting",
            Self::Due => "due",
            Self::InDoubt => "in_doubt",
            Self::Redriven => "redriven",
        }
    }
}

impl Topic {
    async fn read(config: &KafkaConfig) -> anyhow::Result<Self> {
        let mut topic = Self {
            marks: HashMap::new(),
            last: HashMap::new(),
        };
        let mut reader = open(config).await?;
        while let Some(record) = next(&mut reader).await? {
            topic
                .last
                .insert(record.record_offset.partition, record.record_offset.offset);
            if let Some(mark) = RedriveMark::read(&record) {
                topic.mark(mark);
            }
        }
        Ok(topic)
    }

    fn mark(&mut self, mark: RedriveMark) {
        let state = self.marks.entry(mark.record).or_insert(mark.state);
        if mark.state == RedriveState::Done {
            *state = RedriveState::Done;
        }
    }

    fn fate(&self, letter: &DeadLetter, now: Timestamp) -> Fate {
        match (self.marks.get(&letter.record), letter.retry_after) {
            (Some(RedriveState::Done), _) => Fate::Redriven,
            (Some(RedriveState::Begun), _) => Fate::InDoubt,
            (None, _) if !letter.can_heal() => Fate::Dead,
            (None, Some(time)) if time > now => Fate::Waiting,
            (None, _) => Fate::Due,
        }
    }

    /// Whether a record was there when the marks were read.
    fn has(&self, record: &Record) -> bool {
        let place = &record.record_offset;
        self.last
            .get(&place.partition)
            .is_some_and(|last| place.offset <= *last)
    }
}

async fn open(config: &KafkaConfig) -> anyhow::Result<Reader> {
    Reader::open(
        config,
        &config.topics.dead_letters,
        ReadFrom::Beginning,
        BROKER_WAIT,
    )
    .await
    .context("cannot read dead letters")
}

/// The next record; `None` at the end of the topic.
async fn next(reader: &mut Reader) -> anyhow::Result<Option<Record>> {
    match reader.next(END_WAIT).await.context("cannot read dead letters")? {
        Read::Record(record) => Ok(Some(record)),
        Read::CaughtUp => Ok(None),
        Read::TimedOut => anyhow::bail!(
            "no record and no end of the topic within {} s",
            END_WAIT.as_secs()
        ),
    }
}

/// Reads the letters that a filter lets through.
struct Letters<'f> {
    reader: Reader,
    filter: &'f DeadLetterFilter,
    left: usize,
}

impl<'f> Letters<'f> {
    async fn open(config: &KafkaConfig, filter: &'f DeadLetterFilter) -> anyhow::Result<Self> {
        Ok(Self {
            reader: open(config).await?,
            filter,
            left: filter.limit,
        })
    }

    /// The next letter that was there when `topic` was read and that `wanted` takes.
    async fn next(
        &mut self,
        topic: &Topic,
        mut wanted: impl FnMut(&DeadLetter) -> bool,
    ) -> anyhow::Result<Option<(Record, DeadLetter)>> {
        while self.left > 0 {
            let Some(record) = next(&mut self.reader).await? else {
                break;
            };
            let Some(letter) = DeadLetter::read(&record) else {
                continue;
            };
            if topic.has(&record) && passes(self.filter, &record, &letter) && wanted(&letter) {
                self.left -= 1;
                return Ok(Some((record, letter)));
            }
        }
        Ok(None)
    }
}

fn passes(filter: &DeadLetterFilter, record: &Record, letter: &DeadLetter) -> bool {
    let time = written(record);
    let of_reason = |reason: &Reason| reason.as_str() == letter.reason;
    (filter.reasons.is_empty() || filter.reasons.iter().any(of_reason))
        && filter
            .topic
            .as_ref()
            .is_none_or(|topic| *topic == letter.record.topic)
        && filter
            .since
            .is_none_or(|since| time.is_some_and(|time| time >= since))
        && filter
            .until
            .is_none_or(|until| time.is_some_and(|time| time < until))
        && filter
            .key
            .as_ref()
            .is_none_or(|key| record.key.as_deref() == Some(key.as_bytes()))
        && (filter.ids.is_empty() || filter.ids.contains(&letter.id))
}

/// When a letter was written.
fn written(record: &Record) -> Option<Timestamp> {
    Timestamp::from_millisecond(record.timestamp_ms?).ok()
}

fn place(record: &Record) -> String {
    format!(
        "{}/{}",
        record.record_offset.partition, record.record_offset.offset
    )
}

/// A letter as `list --json` prints it.
#[derive(Serialize)]
struct Row<'r> {
    place: String,
    time: Option<Timestamp>,
    fate: Fate,
    reason: &'r str,
    stage: &'r str,
    message: &'r str,
    attempts: u32,
    retry_after: Option<Timestamp>,
    record: &'r Place,
    id: &'r str,
    /// Bytes that are not UTF-8 are replaced.
    key: Option<String>,
    value_bytes: usize,
    /// What of the record the letter does not hold.
    omitted: &'r [&'static str],
}

async fn list(config: &KafkaConfig, filter: &DeadLetterFilter, json: bool) -> Result<(), Failure> {
    let topic = Topic::read(config).await?;
    let now = Timestamp::now();
    let mut letters = Letters::open(config, filter).await?;
    let heading = [
        "place", "time", "fate", "reason", "attempts", "record", "id", "message",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    while let Some((record, letter)) = letters.next(&topic, |_| true).await? {
        let row = Row {
            place: place(&record),
            time: written(&record),
            fate: topic.fate(&letter, now),
            reason: &letter.reason,
            stage: &letter.stage,
            message: &letter.message,
            attempts: letter.attempts,
            retry_after: letter.retry_after,
            record: &letter.record,
            id: &letter.id,
            key: record
                .key
                .as_deref()
                .map(|key| String::from_utf8_lossy(key).into_owned()),
            value_bytes: record.value.as_ref().map_or(0, Bytes::len),
            omitted: &letter.omitted,
        };
        if json {
            output::line(serde_json::to_string(&row).context("a row is always JSON")?)?;
        } else {
            rows.push(vec![
                row.place,
                row.time.map_or_else(String::new, |time| time.to_string()),
                row.fate.as_str().to_owned(),
                clipped(row.reason, 24),
                row.attempts.to_string(),
                clipped(&row.record.to_string(), 48),
                clipped(&row.id.escape_debug().to_string(), 32),
                clipped(&row.message.escape_debug().to_string(), 80),
            ]);
        }
    }
    if !json {
        output::table(&rows, &[4])?;
    }
    Ok(())
}

async fn show(
    config: &KafkaConfig,
    (partition, offset): (i32, i64),
    value: Option<&Path>,
) -> Result<(), Failure> {
    let name = &config.topics.dead_letters;
    let found = Reader::fetch(config, name, partition, offset, BROKER_WAIT)
        .await
        .context("cannot read the dead letter")?;
    let record = found.with_context(|| format!("there is no record at {partition}/{offset} of `{name}`"))?;
    let letter = DeadLetter::read(&record).with_context(|| {
        format!("the record at {partition}/{offset} of `{name}` is no dead letter of this program")
    })?;
    if let Some(path) = value {
        if letter.omitted.contains(&"value") {
            return Err(anyhow::anyhow!("the letter does not hold the value: it was left out").into());
        }
        let bytes = record.value.as_deref().unwrap_or_default();
        std::fs::write(path, bytes).with_context(|| format!("cannot write `{}`", path.display()))?;
        return Ok(());
    }
    let fate = Topic::read(config).await?.fate(&letter, Timestamp::now());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).escape_debug().to_string();
    output::line(format!("place        {}", place(&record)))?;
    if let Some(time) = written(&record) {
        output::line(format!("time         {time}"))?;
    }
    output::line(format!("fate         {}", fate.as_str()))?;
    output::line(format!(
        "reason       {}, found by {}",
        letter.reason, letter.stage
    ))?;
    output::line(format!("message      {}", letter.message.escape_debug()))?;
    output::line(format!("attempts     {}", letter.attempts))?;
    if let Some(time) = letter.retry_after {
        output::line(format!("retry after  {time}"))?;
    }
    output::line(format!("record       {}", letter.record))?;
    output::line(format!(
        "key          {}",
        record.key.as_deref().map_or_else(|| "none".to_owned(), text)
    ))?;
    for (name, value) in letter.own_headers(&record) {
        let value = value.as_deref().map_or_else(String::new, text);
        output::line(format!(
            "header       {}: {}",
            name.escape_debug(),
            clipped(&value, 200)
        ))?;
    }
    if let Err(obstacle) = letter.original(&record) {
        output::line(format!("not whole    {obstacle}"))?;
    }
    output::line(format!(
        "value        {} bytes",
        record.value.as_ref().map_or(0, Bytes::len)
    ))?;
    Ok(())
}

//! `speechverse dead-letters redrive`: the original records are published again.
//!
//! Letters of streams are kept until the topic is read to its end, and then taken in the order of their
//! records; a stream has a megabyte in its letters at most.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use jiff::Timestamp;
use speechverse::kafka::Sink;
use speechverse::kafka::config::KafkaConfig;
use speechverse::wire::redrive::{DeadLetter, RedriveMark, RedriveState};
use speechverse::wire::{OutgoingRecord, Record};

use super::{Fate, Letters, Topic, place};
use crate::cli::Redrive;
use crate::commands::Failure;
use crate::commands::clients::CLI_SOURCE;
use crate::output;

/// What was passed over, and why.
#[derive(Default)]
struct Passed {
    redriven: usize,
    in_doubt: usize,
    waiting: usize,
    cannot_heal: usize,
    tried_often: usize,
}

impl Passed {
    /// Whether a letter is passed over; counts it then.
    fn over(&mut self, args: &Redrive, letter: &DeadLetter, fate: Fate) -> bool {
        let named = !args.filter.reasons.is_empty() || !args.filter.ids.is_empty();
        let count = match fate {
            Fate::Redriven if !args.again => &mut self.redriven,
            Fate::InDoubt if !args.again => &mut self.in_doubt,
            _ if letter.attempts >= args.attempts_max => &mut self.tried_often,
            Fate::Waiting if !args.now => &mut self.waiting,
            _ if !named && !letter.can_heal() => &mut self.cannot_heal,
            _ => return false,
        };
        *count += 1;
        true
    }

    fn words(&self) -> String {
        let words = [
            (self.redriven, "redriven before"),
            (
                self.in_doubt,
                "in doubt (a redrive ended half-way; look for an answer, then --again)",
            ),
            (self.waiting, "wait for the end of their back-off (--now)"),
            (
                self.cannot_heal,
                "of reasons that do not pass by themselves (--reason)",
            ),
            (self.tried_often, "tried too often (--attempts-max)"),
        ];
        let words = words.into_iter().filter(|(count, _)| *count > 0);
        words.map(|(count, what)| format!(", {count} {what}")).collect()
    }
}

pub(super) async fn redrive(args: &Redrive, config: &KafkaConfig) -> Result<(), Failure> {
    let topic = Topic::read(config).await?;
    let now = Timestamp::now();
    let mut letters = Letters::open(config, &args.filter).await?;
    let (mut passed, mut seen, mut chunks) = (Passed::default(), HashSet::new(), Vec::new());
    let mut redriving = Redriving::new(args, config)?;
    loop {
        let wanted = |letter: &DeadLetter| {
            // A crash may have repeated the letter itself.
            seen.insert(letter.record.clone()) && !passed.over(args, letter, topic.fate(letter, now))
        };
        match letters.next(&topic, wanted).await? {
            Some(chunk) if chunk.1.session.is_some() => chunks.push(chunk),
            Some((record, letter)) => redriving.take(&record, &letter).await?,
            None => break,
        }
    }
    // Letters may have been written in another order than their records, which a stream does not survive.
    chunks.sort_by(|(_, one), (_, other)| one.record.cmp(&other.record));
    for (record, letter) in chunks {
        redriving.take(&record, &letter).await?;
    }
    let done = if args.dry_run {
        "would be redriven"
    } else {
        "redriven"
    };
    output::line(format!("{} {done}{}", redriving.taken, passed.words()))?;
    match redriving.failed {
        0 => Ok(()),
        failed => Err(anyhow::anyhow!("{failed} dead letters could not be published again").into()),
    }
}

/// Publishes the records of letters again, one after the other.
struct Redriving {
    is_dry: bool,
    dead_letters: Arc<str>,
    sink: Sink,
    taken: usize,
    failed: usize,
    /// Streams, by key and session, of which a chunk is not published.
    broken_streams: HashSet<(Option<Bytes>, String)>,
}

impl Redriving {
    fn new(args: &Redrive, config: &KafkaConfig) -> anyhow::Result<Self> {
        Ok(Self {
            is_dry: args.dry_run,
            dead_letters: Arc::from(config.topics.dead_letters.as_str()),
            sink: Sink::new(config).context("Kafka producer")?,
            taken: 0,
            failed: 0,
            broken_streams: HashSet::new(),
        })
    }

    async fn take(&mut self, record: &Record, letter: &DeadLetter) -> anyhow::Result<()> {
        let shown = format!(
            "{} ({}, attempt {})",
            place(record),
            letter.reason,
            letter.attempts.saturating_add(1)
        );
        let session = letter.session.clone();
        let stream = session.map(|session| (record.key.clone(), session));
        let is_broken = (stream.as_ref()).is_some_and(|stream| self.broken_streams.contains(stream));
        let original = match letter.original(record) {
            Ok(_) if is_broken => Err("earlier chunks of its stream cannot be published".to_owned()),
            original => original,
        };
        let original = match original {
            Ok(original) => original,
            Err(obstacle) => {
                self.failed += 1;
                self.broken_streams.extend(stream);
                tracing::error!(
                    place = place(record),
                    obstacle,
                    "a dead letter cannot be published again"
                );
                return Ok(());
            }
        };
        let to = original.topic.clone();
        if self.is_dry {
            self.taken += 1;
            output::line(format!("would redrive {shown} to {to}"))?;
            return Ok(());
        }
        let marked = |state| {
            let mark = RedriveMark {
                record: letter.record.clone(),
                state,
            };
            mark.to_record(self.dead_letters.clone(), record.key.clone(), CLI_SOURCE)
        };
        let (begun, done) = (marked(RedriveState::Begun), marked(RedriveState::Done));
        match publish(&self.sink, begun, original, done).await {
            Ok(()) => {
                self.taken += 1;
                output::line(format!("redriven {shown} to {to}"))?;
            }
            Err(error) => {
                self.failed += 1;
                self.broken_streams.extend(stream);
                tracing::error!(
                    place = place(record),
                    error = format!("{error:#}"),
                    "a dead letter is not published again"
                );
            }
        }
        Ok(())
    }
}

/// Writes the mark before, the record, and the mark behind, each when the one before is acknowledged.
async fn publish(
    sink: &Sink,
    begun: OutgoingRecord,
    original: OutgoingRecord,
    done: OutgoingRecord,
) -> anyhow::Result<()> {
    sink.send(begun)
        .await
        .context("the mark before it was not acknowledged, it was not published")?;
    sink.send(original)
        .await
        .context("it was marked, and the broker did not acknowledge it")?;
    sink.send(done)
        .await
        .context("it was published, and the mark behind it was not acknowledged")?;
    Ok(())
}

//! `speechverse results`, `label`, `retrain`: commands that talk to a running pipeline over its topics, and
//! what they share with [`publish`](super::publish).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use speechverse::config::Settings;
use speechverse::kafka::config::KafkaConfig;
use speechverse::kafka::{Read, ReadFrom, Reader, Sink};
use speechverse::wire::answer::Answer;
use speechverse::wire::asyncapi;
use speechverse::wire::control::{Command, Order};
use speechverse::wire::event::{Event, EventKind, Verdict};
use speechverse::wire::{OutgoingRecord, Record};

use super::{Failure, runtime};
use crate::cli::{Broker, Given, Label, OptionalSettings, Results, Retrain};
use crate::output;

/// Longest wait for a broker that should be there.
pub(super) const BROKER_WAIT: Duration = Duration::from_secs(15);
/// `ce_source` of what commands publish.
pub(super) const CLI_SOURCE: &str = "/speechverse/cli";

/// The settings, with the broker's address of the command line.
pub(super) fn settings(broker: &Broker) -> Result<Settings, Failure> {
    let mut settings = Settings::load(&broker.settings.config).map_err(Failure::usage)?;
    if let Some(bootstrap) = &broker.bootstrap {
        settings.kafka.bootstrap.clone_from(bootstrap);
    }
    settings.kafka.validate().map_err(Failure::usage)?;
    Ok(settings)
}

/// The `[kafka]` table of [`settings`].
pub(super) fn kafka(broker: &Broker) -> Result<KafkaConfig, Failure> {
    Ok(settings(broker)?.kafka)
}

pub(super) fn header(name: &str, value: impl Into<String>) -> (String, Option<Bytes>) {
    (name.to_owned(), Some(Bytes::from(value.into())))
}

/// Labels and fields as headers.
pub(super) fn given(given: &Given) -> anyhow::Result<Vec<(String, Option<Bytes>)>> {
    let mut headers = Vec::new();
    if !given.labels.is_empty() {
        let labels = serde_json::to_string(&given.labels).context("labels are always JSON")?;
        headers.push(header("ce_labels", labels));
    }
    if !given.fields.is_empty() {
        let fields: BTreeMap<&str, &str> = (given.fields.iter())
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let fields = serde_json::to_string(&fields).context("fields are always JSON")?;
        headers.push(header("ce_fields", fields));
    }
    Ok(headers)
}

/// An id that no other request has: time, process and number.
pub(super) fn fresh_id(number: usize) -> String {
    format!(
        "cli-{}-{}-{number}",
        jiff::Timestamp::now().as_millisecond(),
        std::process::id()
    )
}

pub(super) async fn send(
    sink: &Sink,
    topic: &str,
    key: &str,
    value: Option<Bytes>,
    headers: Vec<(String, Option<Bytes>)>,
) -> anyhow::Result<()> {
    let record = OutgoingRecord {
        topic: Arc::from(topic),
        key: Some(Bytes::from(key.to_owned())),
        value,
        headers,
    };
    sink.send(record)
        .await
        .with_context(|| format!("cannot publish to `{topic}`"))?;
    Ok(())
}

pub(super) fn answer_of(record: &Record) -> Option<Answer> {
    let value = record.value.as_ref()?;
    serde_json::from_slice(value)
        .inspect_err(
            |error| tracing::warn!(%error, offset = record.record_offset.offset, "not an answer of this version"),
        )
        .ok()
}

/// An answer's flags, as they are written in JSON.
pub(super) fn flags_of(answer: &Answer) -> String {
    let name = |flag| serde_json::to_value(flag).ok()?.as_str().map(str::to_owned);
    answer.flags.iter().filter_map(name).collect::<Vec<_>>().join(" ")
}

/// How often a follower looks whether anybody still reads what it writes.
const READER_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest that a record, or the end of the topic, is waited for where nothing is followed.
pub(super) const END_WAIT: Duration = Duration::from_secs(10);

pub(super) fn results(args: &Results) -> Result<(), Failure> {
    let config = kafka(&args.broker)?;
    let wait = if args.follow {
        READER_CHECK_INTERVAL
    } else {
        END_WAIT
    };
    runtime()?.block_on(async {
        let mut reader = Reader::open(&config, &config.topics.results, ReadFrom::Beginning, BROKER_WAIT)
            .await
            .context("cannot read answers")?;
        loop {
            match reader.next(wait).await.context("cannot read answers")? {
                Read::Record(record) => {
                    let Some(answer) = answer_of(&record) else {
                        continue;
                    };
                    if args.json {
                        output::line(serde_json::to_string(&answer).unwrap_or_default())?;
                    } else {
                        let flags = match flags_of(&answer) {
                            flags if flags.is_empty() => flags,
                            flags => format!(" [{flags}]"),
                        };
                        output::line(format!(
                            "{} {}: {}{flags}",
                            answer.request_id, answer.adapter, answer.text
                        ))?;
                    }
                }
                Read::CaughtUp if !args.follow => return Ok(()),
                Read::TimedOut if !args.follow => {
                    return Err(anyhow::anyhow!(
                        "no answer and no end of the topic within {} s",
                        END_WAIT.as_secs()
                    )
                    .into());
                }
                Read::CaughtUp | Read::TimedOut if output::reader_is_gone() => {
                    return Err(Failure::ReaderGone);
                }
                Read::CaughtUp | Read::TimedOut => {}
            }
        }
    })
}

pub(super) fn label(args: &Label) -> Result<(), Failure> {
    let config = kafka(&args.broker)?;
    if args.target.trim().is_empty() {
        return Err(Failure::Usage(anyhow::anyhow!("`--target` is empty")));
    }
    runtime()?.block_on(async {
        let sink = Sink::new(&config).context("Kafka producer")?;
        let mut headers = vec![header("ce_target", args.target.as_str())];
        headers.extend(
            args.instruction
                .iter()
                .map(|text| header("ce_instruction", text.as_str())),
        );
        headers.extend(args.task.iter().map(|text| header("ce_task", text.as_str())));
        headers.extend(given(&args.given)?);
        let topic = &config.topics.labels;
        if let Some(request) = &args.request {
            let id = fresh_id(0);
            headers.push(header("ce_id", id.as_str()));
            headers.push(header("ce_subject", request.as_str()));
            headers
                .extend((args.request_source.iter()).map(|text| header("ce_subjectsource", text.as_str())));
            // Under one key, the corrections of a request stay in the order in which they are sent.
            send(&sink, topic, request, None, headers.clone()).await?;
            output::line(&id)?;
        }
        for (number, file) in args.files.iter().enumerate() {
            let id = fresh_id(number);
            let audio = Bytes::from(super::read_input(file)?);
            let mut headers = headers.clone();
            headers.push(header("ce_id", id.as_str()));
            send(&sink, topic, &id, Some(audio), headers).await?;
            output::line(&id)?;
        }
        Ok(())
    })
}

pub(super) fn asyncapi(args: &OptionalSettings) -> Result<(), Failure> {
    let topics = Settings::load(&args.config).map_err(Failure::usage)?.kafka.topics;
    let document = asyncapi::document(&asyncapi::Addresses {
        requests: &topics.requests,
        results: &topics.results,
        labels: &topics.labels,
        control: &topics.control,
        events: &topics.events,
        dead_letters: &topics.dead_letters,
    });
    output::line(asyncapi::to_yaml(&document).trim_end())?;
    Ok(())
}

pub(super) fn retrain(args: &Retrain) -> Result<(), Failure> {
    let config = kafka(&args.broker)?;
    runtime()?.block_on(async {
        let mut events = match args.wait {
            true => Some(
                Reader::open(&config, &config.topics.events, ReadFrom::End, BROKER_WAIT)
                    .await
                    .with_context(|| format!("is the pipeline running at {}?", config.bootstrap))?,
            ),
            false => None,
        };
        let sink = Sink::new(&config).context("Kafka producer")?;
        let run = fresh_id(0);
        let order = Order {
            id: Some(run.clone()),
            command: Command::Retrain,
        };
        send(
            &sink,
            &config.topics.control,
            &run,
            Some(Bytes::from(order.to_json())),
            Vec::new(),
        )
        .await?;
        output::line(format!("ordered {run}"))?;
        let Some(events) = &mut events else { return Ok(()) };
        follow(events, &run, Duration::from_secs(args.timeout)).await
    })
}

/// Prints the events of a run until it ends.
async fn follow(events: &mut Reader, run: &str, limit: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(anyhow::anyhow!(
                "`{run}` did not end within {} s; it may still go on",
                limit.as_secs()
            )
            .into());
        }
        let Read::Record(record) = events.next(left).await.context("cannot follow the run")? else {
            continue;
        };
        let Some(event) = record
            .value
            .as_deref()
            .and_then(|value| serde_json::from_slice::<Event>(value).ok())
        else {
            continue;
        };
        if event.id != run {
            continue;
        }
        output::line(serde_json::to_string(&event).unwrap_or_default())?;
        match event.what {
            EventKind::CycleFinished {
                verdict: Verdict::Promoted,
                ..
            } => return Ok(()),
            EventKind::CycleFinished { verdict, reason, .. } => {
                return Err(anyhow::anyhow!("the cycle ended as {}: {reason}", verdict.as_str()).into());
            }
            EventKind::CommandRefused { reason, .. } => {
                return Err(anyhow::anyhow!("the order was refused: {reason}").into());
            }
            EventKind::CommandExpired { reason, .. } => {
                return Err(anyhow::anyhow!("the order came too late: {reason}").into());
            }
            _ => {}
        }
    }
}

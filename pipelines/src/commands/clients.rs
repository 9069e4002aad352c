//! `speechverse publish`, `results`, `label`, `retrain`: the commands that talk to a running pipeline over
//! its topics.

use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use speechverse::config::Settings;
use speechverse::kafka::config::KafkaConfig;
use speechverse::kafka::{Read, ReadFrom, Reader, Sink};
use speechverse::scoring::corpus_errors;
use speechverse::text::normalize::plain;
use speechverse::wire::answer::{Answer, AnswerKind};
use speechverse::wire::asyncapi;
use speechverse::wire::control::{Command, Order};
use speechverse::wire::dead_letter::REASON_HEADER;
use speechverse::wire::event::{Event, EventKind, Verdict};
use speechverse::wire::headers::Headers;
use speechverse::wire::request::{CHUNK_TYPE, Priority, REQUEST_TYPE};
use speechverse::wire::{OutgoingRecord, Record};

use super::{Failure, runtime};
use crate::cli::{Broker, Given, Label, OptionalSettings, Publish, Results, Retrain};
use crate::output::{self, OutputError, clipped};

/// Longest wait for a broker that should be there.
pub(super) const BROKER_WAIT: Duration = Duration::from_secs(15);
/// `ce_source` of what commands publish.
pub(super) const CLI_SOURCE: &str = "/speechverse/cli";
/// Seconds of sound in one chunk of a stream.
const CHUNK_SECONDS: f64 = 0.5;

/// The `[kafka]` table of the settings, with the address of the command line.
pub(super) fn kafka(broker: &Broker) -> Result<KafkaConfig, Failure> {
    let mut settings = Settings::load(&broker.settings.config).map_err(Failure::usage)?;
    if let Some(bootstrap) = &broker.bootstrap {
        settings.kafka.bootstrap.clone_from(bootstrap);
    }
    settings.kafka.validate().map_err(Failure::usage)?;
    Ok(settings.kafka)
}

fn header(name: &str, value: impl Into<String>) -> (String, Option<Bytes>) {
    (name.to_owned(), Some(Bytes::from(value.into())))
}

/// Labels and fields as headers.
fn given(given: &Given) -> anyhow::Result<Vec<(String, Option<Bytes>)>> {
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
fn fresh_id(number: usize) -> String {
    format!(
        "cli-{}-{}-{number}",
        jiff::Timestamp::now().as_millisecond(),
        std::process::id()
    )
}

/// Audio files among the paths; folders give theirs, sorted, not deeper.
fn audio_files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    const ENDINGS: [&str; 6] = ["wav", "flac", "ogg", "oga", "mp3", "wave"];
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).with_context(|| format!("cannot list `{}`", path.display()))?;
        let mut inside: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let ending = path
                    .extension()
                    .and_then(|ending| ending.to_str())
                    .unwrap_or_default();
                path.is_file() && ENDINGS.contains(&ending.to_ascii_lowercase().as_str())
            })
            .collect();
        if inside.is_empty() {
            bail!(
                "no audio files in `{}` (looked for {})",
                path.display(),
                ENDINGS.join(", ")
            );
        }
        inside.sort();
        files.append(&mut inside);
    }
    Ok(files)
}

/// What a request was about, until its answer comes.
struct Sent {
    name: String,
    reference: Option<String>,
    at: Instant,
}

/// What became of a request.
enum Outcome {
    Answer(Box<Answer>, Duration),
    DeadLetter(String),
}

pub(super) fn publish(args: &Publish) -> Result<(), Failure> {
    let config = kafka(&args.broker)?;
    let files = audio_files(&args.paths)?;
    let references = args.references.as_deref().map(read_references).transpose()?;
    runtime()?.block_on(publish_files(
        args,
        &config,
        &files,
        references.unwrap_or_default(),
    ))
}

async fn publish_files(
    args: &Publish,
    config: &KafkaConfig,
    files: &[PathBuf],
    references: HashMap<String, String>,
) -> Result<(), Failure> {
    let wait = args.wait || args.references.is_some();
    // Before the first request is sent, or an answer could be missed.
    let mut replies = match wait {
        true => Some(Replies::open(config).await?),
        false => None,
    };
    let sink = Sink::new(config).context("Kafka producer")?;
    let bar = progress(files.len());
    let mut sent = HashMap::new();
    for (number, file) in files.iter().enumerate() {
        let audio = Bytes::from(super::read_input(file)?);
        let id = fresh_id(number);
        let name = file
            .file_name()
            .unwrap_or(file.as_os_str())
            .to_string_lossy()
            .into_owned();
        let mut headers = vec![header("ce_specversion", "1.0"), header("ce_source", CLI_SOURCE)];
        headers.extend(
            args.instruction
                .iter()
                .map(|text| header("ce_instruction", text.as_str())),
        );
        headers.extend(args.task.iter().map(|text| header("ce_task", text.as_str())));
        headers.extend(given(&args.given)?);
        headers.extend((args.constrain).map(|held| header("ce_constrain", if held { "yes" } else { "no" })));
        if args.priority != Priority::default() {
            headers.push(header("ce_priority", args.priority.as_str()));
        }
        headers.extend(args.deadline.map(|seconds| {
            let time = jiff::Timestamp::now() + Duration::from_secs(seconds.into());
            header("ce_deadline", time.to_string())
        }));
        let at = Instant::now();
        if args.stream {
            stream(&sink, config, &id, &audio, &headers).await?;
        } else {
            headers.push(header("ce_id", id.as_str()));
            headers.push(header("ce_type", REQUEST_TYPE));
            send(&sink, &config.topics.requests, &id, Some(audio), headers).await?;
        }
        let reference = references.get(&name).cloned();
        sent.insert(id, Sent { name, reference, at });
        bar.inc(1);
    }
    bar.finish_and_clear();
    tracing::info!(requests = sent.len(), topic = %config.topics.requests, "published");
    let Some(replies) = &mut replies else {
        return Ok(());
    };
    let limit = Duration::from_secs(args.timeout);
    let outcomes = replies.collect(&sent, limit, |answer| {
        if args.json {
            output::line(serde_json::to_string(answer).unwrap_or_default())?;
        } else if args.references.is_none() {
            output::line(format!("{}: {}", sent[&answer.request_id].name, answer.text))?;
        }
        Ok(())
    });
    let outcomes = outcomes.await?;
    if args.references.is_some() && !args.json {
        report(&sent, &outcomes)?;
    }
    for (id, outcome) in &outcomes {
        if let Outcome::DeadLetter(reason) = outcome {
            tracing::error!(file = %sent[id].name, reason, "could not be answered");
        }
    }
    let answered = outcomes
        .values()
        .filter(|outcome| matches!(outcome, Outcome::Answer(..)))
        .count();
    if answered < sent.len() {
        let missing = sent.len() - answered;
        return Err(anyhow::anyhow!("{missing} of {} requests were not answered", sent.len()).into());
    }
    Ok(())
}

async fn send(
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

/// Sends a file in chunks as fast as it would be spoken; the session is the key, so the chunks stay in order.
async fn stream(
    sink: &Sink,
    config: &KafkaConfig,
    id: &str,
    audio: &Bytes,
    common: &[(String, Option<Bytes>)],
) -> anyhow::Result<()> {
    let waveform = speechverse::audio::decode(audio, None, &speechverse::audio::AudioLimits::default())?;
    let chunks = (waveform.seconds() / CHUNK_SECONDS).ceil().max(1.0) as usize;
    let bytes_per_chunk = audio.len().div_ceil(chunks).max(1);
    let parts: Vec<Bytes> = (0..audio.len())
        .step_by(bytes_per_chunk)
        .map(|start| audio.slice(start..(start + bytes_per_chunk).min(audio.len())))
        .collect();
    let last = parts.len() - 1;
    for (sequence, part) in parts.into_iter().enumerate() {
        let mut headers = common.to_vec();
        headers.push(header("ce_id", id));
        headers.push(header("ce_type", CHUNK_TYPE));
        headers.push(header("ce_session", id));
        headers.push(header("ce_sequence", sequence.to_string()));
        headers.push(header("ce_final", (sequence == last).to_string()));
        send(sink, &config.topics.requests, id, Some(part), headers).await?;
        if sequence < last {
            tokio::time::sleep(Duration::from_secs_f64(waveform.seconds() / chunks as f64)).await;
        }
    }
    Ok(())
}

fn progress(length: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("publishing {bar:30} {pos}/{len}").expect("a constant template");
    ProgressBar::new(length as u64).with_style(style)
}

/// Answers and dead letters that come from now on.
struct Replies {
    results: Reader,
    dead_letters: Reader,
}

impl Replies {
    async fn open(config: &KafkaConfig) -> anyhow::Result<Self> {
        let open = |topic: String| async move {
            Reader::open(config, &topic, ReadFrom::End, BROKER_WAIT)
                .await
                .with_context(|| format!("is the pipeline running at {}?", config.bootstrap))
        };
        Ok(Self {
            results: open(config.topics.results.clone()).await?,
            dead_letters: open(config.topics.dead_letters.clone()).await?,
        })
    }

    /// Waits until every request has an outcome, or the time is over.
    async fn collect(
        &mut self,
        sent: &HashMap<String, Sent>,
        limit: Duration,
        mut show: impl FnMut(&Answer) -> Result<(), OutputError>,
    ) -> anyhow::Result<HashMap<String, Outcome>> {
        let deadline = Instant::now() + limit;
        let mut outcomes = HashMap::new();
        while outcomes.len() < sent.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            tokio::select! {
                read = self.results.next(left) => {
                    let Read::Record(record) = read? else { continue };
                    let Some(answer) = answer_of(&record) else { continue };
                    let Some(request) = sent.get(&answer.request_id) else { continue };
                    if answer.kind == AnswerKind::Partial || outcomes.contains_key(&answer.request_id) {
                        continue; // more will come, or a repeat after a crash
                    }
                    show(&answer)?;
                    outcomes.insert(answer.request_id.clone(), Outcome::Answer(Box::new(answer), request.at.elapsed()));
                }
                read = self.dead_letters.next(left) => {
                    let Read::Record(record) = read? else { continue };
                    let headers = Headers::new(&record.headers);
                    let text = |name: &str| {
                        headers.bytes(name).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
                    };
                    let id = text("ce_id");
                    if sent.contains_key(&id) {
                        let reason = format!("{}: {}", text(REASON_HEADER), text("__connect.errors.exception.message"));
                        outcomes.insert(id, Outcome::DeadLetter(reason));
                    }
                }
            }
        }
        Ok(outcomes)
    }
}

fn answer_of(record: &Record) -> Option<Answer> {
    let value = record.value.as_ref()?;
    serde_json::from_slice(value)
        .inspect_err(
            |error| tracing::warn!(%error, offset = record.record_offset.offset, "not an answer of this version"),
        )
        .ok()
}

/// A line of a reference manifest; other keys pass.
#[derive(Deserialize)]
struct Reference {
    audio_filepath: PathBuf,
    #[serde(alias = "target")]
    text: String,
}

fn read_references(path: &Path) -> anyhow::Result<HashMap<String, String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let mut references = HashMap::new();
    for (number, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let reference: Reference = serde_json::from_str(line)
            .with_context(|| format!("`{}`, line {}: not a manifest line", path.display(), number + 1))?;
        let name = reference
            .audio_filepath
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        references.insert(name, reference.text);
    }
    Ok(references)
}

/// A table of what was asked, answered and right, and the word error rate.
fn report(sent: &HashMap<String, Sent>, outcomes: &HashMap<String, Outcome>) -> Result<(), OutputError> {
    let mut requests: Vec<(&String, &Sent)> = sent.iter().collect();
    requests.sort_by(|one, other| one.1.name.cmp(&other.1.name));
    let heading = [
        "clip",
        "instruction",
        "answer",
        "reference",
        "audio s",
        "latency s",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let mut pairs = Vec::new();
    let mut adapters = std::collections::BTreeSet::new();
    for (id, request) in requests {
        let reference = request.reference.clone().unwrap_or_default();
        let (instruction, text, audio, latency) = match outcomes.get(id) {
            Some(Outcome::Answer(answer, latency)) => {
                adapters.insert(answer.adapter.clone());
                let seconds = format!("{:.1}", answer.audio_seconds);
                (
                    answer.instruction.clone(),
                    answer.text.clone(),
                    seconds,
                    format!("{:.2}", latency.as_secs_f64()),
                )
            }
            Some(Outcome::DeadLetter(reason)) => (
                String::new(),
                format!("(dead letter) {reason}"),
                String::new(),
                String::new(),
            ),
            None => (
                String::new(),
                "(no answer)".to_owned(),
                String::new(),
                String::new(),
            ),
        };
        if !reference.is_empty() {
            pairs.push((plain(&reference), plain(&text)));
        }
        rows.push(vec![
            request.name.clone(),
            clipped(&instruction, 24),
            clipped(&text, 60),
            clipped(&reference, 60),
            audio,
            latency,
        ]);
    }
    output::table(&rows, &[4, 5])?;
    let errors = corpus_errors(
        pairs
            .iter()
            .map(|(reference, text)| (reference.as_str(), text.as_str())),
    );
    let adapters: Vec<String> = adapters.into_iter().collect();
    output::line(format!(
        "{} requests, {} answered by {}; word error rate {:.1} % over {} clips (lower case, no punctuation)",
        sent.len(),
        outcomes
            .values()
            .filter(|outcome| matches!(outcome, Outcome::Answer(..)))
            .count(),
        adapters.join(", "),
        100.0 * errors.rate(),
        pairs.len()
    ))
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
                        let flags: Vec<String> = answer
                            .flags
                            .iter()
                            .map(|flag| format!("{flag:?}").to_lowercase())
                            .collect();
                        let flags = if flags.is_empty() {
                            String::new()
                        } else {
                            format!(" [{}]", flags.join(" "))
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
        let id = fresh_id(0);
        let mut headers = vec![
            header("ce_id", id.as_str()),
            header("ce_target", args.target.as_str()),
        ];
        headers.extend(
            args.instruction
                .iter()
                .map(|text| header("ce_instruction", text.as_str())),
        );
        headers.extend(args.task.iter().map(|text| header("ce_task", text.as_str())));
        headers.extend(given(&args.given)?);
        let (key, value) = match (&args.file, &args.request) {
            (Some(file), _) => (&id, Some(Bytes::from(super::read_input(file)?))),
            // Under one key, the corrections of a request stay in the order in which they are sent.
            (None, Some(request)) => {
                headers.push(header("ce_subject", request.as_str()));
                headers.extend(
                    (args.request_source.iter()).map(|text| header("ce_subjectsource", text.as_str())),
                );
                (request, None)
            }
            (None, None) => {
                return Err(Failure::Usage(anyhow::anyhow!(
                    "name a file, or a request with `--request`"
                )));
            }
        };
        send(&sink, &config.topics.labels, key, value, headers).await?;
        output::line(&id)?;
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

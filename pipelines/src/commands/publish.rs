//! `speechverse publish`: audio files become requests; their answers are waited for and shown, beside the
//! right ones where there is a manifest of these.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use speechverse::config::Settings;
use speechverse::kafka::config::KafkaConfig;
use speechverse::kafka::{Read, ReadFrom, Reader, Sink};
use speechverse::text::{StructureKind, TaskTable};
use speechverse::wire::answer::{Answer, AnswerKind};
use speechverse::wire::dead_letter::REASON_HEADER;
use speechverse::wire::headers::Headers;
use speechverse::wire::request::{CHUNK_TYPE, Priority, REQUEST_TYPE};

use self::references::{Reference, References, report};
use super::clients::{BROKER_WAIT, CLI_SOURCE, answer_of, fresh_id, given, header, send, settings};
use super::{Failure, runtime};
use crate::cli::Publish;
use crate::output::{self, OutputError};

mod references;

/// Seconds of sound in one chunk of a stream.
const CHUNK_SECONDS: f64 = 0.5;

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
    /// How many were sent before it.
    number: usize,
    name: String,
    reference: Option<Reference>,
    at: Instant,
}

/// What became of a request.
enum Outcome {
    Answer(Box<Answer>, Duration),
    DeadLetter(String),
}

pub(super) fn publish(args: &Publish) -> Result<(), Failure> {
    let settings = settings(&args.broker)?;
    let files = audio_files(&args.paths)?;
    let references = match args.references.as_slice() {
        [] => None,
        manifests => {
            let tasks = TaskTable::load(&settings.service.tasks_dir).context("task files")?;
            Some(References::read(manifests, tasks)?)
        }
    };
    let form = args.form.source().map_err(Failure::Usage)?;
    runtime()?.block_on(publish_files(
        args,
        &settings,
        &files,
        form.as_ref(),
        references.as_ref(),
    ))
}

/// What is asked about each file: one request for each of its rows in the references, else one without a row.
fn requests<'r>(
    files: &'r [PathBuf],
    references: Option<&'r References>,
    task: Option<&str>,
) -> Vec<(&'r PathBuf, Vec<Option<&'r Reference>>)> {
    let of = |file: &'r PathBuf| {
        let rows = references.map_or_else(Vec::new, |references| references.of(file, task));
        let requests = match rows.is_empty() {
            true => vec![None],
            false => rows.into_iter().map(Some).collect(),
        };
        (file, requests)
    };
    files.iter().map(of).collect()
}

async fn publish_files(
    args: &Publish,
    settings: &Settings,
    files: &[PathBuf],
    form: Option<&(StructureKind, String)>,
    references: Option<&References>,
) -> Result<(), Failure> {
    let config = &settings.kafka;
    let wait = args.wait || references.is_some();
    // Before the first request is sent, or an answer could be missed.
    let mut replies = match wait {
        true => Some(Replies::open(config).await?),
        false => None,
    };
    let sink = Sink::new(config).context("Kafka producer")?;
    let requests = requests(files, references, args.task.as_deref());
    let bar = progress(requests.iter().map(|(_, of_file)| of_file.len()).sum());
    let mut sent = HashMap::new();
    for (file, of_file) in requests {
        let audio = Bytes::from(super::read_input(file)?);
        let name = file
            .file_name()
            .unwrap_or(file.as_os_str())
            .to_string_lossy()
            .into_owned();
        for reference in of_file {
            let number = sent.len();
            let id = fresh_id(number);
            let mut headers = vec![header("ce_specversion", "1.0"), header("ce_source", CLI_SOURCE)];
            headers.extend(asked(args, reference)?);
            headers.extend(form.map(|(kind, source)| header(kind.header(), source.as_str())));
            let at = Instant::now();
            if args.stream {
                stream(&sink, config, &id, &audio, &headers).await?;
            } else {
                headers.push(header("ce_id", id.as_str()));
                headers.push(header("ce_type", REQUEST_TYPE));
                send(&sink, &config.topics.requests, &id, Some(audio.clone()), headers).await?;
            }
            let request = Sent {
                number,
                name: name.clone(),
                reference: reference.cloned(),
                at,
            };
            sent.insert(id, request);
            bar.inc(1);
        }
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
        } else if references.is_none() {
            output::line(format!("{}: {}", sent[&answer.request_id].name, answer.text))?;
        }
        Ok(())
    });
    let outcomes = outcomes.await?;
    if let Some(references) = references.filter(|_| !args.json) {
        report(&sent, &outcomes, references)?;
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

/// What is asked about a file, as headers: what the command line says, then what its row in the references
/// does.
fn asked(args: &Publish, reference: Option<&Reference>) -> anyhow::Result<Vec<(String, Option<Bytes>)>> {
    let mut given_or_declared = args.given.clone();
    let mut task = args.task.clone();
    if let Some(reference) = reference.filter(|_| task.is_none() && args.instruction.is_none()) {
        task = Some(reference.task.clone());
        if given_or_declared.labels.is_empty() {
            given_or_declared.labels.clone_from(&reference.labels);
        }
        if given_or_declared.fields.is_empty() {
            given_or_declared.fields.clone_from(&reference.fields);
        }
    }
    let mut headers = given(&given_or_declared)?;
    headers.extend((args.instruction.iter()).map(|text| header("ce_instruction", text.as_str())));
    headers.extend(task.map(|task| header("ce_task", task)));
    headers.extend((args.constrain).map(|held| header("ce_constrain", if held { "yes" } else { "no" })));
    if args.priority != Priority::default() {
        headers.push(header("ce_priority", args.priority.as_str()));
    }
    headers.extend(args.deadline.map(|seconds| {
        let time = jiff::Timestamp::now() + Duration::from_secs(seconds.into());
        header("ce_deadline", time.to_string())
    }));
    Ok(headers)
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
                    let ours = answer.request_source.as_deref() == Some(CLI_SOURCE);
                    let Some(request) = sent.get(&answer.request_id).filter(|_| ours) else { continue };
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
                    if text("ce_source") == CLI_SOURCE && sent.contains_key(&id) {
                        let reason = format!("{}: {}", text(REASON_HEADER), text("__connect.errors.exception.message"));
                        outcomes.insert(id, Outcome::DeadLetter(reason));
                    }
                }
            }
        }
        Ok(outcomes)
    }
}

//! `speechverse publish`: audio files become requests; their answers are waited for and shown, beside the
//! right ones where there is a manifest of these.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use speechverse::config::Settings;
use speechverse::kafka::config::KafkaConfig;
use speechverse::kafka::{Read, ReadFrom, Reader, Sink};
use speechverse::scoring::Metric;
use speechverse::text::{StructureKind, TaskMetric, TaskTable};
use speechverse::training::example::{AudioSource, Example};
use speechverse::training::manifest::read_manifest;
use speechverse::wire::answer::{Answer, AnswerKind};
use speechverse::wire::dead_letter::REASON_HEADER;
use speechverse::wire::headers::Headers;
use speechverse::wire::request::{CHUNK_TYPE, Priority, REQUEST_TYPE};

use super::clients::{BROKER_WAIT, CLI_SOURCE, answer_of, flags_of, fresh_id, given, header, send, settings};
use super::{Failure, runtime};
use crate::cli::Publish;
use crate::output::{self, OutputError, clipped};

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
    name: String,
    reference: Option<Example>,
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
    let references = read_references(&args.references)?;
    let form = args.form.source().map_err(Failure::Usage)?;
    runtime()?.block_on(publish_files(args, &settings, &files, form.as_ref(), references))
}

async fn publish_files(
    args: &Publish,
    settings: &Settings,
    files: &[PathBuf],
    form: Option<&(StructureKind, String)>,
    mut references: HashMap<PathBuf, Example>,
) -> Result<(), Failure> {
    let config = &settings.kafka;
    let with_references = !args.references.is_empty();
    let wait = args.wait || with_references;
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
        let reference = references.remove(&whole(file));
        headers.extend(asked(args, reference.as_ref())?);
        headers.extend(form.map(|(kind, source)| header(kind.header(), source.as_str())));
        let at = Instant::now();
        if args.stream {
            stream(&sink, config, &id, &audio, &headers).await?;
        } else {
            headers.push(header("ce_id", id.as_str()));
            headers.push(header("ce_type", REQUEST_TYPE));
            send(&sink, &config.topics.requests, &id, Some(audio), headers).await?;
        }
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
        } else if !with_references {
            output::line(format!("{}: {}", sent[&answer.request_id].name, answer.text))?;
        }
        Ok(())
    });
    let outcomes = outcomes.await?;
    if with_references && !args.json {
        report(
            &sent,
            &outcomes,
            &TaskTable::load(&settings.service.tasks_dir).context("task files")?,
        )?;
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
fn asked(args: &Publish, reference: Option<&Example>) -> anyhow::Result<Vec<(String, Option<Bytes>)>> {
    let mut given_or_declared = args.given.clone();
    let mut task = args.task.clone();
    if let Some(reference) = reference.filter(|_| task.is_none() && args.instruction.is_none()) {
        task = Some(reference.task.clone());
        let declared = &reference.variables;
        if given_or_declared.labels.is_empty() {
            let labels = declared.labels.iter().flatten();
            given_or_declared.labels = labels.map(|label| label.name.clone()).collect();
        }
        if given_or_declared.fields.is_empty() {
            given_or_declared.fields = declared.fields.clone().into_iter().collect();
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

/// The right answers, by the audio file.
fn read_references(paths: &[PathBuf]) -> anyhow::Result<HashMap<PathBuf, Example>> {
    let mut references = HashMap::new();
    for path in paths {
        for example in read_manifest(path, None)?.warned() {
            if let AudioSource::Clip(clip) = &example.audio {
                references.insert(whole(&clip.path), example);
            }
        }
    }
    Ok(references)
}

/// A path by which two names of one file are equal.
fn whole(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// A table of what was asked, answered and right, and the score of each task.
fn report(
    sent: &HashMap<String, Sent>,
    outcomes: &HashMap<String, Outcome>,
    tasks: &TaskTable,
) -> Result<(), OutputError> {
    let mut requests: Vec<(&String, &Sent)> = sent.iter().collect();
    requests.sort_by(|one, other| one.1.name.cmp(&other.1.name));
    let heading = [
        "clip",
        "task",
        "answer",
        "reference",
        "flags",
        "audio s",
        "latency s",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let mut pairs: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let mut adapters = BTreeSet::new();
    let mut answered = 0;
    for (id, request) in requests {
        let mut row = vec![request.name.clone()];
        let (mut flags, mut audio, mut latency) = (String::new(), String::new(), String::new());
        let text = match outcomes.get(id) {
            Some(Outcome::Answer(answer, waited)) => {
                answered += 1;
                adapters.insert(answer.adapter.clone());
                flags = flags_of(answer);
                audio = format!("{:.1}", answer.audio_seconds);
                latency = format!("{:.2}", waited.as_secs_f64());
                answer.text.clone()
            }
            Some(Outcome::DeadLetter(reason)) => format!("(dead letter) {reason}"),
            None => "(no answer)".to_owned(),
        };
        let (task, right) = match &request.reference {
            Some(reference) => (reference.task.clone(), reference.target.clone()),
            None => (String::new(), String::new()),
        };
        row.extend([
            clipped(&task, 24),
            clipped(&text, 60),
            clipped(&right, 60),
            flags,
            audio,
            latency,
        ]);
        rows.push(row);
        if request.reference.is_some() {
            pairs.entry(task).or_default().push((right, text));
        }
    }
    output::table(&rows, &[5, 6])?;
    output::line(format!(
        "{} requests, {answered} answered by {}",
        sent.len(),
        adapters.into_iter().collect::<Vec<_>>().join(", ")
    ))?;
    for (task, pairs) in &pairs {
        let own = tasks.get(task).map_or(TaskMetric::Wer, |task| task.metric);
        // Transcripts in plain spelling: lower case, no punctuation.
        let metric = match Metric::of_task(own)[0] {
            Metric::Wer => Metric::WerPlain,
            metric => metric,
        };
        let pairs: Vec<(&str, &str)> = pairs
            .iter()
            .map(|(one, other)| (one.as_str(), other.as_str()))
            .collect();
        let score = metric.tally(&pairs).score();
        let score = score.map_or_else(|| "not defined".to_owned(), |score| format!("{score:.1}"));
        output::line(format!(
            "{task}: {} {score} over {} clips",
            metric.title(),
            pairs.len()
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_of_one_name_keep_their_own_references() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("a", "one"), ("b", "two")] {
            let inside = folder.path().join(name);
            std::fs::create_dir(&inside).unwrap();
            std::fs::write(inside.join("clip.wav"), b"RIFF").unwrap();
            let row =
                format!("{{\"audio_filepath\": \"clip.wav\", \"duration\": 1, \"text\": \"{text}\"}}\n");
            std::fs::write(inside.join("manifest.jsonl"), row).unwrap();
        }
        let manifests = ["a", "b"].map(|name| folder.path().join(name).join("manifest.jsonl"));

        let references = read_references(&manifests).unwrap();

        let other_name = folder.path().join("a/../b/clip.wav");
        assert_eq!(
            references[&whole(&folder.path().join("a/clip.wav"))].target,
            "one"
        );
        assert_eq!(references[&whole(&other_name)].target, "two");
    }
}

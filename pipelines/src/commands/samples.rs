//! `speechverse samples`: what the sample store holds, also beside the pipeline that writes it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, bail};
use jiff::Timestamp;
use serde::Serialize;
use speechverse::audio::{SAMPLE_RATE_HZ, write_wav};
use speechverse::config::Settings;
use speechverse::store::config::StoreConfig;
use speechverse::store::{
    ContentHash, SampleReader, SampleRef, SampleSource, SampleState, Snapshot, StoredSample,
};
use speechverse::training::config::TrainingConfig;
use speechverse::training::trainer_config::TrainerConfig;
use speechverse_actors::trainer::{Sides, sides};

use self::export::export;
use self::forget::forget;
use self::import::import;
use super::Failure;
use crate::cli::{OptionalSettings, SampleFilter, Samples};
use crate::output::{self, clipped};

mod export;
mod forget;
mod import;

/// Digits of an id that people are shown.
const ID_DIGITS_SHOWN: usize = 12;
/// Ids that are named where several begin alike.
const ALIKE_SHOWN: usize = 4;

pub(super) fn samples(command: &Samples) -> Result<(), Failure> {
    match command {
        Samples::List {
            settings,
            filter,
            json,
        } => Ok(list(&read(&load(settings)?.store)?, filter, *json)?),
        Samples::Show {
            settings,
            audio,
            json,
            id,
        } => Ok(show(&read(&load(settings)?.store)?, id, audio.as_deref(), *json)?),
        Samples::Select {
            settings,
            filter,
            json,
        } => Ok(select(&load(settings)?, filter, *json)?),
        Samples::Forget(args) => forget(args),
        Samples::Export {
            settings,
            filter,
            out,
        } => Ok(export(&read(&load(settings)?.store)?, filter, out)?),
        Samples::Import {
            settings,
            manifests,
            evict,
        } => import(&load(settings)?, manifests, *evict),
    }
}

fn load(settings: &OptionalSettings) -> Result<Settings, Failure> {
    Settings::load(&settings.config).map_err(Failure::usage)
}

/// What the store holds now; whoever writes to it goes on.
fn read(config: &StoreConfig) -> anyhow::Result<Snapshot> {
    let reader = SampleReader::open(config)?;
    let found = reader.report();
    if found.damaged + found.unreadable > 0 {
        let (damaged, unreadable) = (found.damaged, found.unreadable);
        tracing::warn!(dir = %config.dir.display(), damaged, unreadable, "parts of the sample store cannot be read");
    }
    Ok(reader.snapshot())
}

/// The samples that a filter lets through, the oldest first.
fn chosen(snapshot: &Snapshot, filter: &SampleFilter) -> Vec<SampleRef> {
    let mut found: Vec<SampleRef> = (snapshot.all())
        .filter(|sample| passes(snapshot, filter, sample))
        .collect();
    found.sort_by_key(|sample| (sample.received_ms, sample.id));
    found.truncate(filter.limit);
    found
}

fn passes(snapshot: &Snapshot, filter: &SampleFilter, sample: &SampleRef) -> bool {
    let is_in = |wanted: &[String], is: &dyn Fn(&str) -> bool| {
        wanted.is_empty() || wanted.iter().any(|wanted| is(wanted))
    };
    is_in(&filter.tasks, &|task| *sample.task == *task)
        && filter.split.is_none_or(|split| split == sample.split)
        && (filter.states.is_empty() || filter.states.contains(&sample.state))
        && (filter.since).is_none_or(|since| sample.received_ms >= since.as_millisecond())
        && (filter.until).is_none_or(|until| sample.received_ms < until.as_millisecond())
        && is_in(&filter.requests, &|id| snapshot.is_of_request(sample, id))
        && (filter.id_prefixes.is_empty() || {
            let id = sample.id.to_string();
            is_in(&filter.id_prefixes, &|prefix| begins(&id, prefix))
        })
}

fn begins(id: &str, prefix: &str) -> bool {
    id.starts_with(&prefix.to_ascii_lowercase())
}

/// The one sample whose id begins so.
fn named(snapshot: &Snapshot, prefix: &str) -> anyhow::Result<SampleRef> {
    let mut found: Vec<SampleRef> = (snapshot.all())
        .filter(|sample| begins(&sample.id.to_string(), prefix))
        .collect();
    match found.len() {
        0 => bail!("there is no sample whose id begins with `{prefix}`"),
        1 => Ok(found.remove(0)),
        count => {
            let ids = found.iter().take(ALIKE_SHOWN).map(|sample| sample.id.to_string());
            let more = if count > ALIKE_SHOWN { ", …" } else { "" };
            bail!(
                "the ids of {count} samples begin with `{prefix}`: {}{more}",
                ids.collect::<Vec<_>>().join(", ")
            )
        }
    }
}

/// The digits of an id that people are shown.
fn short(id: ContentHash) -> String {
    id.to_string().chars().take(ID_DIGITS_SHOWN).collect()
}

fn time(milliseconds: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(milliseconds).ok()
}

fn received(sample: &SampleRef) -> String {
    time(sample.received_ms).map_or_else(String::new, |time| format!("{time:.0}"))
}

/// A sample as it is printed.
#[derive(Serialize)]
struct Row<'s> {
    id: String,
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    used: Option<&'static str>,
    task: &'s str,
    split: &'static str,
    state: &'static str,
    /// Length of the audio.
    seconds: f64,
    received: Option<Timestamp>,
    /// When its record was written.
    written: Option<Timestamp>,
    request_id: &'s str,
    request_source: &'s str,
    instruction: &'s str,
    target: &'s str,
    labels: &'s [String],
    fields: &'s BTreeMap<String, String>,
    constrained: bool,
    /// The same for all samples of one recording.
    recording: String,
    record: RecordPlace<'s>,
    /// Whether 16 bits could not hold the audio exactly.
    rounded: bool,
    /// Whether some of the audio was beyond full scale.
    clipped: bool,
}

/// The record that brought a sample.
#[derive(Serialize)]
struct RecordPlace<'s> {
    topic: &'s str,
    partition: i32,
    offset: i64,
}

impl<'s> Row<'s> {
    fn new(place: &'s SampleRef, stored: &'s StoredSample, used: Option<&'static str>) -> Self {
        let sample = &stored.sample;
        let SampleSource {
            topic,
            partition,
            offset,
        } = &sample.source;
        Self {
            id: place.id.to_string(),
            used,
            task: &sample.task,
            split: place.split.name(),
            state: place.state.name(),
            seconds: seconds(&sample.audio),
            received: time(sample.received_ms),
            written: time(sample.written_ms),
            request_id: &sample.request_id,
            request_source: &sample.request_source,
            instruction: &sample.instruction,
            target: &sample.target,
            labels: &sample.labels,
            fields: &sample.fields,
            constrained: sample.constrained,
            recording: speechverse::util::hex(&place.recording),
            record: RecordPlace {
                topic,
                partition: *partition,
                offset: *offset,
            },
            rounded: stored.rounded,
            clipped: stored.clipped,
        }
    }

    fn json(&self) -> anyhow::Result<String> {
        serde_json::to_string(self).context("a sample is always JSON")
    }
}

/// Length of 16 kHz audio, seconds.
#[expect(clippy::cast_precision_loss, reason = "a sample count")]
fn seconds(audio: &[f32]) -> f64 {
    audio.len() as f64 / f64::from(SAMPLE_RATE_HZ)
}

/// Prints samples, each read by itself; `used` says what a cycle uses it for, where that is asked.
fn print(
    snapshot: &Snapshot,
    samples: &[SampleRef],
    used: Option<&HashMap<ContentHash, &'static str>>,
    json: bool,
) -> anyhow::Result<()> {
    let mut heading = vec!["id", "task", "split", "state"];
    heading.extend(used.map(|_| "use"));
    let seconds_column = heading.len();
    heading.extend(["seconds", "received", "request", "target"]);
    let mut rows = vec![heading.into_iter().map(str::to_owned).collect()];
    let mut unreadable = 0;
    for place in samples {
        let stored = match snapshot.load(place) {
            Ok(stored) => stored,
            Err(error) => {
                unreadable += 1;
                tracing::error!(id = %place.id, %error, "a sample cannot be read");
                continue;
            }
        };
        let used = used.map(|used| used.get(&place.id).copied().unwrap_or_default());
        let row = Row::new(place, &stored, used);
        if json {
            output::line(row.json()?)?;
            continue;
        }
        let mut cells = vec![
            short(place.id),
            clipped(&row.task.escape_debug().to_string(), 24),
            row.split.to_owned(),
            row.state.to_owned(),
        ];
        cells.extend(row.used.map(str::to_owned));
        cells.extend([
            format!("{:.2}", row.seconds),
            received(place),
            clipped(&row.request_id.escape_debug().to_string(), 32),
            clipped(&row.target.escape_debug().to_string(), 60),
        ]);
        rows.push(cells);
    }
    if !json {
        output::table(&rows, &[seconds_column])?;
    }
    match unreadable {
        0 => Ok(()),
        unreadable => bail!("{unreadable} samples cannot be read, see above"),
    }
}

fn list(snapshot: &Snapshot, filter: &SampleFilter, json: bool) -> anyhow::Result<()> {
    print(snapshot, &chosen(snapshot, filter), None, json)
}

fn show(snapshot: &Snapshot, id: &str, audio: Option<&Path>, json: bool) -> anyhow::Result<()> {
    let place = named(snapshot, id)?;
    let stored = snapshot.load(&place)?;
    if let Some(path) = audio {
        write_wav(path, &stored.sample.audio)?;
    }
    let row = Row::new(&place, &stored, None);
    if json {
        output::line(serde_json::to_string_pretty(&row).context("a sample is always JSON")?)?;
        return Ok(());
    }
    let text = |text: &str| text.escape_debug().to_string();
    let time = |time: Option<Timestamp>| time.map_or_else(|| "unknown".to_owned(), |time| time.to_string());
    let mut lines = vec![
        ("id", row.id.clone()),
        ("task", text(row.task)),
        ("split", row.split.to_owned()),
        ("state", row.state.to_owned()),
        ("audio", format!("{} s{}", row.seconds, audio_notes(&row))),
        ("recording", row.recording.clone()),
        ("received", time(row.received)),
        ("written", time(row.written)),
        ("request", text(row.request_id)),
        ("source", text(row.request_source)),
        (
            "record",
            format!(
                "{}/{}/{}",
                row.record.topic, row.record.partition, row.record.offset
            ),
        ),
        ("instruction", text(row.instruction)),
    ];
    lines.extend(row.labels.iter().map(|label| ("label", text(label))));
    lines.extend(
        (row.fields.iter()).map(|(name, value)| ("field", format!("{}={}", text(name), text(value)))),
    );
    let constrained = if row.constrained { "yes" } else { "no" };
    lines.push(("constrained", constrained.to_owned()));
    lines.push(("target", text(row.target)));
    for (name, value) in lines {
        output::line(format!("{name:<12} {value}"))?;
    }
    Ok(())
}

fn audio_notes(row: &Row<'_>) -> &'static str {
    match (row.rounded, row.clipped) {
        (_, true) => ", some of it was beyond full scale and is cut",
        (true, false) => ", rounded to 16 bits",
        (false, false) => "",
    }
}

fn select(settings: &Settings, filter: &SampleFilter, json: bool) -> anyhow::Result<()> {
    let snapshot = read(&settings.store)?;
    let sides = sides(&snapshot);
    let mut used = HashMap::new();
    for (name, samples) in [
        ("train", &sides.train),
        ("valid", &sides.valid),
        ("held_out", &sides.held_out),
    ] {
        used.extend(samples.iter().map(|sample| (sample.id, name)));
    }
    let mut shown = chosen(
        &snapshot,
        &SampleFilter {
            limit: usize::MAX,
            ..filter.clone()
        },
    );
    shown.retain(|sample| used.contains_key(&sample.id));
    shown.truncate(filter.limit);
    print(&snapshot, &shown, Some(&used), json)?;
    for note in cycle_notes(&sides, &settings.trainer) {
        match json {
            true => tracing::info!("{note}"),
            false => output::line(note)?,
        }
    }
    let left_out = snapshot.all().filter(|sample| sample.state != SampleState::InUse);
    tracing::debug!(
        samples = left_out.count(),
        "superseded and withheld samples are not used"
    );
    Ok(())
}

/// What a cycle on these samples would do, and what would keep it from training or from promoting.
fn cycle_notes(sides: &Sides, config: &TrainerConfig) -> Vec<String> {
    let mut notes = vec![format!(
        "{} samples to learn from, {} to choose the best step by, {} to judge the candidate by",
        sides.train.len(),
        sides.valid.len(),
        sides.held_out.len()
    )];
    if !config.enabled {
        notes.push("no cycle would run: `trainer.enabled` is false".to_owned());
    }
    if let Some(reason) = sides.too_few(config) {
        notes.push(format!("a cycle would fail: {reason}"));
        return notes;
    }
    if sides.train.is_empty() {
        notes.push("a cycle would fail: every sample is held out, none is left to learn from".to_owned());
    } else if sides.held_out.is_empty() {
        notes.push(
            "a cycle would fail: all samples are of one recording, none is left to judge the candidate by"
                .to_owned(),
        );
    } else if sides.held_out.len() < config.held_out_samples_min {
        notes.push(format!(
            "the verdict would be `undecided`, and nothing promoted by itself: {} samples to judge by, \
             `trainer.held_out_samples_min` is {}",
            sides.held_out.len(),
            config.held_out_samples_min
        ));
    }
    match TrainingConfig::load(&config.curriculum) {
        Err(error) => notes.push(format!("a cycle would fail: {error}")),
        Ok(curriculum) => {
            let data = &curriculum.data;
            let allowed = data.seconds_min..=data.seconds_max;
            let learned = sides.train.iter().chain(&sides.valid);
            let others = learned.filter(|sample| !allowed.contains(&f64::from(sample.audio_seconds)));
            match others.count() {
                0 => {}
                others => notes.push(format!(
                    "{others} of the samples to learn from or to choose by would be left out: the curriculum takes {} to {} s",
                    data.seconds_min, data.seconds_max
                )),
            }
        }
    }
    notes
}

//! `speechverse samples forget`: samples leave the files of the store.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use speechverse::kafka::config::KafkaConfig;
use speechverse::kafka::{Read, ReadFrom, Reader, Sink};
use speechverse::store::config::StoreConfig;
use speechverse::store::{ContentHash, SampleRef, SampleStore, Snapshot, StoreError};
use speechverse::wire::control::{Command, FORGOTTEN_SAMPLES_MAX, Order};
use speechverse::wire::event::{Event, EventKind};

use super::{chosen, named, read, received, short};
use crate::cli::Forget;
use crate::commands::clients::{BROKER_WAIT, fresh_id, send, settings};
use crate::commands::{Failure, runtime};
use crate::output;

/// Fewer digits of an id than this may be a slip, and name many samples.
const ID_DIGITS_MIN: usize = 4;

pub(super) fn forget(args: &Forget) -> Result<(), Failure> {
    let usage = |words: &str| Err(Failure::Usage(anyhow::anyhow!("{words}")));
    if args.ids.is_empty() && args.filter.is_empty() && !args.all {
        return usage("name what to forget: ids, --request or another filter, or --all");
    }
    if !args.ids.is_empty() && !args.filter.is_empty() {
        return usage("name ids or filters, not both");
    }
    let mut digits = args.ids.iter().chain(&args.filter.id_prefixes);
    if let Some(id) = digits.find(|id| id.len() < ID_DIGITS_MIN) {
        return usage(&format!(
            "`{id}` may be the beginning of many ids: give {ID_DIGITS_MIN} digits at least"
        ));
    }
    let settings = settings(&args.broker)?;
    let config = settings.store;
    if args.dry_run {
        let samples = wanted(&read(&config)?, args)?;
        for sample in &samples {
            output::line(format!("would forget {}", words(sample)))?;
        }
        output::line(format!("{} samples would be forgotten", samples.len()))?;
        return Ok(());
    }
    if args.live {
        let samples = wanted(&read(&config)?, args)?;
        let limit = Duration::from_secs(args.timeout);
        runtime()?.block_on(order(&settings.kafka, &samples, limit))?;
        check_gone(&read(&config)?, &samples)?;
        for sample in &samples {
            output::line(format!("forgotten {}", words(sample)))?;
        }
        output::line(format!("{} samples forgotten by the pipeline", samples.len()))?;
    } else {
        forget_here(&config, args)?;
    }
    warn_of_files_aside(&config.dir);
    Ok(())
}

fn forget_here(config: &StoreConfig, args: &Forget) -> anyhow::Result<()> {
    if !config.dir.is_dir() {
        let dir = config.dir.clone();
        return Err(StoreError::Missing { dir }.into());
    }
    let store = SampleStore::open(config).map_err(|error| match error {
        StoreError::Locked { .. } => anyhow::Error::new(error)
            .context("nothing was forgotten; --live orders the pipeline that has the samples to forget them, or stop it first"),
        error => error.into(),
    })?;
    let samples = wanted(&store.snapshot(), args)?;
    let ids: Vec<ContentHash> = samples.iter().map(|sample| sample.id).collect();
    let forgotten = store
        .forget(&ids)
        .context("not all samples could be forgotten; `samples list` shows which are left")?;
    for sample in &samples {
        output::line(format!("forgotten {}", words(sample)))?;
    }
    output::line(format!(
        "{} samples forgotten: {} segments written anew, {} bytes less",
        forgotten.samples, forgotten.segments, forgotten.bytes
    ))?;
    Ok(())
}

/// Orders the pipeline to forget samples, and waits until it has.
async fn order(config: &KafkaConfig, samples: &[SampleRef], limit: Duration) -> anyhow::Result<()> {
    let mut events = Reader::open(config, &config.topics.events, ReadFrom::End, BROKER_WAIT)
        .await
        .with_context(|| format!("is the pipeline running at {}?", config.bootstrap))?;
    let sink = Sink::new(config).context("Kafka producer")?;
    for (number, part) in samples.chunks(FORGOTTEN_SAMPLES_MAX).enumerate() {
        let id = fresh_id(number);
        let order = Order {
            id: Some(id.clone()),
            command: Command::Forget {
                samples: part.iter().map(|sample| sample.id.to_string()).collect(),
            },
        };
        let value = Some(Bytes::from(order.to_json()));
        send(&sink, &config.topics.control, &id, value, Vec::new()).await?;
        carried_out(&mut events, &id, limit).await?;
    }
    Ok(())
}

/// Looks whether the samples have left the folder: the pipeline that carried the order out may have another.
fn check_gone(now: &Snapshot, samples: &[SampleRef]) -> anyhow::Result<()> {
    let ids: HashSet<ContentHash> = samples.iter().map(|sample| sample.id).collect();
    match now.all().filter(|sample| ids.contains(&sample.id)).count() {
        0 => Ok(()),
        left => bail!(
            "{left} of {} samples are still there: has the pipeline another `store.dir`?",
            samples.len()
        ),
    }
}

/// Waits for the event that says what became of an order.
async fn carried_out(events: &mut Reader, id: &str, limit: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!(
                "no pipeline has carried out the order `{id}` within {} s; it may still do so",
                limit.as_secs()
            );
        }
        let Read::Record(record) = events.next(left).await.context("cannot follow the order")? else {
            continue;
        };
        let event = (record.value.as_deref()).and_then(|value| serde_json::from_slice::<Event>(value).ok());
        match event.filter(|event| event.id == id).map(|event| event.what) {
            Some(EventKind::CommandObeyed { .. }) => return Ok(()),
            Some(EventKind::CommandRefused { reason, .. } | EventKind::CommandExpired { reason, .. }) => {
                bail!("the pipeline did not carry out the order: {reason}");
            }
            _ => {}
        }
    }
}

fn wanted(snapshot: &Snapshot, args: &Forget) -> anyhow::Result<Vec<SampleRef>> {
    if args.ids.is_empty() {
        return Ok(chosen(snapshot, &args.filter));
    }
    let mut found: Vec<SampleRef> = Vec::new();
    for id in &args.ids {
        let sample = named(snapshot, id)?;
        if found.iter().all(|other| other.id != sample.id) {
            found.push(sample);
        }
    }
    Ok(found)
}

fn words(sample: &SampleRef) -> String {
    let (task, split, state) = (
        sample.task.escape_debug(),
        sample.split.name(),
        sample.state.name(),
    );
    format!(
        "{} of {task} ({split}, {state}, received {})",
        short(sample.id),
        received(sample)
    )
}

/// Files that the store could not read and put aside are not looked into.
fn warn_of_files_aside(dir: &Path) {
    let Ok(files) = std::fs::read_dir(dir) else { return };
    for path in files.flatten().map(|file| file.path()) {
        if path.extension().is_some_and(|extension| extension == "damaged") {
            tracing::warn!(
                path = %path.display(),
                "a damaged segment lies beside the store and may hold forgotten samples: delete it"
            );
        }
    }
}

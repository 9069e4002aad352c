//! `speechverse samples import`: labelled rows of manifests become samples.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::Timestamp;
use serde_json::Value;
use speechverse::config::Settings;
use speechverse::store::{Put, Sample, SampleSource, SampleState, SampleStore, Split, StoreError};
use speechverse::text::TaskTable;
use speechverse::training::prompt_variants::expand;
use speechverse::training::{Example, Manifest, read_manifest};
use speechverse_actors::collector::question;

use crate::commands::Failure;
use crate::output;

/// `ce_source` of rows that name no source: with the path of their audio it names a request, so that rows
/// that are imported again are known, and a changed target takes the place of the former one.
const IMPORT_SOURCE: &str = "/speechverse/samples/import";

/// What a row says that the loader of manifests does not look at; values of other types are not ours.
#[derive(Default)]
struct Notes {
    audio_filepath: String,
    offset: Option<f64>,
    split: Option<String>,
    state: Option<String>,
    constrained: Option<bool>,
    request_id: Option<String>,
    request_source: Option<String>,
    received: Option<Timestamp>,
}

/// A manifest: its examples, and the notes of its rows by line.
struct Rows {
    path: PathBuf,
    manifest: Manifest,
    notes: HashMap<usize, Notes>,
}

#[derive(Default)]
struct Counts {
    train: usize,
    held_out: usize,
    duplicates: usize,
    superseding: usize,
    refused: usize,
}

pub(super) fn import(settings: &Settings, manifests: &[PathBuf]) -> Result<(), Failure> {
    let tasks = TaskTable::load(&settings.service.tasks_dir).map_err(Failure::usage)?;
    // All are read before anything is stored.
    let manifests: anyhow::Result<Vec<Rows>> = manifests.iter().map(|path| Rows::read(path)).collect();
    let manifests = manifests.context("nothing was imported")?;
    let store = SampleStore::open(&settings.store).map_err(|error| match error {
        StoreError::Locked { .. } => anyhow::Error::new(error).context(
            "nothing was imported; publish the samples to the pipeline that has the store \
             (`speechverse label FILE --target TEXT`), or stop it",
        ),
        error => error.into(),
    })?;
    let mut counts = Counts::default();
    for rows in manifests {
        rows.import(&store, &tasks, &mut counts)?;
    }
    store.sync().context("the samples may not survive a power cut")?;
    output::line(format!(
        "{} samples stored ({} train, {} held out), {} duplicates, {} took the place of an earlier target, {} rows refused",
        counts.train + counts.held_out,
        counts.train,
        counts.held_out,
        counts.duplicates,
        counts.superseding,
        counts.refused
    ))?;
    match counts.refused {
        0 => Ok(()),
        refused => {
            Err(anyhow::anyhow!("{refused} rows were not imported, see above; the others were").into())
        }
    }
}

impl Rows {
    fn read(path: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            manifest: read_manifest(path, None)?,
            notes: notes(path).with_context(|| format!("cannot read `{}`", path.display()))?,
        })
    }

    fn import(self, store: &SampleStore, tasks: &TaskTable, counts: &mut Counts) -> anyhow::Result<()> {
        let Self {
            path,
            manifest,
            mut notes,
        } = self;
        counts.refused += manifest.refused;
        for reason in &manifest.reasons {
            tracing::error!("{reason}");
        }
        let now_ms = Timestamp::now().as_millisecond();
        for example in manifest.examples {
            let line: usize = (example.id.rsplit_once(':'))
                .and_then(|(_, line)| line.parse().ok())
                .unwrap_or_default();
            let notes = notes.remove(&line).unwrap_or_default();
            let refused = |reason: &str| tracing::error!("{}, line {line}: {reason}", path.display());
            if notes.is(SampleState::Superseded) {
                refused("it is superseded: a later answer was in force where it comes from");
                counts.refused += 1;
                continue;
            }
            let examples = match expand(vec![example], Some(tasks), 0.0, 0) {
                Ok(examples) => examples,
                Err(error) => {
                    refused(&error.to_string());
                    counts.refused += 1;
                    continue;
                }
            };
            let source = SampleSource {
                topic: path.display().to_string(),
                partition: 0,
                offset: i64::try_from(line).unwrap_or(i64::MAX),
            };
            for example in examples {
                let sample = match sample(&example, &notes, source.clone(), now_ms, tasks) {
                    Ok(sample) => sample,
                    Err(reason) => {
                        refused(&reason);
                        counts.refused += 1;
                        continue;
                    }
                };
                let put = store.put_on(&sample, notes.side());
                match put.context("the import ended early")? {
                    Put::Stored {
                        split, supersedes, ..
                    } => {
                        counts.superseding += usize::from(supersedes.is_some());
                        match split {
                            Split::Train => counts.train += 1,
                            Split::HeldOut => counts.held_out += 1,
                        }
                    }
                    Put::Duplicate { .. } | Put::Outdated { .. } => counts.duplicates += 1,
                    Put::Refused { refusal } => {
                        refused(&refusal.to_string());
                        counts.refused += 1;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Notes {
    fn of(row: &Value) -> Self {
        let text = |name: &str| row[name].as_str().map(str::to_owned);
        Self {
            audio_filepath: text("audio_filepath").unwrap_or_default(),
            offset: row["offset"].as_f64(),
            split: text("split"),
            state: text("state"),
            constrained: row["constrained"].as_bool(),
            request_id: text("request_id"),
            request_source: text("request_source"),
            received: text("received").and_then(|time| time.parse().ok()),
        }
    }

    /// Whether the row says that it is such a sample of a store, as `samples export` writes it.
    fn is(&self, state: SampleState) -> bool {
        self.state.as_deref() == Some(state.name())
    }

    /// The side of the row's recording, where it names one.
    fn side(&self) -> Option<Split> {
        let split = self.split.as_deref()?;
        Some(match split {
            "train" => Split::Train,
            _ => Split::HeldOut,
        })
    }

    /// Id of the row's request: the one it names, else the place of its audio.
    fn request_id(&self) -> String {
        let place = || match self.offset {
            Some(offset) => format!("{}#{offset}", self.audio_filepath),
            None => self.audio_filepath.clone(),
        };
        self.request_id.clone().unwrap_or_else(place)
    }
}

/// The notes of a manifest's rows, by line; lines that are no rows have none.
fn notes(path: &Path) -> std::io::Result<HashMap<usize, Notes>> {
    let lines = BufReader::new(std::fs::File::open(path)?).split(b'\n');
    let mut notes = HashMap::new();
    for (at, line) in lines.enumerate() {
        let line = line?;
        let row = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line); // a byte order mark
        if let Ok(row) = serde_json::from_slice(row) {
            notes.insert(at + 1, Notes::of(&row));
        }
    }
    Ok(notes)
}

/// A row as a sample, as if it had come over the label topic; or why it is none.
fn sample(
    example: &Example,
    notes: &Notes,
    source: SampleSource,
    now_ms: i64,
    tasks: &TaskTable,
) -> Result<Sample, String> {
    let variables = &example.variables;
    let asked = match &example.instruction {
        Some(own) => question(&example.task, own, variables, |names, variables, own| {
            tasks.ask(names, variables, own)
        }),
        None => tasks.ask(&example.task, variables, None),
    };
    let asked = asked.map_err(|error| error.to_string())?;
    let target = match &asked.joint {
        Some(layout) if !example.targets.is_empty() => {
            let of_field = |task: &String| {
                let target = example.targets.get(task);
                target.ok_or_else(|| format!("`targets` has none for task `{task}`"))
            };
            let values: Result<Vec<&String>, String> = layout
                .fields()
                .iter()
                .map(|field| of_field(&field.task))
                .collect();
            layout.write(&values?)
        }
        _ => example.target.clone(),
    };
    let said = |reason: String| reason.replace("`ce_target`", "the target");
    asked.check_target(&target).map_err(said)?;
    let labels: Option<Vec<String>> =
        (variables.labels.as_ref()).map(|labels| labels.iter().map(|label| label.name.clone()).collect());
    Ok(Sample {
        audio: example.audio.load()?,
        instruction: asked.instruction,
        target,
        task: example.task.clone(),
        source,
        request_source: notes
            .request_source
            .clone()
            .unwrap_or_else(|| IMPORT_SOURCE.to_owned()),
        request_id: notes.request_id(),
        constrained: notes.constrained.unwrap_or(labels.is_some()),
        labels: labels.unwrap_or_default(),
        fields: variables.fields.clone(),
        written_ms: now_ms,
        received_ms: notes.received.map_or(now_ms, Timestamp::as_millisecond),
        may_train: !notes.is(SampleState::Withheld),
    })
}

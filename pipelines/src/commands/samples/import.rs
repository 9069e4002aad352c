//! `speechverse samples import`: labelled rows of manifests become samples.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use jiff::Timestamp;
use serde_json::Value;
use speechverse::config::Settings;
use speechverse::store::{
    ContentHash, Put, Sample, SampleSource, SampleState, SampleStore, Split, StoreError,
};
use speechverse::text::TaskTable;
use speechverse::training::manifest::lines;
use speechverse::training::prompt_variants::expand;
use speechverse::training::{Example, Manifest, TrainingError, read_manifest};
use speechverse_actors::collector::question;

use self::quotas::Quotas;
use crate::commands::Failure;
use crate::output;

mod quotas;

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
    written: Option<Timestamp>,
}

/// A manifest: its examples, and the notes of its rows by line.
struct Rows {
    path: Arc<Path>,
    manifest: Manifest,
    notes: HashMap<usize, Notes>,
}

/// A row to be stored: an example for each of its samples.
struct Row {
    path: Arc<Path>,
    line: usize,
    notes: Notes,
    side: Option<Split>,
    examples: Vec<Example>,
}

#[derive(Default)]
struct Counts {
    /// What was stored, and its task.
    stored: HashMap<ContentHash, Arc<str>>,
    duplicates: usize,
    superseding: usize,
    outdated: usize,
    refused: usize,
}

pub(super) fn import(settings: &Settings, manifests: &[PathBuf], evict: bool) -> Result<(), Failure> {
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
    let rows: Vec<Row> = (manifests.into_iter())
        .flat_map(|manifest| manifest.rows(&tasks, &mut counts))
        .collect();
    let quotas = Quotas::new(&store, &settings.store);
    if !evict {
        quotas.check_room(rows.iter().flat_map(|row| &row.examples))?;
    }
    let ended = (rows.into_iter()).try_for_each(|row| row.import(&store, &tasks, &mut counts));
    store.sync().context("the samples may not survive a power cut")?;
    let now = store.snapshot();
    let on = |side: Split| {
        let imported = now.all().filter(|sample| counts.stored.contains_key(&sample.id));
        imported.filter(|sample| sample.split == side).count()
    };
    let (train, held_out) = (on(Split::Train), on(Split::HeldOut));
    output::line(format!(
        "{} samples stored ({train} train, {held_out} held out), {} duplicates, {} took the place of an earlier \
         target, {} outdated, {} rows refused",
        train + held_out,
        counts.duplicates,
        counts.superseding,
        counts.outdated,
        counts.refused
    ))?;
    for words in quotas.evicted(&now, &counts.stored) {
        output::line(words)?;
    }
    ended?;
    match counts.refused {
        0 => Ok(()),
        refused => {
            Err(anyhow::anyhow!("{refused} rows were not imported, see above; the others were").into())
        }
    }
}

impl Counts {
    fn refuse(&mut self, path: &Path, line: usize, reason: &str) {
        tracing::error!("{}, line {line}: {reason}", path.display());
        self.refused += 1;
    }
}

impl Rows {
    fn read(path: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            path: path.into(),
            manifest: read_manifest(path, None)?,
            notes: notes(path)?,
        })
    }

    /// Those that can be stored, as far as that is known without their audio.
    fn rows(self, tasks: &TaskTable, counts: &mut Counts) -> Vec<Row> {
        let Self {
            path,
            manifest,
            mut notes,
        } = self;
        counts.refused += manifest.refused;
        for reason in &manifest.reasons {
            tracing::error!("{reason}");
        }
        let mut rows = Vec::with_capacity(manifest.examples.len());
        for example in manifest.examples {
            let line: usize = (example.id.rsplit_once(':'))
                .and_then(|(_, line)| line.parse().ok())
                .unwrap_or_default();
            let notes = notes.remove(&line).unwrap_or_default();
            let expanded = expand(vec![example], Some(tasks), 0.0, 0).map_err(|error| error.to_string());
            let checked = notes.side().and_then(|side| Ok((side, expanded?)));
            match checked {
                Ok((side, examples)) => rows.push(Row {
                    path: Arc::clone(&path),
                    line,
                    notes,
                    side,
                    examples,
                }),
                Err(reason) => counts.refuse(&path, line, &reason),
            }
        }
        rows
    }
}

impl Row {
    fn import(self, store: &SampleStore, tasks: &TaskTable, counts: &mut Counts) -> anyhow::Result<()> {
        let (path, line) = (&*self.path, self.line);
        for example in &self.examples {
            let sample = match sample(example, &self.notes, self.source(), tasks) {
                Ok(sample) => sample,
                Err(reason) => {
                    counts.refuse(path, line, &reason);
                    continue;
                }
            };
            let put = store.put_on(&sample, self.side);
            match put.context("the import ended early")? {
                Put::Stored { id, supersedes, .. } => {
                    counts.superseding += usize::from(supersedes.is_some());
                    counts.stored.insert(id, sample.task.into());
                }
                Put::Duplicate { supersedes, .. } => {
                    counts.superseding += usize::from(supersedes.is_some());
                    counts.duplicates += 1;
                }
                Put::Outdated { .. } => {
                    tracing::warn!(
                        "{}, line {line}: the store has a later answer, which stays; a row without `written` \
                         would take its place",
                        path.display()
                    );
                    counts.outdated += 1;
                }
                Put::Refused { refusal } => counts.refuse(path, line, &refusal.to_string()),
            }
        }
        Ok(())
    }

    /// The line as a record. The store takes a higher offset in one topic for the later answer, whatever the
    /// times say; between rows that name a time, which may come from several exports, that must decide.
    fn source(&self) -> SampleSource {
        let offset = self.notes.written.map_or(self.line, |_| 0);
        SampleSource {
            topic: self.path.display().to_string(),
            partition: 0,
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
        }
    }
}

impl Notes {
    fn of(row: &Value) -> Self {
        let text = |name: &str| row[name].as_str().map(str::to_owned);
        let time = |name: &str| text(name).and_then(|time| time.parse().ok());
        Self {
            audio_filepath: text("audio_filepath").unwrap_or_default(),
            offset: row["offset"].as_f64(),
            split: text("split"),
            state: text("state"),
            constrained: row["constrained"].as_bool(),
            request_id: text("request_id"),
            request_source: text("request_source"),
            received: time("received"),
            written: time("written"),
        }
    }

    /// Whether the row says that it is such a sample of a store, as `samples export` writes it.
    fn is(&self, state: SampleState) -> bool {
        self.state.as_deref() == Some(state.name())
    }

    /// The side of the row's recording, where it names one; or why the row is not to be stored.
    fn side(&self) -> Result<Option<Split>, String> {
        if self.is(SampleState::Superseded) {
            return Err("it is superseded: a later answer was in force where it comes from".to_owned());
        }
        match self.split.as_deref() {
            None => Ok(None),
            Some("train") => Ok(Some(Split::Train)),
            Some("test" | "valid" | "dev" | "held_out") => Ok(Some(Split::HeldOut)),
            Some(other) => Err(format!(
                "`split` is `{}`, expected `train`, or `test`, `valid`, `dev` or `held_out`",
                other.escape_debug()
            )),
        }
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
fn notes(path: &Path) -> Result<HashMap<usize, Notes>, TrainingError> {
    let mut notes = HashMap::new();
    lines(path, &mut |at, text| {
        if let Some(row) = text.ok().and_then(|text| serde_json::from_str(text).ok()) {
            notes.insert(at, Notes::of(&row));
        }
        Ok(())
    })?;
    Ok(notes)
}

/// A row as a sample, as if it had come over the label topic; or why it is none.
fn sample(
    example: &Example,
    notes: &Notes,
    source: SampleSource,
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
    let now_ms = Timestamp::now().as_millisecond();
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
        // No later than now: what is written next must be able to correct it.
        written_ms: (notes.written).map_or(now_ms, |time| time.as_millisecond().min(now_ms)),
        received_ms: notes.received.map_or(now_ms, Timestamp::as_millisecond),
        may_train: !notes.is(SampleState::Withheld),
    })
}

//! `speechverse samples export`: WAV files and a manifest.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use jiff::Timestamp;
use serde::Serialize;
use speechverse::audio::write_wav;
use speechverse::store::{SampleRef, SampleState, Snapshot, Split, StoredSample};
use speechverse::text::tasks::TRANSCRIPT;

use super::{chosen, passes, seconds, time};
use crate::cli::SampleFilter;
use crate::output;

/// A row of the manifest: what the loader reads, and behind it what the store knows besides.
#[derive(Serialize)]
struct ManifestRow<'s> {
    audio_filepath: String,
    duration: f64,
    task: &'s str,
    instruction: &'s str,
    target: &'s str,
    /// What is said, where that is the target; other tools read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'s str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    labels: &'s [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    fields: &'s BTreeMap<String, String>,
    split: &'static str,
    constrained: bool,
    id: String,
    request_id: &'s str,
    request_source: &'s str,
    received: Option<Timestamp>,
    /// Where it is not `in_use`.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
}

impl<'s> ManifestRow<'s> {
    fn new(place: &SampleRef, stored: &'s StoredSample, file: String) -> Self {
        let sample = &stored.sample;
        Self {
            audio_filepath: file,
            duration: seconds(&sample.audio),
            task: &sample.task,
            instruction: &sample.instruction,
            target: &sample.target,
            text: (sample.task == TRANSCRIPT).then_some(sample.target.as_str()),
            labels: &sample.labels,
            fields: &sample.fields,
            split: match place.split {
                Split::Train => "train",
                Split::HeldOut => "test", // as manifests of corpora call it
            },
            constrained: sample.constrained,
            id: place.id.to_string(),
            request_id: &sample.request_id,
            request_source: &sample.request_source,
            received: time(sample.received_ms),
            state: (place.state != SampleState::InUse).then(|| place.state.name()),
        }
    }
}

/// A folder under a name that is not its last; removed unless it is finished.
struct Unfinished {
    path: PathBuf,
    out: PathBuf,
}

impl Unfinished {
    fn create(out: &Path) -> anyhow::Result<Self> {
        let written = || format!("cannot write to `{}`", out.display());
        if out.exists() && std::fs::read_dir(out).with_context(written)?.next().is_some() {
            bail!("folder `{}` is not empty", out.display());
        }
        let Some(name) = out.file_name() else {
            bail!("`{}` names no folder that could be made", out.display());
        };
        let mut unfinished = std::ffi::OsString::from(".");
        unfinished.push(name);
        unfinished.push(format!(".unfinished-{}", std::process::id()));
        let folder = out.parent().unwrap_or_else(|| Path::new("."));
        std::fs::create_dir_all(folder).with_context(written)?;
        let path = out.with_file_name(unfinished);
        std::fs::create_dir(&path).with_context(written)?;
        Ok(Self {
            path,
            out: out.to_owned(),
        })
    }

    /// Gives the folder its last name.
    fn finish(self) -> anyhow::Result<()> {
        std::fs::rename(&self.path, &self.out)
            .with_context(|| format!("cannot write to `{}`", self.out.display()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path); // not there any more when it is finished
    }
}

/// Writes the samples that a filter lets through to a folder.
pub(super) fn export(snapshot: &Snapshot, filter: &SampleFilter, out: &Path) -> anyhow::Result<()> {
    let mut wanted = filter.clone();
    if wanted.states.is_empty() {
        wanted.states = vec![SampleState::InUse];
    }
    let samples = chosen(snapshot, &wanted);
    let left_out = left_out(snapshot, filter, &wanted);
    if samples.is_empty() {
        bail!("no sample is to be exported{left_out}: nothing was written");
    }
    let folder = Unfinished::create(out)?;
    let manifest = folder.path.join("manifest.jsonl");
    let written = || format!("cannot write `{}`", manifest.display());
    let mut rows = BufWriter::new(std::fs::File::create(&manifest).with_context(written)?);
    let (mut exported, mut unreadable, mut length) = (0_usize, 0_usize, 0.0);
    for place in &samples {
        let stored = match snapshot.load(place) {
            Ok(stored) => stored,
            Err(error) => {
                unreadable += 1;
                tracing::error!(id = %place.id, %error, "a sample cannot be read, it is not exported");
                continue;
            }
        };
        let file = format!("{}.wav", place.id);
        write_wav(&folder.path.join(&file), &stored.sample.audio)?;
        let row = ManifestRow::new(place, &stored, file);
        let row = serde_json::to_string(&row).context("a row is always JSON")?;
        writeln!(rows, "{row}").with_context(written)?;
        exported += 1;
        length += seconds(&stored.sample.audio);
    }
    rows.into_inner()
        .map_err(std::io::IntoInnerError::into_error)
        .and_then(|file| file.sync_all())
        .with_context(written)?;
    folder.finish()?;
    output::line(format!(
        "{exported} samples, {length:.1} s of audio, in {}{left_out}",
        out.join("manifest.jsonl").display()
    ))?;
    match unreadable {
        0 => Ok(()),
        unreadable => bail!("{unreadable} samples cannot be read, see above; the others were exported"),
    }
}

/// How many samples are left out because of their state, in words.
fn left_out(snapshot: &Snapshot, filter: &SampleFilter, wanted: &SampleFilter) -> String {
    let mut words = String::new();
    for state in SampleState::ALL {
        let of_state = snapshot.all().filter(|sample| sample.state == state);
        let count = of_state.filter(|sample| passes(snapshot, filter, sample)).count();
        if count > 0 && !wanted.states.contains(&state) {
            words += &format!(", {count} {} left out (--state {})", state.name(), state.name());
        }
    }
    words
}

//! `speechverse samples export`: WAV files and a manifest.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{BufWriter, ErrorKind, Write};
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
    written: Option<Timestamp>,
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
            written: time(sample.written_ms),
            state: (place.state != SampleState::InUse).then(|| place.state.name()),
        }
    }
}

/// Name of the manifest.
const MANIFEST: &str = "manifest.jsonl";

/// A folder whose manifest has another name until it is finished. One that was not there has another name too
/// and is removed unless it is finished; from one that was there, what was written is removed.
struct Unfinished {
    out: PathBuf,
    /// Where files are written.
    path: PathBuf,
    manifest: PathBuf,
    /// Files in it, to be removed; none once it is finished.
    files: Vec<PathBuf>,
}

impl Unfinished {
    fn create(out: &Path) -> anyhow::Result<Self> {
        let written = || format!("cannot write to `{}`", out.display());
        let unfinished = |name: &OsStr| {
            let mut unfinished = OsString::from(".");
            unfinished.push(name);
            unfinished.push(format!(".unfinished-{}", std::process::id()));
            unfinished
        };
        let path = match std::fs::read_dir(out) {
            Ok(mut files) => match files.next() {
                Some(_) => bail!("folder `{}` is not empty", out.display()),
                None => out.to_owned(), // perhaps a mount or a link, which must not be replaced
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let Some(name) = out.file_name() else {
                    bail!("`{}` names no folder that could be made", out.display());
                };
                let folder = out.parent().unwrap_or_else(|| Path::new("."));
                std::fs::create_dir_all(folder).with_context(written)?;
                let path = out.with_file_name(unfinished(name));
                std::fs::create_dir(&path).with_context(written)?;
                path
            }
            Err(error) => return Err(error).with_context(written),
        };
        let manifest = path.join(unfinished(MANIFEST.as_ref()));
        Ok(Self {
            out: out.to_owned(),
            files: vec![manifest.clone()],
            path,
            manifest,
        })
    }

    /// Path of a further file.
    fn file(&mut self, name: &str) -> &Path {
        self.files.push(self.path.join(name));
        self.files.last().expect("it was just put there")
    }

    /// Gives the manifest, and then a new folder, its last name.
    fn finish(mut self) -> anyhow::Result<()> {
        let manifest = self.file(MANIFEST).to_owned();
        std::fs::rename(&self.manifest, manifest)
            .and_then(|()| match self.path == self.out {
                true => Ok(()),
                false => std::fs::rename(&self.path, &self.out),
            })
            .with_context(|| format!("cannot write to `{}`", self.out.display()))?;
        self.files.clear();
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.path != self.out {
            let _ = std::fs::remove_dir_all(&self.path); // not there any more when it is finished
            return;
        }
        for file in &self.files {
            let _ = std::fs::remove_file(file); // not all were written
        }
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
    let mut folder = Unfinished::create(out)?;
    let written = || format!("cannot write the manifest in `{}`", out.display());
    let mut rows = BufWriter::new(std::fs::File::create(&folder.manifest).with_context(written)?);
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
        write_wav(folder.file(&file), &stored.sample.audio)?;
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
        out.join(MANIFEST).display()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_that_fails_leaves_what_was_there_as_it_was() {
        let place = tempfile::tempdir().unwrap();
        let (there, other) = (place.path().join("there"), place.path().join("other"));
        std::fs::create_dir(&there).unwrap();
        for out in [&there, &other] {
            let mut folder = Unfinished::create(out).unwrap();
            std::fs::write(&folder.manifest, "row").unwrap();
            std::fs::write(folder.file("a.wav"), "sound").unwrap();
        }

        assert_eq!(std::fs::read_dir(&there).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }
}

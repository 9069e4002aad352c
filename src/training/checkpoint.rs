//! What a run needs to go on exactly where it was: weights, moments, place in the data, clocks, best so far.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Tensor};

use super::TrainingError;
use super::batch::LoadedBatch;
use crate::inference::speech_llm::Learned;
use crate::models::LanguageModel;
use crate::models::adapter::plain::{PlainFile, PlainTensor};
use crate::models::adapter::{AdapterSnapshot, LoraSnapshot};
use crate::nn::lora::LoraSet;
use crate::nn::optimizer::AdamW;
use crate::util::hex;

/// Unreadable clips beyond this number end the run when they are more than one in twenty.
const UNREADABLE_MAX: u64 = 10;

const ADAPTER: &str = "adapter.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const LORA: &str = "lora";
const STATE_BYTES_MAX: usize = 1 << 20;

/// Where a run is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct RunState {
    /// Digest of what a resumed run must have in common with the saved one.
    pub fingerprint: String,
    /// Digests of the parts of it by name; none in checkpoints of earlier versions.
    #[serde(default)]
    pub parts: BTreeMap<String, String>,
    /// Current stage, from 0; equal to the number of stages when all are done.
    pub stage: usize,
    /// Optimiser steps done in it.
    pub step: u64,
    /// Epoch of the next batch.
    pub epoch: u64,
    /// Place of the next batch in its epoch.
    pub position: usize,
    /// Training time of the stage, seconds.
    pub stage_seconds: f64,
    /// Time of the whole run, seconds.
    pub run_seconds: f64,
    /// Steps of all stages.
    pub total_steps: u64,
    /// Steps left out because of values that are not finite.
    pub skipped: u64,
    /// Clips that could not be read, of those tried.
    pub unreadable: u64,
    /// Clips tried.
    pub tried: u64,
    /// Ids of the recordings that were trained on although their sound is damaged.
    #[serde(default)]
    pub damaged: BTreeSet<String>,
    /// Best validation of the current stage.
    pub best: Option<Best>,
    /// Validations since then.
    pub since_best: u32,
}

/// What a resumed run must have in common with the one that was saved.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fingerprint {
    whole: String,
    parts: BTreeMap<String, String>,
}

impl Fingerprint {
    /// The digests of a table. The order of names does not count: what a `Value` keeps of it depends on the
    /// features that the crates of a build ask `serde_json` for.
    pub(crate) fn of(mut table: serde_json::Value) -> Self {
        table.sort_all_objects();
        let digest = |value: &serde_json::Value| hex(&Sha256::digest(value.to_string()));
        let parts = table.as_object().into_iter().flatten();
        Self {
            whole: digest(&table),
            parts: parts.map(|(name, value)| (name.clone(), digest(value))).collect(),
        }
    }

    /// The state of a run that begins.
    pub(crate) fn begin(self) -> RunState {
        RunState {
            fingerprint: self.whole,
            parts: self.parts,
            ..RunState::default()
        }
    }

    /// Whether `state`, read from `folder`, may be gone on from.
    ///
    /// # Errors
    /// [`TrainingError::Checkpoint`], which names what differs.
    pub(crate) fn check(&self, state: &RunState, folder: &Path) -> Result<(), TrainingError> {
        if state.fingerprint == self.whole {
            return Ok(());
        }
        let all: BTreeSet<&String> = self.parts.keys().chain(state.parts.keys()).collect();
        let differs =
            |name: &&String| state.parts.is_empty() || state.parts.get(*name) != self.parts.get(*name);
        let names: Vec<String> = all
            .into_iter()
            .filter(differs)
            .map(|name| format!("`{name}`"))
            .collect();
        let one_of = if state.parts.is_empty() { "one of " } else { "" };
        let names = names.join(", ");
        Err(TrainingError::Checkpoint {
            path: folder.to_owned(),
            reason: format!(
                "it belongs to a run that differs in {one_of}{names}; restore what was (of `data` the names of manifests count too), or start anew without `--resume`"
            ),
        })
    }
}

impl RunState {
    /// Takes a batch: counts its clips, readable, damaged and not readable, and sets the position behind it.
    ///
    /// # Errors
    /// [`TrainingError::Unreadable`] when too many could not be read to go on.
    pub(crate) fn take_batch(&mut self, batch: &LoadedBatch) -> Result<(), TrainingError> {
        self.damaged.extend(batch.damaged.iter().cloned());
        self.tried += (batch.rows.len() + batch.unreadable.len()) as u64;
        self.unreadable += batch.unreadable.len() as u64;
        for reason in &batch.unreadable {
            tracing::warn!(reason, "left a training clip out");
        }
        let (failed, tried) = (self.unreadable, self.tried);
        match batch.unreadable.last() {
            Some(last) if failed > UNREADABLE_MAX && failed * 20 > tried => Err(TrainingError::Unreadable {
                failed,
                tried,
                last: last.clone(),
            }),
            _ => {
                (self.epoch, self.position) = if batch.position + 1 == batch.batches {
                    (batch.epoch + 1, 0)
                } else {
                    (batch.epoch, batch.position + 1)
                };
                Ok(())
            }
        }
    }
}

/// A validation worth remembering.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Best {
    /// Validation loss.
    pub loss: f64,
    /// Word error rate, when something was transcribed.
    pub wer: Option<f64>,
    /// Step of the stage.
    pub step: u64,
}

/// Saves weights, moments and state into `folder`, whole or not at all: the former checkpoint stays until the
/// new one is on the disk.
///
/// # Errors
/// [`TrainingError`] when something cannot be written.
pub fn save(
    folder: &Path,
    learned: &Learned,
    optimizer: &AdamW,
    state: &RunState,
) -> Result<(), TrainingError> {
    save_with(folder, optimizer, state, |new| {
        save_learned(new, learned, "checkpoint").map(|_| ())
    })
}

/// As [`save`], with weights that `write_weights` puts into the folder it is given.
pub(super) fn save_with(
    folder: &Path,
    optimizer: &AdamW,
    state: &RunState,
    write_weights: impl FnOnce(&Path) -> Result<(), TrainingError>,
) -> Result<(), TrainingError> {
    replace(folder, |new| {
        write_weights(new)?;
        let mut moments = PlainFile::default();
        for (name, tensor) in optimizer.state() {
            moments.tensors.insert(name, PlainTensor::from_tensor(&tensor)?);
        }
        moments.write(&new.join(OPTIMIZER))?;
        let path = new.join(STATE);
        let json = serde_json::to_vec_pretty(state).expect("numbers and strings only");
        std::fs::write(&path, json).map_err(TrainingError::io("write", &path))?;
        std::fs::File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(TrainingError::io("sync", &path))
    })
}

/// Puts a folder that `write` fills in the place of `folder`, whole or not at all.
pub(super) fn replace(
    folder: &Path,
    write: impl FnOnce(&Path) -> Result<(), TrainingError>,
) -> Result<(), TrainingError> {
    let (new, old) = (sibling(folder, "new"), sibling(folder, "old"));
    remove(&new)?;
    std::fs::create_dir_all(&new).map_err(TrainingError::io("make", &new))?;
    write(&new)?;
    std::fs::File::open(&new)
        .and_then(|file| file.sync_all())
        .map_err(TrainingError::io("sync", &new))?;
    if folder.exists() {
        remove(&old)?; // not before: where a crash came between the two renames, it is all there is
        std::fs::rename(folder, &old).map_err(TrainingError::io("replace", folder))?;
    }
    std::fs::rename(&new, folder).map_err(TrainingError::io("replace", folder))?;
    remove(&old)
}

/// The checkpoint to resume from: `folder`, or the one before it when a crash came between two renames.
pub fn find(folder: &Path) -> Option<PathBuf> {
    [folder.to_owned(), sibling(folder, "old")]
        .into_iter()
        .find(|folder| folder.join(STATE).is_file())
}

/// Reads the state of a checkpoint.
///
/// # Errors
/// [`TrainingError::Checkpoint`] when it is missing or damaged.
pub fn read_state(folder: &Path) -> Result<RunState, TrainingError> {
    let wrong = |reason: String| TrainingError::Checkpoint {
        path: folder.to_owned(),
        reason,
    };
    let bytes = std::fs::read(folder.join(STATE)).map_err(|error| wrong(format!("`{STATE}`: {error}")))?;
    if bytes.len() > STATE_BYTES_MAX {
        return Err(wrong(format!(
            "`{STATE}` has {} bytes, expected at most {STATE_BYTES_MAX}",
            bytes.len()
        )));
    }
    serde_json::from_slice(&bytes).map_err(|error| wrong(format!("`{STATE}`: {error}")))
}

/// Takes moments over into an optimiser.
///
/// # Errors
/// [`TrainingError`] when the file is damaged or does not fit.
pub fn load_optimizer(folder: &Path, optimizer: &mut AdamW) -> Result<(), TrainingError> {
    let file = PlainFile::read(&folder.join(OPTIMIZER))?;
    let mut state = std::collections::BTreeMap::new();
    for (name, tensor) in file.tensors {
        state.insert(name, tensor.to_tensor(Device::Cpu)?);
    }
    Ok(optimizer.load_state(&state)?)
}

/// Writes adapter and LoRA into a folder that exists.
///
/// # Errors
/// [`TrainingError`] when something cannot be written.
pub fn save_learned(
    folder: &Path,
    learned: &Learned,
    version: &str,
) -> Result<AdapterSnapshot, TrainingError> {
    let snapshot = learned.adapter.snapshot(version)?;
    snapshot.write(&folder.join(ADAPTER))?;
    let Some(lora) = &learned.lora else {
        return Ok(snapshot);
    };
    save_lora(lora, &folder.join(LORA))?;
    Ok(snapshot.with_lora(Some(LoraSnapshot::of(lora)?)))
}

fn save_lora(lora: &LoraSet, folder: &Path) -> Result<(), TrainingError> {
    lora.save(folder, "").map_err(|error| TrainingError::Settings {
        problem: error.to_string(),
    })
}

/// Reads the adapter of a folder or file, and the folder of its LoRA when there is one.
///
/// # Errors
/// [`TrainingError::Model`] when it is damaged.
pub fn read_adapter(path: &Path, version: &str) -> Result<(AdapterSnapshot, Option<PathBuf>), TrainingError> {
    if path.is_dir() {
        let lora = Some(path.join(LORA)).filter(|lora| lora.is_dir());
        let values = lora.as_deref().map(LoraSnapshot::read).transpose()?;
        let snapshot = AdapterSnapshot::read(version, &path.join(ADAPTER))?;
        Ok((snapshot.with_lora(values), lora))
    } else {
        Ok((AdapterSnapshot::read(version, path)?, None))
    }
}

/// Reads a LoRA folder for training on `device`.
///
/// # Errors
/// [`TrainingError::Settings`] when it does not fit the language model.
pub fn read_lora(folder: &Path, llm: &dyn LanguageModel, device: Device) -> Result<LoraSet, TrainingError> {
    LoraSet::open(folder, &llm.lora_sites(), device).map_err(|error| TrainingError::Settings {
        problem: error.to_string(),
    })
}

/// Overwrites `A` of fresh LoRA by values that depend on `seed` alone; torch's own generator is shared by
/// all threads.
pub(crate) fn seed_lora(lora: &LoraSet, seed: u64) -> Result<(), TrainingError> {
    let _guard = tch::no_grad_guard();
    for (at, (name, mut tensor)) in lora.parameters().into_iter().enumerate() {
        if !name.contains("lora_A") {
            continue;
        }
        let mut random = crate::util::random::SplitMix::new(&[seed, 0x10a, at as u64]);
        #[expect(clippy::cast_precision_loss, reason = "a width")]
        let bound = 1.0 / (tensor.size()[1] as f64).sqrt();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "initial values need no more than f32"
        )]
        let values: Vec<f32> = (0..tensor.numel())
            .map(|_| random.between(-bound, bound) as f32)
            .collect();
        let values = Tensor::f_from_slice(&values)?.f_view(tensor.size().as_slice())?;
        tensor.f_copy_(&values)?;
    }
    Ok(())
}

fn sibling(folder: &Path, suffix: &str) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    folder.with_file_name(name)
}

fn remove(folder: &Path) -> Result<(), TrainingError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(TrainingError::io("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_does_not_depend_on_the_order_of_names() {
        let of = |text: &str| Fingerprint::of(serde_json::from_str(text).unwrap());

        let sorted = r#"{"a":{"c":3,"d":2},"b":1}"#;
        assert_eq!(of(sorted), of(r#"{"b":1,"a":{"d":2,"c":3}}"#));
        // What earlier versions of the program wrote into checkpoints.
        assert_eq!(of(sorted).whole, hex(&Sha256::digest(sorted)));
    }

    #[test]
    fn an_error_about_another_run_names_what_differs() {
        let of = |seed: u64, data: &str| {
            Fingerprint::of(serde_json::json!({"seed": seed, "data": data, "model": "m"}))
        };
        let saved = of(1, "d").begin();
        let reason = |present: &Fingerprint, saved: &RunState| {
            let found = present.check(saved, Path::new("run/checkpoint"));
            found.unwrap_err().to_string()
        };

        of(1, "d").check(&saved, Path::new("run")).unwrap();
        let other = reason(&of(2, "e"), &saved);
        assert!(
            other.contains("differs in `data`, `seed`;") && other.contains("run/checkpoint"),
            "{other}"
        );
        let without = Fingerprint::of(serde_json::json!({"seed": 1, "data": "d"}));
        assert!(reason(&without, &saved).contains("differs in `model`;"));
        let earlier = RunState {
            parts: BTreeMap::new(),
            ..saved
        };
        of(1, "d").check(&earlier, Path::new("run")).unwrap();
        let other = reason(&of(2, "d"), &earlier);
        assert!(
            other.contains("differs in one of `data`, `model`, `seed`;"),
            "{other}"
        );
    }
}

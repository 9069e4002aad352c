//! `AdapterSnapshot`: an immutable adapter version that any thread may hold.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tch::Device;

use crate::models::ModelError;
use crate::models::config::LayerMix;
use crate::weights::{Mismatch, WeightsError};

use super::plain::{PlainFile, PlainTensor};
use super::{AdapterConfig, CTC_BLANK, CTC_CLASSES, CTC_SCALE, LoraSnapshot, SpeechAdapter};

/// Key of the adapter's configuration in the file's metadata.
const CONFIG_KEY: &str = "speechverse.adapter";
const FORMAT_KEY: &str = "format";
/// Begins the names of what makes a position of the whole clip.
pub(super) const SUMMARY: &str = "summary.";
/// Begins the names of what makes an embedding of what is said.
pub(super) const SENTENCE: &str = "sentence.";
/// Begins the names of residual blocks.
pub(super) const RESIDUAL: &str = "residual.";

/// An immutable adapter version: configuration and values, its LoRA among them, no tensors.
///
/// Cloning is cheap (the values are behind an `Arc`), and it is `Send` and `Sync`, so an utterance can be
/// pinned to it. A device thread that needs the downsampler makes its own tensors once per version with
/// [`SpeechAdapter::from_snapshot`](super::SpeechAdapter::from_snapshot); a thread that only encodes needs no
/// more than [`mix_weights`](Self::mix_weights).
#[derive(Clone, Debug)]
pub struct AdapterSnapshot {
    version: Arc<str>,
    content: Arc<Content>,
}

#[derive(Debug, PartialEq)]
struct Content {
    config: AdapterConfig,
    tensors: BTreeMap<String, PlainTensor>,
    mix: Vec<f32>,
    lora: Option<LoraSnapshot>,
}

impl AdapterSnapshot {
    /// Checks that `tensors` are exactly those that `config` declares, with an optional CTC head; `origin` is
    /// for messages.
    ///
    /// # Errors
    /// [`ModelError::Weights`] listing everything missing, unexpected, misshapen or mistyped;
    /// [`ModelError::File`] when a number is not finite.
    pub fn new(
        version: &str,
        config: AdapterConfig,
        tensors: BTreeMap<String, PlainTensor>,
        origin: &Path,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        check(&config, &tensors, origin)?;
        let mix = mix_of(&config, tensors.get("mix.weight").and_then(PlainTensor::floats));
        Ok(Self {
            version: version.into(),
            content: Arc::new(Content {
                config,
                tensors,
                mix,
                lora: None,
            }),
        })
    }

    /// The same version with low-rank updates of the language model.
    pub fn with_lora(&self, lora: Option<LoraSnapshot>) -> Self {
        let content = Content {
            config: self.content.config.clone(),
            tensors: self.content.tensors.clone(),
            mix: self.content.mix.clone(),
            lora,
        };
        Self {
            version: Arc::clone(&self.version),
            content: Arc::new(content),
        }
    }

    /// Its low-rank updates of the language model, when it has any.
    pub fn lora(&self) -> Option<&LoraSnapshot> {
        self.content.lora.as_ref()
    }

    /// The same values in another form: what the language model reads may change, and residual blocks, a
    /// position of the whole clip and an embedding of what is said may come (with fresh values, see
    /// [`SpeechAdapter::new`](super::SpeechAdapter::new)) or go. None where `config` differs in anything
    /// else.
    ///
    /// # Errors
    /// [`ModelError`] when fresh values cannot be made.
    pub fn in_form(&self, config: &AdapterConfig, gain: f64, seed: u64) -> Result<Option<Self>, ModelError> {
        let own = self.config();
        let same_form = AdapterConfig {
            residual_blocks: config.residual_blocks,
            positions: config.positions,
            summary: config.summary,
            ctc_trained: config.ctc_trained,
            summary_tasks: config.summary_tasks.clone(),
            sentence: config.sentence,
            sentence_tasks: config.sentence_tasks.clone(),
            ..own.clone()
        };
        if same_form != *config {
            return Ok(None);
        }
        let mut tensors = self.tensors().clone();
        let parts = |of: &AdapterConfig| (of.residual_blocks, of.summary, of.sentence);
        if parts(own) != parts(config) {
            let fresh = SpeechAdapter::new(config.clone(), gain, seed, Device::Cpu)?.snapshot("fresh")?;
            let may_change = |name: &str| {
                [SUMMARY, SENTENCE, RESIDUAL]
                    .iter()
                    .any(|part| name.starts_with(part))
            };
            tensors.retain(|name, _| !may_change(name) || fresh.tensors().contains_key(name));
            for (name, tensor) in fresh.tensors().iter().filter(|(name, _)| may_change(name)) {
                tensors.entry(name.clone()).or_insert_with(|| tensor.clone());
            }
        }
        let kept = |there: bool, tasks: &[String]| if there { tasks.to_vec() } else { Vec::new() };
        let config = AdapterConfig {
            ctc_trained: own.ctc_trained,
            summary_tasks: kept(config.summary, &own.summary_tasks),
            sentence_tasks: kept(config.sentence, &own.sentence_tasks),
            ..config.clone()
        };
        let formed = Self::new(self.version(), config, tensors, Path::new(self.version()))?;
        Ok(Some(formed.with_lora(self.lora().cloned())))
    }

    /// Reads an adapter file.
    ///
    /// # Errors
    /// [`ModelError`] when the file cannot be read, does not say what it is, or does not hold exactly what it
    /// declares.
    pub fn read(version: &str, path: &Path) -> Result<Self, ModelError> {
        let file = PlainFile::read(path)?;
        let broken = |reason: String| ModelError::File {
            path: path.to_owned(),
            reason,
        };
        let config = file.metadata.get(CONFIG_KEY).ok_or_else(|| {
            broken(format!(
                "its metadata lacks `{CONFIG_KEY}`: not an adapter of this program"
            ))
        })?;
        let config: AdapterConfig = serde_json::from_str(config)
            .map_err(|error| broken(format!("metadata `{CONFIG_KEY}` is malformed: {error}")))?;
        Self::new(version, config, file.tensors, path)
    }

    /// Writes the adapter file (safetensors, with the configuration in its metadata).
    ///
    /// # Errors
    /// [`ModelError::File`] when it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ModelError> {
        let config = serde_json::to_string(&self.content.config).map_err(|error| ModelError::File {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let file = PlainFile {
            tensors: self.content.tensors.clone(),
            metadata: BTreeMap::from([
                (CONFIG_KEY.to_owned(), config),
                (FORMAT_KEY.to_owned(), "pt".to_owned()),
            ]),
        };
        file.write(path)
    }

    /// The version's name.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The same values under another name.
    pub fn renamed(&self, version: &str) -> Self {
        Self {
            version: version.into(),
            content: Arc::clone(&self.content),
        }
    }

    /// Sizes and form.
    pub fn config(&self) -> &AdapterConfig {
        &self.content.config
    }

    /// All values by name.
    pub fn tensors(&self) -> &BTreeMap<String, PlainTensor> {
        &self.content.tensors
    }

    /// Weight of each of the `L + 1` encoder states in the mixed features: all an encoder thread needs.
    pub fn mix_weights(&self) -> &[f32] {
        &self.content.mix
    }

    /// Whether both hold the same values (versions may differ).
    pub fn same_content(&self, other: &Self) -> bool {
        self.content == other.content
    }
}

/// The weights `[L + 1]` that scalars `w` mean in the given form.
fn mix_of(config: &AdapterConfig, w: Option<&[f32]>) -> Vec<f32> {
    let layers = usize::try_from(config.encoder_layers).expect("validated to be positive");
    match (config.mix, w) {
        (LayerMix::Paper, Some(w)) => {
            #[expect(clippy::cast_precision_loss, reason = "at most 1024 layers")]
            let share = 1.0 / layers as f32;
            std::iter::once(0.0).chain(w.iter().map(|w| w * share)).collect()
        }
        (LayerMix::Softmax, Some(w)) => {
            let top = w.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f32> = w.iter().map(|w| (w - top).exp()).collect();
            let sum: f32 = powers.iter().sum();
            powers.iter().map(|power| power / sum).collect()
        }
        _ => (0..=layers)
            .map(|state| f32::from(u8::from(state == layers)))
            .collect(),
    }
}

fn check(
    config: &AdapterConfig,
    tensors: &BTreeMap<String, PlainTensor>,
    origin: &Path,
) -> Result<(), ModelError> {
    let mut declared = config.variables();
    if tensors.keys().any(|name| name.starts_with("ctc.")) {
        declared.push((CTC_BLANK.to_owned(), vec![config.llm_width]));
        declared.push((CTC_SCALE.to_owned(), vec![1]));
    }
    let mut mismatch = Mismatch {
        checkpoint: origin.to_owned(),
        ..Mismatch::default()
    };
    for (name, shape) in &declared {
        match tensors.get(name) {
            None => mismatch.missing.push(name.clone()),
            Some(tensor) if tensor.shape != *shape => mismatch.misshapen.push(crate::weights::Misshapen {
                name: name.clone(),
                declared: shape.clone(),
                found: tensor
                    .shape
                    .iter()
                    .map(|size| usize::try_from(*size).unwrap_or(0))
                    .collect(),
            }),
            Some(tensor) if tensor.floats().is_none() => mismatch.mistyped.push(crate::weights::Mistyped {
                name: name.clone(),
                found: "I64".into(),
            }),
            Some(_) => {}
        }
    }
    if tensors.keys().any(|name| name.starts_with("ctc.")) {
        match tensors.get(CTC_CLASSES) {
            None => mismatch.missing.push(CTC_CLASSES.to_owned()),
            Some(classes) if classes.integers().is_none() || classes.shape.len() != 1 => {
                mismatch.mistyped.push(crate::weights::Mistyped {
                    name: CTC_CLASSES.to_owned(),
                    found: "not a list of I64".into(),
                })
            }
            Some(_) => {}
        }
    }
    mismatch.unexpected = tensors
        .keys()
        .filter(|name| *name != CTC_CLASSES && !declared.iter().any(|(known, _)| known == *name))
        .cloned()
        .collect();
    if !mismatch.is_empty() {
        return Err(WeightsError::from(Box::new(mismatch)).into());
    }
    for (name, tensor) in tensors {
        let expected: i64 = tensor.shape.iter().product();
        let found = tensor
            .floats()
            .map_or_else(|| tensor.integers().map_or(0, <[i64]>::len), <[f32]>::len);
        if usize::try_from(expected).ok() != Some(found) {
            return Err(ModelError::File {
                path: origin.to_owned(),
                reason: format!("tensor `{name}` has {found} values for shape {:?}", tensor.shape),
            });
        }
        if let Some(at) = tensor
            .floats()
            .and_then(|values| values.iter().position(|value| !value.is_finite()))
        {
            return Err(ModelError::File {
                path: origin.to_owned(),
                reason: format!("tensor `{name}` holds a number that is not finite, at {at}"),
            });
        }
    }
    Ok(())
}

//! `Example`: one labelled recording, wherever it comes from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::audio::{AudioLimits, decode};
use crate::text::TemplateVariables;
use crate::util::hex;

/// Gives the samples of one clip when asked: mono f32 at 16 kHz, or what is wrong with it.
pub type LazyAudio = Arc<dyn Fn() -> Result<Vec<f32>, String> + Send + Sync>;

/// Where an example's audio is.
#[derive(Clone)]
pub enum AudioSource {
    /// A file of any supported type.
    File(PathBuf),
    /// In memory: mono f32 at 16 kHz.
    Samples(Arc<[f32]>),
    /// Behind a function, such as one that reads the sample store.
    Lazy(LazyAudio),
}

impl fmt::Debug for AudioSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Samples(samples) => write!(f, "Samples({})", samples.len()),
            Self::Lazy(_) => write!(f, "Lazy"),
        }
    }
}

impl AudioSource {
    /// Reads, decodes and resamples: mono f32 at 16 kHz, at least one sample.
    ///
    /// # Errors
    /// A sentence that names the file and what is wrong with it.
    pub fn load(&self) -> Result<Vec<f32>, String> {
        let samples = match self {
            Self::Samples(samples) => samples.to_vec(),
            Self::Lazy(load) => load()?,
            Self::File(path) => {
                let wrong = |reason: String| format!("`{}`: {reason}", path.display());
                let size = std::fs::metadata(path)
                    .map_err(|error| wrong(error.to_string()))?
                    .len();
                if size > FILE_BYTES_MAX {
                    return Err(wrong(format!(
                        "has {size} bytes, expected at most {FILE_BYTES_MAX}"
                    )));
                }
                let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
                let limits = AudioLimits {
                    value_bytes_max: bytes.len(),
                    ..AudioLimits::default()
                };
                decode(&bytes, None, &limits)
                    .map_err(|error| wrong(error.to_string()))?
                    .samples
            }
        };
        if samples.is_empty() {
            return Err(format!("{self:?} has no samples"));
        }
        Ok(samples)
    }
}

/// Larger files are not training clips.
const FILE_BYTES_MAX: u64 = 1 << 30; // 1 GiB

/// One labelled recording.
#[derive(Clone, Debug)]
pub struct Example {
    /// Where it comes from, for messages and results: `manifest:line`, a request id …
    pub id: String,
    /// Its audio.
    pub audio: AudioSource,
    /// Length in seconds, as declared; batches are planned with it.
    pub seconds: f64,
    /// Task name, `asr` unless declared; several (`asr,intent`) for a compound example; empty where `targets` says.
    pub task: String,
    /// Its own instruction; absent: one of the task's is drawn.
    pub instruction: Option<String>,
    /// The answer to learn; empty where `targets` holds it.
    pub target: String,
    /// Answers by task, where a row carries several.
    pub targets: BTreeMap<String, String>,
    /// What fills the places of the task's prompts.
    pub variables: Arc<TemplateVariables>,
    /// Group for reports (`domain` in manifests).
    pub domain: Option<String>,
    /// What was said, as in the manifest's `text`; the answer of other tasks is `target`.
    pub text: Option<String>,
}

/// Digest (hex sha256) of what is learned from: ids, lengths, tasks, instructions, targets and what fills prompts, in
/// order.
pub fn digest(examples: &[Example]) -> String {
    let mut hash = Sha256::new();
    for example in examples {
        let mut take = |part: &str| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        };
        take(&example.id);
        take(&format!("{:.3}", example.seconds));
        take(&example.task);
        take(example.instruction.as_deref().unwrap_or(""));
        take(&example.target);
        for (kind, pairs) in [
            ("targets", &example.targets),
            ("fields", &example.variables.fields),
        ] {
            for (name, value) in pairs {
                [kind, name, value].into_iter().for_each(&mut take);
            }
        }
        for label in example.variables.labels.iter().flatten() {
            ["label", &label.name, &label.description]
                .into_iter()
                .for_each(&mut take);
        }
    }
    hex(&hash.finalize())
}

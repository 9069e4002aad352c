//! Recordings without speech, to be mixed into clips.

use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::power;
use crate::training::TrainingError;
use crate::training::manifest::read_audio_manifest;
use crate::util::hex;

/// Most sound of recorded noises, seconds; 460 MB in memory.
pub const NOISE_SECONDS_MAX: f64 = 7200.0;

/// Recordings without speech. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Noises {
    sounds: Arc<[Vec<f32>]>,
    digest: Arc<str>,
}

impl Noises {
    pub(in crate::training) fn new(sounds: Vec<Vec<f32>>) -> Self {
        let mut digest = Sha256::new();
        for samples in &sounds {
            let bytes: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        }
        let digest = match sounds.is_empty() {
            true => String::new(),
            false => hex(&digest.finalize()),
        };
        Self {
            sounds: sounds.into(),
            digest: digest.into(),
        }
    }

    /// Reads the recordings of manifests; what cannot be read is logged and left out.
    ///
    /// # Errors
    /// [`TrainingError`] when a manifest cannot be read, or there is more than [`NOISE_SECONDS_MAX`] of
    /// sound.
    pub fn read(manifests: &[PathBuf]) -> Result<Self, TrainingError> {
        let mut sounds = Vec::new();
        let mut seconds = 0.0;
        for path in manifests {
            for example in read_audio_manifest(path, None)?.warned() {
                seconds += example.seconds;
                if seconds > NOISE_SECONDS_MAX {
                    return Err(TrainingError::Settings {
                        problem: format!(
                            "`data.noise`: `{}` and those before it hold more than {NOISE_SECONDS_MAX} s, which would stay in memory; take fewer recordings",
                            path.display()
                        ),
                    });
                }
                match example.audio.load() {
                    Ok(samples) if power(&samples) > 0.0 => sounds.push(samples),
                    Ok(_) => {} // digital silence disturbs nobody
                    Err(reason) => tracing::warn!(id = example.id, reason, "left a noise out"),
                }
            }
        }
        Ok(Self::new(sounds))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sounds.is_empty()
    }

    /// Digest of the sounds in their order, on which it depends what a random number chooses. Empty where
    /// there are none. (Ids would not do: they are places in a manifest.)
    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub(super) fn sounds(&self) -> &[Vec<f32>] {
        &self.sounds
    }
}

//! `Example`: one labelled recording, wherever it comes from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tracing::warn;

use crate::audio::{AudioLimits, Damage, SAMPLE_RATE_HZ, decode};
use crate::text::TemplateVariables;
use crate::util::hex;
use crate::util::random::SplitMix;

/// Gives the samples of one clip when asked: mono f32 at 16 kHz, or what is wrong with it.
pub type LazyAudio = Arc<dyn Fn() -> Result<Vec<f32>, String> + Send + Sync>;

/// Draws the samples of one clip: mono f32 at 16 kHz, or why there are none.
pub type DrawnAudio = Arc<dyn Fn(&mut SplitMix) -> Result<Vec<f32>, String> + Send + Sync>;

/// Where an example's audio is.
#[derive(Clone)]
pub enum AudioSource {
    /// A file of any supported type.
    File(PathBuf),
    /// A file, or a piece of one, as a manifest declares it.
    Clip(Clip),
    /// In memory: mono f32 at 16 kHz.
    Samples(Arc<[f32]>),
    /// Behind a function, such as one that reads the sample store.
    Lazy {
        /// Names the sound: sources with the same id have the same samples.
        id: String,
        /// Gives the samples.
        load: LazyAudio,
    },
    /// Made by a function, another sound for each state of the generator.
    Drawn {
        /// Names what is drawn from: sources with the same id draw the same samples.
        id: String,
        /// Gives the samples.
        draw: DrawnAudio,
    },
}

/// The sound of an example.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedAudio {
    /// Mono f32 at 16 kHz, at least one sample.
    pub samples: Vec<f32>,
    /// Whether its file is damaged, so that a little of the sound may be missing or wrong.
    pub damaged: bool,
}

/// A file, or a piece of one, with the length that is declared for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// The file.
    pub path: PathBuf,
    /// Where the piece begins, seconds; absent: the whole file.
    pub offset: Option<f64>,
    /// Its length, seconds.
    pub seconds: f64,
}

/// How far a declared length may be off: rounding, and the padding that encoders add.
const SECONDS_OFF_MAX: f64 = 0.2;
/// The same as a share of it.
const SHARE_OFF_MAX: f64 = 0.02;
/// Longest file that pieces are cut from, seconds.
const WHOLE_SECONDS_MAX: f64 = 24.0 * 3600.0;

impl Clip {
    /// Reads the piece. The whole file is decoded for each of its pieces.
    fn load(&self) -> Result<LoadedAudio, String> {
        let seconds_max = self.offset.map(|_| WHOLE_SECONDS_MAX);
        let LoadedAudio { mut samples, damaged } = read(&self.path, seconds_max)?;
        let wrong = |reason: String| Err(format!("`{}`: {reason}", self.path.display()));
        #[expect(clippy::cast_precision_loss, reason = "a sample count")]
        let found = samples.len() as f64 / f64::from(SAMPLE_RATE_HZ);
        let tolerance = SECONDS_OFF_MAX.max(self.seconds * SHARE_OFF_MAX);
        let Some(offset) = self.offset else {
            if (found - self.seconds).abs() > tolerance {
                let hint = match found > self.seconds {
                    true => "; a piece of a longer file needs `offset` too",
                    false => "",
                };
                return wrong(format!(
                    "has {found:.2} s of sound, the manifest's `duration` is {}{hint}",
                    self.seconds
                ));
            }
            return Ok(LoadedAudio { samples, damaged });
        };
        if offset + self.seconds > found + tolerance {
            return wrong(format!(
                "has {found:.2} s of sound, the manifest's piece goes from {offset} to {:.2}",
                offset + self.seconds
            ));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "finite and not negative; a manifest's reader checks it"
        )]
        let at = |seconds: f64| ((seconds * f64::from(SAMPLE_RATE_HZ)).round() as usize).min(samples.len());
        let (start, end) = (at(offset), at(offset + self.seconds));
        samples.truncate(end);
        samples.drain(..start);
        Ok(LoadedAudio { samples, damaged })
    }
}

/// Reads and decodes a file; `seconds_max` is its longest sound where that is not the default.
fn read(path: &Path, seconds_max: Option<f64>) -> Result<LoadedAudio, String> {
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
    let mut limits = AudioLimits {
        value_bytes_max: bytes.len(),
        ..AudioLimits::default()
    };
    if let Some(seconds_max) = seconds_max {
        limits.seconds_max = seconds_max;
    }
    let waveform = decode(&bytes, None, &limits).map_err(|error| wrong(error.to_string()))?;
    waveform.damage.check_labelled().map_err(wrong)?;
    let damaged = waveform.damage != Damage::default();
    if damaged {
        warn!(path = %path.display(), notes = ?waveform.damage.notes, "a labelled recording is damaged, it is used");
    }
    Ok(LoadedAudio {
        samples: waveform.samples,
        damaged,
    })
}

impl fmt::Debug for AudioSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Clip(clip) => write!(f, "{clip:?}"),
            Self::Samples(samples) => write!(f, "Samples({})", samples.len()),
            Self::Lazy { id, .. } => write!(f, "Lazy({id})"),
            Self::Drawn { id, .. } => write!(f, "Drawn({id})"),
        }
    }
}

impl AudioSource {
    /// Reads, decodes and resamples: mono f32 at 16 kHz, at least one sample.
    ///
    /// # Errors
    /// A sentence that names the file and what is wrong with it.
    pub fn load(&self) -> Result<Vec<f32>, String> {
        self.load_audio().map(|loaded| loaded.samples)
    }

    /// As [`AudioSource::load`], with what is to be known about the file. Of a sound that is drawn it is
    /// always the same one.
    ///
    /// # Errors
    /// As [`AudioSource::load`].
    pub fn load_audio(&self) -> Result<LoadedAudio, String> {
        self.draw(&mut SplitMix::new(&[]))
    }

    /// As [`AudioSource::load_audio`], with a sound of its own for each state of `random` where it is drawn.
    ///
    /// # Errors
    /// As [`AudioSource::load`].
    pub fn draw(&self, random: &mut SplitMix) -> Result<LoadedAudio, String> {
        let whole = |samples| LoadedAudio {
            samples,
            damaged: false,
        };
        let loaded = match self {
            Self::Samples(samples) => whole(samples.to_vec()),
            Self::Lazy { load, .. } => whole(load()?),
            Self::Drawn { draw, .. } => whole(draw(random)?),
            Self::File(path) => read(path, None)?,
            Self::Clip(clip) => clip.load()?,
        };
        if loaded.samples.is_empty() {
            return Err(format!("{self:?} has no samples"));
        }
        Ok(loaded)
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
    /// Task name, `asr` unless declared; several (`asr,intent`) for a compound example; empty where `targets`
    /// says.
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

/// Digest (hex sha256) of what is learned from: ids, lengths, tasks, instructions, targets and what fills
/// prompts, in order.
pub fn digest(examples: &[Example]) -> String {
    let mut hash = Sha256::new();
    for example in examples {
        let mut take = |part: &str| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        };
        take(&example.id);
        take(&format!("{:.3}", example.seconds));
        if let AudioSource::Clip(Clip {
            offset: Some(offset), ..
        }) = &example.audio
        {
            take(&format!("from {offset:.3}"));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::write_wav;

    /// Three seconds, each of its own loudness.
    fn steps(folder: &Path) -> PathBuf {
        let path = folder.join("steps.wav");
        let samples: Vec<f32> = (0..48_000).map(|at| [0.25, 0.5, 0.75][at / 16_000]).collect();
        write_wav(&path, &samples).unwrap();
        path
    }

    fn clip(path: &Path, offset: Option<f64>, seconds: f64) -> AudioSource {
        AudioSource::Clip(Clip {
            path: path.to_owned(),
            offset,
            seconds,
        })
    }

    #[test]
    fn a_row_with_an_offset_is_the_piece_and_not_the_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = steps(folder.path());

        let middle = clip(&path, Some(1.0), 1.0).load().unwrap();
        let first = clip(&path, Some(0.0), 1.0).load().unwrap();
        let last = clip(&path, Some(2.5), 0.6).load().unwrap(); // a tenth of a second more than there is

        assert_eq!((middle.len(), first.len(), last.len()), (16_000, 16_000, 8_000));
        let all = |samples: &[f32], value: f32| samples.iter().all(|sample| (sample - value).abs() < 1e-3);
        assert!(all(&middle, 0.5) && all(&first, 0.25) && all(&last, 0.75));
    }

    #[test]
    fn a_length_that_is_not_the_recordings_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = steps(folder.path());

        assert_eq!(clip(&path, None, 2.9).load().unwrap().len(), 48_000);
        for (offset, seconds, part) in [
            (None, 2.0, "a piece of a longer file needs `offset`"),
            (None, 30.0, "`duration` is 30"),
            (Some(2.0), 2.0, "from 2 to 4.00"),
            (Some(5.0), 1.0, "from 5 to 6.00"),
        ] {
            let reason = clip(&path, offset, seconds).load().unwrap_err();

            assert!(
                reason.contains("has 3.00 s of sound") && reason.contains(part),
                "{reason}"
            );
        }
    }

    #[test]
    fn a_recording_of_which_a_part_is_missing_is_not_learned_from() {
        let folder = tempfile::tempdir().unwrap();
        let path = steps(folder.path());
        let whole = std::fs::read(&path).unwrap();

        // The header goes on to declare 3 s. Without 50 ms it is used, without 0.2 s it is not.
        std::fs::write(&path, &whole[..whole.len() - 1_600]).unwrap();
        let used = AudioSource::File(path.clone()).load_audio().unwrap();
        std::fs::write(&path, &whole[..whole.len() - 6_400]).unwrap();
        let file = AudioSource::File(path.clone()).load().unwrap_err();
        let piece = clip(&path, Some(0.0), 1.0).load().unwrap_err();

        assert_eq!((used.samples.len(), used.damaged), (48_000 - 800, true));
        for reason in [file, piece] {
            let named =
                reason.contains("steps.wav") && reason.contains("0.20 s of its sound cannot be decoded");
            assert!(named, "{reason}");
        }
    }
}

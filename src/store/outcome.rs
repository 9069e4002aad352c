//! What the store answers its callers: what became of a sample, what the store holds, what a start found.

use std::sync::Arc;

use super::sample::{ContentHash, Split};

/// What became of a sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Put {
    /// It is in the store.
    Stored {
        /// Its identity.
        id: ContentHash,
        /// Its side.
        split: Split,
        /// Whether it survives a power cut already; under `fsync = "interval"` that may come later.
        durable: bool,
        /// The earlier answer to the same question of the same request, which is withdrawn by it.
        supersedes: Option<ContentHash>,
    },
    /// It was in the store before.
    Duplicate {
        /// Its identity.
        id: ContentHash,
        /// Whether it arrived with `may_train = false` this time, so that it is in no later snapshot.
        withdrawn: bool,
        /// The answer in between, which is withdrawn because this one stands again.
        supersedes: Option<ContentHash>,
    },
    /// A later answer to the same question of the same request is in the store; nothing was written.
    Outdated {
        /// That answer.
        by: ContentHash,
    },
    /// It cannot be kept; nothing was written.
    Refused {
        /// Why.
        refusal: Refusal,
    },
}

/// Why a sample cannot be kept.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// There is no sound.
    #[error("the sample has no audio")]
    NoAudio,
    /// The sound holds NaN or an infinity.
    #[error("audio sample {index} is {value}, not a finite number")]
    NotFinite {
        /// Position in the audio.
        index: usize,
        /// What is there.
        value: f32,
    },
    /// The sound is longer than the settings allow.
    #[error("the audio has {samples} samples, `store.audio_seconds_max` allows {samples_max}")]
    TooLong {
        /// Found.
        samples: usize,
        /// Allowed.
        samples_max: usize,
    },
    /// A text is longer than the settings allow.
    #[error("the {text} has {bytes} bytes, `store.text_bytes_max` allows {bytes_max}")]
    TextTooLong {
        /// Which text.
        text: &'static str,
        /// Found.
        bytes: usize,
        /// Allowed.
        bytes_max: usize,
    },
    /// The store has as many tasks as the settings allow.
    #[error("task `{task}` would be one more than the {tasks_max} of `store.tasks_max`")]
    TooManyTasks {
        /// Its name.
        task: String,
        /// Allowed.
        tasks_max: usize,
    },
}

/// What the store holds of one task on one side.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskCount {
    /// Name of the task.
    pub task: Arc<str>,
    /// The side.
    pub split: Split,
    /// Samples that may be trained on.
    pub samples: usize,
    /// Samples that may not.
    pub withheld: usize,
    /// Samples that a later answer to the same question of the same request superseded.
    pub superseded: usize,
    /// Length of the audio of the former, seconds.
    pub audio_seconds: f64,
}

/// What forgetting samples did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Samples that were there and are gone.
    pub samples: usize,
    /// Segment files that were written anew or removed.
    pub segments: usize,
    /// By how many bytes the store is smaller.
    pub bytes: u64,
}

/// What a start found on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Segment files.
    pub segments: usize,
    /// Samples in them.
    pub samples: usize,
    /// Bytes that crashes had torn and that were cut off.
    pub torn_bytes: u64,
    /// Damaged stretches that were skipped.
    pub damaged: usize,
    /// Files in which nothing can be read; they were renamed to `….damaged`.
    pub unreadable: usize,
}

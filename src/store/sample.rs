//! A labelled sample, its identity, its side, and how it is written.

use std::collections::BTreeMap;
use std::fmt;

use bincode::{Decode, Encode};
use sha2::{Digest, Sha256};

use crate::util::hex;

/// Samples of sound per second.
const SAMPLE_RATE_HZ: usize = 16_000;
/// 16-bit full scale.
const FULL_SCALE: f32 = 32_768.0;
/// Longest payload of a record, bytes; nothing longer is written or believed.
pub(super) const PAYLOAD_BYTES_MAX: usize = 160 * 1024 * 1024; // an hour of audio and the longest texts

/// Where a sample came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SampleSource {
    /// Topic of the record.
    pub topic: String,
    /// Partition of that topic.
    pub partition: i32,
    /// Offset of the record.
    pub offset: i64,
}

/// A labelled sample: what was said, what was asked, and what the answer should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Mono, 16 kHz, nominally in [-1, 1]; kept with 16 bits.
    pub audio: Vec<f32>,
    /// The instruction.
    pub instruction: String,
    /// The answer that it should get.
    pub target: String,
    /// Name of the task; quotas and counts go by it.
    pub task: String,
    /// The record that brought it.
    pub source: SampleSource,
    /// `ce_source` of the request; empty where it brought none. Source and id together name a request.
    pub request_source: String,
    /// Id of the request.
    pub request_id: String,
    /// The allowed answers that the request listed; empty where it listed none.
    pub labels: Vec<String>,
    /// Values that the request gave to the placeholders of its task's prompt.
    pub fields: BTreeMap<String, String>,
    /// Whether its answer is constrained to the labels in force.
    pub constrained: bool,
    /// When its record was written, milliseconds since the Unix epoch.
    pub written_ms: i64,
    /// When it was received, milliseconds since the Unix epoch.
    pub received_ms: i64,
    /// Whether it may be used for training; when not, it is in no snapshot.
    pub may_train: bool,
}

/// Identity of a sample: SHA-256 of its audio (16 bits), instruction and target.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash(pub(super) [u8; 32]);

impl ContentHash {
    /// The identity that is written so: 64 hexadecimal digits; none for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        ::hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

/// The side that a sample is on, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Split {
    /// May be learned from.
    Train,
    /// Only ever used to judge.
    HeldOut,
}

impl Split {
    /// `train` or `held_out`, as metrics and reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldOut => "held_out",
        }
    }
}

/// A sample as it comes out of the store.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredSample {
    /// Its identity.
    pub id: ContentHash,
    /// Its side.
    pub split: Split,
    /// Its content; the audio is what 16 bits kept of it.
    pub sample: Sample,
    /// Whether 16 bits could not hold the audio exactly (differences of at most 1/65536).
    pub rounded: bool,
    /// Whether some of the audio was beyond [-1, 1] and was cut to it.
    pub clipped: bool,
}

/// First half of the SHA-256 of a recording: what decides the side.
pub(super) type RecordingHash = [u8; 16];

/// First half of a SHA-256 over what is asked (recording, task, instruction) and the request that asks it:
/// two different answers to one question contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub(super) struct Question(pub(super) [u8; 16]);

/// First half of the SHA-256 of a request's id, to find its samples by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(super) struct RequestId(pub(super) [u8; 16]);

/// What a record of a segment holds. New variants go to the end: their numbers are on disk.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) enum Entry {
    /// A sample of the time before requests had a source; read as one without source and labels.
    Sample(Box<Written>),
    /// The sample with this identity, of this task, may not be used any more.
    Withdrawn { content: [u8; 32], task: String },
    /// A sample of the time before fields were kept; read as one without fields.
    Named(Box<Named>),
    /// The sample with this identity, of this task, is the answer to a further question, or once more to its
    /// own.
    Claimed {
        content: [u8; 32],
        task: String,
        claim: Box<ClaimWritten>,
    },
    /// A sample, which is the answer to its question from now on.
    Asked(Box<Asked>),
}

/// A sample as it is written, with the rest of its request's name and of what it was asked with.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct Asked {
    /// In order of name.
    pub(super) fields: Vec<(String, String)>,
    pub(super) constrained: bool,
    pub(super) request_source: String,
    pub(super) labels: Vec<String>,
    pub(super) written_ms: i64,
    pub(super) sample: Written,
}

/// A sample as it was written before fields were kept.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct Named {
    pub(super) request_source: String,
    pub(super) labels: Vec<String>,
    pub(super) written_ms: i64,
    pub(super) sample: Written,
}

/// Whose answer a sample is, and which record said so, as it is written.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct ClaimWritten {
    pub(super) question: Question,
    pub(super) request: RequestId,
    pub(super) request_source: String,
    pub(super) written_ms: i64,
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
}

/// A sample as it is written, without what came later.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct Written {
    pub(super) content: [u8; 32],
    pub(super) recording: RecordingHash,
    pub(super) held_out: bool,
    pub(super) may_train: bool,
    pub(super) received_ms: i64,
    pub(super) task: String,
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) request_id: String,
    pub(super) instruction: String,
    pub(super) target: String,
    pub(super) rounded: bool,
    pub(super) clipped: bool,
    /// 16-bit little-endian samples.
    pub(super) pcm: Vec<u8>,
}

impl Asked {
    /// The sample as it will be written; its side is still open.
    pub(super) fn new(sample: &Sample) -> Self {
        Self {
            fields: sample.fields.clone().into_iter().collect(),
            constrained: sample.constrained,
            request_source: sample.request_source.clone(),
            labels: sample.labels.clone(),
            written_ms: sample.written_ms,
            sample: Written::new(sample),
        }
    }

    pub(super) fn claim(&self) -> ClaimWritten {
        let sample = &self.sample;
        ClaimWritten {
            question: question(self),
            request: request_id(&sample.request_id),
            request_source: self.request_source.clone(),
            written_ms: self.written_ms,
            topic: sample.topic.clone(),
            partition: sample.partition,
            offset: sample.offset,
        }
    }
}

impl From<Written> for Named {
    fn from(sample: Written) -> Self {
        Self {
            request_source: String::new(),
            labels: Vec::new(),
            written_ms: sample.received_ms,
            sample,
        }
    }
}

impl From<Named> for Asked {
    fn from(named: Named) -> Self {
        Self {
            fields: Vec::new(),
            constrained: !named.labels.is_empty(), // what serving does unless a request says otherwise
            request_source: named.request_source,
            labels: named.labels,
            written_ms: named.written_ms,
            sample: named.sample,
        }
    }
}

fn question(asked: &Asked) -> Question {
    let sample = &asked.sample;
    let parts = [
        sample.recording.as_slice(),
        sample.task.as_bytes(),
        sample.instruction.as_bytes(),
        asked.request_source.as_bytes(),
        sample.request_id.as_bytes(),
    ];
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    Question(first_half(hash.finalize().into()))
}

pub(super) fn request_id(id: &str) -> RequestId {
    RequestId(first_half(Sha256::digest(id).into()))
}

fn first_half(hash: [u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    half
}

impl Written {
    fn new(sample: &Sample) -> Self {
        let (mut rounded, mut clipped) = (false, false);
        let mut pcm = Vec::with_capacity(sample.audio.len() * 2);
        for value in &sample.audio {
            let scaled = value * FULL_SCALE;
            let whole = scaled.round();
            let kept = whole.clamp(-FULL_SCALE, FULL_SCALE - 1.0);
            rounded |= kept != scaled;
            clipped |= value.abs() > 1.0;
            pcm.extend_from_slice(&(kept as i16).to_le_bytes());
        }
        let recording_hash: [u8; 32] = Sha256::digest(&pcm).into();
        let mut content = Sha256::new();
        content.update(recording_hash);
        for text in [&sample.instruction, &sample.target] {
            content.update((text.len() as u64).to_le_bytes()); // so that ("ab", "c") is not ("a", "bc")
            content.update(text.as_bytes());
        }
        Self {
            content: content.finalize().into(),
            recording: first_half(recording_hash),
            held_out: false,
            may_train: sample.may_train,
            received_ms: sample.received_ms,
            task: sample.task.clone(),
            topic: sample.source.topic.clone(),
            partition: sample.source.partition,
            offset: sample.source.offset,
            request_id: sample.request_id.clone(),
            instruction: sample.instruction.clone(),
            target: sample.target.clone(),
            rounded,
            clipped,
            pcm,
        }
    }

    pub(super) fn split(&self) -> Split {
        if self.held_out {
            Split::HeldOut
        } else {
            Split::Train
        }
    }

    pub(super) fn audio_seconds(&self) -> f64 {
        (self.pcm.len() / 2) as f64 / SAMPLE_RATE_HZ as f64
    }
}

impl Asked {
    pub(super) fn into_stored(self) -> StoredSample {
        let read = |pair: &[u8; 2]| f32::from(i16::from_le_bytes(*pair)) / FULL_SCALE;
        let sample = self.sample;
        StoredSample {
            id: ContentHash(sample.content),
            split: sample.split(),
            sample: Sample {
                audio: sample.pcm.as_chunks().0.iter().map(read).collect(),
                instruction: sample.instruction,
                target: sample.target,
                task: sample.task,
                source: SampleSource {
                    topic: sample.topic,
                    partition: sample.partition,
                    offset: sample.offset,
                },
                request_source: self.request_source,
                request_id: sample.request_id,
                labels: self.labels,
                fields: self.fields.into_iter().collect(),
                constrained: self.constrained,
                written_ms: self.written_ms,
                received_ms: sample.received_ms,
                may_train: sample.may_train,
            },
            rounded: sample.rounded,
            clipped: sample.clipped,
        }
    }
}

/// The side of a recording that was not seen before: a fixed share of all hashes is held out.
pub(super) fn is_held_out(recording: &RecordingHash, fraction: f64) -> bool {
    let mut first = [0; 8];
    first.copy_from_slice(&recording[..8]);
    let place = u64::from_le_bytes(first) as f64 / u64::MAX as f64; // 0..=1, evenly
    place < fraction
}

/// Samples of sound in `seconds`.
pub(super) fn samples_in(seconds: f64) -> usize {
    (seconds * SAMPLE_RATE_HZ as f64).round() as usize
}

impl Entry {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        bincode::encode_to_vec(self, bincode::config::standard())
            .expect("vectors grow, and nothing else can fail")
    }

    /// Identity of the sample that it is, or is about.
    pub(super) fn content(&self) -> [u8; 32] {
        match self {
            Self::Sample(written) => written.content,
            Self::Named(named) => named.sample.content,
            Self::Asked(asked) => asked.sample.content,
            Self::Withdrawn { content, .. } | Self::Claimed { content, .. } => *content,
        }
    }

    /// Whether it is about a sample and not one itself.
    pub(super) fn is_note(&self) -> bool {
        matches!(self, Self::Withdrawn { .. } | Self::Claimed { .. })
    }

    /// The sample that it is; none for an entry about another one.
    pub(super) fn into_sample(self) -> Option<Asked> {
        match self {
            Self::Sample(written) => Some(Named::from(*written).into()),
            Self::Named(named) => Some((*named).into()),
            Self::Asked(asked) => Some(*asked),
            Self::Withdrawn { .. } | Self::Claimed { .. } => None,
        }
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let config = bincode::config::standard().with_limit::<PAYLOAD_BYTES_MAX>();
        let (entry, read) = bincode::decode_from_slice(bytes, config).map_err(|error| error.to_string())?;
        if read != bytes.len() {
            return Err(format!("{} bytes follow the record", bytes.len() - read));
        }
        Ok(entry)
    }
}

#[cfg(test)]
mod tests;

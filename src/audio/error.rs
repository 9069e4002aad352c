//! Why a value is no usable sound.

use super::{Container, ContentTypeError};

/// Why a value is no usable sound; one variant for each reason that a dead letter can carry.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AudioError {
    /// There are no bytes.
    #[error("the value is empty, expected audio")]
    EmptyValue,
    /// There are more bytes than the setting allows.
    #[error("the value has {bytes} bytes, `audio.value_bytes_max` is {bytes_max}")]
    TooLarge {
        /// Bytes found.
        bytes: usize,
        /// Bytes allowed.
        bytes_max: usize,
    },
    /// The bytes are none of the containers that are known, and no header says raw PCM.
    #[error(
        "the value begins with {beginning}, which is no audio: expected WAV, FLAC, Ogg, MP3, M4A, WebM or another sound file, \
         or a content type such as `audio/L16;rate=16000;channels=1`"
    )]
    NotAudio {
        /// The first bytes, printable.
        beginning: String,
    },
    /// The bytes are audio of a kind that is not decoded here.
    #[error(
        "the value is {found}, which is not decoded here: send WAV, FLAC, MP3, Opus or Vorbis in Ogg or WebM, AAC in M4A, \
         or raw PCM"
    )]
    UnsupportedCodec {
        /// What it is.
        found: String,
    },
    /// The content type is malformed, or says raw PCM without saying how to read it.
    #[error(transparent)]
    ContentType(#[from] ContentTypeError),
    /// Less is there than was declared.
    #[error("the {container} is cut short: {detail}")]
    Truncated {
        /// What it is.
        container: Container,
        /// Declared and found.
        detail: String,
    },
    /// The bytes contradict themselves or cannot be decoded.
    #[error("the {container} is corrupt: {detail}")]
    Corrupt {
        /// What it is.
        container: Container,
        /// What is wrong with it.
        detail: String,
    },
    /// A well-formed container without a sample in it, or so few that none is left at 16 kHz.
    #[error("the {container} holds no samples")]
    ZeroSamples {
        /// What it is.
        container: Container,
    },
    /// A sample is NaN, infinite, or so large (over 1e9, full scale being 1) that it might as well be.
    #[error("frame {frame} holds a sample that is not a number, infinite, or beyond 1e9 times full scale")]
    NonFinite {
        /// The first such frame, counted at the source's rate.
        frame: u64,
    },
    /// The sample rate is out of range.
    #[error("the sample rate is {rate_hz} Hz, expected {rate_hz_min} to {rate_hz_max} Hz")]
    AbsurdRate {
        /// Rate found, hertz.
        rate_hz: u64,
        /// Lowest rate allowed.
        rate_hz_min: u32,
        /// Highest rate allowed.
        rate_hz_max: u32,
    },
    /// The number of channels is out of range.
    #[error("there are {channels} channels, expected 1 to {channels_max}")]
    AbsurdChannels {
        /// Channels found.
        channels: u64,
        /// Most channels allowed.
        channels_max: u16,
    },
    /// The sound is longer than the setting allows.
    #[error("the sound lasts at least {seconds:.1} s, `audio.seconds_max` is {seconds_max} s")]
    TooLong {
        /// Length that was declared, or decoded until decoding was stopped.
        seconds: f64,
        /// Length allowed.
        seconds_max: f64,
    },
    /// So many samples come out of so few bytes that the value is taken for a decompression bomb.
    #[error("the value decodes to at least {samples} samples, `audio.decoded_samples_max` is {samples_max}")]
    TooManySamples {
        /// Samples (frames times channels) declared, or decoded until decoding was stopped.
        samples: u64,
        /// Samples allowed.
        samples_max: u64,
    },
}

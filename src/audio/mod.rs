//! Sound before tensors: decoding, resampling, validation.
//!
//! [`decode`] turns the bytes of a record into a [`Waveform`]: mono, 16 kHz, `f32`. Everything about those bytes
//! is untrusted, so the containers are walked by our own readers (`wav`, `ogg`, `mp3`, `flac`), which know what
//! was declared and what is there, and only the codecs behind them are somebody else's (symphonia). That is how a
//! cut file is told from a short one:
//!
//! | container | reported as truncated | length unknown, read to the end |
//! |---|---|---|
//! | WAV | the data chunk declares more bytes than follow, or ends inside a frame | declared size 0 or at least `0x7fff_f000` (what ffmpeg, sox and arecord write into a pipe) |
//! | FLAC | fewer samples than STREAMINFO declares, or bytes of a cut frame at the end | STREAMINFO total of 0 |
//! | Ogg | a page is cut, or the last page lacks the end-of-stream flag | never |
//! | MP3 | a frame is cut, or the Xing/Info header declares more frames | no Xing/Info header |
//! | raw PCM | the bytes end inside a frame | always |
//!
//! Vorbis of more than two channels and MP3 with block types that differ between channels are refused as unsupported:
//! symphonia 0.6.1 decodes the first wrongly and the second not at all.
//!
//! The type is told from the bytes. A `content-type` that contradicts them loses, and
//! [`Waveform::content_type_mismatch`] says so; it only decides for raw PCM, which has no mark of its own.

pub mod config;
mod content_type;
mod error;
mod flac;
pub mod log_mel;
pub mod mel_frames;
mod mp3;
mod ogg;
mod pcm;
mod resample;
mod sink;
mod sniff;
#[cfg(test)]
mod tests;
mod vorbis;
mod wav;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use content_type::{ContentType, ContentTypeError};
pub use error::AudioError;
pub use pcm::{PcmEncoding, PcmSpec};
pub use resample::{resample, resampled_len};
pub use sniff::{Container, probe_container};
pub use wav::{WriteWavError, encode_wav, write_wav};

/// Sample rate of every [`Waveform`], hertz.
pub const SAMPLE_RATE_HZ: u32 = 16_000;

/// What a value may be before it is refused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AudioLimits {
    /// Longest sound, seconds.
    pub seconds_max: f64,
    /// Largest value, bytes.
    pub value_bytes_max: usize,
    /// Most samples (frames times channels) decoded from one value.
    pub decoded_samples_max: u64,
    /// Most channels.
    pub channels_max: u16,
    /// Lowest sample rate, hertz.
    pub rate_hz_min: u32,
    /// Highest sample rate, hertz.
    pub rate_hz_max: u32,
}

impl Default for AudioLimits {
    fn default() -> Self {
        crate::audio::config::AudioConfig::default().limits()
    }
}

/// Sound as the models take it: mono, 16 kHz, nominally in `[-1, 1]`, every sample finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Waveform {
    /// Samples at [`SAMPLE_RATE_HZ`]; never empty.
    pub samples: Vec<f32>,
    /// Sample rate of the source, hertz.
    pub source_rate_hz: u32,
    /// Channels of the source, which were averaged.
    pub source_channels: u16,
    /// What the bytes were.
    pub container: Container,
    /// Whether the declared content type named another container than the bytes are.
    pub content_type_mismatch: bool,
}

impl Waveform {
    /// Length in seconds.
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(SAMPLE_RATE_HZ)
    }
}

/// Mean power of the loudest 30 ms of 16 kHz sound, dB of full scale: 0 where all samples are at ±1, minus infinity for
/// digital silence.
pub fn loudest_frame_dbfs(samples: &[f32]) -> f64 {
    const FRAME_SAMPLES: usize = 480; // 0.030 s · 16 000 Hz
    let power = |frame: &[f32]| {
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let count = frame.len() as f64;
        frame.iter().map(|sample| f64::from(*sample).powi(2)).sum::<f64>() / count
    };
    let loudest = samples.chunks(FRAME_SAMPLES).map(power).fold(0.0, f64::max);
    10.0 * loudest.log10()
}

/// Decodes a record's bytes into mono 16 kHz samples.
///
/// `content_type` is the record's header, when there is one. Channels are averaged; the length is exactly
/// `round(frames · 16000 / rate)`. Memory is bounded by the value, the limits and a few resampler blocks: decoding
/// stops at the first sample over a limit.
///
/// # Errors
/// One [`AudioError`] variant for each way in which a value is no usable sound.
pub fn decode(
    bytes: &[u8],
    content_type: Option<&str>,
    limits: &AudioLimits,
) -> Result<Waveform, AudioError> {
    if bytes.is_empty() {
        return Err(AudioError::EmptyValue);
    }
    if bytes.len() > limits.value_bytes_max {
        return Err(AudioError::TooLarge {
            bytes: bytes.len(),
            bytes_max: limits.value_bytes_max,
        });
    }
    let declared = content_type.map(ContentType::parse).transpose()?;
    let container = sniff::decide(bytes, declared.as_ref())?;

    // The codecs are third-party code that meets hostile bytes: a panic in them is a corrupt value, not our end.
    // Nothing that outlives the closure is touched by it.
    let decoded = catch_unwind(AssertUnwindSafe(|| decode_as(container, bytes, limits)));
    let mut waveform = decoded.unwrap_or_else(|_| {
        Err(AudioError::Corrupt {
            container,
            detail: "the decoder gave up in a way that it should not".to_owned(),
        })
    })?;

    waveform.content_type_mismatch = declared.is_some_and(|declared| !declared.agrees_with(container));
    Ok(waveform)
}

/// Decodes bytes that are known to be of this container.
fn decode_as(container: Container, bytes: &[u8], limits: &AudioLimits) -> Result<Waveform, AudioError> {
    match container {
        Container::Wav => wav::decode(bytes, limits),
        Container::Flac => flac::decode(bytes, limits),
        Container::OggVorbis | Container::OggFlac => ogg::decode(bytes, container, limits),
        Container::Mp3 => mp3::decode(bytes, limits),
        Container::Pcm(spec) => pcm::decode(bytes, spec, limits),
    }
}

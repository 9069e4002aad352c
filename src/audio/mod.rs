//! Sound before tensors: decoding, resampling, validation.
//!
//! [`decode`] turns the bytes of a record into a [`Waveform`]: mono, 16 kHz, `f32`. Everything about those
//! bytes is untrusted. What ffmpeg decodes is decoded; what of the input is not is said in
//! [`Waveform::damage`], with its length; what cannot be decoded at all, or by more than
//! `audio.unheard_share_max`, is an [`AudioError`].
//!
//! | container | read by | sound inside |
//! |---|---|---|
//! | WAV, RF64, BW64, RIFX | `wav` | PCM, float, A-law, µ-law, IMA and Microsoft ADPCM, MPEG audio |
//! | AU | `au` | PCM, float, A-law, µ-law |
//! | FLAC | `flac`, symphonia's frame reader | FLAC |
//! | Ogg, chained and with several streams | `ogg` | Vorbis, FLAC, Opus |
//! | MPEG audio | `mp3` | layers I, II and III |
//! | ADTS | `adts` | AAC |
//! | MP4, M4A, Matroska, WebM | `demux`, symphonia | AAC, ALAC, FLAC, MP3, Opus, Vorbis, PCM |
//! | AIFF, CAF | `demux`, symphonia | PCM, ALAC, ADPCM |
//! | raw | `pcm`, by the content type alone | PCM, float, A-law, µ-law |
//!
//! Codecs are symphonia's, Opus is `ropus`. Readers of our own stand where symphonia's stop at the first
//! irregularity or do not tell what they left out; `docs/decisions/0012` has the measurements.
//!
//! Vorbis of more than two channels is refused as unsupported: symphonia 0.6.1 decodes it wrongly. AAC is
//! decoded in its Low Complexity profile; of HE-AAC the part below half the rate is.
//!
//! The type is found from the bytes. A `content-type` that contradicts them loses, and
//! [`Waveform::content_type_mismatch`] says so; it only decides for raw PCM, which has no mark of its own.

mod adpcm;
mod adts;
mod au;
mod channels;
mod codec;
pub mod config;
mod container;
mod content_type;
mod demux;
mod error;
mod flac;
pub mod log_mel;
mod long;
pub mod mel_frames;
mod mend;
mod mp3;
mod mpeg;
mod ogg;
mod ogg_page;
mod opus;
mod pcm;
mod resample;
mod sink;
mod sniff;
mod stream;
#[cfg(test)]
mod tests;
mod vorbis;
mod vorbis_headers;
mod wav;
mod windows;

use std::panic::{AssertUnwindSafe, catch_unwind};

use channels::Mix;
use sink::{Decoded, Keep, Sink};

pub use container::{Container, PcmEncoding, PcmSpec};
pub use content_type::{ContentType, ContentTypeError};
pub use error::AudioError;
pub use long::{LongSound, Sound, decode_or_measure};
pub use resample::{resample, resampled_len};
pub use sniff::probe_container;
pub use stream::{EndOfStream, StreamDecoder};
pub use wav::{WriteWavError, encode_wav, write_wav};
pub use windows::{VOICE_FRAME_SAMPLES, Window, WindowCutter, WindowLimits, samples_of};

/// Sample rate of every [`Waveform`], hertz.
pub const SAMPLE_RATE_HZ: u32 = 16_000;

/// Sound is judged in pieces of 30 ms.
const FRAME_SAMPLES: usize = 480; // 0.030 s · 16 000 Hz

/// Shortest pause after which answers are flagged `long_pause`, seconds.
pub const LONG_PAUSE_SECONDS: f64 = 1.5;

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
    /// Largest share of a sound that may be missing, 0 to 1, before the value is refused.
    pub unheard_share_max: f64,
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
    /// Channels of the source. They were averaged; where the mean cancels, the loudest was taken instead.
    pub source_channels: u16,
    /// What the bytes were.
    pub container: Container,
    /// Whether the declared content type named another container than the bytes are.
    pub content_type_mismatch: bool,
    /// What of the input could not be decoded.
    pub damage: Damage,
}

/// What of an input was not decoded, and why.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Damage {
    /// Length of what is not in the samples, seconds; an estimate where bytes cannot be read at all.
    pub undecoded_seconds: f64,
    /// The sound ends before it should: its end is missing.
    pub cut_short: bool,
    /// Something inside was mended or stepped over.
    pub repaired: bool,
    /// The first few findings.
    pub notes: Vec<String>,
}

/// Longest missing sound of a labelled recording, seconds: about a phone. Where more is missing, its target
/// may hold words that are not in the samples.
pub const LABELLED_UNDECODED_SECONDS_MAX: f64 = 0.1;

impl Damage {
    /// Checks that a target may be learned, or a result be scored, from sound with this damage.
    ///
    /// # Errors
    /// A sentence that says how much is missing, and why, when it is more than
    /// [`LABELLED_UNDECODED_SECONDS_MAX`].
    pub fn check_labelled(&self) -> Result<(), String> {
        if self.undecoded_seconds <= LABELLED_UNDECODED_SECONDS_MAX {
            return Ok(());
        }
        Err(format!(
            "{:.2} s of its sound cannot be decoded ({}), more than the {LABELLED_UNDECODED_SECONDS_MAX} s that a labelled \
             recording may lack: send it whole",
            self.undecoded_seconds,
            self.notes.first().map_or("damaged", String::as_str)
        ))
    }
}

impl Waveform {
    /// Length in seconds.
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(SAMPLE_RATE_HZ)
    }
}

/// Power of the loudest 30 ms of 16 kHz sound, each without its constant part (DC), dB of full scale: 0 where
/// all samples are at ±1 by turns, minus infinity for digital silence and for any constant.
pub fn loudest_frame_dbfs(samples: &[f32]) -> f64 {
    let powers = samples.chunks(FRAME_SAMPLES).map(power_without_dc);
    10.0 * powers.fold(0.0, f64::max).log10()
}

/// Power of a piece of sound without its constant part (DC).
pub(crate) fn power_without_dc(frame: &[f32]) -> f64 {
    let count = frame.len() as f64;
    let mean = frame.iter().map(|sample| f64::from(*sample)).sum::<f64>() / count;
    let squares = frame.iter().map(|sample| (f64::from(*sample) - mean).powi(2));
    squares.sum::<f64>() / count
}

/// Whether sound goes on behind a pause of at least [`LONG_PAUSE_SECONDS`]: 30 ms pieces that are more than
/// 25 dB weaker than the loudest, without their constant parts. Room noise in the pause does not hide it.
pub fn has_long_pause(samples: &[f32]) -> bool {
    const BELOW_LOUDEST: f64 = 0.003_162; // -25 dB
    let powers: Vec<f64> = samples.chunks(FRAME_SAMPLES).map(power_without_dc).collect();
    let loud = powers.iter().copied().fold(0.0, f64::max) * BELOW_LOUDEST;
    let pieces = (LONG_PAUSE_SECONDS * f64::from(SAMPLE_RATE_HZ) / FRAME_SAMPLES as f64) as usize;
    let mut spoken = powers.iter().enumerate().filter(|(_, power)| **power > loud);
    let Some((mut before, _)) = spoken.next() else {
        return false;
    };
    spoken.any(|(at, _)| {
        let pause = at - before;
        before = at;
        pause > pieces
    })
}

/// Decodes a record's bytes into mono 16 kHz samples.
///
/// `content_type` is the record's header, when there is one. Channels are averaged, at the level of those
/// that carry sound; the length is exactly `round(frames · 16000 / rate)`. Memory is bounded by the value,
/// the limits and a few resampler blocks: decoding stops at the first sample over a limit.
///
/// # Errors
/// One [`AudioError`] variant for each way in which a value is no usable sound.
pub fn decode(
    bytes: &[u8],
    content_type: Option<&str>,
    limits: &AudioLimits,
) -> Result<Waveform, AudioError> {
    let found = decode_kept(bytes, content_type, limits, usize::MAX)?;
    Ok(found.decoded.waveform)
}

/// A decoded value, and how to decode it again.
struct Found<'b> {
    decoded: Decoded,
    container: Container,
    /// What of the value is sound.
    bytes: &'b [u8],
    mix: Mix,
}

fn decode_kept<'b>(
    bytes: &'b [u8],
    content_type: Option<&str>,
    limits: &AudioLimits,
    kept_samples_max: usize,
) -> Result<Found<'b>, AudioError> {
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
    let (container, start) = sniff::decide(bytes, declared.as_ref())?;
    let bytes = without_trailing_tag(container, &bytes[start..]);

    let mut mix = Mix::Mean;
    loop {
        let mut decoded = decode_as(container, bytes, limits, mix, Keep::UpTo(kept_samples_max))?;
        if let Some(better) = decoded.better {
            mix = better;
            continue; // at most once: a mix other than the mean is final
        }
        let waveform = &mut decoded.waveform;
        if mix != Mix::Mean {
            waveform.damage.repaired = true;
            waveform
                .damage
                .notes
                .push("its channels cancel each other, one of them was taken".to_owned());
        }
        waveform.content_type_mismatch = declared.is_some_and(|declared| !declared.agrees_with(container));
        return Ok(Found {
            decoded,
            container,
            bytes,
            mix,
        });
    }
}

/// Some taggers append an ID3v1 tag, 128 bytes, to whatever they meet. Readers that walk over tags do it
/// themselves, and plain samples may look like one.
fn without_trailing_tag(container: Container, bytes: &[u8]) -> &[u8] {
    let own = matches!(
        container,
        Container::Pcm(_) | Container::Wav | Container::Mpeg | Container::Adts
    );
    match bytes.split_last_chunk::<128>() {
        Some((before, tag)) if !own && tag.starts_with(b"TAG") => before,
        _ => bytes,
    }
}

/// Decodes bytes that are known to be of this container. Codecs and demuxers are third-party code that meets
/// hostile bytes: a panic in them is a corrupt value, not our end, and what they log names neither record nor
/// file, so it is not logged.
fn decode_as(
    container: Container,
    bytes: &[u8],
    limits: &AudioLimits,
    mix: Mix,
    keep: Keep,
) -> Result<Decoded, AudioError> {
    let read = || {
        let mut sink = Sink::new(container, limits, mix, keep);
        match container {
            Container::Wav => wav::decode(bytes, &mut sink),
            Container::Au => au::decode(bytes, &mut sink),
            Container::Flac => flac::decode(bytes, &mut sink),
            Container::OggVorbis | Container::OggFlac | Container::OggOpus => ogg::decode(bytes, &mut sink),
            Container::Mpeg => mp3::decode(bytes, &mut sink),
            Container::Adts => adts::decode(bytes, &mut sink),
            Container::Mp4 | Container::Matroska | Container::Aiff | Container::Caf => {
                demux::decode(bytes, &mut sink)
            }
            Container::Pcm(spec) => pcm::decode(bytes, spec, &mut sink),
        }?;
        sink.finish()
    };
    // Nothing that outlives the closure is touched by it.
    let quietly = || tracing::dispatcher::with_default(&tracing::Dispatch::none(), read);
    catch_unwind(AssertUnwindSafe(quietly)).unwrap_or_else(|_| {
        Err(AudioError::Corrupt {
            container,
            detail: "the decoder gave up in a way that it should not".to_owned(),
        })
    })
}

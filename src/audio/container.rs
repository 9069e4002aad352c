//! What a value is: its container, or how raw samples are written.

use std::fmt;

/// What a value is, and so which reader takes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Container {
    /// RIFF/WAVE, RF64, BW64 or RIFX with linear PCM, float, A-law, µ-law, ADPCM or MPEG audio.
    Wav,
    /// AU with linear PCM, float, A-law or µ-law.
    Au,
    /// FLAC in its own container.
    Flac,
    /// Vorbis in Ogg.
    OggVorbis,
    /// FLAC in Ogg.
    OggFlac,
    /// Opus in Ogg.
    OggOpus,
    /// MPEG audio, layers I to III.
    Mpeg,
    /// AAC in ADTS.
    Adts,
    /// MP4, M4A, 3GP or QuickTime.
    Mp4,
    /// Matroska or WebM.
    Matroska,
    /// AIFF or AIFC.
    Aiff,
    /// Core Audio Format.
    Caf,
    /// Raw samples, by the word of the content type alone.
    Pcm(PcmSpec),
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wav => "WAV file",
            Self::Au => "AU file",
            Self::Flac => "FLAC file",
            Self::OggVorbis => "Ogg Vorbis file",
            Self::OggFlac => "Ogg FLAC file",
            Self::OggOpus => "Ogg Opus file",
            Self::Mpeg => "MP3 file",
            Self::Adts => "AAC file (ADTS)",
            Self::Mp4 => "MP4 or M4A file",
            Self::Matroska => "Matroska or WebM file",
            Self::Aiff => "AIFF file",
            Self::Caf => "CAF file",
            Self::Pcm(_) => "raw PCM",
        })
    }
}

/// How one sample is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PcmEncoding {
    /// Unsigned 8 bit, 128 is silence.
    U8,
    /// Signed 8 bit.
    S8,
    /// Signed 16 bit, little-endian.
    S16Le,
    /// Signed 16 bit, big-endian.
    S16Be,
    /// Signed 24 bit in three bytes, little-endian.
    S24Le,
    /// Signed 24 bit in three bytes, big-endian.
    S24Be,
    /// Signed 32 bit, little-endian.
    S32Le,
    /// Signed 32 bit, big-endian.
    S32Be,
    /// IEEE 32 bit, little-endian.
    F32Le,
    /// IEEE 32 bit, big-endian.
    F32Be,
    /// IEEE 64 bit, little-endian.
    F64Le,
    /// IEEE 64 bit, big-endian.
    F64Be,
    /// G.711 µ-law.
    MuLaw,
    /// G.711 A-law.
    ALaw,
}

/// What a content type says about raw samples; channels are interleaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcmSpec {
    /// How one sample is written.
    pub encoding: PcmEncoding,
    /// Sample rate as declared, hertz; not checked yet.
    pub rate_hz: u32,
    /// Channels as declared; not checked yet.
    pub channels: u16,
}

//! One packet of any codec to samples: symphonia's decoders, and Opus.

use std::panic::{AssertUnwindSafe, catch_unwind};

use symphonia::core::codecs::audio::well_known::*;
use symphonia::core::codecs::audio::{AudioCodecId, AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::packet::PacketRef;
use symphonia::core::units::{Duration, Timestamp};

use super::opus::OpusStreams;
use super::vorbis_headers;

/// Most frames of one packet. The largest that an encoder writes is 65,535 (FLAC).
const PACKET_FRAMES_MAX: u64 = 1 << 17;

/// A decoder for the packets of one stream.
pub(super) enum Codec {
    Symphonia(Box<dyn AudioDecoder>),
    Opus(Box<OpusStreams>),
}

impl Codec {
    /// A decoder for a stream of these parameters.
    ///
    /// # Errors
    /// Why there is none, without the names of codec and container.
    pub(super) fn open(parameters: &AudioCodecParameters) -> Result<Self, String> {
        let extra_data = parameters.extra_data.as_deref().unwrap_or_default();
        let mut parameters = parameters.clone();
        match parameters.codec {
            CODEC_ID_OPUS => return Ok(Self::Opus(Box::new(OpusStreams::open(extra_data)?))),
            CODEC_ID_AAC => {
                if let Some(plain) = plain_aac(extra_data) {
                    parameters.extra_data = Some(plain);
                }
            }
            CODEC_ID_VORBIS => {
                let (identification, set_up) = extra_data
                    .split_at_checked(vorbis_headers::IDENTIFICATION_BYTES)
                    .ok_or("its headers are missing")?;
                vorbis_headers::check_headers(identification, set_up)?;
            }
            // CAF says 8 bits, which the decoder takes for the width of its output.
            CODEC_ID_PCM_ALAW | CODEC_ID_PCM_MULAW => {
                parameters.bits_per_sample = None;
                parameters.bits_per_coded_sample = None;
            }
            CODEC_ID_ALAC => {
                // The cookie begins with the number of frames of a packet, some writers put atoms before it.
                let cookie = match extra_data.get(4..8) {
                    Some(b"frma") => extra_data.get(24..),
                    _ => Some(extra_data),
                };
                let frames = cookie.and_then(<[u8]>::first_chunk::<4>);
                let frames = frames.map(|frames| u64::from(u32::from_be_bytes(*frames)));
                if frames.is_none_or(|frames| frames > PACKET_FRAMES_MAX) {
                    return Err("its set-up is invalid".to_owned());
                }
            }
            _ => {}
        }
        if parameters
            .max_frames_per_packet
            .is_some_and(|frames| frames > PACKET_FRAMES_MAX)
        {
            return Err("its packets are too large".to_owned());
        }
        symphonia::default::get_codecs()
            .make_audio_decoder(&parameters, &AudioDecoderOptions::default())
            .map(Self::Symphonia)
            .map_err(|error| meaning(&error).to_owned())
    }

    /// Decodes a packet into `samples`, interleaved; says their rate, hertz, and number of channels. `frames`
    /// is what the container says about the packet's length; only ADPCM needs it.
    pub(super) fn decode(
        &mut self,
        packet: &[u8],
        frames: u64,
        samples: &mut Vec<f32>,
    ) -> Result<(u32, u16), String> {
        match self {
            Self::Symphonia(decoder) => {
                let packet = PacketRef::new(0, Timestamp::ZERO, Duration::new(frames), packet);
                // A panic over one packet must not cost the others: what the decoder keeps is at worst wrong
                // sound.
                let decode = AssertUnwindSafe(|| {
                    let decoded = decoder
                        .decode_ref(&packet)
                        .map_err(|error| meaning(&error).to_owned())?;
                    decoded.copy_to_vec_interleaved(samples);
                    let spec = decoded.spec();
                    Ok((
                        spec.rate(),
                        u16::try_from(spec.channels().count()).unwrap_or(u16::MAX),
                    ))
                });
                catch_unwind(decode).unwrap_or_else(|_| Err("the decoder gave up".to_owned()))
            }
            Self::Opus(decoder) => {
                decoder.decode(packet, samples)?;
                Ok((super::opus::RATE_HZ, decoder.channels()))
            }
        }
    }
}

/// What an error of symphonia means; its own texts name parts of the library.
pub(super) fn meaning(error: &Error) -> &'static str {
    match error {
        Error::Unsupported(_) => "no decoder here takes it",
        Error::LimitError(_) => "a declared size is too large",
        Error::IoError(_) => "it ends too early",
        _ => "its data is invalid",
    }
}

/// The name of a codec for messages; `None` for one that symphonia has no name for.
pub(super) fn name(codec: AudioCodecId) -> Option<&'static str> {
    Some(match codec {
        CODEC_ID_AAC => "AAC",
        CODEC_ID_AC3 => "AC-3",
        CODEC_ID_AC4 => "AC-4",
        CODEC_ID_EAC3 => "E-AC-3",
        CODEC_ID_ADPCM_IMA_QT | CODEC_ID_ADPCM_IMA_WAV => "IMA ADPCM",
        CODEC_ID_ADPCM_MS => "Microsoft ADPCM",
        CODEC_ID_ALAC => "ALAC",
        CODEC_ID_DCA => "DTS",
        CODEC_ID_FLAC => "FLAC",
        CODEC_ID_MP1 | CODEC_ID_MP2 => "MPEG audio layer I or II",
        CODEC_ID_MP3 => "MP3",
        CODEC_ID_MUSEPACK => "Musepack",
        CODEC_ID_OPUS => "Opus",
        CODEC_ID_TRUEHD => "TrueHD",
        CODEC_ID_TTA => "True Audio",
        CODEC_ID_VORBIS => "Vorbis",
        CODEC_ID_WAVPACK => "WavPack",
        CODEC_ID_WMA => "WMA",
        _ => return None,
    })
}

/// An AudioSpecificConfig (ISO/IEC 14496-3, 1.6.2.1) without what announces spectral band replication, which
/// symphonia 0.6.1 refuses: the Low Complexity stream inside HE-AAC is decodable by itself, at half the rate.
fn plain_aac(config: &[u8]) -> Option<Box<[u8]>> {
    let mut bits = MostSignificantFirst { bytes: config, at: 0 };
    let mut object_type = bits.take(5)?;
    let (index, explicit) = bits.rate()?;
    let channels = bits.take(4)?;
    if object_type == 5 || object_type == 29 {
        bits.rate()?;
        object_type = bits.take(5)?;
    }
    if object_type != 2 {
        return None;
    }
    let rest = bits.take(3).unwrap_or_default(); // frame length, core coder, extension
    let mut plain = (object_type << 4 | index, 9);
    if let Some(rate) = explicit {
        plain = (plain.0 << 24 | rate, plain.1 + 24);
    }
    plain = (plain.0 << 7 | channels << 3 | rest, plain.1 + 7);
    let bytes = (plain.0 << (64 - plain.1)).to_be_bytes();
    Some(bytes[..usize::from(plain.1 as u8).div_ceil(8)].into())
}

/// Reads bits from the most significant end.
struct MostSignificantFirst<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl MostSignificantFirst<'_> {
    fn take(&mut self, width: usize) -> Option<u64> {
        let mut value = 0;
        for _ in 0..width {
            let byte = self.bytes.get(self.at / 8)?;
            value = value << 1 | u64::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Some(value)
    }

    /// An index into the table of rates, and the rate itself where the index says that it follows.
    fn rate(&mut self) -> Option<(u64, Option<u64>)> {
        let index = self.take(4)?;
        let explicit = if index == 15 { Some(self.take(24)?) } else { None };
        Some((index, explicit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_announces_spectral_band_replication_is_taken_off() {
        // Low Complexity, 44.1 kHz, stereo: as it is, and with the extension of two bytes behind it.
        assert_eq!(plain_aac(&[0x12, 0x10]).as_deref(), Some(&[0x12, 0x10][..]));
        assert_eq!(
            plain_aac(&[0x13, 0x90, 0x56, 0xe5, 0xa0]).as_deref(),
            Some(&[0x13, 0x90][..])
        );
        // HE-AAC said first: object type 5, 22.05 kHz, stereo, extended to 44.1 kHz, inner object type 2.
        assert_eq!(
            plain_aac(&[0x2b, 0x92, 0x08, 0x00]).as_deref(),
            Some(&[0x13, 0x90][..])
        );
        assert_eq!(plain_aac(&[0x12]), None);
    }
}

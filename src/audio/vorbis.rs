//! Vorbis packets to samples: symphonia's decoder, with a bound on what its set-up may allocate, and the granule
//! positions obeyed to the sample.

use symphonia::core::codecs::audio::well_known::CODEC_ID_VORBIS;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::packet::PacketRef;
use symphonia::core::units::{Duration, Timestamp};
use symphonia::default::codecs::VorbisDecoder;

use super::ogg::PacketEnd;
use super::sink::Sink;
use super::{AudioError, AudioLimits, Container, Waveform};

/// Most numbers in all code books together. Real encoders stay far below a million; a hostile set-up header of a
/// few kilobytes can ask for a billion.
const CODE_BOOK_VALUES_MAX: u64 = 4 << 20; // 16 MiB as f32

/// symphonia 0.6.1 puts the channels of a coupled pair other than the first into the wrong places, so that more than
/// two channels come out as something else than went in, without an error. Refused, until that is mended.
const CHANNELS_MAX: u8 = 2;

/// Takes the packets of one Vorbis stream.
pub(super) struct VorbisStream {
    limits: AudioLimits,
    last_granule: i64,
    /// The identification header, until the set-up header has come.
    identification: Option<Vec<u8>>,
    comment_seen: bool,
    decoding: Option<Decoding>,
}

/// The state once all three headers are in.
struct Decoding {
    decoder: VorbisDecoder,
    sink: Sink,
    interleaved: Vec<f32>,
    /// Decoded frames of the first page that ends a packet, held until its granule position says where they start.
    held: Vec<f32>,
    /// Frames still wanted, once that is known.
    wanted: Option<u64>,
    /// Frames decoded beyond what was wanted, since the last page began.
    beyond: u64,
    /// Frames were decoded beyond what was wanted on a page before the last.
    beyond_too_early: bool,
}

impl VorbisStream {
    /// A stream whose last granule position is known from a walk over its pages.
    pub(super) fn new(last_granule: i64, limits: &AudioLimits) -> Self {
        Self {
            limits: *limits,
            last_granule,
            identification: None,
            comment_seen: false,
            decoding: None,
        }
    }

    /// Takes the next packet.
    pub(super) fn take(&mut self, packet: &[u8], end: PacketEnd) -> Result<(), AudioError> {
        if let Some(decoding) = &mut self.decoding {
            return decoding.take(packet, end, self.last_granule);
        }
        match (packet.first(), &self.identification) {
            (Some(1), None) => self.identification = Some(packet.to_vec()),
            (Some(3), Some(_)) if !self.comment_seen => self.comment_seen = true,
            (Some(5), Some(identification)) => {
                self.decoding = Some(Decoding::new(identification, packet, &self.limits)?);
            }
            _ => return corrupt("its three headers do not come in order".to_owned()),
        }
        Ok(())
    }

    /// The waveform, once all packets are in.
    pub(super) fn finish(self) -> Result<Waveform, AudioError> {
        let Some(decoding) = self.decoding else {
            let detail = "it ends before its set-up header".to_owned();
            return Err(AudioError::Truncated {
                container: Container::OggVorbis,
                detail,
            });
        };
        if decoding.beyond_too_early {
            return corrupt("its last position lies before sound that it holds".to_owned());
        }
        match decoding.wanted {
            Some(missing) if missing > 0 => corrupt(format!(
                "its last position lies {missing} samples behind its last packet"
            )),
            _ => decoding.sink.finish(),
        }
    }
}

impl Decoding {
    fn new(identification: &[u8], set_up: &[u8], limits: &AudioLimits) -> Result<Self, AudioError> {
        // 1 "vorbis", version, channels, rate
        let (Some(channels), Some(rate)) = (
            identification.get(11),
            identification.get(12..).and_then(<[u8]>::first_chunk::<4>),
        ) else {
            return corrupt("its identification header is too short".to_owned());
        };
        let rate_hz = u32::from_le_bytes(*rate);
        let sink = Sink::new(Container::OggVorbis, rate_hz, u16::from(*channels), limits)?;
        if *channels > CHANNELS_MAX {
            let found = format!("Vorbis of {channels} channels");
            return Err(AudioError::UnsupportedCodec { found });
        }
        let values = code_book_values(set_up);
        if values > CODE_BOOK_VALUES_MAX {
            return Err(AudioError::TooManySamples {
                samples: values,
                samples_max: CODE_BOOK_VALUES_MAX,
            });
        }

        let mut parameters = AudioCodecParameters::new();
        parameters
            .for_codec(CODEC_ID_VORBIS)
            .with_extra_data([identification, set_up].concat().into_boxed_slice());
        let decoder = VorbisDecoder::try_new(&parameters, &AudioDecoderOptions::default());
        match decoder {
            Ok(decoder) => Ok(Self {
                decoder,
                sink,
                interleaved: Vec::new(),
                held: Vec::new(),
                wanted: None,
                beyond: 0,
                beyond_too_early: false,
            }),
            Err(error) => corrupt(format!("its headers: {error}")),
        }
    }

    fn take(&mut self, packet: &[u8], end: PacketEnd, last_granule: i64) -> Result<(), AudioError> {
        if !packet.is_empty() {
            self.decode(packet, end)?;
        }
        let (None, Some(granule)) = (self.wanted, end.granule) else {
            return Ok(());
        };

        // The first position: the stream starts that many samples before it, except that on a last page it also
        // cuts the end off, so that the start is taken to be zero.
        let channels = u64::from(self.sink.channels());
        let held_frames = self.held.len() as u64 / channels;
        let start = if end.last_page {
            0
        } else {
            granule.saturating_sub_unsigned(held_frames)
        };
        let skipped = start.min(0).unsigned_abs().min(held_frames);
        self.wanted = Some(last_granule.saturating_sub(start.max(0)).max(0).unsigned_abs());
        let held = std::mem::take(&mut self.held);
        self.push(&held[(skipped * channels) as usize..], end)
    }

    /// Decodes a packet of sound.
    fn decode(&mut self, packet: &[u8], end: PacketEnd) -> Result<(), AudioError> {
        let at = self.sink.frames();
        let packet = PacketRef::new(0, Timestamp::ZERO, Duration::ZERO, packet);
        let decoded = match self.decoder.decode_ref(&packet) {
            Ok(decoded) => decoded,
            Err(error) => return corrupt(format!("the packet at sample {at}: {error}")),
        };
        decoded.copy_to_vec_interleaved(&mut self.interleaved);
        if self.wanted.is_some() {
            let interleaved = std::mem::take(&mut self.interleaved);
            self.push(&interleaved, end)?;
            self.interleaved = interleaved;
            return Ok(());
        }
        let frames = self.held.len() / usize::from(self.sink.channels());
        self.sink.expect_frames(frames as u64)?;
        self.held.extend_from_slice(&self.interleaved);
        Ok(())
    }

    /// Hands on as many frames as are still wanted.
    fn push(&mut self, interleaved: &[f32], end: PacketEnd) -> Result<(), AudioError> {
        let channels = usize::from(self.sink.channels());
        let frames = (interleaved.len() / channels) as u64;
        let wanted = self.wanted.unwrap_or_default();
        let taken = frames.min(wanted);
        self.wanted = Some(wanted - taken);
        self.beyond += frames - taken;
        self.beyond_too_early |= self.beyond > 0 && !end.last_page;
        self.sink
            .push_interleaved(&interleaved[..taken as usize * channels])
    }
}

/// How many numbers the code books of a set-up header ask for, at least; what cannot be read is left to the decoder.
fn code_book_values(set_up: &[u8]) -> u64 {
    let mut bits = Bits {
        bytes: set_up.get(7..).unwrap_or_default(),
        at: 0,
    };
    let mut values = 0;
    let books = bits.take(8).map_or(0, |count| count + 1);
    for _ in 0..books {
        match code_book(&mut bits) {
            Some(more) => values += more,
            None => break,
        }
        if values > CODE_BOOK_VALUES_MAX {
            break;
        }
    }
    values
}

/// Steps over one code book; says how many numbers it asks for.
fn code_book(bits: &mut Bits<'_>) -> Option<u64> {
    if bits.take(24)? != 0x56_4342 {
        return None;
    }
    let dimensions = bits.take(16)?;
    let entries = bits.take(24)?;
    if bits.take(1)? == 1 {
        bits.take(5)?; // lengths in order: runs of entries
        let mut entry = 0;
        while entry < entries {
            let width = u64::BITS - (entries - entry).leading_zeros();
            entry += bits.take(width)?;
        }
    } else if bits.take(1)? == 1 {
        for _ in 0..entries {
            if bits.take(1)? == 1 {
                bits.take(5)?;
            }
        }
    } else {
        bits.skip(5 * entries)?;
    }
    let lookup = bits.take(4)?;
    if lookup == 0 {
        return Some(entries);
    }
    bits.skip(64)?; // smallest value and step
    let width = bits.take(4)? + 1;
    bits.take(1)?;
    let numbers = match lookup {
        1 => largest_root(entries, dimensions),
        _ => entries * dimensions,
    };
    bits.skip(width * numbers)?;
    Some(entries * (1 + dimensions))
}

/// The largest number whose power to `dimensions` is at most `entries`.
fn largest_root(entries: u64, dimensions: u64) -> u64 {
    if dimensions == 1 {
        return entries;
    }
    let power = |base: u64| (0..dimensions.min(64)).try_fold(1_u64, |product, _| product.checked_mul(base));
    let mut root = 0;
    while dimensions > 0 && power(root + 1).is_some_and(|product| product <= entries) && root < entries {
        root += 1;
    }
    root
}

/// Reads bits from the least significant end, as Vorbis packs them.
struct Bits<'a> {
    bytes: &'a [u8],
    at: u64,
}

impl Bits<'_> {
    fn take(&mut self, width: u32) -> Option<u64> {
        let mut value = 0;
        for bit in 0..width {
            let byte = self.bytes.get(usize::try_from(self.at / 8).ok()?)?;
            value |= u64::from(byte >> (self.at % 8) & 1) << bit;
            self.at += 1;
        }
        Some(value)
    }

    fn skip(&mut self, width: u64) -> Option<()> {
        self.at = self.at.checked_add(width)?;
        (self.at <= self.bytes.len() as u64 * 8).then_some(())
    }
}

fn corrupt<T>(detail: String) -> Result<T, AudioError> {
    Err(AudioError::Corrupt {
        container: Container::OggVorbis,
        detail,
    })
}

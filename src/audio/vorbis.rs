//! Vorbis packets to samples: symphonia's decoder, with a bound on what its set-up may allocate, and the
//! granule positions obeyed to the sample.

use symphonia::core::codecs::audio::AudioCodecParameters;
use symphonia::core::codecs::audio::well_known::CODEC_ID_VORBIS;

use super::codec::Codec;
use super::ogg::PacketEnd;
use super::sink::{Sink, check_source};
use super::{AudioError, Container};

/// Most numbers in all code books together. Real encoders stay far below a million; a hostile set-up header
/// of a few kilobytes can ask for a billion.
const CODE_BOOK_VALUES_MAX: u64 = 4 << 20; // 16 MiB as f32

/// symphonia 0.6.1 puts the channels of a coupled pair other than the first into the wrong places, so that
/// more than two channels come out as something else than went in, without an error. Refused, until that is
/// mended.
const CHANNELS_MAX: u8 = 2;

/// Bytes of the identification header.
pub(super) const IDENTIFICATION_BYTES: usize = 30;

/// Takes the packets of one Vorbis stream in Ogg.
pub(super) struct VorbisStream {
    last_granule: i64,
    /// The identification header, until the set-up header has come.
    identification: Option<Vec<u8>>,
    comment_seen: bool,
    decoding: Option<Decoding>,
}

/// The state once all three headers are in.
struct Decoding {
    codec: Codec,
    rate_hz: u32,
    channels: u16,
    interleaved: Vec<f32>,
    /// Decoded frames of the first page that ends a packet, held until its granule position says where they
    /// start.
    held: Vec<f32>,
    /// Frames still to come by the last granule position, once that is known.
    wanted: Option<u64>,
    /// Frames came beyond that, so that it cannot be believed.
    beyond: bool,
}

impl VorbisStream {
    /// A stream whose last granule position is known from a walk over its pages.
    pub(super) fn new(last_granule: i64) -> Self {
        Self {
            last_granule,
            identification: None,
            comment_seen: false,
            decoding: None,
        }
    }

    /// Takes the next packet.
    pub(super) fn take(&mut self, packet: &[u8], end: PacketEnd, sink: &mut Sink) -> Result<(), AudioError> {
        if let Some(decoding) = &mut self.decoding {
            return decoding.take(packet, end, self.last_granule, sink);
        }
        match (packet.first(), &self.identification) {
            (Some(1), None) => self.identification = Some(packet.to_vec()),
            (Some(3), Some(_)) if !self.comment_seen => self.comment_seen = true,
            (Some(5), Some(identification)) => {
                self.decoding = Some(Decoding::new(identification, packet, sink)?);
            }
            _ => return corrupt("its three headers do not come in order".to_owned()),
        }
        Ok(())
    }

    /// Says what is missing, once all packets are in.
    pub(super) fn finish(self, sink: &mut Sink) -> Result<(), AudioError> {
        let Some(mut decoding) = self.decoding else {
            let detail = "it ends before its set-up header".to_owned();
            return Err(AudioError::Truncated {
                container: Container::OggVorbis,
                detail,
            });
        };
        if !decoding.held.is_empty() {
            let held = std::mem::take(&mut decoding.held);
            decoding.start(sink)?;
            sink.push_interleaved(&held)?; // no page said where it ends
        }
        if let (Some(missing), false) = (decoding.wanted.filter(|missing| *missing > 0), decoding.beyond) {
            let seconds = missing as f64 / f64::from(decoding.rate_hz);
            sink.repaired(
                seconds,
                format!("{seconds:.3} s of it are missing between its packets"),
            );
        }
        Ok(())
    }
}

/// Refuses headers that symphonia must not see.
///
/// # Errors
/// Why.
pub(super) fn check_headers(identification: &[u8], set_up: &[u8]) -> Result<(), String> {
    let channels = identification.get(11).copied().unwrap_or_default();
    if channels > CHANNELS_MAX {
        return Err(format!("Vorbis of {channels} channels"));
    }
    let values = code_book_values(set_up);
    if values > CODE_BOOK_VALUES_MAX {
        return Err(format!("its code books ask for at least {values} values"));
    }
    Ok(())
}

impl Decoding {
    fn new(identification: &[u8], set_up: &[u8], sink: &mut Sink) -> Result<Self, AudioError> {
        // 1 "vorbis", version, channels, rate
        let (Some(channels), Some(rate)) = (
            identification.get(11),
            identification.get(12..).and_then(<[u8]>::first_chunk::<4>),
        ) else {
            return corrupt("its identification header is too short".to_owned());
        };
        let (rate_hz, channels) = (u32::from_le_bytes(*rate), *channels);
        check_source(rate_hz, u16::from(channels), sink.limits())?;
        if channels > CHANNELS_MAX {
            let found = format!("Vorbis of {channels} channels in Ogg");
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
        match Codec::open(&parameters) {
            Ok(codec) => Ok(Self {
                codec,
                rate_hz,
                channels: u16::from(channels),
                interleaved: Vec::new(),
                held: Vec::new(),
                wanted: None,
                beyond: false,
            }),
            Err(error) => corrupt(format!("its headers: {error}")),
        }
    }

    fn start(&self, sink: &mut Sink) -> Result<(), AudioError> {
        sink.start(self.rate_hz, self.channels)
    }

    fn take(
        &mut self,
        packet: &[u8],
        end: PacketEnd,
        last_granule: i64,
        sink: &mut Sink,
    ) -> Result<(), AudioError> {
        self.start(sink)?;
        if !packet.is_empty() {
            self.decode(packet, end, sink)?;
        }
        let (None, Some(granule)) = (self.wanted, end.granule) else {
            return Ok(());
        };

        // The first position: the stream starts that many samples before it, except that on a last page it
        // also cuts the end off, so that the start is taken to be zero.
        let channels = u64::from(self.channels);
        let held_frames = self.held.len() as u64 / channels;
        let start = if end.last_page {
            0
        } else {
            granule.saturating_sub_unsigned(held_frames)
        };
        let skipped = start.min(0).unsigned_abs().min(held_frames);
        self.wanted = Some(last_granule.saturating_sub(start.max(0)).max(0).unsigned_abs());
        let held = std::mem::take(&mut self.held);
        self.push(&held[(skipped * channels) as usize..], end, sink)
    }

    /// Decodes a packet of sound.
    fn decode(&mut self, packet: &[u8], end: PacketEnd, sink: &mut Sink) -> Result<(), AudioError> {
        if let Err(error) = self.codec.decode(packet, 0, &mut self.interleaved) {
            // How long it was is told at the end, by what is missing.
            sink.repaired(0.0, format!("the packet at sample {}: {error}", sink.frames()));
            return Ok(());
        }
        if self.wanted.is_some() {
            let interleaved = std::mem::take(&mut self.interleaved);
            self.push(&interleaved, end, sink)?;
            self.interleaved = interleaved;
            return Ok(());
        }
        let frames = self.held.len() / usize::from(self.channels);
        sink.expect_frames(frames as u64)?;
        self.held.extend_from_slice(&self.interleaved);
        Ok(())
    }

    /// Hands on frames; on a page that is marked as the last, as many as are still wanted.
    fn push(&mut self, interleaved: &[f32], end: PacketEnd, sink: &mut Sink) -> Result<(), AudioError> {
        let channels = usize::from(self.channels);
        let frames = (interleaved.len() / channels) as u64;
        let wanted = self.wanted.unwrap_or_default();
        self.beyond |= frames > wanted && !end.last_page;
        let taken = if end.last_page && !self.beyond {
            frames.min(wanted)
        } else {
            frames
        };
        self.wanted = Some(wanted.saturating_sub(frames));
        sink.push_interleaved(&interleaved[..taken as usize * channels])
    }
}

/// How many numbers the code books of a set-up header ask for, at least; what cannot be read is left to the
/// decoder.
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

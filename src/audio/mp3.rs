//! MP3: our own walk from frame to frame, symphonia for what is in them.
//!
//! The walk comes first and decodes nothing: it knows the length of every frame from its header, so it finds a cut
//! file, bytes that are no frame, and a start that was cut away (its first frames refer to data that is not there).
//! The Xing or Info header says how many frames there should be, and, from LAME and ffmpeg, how many samples at
//! both ends are the encoder's own; those are taken off.

use symphonia::core::codecs::audio::well_known::CODEC_ID_MP3;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::packet::PacketRef;
use symphonia::core::units::{Duration, Timestamp};
use symphonia::default::codecs::MpaDecoder;

use super::sink::Sink;
use super::{AudioError, AudioLimits, Container, Waveform};

/// Samples that a decoder itself is late, on top of what the encoder says.
const DECODER_DELAY: u64 = 529; // 528 of the filter bank, and 1

/// The part of a frame header that decides anything here.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Header {
    layer: u8,
    /// MPEG 1, as opposed to 2 and 2.5.
    mpeg_1: bool,
    rate_hz: u32,
    channels: u16,
    has_crc: bool,
    /// Length of the whole frame, bytes.
    len: usize,
}

impl Header {
    /// Reads the four bytes at the beginning; `None` when they are no frame header, or one of free bit rate.
    fn read(bytes: &[u8]) -> Option<Self> {
        const RATES_HZ: [u32; 3] = [44_100, 48_000, 32_000];
        // kbit/s by index, for MPEG 1 layer I, II, III and for MPEG 2 layer I, II and III.
        const KBITS: [[u32; 15]; 5] = [
            [
                0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448,
            ],
            [0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384],
            [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
            [0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256],
            [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
        ];
        let &[first, second, third, fourth] = bytes.first_chunk::<4>()?;
        if first != 0xff || second & 0xe0 != 0xe0 {
            return None;
        }
        let divisor = match (second >> 3) & 0x3 {
            0b00 => 4, // MPEG 2.5
            0b10 => 2, // MPEG 2
            0b11 => 1, // MPEG 1
            _ => return None,
        };
        let mpeg_1 = divisor == 1;
        let layer = 4 - ((second >> 1) & 0x3); // 4 is reserved
        let table = match (mpeg_1, layer) {
            (true, 1..=3) => usize::from(layer) - 1,
            (false, 1) => 3,
            (false, 2 | 3) => 4,
            _ => return None,
        };
        let bits_per_second = KBITS[table].get(usize::from(third >> 4))? * 1_000;
        let rate_hz = RATES_HZ.get(usize::from((third >> 2) & 0x3))? / divisor;
        if bits_per_second == 0 {
            return None;
        }
        let padding = u32::from((third >> 1) & 1);
        let len = match (layer, mpeg_1) {
            (1, _) => (12 * bits_per_second / rate_hz + padding) * 4,
            (3, false) => 72 * bits_per_second / rate_hz + padding,
            _ => 144 * bits_per_second / rate_hz + padding,
        };
        let channels = if fourth >> 6 == 0b11 { 1 } else { 2 };
        Some(Self {
            layer,
            mpeg_1,
            rate_hz,
            channels,
            has_crc: second & 1 == 0,
            len: len as usize,
        })
    }

    /// Samples per channel in one frame of layer III.
    fn frames(&self) -> u64 {
        if self.mpeg_1 { 1_152 } else { 576 }
    }

    /// Bytes of the side information of layer III.
    fn side_info_bytes(&self) -> usize {
        match (self.mpeg_1, self.channels) {
            (true, 1) => 17,
            (true, _) => 32,
            (false, 1) => 9,
            (false, _) => 17,
        }
    }

    /// Whether a frame with this header can follow one with the other in the same stream.
    fn continues(&self, other: &Self) -> bool {
        (self.layer, self.mpeg_1, self.rate_hz, self.channels)
            == (other.layer, other.mpeg_1, other.rate_hz, other.channels)
    }
}

/// What the first bytes say.
pub(super) enum Recognised {
    /// MP3.
    Layer3,
    /// MPEG audio of layer I or II.
    OtherLayer,
    /// Nothing of the kind.
    No,
}

/// Looks for a frame at the very beginning that is followed by another or by the end. When the content type says
/// MPEG, one frame is enough, even a cut one.
pub(super) fn recognise(bytes: &[u8], declared: bool) -> Recognised {
    let Some(header) = Header::read(bytes) else {
        return Recognised::No;
    };
    let confirmed = match bytes.get(header.len..) {
        Some([]) => true,
        Some(rest) => {
            Header::read(rest).is_some_and(|next| next.continues(&header))
                || end_of_frames(rest)
                || (rest.len() < 4 && b"\xff".starts_with(&rest[..1]))
        }
        None => false,
    };
    match header.layer {
        _ if !confirmed && !declared => Recognised::No,
        3 => Recognised::Layer3,
        _ => Recognised::OtherLayer,
    }
}

/// Whether ID3 tags are followed by MPEG audio of layer I or II.
pub(super) fn is_other_layer_after_tags(bytes: &[u8]) -> bool {
    let rest = bytes.get(tags_end(bytes)..).unwrap_or_default();
    Header::read(rest).is_some_and(|header| header.layer != 3)
}

/// Where the ID3v2 tags at the beginning end, as far as they go; past the end of the bytes when they are cut.
pub(super) fn tags_end(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + 10)
        && header.starts_with(b"ID3")
        && header[6..].iter().all(|byte| *byte < 0x80)
    {
        let size = header[6..]
            .iter()
            .fold(0, |size, byte| size << 7 | usize::from(*byte));
        let footer = if header[5] & 0x10 != 0 { 10 } else { 0 };
        at += 10 + size + footer;
    }
    at
}

/// Whether nothing but tags and padding follows.
fn end_of_frames(rest: &[u8]) -> bool {
    [&b"TAG"[..], b"APETAGEX", b"LYRICSBEGIN", b"ID3"]
        .iter()
        .any(|tag| rest.starts_with(tag))
        || rest.iter().all(|byte| *byte == 0)
}

/// What the Xing or Info header says; absent fields are zero.
#[derive(Default)]
struct Info {
    /// Frames of the file, without this one.
    frames: Option<u64>,
    /// Whether the encoder is one that counts exactly.
    exact: bool,
    /// Samples of the encoder's own at the beginning and at the end.
    delay: u64,
    padding: u64,
}

impl Info {
    /// Reads the header from a frame that holds one instead of sound.
    fn read(header: &Header, frame: &[u8]) -> Option<Self> {
        let tag = frame.get(4 + header.side_info_bytes()..)?;
        if !tag.starts_with(b"Xing") && !tag.starts_with(b"Info") {
            let vbri = frame.get(36..)?;
            let frames = vbri.get(14..18).filter(|_| vbri.starts_with(b"VBRI"))?;
            let frames = u32::from_be_bytes(frames.try_into().ok()?);
            return Some(Self {
                frames: Some(u64::from(frames)),
                ..Self::default()
            });
        }
        let flags = *tag.get(7)?;
        let mut at = 8;
        let mut info = Self::default();
        if flags & 1 != 0 {
            let frames = u32::from_be_bytes(tag.get(at..at + 4)?.try_into().ok()?);
            info.frames = Some(u64::from(frames));
            at += 4;
        }
        for (flag, bytes) in [(2, 4), (4, 100), (8, 4)] {
            at += if flags & flag != 0 { bytes } else { 0 }; // size, table of contents, quality
        }
        if let Some(encoder) = tag.get(at..at + 24)
            && (encoder.starts_with(b"LAME") || encoder.starts_with(b"Lav"))
        {
            info.exact = true;
            info.delay = u64::from(encoder[21]) << 4 | u64::from(encoder[22] >> 4);
            info.padding = u64::from(encoder[22] & 0xf) << 8 | u64::from(encoder[23]);
        }
        Some(info)
    }
}

/// Decodes an MP3 file.
pub(super) fn decode(bytes: &[u8], limits: &AudioLimits) -> Result<Waveform, AudioError> {
    let tags = tags_end(bytes);
    let Some(behind_tags) = bytes.get(tags..) else {
        return truncated(format!(
            "its ID3 tag declares {tags} bytes and there are {}",
            bytes.len()
        ));
    };
    let padding = behind_tags.iter().take_while(|byte| **byte == 0).count();
    let stream = &behind_tags[padding..];
    if stream.is_empty() {
        return Err(AudioError::ZeroSamples {
            container: Container::Mp3,
        });
    }
    let Some(first) = Header::read(stream).filter(|header| header.layer == 3) else {
        return if stream.len() < 4 {
            truncated("it ends inside its first frame".to_owned())
        } else {
            corrupt("no frame begins behind its tags, or one of free bit rate".to_owned())
        };
    };
    let mut sink = Sink::new(Container::Mp3, first.rate_hz, first.channels, limits)?;
    let info = stream
        .get(..first.len)
        .and_then(|frame| Info::read(&first, frame));
    let sound = &stream[info.as_ref().map_or(0, |_| first.len)..];
    let info = info.unwrap_or_default();

    let frames = walk(sound, &first)?;
    let slack = if info.exact { 0 } else { 1 }; // some encoders count the frame that holds the header
    if let Some(declared) = info.frames
        && frames + slack < declared
    {
        return truncated(format!(
            "its header declares {declared} frames and {frames} are there"
        ));
    }
    let whole = frames * first.frames();
    let (skipped, end) = if info.exact {
        (
            info.delay + DECODER_DELAY,
            whole - info.padding.saturating_sub(DECODER_DELAY).min(whole),
        )
    } else {
        (0, whole)
    };
    sink.expect_frames(end.saturating_sub(skipped))?;

    let mut parameters = AudioCodecParameters::new();
    parameters.for_codec(CODEC_ID_MP3);
    let mut decoder = MpaDecoder::try_new(&parameters, &AudioDecoderOptions::default())
        .expect("the decoder takes MP3 without further parameters");
    let mut interleaved: Vec<f32> = Vec::new();
    let mut rest = sound;
    for number in 0..frames {
        let header = Header::read(rest).expect("the walk went over this frame");
        let (frame, after) = rest.split_at(header.len);
        rest = after;
        let packet = PacketRef::new(0, Timestamp::ZERO, Duration::from(header.frames() as u32), frame);
        let decoded = match decoder.decode_ref(&packet) {
            Ok(decoded) => decoded,
            // Legal, and what some recorders write; symphonia 0.6.1 does not decode it.
            Err(Error::DecodeError(problem)) if problem.contains("block_type mismatch") => {
                let found = "an MP3 file whose channels choose their block types apart".to_owned();
                return Err(AudioError::UnsupportedCodec { found });
            }
            Err(error) => return corrupt(format!("frame {number}: {error}")),
        };
        if decoded.frames() as u64 != first.frames() {
            return corrupt(format!("frame {number} holds {} samples", decoded.frames()));
        }
        decoded.copy_to_vec_interleaved(&mut interleaved);
        let start = number * first.frames();
        let from = skipped.saturating_sub(start).min(first.frames());
        let to = end.saturating_sub(start).min(first.frames());
        if from < to {
            let channels = u64::from(first.channels);
            sink.push_interleaved(&interleaved[(from * channels) as usize..(to * channels) as usize])?;
        }
    }
    sink.finish()
}

/// Goes from frame to frame and counts them.
///
/// # Errors
/// A cut frame, something that is no frame, a change of rate or channels, or a frame that refers to more of what
/// came before it than did.
fn walk(sound: &[u8], first: &Header) -> Result<u64, AudioError> {
    let mut frames = 0;
    let mut reservoir = 0;
    let mut rest = sound;
    while !rest.is_empty() && !end_of_frames(rest) {
        let at = sound.len() - rest.len();
        let Some(header) = Header::read(rest) else {
            return if rest.len() < 4 && rest[0] == 0xff {
                truncated(format!("it ends inside frame {frames}"))
            } else {
                corrupt(format!("after frame {frames}, {at} bytes in, no frame begins"))
            };
        };
        if !header.continues(first) {
            return corrupt(format!("frame {frames} has another rate or number of channels"));
        }
        let Some((frame, after)) = rest.split_at_checked(header.len) else {
            let (len, left) = (header.len, rest.len());
            return truncated(format!("frame {frames} has {len} bytes and {left} follow"));
        };
        rest = after;

        let side_info = if header.has_crc { 6 } else { 4 };
        let main_data = side_info + header.side_info_bytes();
        if main_data > frame.len() {
            return corrupt(format!(
                "frame {frames} is too short for its own side information"
            ));
        }
        let (first_byte, second_byte) = (usize::from(frame[side_info]), frame[side_info + 1]);
        let (borrowed, reservoir_max) = if header.mpeg_1 {
            (first_byte << 1 | usize::from(second_byte >> 7), 511)
        } else {
            (first_byte, 255)
        };
        if borrowed > reservoir {
            return corrupt(format!(
                "frame {frames} refers to {borrowed} bytes before it and {reservoir} are there: \
                 its beginning is missing"
            ));
        }
        reservoir = (reservoir + frame.len() - main_data).min(reservoir_max);
        frames += 1;
    }
    Ok(frames)
}

fn truncated<T>(detail: String) -> Result<T, AudioError> {
    Err(AudioError::Truncated {
        container: Container::Mp3,
        detail,
    })
}

fn corrupt<T>(detail: String) -> Result<T, AudioError> {
    Err(AudioError::Corrupt {
        container: Container::Mp3,
        detail,
    })
}

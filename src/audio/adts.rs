//! AAC in ADTS: the walk of `mpeg` from frame to frame, symphonia for what is in them.

use symphonia::core::codecs::audio::AudioCodecParameters;
use symphonia::core::codecs::audio::well_known::CODEC_ID_AAC;

use super::AudioError;
use super::codec::Codec;
use super::mpeg::{Found, FrameHeader, Frames, follows, is_in_step};
use super::sink::Sink;

/// Samples per channel in one block.
const BLOCK_FRAMES: u64 = 1_024;

/// The header of an ADTS frame (ISO/IEC 14496-3, 1.A.2).
#[derive(Clone, Copy, Debug, PartialEq)]
struct Header {
    object_type: u8,
    rate_index: u8,
    rate_hz: u32,
    /// Layout of the channels: 1 and 2 are mono and stereo, 0 says that it stands elsewhere.
    channels: u8,
    has_crc: bool,
    blocks: u8,
    len: usize,
}

impl FrameHeader for Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        const RATES_HZ: [u32; 13] = [
            96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000,
            7_350,
        ];
        let head = bytes.first_chunk::<7>()?;
        if head[0] != 0xff || head[1] & 0xf6 != 0xf0 {
            return None;
        }
        let rate_index = head[2] >> 2 & 0xf;
        let has_crc = head[1] & 1 == 0;
        let len = usize::from(head[3] & 3) << 11 | usize::from(head[4]) << 3 | usize::from(head[5] >> 5);
        (len > if has_crc { 9 } else { 7 }).then_some(Self {
            object_type: (head[2] >> 6) + 1,
            rate_index,
            rate_hz: *RATES_HZ.get(usize::from(rate_index))?,
            channels: (head[2] & 1) << 2 | head[3] >> 6,
            has_crc,
            blocks: (head[6] & 3) + 1,
            len,
        })
    }

    fn frame_bytes(&self) -> usize {
        self.len
    }

    fn frames(&self) -> u64 {
        BLOCK_FRAMES * u64::from(self.blocks)
    }

    fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    fn continues(&self, other: &Self) -> bool {
        (self.object_type, self.rate_index, self.channels)
            == (other.object_type, other.rate_index, other.channels)
    }
}

/// Whether a frame stands at the beginning that is followed by another or by the end.
pub(super) fn recognise(bytes: &[u8]) -> bool {
    Header::read(bytes).is_some_and(|header| {
        bytes
            .get(header.len..)
            .is_some_and(|after| follows(&header, after))
    })
}

/// Whether frames follow something else at the beginning.
pub(super) fn recognise_behind(bytes: &[u8]) -> bool {
    is_in_step::<Header>(bytes)
}

/// Decodes AAC in ADTS.
pub(super) fn decode(bytes: &[u8], sink: &mut Sink) -> Result<(), AudioError> {
    let mut codec: Option<(Codec, Header)> = None;
    let mut samples = Vec::new();
    for found in Frames::<Header>::of(bytes) {
        let (header, frame) = match found {
            Found::Frame(header, frame) => (header, frame),
            Found::Junk(len, seconds) => {
                sink.repaired(seconds, format!("{len} bytes between its frames are no frame"));
                continue;
            }
            Found::Cut(header, left) => {
                let len = header.len;
                sink.cut_short(
                    header.seconds(),
                    format!("its last frame has {len} bytes and {left} follow"),
                );
                continue;
            }
        };
        if codec.as_ref().is_none_or(|(_, before)| !header.continues(before)) {
            codec = Some((open(&header)?, header));
        }
        let Some((codec, _)) = &mut codec else {
            continue;
        };
        let block = &frame[if header.has_crc { 9 } else { 7 }..];
        let decoded = match header.blocks {
            1 => codec.decode(block, BLOCK_FRAMES, &mut samples),
            blocks => Err(format!("it joins {blocks} blocks, which is not decoded here")),
        };
        match decoded {
            Ok((rate_hz, channels)) => {
                sink.start(rate_hz, channels)?;
                sink.push_interleaved(&samples)?;
            }
            Err(problem) => {
                let at = sink.frames();
                sink.repaired(header.seconds(), format!("the frame at sample {at}: {problem}"));
            }
        }
    }
    Ok(())
}

fn open(header: &Header) -> Result<Codec, AudioError> {
    let Header {
        object_type,
        rate_index,
        channels,
        ..
    } = *header;
    let config = [
        object_type << 3 | rate_index >> 1,
        rate_index << 7 | channels << 3,
    ];
    let mut parameters = AudioCodecParameters::new();
    parameters
        .for_codec(CODEC_ID_AAC)
        .with_extra_data(Box::from(config));
    Codec::open(&parameters).map_err(|why| AudioError::UnsupportedCodec {
        found: format!("AAC in ADTS (object type {object_type}, channel layout {channels}): {why}"),
    })
}

//! Opus packets to samples at 48 kHz, and Opus in Ogg (RFC 7845).
//!
//! The decoder is `ropus`, a port of libopus. `docs/decisions/0012` says how close they are.

use ropus::OpusMSDecoder;

use super::AudioError;
use super::ogg_page::PacketEnd;
use super::sink::Sink;

/// Rate of everything that is decoded, hertz, and of all positions.
pub(super) const RATE_HZ: u32 = 48_000;

/// Longest packet: 120 ms.
const PACKET_FRAMES_MAX: usize = 5_760;

/// A decoder for one stream or several that are joined to more than two channels.
pub(super) struct OpusStreams {
    decoder: OpusMSDecoder,
    channels: u16,
    /// Frames at the beginning that are the encoder's own.
    pub(super) pre_skip: u16,
    gain: f32,
    pcm: Vec<i16>,
}

impl OpusStreams {
    /// A decoder for the stream with this identification header, as it stands in Ogg and Matroska.
    pub(super) fn open(head: &[u8]) -> Result<Self, String> {
        let Some(&[_, channels, a, b, _, _, _, _, c, d, family]) =
            head.strip_prefix(b"OpusHead").and_then(<[u8]>::first_chunk::<11>)
        else {
            return Err("its identification header is too short".to_owned());
        };
        let (streams, coupled, mapping) = match family {
            0 if (1..=2).contains(&channels) => (1, channels - 1, vec![0, 1]),
            1 | 2 | 255 => match head.get(19..) {
                Some([streams, coupled, mapping @ ..]) => (*streams, *coupled, mapping.to_vec()),
                _ => return Err("its table of channels is missing".to_owned()),
            },
            _ => return Err(format!("its {channels} channels are mapped by family {family}")),
        };
        let mapping = mapping
            .get(..usize::from(channels))
            .ok_or("its table of channels is too short")?;
        let decoder = OpusMSDecoder::new(
            RATE_HZ as i32,
            i32::from(channels),
            i32::from(streams),
            i32::from(coupled),
            mapping,
        )
        .map_err(|code| format!("its identification header is invalid ({code})"))?;
        let gain = f32::from(i16::from_le_bytes([c, d])); // dB · 256
        Ok(Self {
            decoder,
            channels: u16::from(channels),
            pre_skip: u16::from_le_bytes([a, b]),
            gain: 10_f32.powf(gain / (20.0 * 256.0)),
            pcm: vec![0; PACKET_FRAMES_MAX * usize::from(channels)],
        })
    }

    /// Number of channels.
    pub(super) fn channels(&self) -> u16 {
        self.channels
    }

    /// Decodes a packet into `samples`, interleaved.
    pub(super) fn decode(&mut self, packet: &[u8], samples: &mut Vec<f32>) -> Result<(), String> {
        let (Some(_), Ok(len)) = (packet.first(), i32::try_from(packet.len())) else {
            return Err("the packet is empty".to_owned());
        };
        let frames = self
            .decoder
            .decode(Some(packet), len, &mut self.pcm, PACKET_FRAMES_MAX as i32, false)
            .map_err(|code| format!("the packet is invalid ({code})"))?;
        let frames = usize::try_from(frames).unwrap_or_default().min(PACKET_FRAMES_MAX);
        let scale = self.gain / 32_768.0;
        samples.clear();
        let decoded = &self.pcm[..frames * usize::from(self.channels)];
        samples.extend(decoded.iter().map(|sample| f32::from(*sample) * scale));
        Ok(())
    }
}

/// Frames at 48 kHz that a packet holds, by its first bytes (RFC 6716, 3.1).
pub(super) fn packet_frames(packet: &[u8]) -> u64 {
    let Some(&first) = packet.first() else {
        return 0;
    };
    let config = first >> 3;
    let frame = match config {
        0..12 => [480, 960, 1_920, 2_880][usize::from(config % 4)],
        12..16 => [480, 960][usize::from(config % 2)],
        _ => [120, 240, 480, 960][usize::from(config % 4)],
    };
    let count = match first & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => packet.get(1).map_or(0, |second| u64::from(second & 0x3f)),
    };
    (frame * count).min(PACKET_FRAMES_MAX as u64)
}

/// Takes the packets of one Opus stream in Ogg.
pub(super) struct OpusInOgg {
    streams: Option<OpusStreams>,
    tags_seen: bool,
    last_granule: i64,
    /// Position of the first frame, once the first page with a position has said so.
    start: Option<i64>,
    /// Frames at 48 kHz that the packets had, decoded or not.
    decoded: u64,
    samples: Vec<f32>,
}

impl OpusInOgg {
    /// A stream whose last position is known from a walk over its pages.
    pub(super) fn new(last_granule: i64) -> Self {
        Self {
            streams: None,
            tags_seen: false,
            last_granule,
            start: None,
            decoded: 0,
            samples: Vec::new(),
        }
    }

    /// Says what the last position is, where it is known only page by page.
    pub(super) fn set_last_granule(&mut self, granule: i64) {
        self.last_granule = granule;
    }

    /// Takes the next packet.
    pub(super) fn take(&mut self, packet: &[u8], end: PacketEnd, sink: &mut Sink) -> Result<(), AudioError> {
        let Some(streams) = &mut self.streams else {
            let streams = OpusStreams::open(packet).map_err(|why| AudioError::UnsupportedCodec {
                found: format!("Opus in Ogg: {why}"),
            })?;
            sink.start(RATE_HZ, streams.channels())?;
            self.streams = Some(streams);
            return Ok(());
        };
        if !self.tags_seen {
            self.tags_seen = true;
            if packet.starts_with(b"OpusTags") {
                return Ok(());
            }
        }
        if packet.is_empty() {
            return Ok(());
        }
        let frames = match streams.decode(packet, &mut self.samples) {
            Ok(()) => (self.samples.len() / usize::from(streams.channels())) as u64,
            Err(why) => {
                let frames = packet_frames(packet);
                self.decoded += frames;
                sink.repaired(
                    sink.seconds(frames),
                    format!("at sample {}: {why}", sink.frames()),
                );
                return Ok(());
            }
        };
        let from = u64::from(streams.pre_skip)
            .saturating_sub(self.decoded)
            .min(frames);
        // Only the last page of a stream that has an end mark cuts frames off.
        let mut to = frames;
        if end.last_page {
            let start = self.start.unwrap_or_default();
            let whole = self.last_granule.saturating_sub(start).max(0).unsigned_abs();
            to = whole.saturating_sub(self.decoded).min(frames);
        }
        self.decoded += frames;
        if let (None, Some(granule)) = (self.start, end.granule) {
            let decoded = i64::try_from(self.decoded).unwrap_or(i64::MAX);
            self.start = Some(granule.saturating_sub(decoded).max(0));
        }
        let channels = usize::from(streams.channels());
        if from < to {
            sink.push_interleaved(&self.samples[from as usize * channels..to as usize * channels])?;
        }
        Ok(())
    }

    /// Says what is missing, once all packets are in.
    pub(super) fn finish(self, sink: &mut Sink) {
        if self.streams.is_none() {
            return;
        }
        let start = self.start.unwrap_or_default();
        let whole = self.last_granule.saturating_sub(start).max(0).unsigned_abs();
        if whole > self.decoded && self.start.is_some() {
            let missing = sink.seconds(whole - self.decoded);
            sink.repaired(
                missing,
                format!("{missing:.3} s of it are missing between its packets"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_packet_stands_in_its_first_bytes() {
        assert_eq!(packet_frames(&[0b0000_1000]), 960); // SILK, 20 ms
        assert_eq!(packet_frames(&[0b0001_1001]), 5_760); // two of 60 ms
        assert_eq!(packet_frames(&[0b1000_0011, 48]), 5_760); // 48 of 2.5 ms
        assert_eq!(packet_frames(&[]), 0);
    }

    #[test]
    fn a_header_that_makes_no_sense_is_an_error() {
        let head = |channels: u8, family: u8, tail: &[u8]| {
            let mut head = b"OpusHead\x01".to_vec();
            head.extend([channels, 0x38, 1, 0x80, 0xbb, 0, 0, 0, 0, family]);
            head.extend(tail);
            head
        };

        assert!(OpusStreams::open(&head(2, 0, &[])).is_ok());
        assert_eq!(OpusStreams::open(&head(1, 0, &[])).unwrap().pre_skip, 312);
        assert!(OpusStreams::open(&head(6, 1, &[4, 2, 0, 4, 1, 2, 3, 5])).is_ok());
        for bad in [
            head(0, 0, &[]),
            head(3, 0, &[]),
            head(6, 1, &[4, 2, 0]),
            head(2, 1, &[1, 9, 0, 1]),
            b"OpusHead".to_vec(),
        ] {
            assert!(OpusStreams::open(&bad).is_err());
        }
    }
}

//! Ogg: pages to packets, with every check that pages offer, and the codecs behind them.

use symphonia::core::codecs::audio::AudioDecoder;
use symphonia::core::packet::PacketRef;
use symphonia::core::units::{Duration, Timestamp};
use symphonia::default::codecs::FlacDecoder;

use super::flac::{self, STREAM_INFO_BYTES, StreamInfo};
use super::sink::Sink;
use super::vorbis::VorbisStream;
use super::{AudioError, AudioLimits, Container, Waveform};

/// Bytes of a page header before its segment table.
const PAGE_HEADER_BYTES: usize = 27;

/// One page.
struct Page<'a> {
    /// It continues a packet of the page before.
    continued: bool,
    /// It is the last of its stream.
    last: bool,
    /// Codec's position at the end of the last packet that ends here; -1 when none does.
    granule: i64,
    serial: u32,
    sequence: u32,
    segments: &'a [u8],
    body: &'a [u8],
    /// The whole page, and the check sum that it declares.
    whole: &'a [u8],
    crc: u32,
}

/// Where a packet ended.
#[derive(Clone, Copy)]
pub(super) struct PacketEnd {
    /// The granule position of the page, when the packet is the last that ends on it.
    pub(super) granule: Option<i64>,
    /// Whether that page is the last.
    pub(super) last_page: bool,
}

/// Decodes an Ogg file with Vorbis or FLAC in it.
pub(super) fn decode(
    bytes: &[u8],
    container: Container,
    limits: &AudioLimits,
) -> Result<Waveform, AudioError> {
    let last_granule = check(bytes, container)?;
    if container == Container::OggVorbis {
        let mut stream = VorbisStream::new(last_granule, limits);
        packets(bytes, container, |packet, end| stream.take(packet, end))?;
        return stream.finish();
    }
    let mut stream = FlacStream::new(limits);
    packets(bytes, container, |packet, _| stream.take(packet))?;
    stream.finish()
}

/// Walks all pages: check sums, order, one stream, an end. Returns the last granule position.
fn check(bytes: &[u8], container: Container) -> Result<i64, AudioError> {
    let mut rest = bytes;
    let mut before: Option<Page<'_>> = None;
    let mut granule = 0;
    while let Some(page) = Page::next(&mut rest, container)? {
        let number = page.sequence;
        match &before {
            None if bytes[5] & 0x02 == 0 => {
                let detail = "its first page does not begin a stream".to_owned();
                return Err(AudioError::Corrupt { container, detail });
            }
            Some(before) if page.serial != before.serial => {
                return Err(AudioError::UnsupportedCodec {
                    found: "an Ogg file of more than one stream".to_owned(),
                });
            }
            Some(before) if before.last => {
                let detail = "pages follow the one that is marked as the last".to_owned();
                return Err(AudioError::Corrupt { container, detail });
            }
            Some(before) if page.sequence != before.sequence.wrapping_add(1) => {
                let expected = before.sequence.wrapping_add(1);
                let detail = format!("page {expected} is missing, page {number} follows");
                return Err(AudioError::Corrupt { container, detail });
            }
            _ => {}
        }
        if crc(page.whole) != page.crc {
            let detail = format!("page {number} does not have the check sum that it declares");
            return Err(AudioError::Corrupt { container, detail });
        }
        if page.granule != -1 {
            granule = page.granule;
        }
        before = Some(page);
    }
    match before {
        Some(page) if page.last => Ok(granule),
        _ => {
            let detail = "its last page is not marked as the last".to_owned();
            Err(AudioError::Truncated { container, detail })
        }
    }
}

/// Puts packets together and hands them out.
fn packets(
    bytes: &[u8],
    container: Container,
    mut take: impl FnMut(&[u8], PacketEnd) -> Result<(), AudioError>,
) -> Result<(), AudioError> {
    let mut rest = bytes;
    let mut partial = Vec::new();
    let mut open = false;
    while let Some(page) = Page::next(&mut rest, container)? {
        if page.continued != open {
            let detail = format!(
                "page {} does not continue where the one before ends",
                page.sequence
            );
            return Err(AudioError::Corrupt { container, detail });
        }
        let last_end = page.segments.iter().rposition(|size| *size < 255);
        if last_end.is_some() && page.granule == -1 {
            let detail = format!("a packet ends on page {}, which has no position", page.sequence);
            return Err(AudioError::Corrupt { container, detail });
        }
        let mut at = 0;
        for (index, size) in page.segments.iter().enumerate() {
            partial.extend_from_slice(&page.body[at..at + usize::from(*size)]);
            at += usize::from(*size);
            open = *size == 255;
            if !open {
                let granule = (last_end == Some(index)).then_some(page.granule);
                take(
                    &partial,
                    PacketEnd {
                        granule,
                        last_page: page.last,
                    },
                )?;
                partial.clear();
            }
        }
    }
    if open {
        let detail = "its last packet does not end".to_owned();
        return Err(AudioError::Truncated { container, detail });
    }
    Ok(())
}

impl<'a> Page<'a> {
    /// Takes a page off the beginning; `None` at the end, or when only zeros follow.
    fn next(rest: &mut &'a [u8], container: Container) -> Result<Option<Self>, AudioError> {
        let bytes = *rest;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let cut = |left: usize| {
            let detail = format!("its last {left} bytes are no whole page");
            Err(AudioError::Truncated { container, detail })
        };
        if !bytes.starts_with(&b"OggS"[..bytes.len().min(4)]) {
            let detail = format!("{} bytes before its end no page begins", bytes.len());
            return Err(AudioError::Corrupt { container, detail });
        }
        let Some(header) = bytes.first_chunk::<PAGE_HEADER_BYTES>() else {
            return cut(bytes.len());
        };
        if header[4] != 0 {
            let found = format!("an Ogg file of version {}", header[4]);
            return Err(AudioError::UnsupportedCodec { found });
        }
        let body_start = PAGE_HEADER_BYTES + usize::from(header[26]);
        let Some(segments) = bytes.get(PAGE_HEADER_BYTES..body_start) else {
            return cut(bytes.len());
        };
        let len = body_start + segments.iter().map(|size| usize::from(*size)).sum::<usize>();
        let Some((whole, after)) = bytes.split_at_checked(len) else {
            return cut(bytes.len());
        };
        *rest = after;

        let u32_at =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let granule = u64::from(u32_at(6)) | u64::from(u32_at(10)) << 32;
        Ok(Some(Self {
            continued: header[5] & 0x01 != 0,
            last: header[5] & 0x04 != 0,
            granule: granule.cast_signed(),
            serial: u32_at(14),
            sequence: u32_at(18),
            segments,
            body: &whole[body_start..],
            whole,
            crc: u32_at(22),
        }))
    }
}

/// The check sum of a page, whose own four bytes count as zero: CRC-32 with polynomial 0x04c11db7, not reflected.
fn crc(page: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut crc = (index as u32) << 24;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc >> 31 == 1 {
                    crc << 1 ^ 0x04c1_1db7
                } else {
                    crc << 1
                };
                bit += 1;
            }
            table[index] = crc;
            index += 1;
        }
        table
    };
    let (before, rest) = page.split_at(22);
    let bytes = before.iter().chain(&[0; 4]).chain(&rest[4..]);
    bytes.fold(0, |crc, byte| {
        crc << 8 ^ TABLE[usize::from((crc >> 24) as u8 ^ byte)]
    })
}

/// FLAC in Ogg: the first packet holds STREAMINFO, then come metadata blocks, then one frame per packet.
struct FlacStream {
    limits: AudioLimits,
    started: Option<(Sink, FlacDecoder, StreamInfo)>,
    interleaved: Vec<f32>,
}

impl FlacStream {
    fn new(limits: &AudioLimits) -> Self {
        Self {
            limits: *limits,
            started: None,
            interleaved: Vec::new(),
        }
    }

    fn take(&mut self, packet: &[u8]) -> Result<(), AudioError> {
        let Some((sink, decoder, _)) = &mut self.started else {
            // 0x7f "FLAC", version, number of header packets, "fLaC", header of the STREAMINFO block
            let block = packet
                .get(17..)
                .and_then(<[u8]>::first_chunk::<STREAM_INFO_BYTES>);
            let Some(block) = block.filter(|_| packet[9..13] == *b"fLaC") else {
                return corrupt("its first packet holds no stream information".to_owned());
            };
            let info = StreamInfo::read(block);
            let sink = Sink::new(Container::OggFlac, info.rate_hz, info.channels, &self.limits)?;
            if let Some(frames) = info.frames {
                sink.expect_frames(frames)?;
            }
            let decoder = flac::decoder(Container::OggFlac, block)?;
            self.started = Some((sink, decoder, info));
            return Ok(());
        };
        if packet.first() != Some(&0xff) {
            return Ok(()); // a metadata block
        }
        let at = sink.frames();
        let packet = PacketRef::new(0, Timestamp::ZERO, Duration::ZERO, packet);
        match decoder.decode_ref(&packet) {
            Ok(decoded) => flac::push_decoded(sink, Container::OggFlac, &decoded, &mut self.interleaved),
            Err(error) => corrupt(format!("the frame at sample {at}: {error}")),
        }
    }

    fn finish(self) -> Result<Waveform, AudioError> {
        let Some((sink, mut decoder, info)) = self.started else {
            return corrupt("it has no packets".to_owned());
        };
        if let Some(declared) = info.frames
            && declared != sink.frames()
        {
            let held = sink.frames();
            return corrupt(format!("it declares {declared} samples and holds {held}"));
        }
        if decoder.finalize().verify_ok == Some(false) {
            return corrupt("its samples do not have the MD5 sum that it declares".to_owned());
        }
        sink.finish()
    }
}

fn corrupt<T>(detail: String) -> Result<T, AudioError> {
    Err(AudioError::Corrupt {
        container: Container::OggFlac,
        detail,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A page with one packet that begins and ends on it, with the right check sum.
    pub(in crate::audio) fn page(sequence: u32, flags: u8, granule: i64, packet: &[u8]) -> Vec<u8> {
        let mut bytes = b"OggS\0".to_vec();
        bytes.push(if sequence == 0 { flags | 2 } else { flags });
        bytes.extend(granule.to_le_bytes());
        bytes.extend(7_u32.to_le_bytes());
        bytes.extend(sequence.to_le_bytes());
        bytes.extend([0; 4]);
        let segments = packet.len() / 255 + 1;
        bytes.push(u8::try_from(segments).expect("one page holds the packet"));
        bytes.extend(std::iter::repeat_n(255, segments - 1));
        bytes.push((packet.len() % 255) as u8);
        bytes.extend(packet);
        repair(&mut bytes);
        bytes
    }

    /// Gives every page the check sum that its bytes have.
    pub(in crate::audio) fn repair(bytes: &mut [u8]) {
        let mut at = 0;
        loop {
            let mut rest = &bytes[at..];
            let Ok(Some(page)) = Page::next(&mut rest, Container::OggVorbis) else {
                return;
            };
            let (len, crc) = (page.whole.len(), crc(page.whole));
            bytes[at + 22..at + 26].copy_from_slice(&crc.to_le_bytes());
            at += len;
        }
    }

    #[test]
    fn a_missing_page_a_second_stream_and_a_missing_end_are_told_apart() {
        let first = page(0, 0, 0, b"\x01vorbis");
        let check_sum = |pages: &[Vec<u8>]| check(&pages.concat(), Container::OggVorbis);
        let mut other = page(1, 4, 9, b"x");
        other[14] = 8;
        repair(&mut other);

        assert_eq!(check_sum(&[first.clone(), page(1, 4, 9, b"x")]), Ok(9));
        assert!(matches!(
            check_sum(&[first.clone(), page(1, 0, 9, b"x")]),
            Err(AudioError::Truncated { .. })
        ));
        assert!(matches!(
            check_sum(&[first.clone(), page(2, 4, 9, b"x")]),
            Err(AudioError::Corrupt { .. })
        ));
        assert!(matches!(
            check_sum(&[first, other]),
            Err(AudioError::UnsupportedCodec { .. })
        ));
    }
}

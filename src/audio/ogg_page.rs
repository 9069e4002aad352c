//! Pages of Ogg (RFC 3533), and the packets in them.

use super::{AudioError, Container};

/// Bytes of a page header before its segment table.
const PAGE_HEADER_BYTES: usize = 27;

/// One page.
pub(super) struct Page<'a> {
    /// It continues a packet of the page before.
    pub(super) continued: bool,
    /// It is the first of its stream, or the last.
    pub(super) first: bool,
    pub(super) last: bool,
    /// Codec's position at the end of the last packet that ends here; -1 when none does.
    pub(super) granule: i64,
    pub(super) serial: u32,
    pub(super) sequence: u32,
    pub(super) segments: &'a [u8],
    pub(super) body: &'a [u8],
    /// The whole page, and the check sum that it declares.
    pub(super) whole: &'a [u8],
    pub(super) crc: u32,
}

/// What stands at a place of the file.
pub(super) enum Found<'a> {
    Page(Page<'a>),
    /// Bytes that are no page, or one with a wrong check sum; and whether the end of the file cuts them.
    Junk(usize, bool),
}

/// Where a packet ended.
#[derive(Clone, Copy)]
pub(super) struct PacketEnd {
    /// The granule position of the page, when the packet is the last that ends on it.
    pub(super) granule: Option<i64>,
    /// Whether that page is marked as the last.
    pub(super) last_page: bool,
}

/// The codec of a stream, by its first packet.
pub(super) fn codec_of(packet: &[u8]) -> Option<Container> {
    [
        (&b"\x01vorbis"[..], Container::OggVorbis),
        (b"\x7fFLAC", Container::OggFlac),
        (b"OpusHead", Container::OggOpus),
    ]
    .iter()
    .find(|(mark, _)| packet.starts_with(mark))
    .map(|(_, codec)| *codec)
}

/// The first packets of the streams that begin the file.
pub(super) fn first_packets(bytes: &[u8]) -> Vec<&[u8]> {
    let mut packets = Vec::new();
    let mut rest = bytes;
    while let Some(page) = Page::read(rest)
        && page.first
        && packets.len() < 16
    {
        packets.push(page.body);
        rest = &rest[page.whole.len()..];
    }
    packets
}

/// Puts packets together and hands them out. A packet of which a part is missing is left out.
pub(super) fn packets<'a>(
    pages: impl Iterator<Item = Page<'a>>,
    mut take: impl FnMut(&[u8], PacketEnd) -> Result<(), AudioError>,
) -> Result<(), AudioError> {
    let mut reader = PacketReader::default();
    for page in pages {
        reader.page(&page, &mut take)?;
    }
    Ok(())
}

/// The packets of one stream, page by page.
#[derive(Default)]
pub(super) struct PacketReader {
    partial: Vec<u8>,
    open: bool,
    expected: Option<u32>,
}

impl PacketReader {
    /// Takes the next page and hands out the packets that end on it.
    pub(super) fn page(
        &mut self,
        page: &Page<'_>,
        mut take: impl FnMut(&[u8], PacketEnd) -> Result<(), AudioError>,
    ) -> Result<(), AudioError> {
        let gap = self.expected.is_some_and(|expected| expected != page.sequence);
        self.expected = Some(page.sequence.wrapping_add(1));
        // What the page begins with is the end of a packet whose beginning is not there.
        let mut orphan = page.continued && (gap || !self.open);
        if gap || !page.continued {
            self.partial.clear();
        }
        let last_end = page.segments.iter().rposition(|size| *size < 255);
        let mut at = 0;
        for (index, size) in page.segments.iter().enumerate() {
            self.partial
                .extend_from_slice(&page.body[at..at + usize::from(*size)]);
            at += usize::from(*size);
            self.open = *size == 255;
            if self.open {
                continue;
            }
            let granule = (last_end == Some(index) && page.granule != -1).then_some(page.granule);
            let end = PacketEnd {
                granule,
                last_page: page.last,
            };
            if !std::mem::take(&mut orphan) {
                take(&self.partial, end)?;
            }
            self.partial.clear();
        }
        Ok(())
    }
}

/// What stands at the beginning of `bytes`; `None` at the end, or when only zeros follow. `budget` is how
/// many pages with a wrong check sum are still looked at, so that a file made of them takes no time.
pub(super) fn find<'a>(bytes: &'a [u8], budget: &mut u32) -> Option<Found<'a>> {
    if bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    let whole = |at: usize, budget: &mut u32| {
        let page = bytes.get(at..).and_then(Page::read).filter(|_| *budget > 0)?;
        if page.is_sound() {
            return Some(page);
        }
        *budget -= 1;
        None
    };
    if let Some(page) = whole(0, budget) {
        return Some(Found::Page(page));
    }
    let mut at = 1;
    while let Some(next) = bytes[at..].windows(4).position(|four| four == b"OggS") {
        at += next;
        if whole(at, budget).is_some() {
            return Some(Found::Junk(at, false));
        }
        at += 4;
    }
    Some(Found::Junk(bytes.len(), true))
}

impl<'a> Page<'a> {
    /// Whether its check sum is right.
    pub(super) fn is_sound(&self) -> bool {
        crc(self.whole) == self.crc
    }

    /// Reads the page at the beginning; `None` when there is none, or not a whole one.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.first_chunk::<PAGE_HEADER_BYTES>()?;
        if !header.starts_with(b"OggS\0") {
            return None;
        }
        let body_start = PAGE_HEADER_BYTES + usize::from(header[26]);
        let segments = bytes.get(PAGE_HEADER_BYTES..body_start)?;
        let len = body_start + segments.iter().map(|size| usize::from(*size)).sum::<usize>();
        let whole = bytes.get(..len)?;

        let u32_at =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let granule = u64::from(u32_at(6)) | u64::from(u32_at(10)) << 32;
        Some(Self {
            continued: header[5] & 0x01 != 0,
            first: header[5] & 0x02 != 0,
            last: header[5] & 0x04 != 0,
            granule: granule.cast_signed(),
            serial: u32_at(14),
            sequence: u32_at(18),
            segments,
            body: &whole[body_start..],
            whole,
            crc: u32_at(22),
        })
    }
}

/// The check sum of a page, whose own four bytes count as zero: CRC-32 with polynomial 0x04c11db7, not
/// reflected.
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
            let Some(page) = bytes.get(at..).and_then(Page::read) else {
                return;
            };
            let (len, crc) = (page.whole.len(), crc(page.whole));
            bytes[at + 22..at + 26].copy_from_slice(&crc.to_le_bytes());
            at += len;
        }
    }
}

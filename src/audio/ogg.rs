//! Ogg: pages to packets, and the codecs behind them.
//!
//! A file may hold several streams side by side, of which one is heard, and several one after the other
//! (chained), of which all are. A page whose check sum is wrong is left out, as ffmpeg does; how much sound
//! that costs is told from the positions of the others. The end mark decides nothing but whether the last
//! page may cut samples off.

use super::flac::FlacInOgg;
use super::opus::OpusInOgg;
use super::sink::Sink;
use super::vorbis::VorbisStream;
use super::{AudioError, Container};

/// Bytes of a page header before its segment table.
const PAGE_HEADER_BYTES: usize = 27;

/// Most pages with a wrong check sum; behind them nothing is looked for any more.
const DAMAGED_PAGES_MAX: u32 = 1_000;

/// One page.
struct Page<'a> {
    /// It continues a packet of the page before.
    continued: bool,
    /// It is the first of its stream, or the last.
    first: bool,
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

/// What stands at a place of the file.
enum Found<'a> {
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

/// One stream that is heard.
struct Link {
    codec: Container,
    serial: u32,
    /// Where its first page begins, and where the next link's does.
    start: usize,
    end: usize,
    last_granule: i64,
    /// Sound, not only headers, has begun.
    begun: bool,
}

/// What a walk over all pages says before anything is decoded.
#[derive(Default)]
struct Survey {
    links: Vec<Link>,
    /// Where whole pages begin.
    pages: Vec<usize>,
    /// Bytes that are no page, in how many places, and whether the last place is the end of the file.
    junk_bytes: usize,
    junk_places: usize,
    cut: bool,
    /// Streams beside those that are heard, with sound in them.
    unheard: usize,
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

/// Decodes an Ogg file.
pub(super) fn decode(bytes: &[u8], sink: &mut Sink) -> Result<(), AudioError> {
    let survey = Survey::of(bytes);
    if survey.links.is_empty() {
        let container = sink.container();
        let detail = "it ends inside its first page".to_owned();
        return Err(if Page::read(bytes).is_none() && survey.pages.is_empty() {
            AudioError::Truncated { container, detail }
        } else {
            let detail = "the page that begins its stream is damaged".to_owned();
            AudioError::Corrupt { container, detail }
        });
    }
    let links = survey.links.len();
    for (index, link) in survey.links.iter().enumerate() {
        let from = survey.pages.partition_point(|at| *at < link.start);
        let pages = survey.pages[from..].iter().take_while(|at| **at < link.end);
        let pages = pages
            .filter_map(|at| Page::read(&bytes[*at..]))
            .filter(|page| page.serial == link.serial);
        match link.read(pages, sink) {
            Err(
                error @ (AudioError::Corrupt { .. }
                | AudioError::Truncated { .. }
                | AudioError::UnsupportedCodec { .. }),
            ) if index > 0 => {
                // What came before is heard, and this is told.
                let share = (link.end - link.start) as f64 / link.start.max(1) as f64;
                let seconds = sink.seconds(sink.frames()) * share;
                sink.repaired(seconds, format!("stream {} of {links}: {error}", index + 1));
            }
            result => result?,
        }
    }
    if survey.junk_places > 0 {
        let (count, places) = (survey.junk_bytes, survey.junk_places);
        if survey.cut {
            // Sound that the positions do not tell of: by the share of the bytes.
            let share = count as f64 / (bytes.len() - count).max(1) as f64;
            let seconds = sink.seconds(sink.frames()) * share;
            sink.cut_short(seconds, format!("its last {count} bytes are no whole page"));
        } else {
            sink.repaired(0.0, format!("{count} bytes in {places} places are no whole page"));
        }
    }
    if survey.unheard > 0 {
        let unheard = survey.unheard;
        sink.repaired(
            0.0,
            format!("{unheard} further streams beside the one that is heard"),
        );
    }
    Ok(())
}

impl Survey {
    fn of(bytes: &[u8]) -> Self {
        let mut survey = Self::default();
        let (mut at, mut budget) = (0, DAMAGED_PAGES_MAX);
        while let Some(found) = find(&bytes[at..], &mut budget) {
            match found {
                Found::Junk(len, cut) => {
                    survey.junk_bytes += len;
                    survey.junk_places += 1;
                    survey.cut = cut;
                    at += len;
                }
                Found::Page(page) => {
                    survey.pages.push(at);
                    survey.take(&page, at);
                    at += page.whole.len();
                }
            }
        }
        if let Some(link) = survey.links.last_mut() {
            link.end = bytes.len();
        }
        survey
    }

    fn take(&mut self, page: &Page<'_>, at: usize) {
        if page.first {
            let Some(codec) = codec_of(page.body) else {
                return;
            };
            if self.links.last().is_some_and(|link| !link.begun) {
                self.unheard += 1;
                return;
            }
            if let Some(before) = self.links.last_mut() {
                before.end = at;
            }
            self.links.push(Link {
                codec,
                serial: page.serial,
                start: at,
                end: at,
                last_granule: 0,
                begun: false,
            });
            return;
        }
        let link = self.links.last_mut().filter(|link| link.serial == page.serial);
        if let Some(link) = link {
            link.begun = true;
            if page.granule != -1 {
                link.last_granule = page.granule;
            }
        }
    }
}

impl Link {
    /// Decodes the pages of this stream.
    fn read<'a>(&self, pages: impl Iterator<Item = Page<'a>>, sink: &mut Sink) -> Result<(), AudioError> {
        match self.codec {
            Container::OggFlac => {
                let mut stream = FlacInOgg::default();
                packets(pages, |packet, _| stream.take(packet, sink))?;
                stream.finish(self.last_granule, sink)
            }
            Container::OggOpus => {
                let mut stream = OpusInOgg::new(self.last_granule);
                packets(pages, |packet, end| stream.take(packet, end, sink))?;
                stream.finish(sink);
                Ok(())
            }
            _ => {
                let mut stream = VorbisStream::new(self.last_granule);
                packets(pages, |packet, end| stream.take(packet, end, sink))?;
                stream.finish(sink)
            }
        }
    }
}

/// Puts packets together and hands them out. A packet of which a part is missing is left out.
fn packets<'a>(
    pages: impl Iterator<Item = Page<'a>>,
    mut take: impl FnMut(&[u8], PacketEnd) -> Result<(), AudioError>,
) -> Result<(), AudioError> {
    let mut partial = Vec::new();
    let mut open = false;
    let mut expected = None;
    for page in pages {
        let gap = expected.is_some_and(|expected| expected != page.sequence);
        expected = Some(page.sequence.wrapping_add(1));
        // What the page begins with is the end of a packet whose beginning is not there.
        let mut orphan = page.continued && (gap || !open);
        if gap || !page.continued {
            partial.clear();
        }
        let last_end = page.segments.iter().rposition(|size| *size < 255);
        let mut at = 0;
        for (index, size) in page.segments.iter().enumerate() {
            partial.extend_from_slice(&page.body[at..at + usize::from(*size)]);
            at += usize::from(*size);
            open = *size == 255;
            if open {
                continue;
            }
            let granule = (last_end == Some(index) && page.granule != -1).then_some(page.granule);
            let end = PacketEnd {
                granule,
                last_page: page.last,
            };
            if !std::mem::take(&mut orphan) {
                take(&partial, end)?;
            }
            partial.clear();
        }
    }
    Ok(())
}

/// What stands at the beginning of `bytes`; `None` at the end, or when only zeros follow. `budget` is how
/// many pages with a wrong check sum are still looked at, so that a file made of them takes no time.
fn find<'a>(bytes: &'a [u8], budget: &mut u32) -> Option<Found<'a>> {
    if bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    let whole = |at: usize, budget: &mut u32| {
        let page = bytes.get(at..).and_then(Page::read).filter(|_| *budget > 0)?;
        if crc(page.whole) == page.crc {
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
    /// Reads the page at the beginning; `None` when there is none, or not a whole one.
    fn read(bytes: &'a [u8]) -> Option<Self> {
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

    #[test]
    fn streams_side_by_side_and_one_after_the_other_are_told_apart() {
        let survey = |pages: &[Vec<u8>]| Survey::of(&pages.concat());
        let first = page(0, 0, 0, b"\x01vorbis");
        let sound = page(1, 4, 9, b"x");
        let mut other = page(0, 0, 0, b"OpusHead");
        other[14] = 8;
        repair(&mut other);
        let mut damaged = page(1, 0, 5, b"y");
        damaged[20] ^= 1;

        let chained = survey(&[first.clone(), sound.clone(), other.clone(), sound.clone()]);
        assert_eq!(chained.links.len(), 2);
        assert_eq!((chained.links[0].last_granule, chained.unheard), (9, 0));
        let beside = survey(&[first.clone(), other, sound.clone()]);
        assert_eq!((beside.links.len(), beside.unheard), (1, 1));
        let broken = survey(&[first.clone(), damaged, sound.clone()]);
        assert_eq!(
            (broken.links.len(), broken.junk_places, broken.cut),
            (1, 1, false)
        );
        let cut = survey(&[first, sound[..20].to_vec()]);
        assert!(cut.cut);
    }
}

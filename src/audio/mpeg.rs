//! Streams that are frames one behind the other, MPEG audio and ADTS: from frame to frame, over tags, padding
//! and what is no frame.
//!
//! Every frame's header says how long it is, so that the walk needs no decoder. Where no frame begins, the
//! next place is looked for at which two frames of one kind follow each other.
//!
//! Source: ISO/IEC 11172-3 and 13818-3 (MPEG audio), 13818-7 (ADTS).

/// The header of one frame.
pub(super) trait FrameHeader: Copy {
    /// Reads it; `None` when the bytes are no header.
    fn read(bytes: &[u8]) -> Option<Self>;

    /// Length of the whole frame, bytes; more than 0.
    fn frame_bytes(&self) -> usize;

    /// Samples per channel.
    fn frames(&self) -> u64;

    /// Rate, hertz.
    fn rate_hz(&self) -> u32;

    /// Whether a frame with this header can follow one with the other in the same stream.
    fn continues(&self, other: &Self) -> bool;

    /// Length of its sound, seconds.
    fn seconds(&self) -> f64 {
        self.frames() as f64 / f64::from(self.rate_hz())
    }
}

/// What stands at a place of the stream.
pub(super) enum Found<'a, H> {
    /// A whole frame.
    Frame(H, &'a [u8]),
    /// Bytes that are neither frame nor tag nor padding, and an estimate of how long a sound they could be,
    /// seconds.
    Junk(usize, f64),
    /// A frame that the end of the bytes cuts.
    Cut(H, usize),
}

/// The walk.
pub(super) struct Frames<'a, H> {
    rest: &'a [u8],
    before: Option<H>,
}

impl<'a, H: FrameHeader> Frames<'a, H> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            before: None,
        }
    }

    /// The header at the beginning of `bytes` when what follows confirms it: another frame of its kind, a
    /// tag, padding or the end; or when it continues the frame before.
    fn confirmed(&self, bytes: &[u8]) -> Option<H> {
        let header = H::read(bytes)?;
        let after = bytes.get(header.frame_bytes()..)?;
        let in_step = self.before.is_some_and(|before| header.continues(&before));
        (in_step || follows(&header, after)).then_some(header)
    }
}

/// Whether several frames of one kind follow each other within the first bytes, behind something else: a
/// stream that was cut out of a longer one.
pub(super) fn is_in_step<H: FrameHeader>(bytes: &[u8]) -> bool {
    const LOOKED_AT: usize = 16 * 1024;
    const FRAMES: usize = 4;
    let in_step = |at: usize| {
        let mut rest = &bytes[at..];
        let mut before: Option<H> = None;
        (0..FRAMES).all(|_| {
            let Some(header) =
                H::read(rest).filter(|header| before.is_none_or(|before| header.continues(&before)))
            else {
                return false;
            };
            before = Some(header);
            rest = rest.get(header.frame_bytes()..).unwrap_or_default();
            true
        })
    };
    (0..bytes.len().min(LOOKED_AT)).any(|at| bytes[at] == 0xff && in_step(at))
}

/// Whether this can stand behind a frame.
pub(super) fn follows<H: FrameHeader>(header: &H, after: &[u8]) -> bool {
    after.is_empty()
        || after[0] == 0
        || tag_bytes(after).is_some()
        || H::read(after).is_some_and(|next| next.continues(header))
        || (after.len() < 4 && after[0] == 0xff)
}

impl<'a, H: FrameHeader> Iterator for Frames<'a, H> {
    type Item = Found<'a, H>;

    fn next(&mut self) -> Option<Found<'a, H>> {
        loop {
            let padding = self.rest.iter().take_while(|byte| **byte == 0).count();
            self.rest = &self.rest[padding..];
            match tag_bytes(self.rest) {
                Some(len) => self.rest = &self.rest[len..],
                None if padding == 0 => break,
                None => {}
            }
        }
        if self.rest.is_empty() {
            return None;
        }
        if let Some(header) = self.confirmed(self.rest) {
            let (frame, after) = self.rest.split_at(header.frame_bytes());
            self.rest = after;
            self.before = Some(header);
            return Some(Found::Frame(header, frame));
        }
        if let Some(header) = H::read(self.rest)
            && header.frame_bytes() > self.rest.len()
            && self.before.is_none_or(|before| header.continues(&before))
        {
            let left = self.rest.len();
            self.rest = &[];
            return Some(Found::Cut(header, left));
        }
        if let Some(before) = self.before
            && self.rest.len() < 4
            && self.rest[0] == 0xff
        {
            let left = self.rest.len();
            self.rest = &[];
            return Some(Found::Cut(before, left));
        }

        // Out of step: a place counts only when what follows confirms it.
        let before = self.before.take();
        let len = (1..self.rest.len())
            .find(|at| self.rest[*at] == 0xff && self.confirmed(&self.rest[*at..]).is_some())
            .unwrap_or(self.rest.len());
        let like = before.or_else(|| H::read(self.rest.get(len..)?));
        let seconds = like.map_or(0.0, |like| {
            len as f64 / like.frame_bytes() as f64 * like.seconds()
        });
        self.rest = &self.rest[len..];
        Some(Found::Junk(len, seconds))
    }
}

/// Longest Lyrics3 tag that is looked through for its end.
const LYRICS_BYTES_MAX: usize = 8 * 1024;

/// Length of the tag at the beginning, when there is a whole one: ID3v2, ID3v1, APE, Lyrics3.
fn tag_bytes(bytes: &[u8]) -> Option<usize> {
    let len = match bytes.first()? {
        b'I' => id3v2_bytes(bytes)?,
        b'T' if bytes.starts_with(b"TAG+") => 227,
        b'T' if bytes.starts_with(b"TAG") => 128.min(bytes.len()),
        b'A' if bytes.starts_with(b"APETAGEX") => {
            let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk::<4>()?));
            let (size, flags) = (word(12)? as usize, word(20)?);
            // The size counts the footer and not the header; a footer that stands alone ends the tag.
            let is_header = flags & 0x2000_0000 != 0;
            if is_header { size.checked_add(32)? } else { 32 }
        }
        b'L' if bytes.starts_with(b"LYRICSBEGIN") => {
            let end = bytes
                .windows(9)
                .take(LYRICS_BYTES_MAX)
                .position(|nine| nine == b"LYRICS200" || nine == b"LYRICSEND")?;
            end + 9
        }
        _ => return None,
    };
    (len <= bytes.len()).then_some(len)
}

/// Length of the ID3v2 tag at the beginning, which may be more than there is.
fn id3v2_bytes(bytes: &[u8]) -> Option<usize> {
    let header = bytes
        .first_chunk::<10>()
        .filter(|header| header.starts_with(b"ID3"))?;
    if header[6..].iter().any(|byte| *byte >= 0x80) {
        return None;
    }
    let size = header[6..]
        .iter()
        .fold(0, |size, byte| size << 7 | usize::from(*byte));
    let footer = if header[5] & 0x10 != 0 { 10 } else { 0 };
    Some(10 + size + footer)
}

/// Where the ID3v2 tags at the beginning end, as far as they go; past the end of the bytes when they are cut.
pub(super) fn tags_end(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(len) = bytes.get(at..).and_then(id3v2_bytes) {
        at += len;
    }
    at
}

/// The header of an MPEG audio frame, layers I to III; not of free bit rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Header {
    pub(super) layer: u8,
    /// MPEG 1, as opposed to 2 and 2.5.
    pub(super) mpeg_1: bool,
    pub(super) rate_hz: u32,
    pub(super) channels: u16,
    pub(super) has_crc: bool,
    /// Length of the whole frame, bytes.
    len: usize,
}

impl Header {
    /// Bytes of the side information of layer III.
    pub(super) fn side_info_bytes(&self) -> usize {
        match (self.mpeg_1, self.channels) {
            (true, 1) => 17,
            (true, _) => 32,
            (false, 1) => 9,
            (false, _) => 17,
        }
    }
}

impl FrameHeader for Header {
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

    fn frame_bytes(&self) -> usize {
        self.len
    }

    fn frames(&self) -> u64 {
        match (self.layer, self.mpeg_1) {
            (1, _) => 384,
            (3, false) => 576,
            _ => 1_152,
        }
    }

    fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    fn continues(&self, other: &Self) -> bool {
        (self.layer, self.mpeg_1, self.rate_hz, self.channels)
            == (other.layer, other.mpeg_1, other.rate_hz, other.channels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of 64 kbit/s at 44.1 kHz, 208 bytes, mono.
    fn frame() -> Vec<u8> {
        let mut frame = vec![0xff, 0xfb, 0x50, 0xc0];
        frame.resize(208, 0x55);
        frame
    }

    fn walk(parts: &[&[u8]]) -> Vec<&'static str> {
        Frames::<Header>::of(&parts.concat())
            .map(|found| match found {
                Found::Frame(..) => "frame",
                Found::Junk(..) => "junk",
                Found::Cut(..) => "cut",
            })
            .collect()
    }

    #[test]
    fn tags_and_padding_between_frames_are_stepped_over() {
        let frame = frame();
        let mut ape = b"APETAGEX\xd0\x07\0\0".to_vec();
        ape.extend(40_u32.to_le_bytes()); // a body of 8 bytes and the footer
        ape.extend(1_u32.to_le_bytes());
        ape.extend(0xa000_0000_u32.to_le_bytes());
        ape.extend([0; 8 + 8 + 32]);
        for between in [
            &b"ID3\x04\0\0\0\0\0\x0aTIT2......"[..],
            &[&b"TAG"[..], &[b' '; 125]].concat(),
            &ape,
            b"LYRICSBEGININD00002000000LYRICS200",
            &[0; 77],
        ] {
            assert_eq!(walk(&[&frame, &frame, between, &frame, &frame]), ["frame"; 4]);
        }
    }

    #[test]
    fn what_is_no_frame_is_stepped_over_and_reported() {
        let frame = frame();

        assert_eq!(
            walk(&[&frame, &frame, &[0x81; 50], &frame, &frame]),
            ["frame", "frame", "junk", "frame", "frame"]
        );
        assert_eq!(walk(&[&frame, &frame, &frame[..100]]), ["frame", "frame", "cut"]);
        assert_eq!(walk(&[&frame, &frame[..2]]), ["frame", "cut"]);
        assert_eq!(walk(&[&[0x81; 50]]), ["junk"]);
    }
}

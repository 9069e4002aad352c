//! Ogg: the streams of a file, and the codecs behind them.
//!
//! A file may hold several streams side by side, of which one is decoded, and several one after the other
//! (chained), of which all are. A page whose check sum is wrong is left out, as ffmpeg does; how much sound
//! that costs follows from the positions of the others. The end mark decides nothing but whether the last
//! page may cut samples off.
//!
//! Source: RFC 3533 (pages), RFC 7845 (Opus), the Vorbis I specification, appendix A.

use super::flac::FlacInOgg;
use super::ogg_page::{Found, Page, codec_of, find, packets};
use super::opus::OpusInOgg;
use super::sink::Sink;
use super::vorbis::VorbisStream;
use super::{AudioError, Container};

/// Most pages with a wrong check sum; behind them nothing is looked for any more.
const DAMAGED_PAGES_MAX: u32 = 1_000;

/// One stream that is decoded.
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
    /// Streams beside those that are decoded, with sound in them.
    ignored: usize,
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
                // What came before is decoded, and this is reported.
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
    if survey.ignored > 0 {
        let ignored = survey.ignored;
        sink.repaired(
            0.0,
            format!("{ignored} further streams beside the one that is decoded"),
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
                self.ignored += 1;
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

#[cfg(test)]
mod tests {
    use super::super::ogg_page::tests::{page, repair};
    use super::*;

    #[test]
    fn streams_side_by_side_and_one_after_the_other_are_distinguished() {
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
        assert_eq!((chained.links[0].last_granule, chained.ignored), (9, 0));
        let beside = survey(&[first.clone(), other, sound.clone()]);
        assert_eq!((beside.links.len(), beside.ignored), (1, 1));
        let broken = survey(&[first.clone(), damaged, sound.clone()]);
        assert_eq!(
            (broken.links.len(), broken.junk_places, broken.cut),
            (1, 1, false)
        );
        let cut = survey(&[first, sound[..20].to_vec()]);
        assert!(cut.cut);
    }
}

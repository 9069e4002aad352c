//! Sound that comes in chunks: decoded as far as it goes with each of them.
//!
//! Raw PCM, plain WAV files and Opus in Ogg are decoded while they come; the resampler goes on across the
//! borders of chunks, so the samples are those of the whole. Every other container is kept, and decoded at
//! its end. Channels are averaged; where the mean turns out to cancel them, the end says so, because what was
//! handed on cannot be taken back. For the same reason the mean is not raised where one of them is silent.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::channels::Mix;
use super::ogg_page::{PacketReader, Page};
use super::opus::OpusInOgg;
use super::sink::{Keep, Sink};
use super::{AudioError, AudioLimits, Container, ContentType, Damage, PcmEncoding, decode, pcm, sniff, wav};

/// Bytes from which on a container is recognised by its beginning.
const PROBE_BYTES: usize = 64;
/// Longest header of a WAV file that is read while it comes, bytes.
const WAV_HEADER_BYTES_MAX: usize = 4_096;

/// Decodes one stream.
pub struct StreamDecoder {
    content_type: Option<String>,
    limits: AudioLimits,
    state: State,
}

enum State {
    /// What it is does not show yet.
    Begin(Vec<u8>),
    /// Samples one behind the other.
    Pcm {
        sink: Box<Sink>,
        encoding: PcmEncoding,
        /// Bytes of a frame that is not whole yet.
        rest: Vec<u8>,
        /// Bytes of samples that are still to come, where that is declared.
        left: Option<u64>,
    },
    Opus(Box<OpusPages>),
    /// Read at its end.
    Kept(Vec<u8>),
}

struct OpusPages {
    sink: Sink,
    rest: Vec<u8>,
    serial: Option<u32>,
    packets: PacketReader,
    stream: OpusInOgg,
}

/// What is known at the end of a stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndOfStream {
    /// Samples at 16 kHz that were not handed on before.
    pub samples: Vec<f32>,
    /// What could not be decoded.
    pub damage: Damage,
}

impl std::fmt::Debug for StreamDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamDecoder")
            .field("content_type", &self.content_type)
            .field("kept_bytes", &self.kept_bytes())
            .finish_non_exhaustive()
    }
}

impl StreamDecoder {
    /// Nothing has come yet; `content_type` is the stream's header, when there is one.
    pub fn new(content_type: Option<&str>, limits: &AudioLimits) -> Self {
        Self {
            content_type: content_type.map(str::to_owned),
            limits: *limits,
            state: State::Begin(Vec::new()),
        }
    }

    /// Bytes that are kept to be decoded later: all that has come, where it is read at its end.
    pub fn kept_bytes(&self) -> usize {
        match &self.state {
            State::Begin(kept) | State::Kept(kept) => kept.len(),
            State::Pcm { rest, .. } => rest.len(),
            State::Opus(pages) => pages.rest.len(),
        }
    }

    /// Takes the next bytes; the samples at 16 kHz that are ready with them.
    ///
    /// # Errors
    /// [`AudioError`], after which the stream is of no use.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<f32>, AudioError> {
        let begun = match &mut self.state {
            State::Begin(begin) => {
                begin.extend_from_slice(bytes);
                if begin.len() < PROBE_BYTES {
                    return Ok(Vec::new());
                }
                std::mem::take(begin)
            }
            _ => return self.go_on(bytes),
        };
        match self.begin(&begun)? {
            Some((state, from)) => {
                self.state = state;
                self.go_on(&begun[from..])
            }
            None => {
                self.state = State::Begin(begun);
                Ok(Vec::new())
            }
        }
    }

    /// How the stream is read, and where its sound begins; none while that does not show.
    fn begin(&self, bytes: &[u8]) -> Result<Option<(State, usize)>, AudioError> {
        let declared = self.content_type.as_deref().map(ContentType::parse).transpose()?;
        let Ok((container, start)) = sniff::decide(bytes, declared.as_ref()) else {
            return Ok(Some((State::Kept(Vec::new()), 0))); // judged when it is whole
        };
        let sink = || Sink::new(container, &self.limits, Mix::Mean, Keep::All);
        match container {
            Container::Pcm(spec) => {
                let mut sink = sink();
                sink.start(spec.rate_hz, spec.channels)?;
                Ok(Some((State::pcm(sink, spec.encoding, None), 0)))
            }
            Container::Wav if start == 0 => match wav::stream_header(bytes, &self.limits) {
                Some(header) => {
                    let mut sink = sink();
                    sink.start(header.rate_hz, header.channels)?;
                    Ok(Some((
                        State::pcm(sink, header.encoding, header.data_bytes),
                        header.start,
                    )))
                }
                None if bytes.len() < WAV_HEADER_BYTES_MAX => Ok(None),
                None => Ok(Some((State::Kept(Vec::new()), 0))),
            },
            Container::OggOpus if start == 0 => {
                let pages = OpusPages {
                    sink: sink(),
                    rest: Vec::new(),
                    serial: None,
                    packets: PacketReader::default(),
                    stream: OpusInOgg::new(0),
                };
                Ok(Some((State::Opus(Box::new(pages)), 0)))
            }
            _ => Ok(Some((State::Kept(Vec::new()), 0))),
        }
    }

    fn go_on(&mut self, bytes: &[u8]) -> Result<Vec<f32>, AudioError> {
        match &mut self.state {
            State::Begin(begin) => begin.extend_from_slice(bytes),
            State::Kept(kept) => {
                let sum = kept.len() + bytes.len();
                if sum > self.limits.value_bytes_max {
                    return Err(AudioError::TooLarge {
                        bytes: sum,
                        bytes_max: self.limits.value_bytes_max,
                    });
                }
                kept.extend_from_slice(bytes);
            }
            State::Pcm {
                sink,
                encoding,
                rest,
                left,
            } => {
                let frame_bytes = encoding.sample_bytes() * usize::from(sink.channels());
                let wanted = left.map_or(bytes.len(), |left| {
                    usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len())
                });
                if let Some(left) = left {
                    *left -= wanted as u64;
                }
                rest.extend_from_slice(&bytes[..wanted]);
                let whole = rest.len() / frame_bytes * frame_bytes;
                pcm::push(sink, *encoding, &rest[..whole])?;
                rest.drain(..whole);
                return Ok(sink.take_ready());
            }
            State::Opus(pages) => return pages.push(bytes),
        }
        Ok(Vec::new())
    }

    /// The stream is over.
    ///
    /// # Errors
    /// [`AudioError`] when it is no sound, or more of it than allowed is missing.
    pub fn finish(self) -> Result<EndOfStream, AudioError> {
        let sink = match self.state {
            State::Begin(kept) | State::Kept(kept) => {
                let waveform = decode(&kept, self.content_type.as_deref(), &self.limits)?;
                return Ok(EndOfStream {
                    samples: waveform.samples,
                    damage: waveform.damage,
                });
            }
            State::Pcm {
                mut sink,
                encoding,
                rest,
                left,
            } => {
                pcm::push(&mut sink, encoding, &rest)?; // less than a frame: cut short
                let frame_bytes = encoding.sample_bytes() * usize::from(sink.channels());
                if let Some(left) = left.filter(|left| *left > 0) {
                    let detail = format!("its `data` chunk declares {left} bytes more than follow");
                    let seconds = sink.seconds(left / frame_bytes as u64);
                    sink.cut_short(seconds, detail);
                }
                *sink
            }
            State::Opus(pages) => {
                let OpusPages {
                    mut sink,
                    rest,
                    stream,
                    ..
                } = *pages;
                stream.finish(&mut sink);
                if !rest.is_empty() {
                    let detail = format!("its last {} bytes are no whole page", rest.len());
                    sink.cut_short(0.0, detail);
                }
                sink
            }
        };
        let decoded = sink.finish()?;
        let mut damage = decoded.waveform.damage;
        if decoded.better.is_some() {
            damage.repaired = true;
            damage.notes.push("its channels cancel each other".to_owned());
        }
        Ok(EndOfStream {
            samples: decoded.waveform.samples,
            damage,
        })
    }
}

impl State {
    fn pcm(sink: Sink, encoding: PcmEncoding, left: Option<u64>) -> Self {
        Self::Pcm {
            sink: Box::new(sink),
            encoding,
            rest: Vec::new(),
            left,
        }
    }
}

impl OpusPages {
    /// Longest page: a header, 255 sizes, 255 times 255 bytes.
    const PAGE_BYTES_MAX: usize = 27 + 255 + 255 * 255;

    /// The codec is third-party code that meets hostile bytes: a panic in it is a corrupt stream.
    fn push(&mut self, bytes: &[u8]) -> Result<Vec<f32>, AudioError> {
        let container = self.sink.container();
        catch_unwind(AssertUnwindSafe(|| self.read(bytes))).unwrap_or_else(|_| {
            Err(AudioError::Corrupt {
                container,
                detail: "the decoder gave up in a way that it should not".to_owned(),
            })
        })
    }

    fn read(&mut self, bytes: &[u8]) -> Result<Vec<f32>, AudioError> {
        self.rest.extend_from_slice(bytes);
        let rest = std::mem::take(&mut self.rest);
        let mut at = 0;
        loop {
            let begun = &rest[at..];
            let Some(page) = Page::read(begun) else {
                let is_page = begun.starts_with(b"OggS") || b"OggS".starts_with(begun);
                if begun.is_empty() || is_page && begun.len() < Self::PAGE_BYTES_MAX {
                    break;
                }
                at += self.junk(begun);
                continue;
            };
            if !page.is_sound() {
                at += self.junk(begun);
                continue;
            }
            at += page.whole.len();
            let serial = *self.serial.get_or_insert(page.serial);
            if serial != page.serial {
                continue; // another stream beside it
            }
            if page.granule != -1 {
                self.stream.set_last_granule(page.granule);
            }
            let (stream, sink) = (&mut self.stream, &mut self.sink);
            self.packets
                .page(&page, |packet, end| stream.take(packet, end, sink))?;
        }
        self.rest = rest[at..].to_vec();
        Ok(self.sink.take_ready())
    }

    /// Bytes up to the next mark of a page.
    fn junk(&mut self, begun: &[u8]) -> usize {
        let next = begun.windows(4).skip(1).position(|four| four == b"OggS");
        let bytes = next.map_or_else(|| begun.len().saturating_sub(3).max(1), |at| at + 1);
        self.sink
            .repaired(0.0, format!("{bytes} bytes are no whole page"));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixture;

    /// The samples of a stream in chunks of `size` bytes, and how many came before its end.
    fn streamed(bytes: &[u8], content_type: Option<&str>, size: usize) -> (EndOfStream, usize) {
        let mut stream = StreamDecoder::new(content_type, &AudioLimits::default());
        let mut samples = Vec::new();
        for chunk in bytes.chunks(size) {
            samples.append(&mut stream.push(chunk).unwrap());
        }
        let early = samples.len();
        let mut end = stream.finish().unwrap();
        samples.append(&mut end.samples);
        end.samples = samples;
        (end, early)
    }

    #[test]
    fn chunks_of_any_size_give_the_samples_of_the_whole() {
        for (file, live) in [
            ("audio/tone-16000-1-s16.wav", true),
            ("audio/tone-96000-1-s16.wav", true),
            ("audio/tone-8000-1-mulaw.wav", true),
            ("audio/tone-16000-1-piped-sox.wav", true),
            ("audio/tone-16000-1-opus.ogg", true),
            ("audio/reported/speech.opus.ogg", true),
            ("speech/librivox-0880.wav", true),
            ("audio/tone-16000-1-adpcm.wav", false),
            ("audio/tone-44100-2.flac", false),
            ("audio/tone-44100-2-lame.mp3", false),
        ] {
            let bytes = std::fs::read(fixture(file)).unwrap();
            let whole = decode(&bytes, None, &AudioLimits::default()).unwrap();
            for size in [37, 1_000, 4_999, bytes.len()] {
                let (end, early) = streamed(&bytes, None, size);

                assert_eq!(end.samples, whole.samples, "{file} in chunks of {size}");
                assert_eq!(
                    end.damage.undecoded_seconds, whole.damage.undecoded_seconds,
                    "{file}"
                );
                assert_eq!(early > 0, live, "{file} in chunks of {size}: {early} came early");
            }
        }
    }

    #[test]
    fn raw_samples_are_resampled_across_chunks_without_a_click() {
        let pcm: Vec<u8> = (0..88_200_i32)
            .flat_map(|at| (((f64::from(at) * 0.05).sin() * 9_000.0) as i16).to_be_bytes())
            .collect();
        for kind in [
            "audio/L16;rate=44100;channels=1",
            "audio/L16;rate=8000;channels=2",
        ] {
            let whole = decode(&pcm, Some(kind), &AudioLimits::default()).unwrap();

            let (end, early) = streamed(&pcm, Some(kind), 2_001);

            assert_eq!(end.samples, whole.samples, "{kind}");
            assert!(early + 4_096 > whole.samples.len(), "{kind}: {early}");
        }
    }

    #[test]
    fn a_stream_with_a_silent_channel_keeps_its_level_to_the_end() {
        let pcm: Vec<u8> = (0..44_100_i32)
            .flat_map(|at| [((f64::from(at) * 0.05).sin() * 9_000.0) as i16, 0])
            .flat_map(i16::to_be_bytes)
            .collect();
        let kind = Some("audio/L16;rate=44100;channels=2");
        let whole = decode(&pcm, kind, &AudioLimits::default()).unwrap();

        let (end, early) = streamed(&pcm, kind, 2_000);

        assert!(
            early > 0 && early < whole.samples.len(),
            "some samples are left for the end"
        );
        // A whole recording is raised to the level of the channel that has sound.
        let mean: Vec<f32> = whole.samples.iter().map(|sample| sample / 2.0).collect();
        assert_eq!(end.samples, mean);
    }

    #[test]
    fn a_stream_that_is_cut_or_no_sound_says_so_at_its_end() {
        let wav = std::fs::read(fixture("audio/tone-16000-1-s16.wav")).unwrap();
        let (end, _) = streamed(&wav[..wav.len() - 1_001], None, 500);
        assert!(
            end.damage.cut_short && end.damage.undecoded_seconds > 0.03,
            "{end:?}"
        );
        let opus = std::fs::read(fixture("audio/reported/speech.opus.ogg")).unwrap();
        let (end, _) = streamed(&opus[..opus.len() - 10], None, 500);
        assert!(end.damage.cut_short);

        let mut noise = StreamDecoder::new(None, &AudioLimits::default());
        noise.push(&[7; 500]).unwrap();
        assert!(matches!(noise.finish(), Err(AudioError::NotAudio { .. })));
        let nothing = StreamDecoder::new(Some("audio/L16;rate=8000"), &AudioLimits::default());
        assert!(matches!(nothing.finish(), Err(AudioError::EmptyValue)));
    }

    #[test]
    fn a_stream_has_the_limits_of_a_value() {
        let limits = AudioLimits {
            seconds_max: 1.0,
            value_bytes_max: 1_000,
            ..AudioLimits::default()
        };
        let mut raw = StreamDecoder::new(Some("audio/L16;rate=8000"), &limits);
        assert!(
            raw.push(&[0; 15_000]).is_ok(),
            "what is decoded at once is not kept"
        );
        assert!(matches!(raw.push(&[0; 2_000]), Err(AudioError::TooLong { .. })));

        let mut kept = StreamDecoder::new(None, &limits);
        kept.push(b"fLaC").unwrap();
        kept.push(&[0; 500]).unwrap();
        assert!(matches!(kept.push(&[0; 600]), Err(AudioError::TooLarge { .. })));
    }

    #[test]
    fn bytes_that_are_no_page_are_stepped_over() {
        let opus = std::fs::read(fixture("audio/reported/speech.opus.ogg")).unwrap();
        let whole = decode(&opus, None, &AudioLimits::default()).unwrap();
        let second = opus[1..].windows(4).position(|four| four == b"OggS").unwrap() + 1;
        let third = opus[second + 1..]
            .windows(4)
            .position(|four| four == b"OggS")
            .unwrap()
            + second
            + 1;
        let mut torn = opus[..third].to_vec();
        torn.extend_from_slice(b"this is not a page");
        torn.extend_from_slice(&opus[third..]);

        let (end, _) = streamed(&torn, None, 100);

        assert_eq!(end.samples.len(), whole.samples.len());
        assert!(end.damage.repaired);
    }
}

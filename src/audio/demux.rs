//! MP4, Matroska and WebM, AIFF, CAF: symphonia's demuxers, and what they do not tell.
//!
//! They stop at the first thing that they do not understand, which is why `mend` goes first, and leave the
//! edit list of MP4 alone. The declared length is compared with what came, and the frames that an encoder put
//! before the sound are taken off here.

use std::io::{Cursor, ErrorKind};

use symphonia::core::codecs::audio::AudioCodecParameters;
use symphonia::core::errors::Error;
use symphonia::core::formats::{FormatOptions, FormatReader, Track, TrackFlags};
use symphonia::core::io::MediaSourceStream;
use symphonia::default::formats::{AiffReader, CafReader, IsoMp4Reader, MkvReader};

use super::codec::{Codec, meaning, name};
use super::mend::mend;
use super::sink::{Sink, check_source};
use super::{AudioError, AudioLimits, Container};

/// Most packets in a row that a demuxer may fail to read before it is given up.
const FAILURES_MAX: u32 = 64;

/// The track that is decoded.
struct Decoding {
    id: u32,
    codec: Codec,
    /// Declared length, seconds.
    seconds: Option<f64>,
    /// Length of a tick of its time stamps, seconds.
    tick: f64,
    /// Seconds at the beginning that are the encoder's own, where the container says so.
    skipped: Option<f64>,
}

/// Decodes a file of one of these containers, or several that stand one behind the other.
pub(super) fn decode(bytes: &[u8], sink: &mut Sink) -> Result<(), AudioError> {
    let mended = mend(sink.container(), bytes);
    for (number, file) in mended.files.into_iter().enumerate() {
        let (len, decoded) = (file.len(), sink.decoded_seconds());
        match decode_file(file, sink) {
            Err(
                error @ (AudioError::Corrupt { .. }
                | AudioError::Truncated { .. }
                | AudioError::UnsupportedCodec { .. }),
            ) if number > 0 => {
                let seconds = decoded * len as f64 / bytes.len() as f64;
                sink.repaired(seconds, format!("file {} in it: {error}", number + 1));
            }
            result => result?,
        }
    }
    if mended.lost > 0 || mended.cut {
        // The bytes that were read sound as long as was decoded; what the demuxer found missing is counted
        // already.
        let lost = mended.lost;
        let gone = lost as f64 + (mended.missing as f64).min(bytes.len() as f64);
        let share = gone / (bytes.len() - lost).max(1) as f64;
        let seconds = (sink.decoded_seconds() * share - sink.undecoded_seconds()).max(0.0);
        if mended.cut {
            let detail = "its last part goes on past the end of the bytes";
            sink.cut_short(seconds, detail.to_owned());
        } else {
            sink.repaired(seconds, format!("{lost} bytes in it are no part of its outline"));
        }
    }
    Ok(())
}

fn decode_file(bytes: Vec<u8>, sink: &mut Sink) -> Result<(), AudioError> {
    let container = sink.container();
    let source = MediaSourceStream::new(Box::new(Cursor::new(bytes.clone())), Default::default());
    let options = FormatOptions::default();
    let reader = match container {
        Container::Mp4 => IsoMp4Reader::try_new(source, options).map(boxed),
        Container::Matroska => MkvReader::try_new(source, options).map(boxed),
        Container::Aiff => AiffReader::try_new(source, options).map(boxed),
        _ => CafReader::try_new(source, options).map(boxed),
    };
    let mut reader = reader.map_err(|error| refusal(container, &bytes, &error))?;
    let (mut decoding, others) = choose(reader.tracks(), container, &bytes, sink.limits())?;

    let before = sink.decoded_seconds() + sink.undecoded_seconds();
    let mut stream = Stream {
        skip: None,
        last_seconds: 0.0,
        longest_seconds: 0.05,
        samples: Vec::new(),
    };
    let mut failures = 0;
    loop {
        match reader.next_packet() {
            Ok(Some(packet)) if packet.track_id == decoding.id => {
                failures = 0;
                let pts = packet.pts.get() as f64 * decoding.tick;
                let frames = packet.dur.get();
                stream.take(&mut decoding, &packet.data, frames, pts, sink)?;
            }
            Ok(Some(_)) => {}
            // The end; in Matroska, whose segment has no size here, the end is met as an error.
            Ok(None) | Err(Error::IoError(_) | Error::LimitError(_)) => break,
            Err(error) => {
                failures += 1;
                if failures == 1 {
                    sink.repaired(
                        stream.last_seconds,
                        format!("a packet cannot be read: {}", meaning(&error)),
                    );
                }
                if failures > FAILURES_MAX {
                    break;
                }
            }
        }
    }
    let came = sink.decoded_seconds() + sink.undecoded_seconds() - before;
    if let Some(seconds) = decoding
        .seconds
        .filter(|seconds| seconds - came > stream.longest_seconds)
    {
        let detail = format!("it declares {seconds:.3} s and holds {came:.3} s");
        sink.cut_short(seconds - came, detail);
    }
    if others > 0 {
        sink.repaired(
            0.0,
            format!("{others} further tracks beside the one that is decoded"),
        );
    }
    Ok(())
}

fn boxed<'a>(reader: impl FormatReader + 'a) -> Box<dyn FormatReader + 'a> {
    Box::new(reader)
}

/// The state between two packets.
struct Stream {
    /// Frames still to be taken off at the beginning, once the rate is known.
    skip: Option<u64>,
    /// Length of the last packet, seconds.
    last_seconds: f64,
    /// Length of the longest, seconds: the last one may hold less than is declared.
    longest_seconds: f64,
    samples: Vec<f32>,
}

impl Stream {
    fn take(
        &mut self,
        decoding: &mut Decoding,
        packet: &[u8],
        frames: u64,
        pts: f64,
        sink: &mut Sink,
    ) -> Result<(), AudioError> {
        let (rate_hz, channels) = match decoding.codec.decode(packet, frames, &mut self.samples) {
            Ok(spec) => spec,
            Err(problem) => {
                let seconds = (frames as f64 * decoding.tick).min(1.0);
                let seconds = if frames > 0 { seconds } else { self.last_seconds };
                sink.repaired(seconds, format!("the packet at {pts:.3} s: {problem}"));
                return Ok(());
            }
        };
        if self.samples.is_empty() {
            return Ok(());
        }
        sink.start(rate_hz, channels)?;
        let channels = usize::from(channels).max(1);
        let decoded = (self.samples.len() / channels) as u64;
        self.last_seconds = sink.seconds(decoded);
        self.longest_seconds = self.longest_seconds.max(self.last_seconds);
        let skip = self.skip.get_or_insert_with(|| {
            let own = match &decoding.codec {
                Codec::Opus(opus) => Some(f64::from(opus.pre_skip) / f64::from(super::opus::RATE_HZ)),
                Codec::Symphonia(_) => None,
            };
            // Where nothing else says so, Matroska's first time stamp is as far below zero as frames are to
            // be skipped.
            let seconds = decoding.skipped.or(own).unwrap_or(-pts).max(0.0);
            (seconds * f64::from(rate_hz)).round() as u64
        });
        let from = decoded.min(*skip);
        *skip -= from;
        sink.push_interleaved(&self.samples[from as usize * channels..])
    }
}

/// Takes the first track of sound that can be decoded, one that is marked as the default before others; says
/// how many further ones there are.
fn choose(
    tracks: &[Track],
    container: Container,
    bytes: &[u8],
    limits: &AudioLimits,
) -> Result<(Decoding, usize), AudioError> {
    let mut sound: Vec<(usize, &Track, &AudioCodecParameters)> = tracks
        .iter()
        .filter_map(|track| Some((track, track.codec_params.as_ref()?.audio()?)))
        .enumerate()
        .map(|(number, (track, parameters))| (number, track, parameters))
        .collect();
    if container == Container::Matroska {
        sound.sort_by_key(|(_, track, _)| !track.flags.contains(TrackFlags::DEFAULT));
    }
    let mut problem = None;
    for (number, track, parameters) in &sound {
        // Before a decoder allocates memory for them.
        if let (Some(rate_hz), Some(channels)) = (parameters.sample_rate, &parameters.channels) {
            check_source(
                rate_hz,
                u16::try_from(channels.count()).unwrap_or(u16::MAX),
                limits,
            )?;
        }
        match Codec::open(parameters) {
            Ok(codec) => {
                let tick = track.time_base.map_or(0.0, |base| {
                    f64::from(base.numer.get()) / f64::from(base.denom.get())
                });
                let rate = parameters.sample_rate.filter(|rate| *rate > 0).map(f64::from);
                let declared = match track.duration {
                    Some(duration) if tick > 0.0 => Some(duration.get() as f64 * tick),
                    _ => (track.num_frames.zip(rate)).map(|(frames, rate)| frames as f64 / rate),
                };
                let skipped = match container {
                    Container::Mp4 => edits(bytes, *number),
                    _ => track
                        .delay
                        .zip(rate)
                        .map(|(frames, rate)| f64::from(frames) / rate),
                };
                let declared = declared.filter(|seconds| seconds.is_finite());
                let decoding = Decoding {
                    id: track.id,
                    codec,
                    seconds: declared.map(|seconds| seconds - skipped.unwrap_or_default()),
                    tick: if tick > 0.0 {
                        tick
                    } else {
                        rate.map_or(0.0, f64::recip)
                    },
                    skipped,
                };
                return Ok((decoding, sound.len() - 1));
            }
            Err(why) => {
                let codec = name(parameters.codec).map(str::to_owned);
                let codec = codec.unwrap_or_else(|| unknown_codec(container, bytes));
                problem.get_or_insert_with(|| format!("{codec} in {}: {why}", a(container)));
            }
        }
    }
    let found = problem.unwrap_or_else(|| {
        let codec = unknown_codec(container, bytes);
        format!("{} without sound that is known, with {codec}", a(container))
    });
    Err(AudioError::UnsupportedCodec { found })
}

/// The container with its article.
fn a(container: Container) -> String {
    let article = match container {
        Container::Mp4 | Container::Aiff => "an",
        _ => "a",
    };
    format!("{article} {container}")
}

/// What the container itself calls the codec: the code of the first sample entry, or Matroska's codec id.
fn unknown_codec(container: Container, bytes: &[u8]) -> String {
    let at = |mark: &[u8]| bytes.windows(mark.len()).position(|window| window == mark);
    let code = match container {
        Container::Mp4 => at(b"stsd").and_then(|at| bytes.get(at + 16..at + 20)),
        Container::Aiff => at(b"COMM").and_then(|at| bytes.get(at + 26..at + 30)),
        Container::Caf => at(b"desc").and_then(|at| bytes.get(at + 20..at + 24)),
        _ => at(b"\x86").and_then(|_| {
            let at = at(b"A_")?;
            let id = &bytes[at..];
            let len = id.iter().take_while(|byte| byte.is_ascii_graphic()).count();
            Some(&id[..len.min(24)])
        }),
    };
    match code {
        Some(code) if code.iter().all(|byte| (0x20..0x7f).contains(byte)) => {
            format!("the codec `{}`", String::from_utf8_lossy(code).trim())
        }
        _ => "an unknown codec".to_owned(),
    }
}

/// What an error before the first packet means.
fn refusal(container: Container, bytes: &[u8], error: &Error) -> AudioError {
    let cut = matches!(error, Error::IoError(error) if error.kind() == ErrorKind::UnexpectedEof);
    let without_index =
        container == Container::Mp4 && !atoms(bytes).any(|atom| &atom.kind == b"moov" && atom.whole);
    match error {
        _ if without_index => AudioError::Truncated {
            container,
            detail: "its index (`moov`) is missing, which recorders write at the end".to_owned(),
        },
        _ if cut => AudioError::Truncated {
            container,
            detail: "it ends before its first packet".to_owned(),
        },
        Error::Unsupported(_) => AudioError::UnsupportedCodec {
            found: format!("{} with {}", a(container), unknown_codec(container, bytes)),
        },
        error => AudioError::Corrupt {
            container,
            detail: meaning(error).to_owned(),
        },
    }
}

/// One atom of an MP4 file.
struct Atom<'a> {
    kind: [u8; 4],
    body: &'a [u8],
    whole: bool,
}

/// The atoms that stand one behind the other.
fn atoms(bytes: &[u8]) -> impl Iterator<Item = Atom<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (size, kind) = (rest.first_chunk::<4>()?, rest.get(4..)?.first_chunk::<4>()?);
        let (head, size) = match u32::from_be_bytes(*size) {
            0 => (8, rest.len() as u64),
            1 => (16, u64::from_be_bytes(*rest.get(8..)?.first_chunk::<8>()?)),
            size => (8, u64::from(size)),
        };
        let size = usize::try_from(size).ok().filter(|size| *size >= head)?;
        let body = rest.get(head..size.min(rest.len()))?;
        let whole = size <= rest.len();
        rest = rest.get(size..).unwrap_or_default();
        Some(Atom {
            kind: *kind,
            body,
            whole,
        })
    })
}

/// How many seconds the edit list of a track of sound, counted from 0, leaves out at its beginning.
fn edits(bytes: &[u8], track: usize) -> Option<f64> {
    let find = |bytes, kind: &[u8; 4]| atoms(bytes).find(|atom| &atom.kind == kind).map(|atom| atom.body);
    let word = |body: &[u8], at: usize| Some(u32::from_be_bytes(*body.get(at..)?.first_chunk()?));
    let is_sound = |media| find(media, b"hdlr").and_then(|body| body.get(8..12)) == Some(b"soun");
    let movie = find(bytes, b"moov")?;
    let body = atoms(movie)
        .filter(|atom| &atom.kind == b"trak")
        .filter(|atom| find(atom.body, b"mdia").is_some_and(is_sound))
        .nth(track)?
        .body;
    let header = find(find(body, b"mdia")?, b"mdhd")?;
    let scale = word(header, if header.first()? == &1 { 20 } else { 12 })?;
    let list = find(find(body, b"edts")?, b"elst")?;
    let (wide, count) = (list.first()? == &1, word(list, 4)?);
    for number in 0..count.min(16) as usize {
        let start = if wide {
            let at = 8 + 20 * number + 8;
            i64::from_be_bytes(*list.get(at..)?.first_chunk()?)
        } else {
            i64::from(word(list, 8 + 12 * number + 4)?.cast_signed())
        };
        if start >= 0 {
            return Some(start as f64 / f64::from(scale.max(1)));
        }
    }
    None
}

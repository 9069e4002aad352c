//! RIFF/WAVE: our own reader of headers and chunks, hound for writing.
//!
//! Third-party readers were not used for reading because they allocate what a chunk declares, stop at the end
//! of the bytes without saying that more was declared, or refuse what pipes produce.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use super::adpcm::Adpcm;
use super::sink::{Sink, check_source};
use super::{AudioError, AudioLimits, Container, PcmEncoding, SAMPLE_RATE_HZ, mp3, pcm};

/// Declared data sizes from here on mean that the writer did not know: ffmpeg writes `0xffff_ffff` into a
/// pipe, arecord about `0x8000_0000`, sox `0x7fff_f000`. No value on a topic is that large.
const UNKNOWN_SIZE_MIN: u64 = 0x7fff_f000;

/// Bytes 2..16 of the sub-format of WAVE_FORMAT_EXTENSIBLE, the same for all formats that have a 16-bit tag.
const GUID_TAIL: [u8; 14] = [0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71];

/// How the samples are written.
#[derive(Clone, Copy, Debug)]
enum Coding {
    Pcm(PcmEncoding),
    /// 24 bits in the low part of four bytes, or in the high part: only the samples tell.
    Pcm24In32,
    Adpcm(Adpcm),
    Mpeg,
}

/// The `fmt ` chunk.
#[derive(Clone, Copy, Debug)]
struct Format {
    coding: Coding,
    channels: u16,
    rate_hz: u32,
    /// Bytes of a second, as far as they are known.
    second_bytes: f64,
}

/// Decodes a WAV file, or several that stand one behind the other.
pub(super) fn decode(bytes: &[u8], sink: &mut Sink) -> Result<(), AudioError> {
    let mut rest = bytes;
    let mut number = 0;
    loop {
        match decode_file(rest, sink) {
            Ok([]) => return Ok(()),
            Ok(after) => rest = after,
            Err(error @ (AudioError::Corrupt { .. } | AudioError::Truncated { .. })) if number > 0 => {
                sink.repaired(0.0, format!("file {} in it: {error}", number + 1));
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        number += 1;
    }
}

/// Decodes one file; what follows it is returned when it is another one.
fn decode_file<'a>(bytes: &'a [u8], sink: &mut Sink) -> Result<&'a [u8], AudioError> {
    if bytes.len() < 12 {
        return truncated("it ends inside the RIFF header".to_owned());
    }
    let big_endian = bytes.starts_with(b"RIFX");
    let mut format = None;
    let mut size_64 = None;
    let mut at = 12;
    let (format, chunk) = loop {
        let Some(chunk) = Chunk::at(bytes, at, big_endian) else {
            return truncated("it ends before a `data` chunk".to_owned());
        };
        match (&chunk.id, format) {
            (b"fmt ", None) => {
                format = Some(parse_format(chunk.body(bytes)?, big_endian, sink.limits())?);
            }
            (b"fmt ", Some(_)) => return corrupt("it has two `fmt ` chunks".to_owned()),
            (b"ds64", _) => size_64 = read_u64(chunk.body(bytes)?, 8),
            (b"data", Some(format)) => break (format, chunk),
            (b"data", None) => return corrupt("its `data` chunk comes before a `fmt ` chunk".to_owned()),
            (id, _) if !is_chunk_id(id) => {
                return corrupt(format!("at byte {at} a chunk should begin and none does"));
            }
            _ => {
                chunk.body(bytes)?;
            }
        }
        at = chunk.next(bytes);
    };

    let rest = &bytes[chunk.start..];
    let declared = match size_64 {
        Some(size) if chunk.size == 0xffff_ffff => size,
        _ => chunk.size,
    };
    let riff_end = u64::from(read_u32(bytes, 4, big_endian).unwrap_or_default()) + 8;
    let empty_and_said_so = riff_end == bytes.len() as u64; // further chunks follow an empty one
    let to_the_end = declared >= UNKNOWN_SIZE_MIN || (declared == 0 && !empty_and_said_so);
    let len = if to_the_end {
        rest.len()
    } else {
        usize::try_from(declared).unwrap_or(usize::MAX).min(rest.len())
    };
    let (data, after) = rest.split_at(len);
    sink.start(format.rate_hz, format.channels)?;
    samples(&format, big_endian, data, sink)?;
    if !to_the_end && declared > len as u64 {
        let detail = format!("its `data` chunk declares {declared} bytes and {len} follow");
        sink.cut_short((declared - len as u64) as f64 / format.second_bytes, detail);
    }
    Ok(behind(after, len, &format, big_endian, sink))
}

/// A WAV file as its first bytes declare it, to be read while it comes.
pub(super) struct StreamHeader {
    pub(super) encoding: PcmEncoding,
    pub(super) channels: u16,
    pub(super) rate_hz: u32,
    /// Where the samples begin.
    pub(super) start: usize,
    /// Bytes of samples, where the writer knew.
    pub(super) data_bytes: Option<u64>,
}

/// The header of a little-endian file of plain samples; `None` where it is not whole yet, or the file is of
/// another kind.
pub(super) fn stream_header(bytes: &[u8], limits: &AudioLimits) -> Option<StreamHeader> {
    if !bytes.starts_with(b"RIFF") {
        return None;
    }
    let (mut at, mut format) = (12, None);
    loop {
        let chunk = Chunk::at(bytes, at, false)?;
        match (&chunk.id, format) {
            (b"fmt ", None) => format = Some(parse_format(chunk.body(bytes).ok()?, false, limits).ok()?),
            (
                b"data",
                Some(Format {
                    coding: Coding::Pcm(encoding),
                    channels,
                    rate_hz,
                    ..
                }),
            ) => {
                let known = chunk.size > 0 && chunk.size < UNKNOWN_SIZE_MIN;
                return Some(StreamHeader {
                    encoding,
                    channels,
                    rate_hz,
                    start: chunk.start,
                    data_bytes: known.then_some(chunk.size),
                });
            }
            (b"fmt " | b"data", _) => return None,
            (id, _) if !is_chunk_id(id) => return None,
            _ => {
                chunk.body(bytes).ok()?;
            }
        }
        at = chunk.next(bytes);
    }
}

/// What follows the samples may be further chunks, tags, padding, or another file, which is returned. Samples
/// in a second `data` chunk are not decoded, nor is what is no chunk: then the declared size is a lie.
fn behind<'a>(
    after: &'a [u8],
    data_len: usize,
    format: &Format,
    big_endian: bool,
    sink: &mut Sink,
) -> &'a [u8] {
    let mut at = 0;
    for padded in [data_len % 2, 0] {
        if Chunk::at(after, padded, big_endian).is_some_and(|chunk| is_chunk_id(&chunk.id)) {
            at = padded;
            break;
        }
    }
    loop {
        let rest = after.get(at..).unwrap_or_default();
        if matches!(rest.get(..4), Some(b"RIFF" | b"RIFX" | b"RF64")) && rest.get(8..12) == Some(b"WAVE") {
            return rest;
        }
        let tag = [&b"TAG"[..], b"ID3", b"APETAGEX"]
            .iter()
            .any(|tag| rest.starts_with(tag));
        if tag || rest.iter().all(|byte| *byte == 0) {
            return &[];
        }
        let chunk = Chunk::at(rest, 0, big_endian);
        let excess = match &chunk {
            Some(chunk) if &chunk.id == b"data" => chunk.body_bytes(rest),
            Some(chunk) if is_chunk_id(&chunk.id) => 0,
            _ if rest.len() < 8 => return &[], // less than a chunk
            _ => rest.len(),
        };
        if excess > 0 {
            let detail = format!("behind {data_len} bytes of samples {excess} more follow");
            sink.repaired(excess as f64 / format.second_bytes, detail);
        }
        match chunk {
            Some(chunk) if is_chunk_id(&chunk.id) => at += chunk.next(rest),
            _ => return &[],
        }
    }
}

/// Decodes the samples.
fn samples(format: &Format, big_endian: bool, data: &[u8], sink: &mut Sink) -> Result<(), AudioError> {
    match format.coding {
        Coding::Pcm(encoding) if big_endian => pcm::push(sink, encoding.big_endian(), data),
        Coding::Pcm(encoding) => pcm::push(sink, encoding, data),
        Coding::Pcm24In32 => {
            // In the low part the highest byte only repeats the sign.
            let low = data.as_chunks::<4>().0.iter().all(|[a, b, c, d]| {
                let bytes = if big_endian {
                    [*d, *c, *b, *a]
                } else {
                    [*a, *b, *c, *d]
                };
                (i32::from_le_bytes(bytes) << 8 >> 8) == i32::from_le_bytes(bytes)
            });
            if !low {
                let wide = PcmEncoding::S32Le;
                return pcm::push(sink, if big_endian { wide.big_endian() } else { wide }, data);
            }
            let at = if big_endian { 1 } else { 0 };
            let packed: Vec<u8> = data
                .as_chunks::<4>()
                .0
                .iter()
                .flat_map(|four| four[at..at + 3].to_vec())
                .collect();
            let narrow = PcmEncoding::S24Le;
            pcm::push(
                sink,
                if big_endian { narrow.big_endian() } else { narrow },
                &packed,
            )
        }
        Coding::Adpcm(blocks) => blocks.decode(data, sink),
        Coding::Mpeg => mp3::decode_inside(data, sink),
    }
}

/// Where a chunk lies.
struct Chunk {
    id: [u8; 4],
    /// First byte of its body.
    start: usize,
    /// Declared size of its body, bytes.
    size: u64,
}

impl Chunk {
    fn at(bytes: &[u8], at: usize, big_endian: bool) -> Option<Self> {
        let header = bytes.get(at..at.checked_add(8)?)?;
        let id = header[..4].try_into().ok()?;
        Some(Self {
            id,
            start: at + 8,
            size: u64::from(read_u32(header, 4, big_endian)?),
        })
    }

    fn body<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], AudioError> {
        let rest = &bytes[self.start..];
        match usize::try_from(self.size).ok().and_then(|size| rest.get(..size)) {
            Some(body) => Ok(body),
            None => truncated(format!(
                "its `{}` chunk declares {} bytes and {} follow",
                String::from_utf8_lossy(&self.id).escape_debug(),
                self.size,
                rest.len()
            )),
        }
    }

    /// Bytes of its body that are there.
    fn body_bytes(&self, bytes: &[u8]) -> usize {
        let there = bytes.len() - self.start;
        usize::try_from(self.size).map_or(there, |size| size.min(there))
    }

    /// Where the next chunk begins. Bodies are padded to an even length; some writers forget that.
    fn next(&self, bytes: &[u8]) -> usize {
        let end = self.start + self.body_bytes(bytes);
        let begins = |at: usize| bytes.get(at..at + 4).is_some_and(|id| id.iter().all(is_letter));
        if self.size % 2 == 1 && begins(end) && !begins(end + 1) {
            return end;
        }
        end + self.size as usize % 2
    }
}

fn parse_format(body: &[u8], big_endian: bool, limits: &AudioLimits) -> Result<Format, AudioError> {
    let u16_at = |at| read_u16(body, at, big_endian);
    let (Some(mut tag), Some(channels), Some(rate_hz), Some(second_bytes), Some(frame_bytes)) = (
        u16_at(0),
        u16_at(2),
        read_u32(body, 4, big_endian),
        read_u32(body, 8, big_endian),
        u16_at(12),
    ) else {
        let found = body.len();
        return corrupt(format!(
            "its `fmt ` chunk has {found} bytes, expected at least 16"
        ));
    };
    let companded = matches!(tag, 6 | 7);
    let Some(bits) = u16_at(14).or(companded.then_some(8)) else {
        let found = body.len();
        return corrupt(format!(
            "its `fmt ` chunk has {found} bytes, expected at least 16"
        ));
    };
    // Rate and channels first: what is absurd should be called so, whatever else does not add up with it.
    check_source(rate_hz, channels, limits)?;

    if tag == 0xfffe {
        let Some(guid) = body.get(24..40) else {
            return corrupt("its extensible `fmt ` chunk lacks the sub-format".to_owned());
        };
        if guid[2..] != GUID_TAIL {
            return Err(AudioError::UnsupportedCodec {
                found: "a WAV file with an unknown extensible sub-format".to_owned(),
            });
        }
        tag = u16::from_le_bytes([guid[0], guid[1]]);
    }
    // The block size is looked at where it changes how samples are written, and passed over where it
    // contradicts.
    let block_bytes = usize::from(frame_bytes);
    let in_four_bytes = block_bytes == 4 * usize::from(channels);
    let coding = match (tag, bits) {
        (1, 17..=24) if in_four_bytes => Coding::Pcm24In32,
        (1, 1..=8) => Coding::Pcm(PcmEncoding::U8),
        (1, 9..=16) => Coding::Pcm(PcmEncoding::S16Le),
        (1, 17..=24) => Coding::Pcm(PcmEncoding::S24Le),
        (1, 25..=32) => Coding::Pcm(PcmEncoding::S32Le),
        (3, 32) => Coding::Pcm(PcmEncoding::F32Le),
        (3, 64) => Coding::Pcm(PcmEncoding::F64Le),
        (6, _) => Coding::Pcm(PcmEncoding::ALaw),
        (7, _) => Coding::Pcm(PcmEncoding::MuLaw),
        (0x02 | 0x11, _) if channels <= 2 && bits == 4 && !big_endian => {
            match Adpcm::new(tag == 0x02, block_bytes, usize::from(channels)) {
                Some(blocks) => Coding::Adpcm(blocks),
                None => return corrupt(format!("its ADPCM blocks have {block_bytes} bytes")),
            }
        }
        (0x50 | 0x55, _) => Coding::Mpeg,
        (1 | 3, 0) => return corrupt("it declares samples of 0 bits".to_owned()),
        _ => {
            return Err(AudioError::UnsupportedCodec {
                found: codec_name(tag, bits),
            });
        }
    };
    let second_bytes = match coding {
        Coding::Pcm(encoding) => {
            (encoding.sample_bytes() * usize::from(channels)) as f64 * f64::from(rate_hz)
        }
        Coding::Pcm24In32 => block_bytes as f64 * f64::from(rate_hz),
        Coding::Adpcm(blocks) => blocks.second_bytes(rate_hz),
        Coding::Mpeg => f64::from(second_bytes.max(1_000)), // 8 kbit/s, the lowest
    };
    Ok(Format {
        coding,
        channels,
        rate_hz,
        second_bytes,
    })
}

fn codec_name(tag: u16, bits: u16) -> String {
    let name = match tag {
        1 | 3 => return format!("a WAV file with samples of {bits} bits"),
        0x02 => "Microsoft ADPCM of an unknown layout",
        0x11 => "IMA ADPCM of an unknown layout",
        0x14 | 0x40 | 0x45 | 0x64 => "G.721, G.723 or G.726 ADPCM",
        0x31 => "GSM 6.10",
        0x42 => "G.723.1",
        0x65 | 0x28f => "G.722",
        0x83 => "G.729",
        0xff => "AAC",
        0x2000 => "AC-3",
        0x160..=0x163 => "WMA",
        _ => return format!("a WAV file with codec {tag:#06x}"),
    };
    format!("a WAV file with {name} inside")
}

fn is_chunk_id(id: &[u8; 4]) -> bool {
    id.iter().all(|byte| (0x20..0x7f).contains(byte))
}

fn is_letter(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || *byte == b' '
}

fn read_u16(bytes: &[u8], at: usize, big_endian: bool) -> Option<u16> {
    let two = *bytes.get(at..)?.first_chunk()?;
    Some(if big_endian {
        u16::from_be_bytes(two)
    } else {
        u16::from_le_bytes(two)
    })
}

fn read_u32(bytes: &[u8], at: usize, big_endian: bool) -> Option<u32> {
    let four = *bytes.get(at..)?.first_chunk()?;
    Some(if big_endian {
        u32::from_be_bytes(four)
    } else {
        u32::from_le_bytes(four)
    })
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn truncated<T>(detail: String) -> Result<T, AudioError> {
    Err(AudioError::Truncated {
        container: Container::Wav,
        detail,
    })
}

fn corrupt<T>(detail: String) -> Result<T, AudioError> {
    Err(AudioError::Corrupt {
        container: Container::Wav,
        detail,
    })
}

/// Why a WAV file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write `{path}`")]
pub struct WriteWavError {
    /// The file.
    pub path: PathBuf,
    /// What went wrong.
    #[source]
    pub source: std::io::Error,
}

/// A WAV file of 16-bit samples, mono, 16 kHz. Samples outside `[-1, 1]` are clipped.
///
/// # Panics
/// When the samples need more than 4 GiB, which no WAV file can hold.
pub fn encode_wav(samples: &[f32]) -> Vec<u8> {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: SAMPLE_RATE_HZ,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut file = Cursor::new(Vec::new());
    let mut writer = hound::WavWriter::new(&mut file, spec).expect("memory does not fail");
    for sample in samples {
        let scaled = (sample * 32_768.0).round().clamp(-32_768.0, 32_767.0);
        writer.write_sample(scaled as i16).expect("memory does not fail");
    }
    writer.finalize().expect("less than 4 GiB of samples");
    file.into_inner()
}

/// Writes samples as [`encode_wav`] does.
///
/// # Errors
/// When the file cannot be written.
pub fn write_wav(path: &Path, samples: &[f32]) -> Result<(), WriteWavError> {
    std::fs::write(path, encode_wav(samples)).map_err(|source| WriteWavError {
        path: path.to_owned(),
        source,
    })
}

//! RIFF/WAVE: our own reader of headers and chunks, hound for writing.
//!
//! Third-party readers were not used for reading because they allocate what a chunk declares, stop at the end of the
//! bytes without saying that more was declared, or refuse what pipes produce.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use super::sink::{Sink, check_source};
use super::{AudioError, AudioLimits, Container, PcmEncoding, SAMPLE_RATE_HZ, Waveform, pcm};

/// Declared data sizes from here on mean that the writer did not know: ffmpeg writes `0xffff_ffff` into a pipe,
/// arecord about `0x8000_0000`, sox `0x7fff_f000`. No value on a topic is that large.
const UNKNOWN_SIZE_MIN: u64 = 0x7fff_f000;

/// Bytes 2..16 of the sub-format of WAVE_FORMAT_EXTENSIBLE, the same for all formats that have a 16-bit tag.
const GUID_TAIL: [u8; 14] = [0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71];

/// The `fmt ` chunk.
#[derive(Clone, Copy, Debug)]
struct Format {
    encoding: PcmEncoding,
    channels: u16,
    rate_hz: u32,
}

/// Decodes a WAV file.
pub(super) fn decode(bytes: &[u8], limits: &AudioLimits) -> Result<Waveform, AudioError> {
    let (format, data) = parse(bytes, limits)?;
    let mut sink = Sink::new(Container::Wav, format.rate_hz, format.channels, limits)?;
    pcm::push(&mut sink, Container::Wav, format.encoding, data)?;
    sink.finish()
}

/// Walks the chunks up to the samples and looks at what follows them.
fn parse<'a>(bytes: &'a [u8], limits: &AudioLimits) -> Result<(Format, &'a [u8]), AudioError> {
    if bytes.len() < 12 {
        return truncated("it ends inside the RIFF header".to_owned());
    }
    let mut format = None;
    let mut size_64 = None;
    let mut at = 12;
    loop {
        let Some(chunk) = Chunk::at(bytes, at) else {
            return truncated("it ends before a `data` chunk".to_owned());
        };
        match &chunk.id {
            b"fmt " => {
                if format.is_some() {
                    return corrupt("it has two `fmt ` chunks".to_owned());
                }
                format = Some(parse_format(chunk.body(bytes)?, limits)?);
            }
            b"ds64" => size_64 = read_u64(chunk.body(bytes)?, 8),
            b"data" => {
                let Some(format) = format else {
                    return corrupt("its `data` chunk comes before a `fmt ` chunk".to_owned());
                };
                return Ok((format, samples(bytes, &chunk, size_64)?));
            }
            id if !is_chunk_id(id) => {
                return corrupt(format!("at byte {at} a chunk should begin and none does"));
            }
            _ => {
                chunk.body(bytes)?;
            }
        }
        at = chunk.next();
    }
}

/// The bytes of the samples, once it is clear that all of them are there.
fn samples<'a>(bytes: &'a [u8], chunk: &Chunk, size_64: Option<u64>) -> Result<&'a [u8], AudioError> {
    let rest = &bytes[chunk.start..];
    let declared = match size_64 {
        Some(size) if chunk.size == 0xffff_ffff => size,
        _ => chunk.size,
    };
    let riff_end = u64::from(read_u32(bytes, 4).unwrap_or_default()) + 8;
    let empty_and_said_so = riff_end == bytes.len() as u64; // further chunks follow an empty one
    if declared >= UNKNOWN_SIZE_MIN || (declared == 0 && !empty_and_said_so) {
        return Ok(rest);
    }
    if declared > rest.len() as u64 {
        return truncated(format!(
            "its `data` chunk declares {declared} bytes and {} follow",
            rest.len()
        ));
    }

    let (data, after) = rest.split_at(declared as usize);
    look_at_the_rest(after, data.len())?;
    Ok(data)
}

/// What follows the samples may be further chunks, a tag or padding. Anything else means that the declared size is
/// a lie, and to go by it would shorten the sound in silence.
fn look_at_the_rest(after: &[u8], data_len: usize) -> Result<(), AudioError> {
    if after.starts_with(b"data") || after.starts_with(b"RIFF") {
        return corrupt("a second sound follows the first".to_owned());
    }
    if after.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    let padded = data_len % 2;
    for start in [padded, 0] {
        let id = after
            .get(start..start + 4)
            .and_then(|id| <[u8; 4]>::try_from(id).ok());
        if id.is_some_and(|id| is_chunk_id(&id) || id.starts_with(b"TAG") || id.starts_with(b"ID3")) {
            return Ok(());
        }
    }
    corrupt(format!(
        "its `data` chunk declares {data_len} bytes, and {} bytes follow that are no chunk",
        after.len()
    ))
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
    fn at(bytes: &[u8], at: usize) -> Option<Self> {
        let header = bytes.get(at..at.checked_add(8)?)?;
        let id = header[..4].try_into().ok()?;
        Some(Self {
            id,
            start: at + 8,
            size: u64::from(read_u32(header, 4)?),
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

    /// Where the next chunk begins; bodies are padded to an even length. Only for chunks whose body is there.
    fn next(&self) -> usize {
        self.start + self.size as usize + self.size as usize % 2
    }
}

fn parse_format(body: &[u8], limits: &AudioLimits) -> Result<Format, AudioError> {
    let (Some(mut tag), Some(channels), Some(rate_hz), Some(frame_bytes), Some(bits)) = (
        read_u16(body, 0),
        read_u16(body, 2),
        read_u32(body, 4),
        read_u16(body, 12),
        read_u16(body, 14),
    ) else {
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
    let encoding = match (tag, bits) {
        (1, 1..=8) => PcmEncoding::U8,
        (1, 9..=16) => PcmEncoding::S16Le,
        (1, 17..=24) => PcmEncoding::S24Le,
        (1, 25..=32) => PcmEncoding::S32Le,
        (3, 32) => PcmEncoding::F32Le,
        (3, 64) => PcmEncoding::F64Le,
        (6, _) => PcmEncoding::ALaw,
        (7, _) => PcmEncoding::MuLaw,
        (1 | 3, 0) => return corrupt("it declares samples of 0 bits".to_owned()),
        _ => {
            return Err(AudioError::UnsupportedCodec {
                found: codec_name(tag, bits),
            });
        }
    };
    let expected = encoding.sample_bytes() * usize::from(channels);
    if usize::from(frame_bytes) != expected {
        return corrupt(format!(
            "it declares frames of {frame_bytes} bytes; {channels} channels of {bits} bits make {expected}"
        ));
    }
    Ok(Format {
        encoding,
        channels,
        rate_hz,
    })
}

fn codec_name(tag: u16, bits: u16) -> String {
    let name = match tag {
        1 | 3 => return format!("a WAV file with samples of {bits} bits"),
        0x02 => "Microsoft ADPCM",
        0x11 => "IMA ADPCM",
        0x31 => "GSM 6.10",
        0x50 => "MPEG audio layer I or II",
        0x55 => "MP3",
        0xff => "AAC",
        0x161 => "WMA",
        _ => return format!("a WAV file with codec {tag:#06x}"),
    };
    format!("a WAV file with {name} inside")
}

fn is_chunk_id(id: &[u8; 4]) -> bool {
    id.iter().all(|byte| (0x20..0x7f).contains(byte))
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
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

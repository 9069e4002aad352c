//! FLAC: our own walk over the metadata, symphonia for frames and samples, and a check that every byte was used.
//!
//! Only STREAMINFO reaches symphonia: pictures, cue sheets and comments, whose parsers allocate what they are told
//! to, are stepped over. A damaged frame is dropped by the frame reader without an error, so what was dropped is
//! found by adding up: bytes used, time stamps without gaps, the declared number of samples, the MD5 sum.

use std::io::Cursor;

use symphonia::core::audio::GenericAudioBufferRef;
use symphonia::core::codecs::audio::well_known::CODEC_ID_FLAC;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::formats::{FormatOptions, FormatReader};
use symphonia::core::io::MediaSourceStream;
use symphonia::default::codecs::FlacDecoder;
use symphonia::default::formats::FlacReader;

use super::sink::Sink;
use super::{AudioError, AudioLimits, Container, Waveform, mp3};

/// Bytes of the body of a STREAMINFO block.
pub(super) const STREAM_INFO_BYTES: usize = 34;

/// Whether the bytes are FLAC, possibly behind ID3 tags that do not belong there.
pub(super) fn recognise(bytes: &[u8]) -> bool {
    bytes
        .get(mp3::tags_end(bytes)..)
        .is_some_and(|rest| rest.starts_with(b"fLaC"))
}

/// What STREAMINFO declares.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamInfo {
    pub(super) rate_hz: u32,
    pub(super) channels: u16,
    /// Frames of the whole stream, when the encoder knew.
    pub(super) frames: Option<u64>,
}

impl StreamInfo {
    pub(super) fn read(block: &[u8; STREAM_INFO_BYTES]) -> Self {
        // After the block and frame sizes: 20 bits of rate, 3 of channels, 5 of width, 36 of length.
        let packed = u64::from_be_bytes([
            block[10], block[11], block[12], block[13], block[14], block[15], block[16], block[17],
        ]);
        let frames = packed & 0xf_ffff_ffff;
        Self {
            rate_hz: (packed >> 44) as u32,
            channels: ((packed >> 41) & 0x7) as u16 + 1,
            frames: (frames != 0).then_some(frames),
        }
    }
}

/// A decoder for the frames behind this STREAMINFO.
pub(super) fn decoder(
    container: Container,
    stream_info: &[u8; STREAM_INFO_BYTES],
) -> Result<FlacDecoder, AudioError> {
    let mut parameters = AudioCodecParameters::new();
    parameters
        .for_codec(CODEC_ID_FLAC)
        .with_extra_data(Box::from(&stream_info[..]));
    FlacDecoder::try_new(&parameters, &AudioDecoderOptions::default().verify(true))
        .map_err(|error| corrupt(container, format!("its stream information is invalid: {error}")))
}

/// Puts what a codec decoded into the sink.
pub(super) fn push_decoded(
    sink: &mut Sink,
    container: Container,
    decoded: &GenericAudioBufferRef<'_>,
    interleaved: &mut Vec<f32>,
) -> Result<(), AudioError> {
    if decoded.is_empty() {
        return Ok(());
    }
    let channels = decoded.spec().channels().count();
    if channels != usize::from(sink.channels()) {
        let declared = sink.channels();
        return Err(corrupt(
            container,
            format!("it declares {declared} channels and a frame has {channels}"),
        ));
    }
    decoded.copy_to_vec_interleaved(interleaved);
    sink.push_interleaved(interleaved)
}

/// Decodes a FLAC file.
pub(super) fn decode(bytes: &[u8], limits: &AudioLimits) -> Result<Waveform, AudioError> {
    let (block, audio) = metadata(&bytes[mp3::tags_end(bytes)..])?;
    let info = StreamInfo::read(block);
    let mut sink = Sink::new(Container::Flac, info.rate_hz, info.channels, limits)?;
    if let Some(frames) = info.frames {
        sink.expect_frames(frames)?;
    }
    let audio = without_id3v1(audio);
    if audio.is_empty() {
        return match info.frames {
            None => Err(AudioError::ZeroSamples {
                container: Container::Flac,
            }),
            Some(frames) => Err(truncated(format!(
                "it declares {frames} samples and ends before the first"
            ))),
        };
    }

    let mut plain = Vec::with_capacity(8 + STREAM_INFO_BYTES + audio.len());
    plain.extend_from_slice(b"fLaC\x80\0\0\x22"); // the last metadata block, STREAMINFO, 34 bytes
    plain.extend_from_slice(block);
    plain.extend_from_slice(audio);
    let source = MediaSourceStream::new(Box::new(Cursor::new(plain)), Default::default());
    let Ok(mut reader) = FlacReader::try_new(source, FormatOptions::default()) else {
        return Err(match info.frames {
            Some(_) | None if audio.len() < 16 => truncated("it ends inside its first frame".to_owned()),
            _ => corrupt(
                Container::Flac,
                "no frame is found behind its metadata".to_owned(),
            ),
        });
    };

    let mut decoder = decoder(Container::Flac, block)?;
    let mut interleaved = Vec::new();
    let mut used = 0;
    // The reader ends with an error when samples are missing; what is missing is found below all the same.
    while let Ok(Some(packet)) = reader.next_packet() {
        used += packet.data.len();
        let expected = sink.frames();
        if u64::try_from(packet.pts.get()) != Ok(expected) {
            let detail = format!("after sample {expected} its frames go on at {}", packet.pts.get());
            return Err(corrupt(Container::Flac, detail));
        }
        let decoded = decoder.decode(&packet).map_err(|error| {
            corrupt(
                Container::Flac,
                format!("the frame at sample {expected}: {error}"),
            )
        })?;
        push_decoded(&mut sink, Container::Flac, &decoded, &mut interleaved)?;
    }

    let (frames, left_over) = (sink.frames(), audio.len() - used.min(audio.len()));
    match info.frames {
        Some(declared) if frames < declared => {
            return Err(truncated(format!(
                "it declares {declared} samples and holds {frames}"
            )));
        }
        Some(declared) if frames > declared || left_over > 0 => {
            let detail =
                format!("it declares {declared} samples, holds {frames} and {left_over} further bytes");
            return Err(corrupt(Container::Flac, detail));
        }
        None if left_over > 0 => {
            return Err(truncated(format!(
                "its last {left_over} bytes are no whole frame"
            )));
        }
        _ => {}
    }
    if decoder.finalize().verify_ok == Some(false) {
        let detail = "its samples do not have the MD5 sum that it declares".to_owned();
        return Err(corrupt(Container::Flac, detail));
    }
    sink.finish()
}

/// STREAMINFO and the bytes behind the metadata.
fn metadata(bytes: &[u8]) -> Result<(&[u8; STREAM_INFO_BYTES], &[u8]), AudioError> {
    let mut stream_info = None;
    let mut at = 4;
    loop {
        let Some(&[kind, a, b, c]) = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>) else {
            return Err(truncated("it ends inside its metadata".to_owned()));
        };
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        let Some(body) = bytes.get(at + 4..at + 4 + len) else {
            let left = bytes.len() - at - 4;
            return Err(truncated(format!(
                "a metadata block declares {len} bytes and {left} follow"
            )));
        };
        at += 4 + len;
        match (kind & 0x7f, stream_info) {
            (0, None) => {
                let Ok(block) = body.try_into() else {
                    let detail = format!("its stream information has {len} bytes, expected 34");
                    return Err(corrupt(Container::Flac, detail));
                };
                stream_info = Some(block);
            }
            (0, Some(_)) | (127, _) | (_, None) => {
                let detail = "its metadata does not begin with one stream information block";
                return Err(corrupt(Container::Flac, detail.to_owned()));
            }
            _ => {}
        }
        if let (Some(block), true) = (stream_info, kind & 0x80 != 0) {
            return Ok((block, &bytes[at..]));
        }
    }
}

/// Some taggers append an ID3v1 tag, 128 bytes.
fn without_id3v1(audio: &[u8]) -> &[u8] {
    match audio.split_last_chunk::<128>() {
        Some((before, tag)) if tag.starts_with(b"TAG") => before,
        _ => audio,
    }
}

fn truncated(detail: String) -> AudioError {
    AudioError::Truncated {
        container: Container::Flac,
        detail,
    }
}

fn corrupt(container: Container, detail: String) -> AudioError {
    AudioError::Corrupt { container, detail }
}

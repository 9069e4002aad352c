//! FLAC: our own walk over the metadata, symphonia for frames and samples, and a check that every byte was
//! used.
//!
//! Only STREAMINFO reaches symphonia: pictures, cue sheets and comments, whose parsers allocate what they are
//! asked to, are stepped over. A damaged frame is dropped by the frame reader without an error, so what was
//! dropped is found by adding up: bytes used, gaps between time stamps, the declared number of samples, the
//! MD5 sum.

use std::io::Cursor;

use symphonia::core::audio::GenericAudioBufferRef;
use symphonia::core::codecs::audio::well_known::CODEC_ID_FLAC;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::formats::{FormatOptions, FormatReader};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::packet::PacketRef;
use symphonia::core::units::{Duration, Timestamp};
use symphonia::default::codecs::FlacDecoder;
use symphonia::default::formats::FlacReader;

use super::codec::meaning;
use super::sink::Sink;
use super::{AudioError, Container};

/// Bytes of the body of a STREAMINFO block.
const STREAM_INFO_BYTES: usize = 34;

/// What STREAMINFO declares.
#[derive(Clone, Copy, Debug)]
struct StreamInfo {
    rate_hz: u32,
    channels: u16,
    /// Frames of the whole stream, when the encoder knew.
    frames: Option<u64>,
}

impl StreamInfo {
    fn read(block: &[u8; STREAM_INFO_BYTES]) -> Self {
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
fn decoder(container: Container, stream_info: &[u8; STREAM_INFO_BYTES]) -> Result<FlacDecoder, AudioError> {
    let mut parameters = AudioCodecParameters::new();
    parameters
        .for_codec(CODEC_ID_FLAC)
        .with_extra_data(Box::from(&stream_info[..]));
    FlacDecoder::try_new(&parameters, &AudioDecoderOptions::default().verify(true))
        .map_err(|_| corrupt(container, "its stream information is invalid".to_owned()))
}

/// Puts what a codec decoded into the sink.
fn push_decoded(
    sink: &mut Sink,
    decoded: &GenericAudioBufferRef<'_>,
    interleaved: &mut Vec<f32>,
) -> Result<(), AudioError> {
    if decoded.is_empty() {
        return Ok(());
    }
    let spec = decoded.spec();
    sink.start(
        spec.rate(),
        u16::try_from(spec.channels().count()).unwrap_or(u16::MAX),
    )?;
    decoded.copy_to_vec_interleaved(interleaved);
    sink.push_interleaved(interleaved)
}

/// Decodes a FLAC file, or several that stand one behind the other.
pub(super) fn decode(bytes: &[u8], sink: &mut Sink) -> Result<(), AudioError> {
    // The mark and the header of a STREAMINFO block, which may be the last block.
    let begins = |eight: &[u8]| {
        eight.starts_with(b"fLaC") && eight[4] & 0x7f == 0 && eight[5..] == [0, 0, STREAM_INFO_BYTES as u8]
    };
    let mut rest = bytes;
    let mut number = 0;
    loop {
        let next = rest.get(4..).and_then(|rest| rest.windows(8).position(begins));
        let (file, after) = rest.split_at(next.map_or(rest.len(), |next| next + 4));
        match decode_file(file, sink) {
            Err(error @ (AudioError::Corrupt { .. } | AudioError::Truncated { .. })) if number > 0 => {
                sink.repaired(0.0, format!("file {} in it: {error}", number + 1));
            }
            result => result?,
        }
        if after.is_empty() {
            return Ok(());
        }
        rest = after;
        number += 1;
    }
}

fn decode_file(bytes: &[u8], sink: &mut Sink) -> Result<(), AudioError> {
    let (block, audio) = metadata(bytes)?;
    let info = StreamInfo::read(block);
    sink.start(info.rate_hz, info.channels)?;
    if let Some(frames) = info.frames {
        sink.expect_frames(frames)?;
    }
    let audio = without_id3v1(audio);
    if audio.is_empty() {
        if let Some(frames) = info.frames {
            let detail = format!("it declares {frames} samples and ends before the first");
            sink.cut_short(sink.seconds(frames), detail);
        }
        return Ok(());
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
    let (mut used, mut frames, mut lost) = (0, 0_u64, 0);
    // The reader ends with an error when samples are missing; what is missing is found below all the same.
    while let Ok(Some(packet)) = reader.next_packet() {
        used += packet.data.len();
        let at = u64::try_from(packet.pts.get()).unwrap_or_default();
        if let Some(gap) = at.checked_sub(frames + lost).filter(|gap| *gap > 0) {
            // A gap that a damaged number makes is no longer than the sound can be.
            let gap = gap.min(info.frames.unwrap_or(gap).saturating_sub(frames + lost));
            lost += gap;
            let detail = format!("after sample {frames} its frames go on at {at}");
            sink.repaired(sink.seconds(gap), detail);
        }
        match decoder.decode(&packet) {
            Ok(decoded) => {
                frames += decoded.frames() as u64;
                push_decoded(sink, &decoded, &mut interleaved)?;
            }
            Err(error) => {
                let missing = packet.dur.get();
                lost += missing;
                let detail = format!("the frame at sample {at}: {}", meaning(&error));
                sink.repaired(sink.seconds(missing), detail);
            }
        }
    }

    // The reader takes a last frame for cut when anything follows it, and when only its check sum is cut; the
    // decoder, which looks at no check sum, knows where its samples end.
    let mut left_over = audio.len() - used.min(audio.len());
    if let Some(declared) = info.frames
        && frames + lost < declared
        && lost == 0
        && left_over > 0
    {
        let packet = PacketRef::new(0, Timestamp::ZERO, Duration::ZERO, &audio[used..]);
        if let Ok(decoded) = decoder.decode_ref(&packet)
            && decoded.frames() as u64 == declared - frames
        {
            frames = declared;
            left_over = 0;
            push_decoded(sink, &decoded, &mut interleaved)?;
            if is_decoded_without(3, &audio[used..], block) {
                sink.repaired(0.0, "something follows its last frame".to_owned());
            } else {
                sink.cut_short(0.0, "the check sum of its last frame is cut".to_owned());
            }
        }
    }
    let seen = frames + lost;
    match info.frames {
        Some(declared) if seen < declared => {
            let detail = format!("it declares {declared} samples and holds {seen}");
            sink.cut_short(sink.seconds(declared - seen), detail);
        }
        None if left_over > 0 && lost == 0 => {
            let detail = format!("its last {left_over} bytes are no whole frame");
            let seconds = sink.seconds(frames) * left_over as f64 / used.max(1) as f64;
            sink.cut_short(seconds, detail);
        }
        Some(declared) if frames > declared || (left_over > 0 && lost == 0) => {
            let detail =
                format!("it declares {declared} samples, holds {frames} and {left_over} further bytes");
            sink.repaired(0.0, detail);
        }
        _ if lost == 0 && decoder.finalize().verify_ok == Some(false) => {
            let detail = "its samples do not have the MD5 sum that it declares".to_owned();
            sink.repaired(0.0, detail);
        }
        _ => {}
    }
    Ok(())
}

/// Whether a frame can do without its last bytes. It ends in a check sum of two.
fn is_decoded_without(count: usize, frame: &[u8], stream_info: &[u8; STREAM_INFO_BYTES]) -> bool {
    let shorter = &frame[..frame.len().saturating_sub(count)];
    let packet = PacketRef::new(0, Timestamp::ZERO, Duration::ZERO, shorter);
    decoder(Container::Flac, stream_info).is_ok_and(|mut decoder| decoder.decode_ref(&packet).is_ok())
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

/// FLAC in Ogg: the first packet holds STREAMINFO, then come metadata blocks, then one frame per packet.
#[derive(Default)]
pub(super) struct FlacInOgg {
    started: Option<(FlacDecoder, StreamInfo)>,
    frames: u64,
    lost: bool,
    interleaved: Vec<f32>,
}

impl FlacInOgg {
    /// Takes the next packet.
    pub(super) fn take(&mut self, packet: &[u8], sink: &mut Sink) -> Result<(), AudioError> {
        let Some((decoder, _)) = &mut self.started else {
            // 0x7f "FLAC", version, number of header packets, "fLaC", header of the STREAMINFO block
            let block = packet
                .get(17..)
                .and_then(<[u8]>::first_chunk::<STREAM_INFO_BYTES>);
            let Some(block) = block.filter(|_| packet[9..13] == *b"fLaC") else {
                let detail = "its first packet holds no stream information".to_owned();
                return Err(corrupt(Container::OggFlac, detail));
            };
            let info = StreamInfo::read(block);
            sink.start(info.rate_hz, info.channels)?;
            if let Some(frames) = info.frames {
                sink.expect_frames(frames)?;
            }
            let decoder = decoder(Container::OggFlac, block)?;
            self.started = Some((decoder, info));
            return Ok(());
        };
        if packet.first() != Some(&0xff) {
            return Ok(()); // a metadata block
        }
        let packet = PacketRef::new(0, Timestamp::ZERO, Duration::ZERO, packet);
        match decoder.decode_ref(&packet) {
            Ok(decoded) => {
                self.frames += decoded.frames() as u64;
                push_decoded(sink, &decoded, &mut self.interleaved)
            }
            Err(error) => {
                self.lost = true;
                let detail = format!("the frame at sample {}: {}", self.frames, meaning(&error));
                sink.repaired(0.0, detail); // its length is noted at the end, by what is missing
                Ok(())
            }
        }
    }

    /// Says what is missing, once all packets are in.
    pub(super) fn finish(self, last_granule: i64, sink: &mut Sink) -> Result<(), AudioError> {
        let Some((mut decoder, info)) = self.started else {
            return Err(corrupt(Container::OggFlac, "it has no packets".to_owned()));
        };
        let held = self.frames;
        // Where the encoder did not know the length, the last position says what is missing before it.
        let position = u64::try_from(last_granule).unwrap_or_default();
        if info.frames.is_none() && position > held {
            let detail = format!("its last position is {position} and it holds {held} samples");
            sink.repaired(sink.seconds(position - held), detail);
        }
        match info.frames {
            Some(declared) if held < declared => {
                let detail = format!("it declares {declared} samples and holds {held}");
                let seconds = sink.seconds(declared - held);
                if self.lost {
                    sink.repaired(seconds, detail);
                } else {
                    sink.cut_short(seconds, detail);
                }
            }
            Some(declared) if held > declared => {
                sink.repaired(0.0, format!("it declares {declared} samples and holds {held}"));
            }
            _ if !self.lost && decoder.finalize().verify_ok == Some(false) => {
                let detail = "its samples do not have the MD5 sum that it declares";
                sink.repaired(0.0, detail.to_owned());
            }
            _ => {}
        }
        Ok(())
    }
}

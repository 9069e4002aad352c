//! MPEG audio: the walk of `mpeg` from frame to frame, symphonia for what is in them.
//!
//! The Xing or Info header says how many frames there should be, and, from LAME and ffmpeg, how many samples
//! at both ends are the encoder's own; those are taken off, as ffmpeg does: at the end only when no other
//! file was joined behind. A frame of layer III refers to bytes of the frames before it; where those are
//! missing it is silent.

use symphonia::core::codecs::audio::well_known::{CODEC_ID_MP1, CODEC_ID_MP2, CODEC_ID_MP3};
use symphonia::core::codecs::audio::{AudioCodecId, AudioCodecParameters};

use super::codec::Codec;
use super::mpeg::{Found, FrameHeader as _, Frames, Header, follows, is_in_step, tags_end};
use super::sink::Sink;
use super::{AudioError, Container};

/// Samples that a decoder itself is late, on top of what the encoder says.
const DECODER_DELAY: u64 = 529; // 528 of the filter bank, and 1

/// Whether a frame stands at the very beginning that is followed by another or by the end. When the content
/// type says MPEG, one frame is enough, even a cut one.
pub(super) fn recognise(bytes: &[u8], declared: bool) -> bool {
    let Some(header) = Header::read(bytes) else {
        return false;
    };
    declared
        || bytes
            .get(header.frame_bytes()..)
            .is_some_and(|after| follows(&header, after))
}

/// Whether frames follow something else at the beginning.
pub(super) fn recognise_behind(bytes: &[u8]) -> bool {
    is_in_step::<Header>(bytes)
}

/// Whether ID3 tags stand at the beginning.
pub(super) fn has_tags(bytes: &[u8]) -> bool {
    tags_end(bytes) > 0 || bytes.starts_with(b"ID3")
}

/// What the Xing or Info header says; absent fields are zero.
#[derive(Default)]
struct Info {
    /// Frames of the file, without this one.
    frames: Option<u64>,
    /// Whether the encoder is one that counts exactly.
    exact: bool,
    /// Samples of the encoder's own at the beginning and at the end.
    delay: u64,
    padding: u64,
}

impl Info {
    /// Reads the header from a frame that holds one instead of sound.
    fn read(header: &Header, frame: &[u8]) -> Option<Self> {
        let tag = frame.get(4 + header.side_info_bytes()..)?;
        if !tag.starts_with(b"Xing") && !tag.starts_with(b"Info") {
            let vbri = frame.get(36..)?;
            let frames = vbri.get(14..18).filter(|_| vbri.starts_with(b"VBRI"))?;
            let frames = u32::from_be_bytes(frames.try_into().ok()?);
            return Some(Self {
                frames: Some(u64::from(frames)),
                ..Self::default()
            });
        }
        let flags = *tag.get(7)?;
        let mut at = 8;
        let mut info = Self::default();
        if flags & 1 != 0 {
            let frames = u32::from_be_bytes(tag.get(at..at + 4)?.try_into().ok()?);
            info.frames = Some(u64::from(frames));
            at += 4;
        }
        for (flag, bytes) in [(2, 4), (4, 100), (8, 4)] {
            at += if flags & flag != 0 { bytes } else { 0 }; // size, table of contents, quality
        }
        if let Some(encoder) = tag.get(at..at + 24)
            && (encoder.starts_with(b"LAME") || encoder.starts_with(b"Lav"))
        {
            info.exact = true;
            info.delay = u64::from(encoder[21]) << 4 | u64::from(encoder[22] >> 4);
            info.padding = u64::from(encoder[22] & 0xf) << 8 | u64::from(encoder[23]);
        }
        Some(info)
    }
}

/// What a walk over all frames says before anything is decoded.
#[derive(Default)]
struct Survey {
    /// Frames of sound.
    frames: u64,
    /// Another file's header stands among them, so that files were joined.
    joined: bool,
    first: Option<Header>,
    info: Option<Info>,
}

impl Survey {
    fn of(bytes: &[u8]) -> Self {
        let mut survey = Self::default();
        for found in Frames::<Header>::of(bytes) {
            let Found::Frame(header, frame) = found else {
                continue;
            };
            let info = Info::read(&header, frame);
            survey.joined |= survey.first.is_some() && info.is_some();
            if survey.first.is_none() {
                survey.first = Some(header);
                survey.info = info;
                if survey.info.is_some() {
                    continue;
                }
            } else if info.is_some() {
                continue;
            }
            survey.frames += 1;
        }
        survey
    }
}

/// Decodes MPEG audio.
pub(super) fn decode(bytes: &[u8], sink: &mut Sink) -> Result<(), AudioError> {
    let survey = Survey::of(bytes);
    let Some(first) = survey.first else {
        return nothing(bytes, sink);
    };
    sink.start(first.rate_hz, first.channels)?;
    let info = survey.info.unwrap_or_default();
    let whole = survey.frames * first.frames();
    let (skipped, end) = match (info.exact, survey.joined) {
        (true, false) => (
            info.delay + DECODER_DELAY,
            whole - info.padding.saturating_sub(DECODER_DELAY).min(whole),
        ),
        (true, true) => (info.delay + DECODER_DELAY, u64::MAX),
        (false, _) => (0, u64::MAX),
    };
    sink.expect_frames(end.min(whole).saturating_sub(skipped))?;

    let mut stream = Stream::new(skipped, end);
    let (mut cut, mut junk_seconds) = (None, 0.0);
    for found in Frames::<Header>::of(bytes) {
        match found {
            Found::Frame(header, frame) if Info::read(&header, frame).is_some() => stream.reservoir = 0,
            Found::Frame(header, frame) => stream.take(&header, frame, sink)?,
            Found::Junk(len, seconds) => {
                stream.reservoir = 0;
                junk_seconds += seconds;
                sink.repaired(seconds, format!("{len} bytes between its frames are no frame"));
            }
            Found::Cut(header, left) => cut = Some((header, left)),
        }
    }
    let slack = if info.exact { 0 } else { 1 }; // some encoders count the frame that holds the header
    match (info.frames, cut) {
        (Some(declared), _) if survey.frames + slack < declared => {
            let frames = survey.frames;
            let seconds = (declared - frames) as f64 * first.seconds();
            let detail = format!("its header declares {declared} frames and {frames} are there");
            if junk_seconds > 0.0 {
                sink.repaired(seconds - junk_seconds, detail);
            } else {
                sink.cut_short(seconds, detail);
            }
        }
        (_, Some((header, left))) => {
            let len = header.frame_bytes();
            sink.cut_short(
                header.seconds(),
                format!("its last frame has {len} bytes and {left} follow"),
            );
        }
        _ => {}
    }
    Ok(())
}

/// Why there is no frame.
fn nothing(bytes: &[u8], sink: &mut Sink) -> Result<(), AudioError> {
    let container = sink.container();
    let (tags, len) = (tags_end(bytes), bytes.len());
    let behind_tags = bytes.get(tags..).unwrap_or_default();
    if tags > len {
        let detail = format!("its ID3 tag declares {tags} bytes and there are {len}");
        return Err(AudioError::Truncated { container, detail });
    }
    if behind_tags.iter().all(|byte| *byte == 0) {
        return Err(AudioError::ZeroSamples { container });
    }
    if Header::read(behind_tags).is_some() || behind_tags.len() < 4 {
        let detail = "it ends inside its first frame".to_owned();
        return Err(AudioError::Truncated { container, detail });
    }
    let detail = "no frame begins behind its tags, or one of free bit rate".to_owned();
    Err(AudioError::Corrupt { container, detail })
}

/// The state between two frames.
struct Stream {
    codec: Option<(Codec, Header)>,
    /// Bytes of the frames before that the next one may refer to.
    reservoir: usize,
    /// Position of the next sample, counted from the beginning of the file.
    at: u64,
    skipped: u64,
    end: u64,
    samples: Vec<f32>,
}

impl Stream {
    fn new(skipped: u64, end: u64) -> Self {
        Self {
            codec: None,
            reservoir: 0,
            at: 0,
            skipped,
            end,
            samples: Vec::new(),
        }
    }

    fn take(&mut self, header: &Header, frame: &[u8], sink: &mut Sink) -> Result<(), AudioError> {
        let at = self.at;
        let missing = self.borrow(header, frame);
        if self
            .codec
            .as_ref()
            .is_none_or(|(_, before)| !header.continues(before))
        {
            self.codec = Some((open(header)?, *header));
        }
        let Some((codec, _)) = &mut self.codec else {
            return Ok(());
        };
        sink.start(header.rate_hz, header.channels)?;
        let wanted = (header.frames() * u64::from(header.channels)) as usize;
        let decoded = codec.decode(frame, header.frames(), &mut self.samples);
        let problem = match decoded {
            _ if missing > 0 => Some(format!("it refers to {missing} bytes before it that are gone")),
            Err(problem) => Some(problem),
            Ok(_) if self.samples.len() != wanted => Some("it holds another number of samples".to_owned()),
            Ok(_) => None,
        };
        if let Some(problem) = problem {
            self.samples.clear();
            self.samples.resize(wanted, 0.0);
            sink.silenced(
                header.seconds(),
                format!("the frame at sample {at} is silent: {problem}"),
            );
        }
        self.at += header.frames();
        let from = self.skipped.saturating_sub(at).min(header.frames());
        let to = self.end.saturating_sub(at).min(header.frames());
        if from < to {
            let channels = u64::from(header.channels);
            sink.push_interleaved(&self.samples[(from * channels) as usize..(to * channels) as usize])?;
        }
        Ok(())
    }

    /// Takes note of the bytes that a frame of layer III leaves for the next ones; says how many it lacks
    /// itself.
    fn borrow(&mut self, header: &Header, frame: &[u8]) -> usize {
        if header.layer != 3 {
            return 0;
        }
        let side_info = if header.has_crc { 6 } else { 4 };
        let main_data = side_info + header.side_info_bytes();
        let (Some(&first), Some(&second)) = (frame.get(side_info), frame.get(side_info + 1)) else {
            return 0; // too short for its own side information: the decoder says so
        };
        let (first, second) = (usize::from(first), usize::from(second));
        let (borrowed, reservoir_max) = if header.mpeg_1 {
            (first << 1 | second >> 7, 511)
        } else {
            (first, 255)
        };
        let missing = borrowed.saturating_sub(self.reservoir);
        self.reservoir = (self.reservoir + frame.len().saturating_sub(main_data)).min(reservoir_max);
        missing
    }
}

fn open(header: &Header) -> Result<Codec, AudioError> {
    let codec: AudioCodecId = match header.layer {
        1 => CODEC_ID_MP1,
        2 => CODEC_ID_MP2,
        _ => CODEC_ID_MP3,
    };
    let mut parameters = AudioCodecParameters::new();
    parameters.for_codec(codec);
    Codec::open(&parameters).map_err(|why| AudioError::UnsupportedCodec {
        found: format!("MPEG audio of layer {}: {why}", header.layer),
    })
}

/// Decodes MPEG audio that stands in another container, which says no more about it than that.
pub(super) fn decode_inside(bytes: &[u8], sink: &mut Sink) -> Result<(), AudioError> {
    match Survey::of(bytes).first {
        Some(_) => decode(bytes, sink),
        None => Err(AudioError::Corrupt {
            container: Container::Wav,
            detail: "it declares MPEG audio and holds no frame of it".to_owned(),
        }),
    }
}

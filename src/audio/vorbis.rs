//! Vorbis in Ogg to samples: symphonia's decoder, with the granule positions applied to the sample.

use symphonia::core::codecs::audio::AudioCodecParameters;
use symphonia::core::codecs::audio::well_known::CODEC_ID_VORBIS;

use super::codec::Codec;
use super::ogg_page::PacketEnd;
use super::sink::{Sink, check_source};
use super::vorbis_headers::{CHANNELS_MAX, CODE_BOOK_VALUES_MAX, code_book_values};
use super::{AudioError, Container};

/// Takes the packets of one Vorbis stream in Ogg.
pub(super) struct VorbisStream {
    last_granule: i64,
    /// The identification header, until the set-up header has come.
    identification: Option<Vec<u8>>,
    comment_seen: bool,
    decoding: Option<Decoding>,
}

/// The state once all three headers are in.
struct Decoding {
    codec: Codec,
    rate_hz: u32,
    channels: u16,
    interleaved: Vec<f32>,
    /// Decoded frames of the first page that ends a packet, held until its granule position says where they
    /// start.
    held: Vec<f32>,
    /// Frames still to come by the last granule position, once that is known.
    wanted: Option<u64>,
    /// Frames came beyond that, so that it cannot be believed.
    beyond: bool,
}

impl VorbisStream {
    /// A stream whose last granule position is known from a walk over its pages.
    pub(super) fn new(last_granule: i64) -> Self {
        Self {
            last_granule,
            identification: None,
            comment_seen: false,
            decoding: None,
        }
    }

    /// Takes the next packet.
    pub(super) fn take(&mut self, packet: &[u8], end: PacketEnd, sink: &mut Sink) -> Result<(), AudioError> {
        if let Some(decoding) = &mut self.decoding {
            return decoding.take(packet, end, self.last_granule, sink);
        }
        match (packet.first(), &self.identification) {
            (Some(1), None) => self.identification = Some(packet.to_vec()),
            (Some(3), Some(_)) if !self.comment_seen => self.comment_seen = true,
            (Some(5), Some(identification)) => {
                self.decoding = Some(Decoding::new(identification, packet, sink)?);
            }
            _ => return corrupt("its three headers do not come in order".to_owned()),
        }
        Ok(())
    }

    /// Says what is missing, once all packets are in.
    pub(super) fn finish(self, sink: &mut Sink) -> Result<(), AudioError> {
        let Some(mut decoding) = self.decoding else {
            let detail = "it ends before its set-up header".to_owned();
            return Err(AudioError::Truncated {
                container: Container::OggVorbis,
                detail,
            });
        };
        if !decoding.held.is_empty() {
            let held = std::mem::take(&mut decoding.held);
            decoding.start(sink)?;
            sink.push_interleaved(&held)?; // no page said where it ends
        }
        if let (Some(missing), false) = (decoding.wanted.filter(|missing| *missing > 0), decoding.beyond) {
            let seconds = missing as f64 / f64::from(decoding.rate_hz);
            sink.repaired(
                seconds,
                format!("{seconds:.3} s of it are missing between its packets"),
            );
        }
        Ok(())
    }
}

impl Decoding {
    fn new(identification: &[u8], set_up: &[u8], sink: &mut Sink) -> Result<Self, AudioError> {
        // 1 "vorbis", version, channels, rate
        let (Some(channels), Some(rate)) = (
            identification.get(11),
            identification.get(12..).and_then(<[u8]>::first_chunk::<4>),
        ) else {
            return corrupt("its identification header is too short".to_owned());
        };
        let (rate_hz, channels) = (u32::from_le_bytes(*rate), *channels);
        check_source(rate_hz, u16::from(channels), sink.limits())?;
        if channels > CHANNELS_MAX {
            let found = format!("Vorbis of {channels} channels in Ogg");
            return Err(AudioError::UnsupportedCodec { found });
        }
        let values = code_book_values(set_up);
        if values > CODE_BOOK_VALUES_MAX {
            return Err(AudioError::TooManySamples {
                samples: values,
                samples_max: CODE_BOOK_VALUES_MAX,
            });
        }

        let mut parameters = AudioCodecParameters::new();
        parameters
            .for_codec(CODEC_ID_VORBIS)
            .with_extra_data([identification, set_up].concat().into_boxed_slice());
        match Codec::open(&parameters) {
            Ok(codec) => Ok(Self {
                codec,
                rate_hz,
                channels: u16::from(channels),
                interleaved: Vec::new(),
                held: Vec::new(),
                wanted: None,
                beyond: false,
            }),
            Err(error) => corrupt(format!("its headers: {error}")),
        }
    }

    fn start(&self, sink: &mut Sink) -> Result<(), AudioError> {
        sink.start(self.rate_hz, self.channels)
    }

    fn take(
        &mut self,
        packet: &[u8],
        end: PacketEnd,
        last_granule: i64,
        sink: &mut Sink,
    ) -> Result<(), AudioError> {
        self.start(sink)?;
        if !packet.is_empty() {
            self.decode(packet, end, sink)?;
        }
        let (None, Some(granule)) = (self.wanted, end.granule) else {
            return Ok(());
        };

        // The first position: the stream starts that many samples before it, except that on a last page it
        // also cuts the end off, so that the start is taken to be zero.
        let channels = u64::from(self.channels);
        let held_frames = self.held.len() as u64 / channels;
        let start = if end.last_page {
            0
        } else {
            granule.saturating_sub_unsigned(held_frames)
        };
        let skipped = start.min(0).unsigned_abs().min(held_frames);
        self.wanted = Some(last_granule.saturating_sub(start.max(0)).max(0).unsigned_abs());
        let held = std::mem::take(&mut self.held);
        self.push(&held[(skipped * channels) as usize..], end, sink)
    }

    /// Decodes a packet of sound.
    fn decode(&mut self, packet: &[u8], end: PacketEnd, sink: &mut Sink) -> Result<(), AudioError> {
        if let Err(error) = self.codec.decode(packet, 0, &mut self.interleaved) {
            // How long it was is reported at the end, by what is missing.
            sink.repaired(0.0, format!("the packet at sample {}: {error}", sink.frames()));
            return Ok(());
        }
        if self.wanted.is_some() {
            let interleaved = std::mem::take(&mut self.interleaved);
            self.push(&interleaved, end, sink)?;
            self.interleaved = interleaved;
            return Ok(());
        }
        let frames = self.held.len() / usize::from(self.channels);
        sink.expect_frames(frames as u64)?;
        self.held.extend_from_slice(&self.interleaved);
        Ok(())
    }

    /// Passes frames on; on a page that is marked as the last, as many as are still wanted.
    fn push(&mut self, interleaved: &[f32], end: PacketEnd, sink: &mut Sink) -> Result<(), AudioError> {
        let channels = usize::from(self.channels);
        let frames = (interleaved.len() / channels) as u64;
        let wanted = self.wanted.unwrap_or_default();
        self.beyond |= frames > wanted && !end.last_page;
        let taken = if end.last_page && !self.beyond {
            frames.min(wanted)
        } else {
            frames
        };
        self.wanted = Some(wanted.saturating_sub(frames));
        sink.push_interleaved(&interleaved[..taken as usize * channels])
    }
}

fn corrupt<T>(detail: String) -> Result<T, AudioError> {
    Err(AudioError::Corrupt {
        container: Container::OggVorbis,
        detail,
    })
}

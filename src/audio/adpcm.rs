//! IMA and Microsoft ADPCM, as they stand in WAV files: blocks that begin anew, each decoded by symphonia.

use symphonia::core::audio::Channels;
use symphonia::core::codecs::audio::AudioCodecParameters;
use symphonia::core::codecs::audio::well_known::{CODEC_ID_ADPCM_IMA_WAV, CODEC_ID_ADPCM_MS};

use super::AudioError;
use super::codec::Codec;
use super::sink::Sink;

/// How the blocks are laid out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Adpcm {
    /// Microsoft's, as opposed to IMA's.
    microsoft: bool,
    block_bytes: usize,
    block_frames: u64,
}

impl Adpcm {
    /// The layout of blocks of so many bytes; `None` when no frame fits in.
    pub(super) fn new(microsoft: bool, block_bytes: usize, channels: usize) -> Option<Self> {
        let block_frames = block_frames(microsoft, block_bytes, channels);
        (block_frames > 0).then_some(Self {
            microsoft,
            block_bytes,
            block_frames,
        })
    }

    /// Bytes of a second.
    pub(super) fn second_bytes(&self, rate_hz: u32) -> f64 {
        self.block_bytes as f64 * f64::from(rate_hz) / self.block_frames as f64
    }

    /// Decodes blocks for a sink that knows rate and channels; the last may be a part of one.
    pub(super) fn decode(&self, data: &[u8], sink: &mut Sink) -> Result<(), AudioError> {
        let Self {
            microsoft,
            block_bytes,
            block_frames: whole_frames,
        } = *self;
        sink.expect_frames((data.len() / block_bytes) as u64 * whole_frames)?;
        let mut parameters = AudioCodecParameters::new();
        parameters
            .for_codec(if microsoft {
                CODEC_ID_ADPCM_MS
            } else {
                CODEC_ID_ADPCM_IMA_WAV
            })
            .with_sample_rate(sink.rate_hz())
            .with_channels(Channels::Discrete(sink.channels()))
            .with_frames_per_block(whole_frames)
            .with_max_frames_per_packet(whole_frames);
        let mut codec = Codec::open(&parameters).map_err(|why| AudioError::UnsupportedCodec {
            found: format!("ADPCM in a WAV file: {why}"),
        })?;
        let channels = usize::from(sink.channels());
        let mut interleaved = Vec::new();
        let mut whole = Vec::new();
        for (number, block) in data.chunks(block_bytes).enumerate() {
            let frames = block_frames(microsoft, block.len(), channels).min(whole_frames);
            whole.clear();
            whole.extend_from_slice(block);
            whole.resize(block_bytes, 0);
            match codec.decode(&whole, whole_frames, &mut interleaved) {
                Ok(_) => {
                    let samples = (frames as usize * channels).min(interleaved.len());
                    sink.push_interleaved(&interleaved[..samples])?;
                }
                Err(problem) => sink.repaired(sink.seconds(frames), format!("block {number}: {problem}")),
            }
        }
        Ok(())
    }
}

/// Frames in an ADPCM block of so many bytes.
fn block_frames(microsoft: bool, bytes: usize, channels: usize) -> u64 {
    let (head, first) = if microsoft { (7, 2) } else { (4, 1) };
    let Some(codes) = bytes.checked_sub(head * channels) else {
        return 0;
    };
    let frames = if microsoft {
        codes * 2 / channels
    } else {
        codes / (4 * channels) * 8 // words of eight codes, channel by channel
    };
    (frames + first) as u64
}

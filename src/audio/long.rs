//! Recordings that are longer than what is kept of them: measured first, then decoded again piece by piece.

use bytes::Bytes;

use super::channels::Mix;
use super::sink::{Keep, NOBODY};
use super::{AudioError, AudioLimits, Container, Damage, SAMPLE_RATE_HZ, Waveform, decode_as, decode_kept};

/// Pieces that are decoded ahead.
const PIECES_MAX: usize = 8;

/// A sound, with its samples or too long for that.
#[derive(Debug)]
pub enum Sound {
    /// All of it.
    Whole(Waveform),
    /// What is known of it; its samples are read with [`LongSound::read`].
    Long(LongSound),
}

/// A long recording that decodes: everything that could be wrong with it is known.
#[derive(Clone, Debug)]
pub struct LongSound {
    bytes: Bytes,
    limits: AudioLimits,
    container: Container,
    mix: Mix,
    gain: f32,
    samples: u64,
    /// What of the input could not be decoded.
    pub damage: Damage,
    /// Whether the declared content type named another container than the bytes are.
    pub content_type_mismatch: bool,
}

/// As [`decode`](super::decode), but of a sound with more than `kept_samples_max` samples at 16 kHz none is
/// kept.
///
/// # Errors
/// As [`decode`](super::decode).
pub fn decode_or_measure(
    bytes: &Bytes,
    content_type: Option<&str>,
    limits: &AudioLimits,
    kept_samples_max: usize,
) -> Result<Sound, AudioError> {
    let found = decode_kept(bytes, content_type, limits, kept_samples_max)?;
    let decoded = found.decoded;
    if decoded.samples == decoded.waveform.samples.len() as u64 {
        return Ok(Sound::Whole(decoded.waveform));
    }
    Ok(Sound::Long(LongSound {
        bytes: bytes.slice_ref(found.bytes),
        limits: *limits,
        container: found.container,
        mix: found.mix,
        gain: decoded.gain,
        samples: decoded.samples,
        damage: decoded.waveform.damage,
        content_type_mismatch: decoded.waveform.content_type_mismatch,
    }))
}

impl LongSound {
    /// Length in seconds.
    pub fn seconds(&self) -> f64 {
        self.samples as f64 / f64::from(SAMPLE_RATE_HZ)
    }

    /// Hands on its samples at 16 kHz, piece by piece, until `take` returns `false`: the same as
    /// [`decode`](super::decode) gives, in the memory of a few pieces. Decodes on a thread of its own.
    ///
    /// # Errors
    /// [`AudioError`], also where `take` has enough before the end.
    pub fn read(&self, mut take: impl FnMut(&[f32]) -> bool) -> Result<(), AudioError> {
        let (taker, pieces) = flume::bounded::<Vec<f32>>(PIECES_MAX);
        let decode = move || {
            let keep = Keep::HandOn(taker);
            decode_as(self.container, &self.bytes, &self.limits, self.mix, keep).map(|_| ())
        };
        std::thread::scope(|scope| {
            let decoding = scope.spawn(decode);
            let mut is_enough = false;
            for mut piece in &pieces {
                if self.gain != 1.0 {
                    piece.iter_mut().for_each(|sample| *sample *= self.gain);
                }
                if !take(&piece) {
                    is_enough = true;
                    break;
                }
            }
            drop(pieces);
            let read = decoding.join().unwrap_or_else(|_| {
                Err(AudioError::Corrupt {
                    container: self.container,
                    detail: "the decoder gave up in a way that it should not".to_owned(),
                })
            });
            match is_enough {
                true => Err(AudioError::Corrupt {
                    container: self.container,
                    detail: NOBODY.to_owned(),
                }),
                false => read,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::decode;

    #[test]
    fn a_long_sound_is_measured_and_read_in_pieces_that_are_the_whole() {
        let limits = AudioLimits::default();
        for file in [
            "audio/tone-44100-2.flac",
            "audio/tone-44100-2-lame.mp3",
            "audio/tone-44100-2-oggenc.ogg",
            "audio/tone-96000-1-s16.wav",
            "audio/tone-16000-1-opus.ogg",
            "audio/reported/mono-then-stereo.mp3",
            "speech/librivox-0880.wav",
        ] {
            let bytes = Bytes::from(std::fs::read(crate::testing::fixture(file)).unwrap());
            let whole = decode(&bytes, None, &limits).unwrap();

            let found = decode_or_measure(&bytes, None, &limits, whole.samples.len() - 1).unwrap();

            let Sound::Long(long) = found else {
                panic!("{file}: one sample too many")
            };
            assert_eq!(long.seconds(), whole.seconds(), "{file}");
            assert_eq!(long.damage, whole.damage, "{file}");
            let mut samples = Vec::new();
            long.read(|piece| {
                samples.extend_from_slice(piece);
                true
            })
            .unwrap();
            assert_eq!(samples, whole.samples, "{file}");
            let (mut pieces, error) = (0, long.read(|_| false).unwrap_err());
            let _ = long.read(|_| {
                pieces += 1;
                pieces < 2
            });
            assert!(
                pieces <= 2 && error.to_string().contains("nobody"),
                "{file}: {error}"
            );
            let kept = decode_or_measure(&bytes, None, &limits, whole.samples.len()).unwrap();
            assert!(matches!(kept, Sound::Whole(same) if same == whole), "{file}");
        }
    }
}

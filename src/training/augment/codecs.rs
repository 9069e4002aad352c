//! Codecs of telephone calls: coded and decoded again, as at the far end of a line.

use audio_codec::g722::{G722Decoder, G722Encoder};
use audio_codec::{Decoder as _, Encoder as _};
use oxideav_gsm::{DecoderState as GsmDecoder, EncoderState as GsmEncoder};

use crate::audio::resample;

/// Samples of a frame of GSM full rate: 20 ms at 8 kHz.
const GSM_FRAME: usize = 160;
/// The largest value of both codecs' samples, which are the upper 14 or 13 of 16 bits (ITU-T G.722, 1.4.1;
/// GSM 06.10, 1.3).
const FULL_SCALE: f32 = 32_768.0;
/// Samples by which G.722's two filter banks delay the sound (ITU-T G.722, 3.1 and 4.4).
const G722_DELAY: usize = 22;

/// G.722 at 64 kbit/s, the codec of wide-band calls. The clip keeps its length.
pub(super) fn g722(samples: &[f32]) -> Vec<f32> {
    let padding = G722_DELAY + samples.len() % 2;
    let silence = std::iter::repeat_n(0, padding);
    let coded: Vec<i16> = samples
        .iter()
        .map(|sample| integer(*sample))
        .chain(silence)
        .collect();
    let heard = G722Decoder::new().decode(&G722Encoder::new().encode(&coded));
    let heard = heard
        .into_iter()
        .skip(G722_DELAY)
        .map(|sample| f32::from(sample) / FULL_SCALE);
    heard.take(samples.len()).collect()
}

/// GSM full rate (06.10) at 13 kbit/s, the codec of early mobile telephones. The clip keeps its length.
pub(super) fn gsm(samples: &[f32]) -> Vec<f32> {
    let (mut encoder, mut decoder) = (GsmEncoder::new(), GsmDecoder::new());
    let bounded: Vec<f32> = samples.iter().map(|sample| sample.clamp(-1.0, 1.0)).collect();
    let narrow = resample(&bounded, 32_000); // half of the samples: 8 kHz
    let mut heard = Vec::with_capacity(narrow.len() + GSM_FRAME);
    for frame in narrow.chunks(GSM_FRAME) {
        let mut coded = [0; GSM_FRAME];
        for (coded, sample) in coded.iter_mut().zip(frame) {
            *coded = integer(*sample);
        }
        let decoded = decoder.decode_frame(&encoder.encode_frame(&coded));
        heard.extend(decoded.map(|sample| f32::from(sample) / FULL_SCALE));
    }
    heard.truncate(narrow.len());
    let mut wide = resample(&heard, 8_000);
    wide.resize(samples.len(), 0.0);
    wide
}

/// A sample as an integer, cut off where it is louder than full scale.
#[expect(clippy::cast_possible_truncation, reason = "within the range of i16")]
fn integer(sample: f32) -> i16 {
    (sample * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1.0) as i16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::augment::power;

    /// A voiced sound: harmonics of 120 Hz, weaker towards the top, in bursts.
    fn voiced(level: f32) -> Vec<f32> {
        (0..16_000)
            .map(|at| {
                let t = at as f32 / 16_000.0;
                let tone: f32 = (1..30u8)
                    .map(|n| (std::f32::consts::TAU * 120.0 * f32::from(n) * t).sin() / f32::from(n))
                    .sum();
                level * tone * (0.6 + 0.4 * (std::f32::consts::TAU * 3.0 * t).sin())
            })
            .collect()
    }

    /// Signal-to-noise ratio, decibels, behind the first 0.1 s.
    fn ratio(clean: &[f32], heard: &[f32]) -> f64 {
        let noise: Vec<f32> = heard[1600..]
            .iter()
            .zip(&clean[1600..])
            .map(|(h, c)| h - c)
            .collect();
        10.0 * (power(&clean[1600..]) / power(&noise)).log10()
    }

    #[test]
    fn a_codec_keeps_length_time_and_level_and_adds_its_own_noise() {
        for level in [0.3, 0.03] {
            let clean = voiced(level);

            let (wide, narrow) = (g722(&clean), gsm(&clean));

            assert_eq!((wide.len(), narrow.len()), (clean.len(), clean.len()));
            let (wide, narrow) = (ratio(&clean, &wide), ratio(&clean, &narrow));
            assert!((15.0..30.0).contains(&wide), "G.722 at {level}: {wide}");
            assert!((5.0..20.0).contains(&narrow), "GSM at {level}: {narrow}");
        }
    }

    #[test]
    fn clips_of_any_length_and_loudness_pass() {
        for length in [1, 2, 159, 160, 161, 321, 4001] {
            for level in [0.0, 3.0, -1e30] {
                let clip = vec![level; length];

                for heard in [g722(&clip), gsm(&clip)] {
                    assert_eq!(heard.len(), length);
                    assert!(heard.iter().all(|sample| sample.abs() <= 2.0), "{length} {level}");
                }
            }
        }
    }
}

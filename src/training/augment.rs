//! Cheap random changes to training audio: gain, speed, room, telephone, noise; and to its features: spans
//! set to zero. Seeded per clip and epoch.

mod channel;
mod codecs;
mod noises;

pub use noises::{NOISE_SECONDS_MAX, Noises};

use tch::{Device, Kind, TchError, Tensor};

use self::channel::{Law, compand, reverberate, telephone_band, wide_band};
use crate::training::config::{AugmentConfig, TelephoneCodec};
use crate::util::random::SplitMix;

/// Shortest reverberation time, seconds.
const ROOM_SECONDS_MIN: f64 = 0.1;
/// Lowest and highest ratio of the direct sound to the reverberation, decibels.
const DIRECT_DB_MIN: f64 = 0.0;
const DIRECT_DB_MAX: f64 = 15.0;
/// Share of the noises that are recordings, where there are recordings.
const RECORDED_SHARE: f64 = 0.75;

/// Applies each change with its probability. `samples_max` is the longest clip that the encoder takes; a
/// slow-down that would exceed it is not done.
pub fn augment(
    samples: Vec<f32>,
    config: &AugmentConfig,
    noises: &Noises,
    samples_max: Option<usize>,
    random: &mut SplitMix,
) -> Vec<f32> {
    // Every draw is made whatever is applied, so that one setting does not move the others.
    let (speed, speed_by) = (
        random.chance(config.speed),
        random.between(-1.0, 1.0) * config.speed_change_max,
    );
    let telephone = random.chance(config.telephone);
    let (noise, noise_db) = (
        random.chance(config.noise),
        random.between(config.noise_db_min, config.noise_db_max),
    );
    let pink = random.chance(0.5);
    let (gain, gain_db) = (
        random.chance(config.gain),
        random.between(-1.0, 1.0) * config.gain_db_max,
    );
    let recorded = match noises.is_empty() {
        true => None,
        false => {
            let sound = &noises.sounds()[random.below(noises.sounds().len())];
            let begin = random.below(sound.len());
            random.chance(RECORDED_SHARE).then_some((sound, begin))
        }
    };
    let (room, room_seconds, direct_db) = (
        random.chance(config.reverberation),
        random.between(
            ROOM_SECONDS_MIN,
            config.reverberation_seconds_max.max(ROOM_SECONDS_MIN),
        ),
        random.between(DIRECT_DB_MIN, DIRECT_DB_MAX),
    );
    let law = match random.chance(0.5) {
        true => Law::Mu,
        false => Law::A,
    };
    let codec = config
        .telephone_codecs
        .get(random.below(config.telephone_codecs.len()));

    let mut samples = samples;
    if speed {
        let changed = change_speed(&samples, 1.0 + speed_by);
        if samples_max.is_none_or(|max| changed.len() <= max) {
            samples = changed;
        }
    }
    if room {
        reverberate(&mut samples, room_seconds, direct_db, random);
    }
    if telephone {
        match codec {
            Some(TelephoneCodec::None) | None => telephone_band(&mut samples),
            Some(TelephoneCodec::G711) => {
                telephone_band(&mut samples);
                compand(&mut samples, law);
            }
            Some(TelephoneCodec::G722) => {
                wide_band(&mut samples);
                samples = codecs::g722(&samples);
            }
            Some(TelephoneCodec::Gsm) => {
                telephone_band(&mut samples);
                samples = codecs::gsm(&samples);
            }
        }
    }
    if noise {
        match recorded {
            Some((sound, begin)) => mix_in(&mut samples, sound, begin, noise_db),
            None => add_noise(&mut samples, noise_db, pink, random),
        }
    }
    if gain {
        #[expect(clippy::cast_possible_truncation, reason = "a gain needs no more than f32")]
        let factor = 10f64.powf(gain_db / 20.0) as f32;
        for sample in &mut samples {
            *sample = (*sample * factor).clamp(-1.0, 1.0);
        }
    }
    samples
}

/// Factors `[B, T, D]` f32 of 0 and 1 that hide spans of time and of width, drawn for each row; none when
/// nothing is to be hidden.
///
/// # Errors
/// [`tch::TchError`] when libtorch fails.
pub fn feature_mask(
    lengths: &[i64],
    frames: i64,
    width: i64,
    config: &AugmentConfig,
    random: &mut SplitMix,
) -> Result<Option<Tensor>, TchError> {
    if config.time_masks + config.feature_masks == 0 {
        return Ok(None);
    }
    let rows = i64::try_from(lengths.len()).unwrap_or(i64::MAX);
    let mask = Tensor::f_ones([rows, frames, width], (Kind::Float, Device::Cpu))?;
    let mut below =
        |count: i64| i64::try_from(random.below(usize::try_from(count).unwrap_or(0))).unwrap_or(0);
    let mut span = |whole: i64, longest: i64| {
        let length = below(longest.min(whole) + 1);
        (below(whole - length + 1), length)
    };
    for (row, valid) in lengths.iter().enumerate() {
        let row = mask.f_get(i64::try_from(row).unwrap_or(i64::MAX))?; // [T, D]
        for _ in 0..config.time_masks {
            let (begin, length) = span(*valid, config.time_mask_frames_max.min(valid / 10));
            let _ = row.f_narrow(0, begin, length)?.f_zero_()?;
        }
        for _ in 0..config.feature_masks {
            let (begin, length) = span(width, config.feature_mask_width_max);
            let _ = row.f_narrow(1, begin, length)?.f_zero_()?;
        }
    }
    Ok(Some(mask))
}

/// Plays faster (`factor` above 1) or slower by cubic interpolation; pitch moves along.
pub fn change_speed(samples: &[f32], factor: f64) -> Vec<f32> {
    if samples.is_empty() || factor <= 0.0 {
        return samples.to_vec();
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a length"
    )]
    let length = ((samples.len() as f64 / factor).round() as usize).max(1);
    let last = samples.len() - 1;
    (0..length)
        .map(|at| {
            #[expect(clippy::cast_precision_loss, reason = "a position")]
            let position = at as f64 * factor;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a position"
            )]
            let whole = (position as usize).min(last);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_precision_loss,
                reason = "a fraction"
            )]
            let t = (position - whole as f64).min(1.0) as f32;
            let before = samples[whole.saturating_sub(1)];
            let (here, next, after) = (
                samples[whole],
                samples[(whole + 1).min(last)],
                samples[(whole + 2).min(last)],
            );
            // Catmull and Rom.
            let a = -0.5 * before + 1.5 * here - 1.5 * next + 0.5 * after;
            let b = before - 2.5 * here + 2.0 * next - 0.5 * after;
            let c = -0.5 * before + 0.5 * next;
            ((a * t + b) * t + c) * t + here
        })
        .collect()
}

/// Adds a recording from sample `begin` on, again and again where it is shorter, at a ratio of the powers of
/// both.
fn mix_in(samples: &mut [f32], sound: &[f32], begin: usize, snr_db: f64) {
    let piece: Vec<f32> = sound
        .iter()
        .copied()
        .cycle()
        .skip(begin)
        .take(samples.len())
        .collect();
    let (clip, noise) = (power(samples), power(&piece));
    if clip <= 0.0 || noise <= 0.0 {
        return;
    }
    #[expect(clippy::cast_possible_truncation, reason = "a gain needs no more than f32")]
    let gain = (clip / 10f64.powf(snr_db / 10.0) / noise).sqrt() as f32;
    for (sample, noise) in samples.iter_mut().zip(piece) {
        *sample += noise * gain;
    }
}

/// Mean square.
#[expect(clippy::cast_precision_loss, reason = "a count")]
fn power(samples: &[f32]) -> f64 {
    samples.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>() / samples.len().max(1) as f64
}

fn add_noise(samples: &mut [f32], snr_db: f64, pink: bool, random: &mut SplitMix) {
    let power = power(samples);
    if power <= 0.0 {
        return;
    }
    let level = (power / 10f64.powf(snr_db / 10.0)).sqrt();
    // A leaky integrator of strength 0.97 has 1 / (1 - 0.97²) times the power of its input.
    const LEAK: f64 = 0.97;
    let scale = if pink {
        level * (1.0 - LEAK * LEAK).sqrt()
    } else {
        level
    };
    let mut held = 0.0;
    for sample in samples {
        // A sum of uniform numbers is close enough to normal, and cheaper.
        let white = (random.unit() + random.unit() + random.unit() - 1.5) * 2.0;
        held = if pink { LEAK * held + white } else { white };
        #[expect(clippy::cast_possible_truncation, reason = "audio is f32")]
        let noise = (held * scale) as f32;
        *sample += noise;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(hz: f64) -> Vec<f32> {
        (0..16_000)
            .map(|n| (std::f64::consts::TAU * hz * f64::from(n) / 16_000.0).sin() as f32 * 0.5)
            .collect()
    }

    fn only(change: impl FnOnce(&mut AugmentConfig)) -> AugmentConfig {
        let mut config = AugmentConfig::default();
        change(&mut config);
        config
    }

    #[test]
    fn without_probabilities_nothing_changes() {
        let clip = tone(440.0);

        assert_eq!(
            augment(
                clip.clone(),
                &AugmentConfig::default(),
                &Noises::default(),
                None,
                &mut SplitMix::new(&[1])
            ),
            clip
        );
    }

    #[test]
    fn equal_seeds_give_equal_changes() {
        let config = only(|c| (c.gain, c.speed, c.noise, c.telephone) = (1.0, 1.0, 1.0, 1.0));
        let changed = |seed| {
            augment(
                tone(440.0),
                &config,
                &Noises::default(),
                None,
                &mut SplitMix::new(&[seed]),
            )
        };

        assert_eq!(changed(1), changed(1));
        assert_ne!(changed(1), changed(2));
    }

    #[test]
    fn a_faster_tone_is_shorter_and_higher() {
        let fast = change_speed(&tone(400.0), 1.1);
        let crossings =
            |s: &[f32]| s.windows(2).filter(|w| w[0] < 0.0 && w[1] >= 0.0).count() as f64 / s.len() as f64;

        assert_eq!(fast.len(), 14_545);
        assert!((crossings(&fast) / crossings(&tone(400.0)) - 1.1).abs() < 0.01);
        assert!((power(&fast) / power(&tone(400.0)) - 1.0).abs() < 0.02);
    }

    #[test]
    fn a_slow_down_never_exceeds_what_the_encoder_takes() {
        let config = only(|c| (c.speed, c.speed_change_max) = (1.0, 0.5));
        for seed in 0..30 {
            assert!(
                augment(
                    tone(400.0),
                    &config,
                    &Noises::default(),
                    Some(16_000),
                    &mut SplitMix::new(&[seed])
                )
                .len()
                    <= 16_000
            );
        }
    }

    #[test]
    fn noise_has_the_ratio_asked_for() {
        for pink in [false, true] {
            let (clean, mut noisy) = (tone(440.0), tone(440.0));

            add_noise(&mut noisy, 10.0, pink, &mut SplitMix::new(&[3]));

            let noise: Vec<f32> = noisy.iter().zip(&clean).map(|(a, b)| a - b).collect();
            let ratio = 10.0 * (power(&clean) / power(&noise)).log10();
            assert!((ratio - 10.0).abs() < 1.5, "pink {pink}: {ratio}");
        }
    }

    #[test]
    fn masks_hide_no_more_than_they_may_and_each_row_in_its_own_way() {
        let config = only(|c| (c.time_masks, c.feature_masks, c.feature_mask_width_max) = (2, 1, 5));
        let lengths = [100, 60, 3];

        let mask = feature_mask(&lengths, 100, 16, &config, &mut SplitMix::new(&[5]))
            .unwrap()
            .unwrap();

        let hidden = |row: i64, dim: i64| {
            let along = mask.get(row).amax([1 - dim], false); // 0 where all is hidden
            along.size()[0] as f64 - along.sum(Kind::Float).double_value(&[])
        };
        for (row, length) in lengths.into_iter().enumerate() {
            assert!(hidden(row as i64, 0) <= 2.0 * (length / 10) as f64);
            assert!(hidden(row as i64, 1) <= 5.0);
        }
        assert!(hidden(0, 0) > 0.0);
        assert_ne!(mask.get(0), mask.get(1));
        assert!(
            feature_mask(
                &lengths,
                100,
                16,
                &AugmentConfig::default(),
                &mut SplitMix::new(&[5])
            )
            .unwrap()
            .is_none()
        );
    }

    #[test]
    fn a_recorded_noise_has_the_ratio_asked_for_and_is_repeated_where_it_is_short() {
        let (clean, sound) = (tone(440.0), tone(90.0)[..5000].to_vec());
        let mut noisy = clean.clone();

        mix_in(&mut noisy, &sound, 4000, 10.0);

        let noise: Vec<f32> = noisy.iter().zip(&clean).map(|(a, b)| a - b).collect();
        assert!((10.0 * (power(&clean) / power(&noise)).log10() - 10.0).abs() < 0.01);
        let gain = noise[0] / sound[4000];
        assert!((noise[1000] - gain * sound[0]).abs() < 1e-4);
    }

    #[test]
    fn noises_come_from_manifests_most_of_the_time() {
        let folder = tempfile::tempdir().unwrap();
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: 16_000,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut wav = hound::WavWriter::create(folder.path().join("hum.wav"), spec).unwrap();
        for sample in tone(50.0) {
            wav.write_sample((sample * 32_000.0) as i16).unwrap();
        }
        wav.finalize().unwrap();
        let manifest = folder.path().join("noise.jsonl");
        std::fs::write(
            &manifest,
            "{\"audio_filepath\": \"hum.wav\", \"duration\": 1.0}\n",
        )
        .unwrap();
        let noises = Noises::read(&[manifest]).unwrap();
        let config = only(|c| (c.noise, c.noise_db_min, c.noise_db_max) = (1.0, 0.0, 0.0));
        let clean = tone(440.0);

        let recorded = (0..200)
            .filter(|seed| {
                let noisy = augment(
                    clean.clone(),
                    &config,
                    &noises,
                    None,
                    &mut SplitMix::new(&[*seed]),
                );
                let added: Vec<f32> = noisy.iter().zip(&clean).map(|(a, b)| a - b).collect();
                let steps: f64 = added.windows(2).map(|w| f64::from(w[1] - w[0]).powi(2)).sum();
                steps < 0.001 * power(&added) * added.len() as f64 // a hum moves slowly, noise does not
            })
            .count();

        assert!((120..180).contains(&recorded), "{recorded}");
    }

    #[test]
    fn calls_pass_speech_and_stop_the_rest() {
        let narrow = [TelephoneCodec::None, TelephoneCodec::G711, TelephoneCodec::Gsm];
        for codec in [narrow.as_slice(), &[TelephoneCodec::G722]].concat() {
            let config = only(|c| (c.telephone, c.telephone_codecs) = (1.0, vec![codec]));
            let passed = |hz| {
                let none = Noises::default();
                let heard = augment(tone(hz), &config, &none, None, &mut SplitMix::new(&[1]));
                power(&heard[4000..]) / power(&tone(hz))
            };

            assert!(passed(1000.0) > 0.7, "{codec:?}");
            assert!(passed(7900.0) < 0.02, "{codec:?}");
            match narrow.contains(&codec) {
                true => assert!(passed(60.0) < 0.02 && passed(6000.0) < 0.02, "{codec:?}"),
                false => assert!(passed(60.0) > 0.7 && passed(5000.0) > 0.5, "{codec:?}"),
            }
        }
    }

    #[test]
    fn each_codec_that_is_named_is_heard() {
        let clean = tone(440.0);
        let heard = |codecs: &[TelephoneCodec], seed| {
            let config = only(|c| (c.telephone, c.telephone_codecs) = (1.0, codecs.to_vec()));
            augment(
                clean.clone(),
                &config,
                &Noises::default(),
                None,
                &mut SplitMix::new(&[seed]),
            )
        };
        let all = [
            TelephoneCodec::None,
            TelephoneCodec::G711,
            TelephoneCodec::G722,
            TelephoneCodec::Gsm,
        ];
        let apart: Vec<Vec<f32>> = all.map(|codec| heard(&[codec], 1)).into();
        for (at, one) in apart.iter().enumerate() {
            assert_eq!(one.len(), clean.len());
            assert!(apart[at + 1..].iter().all(|other| other != one));
        }

        let drawn: Vec<Vec<f32>> = (0..40).map(|seed| heard(&all, seed)).collect();

        for codec in all {
            let found = (0..40)
                .filter(|seed| drawn[*seed as usize] == heard(&[codec], *seed))
                .count();
            assert!((3..20).contains(&found), "{codec:?} {found}");
        }
    }
}

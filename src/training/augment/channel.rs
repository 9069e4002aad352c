//! What rooms and telephones do to sound.

use super::power;
use crate::util::random::SplitMix;

const SAMPLE_RATE_HZ: f64 = 16_000.0;
const TELEPHONE_LOW_HZ: f64 = 300.0;
const TELEPHONE_HIGH_HZ: f64 = 3400.0;
/// Where the filter before a G.722 encoder ends (ITU-T G.722, 2.2).
const WIDE_HIGH_HZ: f64 = 7000.0;
/// Reflections of a room in a second.
const REFLECTIONS_HZ: f64 = 1500.0;
/// Steps of a companded sample on each side of zero: 7 bits, and one of the sign.
const STEPS: f64 = 127.0;
const MU: f64 = 255.0;
const A: f64 = 87.6;

/// One of the two laws by which G.711 spaces its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Law {
    /// North America and Japan.
    Mu,
    /// Elsewhere.
    A,
}

/// Adds the reverberation of a room that takes `seconds` to fall by 60 dB, `direct_db` below the direct
/// sound; the clip keeps its length and its power.
///
/// The reflections are velvet noise: single ones at random times and of random signs (Karjalainen and
/// Järveläinen, "Reverberation modeling using velvet noise", 2007).
pub(super) fn reverberate(samples: &mut [f32], seconds: f64, direct_db: f64, random: &mut SplitMix) {
    let before = power(samples);
    if before <= 0.0 {
        return;
    }
    let grid = SAMPLE_RATE_HZ / REFLECTIONS_HZ;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let count = (seconds * REFLECTIONS_HZ) as u32;
    let reflections: Vec<(usize, f64)> = (0..count)
        .map(|at| {
            let delay = (f64::from(at) + random.unit()) * grid + 1.0; // samples
            let level = 10f64.powf(-3.0 * delay / SAMPLE_RATE_HZ / seconds);
            let sign = if random.chance(0.5) { 1.0 } else { -1.0 };
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a delay")]
            let delay = delay as usize;
            (delay, sign * level)
        })
        .collect();
    let energy: f64 = reflections.iter().map(|(_, level)| level * level).sum();
    if energy <= 0.0 {
        return;
    }
    let scale = (10f64.powf(-direct_db / 10.0) / energy).sqrt();
    let direct = samples.to_vec();
    for (delay, level) in reflections.iter().filter(|(delay, _)| *delay < direct.len()) {
        #[expect(clippy::cast_possible_truncation, reason = "audio is f32")]
        let level = (level * scale) as f32;
        for (sample, earlier) in samples[*delay..].iter_mut().zip(&direct) {
            *sample += level * earlier;
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "audio is f32")]
    let gain = (before / power(samples).max(f64::MIN_POSITIVE)).sqrt() as f32;
    samples.iter_mut().for_each(|sample| *sample *= gain);
}

/// Leaves what a telephone passes, 300 to 3400 Hz.
pub(super) fn telephone_band(samples: &mut [f32]) {
    for filter in [
        Biquad::high_pass(TELEPHONE_LOW_HZ),
        Biquad::high_pass(TELEPHONE_LOW_HZ),
        Biquad::low_pass(TELEPHONE_HIGH_HZ),
        Biquad::low_pass(TELEPHONE_HIGH_HZ),
    ] {
        filter.run(samples);
    }
}

/// Takes away what a wide-band call does not pass at the top, above 7 kHz.
pub(super) fn wide_band(samples: &mut [f32]) {
    for filter in [Biquad::low_pass(WIDE_HIGH_HZ), Biquad::low_pass(WIDE_HIGH_HZ)] {
        filter.run(samples);
    }
}

/// Rounds samples to the 8 bits of a telephone line, by the continuous law that G.711's segments follow, and
/// takes from what that adds what a telephone does not pass.
pub(super) fn compand(samples: &mut [f32], law: Law) {
    for sample in samples.iter_mut() {
        let level = f64::from(sample.abs().min(1.0));
        let rounded = expanded((companded(level, law) * STEPS).round() / STEPS, law);
        #[expect(clippy::cast_possible_truncation, reason = "audio is f32")]
        let rounded = rounded as f32;
        *sample = rounded.copysign(*sample);
    }
    Biquad::low_pass(TELEPHONE_HIGH_HZ).run(samples);
}

/// A level from 0 to 1 on the scale of equal steps.
fn companded(level: f64, law: Law) -> f64 {
    match law {
        Law::Mu => (MU * level).ln_1p() / MU.ln_1p(),
        Law::A if level < 1.0 / A => A * level / (1.0 + A.ln()),
        Law::A => (1.0 + (A * level).ln()) / (1.0 + A.ln()),
    }
}

/// The level of a place on the scale of equal steps.
fn expanded(place: f64, law: Law) -> f64 {
    match law {
        Law::Mu => (place * MU.ln_1p()).exp_m1() / MU,
        Law::A if place < 1.0 / (1.0 + A.ln()) => place * (1.0 + A.ln()) / A,
        Law::A => (place * (1.0 + A.ln()) - 1.0).exp() / A,
    }
}

/// A second-order filter, in the form of Bristow-Johnson's cookbook, with Butterworth's quality.
struct Biquad {
    b: [f64; 3],
    a: [f64; 2],
}

impl Biquad {
    fn new(hz: f64, high: bool) -> Self {
        let w = std::f64::consts::TAU * hz / SAMPLE_RATE_HZ;
        let alpha = w.sin() / (2.0 * std::f64::consts::FRAC_1_SQRT_2);
        let a0 = 1.0 + alpha;
        let edge = if high { 1.0 + w.cos() } else { 1.0 - w.cos() };
        let middle = if high { -edge } else { edge };
        Self {
            b: [edge / 2.0 / a0, middle / a0, edge / 2.0 / a0],
            a: [-2.0 * w.cos() / a0, (1.0 - alpha) / a0],
        }
    }

    fn high_pass(hz: f64) -> Self {
        Self::new(hz, true)
    }

    fn low_pass(hz: f64) -> Self {
        Self::new(hz, false)
    }

    fn run(&self, samples: &mut [f32]) {
        let (mut s1, mut s2) = (0.0, 0.0);
        for sample in samples {
            let x = f64::from(*sample);
            let y = self.b[0] * x + s1;
            s1 = self.b[1] * x - self.a[0] * y + s2;
            s2 = self.b[2] * x - self.a[1] * y;
            #[expect(clippy::cast_possible_truncation, reason = "audio is f32")]
            let out = y as f32;
            *sample = out;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clicks() -> Vec<f32> {
        let mut samples = vec![0.0; 16_000];
        samples[100] = 0.5;
        samples
    }

    fn tone(level: f32) -> Vec<f32> {
        (0..16_000).map(|at| level * (at as f32 * 0.4).sin()).collect()
    }

    #[test]
    fn a_room_answers_for_as_long_as_it_says_and_as_loud() {
        for (seconds, direct_db) in [(0.2, 0.0), (0.6, 10.0)] {
            let mut samples = clicks();

            reverberate(&mut samples, seconds, direct_db, &mut SplitMix::new(&[5]));

            assert_eq!(samples.len(), 16_000);
            assert!((power(&samples) / power(&clicks()) - 1.0).abs() < 1e-3);
            assert!(
                samples[..100].iter().all(|sample| *sample == 0.0),
                "nothing comes before the sound"
            );
            let direct = f64::from(samples[100]).powi(2);
            let room = samples[101..].iter().map(|s| f64::from(*s).powi(2)).sum::<f64>();
            assert!((10.0 * (direct / room).log10() - direct_db).abs() < 0.5);
            // Half of the time takes half of the 60 dB.
            let energy = |from: f64, to: f64| {
                let place = |share: f64| 101 + (share * seconds * SAMPLE_RATE_HZ) as usize;
                samples[place(from)..place(to)]
                    .iter()
                    .map(|s| f64::from(*s).powi(2))
                    .sum::<f64>()
            };
            let fall = 10.0 * (energy(0.0, 0.1) / energy(0.5, 0.6)).log10();
            assert!((fall - 30.0).abs() < 3.0, "{fall}");
        }
        let mut silence = vec![0.0; 100];
        reverberate(&mut silence, 0.5, 5.0, &mut SplitMix::new(&[5]));
        assert_eq!(silence, vec![0.0; 100]);
    }

    #[test]
    fn companding_keeps_its_distance_from_loud_and_from_quiet_sound() {
        for law in [Law::Mu, Law::A] {
            for level in [0.9, 0.03] {
                let mut clean = tone(level);
                Biquad::low_pass(TELEPHONE_HIGH_HZ).run(&mut clean);
                let mut samples = tone(level);

                compand(&mut samples, law);

                let noise: Vec<f32> = samples.iter().zip(&clean).map(|(s, c)| s - c).collect();
                let ratio = 10.0 * (power(&clean) / power(&noise)).log10();
                assert!((33.0..50.0).contains(&ratio), "{law:?} {level} {ratio}"); // 38 dB of G.711
            }
            for level in [0.0, 1e-3, 0.2, 1.0] {
                assert!((expanded(companded(level, law), law) - level).abs() < 1e-12);
            }
        }
    }
}

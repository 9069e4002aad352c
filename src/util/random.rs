//! A small seeded generator, so that initial values, order and augmentation depend on a written seed alone.
//!
//! Source: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).

/// SplitMix64: 64 bits of state, equal on every machine.
#[derive(Clone, Debug)]
pub struct SplitMix {
    state: u64,
}

impl SplitMix {
    /// A generator from several numbers, each of which changes everything that follows.
    pub fn new(seeds: &[u64]) -> Self {
        let mut generator = Self {
            state: 0x5eed_0f5b_eec4_0001,
        };
        for seed in seeds {
            generator.state = generator.bits() ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        generator
    }

    /// The plain SplitMix64 sequence from this state.
    pub fn from_state(state: u64) -> Self {
        Self { state }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in [0, 1).
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform between `low` and `high`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in `0..count`; 0 when `count` is 0.
    pub fn below(&mut self, count: usize) -> usize {
        // Multiply-shift; the bias is below 2^-32 for any list that fits in memory here.
        usize::try_from((u128::from(self.bits()) * count as u128) >> 64).expect("smaller than `count`")
    }

    /// True with probability `probability`.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Fisher and Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_sequences_and_each_seed_counts() {
        let sequence = |seeds: &[u64]| {
            let mut random = SplitMix::new(seeds);
            (0..8).map(|_| random.bits()).collect::<Vec<_>>()
        };

        assert_eq!(sequence(&[1, 2]), sequence(&[1, 2]));
        assert_ne!(sequence(&[1, 2]), sequence(&[1, 3]));
        assert_ne!(sequence(&[1, 2]), sequence(&[2, 1]));
        assert_ne!(sequence(&[0]), sequence(&[0, 0]));
    }

    #[test]
    fn moments_of_the_distributions_are_right() {
        let mut random = SplitMix::new(&[7]);
        let uniform: f64 = (0..20_000).map(|_| random.unit()).sum::<f64>() / 20_000.0;
        let normal: Vec<f64> = (0..20_000).map(|_| random.normal()).collect();
        let mean = normal.iter().sum::<f64>() / 20_000.0;
        let variance = normal.iter().map(|x| x * x).sum::<f64>() / 20_000.0;

        assert!((uniform - 0.5).abs() < 0.01, "{uniform}");
        assert!(
            mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05,
            "{mean} {variance}"
        );
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<usize> = (0..100).collect();

        SplitMix::new(&[3]).shuffle(&mut items);

        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}

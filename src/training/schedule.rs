//! Learning rate over a stage: linear warm-up, then constant, linear, cosine, or the original transformer
//! schedule.
//!
//! Source: the original schedule is that of Vaswani et al. (arXiv 1706.03762) §5.3.

use crate::training::config::{Decay, StageConfig};

/// Shape of the learning rate over a run or a stage.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// What follows.
    pub decay: Decay,
    /// Where linear and cosine decay end, as a fraction of the full rate.
    pub final_rate_fraction: f64,
}

impl Schedule {
    /// Factor on the learning rate at optimiser step `step` (from 0), when `progress` (0 to 1) of the whole
    /// is done by steps or by time.
    pub fn factor(&self, step: u64, progress: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "step counts are small")]
        let (step, warmup_steps) = ((step + 1) as f64, self.warmup_steps as f64);
        let warmup = if self.warmup_steps == 0 {
            1.0
        } else {
            (step / warmup_steps).min(1.0)
        };
        let progress = progress.clamp(0.0, 1.0);
        let last = self.final_rate_fraction;
        let decay = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => 1.0 - (1.0 - last) * progress,
            Decay::Cosine => last + (1.0 - last) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            // `D^-0.5 · min(step^-0.5, step · warmup^-1.5)` of "Attention is all you need", scaled to a peak
            // of 1.
            Decay::Transformer => (warmup_steps.max(1.0) / step).sqrt().min(1.0),
        };
        warmup * decay
    }
}

/// Factor on the learning rate of a stage, see [`Schedule::factor`].
pub fn rate_factor(stage: &StageConfig, step: u64, progress: f64) -> f64 {
    let schedule = Schedule {
        warmup_steps: stage.warmup_steps,
        decay: stage.decay,
        final_rate_fraction: stage.final_rate_fraction,
    };
    schedule.factor(step, progress)
}

/// How much of a stage is done: the larger share of its steps and of its time; 0 when it has neither limit.
pub fn progress(stage: &StageConfig, steps: u64, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "step counts are small")]
    let by_steps = stage
        .steps_max
        .map_or(0.0, |max| steps as f64 / max.max(1) as f64);
    let by_time = stage
        .minutes_max
        .map_or(0.0, |minutes| seconds / (minutes * 60.0));
    by_steps.max(by_time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::config::StageKind;

    fn stage(decay: Decay) -> StageConfig {
        StageConfig {
            steps_max: Some(100),
            minutes_max: Some(1.0),
            warmup_steps: 10,
            decay,
            final_rate_fraction: 0.1,
            ..StageConfig::new(StageKind::Asr, 1.0)
        }
    }

    #[test]
    fn warm_up_rises_in_a_straight_line_to_the_full_rate() {
        let stage = stage(Decay::Constant);

        assert!((rate_factor(&stage, 0, 0.0) - 0.1).abs() < 1e-12);
        assert!((rate_factor(&stage, 4, 0.0) - 0.5).abs() < 1e-12);
        assert!((rate_factor(&stage, 9, 0.0) - 1.0).abs() < 1e-12);
        assert!((rate_factor(&stage, 5000, 1.0) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn both_decays_end_at_the_final_fraction_and_meet_in_the_middle() {
        for decay in [Decay::Linear, Decay::Cosine] {
            let stage = stage(decay);

            assert!((rate_factor(&stage, 50, 0.5) - 0.55).abs() < 1e-12);
            assert!((rate_factor(&stage, 100, 1.0) - 0.1).abs() < 1e-12);
            assert!((rate_factor(&stage, 100, 7.0) - 0.1).abs() < 1e-12);
        }
    }

    #[test]
    fn the_transformer_schedule_rises_to_its_peak_and_falls_with_the_root_of_the_steps() {
        let schedule = Schedule {
            warmup_steps: 50_000,
            decay: Decay::Transformer,
            final_rate_fraction: 0.0,
        };
        // The paper's formula with the width that puts its peak at 1.
        let formula = |step: f64| 50_000f64.sqrt() * (step.powf(-0.5)).min(step * 50_000f64.powf(-1.5));
        for step in [1u64, 2, 25_000, 49_999, 50_000, 50_001, 200_000, 500_000] {
            let found = schedule.factor(step - 1, 0.3);

            assert!((found - formula(step as f64)).abs() < 1e-12, "{step}: {found}");
        }
        assert!((schedule.factor(49_999, 0.0) - 1.0).abs() < 1e-12);
        assert!((schedule.factor(199_999, 1.0) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn progress_is_the_larger_share_of_steps_and_time() {
        let stage = stage(Decay::Linear);

        assert!((progress(&stage, 50, 6.0) - 0.5).abs() < 1e-12);
        assert!((progress(&stage, 50, 54.0) - 0.9).abs() < 1e-12);
    }
}

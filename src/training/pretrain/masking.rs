//! Which frames are hidden from the encoder, and by what.
//!
//! Source: Chiu et al. (arXiv 2202.01855).

use tch::{TchError, Tensor};

use crate::models::encoders::conformer::{Features, MELS_PER_FRAME};
use crate::training::pretrain::config::{MaskConfig, MaskUnit};
use crate::util::random::SplitMix;

/// Which units of a sequence are masked.
///
/// A span begins at each place with the same probability, places before the sequence's start included, so
/// that every unit is masked with probability `share`, exactly: `1 − (1 − p)^span = share`.
pub fn plan_spans(units: usize, span: usize, share: f64, random: &mut SplitMix) -> Vec<bool> {
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let begins = 1.0 - (1.0 - share).powf(1.0 / span as f64);
    let mut masked = vec![false; units];
    let mut left = 0;
    for place in 0..units + span - 1 {
        if random.chance(begins) {
            left = span;
        }
        // Place `span - 1` is the first unit.
        if left > 0 {
            left -= 1;
            if place + 1 >= span {
                masked[place + 1 - span] = true;
            }
        }
    }
    masked
}

/// The masks of one row.
#[derive(Debug, PartialEq)]
struct RowMask {
    /// For each mel frame, whether noise takes its place.
    mel: Vec<bool>,
    /// Labels to be recognised: complete stacks of four mel frames, all hidden.
    stacks: Vec<usize>,
}

fn plan_row(mel_frames: usize, config: &MaskConfig, random: &mut SplitMix) -> RowMask {
    let stack = MELS_PER_FRAME as usize;
    let mel: Vec<bool> = match config.unit {
        MaskUnit::Mel => plan_spans(mel_frames, config.span, config.share, random),
        MaskUnit::Encoder => {
            let frames = plan_spans(mel_frames.div_ceil(stack), config.span, config.share, random);
            (0..mel_frames).map(|at| frames[at / stack]).collect()
        }
    };
    let stacks = mel
        .chunks_exact(stack)
        .enumerate()
        .filter(|(_, frames)| frames.iter().all(|masked| *masked))
        .map(|(at, _)| at)
        .collect();
    RowMask { mel, stacks }
}

/// Features with holes, and where to look for what was in them.
#[derive(Debug)]
pub struct Masked {
    /// f32 `[B, F, M]`: masked mel frames are noise.
    pub values: Tensor,
    /// i64 `[N]`: places of hidden labels among the `B · floor(F / 4)` stacks of four mel frames.
    pub stacks: Tensor,
    /// i64 `[N]`: places of the same frames among the `B · ceil(F / 4)` encoder frames.
    pub frames: Tensor,
}

/// Masks a batch; one generator a row. `None` when chance hid nothing.
///
/// # Errors
/// libtorch's.
pub fn mask(
    features: &Features,
    config: &MaskConfig,
    random: &mut [SplitMix],
) -> Result<Option<Masked>, TchError> {
    let (batch, time, mels) = features.values.size3()?;
    let (complete, all) = (
        time / MELS_PER_FRAME,
        (time + MELS_PER_FRAME - 1) / MELS_PER_FRAME,
    );
    let (mut hidden, mut noise) = (Vec::new(), Vec::<f32>::new());
    let (mut stacks, mut frames) = (Vec::new(), Vec::new());
    for ((row, length), random) in (0..batch).zip(&features.lengths).zip(random) {
        let plan = plan_row(usize::try_from(*length).unwrap_or(0), config, random);
        for (at, _) in plan.mel.iter().enumerate().filter(|(_, masked)| **masked) {
            hidden.push(row * time + at as i64);
            #[expect(clippy::cast_possible_truncation, reason = "f32 is what is wanted")]
            noise.extend((0..mels).map(|_| (random.normal() * config.noise) as f32));
        }
        for at in plan.stacks {
            stacks.push(row * complete + at as i64);
            frames.push(row * all + at as i64);
        }
    }
    if stacks.is_empty() {
        return Ok(None);
    }
    let device = features.values.device();
    let index = |places: &[i64]| Tensor::f_from_slice(places)?.f_to_device(device);
    let noise = Tensor::f_from_slice(&noise)?
        .f_view([-1, mels])?
        .f_to_device(device)?;
    let values = features
        .values
        .f_view([batch * time, mels])?
        .f_index_copy(0, &index(&hidden)?, &noise)?
        .f_view([batch, time, mels])?;
    Ok(Some(Masked {
        values,
        stacks: index(&stacks)?,
        frames: index(&frames)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn features(lengths: &[i64], mels: i64) -> Features {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        Features {
            values: Tensor::ones(
                [lengths.len() as i64, longest, mels],
                (tch::Kind::Float, tch::Device::Cpu),
            ) * 100.0,
            lengths: lengths.to_vec(),
        }
    }

    fn generators(count: usize, seed: u64) -> Vec<SplitMix> {
        (0..count).map(|row| SplitMix::new(&[seed, row as u64])).collect()
    }

    #[test]
    fn the_share_of_masked_units_is_the_one_asked_for_from_the_first_unit_to_the_last() {
        let mut random = SplitMix::new(&[1]);
        let (mut all, mut first, mut last) = (0, 0, 0);
        for _ in 0..4000 {
            let masked = plan_spans(30, 10, 0.4, &mut random);
            all += masked.iter().filter(|m| **m).count();
            first += usize::from(masked[0]);
            last += usize::from(masked[29]);
        }

        for (found, of) in [(all, 120_000), (first, 4000), (last, 4000)] {
            let share = found as f64 / of as f64;
            assert!((share - 0.4).abs() < 0.03, "{share}");
        }
    }

    #[test]
    fn spans_that_do_not_touch_an_end_are_as_long_as_asked_for() {
        let mut random = SplitMix::new(&[2]);
        for _ in 0..200 {
            let masked = plan_spans(200, 10, 0.2, &mut random);
            let mut at = 0;
            for run in masked.chunk_by(|a, b| a == b) {
                let touches = at == 0 || at + run.len() == 200;
                assert!(!run[0] || touches || run.len() >= 10, "{} at {at}", run.len());
                at += run.len();
            }
        }
    }

    #[test]
    fn a_masked_encoder_frame_hides_its_four_mel_frames_and_only_complete_ones_are_asked_for() {
        let config = MaskConfig {
            share: 0.95,
            ..MaskConfig::default()
        };
        let plan = plan_row(43, &config, &mut SplitMix::new(&[3]));

        for stack in &plan.stacks {
            assert!(plan.mel[4 * stack..4 * stack + 4].iter().all(|m| *m) && *stack < 10);
        }
        assert!(!plan.stacks.is_empty());
        for four in plan.mel.chunks_exact(4) {
            assert!(four.iter().all(|m| *m == four[0]));
        }
    }

    #[test]
    fn with_mel_units_a_label_is_asked_for_when_all_of_it_is_hidden() {
        let config = MaskConfig {
            unit: MaskUnit::Mel,
            span: 3,
            share: 0.8,
            ..MaskConfig::default()
        };
        let plan = plan_row(400, &config, &mut SplitMix::new(&[4]));

        let whole = |at: usize| plan.mel[4 * at..4 * at + 4].iter().all(|m| *m);
        assert_eq!(plan.stacks, (0..100).filter(|at| whole(*at)).collect::<Vec<_>>());
        assert!(plan.stacks.len() > 20 && plan.stacks.len() < 100);
    }

    #[test]
    fn noise_takes_the_place_of_masked_frames_and_of_nothing_else() {
        let features = features(&[400, 37], 80);
        let config = MaskConfig::default();

        let masked = mask(&features, &config, &mut generators(2, 5)).unwrap().unwrap();

        let hidden = masked.values.ne_tensor(&features.values).any_dim(2, false); // [B, F]
        let noise = masked.values.masked_select(&hidden.unsqueeze(-1));
        assert!((noise.std(true).double_value(&[]) - 0.1).abs() < 0.005);
        assert!(noise.mean(tch::Kind::Double).double_value(&[]).abs() < 0.005);
        assert_eq!(hidden.get(1).narrow(0, 37, 363).any().int64_value(&[]), 0);
        let stacks = Vec::<i64>::try_from(&masked.stacks).unwrap();
        assert_eq!(Vec::<i64>::try_from(&masked.frames).unwrap(), stacks);
        for stack in stacks {
            let (row, at) = (stack / 100, stack % 100);
            assert_eq!(hidden.get(row).narrow(0, 4 * at, 4).all().int64_value(&[]), 1);
            assert!(row == 0 || at < 9);
        }
    }

    #[test]
    fn a_batch_in_which_chance_hides_nothing_is_told() {
        let config = MaskConfig {
            share: 0.01,
            ..MaskConfig::default()
        };

        assert!(
            mask(&features(&[3], 4), &config, &mut generators(1, 1))
                .unwrap()
                .is_none()
        );
    }

    proptest! {
        #[test]
        fn any_lengths_spans_and_shares_make_places_that_exist(
            lengths in proptest::collection::vec(1i64..60, 1..5), span in 1usize..40, share in 0.01f64..0.95, seed in any::<u64>(), mel in any::<bool>()
        ) {
            let config = MaskConfig { span, share, noise: 0.1, unit: if mel { MaskUnit::Mel } else { MaskUnit::Encoder } };
            let features = features(&lengths, 2);
            if let Some(masked) = mask(&features, &config, &mut generators(lengths.len(), seed)).unwrap() {
                let time = features.values.size()[1];
                let stacks = Vec::<i64>::try_from(&masked.stacks).unwrap();
                let frames = Vec::<i64>::try_from(&masked.frames).unwrap();
                for (stack, frame) in stacks.iter().zip(&frames) {
                    let (row, at) = (frame / ((time + 3) / 4), frame % ((time + 3) / 4));
                    prop_assert_eq!((stack / (time / 4), stack % (time / 4)), (row, at));
                    prop_assert!(4 * at + 4 <= lengths[row as usize]);
                }
            }
        }
    }
}

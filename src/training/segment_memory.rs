//! CTC segments of clips in memory, for a stage in which nothing that they are made with learns.

use std::collections::HashMap;

use tch::{Kind, Tensor};

use super::feature_cache::FeatureKey;
use crate::models::ModelError;
use crate::models::adapter::Adapted;
use crate::util::random::SplitMix;

/// Bytes that are kept at most: some 100,000 short clips of a language model of width 576.
const BYTES_MAX: usize = 1 << 30;
/// Bytes of a number, bf16.
const NUMBER_BYTES: usize = 2;

/// Segments `[S, H]` of clips, bf16, by the names of their features. Full, it keeps what it has.
#[derive(Debug, Default)]
pub(super) struct SegmentMemory {
    rows: HashMap<FeatureKey, Tensor>,
    bytes: usize,
}

impl SegmentMemory {
    /// A clip's segments, storage shared.
    pub(super) fn get(&self, key: &FeatureKey) -> Option<Tensor> {
        self.rows.get(key).map(Tensor::shallow_clone)
    }

    /// Keeps the segments of a clip, `[S, H]` with storage of their own.
    pub(super) fn put(&mut self, key: &FeatureKey, segments: &Tensor) {
        let bytes = segments.numel() * NUMBER_BYTES;
        if self.bytes + bytes <= BYTES_MAX
            && self.rows.insert(key.clone(), segments.shallow_clone()).is_none()
        {
            self.bytes += bytes;
        }
    }
}

/// Clips of unequal length in one batch, f32. A share of each clip's segments is left out at random, where
/// `dropout` says so, as a recogniser misses words.
///
/// # Shapes
/// `rows` of `[S_i, H]` → `[B, S, H]`.
///
/// # Errors
/// [`ModelError::Torch`] when libtorch fails.
pub(super) fn batch(
    rows: &[Tensor],
    mut dropout: Option<(f64, &mut SplitMix)>,
) -> Result<Adapted, ModelError> {
    let mut kept = Vec::with_capacity(rows.len());
    for row in rows {
        kept.push(match &mut dropout {
            None => row.shallow_clone(),
            Some((share, random)) => {
                let stays: Vec<i64> = (0..row.size()[0]).filter(|_| !random.chance(*share)).collect();
                row.f_index_select(0, &Tensor::f_from_slice(&stays)?.f_to_device(row.device())?)?
            }
        });
    }
    Ok(Adapted {
        positions: Tensor::f_pad_sequence(&kept, true, 0.0, "right")?.f_to_kind(Kind::Float)?,
        lengths: kept.iter().map(|row| row.size()[0]).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(length: i64) -> Tensor {
        Tensor::arange(length * 2, (Kind::BFloat16, tch::Device::Cpu)).view([length, 2])
    }

    #[test]
    fn a_batch_is_padded_and_without_dropout_whole() {
        let found = batch(&[row(3), row(0), row(1)], None).unwrap();

        assert_eq!(
            (found.positions.size(), found.lengths),
            (vec![3, 3, 2], vec![3, 0, 1])
        );
        assert_eq!(found.positions.kind(), Kind::Float);
        assert_eq!(found.positions.get(0), row(3).to_kind(Kind::Float));
        assert_eq!(
            found
                .positions
                .get(2)
                .narrow(0, 1, 2)
                .abs()
                .max()
                .double_value(&[]),
            0.0
        );
    }

    #[test]
    fn dropout_leaves_out_a_share() {
        let mut random = SplitMix::new(&[3]);
        let rows: Vec<Tensor> = (0..50).map(|_| row(21)).collect();

        let found = batch(&rows, Some((0.25, &mut random))).unwrap();

        let all: i64 = found.lengths.iter().sum();
        assert!((700..870).contains(&all), "788 of 1,050 expected: {all}");
        assert!(found.lengths.iter().any(|length| *length != found.lengths[0]));
        for (at, length) in (0i64..).zip(&found.lengths) {
            let own = Vec::<f32>::try_from(found.positions.get(at).select(1, 0)).unwrap();
            let own = &own[..usize::try_from(*length).unwrap()];
            assert!(own.is_sorted(), "{own:?}");
        }
    }
}

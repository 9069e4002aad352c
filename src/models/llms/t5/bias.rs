//! Relative positions: what an offset between two positions adds to their attention score.
//!
//! Source: transformers 5, `T5Attention._relative_position_bucket` and `compute_bias`.

use tch::{Device, Kind, Tensor};

/// A learned number for every head and offset `key position − query position`.
#[derive(Debug)]
pub(super) struct RelativeBias {
    /// `[N, 2·reach + 1]` f32, from offset `−reach` to `reach`.
    by_offset: Tensor,
    /// Offsets from here on share a bucket.
    reach: i64,
}

impl RelativeBias {
    /// Lays the buckets of `table` `[buckets, N]` out by offset; `both_ways` as encoders do, else only past
    /// keys are distinguished.
    pub(super) fn new(table: &Tensor, max_distance: i64, both_ways: bool) -> Self {
        let buckets = buckets_by_offset(table.size()[0], max_distance, both_ways);
        Self {
            by_offset: table
                .to_kind(Kind::Float)
                .index_select(0, &buckets.to_device(table.device()))
                .transpose(0, 1)
                .contiguous(),
            reach: max_distance,
        }
    }

    /// Of all positions to each other: `[1, N, P, P]`.
    pub(super) fn square(&self, positions: i64) -> Tensor {
        let at = Tensor::arange(positions, (Kind::Int64, self.by_offset.device()));
        self.at(&(at.unsqueeze(0) - at.unsqueeze(1))).unsqueeze(0)
    }

    /// Of one query per row, at `queries` `[B]`, to the first `keys` positions: `[B, N, 1, keys]`.
    pub(super) fn row(&self, queries: &Tensor, keys: i64) -> Tensor {
        let at = Tensor::arange(keys, (Kind::Int64, self.by_offset.device()));
        self.at(&(at.unsqueeze(0) - queries.unsqueeze(1))) // [N, B, keys]
            .transpose(0, 1)
            .unsqueeze(2)
    }

    /// `[A, C]` offsets → `[N, A, C]`.
    fn at(&self, offsets: &Tensor) -> Tensor {
        let index = offsets.clamp(-self.reach, self.reach) + self.reach;
        let size = offsets.size();
        self.by_offset
            .index_select(1, &index.flatten(0, -1))
            .view([-1, size[0], size[1]])
    }
}

/// The bucket of every offset from `−max_distance` to `max_distance`, `[2·max_distance + 1]`.
///
/// The logarithm is taken by torch in f32, as the reference does: where it falls on a whole number, rounding
/// decides.
fn buckets_by_offset(buckets: i64, max_distance: i64, both_ways: bool) -> Tensor {
    let offsets = Tensor::arange_start(-max_distance, max_distance + 1, (Kind::Int64, Device::Cpu));
    let (buckets, first, distance) = if both_ways {
        let ahead = offsets.gt(0).to_kind(Kind::Int64) * (buckets / 2);
        (buckets / 2, ahead, offsets.abs())
    } else {
        (buckets, offsets.zeros_like(), (-&offsets).clamp_min(0))
    };
    // Half of the buckets hold one distance each, the other half ever wider ranges of them.
    let exact = buckets / 2;
    let widths = (max_distance as f64 / exact as f64).ln();
    let wide = ((distance.to_kind(Kind::Float) / exact as f64).log() / widths * (buckets - exact) as f64)
        .clamp_min(0.0) // the logarithm of 0 is not used
        .to_kind(Kind::Int64)
        + exact;
    first + distance.where_self(&distance.lt(exact), &wide.clamp_max(buckets - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(offset: i64, both_ways: bool) -> i64 {
        buckets_by_offset(32, 128, both_ways).int64_value(&[offset + 128])
    }

    #[test]
    fn near_offsets_have_buckets_of_their_own_and_far_ones_share() {
        assert_eq!(
            (0..8).map(|offset| bucket(-offset, true)).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4, 5, 6, 7]
        );
        assert_eq!([bucket(1, true), bucket(7, true), bucket(8, true)], [17, 23, 24]);
        assert_eq!(
            [bucket(-128, true), bucket(-127, true), bucket(128, true)],
            [15, 15, 31]
        );
        assert_eq!(
            [bucket(-15, false), bucket(-16, false), bucket(-128, false)],
            [15, 16, 31]
        );
        assert_eq!(
            [bucket(0, false), bucket(1, false), bucket(100, false)],
            [0, 0, 0]
        );
        // Whole logarithms: 16 is two buckets beyond 8.
        assert_eq!(
            [
                bucket(-15, true),
                bucket(-16, true),
                bucket(-32, true),
                bucket(-64, true)
            ],
            [9, 10, 12, 14]
        );
    }

    #[test]
    fn offsets_beyond_the_reach_keep_the_last_bucket() {
        let table = Tensor::arange(32, (Kind::Float, Device::Cpu)).view([32, 1]);
        let bias = RelativeBias::new(&table, 128, true).square(400);

        assert_eq!(bias.size(), [1, 1, 400, 400]);
        for (query, key, bucket) in [(399, 0, 15.0), (0, 399, 31.0), (200, 200, 0.0), (200, 203, 19.0)] {
            assert_eq!(bias.double_value(&[0, 0, query, key]), bucket);
        }
        let causal = RelativeBias::new(&table, 128, false);
        let row = causal.row(&Tensor::from_slice(&[3i64, 300]), 301);
        assert_eq!(row.size(), [2, 1, 1, 301]);
        assert_eq!(row.double_value(&[0, 0, 0, 0]), 3.0);
        assert_eq!(row.double_value(&[1, 0, 0, 0]), 31.0);
        assert_eq!(row.double_value(&[1, 0, 0, 298]), 2.0);
    }
}

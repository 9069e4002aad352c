//! WavLM's relative position bias: a learned number for each head and bucket of key-to-query distance.
//!
//! Source: WavLM (arXiv 2110.13900); the buckets are those of T5 (arXiv 1910.10683).

use tch::{Device, Kind, Tensor};

/// The un-gated bias of a batch: a function of the distance alone, kept as one number per head and distance.
#[derive(Debug)]
pub struct RelativeBias {
    /// `[N, 2·T − 1]` f32, the largest distance `key − query = T − 1` first.
    by_distance: Tensor,
    time: i64,
}

impl RelativeBias {
    /// Looks up all distances that occur in sequences of at most `time` frames.
    ///
    /// # Shapes
    /// `table` `[buckets, N]` f32.
    pub fn new(table: &Tensor, time: i64, distance_max: i64) -> Self {
        let buckets = table.size()[0];
        let distances = Tensor::arange_start_step(time - 1, -time, -1, (Kind::Int64, Device::Cpu)); // [2·T − 1]
        let bucket = bucket_of(&distances, buckets, distance_max).to_device(table.device());
        Self {
            by_distance: table.index_select(0, &bucket).transpose(0, 1).contiguous(),
            time,
        }
    }

    /// The bias of `count` queries from `start` on, towards all keys of a sequence of `time` frames, the last
    /// key first. No copy: in this order the number at query `q` and place `j` is the one at `q + j`,
    /// whatever the two are.
    ///
    /// # Shapes
    /// → `[N, count, time]`.
    pub(crate) fn of_queries(&self, start: i64, count: i64, time: i64) -> Tensor {
        let heads = self.by_distance.size()[0];
        let stride = 2 * self.time - 1;
        self.by_distance.as_strided(
            [heads, count, time],
            [stride, 1, 1],
            Some(self.time - time + start),
        )
    }
}

/// Bucket of each distance `key − query`: half of the buckets for each sign; of those, half for one distance
/// each, the others logarithmically wider up to `distance_max`.
///
/// The same operations in the same order and dtype as the transformers library, so that no distance at a
/// bucket's edge falls to the other side.
fn bucket_of(distances: &Tensor, buckets: i64, distance_max: i64) -> Tensor {
    let per_sign = buckets / 2;
    let exact = per_sign / 2;
    let distance = distances.abs();
    let logarithmic = (distance.to_kind(Kind::Float) / exact as f64).log()
        / (distance_max as f64 / exact as f64).ln()
        * (per_sign - exact) as f64;
    let far = (logarithmic + exact as f64)
        .clamp(0.0, (per_sign - 1) as f64) // distance 0 has a logarithm of −∞, and is near
        .to_kind(Kind::Int64);
    let near = distance.lt(exact);
    let upper = distances.gt(0).to_kind(Kind::Int64) * per_sign;
    distance.where_self(&near, &far) + upper
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_of_wavlm_are_exact_below_80_and_end_at_800() {
        let found = |distance: i64| {
            let distance = Tensor::from_slice(&[distance]);
            bucket_of(&distance, 320, 800).int64_value(&[0])
        };
        for (distance, bucket) in [
            (0, 0),
            (-1, 1),
            (-79, 79),
            (-80, 80),
            (-81, 80),
            (-82, 80),
            (-83, 81),
            (-799, 159),
            (-800, 159),
            (-100_000, 159),
            (1, 161),
            (79, 239),
            (80, 240),
            (800, 319),
            (100_000, 319),
        ] {
            assert_eq!(found(distance), bucket, "distance {distance}");
        }
    }

    #[test]
    fn a_query_finds_the_bias_of_each_key_in_reverse_order() {
        let table = Tensor::arange(32, (Kind::Float, Device::Cpu)).view([16, 2]);
        let bias = RelativeBias::new(&table, 9, 20);

        let found = bias.of_queries(2, 3, 7); // [2, 3, 7]

        for query in 2..5 {
            for key in 0..7 {
                let bucket = bucket_of(&Tensor::from_slice(&[key - query]), 16, 20).int64_value(&[0]);
                for head in 0..2 {
                    let right = table.double_value(&[bucket, head]);
                    assert_eq!(found.double_value(&[head, query - 2, 6 - key]), right);
                }
            }
        }
    }
}

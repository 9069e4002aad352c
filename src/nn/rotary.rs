//! Rotary positions in the half-split layout of the transformers library: element `i` of a head turns
//! together with element `i + head_dim / 2`.

use tch::{Device, Kind, Tensor};

use super::cpu_kernels;

/// The frequencies of one model.
#[derive(Debug)]
pub struct Rotary {
    /// `[head_dim / 2]` f32.
    frequencies: Tensor,
}

/// What turns a set of positions: shared by all layers.
#[derive(Debug)]
pub struct Rotation {
    /// `[.., head_dim]` f32.
    cos: Tensor,
    /// `[.., head_dim]` f32, the first half negated.
    sin: Tensor,
}

impl Rotary {
    /// Frequencies `theta^(-2i / head_dim)`; `head_dim` is even.
    pub fn new(head_dim: i64, theta: f64, device: Device) -> Self {
        let exponents = Tensor::arange_start_step(0, head_dim, 2, (Kind::Float, Device::Cpu)) // [head_dim / 2]
            / head_dim as f64;
        let frequencies = Tensor::from(theta as f32).pow(&exponents).reciprocal();
        Self {
            frequencies: frequencies.to_device(device),
        }
    }

    /// The rotation for `positions`.
    ///
    /// # Shapes
    /// `positions` `[..]` integer → rotation `[.., head_dim]`; add axes so that it broadcasts over heads.
    pub fn at(&self, positions: &Tensor) -> Rotation {
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * &self.frequencies; // [.., head_dim / 2]
        let (cos, sin) = (angles.cos(), angles.sin());
        Rotation {
            cos: Tensor::cat(&[&cos, &cos], -1),
            sin: Tensor::cat(&[-&sin, sin], -1),
        }
    }
}

impl Rotation {
    /// Turns queries or keys, in f32 whatever their dtype.
    ///
    /// # Shapes
    /// `heads` `[B, N, P, head_dim]` → the same, f32.
    pub fn apply(&self, heads: &Tensor) -> Tensor {
        cpu_kernels::apply_rope(heads, &self.cos, &self.sin).unwrap_or_else(|| {
            let heads = heads.to_kind(Kind::Float);
            let half = heads.size().last().copied().unwrap_or(0) / 2;
            let swapped = heads.roll([half], [-1]); // [second half, first half]
            (&heads * &self.cos).addcmul(&swapped, &self.sin)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    #[test]
    fn a_head_turns_pairwise_by_its_position() {
        let rotary = Rotary::new(4, 100.0, Device::Cpu); // frequencies 1 and 0.1
        let head = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view([1, 1, 1, 4]);

        let turned = rotary.at(&Tensor::from_slice(&[3i64])).apply(&head);

        let expected = [
            3f64.cos() - 3.0 * 3f64.sin(),
            2.0 * 0.3f64.cos() - 4.0 * 0.3f64.sin(),
            3.0 * 3f64.cos() + 3f64.sin(),
            4.0 * 0.3f64.cos() + 2.0 * 0.3f64.sin(),
        ];
        for (index, expected) in expected.into_iter().enumerate() {
            let found = turned.double_value(&[0, 0, 0, index as i64]);
            assert!((found - expected).abs() < 1e-5, "{index}: {found} {expected}");
        }
    }

    #[test]
    fn products_depend_on_the_distance_only() {
        tch::manual_seed(3);
        let rotary = Rotary::new(8, 10_000.0, Device::Cpu);
        let (query, key) = (Tensor::randn([1, 1, 1, 8], CPU), Tensor::randn([1, 1, 1, 8], CPU));
        let product = |at: i64, from: i64| {
            let query = rotary.at(&Tensor::from_slice(&[at])).apply(&query);
            let key = rotary.at(&Tensor::from_slice(&[from])).apply(&key);
            (query * key).sum(Kind::Float).double_value(&[])
        };

        assert!((product(5, 2) - product(105, 102)).abs() < 1e-4);
        assert!((product(5, 2) - product(5, 3)).abs() > 1e-3);
    }
}

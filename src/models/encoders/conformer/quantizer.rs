//! The random-projection quantiser: what a masked frame must be recognised as. Nothing in it learns.
//!
//! Four neighbouring normalised mel frames, stacked, are projected by a random matrix and brought to length
//! 1; the nearest of a codebook's random unit vectors is the label. Several codebooks, each with its own
//! projection, give several labels.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};

use super::config::MELS_PER_FRAME;
use super::variables::{Start, fresh};
use crate::util::random::SplitMix;
use crate::weights::Loader;

/// Sizes of the quantiser; the defaults are the paper's.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuantizerConfig {
    /// Codebooks `K`: labels of one frame.
    pub codebooks: i64,
    /// Codes of each codebook, `V`.
    pub codes: i64,
    /// Dimensions of a code, `C`.
    pub width: i64,
}

impl Default for QuantizerConfig {
    fn default() -> Self {
        Self {
            codebooks: 16,
            codes: 8192,
            width: 16,
        }
    }
}

/// Frozen random projections and codebooks.
#[derive(Debug)]
pub struct Quantizer {
    /// f32 `[K, 4·M, C]`.
    projections: Tensor,
    /// f32 `[K, V, C]`, rows of length 1.
    codebooks: Tensor,
}

impl Quantizer {
    /// Names in the checkpoint.
    pub const NAMES: [&str; 2] = ["quantizer.projections", "quantizer.codebooks"];

    /// Draws projections (Xavier, uniform) and codebooks (standard normal, then brought to length 1); the
    /// same for the same seed on every machine.
    pub fn new(config: &QuantizerConfig, mels: i64, seed: u64, device: Device) -> Self {
        let inputs = mels * MELS_PER_FRAME;
        let start = Start::Xavier {
            fan_in: inputs,
            fan_out: config.width,
        };
        let projections: Vec<Tensor> = (0..config.codebooks)
            .map(|book| fresh(&[inputs, config.width], start, &[seed, 0, book as u64]))
            .collect();
        let mut random = SplitMix::new(&[seed, 1]);
        #[expect(clippy::cast_possible_truncation, reason = "f32 is what is wanted")]
        let codes: Vec<f32> = (0..config.codebooks * config.codes * config.width)
            .map(|_| random.normal() as f32)
            .collect();
        let codebooks = Tensor::from_slice(&codes).view([config.codebooks, config.codes, config.width]);
        Self::from_tensors(&Tensor::stack(&projections, 0), &codebooks, device)
    }

    pub(super) fn load(loader: &mut Loader<'_>, config: &QuantizerConfig, mels: i64) -> Self {
        let [projections, codebooks] = Self::NAMES;
        let projections = loader.take_as(
            projections,
            &[config.codebooks, mels * MELS_PER_FRAME, config.width],
            Kind::Float,
        );
        let codebooks = loader.take_as(
            codebooks,
            &[config.codebooks, config.codes, config.width],
            Kind::Float,
        );
        let device = loader.device();
        Self {
            projections: projections.to_device(device),
            codebooks: codebooks.to_device(device),
        }
    }

    /// From tensors at hand: projections `[K, 4·M, C]`, codebooks `[K, V, C]` of any length.
    pub fn from_tensors(projections: &Tensor, codebooks: &Tensor, device: Device) -> Self {
        let lengths = codebooks.norm_scalaropt_dim(2.0, [-1], true).clamp_min(1e-12);
        Self {
            projections: projections.to_device(device),
            codebooks: (codebooks / lengths).to_device(device),
        }
    }

    /// Its tensors, under their names in the checkpoint.
    pub fn tensors(&self) -> [(&'static str, &Tensor); 2] {
        let [projections, codebooks] = Self::NAMES;
        [(projections, &self.projections), (codebooks, &self.codebooks)]
    }

    /// Every complete stack of four frames, row after row.
    ///
    /// # Shapes
    /// `features` f32 `[B, F, M]` → `[B · floor(F / 4), 4·M]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn stack(&self, features: &Tensor) -> Result<Tensor, TchError> {
        let (batch, frames, mels) = features.size3()?;
        let stacks = frames / MELS_PER_FRAME;
        features
            .f_narrow(1, 0, stacks * MELS_PER_FRAME)?
            .f_reshape([batch * stacks, MELS_PER_FRAME * mels])
    }

    /// Labels of stacked frames.
    ///
    /// The nearest unit vector to a unit vector is the one with the largest inner product, and that one stays
    /// the largest whatever the projection's length, so the length is never divided out.
    ///
    /// # Shapes
    /// `stacked` f32 `[R, 4·M]` → i64 `[R, K]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn labels(&self, stacked: &Tensor) -> Result<Tensor, TchError> {
        let mut labels = Vec::new();
        // One codebook at a time: all scores at once would be K times the memory.
        for book in 0..self.projections.size()[0] {
            let projected = stacked.f_matmul(&self.projections.f_get(book)?)?; // [R, C]
            let scores = projected.f_matmul(&self.codebooks.f_get(book)?.f_transpose(0, 1)?)?; // [R, V]
            labels.push(scores.f_argmax(1, false)?);
        }
        Tensor::f_stack(&labels, 1)
    }

    /// Labels of every complete stack of four frames of a batch.
    ///
    /// # Shapes
    /// `features` f32 `[B, F, M]` → i64 `[B, floor(F / 4), K]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn codes(&self, features: &Tensor) -> Result<Tensor, TchError> {
        let (batch, frames, _) = features.size3()?;
        let books = self.projections.size()[0];
        self.labels(&self.stack(features)?)?
            .f_view([batch, frames / MELS_PER_FRAME, books])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> QuantizerConfig {
        QuantizerConfig {
            codebooks: 3,
            codes: 50,
            width: 4,
        }
    }

    fn noise(shape: &[i64], seed: u64) -> Tensor {
        let mut random = SplitMix::new(&[seed]);
        let values: Vec<f32> = (0..shape.iter().product::<i64>())
            .map(|_| random.normal() as f32)
            .collect();
        Tensor::from_slice(&values).view(shape)
    }

    #[test]
    fn a_seed_decides_everything_and_codes_have_length_one() {
        let [a, b, c] = [7, 7, 8].map(|seed| Quantizer::new(&small(), 80, seed, Device::Cpu));

        for ((name, left), (_, right)) in a.tensors().iter().zip(b.tensors()) {
            assert!(left.equal(right), "{name}");
        }
        assert!(!a.projections.equal(&c.projections) && !a.codebooks.equal(&c.codebooks));
        let lengths = a.codebooks.norm_scalaropt_dim(2.0, [-1], false);
        assert!((lengths - 1.0).abs().max().double_value(&[]) < 1e-6);
        assert!(!a.projections.get(0).equal(&a.projections.get(1)));
    }

    #[test]
    fn the_label_is_the_nearest_code_to_the_normalised_projection() {
        let quantizer = Quantizer::new(&small(), 5, 1, Device::Cpu);
        let features = noise(&[2, 11, 5], 2);

        let codes = quantizer.codes(&features).unwrap();

        assert_eq!(codes.size(), [2, 2, 3]);
        for (row, stack, book) in [(0, 0, 0), (1, 1, 2), (0, 1, 1)] {
            let stacked = features.get(row).narrow(0, 4 * stack, 4).reshape([1, 20]);
            let projected = stacked.matmul(&quantizer.projections.get(book));
            let unit = &projected / projected.norm();
            let distances = (quantizer.codebooks.get(book) - unit).square().sum_dim_intlist(
                [1].as_slice(),
                false,
                Kind::Float,
            );
            assert_eq!(
                codes.int64_value(&[row, stack, book]),
                distances.argmin(0, false).int64_value(&[])
            );
        }
    }

    #[test]
    fn frames_that_fill_no_stack_have_no_label() {
        let quantizer = Quantizer::new(&small(), 5, 1, Device::Cpu);

        assert_eq!(quantizer.codes(&noise(&[1, 3, 5], 2)).unwrap().size(), [1, 0, 3]);
    }
}

//! Affine maps of the last dimension.

use tch::{Device, Kind, Tensor};

use crate::weights::Loader;

/// Fewest rows for which [`Linear::forward`] goes by way of the convolution kernels.
const ROWS_MIN: i64 = 16;

/// A frozen matrix with an optional bias.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes `{name}.weight` `[output, input]` and `{name}.bias` `[output]`.
    pub fn load(loader: &mut Loader<'_>, name: &str, input: i64, output: i64) -> Self {
        let weight = loader.take(&format!("{name}.weight"), &[output, input]);
        let bias = loader.take(&format!("{name}.bias"), &[output]);
        Self {
            weight,
            bias: Some(bias),
        }
    }

    /// From tensors at hand: `weight` `[output, input]`, `bias` `[output]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// `[.., input]` → `[.., output]`.
    ///
    /// In f32 on a CPU with AVX-512 it is computed as a convolution of one tap: libtorch gives that to oneDNN, whose kernels
    /// use the wide registers of every vendor, while its matrix products go to MKL, which on AMD stays at AVX2 and is
    /// half as fast. Not where gradients flow.
    pub fn forward(&self, input: &Tensor) -> Tensor {
        let size = input.size();
        let width = *size.last().expect("an affine map has an input dimension");
        let rows: i64 = size[..size.len() - 1].iter().product();
        let as_convolution = rows >= ROWS_MIN
            && input.device() == Device::Cpu
            && input.kind() == Kind::Float
            && has_wide_registers()
            && !input.requires_grad();
        if !as_convolution {
            return input.linear(&self.weight, self.bias.as_ref());
        }
        let (outputs, _) = self.weight.size2().expect("declared as a matrix");
        let pixels = input.reshape([1, 1, rows, width]).permute([0, 3, 1, 2]); // [1, input, 1, R]
        let kernel = self.weight.view([outputs, width, 1, 1]);
        let mut out_size = size;
        *out_size.last_mut().expect("as above") = outputs;
        pixels
            .mkldnn_convolution(&kernel, self.bias.as_ref(), [0, 0], [1, 1], [1, 1], 1)
            .permute([0, 2, 3, 1]) // [1, 1, R, output]
            .reshape(out_size)
    }
}

fn has_wide_registers() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_computing_it_agree_for_few_and_many_rows() {
        let _no_grad = tch::no_grad_guard();
        let options = (Kind::Float, Device::Cpu);
        let linear = Linear::new(
            Tensor::randn([33, 48], options),
            Some(Tensor::randn([33], options)),
        );
        for size in [vec![48], vec![1, 48], vec![15, 48], vec![16, 48], vec![3, 50, 48]] {
            let input = Tensor::randn(&size, options);

            let found = linear.forward(&input);

            let right = input.linear(&linear.weight, linear.bias.as_ref());
            assert_eq!(found.size(), right.size());
            let error = (found - &right).abs().max().double_value(&[]) / right.abs().max().double_value(&[]);
            assert!(error < 1e-5, "{size:?}: {error:e}");
        }
    }

    #[test]
    fn gradients_reach_the_input() {
        let options = (Kind::Float, Device::Cpu);
        let linear = Linear::new(Tensor::ones([8, 4], options), None);
        let input = Tensor::randn([20, 4], options).set_requires_grad(true);

        linear.forward(&input).sum(Kind::Float).backward();

        let right = Tensor::full([20, 4], 8.0, options);
        assert_eq!((input.grad() - right).abs().max().double_value(&[]), 0.0);
    }
}

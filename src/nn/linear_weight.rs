//! `LinearWeight`: the frozen weight of a linear map, in floats or in 8-bit integers.
//!
//! A single sequence's next token needs every weight once and nothing twice, so its time is that of reading
//! them: a quarter of the bytes is up to four times the speed. On the CPU few rows are multiplied by our own
//! kernel ([`cpu_kernels`]), many by libtorch. Only weights are rounded (symmetrically, one scale per output
//! row); activations stay as they are.

use tch::{Device, Kind, Tensor};

use super::accel::{cpu_has_avx512, cpu_multiplies_bf16, records_gradients};
use super::cpu_kernels;

/// Rows up to which one pass over the weights beats libtorch's products, by what the weights are kept in
/// (measured with AVX512, two threads). For bf16 on a CPU that does not multiply it, libtorch is slow for any
/// number of rows that a step has.
const FEW_ROWS_F32: i64 = 32;
const FEW_ROWS_BF16: i64 = 32;
const FEW_ROWS_INT8: i64 = 24;
/// Largest code: symmetric, so that zero is exact and both signs reach equally far.
const QUANTIZED_MAX: f64 = 127.0;

/// A frozen matrix `[outputs, inputs]`.
#[derive(Debug)]
pub struct LinearWeight(Values);

#[derive(Debug)]
enum Values {
    Floats(Tensor),
    /// `qweight` `[outputs, inputs]` i8, `scales` `[outputs]` f32: the weight is their product, row by row.
    Quantized {
        qweight: Tensor,
        scales: Tensor,
    },
}

impl LinearWeight {
    /// Keeps `weight` `[outputs, inputs]` as it is.
    pub fn new(weight: Tensor) -> Self {
        Self(Values::Floats(weight))
    }

    /// Rounds the weight to 8-bit integers, unless it is already.
    ///
    /// Relative error of a product: about 1 % of its spread, measured by the test below.
    pub fn quantize(&mut self) {
        let Values::Floats(weight) = &self.0 else {
            return;
        };
        let _no_grad = tch::no_grad_guard();
        let weight = weight.to_kind(Kind::Float);
        let scales = weight.abs().amax([1], false) / QUANTIZED_MAX; // [outputs]
        let divisor = scales.clamp_min(f64::from(f32::MIN_POSITIVE));
        let qweight = (weight / divisor.unsqueeze(1))
            .round()
            .clamp(-QUANTIZED_MAX, QUANTIZED_MAX)
            .to_kind(Kind::Int8)
            .contiguous();
        self.0 = Values::Quantized { qweight, scales };
    }

    /// Multiplies each row of `input` and adds the bias.
    ///
    /// # Shapes
    /// `input` `[.., inputs]` → `[.., outputs]`, in the input's dtype.
    pub fn multiply(&self, input: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let product = match (self.multiply_few(input), &self.0) {
            (Some(product), _) => product,
            (None, Values::Floats(weight)) => return multiply_many(weight, input, bias),
            (None, Values::Quantized { qweight, scales }) => {
                // Every code is exact in bf16.
                let dtype = input.kind();
                input.linear(&qweight.to_kind(dtype), None::<&Tensor>) * scales.to_kind(dtype)
            }
        };
        match bias {
            Some(bias) => product + bias,
            None => product,
        }
    }

    /// The product without bias by our own kernel, where the rows are few enough for it and it says yes.
    fn multiply_few(&self, input: &Tensor) -> Option<Tensor> {
        let rows = row_count(input);
        match &self.0 {
            Values::Floats(weight) => {
                let few = match weight.kind() {
                    Kind::BFloat16 if cpu_multiplies_bf16() => FEW_ROWS_BF16,
                    _ => FEW_ROWS_F32,
                };
                (rows <= few).then(|| cpu_kernels::multiply(input, weight))?
            }
            Values::Quantized { qweight, scales } => {
                (rows <= FEW_ROWS_INT8).then(|| cpu_kernels::multiply_qweight(input, qweight, scales))?
            }
        }
    }
}

/// The product in floats, by libtorch.
///
/// In f32 on a CPU with AVX-512, more than a few rows are computed as a convolution of one tap: libtorch
/// gives that to oneDNN, whose kernels use the wide registers of every vendor, while its matrix products go
/// to MKL, which on AMD stays at AVX2 and is half as fast. Not where gradients are recorded.
fn multiply_many(weight: &Tensor, input: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let rows = row_count(input);
    let as_convolution = rows > FEW_ROWS_F32
        && input.device() == Device::Cpu
        && input.kind() == Kind::Float
        && weight.kind() == Kind::Float
        && cpu_has_avx512()
        && !records_gradients();
    if !as_convolution {
        return input.linear(weight, bias);
    }
    let mut size = input.size();
    let (outputs, inputs) = weight.size2().expect("declared as a matrix");
    let pixels = input.reshape([1, 1, rows, inputs]).permute([0, 3, 1, 2]); // [1, inputs, 1, rows]
    let kernel = weight.view([outputs, inputs, 1, 1]);
    *size.last_mut().expect("rows were counted above") = outputs;
    pixels
        .mkldnn_convolution(&kernel, bias, [0, 0], [1, 1], [1, 1], 1)
        .permute([0, 2, 3, 1]) // [1, 1, rows, outputs]
        .reshape(size)
}

fn row_count(input: &Tensor) -> i64 {
    let size = input.size();
    size[..size.len().saturating_sub(1)].iter().product()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distance(found: &Tensor, expected: &Tensor) -> f64 {
        let found = found.to_kind(Kind::Float);
        ((found - expected).norm() / expected.norm()).double_value(&[])
    }

    #[test]
    fn eight_bit_products_are_near_and_alike_on_both_paths() {
        let _no_grad = tch::no_grad_guard();
        tch::manual_seed(5);
        for (inputs, outputs) in [(64, 48), (128, 19), (576, 1), (37, 19), (200, 300), (1, 1)] {
            let weight = Tensor::randn([outputs, inputs], (Kind::Float, Device::Cpu));
            let bias = Tensor::randn([outputs], (Kind::Float, Device::Cpu));
            let mut matrix = LinearWeight::new(weight.shallow_clone());
            matrix.quantize();
            for rows in [1, 3, 8, FEW_ROWS_INT8, FEW_ROWS_INT8 + 1] {
                let input = Tensor::randn([1, rows, inputs], (Kind::Float, Device::Cpu));
                let exact = input.linear(&weight, Some(&bias));

                let found = matrix.multiply(&input, Some(&bias));
                let half = matrix.multiply(
                    &input.to_kind(Kind::BFloat16),
                    Some(&bias.to_kind(Kind::BFloat16)),
                );

                assert_eq!(found.size(), [1, rows, outputs]);
                assert_eq!((found.kind(), half.kind()), (Kind::Float, Kind::BFloat16));
                assert!(distance(&found, &exact) < 0.02, "{inputs} {outputs} {rows}");
                assert!(distance(&half, &exact) < 0.03, "{inputs} {outputs} {rows}");
            }
        }
    }

    #[test]
    fn rows_of_zeros_and_of_very_different_sizes_survive() {
        let weight = Tensor::from_slice(&[0f32, 0.0, 1e-6, -2e-6, 1e6, 3e6]).view([3, 2]);
        let mut matrix = LinearWeight::new(weight.shallow_clone());

        matrix.quantize();

        let found = matrix.multiply(&Tensor::from_slice(&[1f32, 1.0]).view([1, 2]), None);
        let found = Vec::<f32>::try_from(found.view(-1)).unwrap();
        assert_eq!(found[0], 0.0);
        assert!((found[1] / -1e-6 - 1.0).abs() < 0.02, "{found:?}");
        assert!((found[2] / 4e6 - 1.0).abs() < 0.02, "{found:?}");
    }

    #[test]
    fn gradients_pass_through_an_eight_bit_matrix() {
        let weight = Tensor::randn([6, 4], (Kind::Float, Device::Cpu));
        let mut matrix = LinearWeight::new(weight.shallow_clone());
        matrix.quantize();
        let input = Tensor::randn([2, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);

        matrix.multiply(&input, None).sum(Kind::Float).backward();

        let expected = weight.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
        assert!(distance(&input.grad().get(0), &expected) < 0.05);
    }

    #[test]
    fn both_ways_of_multiplying_floats_agree_for_few_and_many_rows() {
        let _no_grad = tch::no_grad_guard();
        let options = (Kind::Float, Device::Cpu);
        let (weight, bias) = (Tensor::randn([33, 48], options), Tensor::randn([33], options));
        let matrix = LinearWeight::new(weight.shallow_clone());
        for size in [
            vec![48],
            vec![1, 48],
            vec![31, 48],
            vec![32, 48],
            vec![33, 48],
            vec![3, 50, 48],
        ] {
            let input = Tensor::randn(&size, options);

            let found = matrix.multiply(&input, Some(&bias));

            let right = input.linear(&weight, Some(&bias));
            assert_eq!(found.size(), right.size());
            let error = (found - &right).abs().max().double_value(&[]) / right.abs().max().double_value(&[]);
            assert!(error < 1e-5, "{size:?}: {error:e}");
        }
    }

    #[test]
    fn gradients_reach_the_input_of_a_matrix_of_floats() {
        let options = (Kind::Float, Device::Cpu);
        let matrix = LinearWeight::new(Tensor::ones([8, 4], options));
        let input = Tensor::randn([20, 4], options).set_requires_grad(true);

        matrix.multiply(&input, None).sum(Kind::Float).backward();

        let right = Tensor::full([20, 4], 8.0, options);
        assert_eq!((input.grad() - right).abs().max().double_value(&[]), 0.0);
    }
}

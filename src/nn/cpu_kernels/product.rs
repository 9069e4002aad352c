//! Products of a few rows with a frozen matrix.
//!
//! Such a product reads every weight once and does little with it, so its time is that of reading. Weights
//! are asked for ahead of time, which lets one core take most of what the memory gives (38 against 16 GB/s
//! without, on an AMD EPYC): a second thread pays for large matrices only.

use half::bf16 as Bf16;
use tch::{Kind, Tensor};

use super::elements::{Elements, View, qweight_of, tensor_of};
use super::pairs;
use crate::nn::accel::{self, cpu_has_avx512};

/// Rows of the matrix that are multiplied side by side.
const TILE: usize = 4;
/// Work (bytes to read, or elements to multiply where those are more) from which on a second thread pays:
/// starting one takes as long as half of this.
const SHARED_WORK_MIN: usize = 1 << 22;

/// `input · weightᵀ`.
///
/// # Shapes
/// `input` `[.., inputs]`, `weight` `[outputs, inputs]` f32 or bf16 → `[.., outputs]` in the input's dtype.
pub fn multiply(input: &Tensor, weight: &Tensor) -> Option<Tensor> {
    multiply_to(input, weight, input.kind())
}

/// As [`multiply`], in f32 whatever the input's dtype: the sums are not rounded.
pub fn multiply_in_f32(input: &Tensor, weight: &Tensor) -> Option<Tensor> {
    multiply_to(input, weight, Kind::Float)
}

fn multiply_to(input: &Tensor, weight: &Tensor, dtype: Kind) -> Option<Tensor> {
    let (view, weight) = (View::of(input)?, View::of(weight)?);
    let [outputs, _] = *weight.size() else {
        return None;
    };
    let mut size = view.size().to_vec();
    let inputs = size.pop()?;
    let products = products(view.contiguous()?, inputs, weight.contiguous()?, outputs)?;
    size.push(outputs);
    tensor_of(&products, &size, dtype)
}

/// `input · (qweight · scales)ᵀ`.
///
/// # Shapes
/// `input` `[.., inputs]`, `qweight` `[outputs, inputs]` i8, `scales` `[outputs]` f32 → `[.., outputs]` in
/// the input's dtype.
pub fn multiply_qweight(input: &Tensor, qweight: &Tensor, scales: &Tensor) -> Option<Tensor> {
    let (view, scales) = (View::of(input)?, View::of(scales)?);
    let scales = scales.contiguous()?.f32()?;
    let mut size = view.size().to_vec();
    let inputs = size.pop()?;
    let mut rows = Vec::new();
    view.contiguous()?.widen_into(&mut rows);
    let mut products = shared(&rows, inputs, qweight_of(qweight)?, scales.len(), i8::multiply)?;
    for row in products.chunks_exact_mut(scales.len()) {
        for (product, scale) in row.iter_mut().zip(scales) {
            *product *= scale;
        }
    }
    size.push(scales.len());
    tensor_of(&products, &size, input.kind())
}

/// Rows `[count, inputs]` with weights `[outputs, inputs]` → `[count, outputs]`, row by row; none where the
/// weights are of another width.
pub(super) fn products(
    rows: Elements<'_>,
    inputs: usize,
    weights: Elements<'_>,
    outputs: usize,
) -> Option<Vec<f32>> {
    let mut widened = Vec::new();
    match (rows, weights) {
        (Elements::Bf16(rows), Elements::Bf16(weights)) if pairs::can_multiply() => {
            shared(rows, inputs, weights, outputs, pairs::multiply)
        }
        (rows, Elements::Bf16(weights)) => {
            let rows = rows.as_f32(&mut widened);
            shared(rows, inputs, weights, outputs, Bf16::multiply)
        }
        (rows, Elements::F32(weights)) => {
            let rows = rows.as_f32(&mut widened);
            shared(rows, inputs, weights, outputs, f32::multiply)
        }
    }
}

/// The products by `multiply`, on several threads where that pays.
fn shared<E: Sync, W: Sync>(
    rows: &[E],
    inputs: usize,
    weights: &[W],
    outputs: usize,
    multiply: fn(&[E], usize, &[W], &mut [f32]),
) -> Option<Vec<f32>> {
    let count = rows.len() / inputs;
    if outputs * inputs != weights.len() {
        return None;
    }
    let work = weights.len() * count.max(size_of::<W>());
    let threads = if work < SHARED_WORK_MIN {
        1
    } else {
        accel::threads()
    };
    // Each thread has some of the outputs, of all rows, in a part of its own.
    let part = outputs.div_ceil(threads).next_multiple_of(TILE);
    let mut products = vec![0.0; outputs * count];
    let parts = products
        .chunks_mut(part * count)
        .zip(weights.chunks(part * inputs));
    rayon::in_place_scope(|scope| {
        let mut parts = parts.peekable();
        while let Some((products, weights)) = parts.next() {
            let mut work = move || multiply(rows, inputs, weights, products);
            match parts.peek() {
                Some(_) => scope.spawn(move |_| work()),
                None => work(),
            }
        }
    });
    if part >= outputs || count == 1 {
        return Some(products);
    }
    let mut by_row = Vec::with_capacity(products.len());
    for row in 0..count {
        for part in products.chunks(part * count) {
            let width = part.len() / count;
            by_row.extend_from_slice(&part[row * width..(row + 1) * width]);
        }
    }
    Some(by_row)
}

/// A number format of weights.
trait Weight: Copy + Sync {
    fn widen(self) -> f32;

    /// `rows` `[count, inputs]`, `weights` `[outputs, inputs]` → `products` `[count, outputs]`, with the best
    /// instructions there are.
    fn multiply(rows: &[f32], inputs: usize, weights: &[Self], products: &mut [f32]);

    /// In plain operations.
    fn multiply_anywhere(rows: &[f32], inputs: usize, weights: &[Self], products: &mut [f32]) {
        let outputs = weights.len() / inputs;
        for (row, products) in rows.chunks_exact(inputs).zip(products.chunks_exact_mut(outputs)) {
            for (weights, product) in weights.chunks_exact(inputs).zip(products) {
                *product = dot(row, weights);
            }
        }
    }
}

fn dot<W: Weight>(elements: &[f32], weights: &[W]) -> f32 {
    let mut total = 0.0;
    for (number, weight) in elements.iter().zip(weights) {
        total += number * weight.widen();
    }
    total
}

/// The product with the instructions `$features`, for weights `$weight`: registers of `$lanes` elements,
/// `$load` reads so many weights as f32.
macro_rules! kernel {
    ($name:ident, $weight:ty, $features:literal, $lanes:literal, $zero:ident, $elements:ident, $fused:ident, $store:ident, |$at:ident| $load:expr) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name(rows: &[f32], inputs: usize, weights: &[$weight], products: &mut [f32]) {
            use std::arch::x86_64::*;

            /// `R` rows with four of the matrix; asks for the next four meanwhile.
            #[target_feature(enable = $features)]
            fn tile<const R: usize>(rows: &[f32], inputs: usize, weights: &[$weight]) -> [[f32; R]; TILE] {
                assert!(rows.len() == R * inputs && weights.len() == TILE * inputs);
                let whole = inputs / $lanes * $lanes;
                let mut sums = [[$zero(); R]; TILE];
                for at in (0..whole).step_by($lanes) {
                    // SAFETY: `at` and as many elements as a register holds lie within each row of both;
                    // asking for memory ahead is allowed at any address.
                    unsafe {
                        let ahead = weights
                            .as_ptr()
                            .wrapping_add(TILE * (inputs + at))
                            .cast::<i8>();
                        for line in 0..(TILE * $lanes * size_of::<$weight>()).div_ceil(LINE_BYTES) {
                            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line * LINE_BYTES));
                        }
                        let mut elements = [$zero(); R];
                        for row in 0..R {
                            elements[row] = $elements(rows.as_ptr().add(row * inputs + at));
                        }
                        for output in 0..TILE {
                            let $at = weights.as_ptr().add(output * inputs + at);
                            let weights = $load;
                            for row in 0..R {
                                sums[output][row] = $fused(elements[row], weights, sums[output][row]);
                            }
                        }
                    }
                }
                let mut products = [[0.0; R]; TILE];
                for output in 0..TILE {
                    for row in 0..R {
                        let mut lanes = [0.0f32; $lanes];
                        // SAFETY: there is buffer for a register.
                        unsafe { $store(lanes.as_mut_ptr(), sums[output][row]) };
                        let rest = dot(
                            &rows[row * inputs + whole..(row + 1) * inputs],
                            &weights[output * inputs + whole..(output + 1) * inputs],
                        );
                        products[output][row] = lanes.iter().sum::<f32>() + rest;
                    }
                }
                products
            }

            let (count, outputs) = (rows.len() / inputs, weights.len() / inputs);
            for (at, weights) in weights.chunks(TILE * inputs).enumerate() {
                let first = at * TILE;
                if weights.len() < TILE * inputs {
                    for (row, elements) in rows.chunks_exact(inputs).enumerate() {
                        let products = &mut products[row * outputs + first..(row + 1) * outputs];
                        <$weight>::multiply_anywhere(elements, inputs, weights, products);
                    }
                    continue;
                }
                let mut row = 0;
                while row < count {
                    let rows = &rows[row * inputs..];
                    let mut write = |row: usize, sums: [f32; TILE]| {
                        products[row * outputs + first..][..TILE].copy_from_slice(&sums);
                    };
                    if count - row >= 4 {
                        let sums = tile::<4>(&rows[..4 * inputs], inputs, weights);
                        for at in 0..4 {
                            write(
                                row + at,
                                [sums[0][at], sums[1][at], sums[2][at], sums[3][at]],
                            );
                        }
                        row += 4;
                    } else {
                        let sums = tile::<1>(&rows[..inputs], inputs, weights);
                        write(row, [sums[0][0], sums[1][0], sums[2][0], sums[3][0]]);
                        row += 1;
                    }
                }
            }
        }
    };
}

/// Bytes that memory hands out at a time.
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

macro_rules! weight {
    ($weight:ty, $avx512:ident, $avx2:ident, |$value:ident| $widen:expr) => {
        impl Weight for $weight {
            fn widen(self) -> f32 {
                let $value = self;
                $widen
            }

            fn multiply(rows: &[f32], inputs: usize, weights: &[Self], products: &mut [f32]) {
                #[cfg(target_arch = "x86_64")]
                {
                    if cpu_has_avx512() {
                        // SAFETY: the instructions are there.
                        return unsafe { $avx512(rows, inputs, weights, products) };
                    }
                    if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
                        // SAFETY: the instructions are there.
                        return unsafe { $avx2(rows, inputs, weights, products) };
                    }
                }
                Self::multiply_anywhere(rows, inputs, weights, products);
            }
        }
    };
}

weight!(f32, f32_avx512, f32_avx2, |weight| weight);
weight!(i8, i8_avx512, i8_avx2, |weight| f32::from(weight));
weight!(Bf16, bf16_avx512, bf16_avx2, |weight| f32::from_bits(
    u32::from(weight.to_bits()) << 16
));

macro_rules! avx512 {
    ($name:ident, $weight:ty, |$at:ident| $load:expr) => {
        kernel!(
            $name,
            $weight,
            "avx512f",
            16,
            _mm512_setzero_ps,
            _mm512_loadu_ps,
            _mm512_fmadd_ps,
            _mm512_storeu_ps,
            |$at| $load
        );
    };
}

macro_rules! avx2 {
    ($name:ident, $weight:ty, |$at:ident| $load:expr) => {
        kernel!(
            $name,
            $weight,
            "avx2,fma",
            8,
            _mm256_setzero_ps,
            _mm256_loadu_ps,
            _mm256_fmadd_ps,
            _mm256_storeu_ps,
            |$at| $load
        );
    };
}

avx512!(f32_avx512, f32, |at| _mm512_loadu_ps(at));
avx512!(i8_avx512, i8, |at| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(
    _mm_loadu_si128(at.cast())
)));
avx512!(bf16_avx512, Bf16, |at| {
    let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
});
avx2!(f32_avx2, f32, |at| _mm256_loadu_ps(at));
avx2!(i8_avx2, i8, |at| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(
    _mm_loadl_epi64(at.cast())
)));
avx2!(bf16_avx2, Bf16, |at| {
    let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
});

/// Products by each kernel that this CPU can run, beside those in plain operations.
#[cfg(test)]
pub(super) fn by_every_instruction_set() -> Vec<(Vec<f32>, Vec<f32>)> {
    fn compare<W: Weight>(
        weights: &[W],
        rows: &[f32],
        inputs: usize,
        kernels: &[Kernel<W>],
    ) -> Vec<(Vec<f32>, Vec<f32>)> {
        let buffer = || vec![0.0; rows.len() / inputs * (weights.len() / inputs)];
        let mut right = buffer();
        W::multiply_anywhere(rows, inputs, weights, &mut right);
        let by = |kernel: &Kernel<W>| {
            let mut found = buffer();
            // SAFETY: only kernels that this CPU can run are on the list.
            unsafe { kernel(rows, inputs, weights, &mut found) };
            (found, right.clone())
        };
        kernels.iter().map(by).collect()
    }
    type Kernel<W> = unsafe fn(&[f32], usize, &[W], &mut [f32]);
    const INPUTS: usize = 37;
    let elements = |count: usize| (0..count).map(|at| ((at * 7919) % 251) as f32 / 125.0 - 1.0);
    let rows: Vec<f32> = elements(5 * INPUTS).collect();
    let f32s: Vec<f32> = elements(11 * INPUTS).collect();
    let bf16s: Vec<Bf16> = elements(11 * INPUTS).map(Bf16::from_f32).collect();
    let i8s: Vec<i8> = elements(11 * INPUTS)
        .map(|number| (number * 100.0) as i8)
        .collect();
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if cpu_has_avx512() {
            found.extend(compare(&f32s, &rows, INPUTS, &[f32_avx512]));
            found.extend(compare(&bf16s, &rows, INPUTS, &[bf16_avx512]));
            found.extend(compare(&i8s, &rows, INPUTS, &[i8_avx512]));
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            found.extend(compare(&f32s, &rows, INPUTS, &[f32_avx2]));
            found.extend(compare(&bf16s, &rows, INPUTS, &[bf16_avx2]));
            found.extend(compare(&i8s, &rows, INPUTS, &[i8_avx2]));
        }
    }
    found
}

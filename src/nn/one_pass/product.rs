//! Products of a few rows with a matrix of 8-bit integers.

use rayon::prelude::*;
use tch::Tensor;

use super::numbers::{View, codes_of, tensor_of};
use crate::nn::accel;

/// Bytes of a matrix from which on more than one thread reads it; starting one takes as long as reading about so many.
const SHARED_BYTES_MIN: usize = 1 << 20;
/// Rows of the matrix that are multiplied side by side.
const TILE: usize = 4;

/// `input · (codes · scales)ᵀ`, for few rows: every code is read once and used for all of them.
///
/// # Shapes
/// `input` `[.., inputs]`, `codes` `[outputs, inputs]` i8, `scales` `[outputs]` f32 → `[.., outputs]` in the input's kind.
pub fn multiply_codes(input: &Tensor, codes: &Tensor, scales: &Tensor) -> Option<Tensor> {
    let view = View::of(input)?;
    let (codes, scales) = (codes_of(codes)?, View::of(scales)?);
    let scales = scales.contiguous()?.f32()?;
    let (mut size, mut rows) = (view.size.clone(), Vec::new());
    let inputs = size.pop()?;
    view.contiguous()?.widen_into(&mut rows);
    if codes.len() != scales.len() * inputs {
        return None;
    }
    let count = rows.len() / inputs;
    // By output first: each thread writes a part of its own.
    let mut products = vec![0.0; scales.len() * count];
    let threads = accel::threads();
    if threads == 1 || codes.len() < SHARED_BYTES_MIN {
        multiply(&rows, inputs, codes, scales, &mut products);
    } else {
        let part = scales.len().div_ceil(threads).next_multiple_of(TILE);
        products
            .par_chunks_mut(part * count)
            .zip(codes.par_chunks(part * inputs))
            .zip(scales.par_chunks(part))
            .for_each(|((products, codes), scales)| multiply(&rows, inputs, codes, scales, products));
    }
    let outputs = scales.len();
    size.push(outputs);
    if count > 1 {
        let by_output = std::mem::replace(&mut products, vec![0.0; outputs * count]);
        for (output, of_output) in by_output.chunks_exact(count).enumerate() {
            for (row, product) in of_output.iter().enumerate() {
                products[row * outputs + output] = *product;
            }
        }
    }
    tensor_of(&products, &size, input.kind())
}

/// `rows` `[count, inputs]`, `codes` `[outputs, inputs]`, `scales` `[outputs]` → `products` `[outputs, count]`.
fn multiply(rows: &[f32], inputs: usize, codes: &[i8], scales: &[f32], products: &mut [f32]) {
    let count = rows.len() / inputs;
    let dots = fastest_dots();
    let tiles = (codes.chunks(TILE * inputs))
        .zip(scales.chunks(TILE))
        .zip(products.chunks_mut(TILE * count));
    for ((codes, scales), products) in tiles {
        for (row, numbers) in rows.chunks_exact(inputs).enumerate() {
            let mut sums = [0.0; TILE];
            if scales.len() == TILE {
                // SAFETY: the instructions are there, `fastest_dots` looked.
                sums = unsafe { dots(numbers, codes) };
            } else {
                for (sum, codes) in sums.iter_mut().zip(codes.chunks_exact(inputs)) {
                    *sum = dot(numbers, codes);
                }
            }
            for (at, (sum, scale)) in sums.iter().zip(scales).enumerate() {
                products[at * count + row] = sum * scale;
            }
        }
    }
}

/// Products of one row `[inputs]` with four of the matrix, `[4, inputs]`.
type Dots = unsafe fn(&[f32], &[i8]) -> [f32; TILE];

fn fastest_dots() -> Dots {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") {
            return dots_avx512;
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            return dots_avx2;
        }
    }
    dots_anywhere
}

/// In plain operations.
fn dots_anywhere(numbers: &[f32], codes: &[i8]) -> [f32; TILE] {
    std::array::from_fn(|row| dot(numbers, &codes[row * numbers.len()..(row + 1) * numbers.len()]))
}

fn dot(numbers: &[f32], codes: &[i8]) -> f32 {
    let mut total = 0.0;
    for (number, code) in numbers.iter().zip(codes) {
        total += number * f32::from(*code);
    }
    total
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn dots_avx512(numbers: &[f32], codes: &[i8]) -> [f32; TILE] {
    use std::arch::x86_64::*;
    let inputs = numbers.len();
    let whole = inputs / 16 * 16;
    assert_eq!(codes.len(), TILE * inputs);
    let mut sums = [_mm512_setzero_ps(); TILE];
    for at in (0..whole).step_by(16) {
        // SAFETY: sixteen numbers from `at` on lie within `numbers`, sixteen codes from there on within each row.
        unsafe {
            let numbers = _mm512_loadu_ps(numbers.as_ptr().add(at));
            let ahead = codes.as_ptr().wrapping_add(TILE * (inputs + at));
            _mm_prefetch::<_MM_HINT_T0>(ahead);
            for row in 0..TILE {
                let codes = _mm_loadu_si128(codes.as_ptr().add(row * inputs + at).cast());
                let codes = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
                sums[row] = _mm512_fmadd_ps(numbers, codes, sums[row]);
            }
        }
    }
    let mut products = [0.0; TILE];
    for (row, product) in products.iter_mut().enumerate() {
        let rest = &codes[row * inputs + whole..(row + 1) * inputs];
        *product = _mm512_reduce_add_ps(sums[row]) + dot(&numbers[whole..], rest);
    }
    products
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dots_avx2(numbers: &[f32], codes: &[i8]) -> [f32; TILE] {
    use std::arch::x86_64::*;
    let inputs = numbers.len();
    let whole = inputs / 8 * 8;
    assert_eq!(codes.len(), TILE * inputs);
    let mut sums = [_mm256_setzero_ps(); TILE];
    for at in (0..whole).step_by(8) {
        // SAFETY: eight numbers from `at` on lie within `numbers`, eight codes from there on within each row.
        unsafe {
            let numbers = _mm256_loadu_ps(numbers.as_ptr().add(at));
            for row in 0..TILE {
                let codes = _mm_loadl_epi64(codes.as_ptr().add(row * inputs + at).cast());
                let codes = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
                sums[row] = _mm256_fmadd_ps(numbers, codes, sums[row]);
            }
        }
    }
    let mut products = [0.0; TILE];
    for (row, product) in products.iter_mut().enumerate() {
        let mut lanes = [0.0; 8];
        // SAFETY: eight numbers have room.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums[row]) };
        let rest = &codes[row * inputs + whole..(row + 1) * inputs];
        *product = lanes.iter().sum::<f32>() + dot(&numbers[whole..], rest);
    }
    products
}

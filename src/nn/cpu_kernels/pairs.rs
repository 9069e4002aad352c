//! Products of bf16 rows with a frozen bf16 matrix, by the instruction that multiplies them in pairs
//! (avx512_bf16): half as many as in f32, and nothing to widen.
//!
//! The sums of a row are taken in the same order whatever stands beside it, so its products are the same bit
//! for bit alone and in company.

use half::bf16;

use crate::nn::accel::{cpu_has_avx512, cpu_multiplies_bf16};

/// Rows of the matrix, and rows of the input, that are multiplied side by side.
#[cfg(target_arch = "x86_64")]
const TILE: usize = 4;

/// Whether this CPU has the instructions.
pub(super) fn can_multiply() -> bool {
    cpu_has_avx512() && cpu_multiplies_bf16()
}

/// `rows` `[count, inputs]`, `weights` `[outputs, inputs]` → `products` `[count, outputs]`.
///
/// # Panics
/// Where [`can_multiply`] says no.
pub(super) fn multiply(rows: &[bf16], inputs: usize, weights: &[bf16], products: &mut [f32]) {
    assert!(can_multiply());
    #[cfg(target_arch = "x86_64")]
    {
        let (count, outputs) = (rows.len() / inputs, weights.len() / inputs);
        assert!(rows.len() == count * inputs && weights.len() == outputs * inputs);
        assert!(products.len() == count * outputs);
        // SAFETY: the instructions are there, and the sizes fit.
        unsafe { avx512::multiply(rows, inputs, weights, products) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (rows, inputs, weights, products);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::TILE;

    /// Elements of a register.
    const LANES: usize = 32;
    /// Bytes that memory hands out at a time.
    const LINE_BYTES: usize = 64;

    /// See [`super::multiply`].
    ///
    /// # Safety
    /// The slices have the sizes that belong together.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn multiply(rows: &[bf16], inputs: usize, weights: &[bf16], products: &mut [f32]) {
        let (count, outputs) = (rows.len() / inputs, weights.len() / inputs);
        for first in (0..outputs).step_by(TILE) {
            let width = TILE.min(outputs - first);
            let weights = &weights[first * inputs..(first + width) * inputs];
            let mut row = 0;
            while row < count {
                let rows = &rows[row * inputs..];
                let products = &mut products[row * outputs + first..];
                // SAFETY: rows and weights hold as many as are asked for, and so do the products.
                row += unsafe {
                    match (width, count - row) {
                        (TILE, TILE..) => {
                            tile::<TILE, TILE>(rows, inputs, weights, products, outputs, row == 0)
                        }
                        (TILE, _) => tile::<1, TILE>(rows, inputs, weights, products, outputs, row == 0),
                        (_, _) => {
                            for at in 0..width {
                                let weights = &weights[at * inputs..];
                                tile::<1, 1>(rows, inputs, weights, &mut products[at..], outputs, false);
                            }
                            1
                        }
                    }
                };
            }
        }
    }

    /// `R` rows with `T` of the matrix; asks for the next `T` meanwhile. Returns `R`.
    ///
    /// # Safety
    /// There are as many rows and weights, and room for the products.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn tile<const R: usize, const T: usize>(
        rows: &[bf16],
        inputs: usize,
        weights: &[bf16],
        products: &mut [f32],
        stride: usize,
        ahead: bool,
    ) -> usize {
        debug_assert!(rows.len() >= R * inputs && weights.len() >= T * inputs);
        let mut sums = [[_mm512_setzero_ps(); R]; T];
        let whole = inputs / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            if ahead {
                let next = weights.as_ptr().wrapping_add(T * (inputs + at)).cast::<i8>();
                for line in 0..T {
                    _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line * LINE_BYTES));
                }
            }
            // SAFETY: as many elements as a register holds lie within each row of both.
            let load = |from: &[bf16], row: usize| unsafe {
                from.as_ptr()
                    .add(row * inputs + at)
                    .cast::<__m512bh>()
                    .read_unaligned()
            };
            let elements: [__m512bh; R] = std::array::from_fn(|row| load(rows, row));
            for (output, sums) in sums.iter_mut().enumerate() {
                let weights = load(weights, output);
                for (sum, elements) in sums.iter_mut().zip(elements) {
                    *sum = _mm512_dpbf16_ps(*sum, elements, weights);
                }
            }
        }
        if whole < inputs {
            let mask = (1u32 << (inputs - whole)) - 1;
            // SAFETY: the mask leaves out what lies beyond a row; both types are 512 bits of any value.
            let load = |from: &[bf16], row: usize| unsafe {
                let elements = _mm512_maskz_loadu_epi16(mask, from.as_ptr().add(row * inputs + whole).cast());
                std::mem::transmute::<__m512i, __m512bh>(elements)
            };
            for (output, sums) in sums.iter_mut().enumerate() {
                for (row, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_dpbf16_ps(*sum, load(rows, row), load(weights, output));
                }
            }
        }
        for row in 0..R {
            let totals = totals(sums.map(|sums| sums[row]));
            products[row * stride..row * stride + T].copy_from_slice(&totals);
        }
        R
    }

    /// The sum of each register's lanes, in the same order for each.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn totals<const T: usize>(sums: [__m512; T]) -> [f32; T] {
        let mut halves = [_mm256_setzero_ps(); TILE];
        for (half, sum) in halves.iter_mut().zip(sums) {
            *half = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps::<1>(sum));
        }
        let [a, b, c, d] = halves;
        let pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let all = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps::<1>(pairs));
        let mut totals = [0.0; TILE];
        // SAFETY: there is room for a register.
        unsafe { _mm_storeu_ps(totals.as_mut_ptr(), all) };
        std::array::from_fn(|at| totals[at])
    }
}

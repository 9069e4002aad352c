//! What low-rank adapters add to a few rows, in one call instead of five operations for each of them.

use multiversion::multiversion;
use tch::Tensor;

use super::elements::{View, tensor_of};
use super::product::products;

/// A low-rank update of some columns of a projection's output.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'l> {
    /// The first of the columns.
    pub first: usize,
    /// `[rank, inputs]`, f32 or bf16.
    pub a: &'l Tensor,
    /// `[rank, outputs]`, f32: the second matrix by rank, with its scale.
    pub b: &'l Tensor,
}

/// `output + input · aᵀ · b` in the columns of each update; summed in f32.
///
/// # Shapes
/// `output` `[.., N]`, `input` `[.., inputs]` with as many rows → `[.., N]` in the dtype of `output`.
pub fn add_low_rank(output: &Tensor, input: &Tensor, updates: &[LowRank<'_>]) -> Option<Tensor> {
    let (view, input) = (View::of(output)?, View::of(input)?);
    let (width, inputs) = (*view.size().last()?, *input.size().last()?);
    let mut sums = Vec::new();
    view.contiguous()?.widen_into(&mut sums);
    let input = input.contiguous()?;
    if input.len() / inputs != sums.len() / width {
        return None;
    }
    for update in updates {
        let (a, b) = (View::of(update.a)?, View::of(update.b)?);
        let [rank, outputs] = *b.size() else {
            return None;
        };
        if update.first + outputs > width {
            return None;
        }
        let low = products(input, inputs, a.contiguous()?, rank)?; // [rows, rank]
        let columns = b.contiguous()?.f32()?;
        for (row, low) in sums.chunks_exact_mut(width).zip(low.chunks_exact(rank)) {
            add_rows(low, columns, &mut row[update.first..update.first + outputs]);
        }
    }
    tensor_of(&sums, view.size(), output.kind())
}

/// Adds `Σ share · row`: `shares` `[rank]`, `rows` `[rank, outputs]`, `sums` `[outputs]`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
fn add_rows(shares: &[f32], rows: &[f32], sums: &mut [f32]) {
    for (share, row) in shares.iter().zip(rows.chunks_exact(sums.len())) {
        for (sum, number) in sums.iter_mut().zip(row) {
            *sum += share * number;
        }
    }
}

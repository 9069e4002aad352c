//! Sequences of different lengths, one after another in one matrix: `[R, D]` with `R = Σ lengths`.
//!
//! What works frame by frame (projections, norms, feed-forward parts) sees one large matrix without padding;
//! what looks along time takes each sequence's rows by themselves. So nothing can leak from one clip into
//! another, and a clip is computed alike alone and in company.

use std::ops::Range;

use tch::{Device, Tensor};

/// Rows of one pass through a network on the CPU. More are no faster there: matrix products are at their best
/// speed by then, and their results no longer fit the cache.
const ROWS_PER_PASS: i64 = 1024;

/// Which sequences pass through a network together: all of them, or on the CPU a few neighbours at a time, so
/// that memory does not grow with the batch.
pub fn passes(lengths: &[i64], device: Device) -> Vec<Range<usize>> {
    let rows_max = if device == Device::Cpu {
        ROWS_PER_PASS
    } else {
        i64::MAX
    };
    let mut passes: Vec<Range<usize>> = Vec::new();
    let mut rows = 0_i64;
    for (index, &length) in lengths.iter().enumerate() {
        match passes.last_mut() {
            Some(pass) if rows + length <= rows_max => pass.end = index + 1,
            _ => {
                passes.push(index..index + 1);
                rows = 0;
            }
        }
        rows += length;
    }
    passes
}

/// Rows of each sequence.
pub fn row_ranges(lengths: &[i64]) -> impl Iterator<Item = Range<i64>> + '_ {
    lengths.iter().scan(0, |start, &length| {
        let range = *start..*start + length;
        *start = range.end;
        Some(range)
    })
}

/// The rows of one sequence, sharing storage: `[R, D]` → `[T, D]`.
pub fn rows_of(packed: &Tensor, range: &Range<i64>) -> Tensor {
    packed.narrow(0, range.start, range.end - range.start)
}

/// One sequence after another: `[T_i, D]` each → `[R, D]`.
pub fn join(sequences: &[Tensor]) -> Tensor {
    match sequences {
        [only] => only.shallow_clone(),
        _ => Tensor::cat(sequences, 0),
    }
}

/// Leaves the padding out: `[B, T, D]` → `[R, D]`.
pub fn pack(padded: &Tensor, lengths: &[i64]) -> Tensor {
    let sequences: Vec<Tensor> = lengths
        .iter()
        .enumerate()
        .map(|(row, &length)| padded.get(row as i64).narrow(0, 0, length))
        .collect();
    join(&sequences)
}

/// Side by side, zero beyond each sequence's end: `[R, D]` → `[B, max(lengths), D]`.
pub fn unpack(packed: &Tensor, lengths: &[i64]) -> Tensor {
    let (_, width) = packed.size2().expect("packed sequences are a matrix");
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let batch = lengths.len() as i64;
    if lengths.iter().all(|&length| length == longest) {
        return packed.reshape([batch, longest, width]);
    }
    let padded = Tensor::zeros([batch, longest, width], (packed.kind(), packed.device()));
    for (row, range) in row_ranges(lengths).enumerate() {
        let length = range.end - range.start;
        padded
            .get(row as i64)
            .narrow(0, 0, length)
            .copy_(&rows_of(packed, &range));
    }
    padded
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn a_pass_holds_as_many_neighbours_as_fit_and_always_one() {
        let found = passes(&[500, 500, 100, 2000, 1, 1, 1023], Device::Cpu);

        assert_eq!(found, [0..2, 2..3, 3..4, 4..6, 6..7]);
        assert_eq!(passes(&[500; 9], Device::Cuda(0)), vec![0..9; 1]);
        assert!(passes(&[], Device::Cpu).is_empty());
    }

    #[test]
    fn what_is_packed_and_unpacked_again_is_the_same_with_zeros_beyond_each_end() {
        let padded = Tensor::randn([3, 5, 2], (Kind::Float, Device::Cpu));
        let lengths = [2, 5, 1];

        let packed = pack(&padded, &lengths);

        assert_eq!(packed.size(), [8, 2]);
        assert_eq!(packed.get(2), padded.get(1).get(0));
        let again = unpack(&packed, &lengths);
        for (row, &length) in lengths.iter().enumerate() {
            let (found, right) = (again.get(row as i64), padded.get(row as i64));
            assert_eq!(found.narrow(0, 0, length), right.narrow(0, 0, length));
            assert_eq!(
                found
                    .narrow(0, length, 5 - length)
                    .abs()
                    .sum(Kind::Float)
                    .double_value(&[]),
                0.0
            );
        }
    }

    #[test]
    fn equal_lengths_need_no_copy() {
        let packed = Tensor::randn([6, 2], (Kind::Float, Device::Cpu));

        assert_eq!(unpack(&packed, &[3, 3]), packed.view([2, 3, 2]));
    }
}

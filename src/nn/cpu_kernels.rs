//! CPU kernels for the next token: one pass over the elements for what takes libtorch many small operations.
//!
//! A step of a small language model is some hundred matrix products and, written in tensors, a thousand small
//! operations that each cost more to start than to compute. The kernels here do the norm, the rotation, the
//! writing into the cache and the attention of a step in one call each, on one thread, in f32 whatever the
//! elements are kept in.
//!
//! Each gives nothing back where its tensors are not what it is made for (another device, another dtype,
//! gradients, so much work that several threads are worth their start): the caller then computes the same
//! with tensors.

mod elements;
mod low_rank;
mod pairs;
mod product;

use multiversion::multiversion;
use tch::{Kind, Tensor};

use elements::{View, ViewMut, tensor_of};
pub use low_rank::{LowRank, add_low_rank};
pub use product::{multiply, multiply_in_f32, multiply_qweight};

/// Elements up to which one thread is faster than starting another.
const ELEMENTS_MAX: usize = 1 << 15;
/// Multiplications of an attention up to which one thread is faster than starting another.
const PRODUCTS_MAX: usize = 1 << 21;
/// Sums that grow side by side: the widest registers hold 16 elements.
const LANES: usize = 16;

/// `x / rms(x) · weight` for one position of each row: `[B, 1, width]` → the same, in the same dtype.
pub fn rms_norm(hidden: &Tensor, weight: &Tensor, epsilon: f64) -> Option<Tensor> {
    let (input, weight) = (View::of(hidden)?, View::of(weight)?);
    let [_, 1, width] = *input.size() else {
        return None;
    };
    let (elements, weight) = (input.contiguous()?, weight.contiguous()?);
    if elements.len() > ELEMENTS_MAX || weight.len() != width {
        return None;
    }
    let (mut rows, mut scratch) = (Vec::new(), Vec::new());
    elements.widen_into(&mut rows);
    let scale = weight.as_f32(&mut scratch);
    rms_norm_rows(&mut rows, scale, epsilon as f32);
    tensor_of(&rows, input.size(), hidden.kind())
}

/// Turns one position of each row: `heads` `[B, N, 1, head]`, `cos` and `sin` `[B, 1, 1, head]` f32 with the
/// first half of `sin` negated → `[B, N, 1, head]` f32.
pub fn apply_rope(heads: &Tensor, cos: &Tensor, sin: &Tensor) -> Option<Tensor> {
    let input = View::of(heads)?;
    let [batch, count, 1, width] = *input.size() else {
        return None;
    };
    let (cos, sin) = (View::of(cos)?, View::of(sin)?);
    let (cos, sin) = (cos.contiguous()?.f32()?, sin.contiguous()?.f32()?);
    if cos.len() != batch * width || sin.len() != cos.len() || batch * count * width > ELEMENTS_MAX {
        return None;
    }
    let mut turned = vec![0.0; batch * count * width];
    let mut scratch = Vec::new();
    for (at, out) in turned.chunks_exact_mut(width).enumerate() {
        let (row, head) = (at / count, at % count);
        let from = input.row(&[row, head, 0], &mut scratch);
        let of_row = row * width..(row + 1) * width;
        rotate_head(from, &cos[of_row.clone()], &sin[of_row], out);
    }
    tensor_of(&turned, input.size(), Kind::Float)
}

/// Writes `new` `[B, N, 1, head]` into `buffer` `[slots, N, capacity, head]` (f32), row `b` at `positions[b]`
/// of `slots[b]`. Returns whether it did: the tensors must be contiguous, on the CPU, and share no memory.
///
/// # Safety
/// While it runs, nothing else reads or writes the storage of `buffer`: no view of it (a `Tensor` is a
/// reference-counted handle, so `&mut` alone does not say so) is used on another thread.
pub(crate) unsafe fn append_kv(
    buffer: &mut Tensor,
    slots: &[usize],
    positions: &[i64],
    new: &Tensor,
) -> bool {
    // SAFETY: as this function's contract says.
    unsafe { try_append_kv(buffer, slots, positions, new) }.is_some()
}

/// See [`append_kv`].
///
/// # Safety
/// As [`append_kv`].
unsafe fn try_append_kv(buffer: &mut Tensor, slots: &[usize], positions: &[i64], new: &Tensor) -> Option<()> {
    let input = View::of(new)?;
    let [batch, heads, 1, width] = *input.size() else {
        return None;
    };
    // SAFETY: the caller keeps others away from the storage.
    let buffer = unsafe { ViewMut::of(buffer, &input) }?;
    let [_, buffer_heads, capacity, buffer_width] = buffer.size[..] else {
        return None;
    };
    if (heads, width) != (buffer_heads, buffer_width) || slots.len() != batch || positions.len() != batch {
        return None;
    }
    let mut scratch = Vec::new();
    for (row, (slot, position)) in slots.iter().zip(positions).enumerate() {
        let position = usize::try_from(*position)
            .ok()
            .filter(|position| *position < capacity)?;
        for head in 0..heads {
            let from = input.row(&[row, head, 0], &mut scratch);
            let at = ((slot * heads + head) * capacity + position) * width;
            buffer.elements.get_mut(at..at + width)?.copy_from_slice(from);
        }
    }
    Some(())
}

/// What one new position of each row sees.
#[derive(Clone, Copy, Debug)]
pub struct KvView<'s> {
    /// `[slots, N_kv, capacity, head]` f32.
    pub keys: &'s Tensor,
    /// As the keys.
    pub values: &'s Tensor,
    /// Each row's slot.
    pub slots: &'s [usize],
    /// How many of its first positions each row sees, at least 1.
    pub lengths: &'s [i64],
}

/// Attention of one position of each row over what it sees.
///
/// # Shapes
/// `queries` `[B, N, 1, head]`; `bias` f32, added to the scores, `[B or 1, N or 1, 1, T]` with `T` at least
/// the longest of the lengths → `[B, 1, N·head]` f32.
pub fn decode_attention(
    queries: &Tensor,
    seen: KvView<'_>,
    scale: f64,
    bias: Option<&Tensor>,
) -> Option<Tensor> {
    let queries = View::of(queries)?;
    let [batch, heads, 1, width] = *queries.size() else {
        return None;
    };
    let (keys, values) = (View::of(seen.keys)?, View::of(seen.values)?);
    if keys.size() != values.size() {
        return None;
    }
    let [_, kv_heads, capacity, kv_width] = *keys.size() else {
        return None;
    };
    let (keys, values) = (keys.contiguous()?.f32()?, values.contiguous()?.f32()?);
    let lengths: Vec<usize> = (seen.lengths.iter())
        .map(|length| {
            usize::try_from(*length)
                .ok()
                .filter(|length| (1..=capacity).contains(length))
        })
        .collect::<Option<_>>()?;
    // Rows of one slot read the same keys and values, the last one the most: other kernels copy them for
    // each.
    let all: usize = (seen.slots.iter().zip(&lengths).enumerate())
        .filter(|(row, (slot, _))| !seen.slots[row + 1..].contains(slot))
        .map(|(_, (_, length))| length)
        .sum();
    if kv_width != width
        || seen.slots.len() != batch
        || lengths.len() != batch
        || heads % kv_heads.max(1) != 0
        || 2 * all * heads * width > PRODUCTS_MAX
    {
        return None;
    }
    let bias = match bias {
        Some(bias) => Some(Bias::of(bias, batch, heads, &lengths)?),
        None => None,
    };

    let group = heads / kv_heads;
    let mut attended = vec![0.0; batch * heads * width];
    let (mut asked, mut scores, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
    for (row, (slot, length)) in seen.slots.iter().zip(&lengths).enumerate() {
        for kv_head in 0..kv_heads {
            let first = (slot * kv_heads + kv_head) * capacity * width;
            let of_head = first..first + length * width;
            let (keys, values) = (keys.get(of_head.clone())?, values.get(of_head)?);
            asked.clear();
            scores.clear();
            for head in kv_head * group..(kv_head + 1) * group {
                let query = queries.row(&[row, head, 0], &mut scratch);
                asked.extend(query.iter().map(|number| number * scale as f32));
                match &bias {
                    Some(bias) => scores.extend_from_slice(bias.row(row, head, *length, &mut scratch)),
                    None => scores.resize(scores.len() + length, 0.0),
                }
            }
            let out = (row * heads + kv_head * group) * width;
            let out = &mut attended[out..out + group * width];
            attend_heads(width, &asked, keys, values, &mut scores, out);
        }
    }
    tensor_of(&attended, &[batch, 1, heads * width], Kind::Float)
}

/// What is added to scores, repeated over rows and heads where it has one of them only.
struct Bias<'b> {
    view: View<'b>,
    rows: usize,
    heads: usize,
}

impl<'b> Bias<'b> {
    fn of(bias: &'b Tensor, batch: usize, heads: usize, lengths: &[usize]) -> Option<Self> {
        let view = View::of(bias)?;
        let [of_rows, of_heads, 1, keys] = *view.size() else {
            return None;
        };
        let fits = (of_rows == 1 || of_rows == batch)
            && (of_heads == 1 || of_heads == heads)
            && lengths.iter().all(|length| *length <= keys);
        fits.then_some(Self {
            rows: of_rows,
            heads: of_heads,
            view,
        })
    }

    fn row<'s>(&'s self, row: usize, head: usize, length: usize, scratch: &'s mut Vec<f32>) -> &'s [f32] {
        let at = [row.min(self.rows - 1), head.min(self.heads - 1), 0];
        &self.view.row(&at, scratch)[..length]
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
fn rms_norm_rows(rows: &mut [f32], scale: &[f32], epsilon: f32) {
    for row in rows.chunks_exact_mut(scale.len()) {
        let factor = 1.0 / (dot(row, row) / row.len() as f32 + epsilon).sqrt();
        for (number, scale) in row.iter_mut().zip(scale) {
            *number = *number * factor * scale;
        }
    }
}

fn rotate_head(from: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let half = from.len() / 2;
    let (first, second) = from.split_at(half);
    let swapped = second.iter().chain(first);
    for ((((out, number), swapped), cos), sin) in out.iter_mut().zip(from).zip(swapped).zip(cos).zip(sin) {
        *out = number * cos + swapped * sin;
    }
}

/// Attention of the heads that share keys: `queries` `[G, width]`, scaled; `keys`, `values` `[T, width]`;
/// `scores` `[G, T]` holds what is added to them; `out` `[G, width]`, zero.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
fn attend_heads(
    width: usize,
    queries: &[f32],
    keys: &[f32],
    values: &[f32],
    scores: &mut [f32],
    out: &mut [f32],
) {
    let length = keys.len() / width;
    for (at, key) in keys.chunks_exact(width).enumerate() {
        for (query, scores) in queries.chunks_exact(width).zip(scores.chunks_exact_mut(length)) {
            scores[at] += dot(query, key);
        }
    }
    for scores in scores.chunks_exact_mut(length) {
        softmax(scores);
    }
    for (at, value) in values.chunks_exact(width).enumerate() {
        for (out, scores) in out.chunks_exact_mut(width).zip(scores.chunks_exact(length)) {
            let share = scores[at];
            for (out, number) in out.iter_mut().zip(value) {
                *out += share * number;
            }
        }
    }
}

#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let largest = maximum(scores);
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    let factor = 1.0 / sum(scores);
    for score in scores.iter_mut() {
        *score *= factor;
    }
}

/// `e^x` for `x` up to 0, within two units in the last place; 0 where that is below what f32 holds in full,
/// NaN for NaN.
///
/// Cody and Waite: `x = n·ln 2 + r`, a polynomial for `e^r`, `n` put into the exponent. In plain operations,
/// so that the compiler can do sixteen at a time.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    /// Adding it rounds to a whole number, which then stands in the lowest bits.
    const ROUNDING: f32 = 12_582_912.0; // 1.5 · 2²³
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let low = x < LOWEST;
    let x = if low { LOWEST } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUNDING;
    let whole = shifted - ROUNDING;
    let r = x - whole * LN_2_HIGH - whole * LN_2_LOW;
    // The polynomial of Cephes' expf.
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + coefficient;
    }
    let mantissa = p * r * r + r + 1.0;
    let exponent = (shifted.to_bits() as i32)
        .wrapping_sub(ROUNDING.to_bits() as i32)
        .wrapping_add(127);
    let power = f32::from_bits((exponent as u32) << 23);
    if low { 0.0 } else { mantissa * power }
}

/// `ln Σ e^x`; minus infinity for none.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
pub fn log_sum_exp(values: &[f32]) -> f32 {
    let largest = maximum(values);
    if largest == f32::NEG_INFINITY {
        return largest;
    }
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += exp(chunk[lane] - largest);
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *sum += exp(*value - largest);
    }
    largest + sums.iter().sum::<f32>().ln()
}

/// The indices of the `count` largest values, the largest first; of equals the first comes first.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
pub fn largest(values: &[f32], count: usize) -> Vec<usize> {
    const BLOCK: usize = 2 * LANES;
    let mut found: Vec<usize> = Vec::with_capacity(count + 1);
    let mut least = f32::NEG_INFINITY;
    for (block, part) in values.chunks(BLOCK).enumerate() {
        // Soon most blocks have nothing to add, which is seen of all of a block at once.
        if found.len() == count && !part.iter().fold(false, |any, value| any | (*value > least)) {
            continue;
        }
        for (at, value) in part.iter().enumerate() {
            if *value > least || found.len() < count {
                let index = found.partition_point(|known| values[*known] >= *value);
                found.insert(index, block * BLOCK + at);
                found.truncate(count);
                if found.len() == count {
                    least = found.last().map_or(least, |last| values[*last]);
                }
            }
        }
    }
    found
}

/// The largest value; minus infinity for none.
#[inline(always)]
fn maximum(values: &[f32]) -> f32 {
    let larger = |one: f32, other: f32| if other > one { other } else { one };
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    let all = lanes.iter().chain(rest);
    all.fold(f32::NEG_INFINITY, |one, other| larger(one, *other))
}

#[inline(always)]
fn sum(elements: &[f32]) -> f32 {
    let (chunks, rest) = elements.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += chunk[lane];
        }
    }
    for (sum, number) in sums.iter_mut().zip(rest) {
        *sum += number;
    }
    sums.iter().sum()
}

/// `Σ a·b`, in sixteen sums.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] += a * b;
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests;

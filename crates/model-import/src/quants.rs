//! The number formats of GGUF and CTranslate2, block by block, to `f32`.
//!
//! Each formula performs the same `f32` operations in the same order as the `gguf` Python package does, so
//! the results are equal to the last bit (a committed fixture proves it, one block type at a time).
//!
//! # Source
//! Block layouts: `ggml-common.h` of ggml; arithmetic: `gguf/quants.py` of the package `gguf` 0.19.0.

use half::f16;

/// How one tensor's values are stored in a source file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Encoding {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// Signed bytes (CTranslate2, with a scale per row beside them).
    I8,
    /// Signed 16-bit values (CTranslate2, with a scale beside them).
    I16,
    /// 32 values: scale, 4 bits each.
    Q4_0,
    /// 32 values: scale, minimum, 4 bits each.
    Q4_1,
    /// 32 values: scale, 5 bits each.
    Q5_0,
    /// 32 values: scale, minimum, 5 bits each.
    Q5_1,
    /// 32 values: scale, 8 bits each.
    Q8_0,
    /// 256 values in 8 groups with 6-bit scales and minima, 4 bits each.
    Q4K,
    /// 256 values in 8 groups with 6-bit scales and minima, 5 bits each.
    Q5K,
    /// 256 values in 16 groups with 8-bit scales, 6 bits each.
    Q6K,
}

impl Encoding {
    /// The encoding behind a GGUF tensor type number, if it is one that is handled.
    pub fn from_ggml(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// The name under which people know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I8 => "I8",
            Self::I16 => "I16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Numbers per block.
    pub fn block_elements(self) -> u64 {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 | Self::I8 | Self::I16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> u64 {
        match self {
            Self::I8 => 1,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::F32 => 4,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 2 + 2 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 2 + 2 + 4 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q4K => 2 + 2 + 12 + 128,
            Self::Q5K => 2 + 2 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Bytes that `elements` values take, or `None` when they do not fill whole blocks or overflow.
    pub fn bytes_for(self, elements: u64) -> Option<u64> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// Decodes whole blocks: `input` holds `n` of them, `output` takes `n · block_elements` values.
    ///
    /// `I8` and `I16` come out as plain integers; their scales live in another tensor.
    ///
    /// # Panics
    /// When the two lengths do not belong together: the caller cuts both from the same plan.
    pub fn decode(self, input: &[u8], output: &mut [f32]) {
        let blocks = input.len() / self.block_bytes() as usize;
        assert_eq!(blocks * self.block_bytes() as usize, input.len(), "whole blocks");
        assert_eq!(
            blocks * self.block_elements() as usize,
            output.len(),
            "a place for each of them"
        );
        match self {
            Self::F32 => {
                for (value, bytes) in output.iter_mut().zip(input.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Self::F16 => decode_halves(input, output),
            Self::Bf16 => {
                for (value, bytes) in output.iter_mut().zip(input.as_chunks::<2>().0) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
            Self::I8 => {
                for (value, byte) in output.iter_mut().zip(input) {
                    *value = f32::from(byte.cast_signed());
                }
            }
            Self::I16 => {
                for (value, bytes) in output.iter_mut().zip(input.as_chunks::<2>().0) {
                    *value = f32::from(i16::from_le_bytes(*bytes));
                }
            }
            Self::Q4_0 => each::<18, 32>(input, output, q4_0),
            Self::Q4_1 => each::<20, 32>(input, output, q4_1),
            Self::Q5_0 => each::<22, 32>(input, output, q5_0),
            Self::Q5_1 => each::<24, 32>(input, output, q5_1),
            Self::Q8_0 => each::<34, 32>(input, output, q8_0),
            Self::Q4K => each::<144, 256>(input, output, q4_k),
            Self::Q5K => each::<176, 256>(input, output, q5_k),
            Self::Q6K => each::<210, 256>(input, output, q6_k),
        }
    }
}

fn each<const BYTES: usize, const ELEMENTS: usize>(
    input: &[u8],
    output: &mut [f32],
    decode: fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let blocks = input.as_chunks::<BYTES>().0;
    for (block, values) in blocks.iter().zip(output.as_chunks_mut::<ELEMENTS>().0.iter_mut()) {
        decode(block, values);
    }
}

fn decode_halves(input: &[u8], output: &mut [f32]) {
    use half::slice::HalfFloatSliceExt;

    let mut halves = [f16::ZERO; 512];
    for (values, bytes) in output.chunks_mut(512).zip(input.chunks(2 * 512)) {
        let halves = &mut halves[..values.len()];
        for (half, pair) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = f16::from_le_bytes(*pair);
        }
        halves.convert_to_f32_slice(values);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn word_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for i in 0..16 {
        let pair = i32::from(block[2 + i]);
        out[i] = scale * ((pair & 15) - 8) as f32;
        out[16 + i] = scale * ((pair >> 4) - 8) as f32;
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    for i in 0..16 {
        let pair = i32::from(block[4 + i]);
        out[i] = scale * (pair & 15) as f32 + minimum;
        out[16 + i] = scale * (pair >> 4) as f32 + minimum;
    }
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    let high = word_at(block, 2).cast_signed();
    for i in 0..16 {
        let pair = i32::from(block[6 + i]);
        let low_bits = (pair & 15) | (((high >> i) & 1) << 4);
        let high_bits = (pair >> 4) | (((high >> (16 + i)) & 1) << 4);
        out[i] = scale * (low_bits - 16) as f32;
        out[16 + i] = scale * (high_bits - 16) as f32;
    }
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let high = word_at(block, 4).cast_signed();
    for i in 0..16 {
        let pair = i32::from(block[8 + i]);
        let low_bits = (pair & 15) | (((high >> i) & 1) << 4);
        let high_bits = (pair >> 4) | (((high >> (16 + i)) & 1) << 4);
        out[i] = scale * low_bits as f32 + minimum;
        out[16 + i] = scale * high_bits as f32 + minimum;
    }
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for i in 0..32 {
        out[i] = f32::from(block[2 + i].cast_signed()) * scale;
    }
}

/// Scale and minimum of each of the eight groups of a `Q4_K` or `Q5_K` block: 6-bit integers in 12 bytes,
/// times the block's own two.
fn group_scales(block: &[u8]) -> [(f32, f32); 8] {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let group = |of_scale: u8, of_minimum: u8| (scale * f32::from(of_scale), minimum * f32::from(of_minimum));
    let packed = &block[4..16];
    let mut groups = [(0.0, 0.0); 8];
    for i in 0..4 {
        let (scales, minima, both) = (packed[i], packed[4 + i], packed[8 + i]);
        groups[i] = group(scales & 0x3f, minima & 0x3f);
        groups[4 + i] = group(
            (both & 0x0f) | ((scales >> 2) & 0x30),
            (both >> 4) | ((minima >> 2) & 0x30),
        );
    }
    groups
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let groups = group_scales(block);
    for pair in 0..4 {
        // Two groups share 32 bytes: the first has the low, the second the high four bits.
        let ((low_scale, low_minimum), (high_scale, high_minimum)) = (groups[2 * pair], groups[2 * pair + 1]);
        for i in 0..32 {
            let bits = i32::from(block[16 + 32 * pair + i]);
            out[64 * pair + i] = low_scale * (bits & 15) as f32 - low_minimum;
            out[64 * pair + 32 + i] = high_scale * (bits >> 4) as f32 - high_minimum;
        }
    }
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let groups = group_scales(block);
    for pair in 0..4 {
        let ((low_scale, low_minimum), (high_scale, high_minimum)) = (groups[2 * pair], groups[2 * pair + 1]);
        for i in 0..32 {
            let bits = i32::from(block[48 + 32 * pair + i]);
            let fifth = i32::from(block[16 + i]) >> (2 * pair);
            let low = (bits & 15) | ((fifth & 1) << 4);
            let high = (bits >> 4) | ((fifth & 2) << 3);
            out[64 * pair + i] = low_scale * low as f32 - low_minimum;
            out[64 * pair + 32 + i] = high_scale * high as f32 - high_minimum;
        }
    }
}

fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let scale = half_at(block, 208);
    let mut scales = [0.0; 16];
    for i in 0..16 {
        scales[i] = scale * f32::from(block[192 + i].cast_signed());
    }
    for half in 0..2 {
        // 128 values: 64 bytes of low four bits, 32 bytes of high two bits, in four runs of 32.
        let (low, high) = (64 * half, 128 + 32 * half);
        for i in 0..32 {
            let (first, second) = (i32::from(block[low + i]), i32::from(block[low + 32 + i]));
            let top = i32::from(block[high + i]);
            let group = 8 * half + i / 16;
            let at = 128 * half + i;
            out[at] = scales[group] * (((first & 15) | ((top & 3) << 4)) - 32) as f32;
            out[at + 32] = scales[group + 2] * (((second & 15) | (((top >> 2) & 3) << 4)) - 32) as f32;
            out[at + 64] = scales[group + 4] * (((first >> 4) | (((top >> 4) & 3) << 4)) - 32) as f32;
            out[at + 96] = scales[group + 6] * (((second >> 4) | (((top >> 6) & 3) << 4)) - 32) as f32;
        }
    }
}

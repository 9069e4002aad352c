//! The number format of an imported checkpoint.

use std::fmt;
use std::str::FromStr;

/// In which number format an imported checkpoint stores its weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FloatFormat {
    /// Half precision: 10 bits of fraction, up to 65504. Holds every dequantised weight met so far.
    #[default]
    F16,
    /// The upper half of a single: 7 bits of fraction, the range of `f32`.
    Bf16,
    /// Single precision: twice the size, nothing lost.
    F32,
}

impl FloatFormat {
    /// As users write it: `f16`, `bf16`, `f32`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }

    /// As `config.json` writes it.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::F32 => "float32",
        }
    }

    /// As a safetensors header writes it.
    pub(crate) fn safetensors_name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F32 => "F32",
        }
    }

    /// Bytes per number.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// The largest finite number it holds.
    pub fn largest(self) -> f32 {
        match self {
            Self::F16 => 65504.0,
            Self::Bf16 => half::bf16::MAX.to_f32(),
            Self::F32 => f32::MAX,
        }
    }

    /// From this magnitude on, rounding would give infinity.
    pub(crate) fn overflow(self) -> f32 {
        match self {
            Self::F16 => 65520.0,                      // 65504 and half a step of 32
            Self::Bf16 => f32::from_bits(0x7f7f_8000), // the largest, 0x7f7f, and half a step
            Self::F32 => f32::INFINITY,
        }
    }
}

impl fmt::Display for FloatFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for FloatFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f16" | "float16" => Ok(Self::F16),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f32" | "float32" => Ok(Self::F32),
            other => Err(format!(
                "`{other}` is not a number format; expected f16, bf16 or f32"
            )),
        }
    }
}

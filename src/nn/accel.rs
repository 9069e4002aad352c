//! Device and precision: what this machine offers, and which of it a model shall use.
//!
//! The program is linked to the CPU half of libtorch alone, and one binary serves all machines: the CUDA half
//! is opened at run time where it lies beside the CPU half ([`load_cuda`]). Devices and kinds come from
//! [`Placement::resolve`] and from nowhere else, because torch keeps the first answer it finds when it looks
//! for CUDA.

mod cuda;
mod memory;
mod threads;

pub use cuda::{CudaState, load_cuda};
pub use memory::keep_freed_memory;
pub use threads::{configure_threads, ensure_passive_openmp, threads};

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

/// Which device a person asks for: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first CUDA device if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU, even where there is a GPU.
    Cpu,
    /// This CUDA device, or an error.
    Cuda(usize),
}

/// Which precision a person asks for: `auto`, `f32`, `bf16` or `int8`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PrecisionChoice {
    /// bf16 where the hardware multiplies it fast, else f32.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16 weights and activations.
    Bf16,
    /// The language model's weights in 8-bit integers, everything else as `auto`. For the CPU.
    Int8,
}

/// Number format of frozen weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// Weights of the language model in 8-bit integers; activations, and the other networks, in bf16 where
    /// the CPU multiplies it, else in f32.
    Int8,
}

/// Where a model computes, in which format, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// The device.
    pub device: Device,
    /// The number format.
    pub precision: Precision,
    /// That of networks which multiply many rows at a time, and hardly ever few.
    pub many_rows: Precision,
    /// Why, for logs and for `doctor`.
    pub reason: String,
}

/// A device or precision that cannot be had, or that is misspelt.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AccelError {
    /// Not a device.
    #[error("device `{0}` is unknown; use `auto`, `cpu` or `cuda:N`")]
    UnknownDevice(String),
    /// Not a precision.
    #[error("precision `{0}` is unknown; use `auto`, `f32`, `bf16` or `int8`")]
    UnknownPrecision(String),
    /// A CUDA device that is not there.
    #[error("device `cuda:{asked}` is not available: {found}; use `auto` or `cpu`")]
    NoSuchDevice {
        /// Its number.
        asked: usize,
        /// What there is instead.
        found: CudaState,
    },
}

impl Placement {
    /// Turns choices into a device and a dtype. Loads CUDA unless the CPU is asked for.
    ///
    /// # Errors
    /// [`AccelError::NoSuchDevice`] when a CUDA device is asked for by number and is not there.
    pub fn resolve(device: DeviceChoice, precision: PrecisionChoice) -> Result<Self, AccelError> {
        let (device, why_device) = match device {
            DeviceChoice::Cpu => (Device::Cpu, "cpu as configured".to_owned()),
            DeviceChoice::Auto => match load_cuda() {
                state @ CudaState::Devices(_) => (Device::Cuda(0), state.to_string()),
                state => (Device::Cpu, state.to_string()),
            },
            DeviceChoice::Cuda(asked) => match load_cuda() {
                CudaState::Devices(count) if asked < *count => {
                    (Device::Cuda(asked), format!("cuda:{asked} as configured"))
                }
                found => {
                    return Err(AccelError::NoSuchDevice {
                        asked,
                        found: found.clone(),
                    });
                }
            },
        };
        let is_chosen = matches!(precision, PrecisionChoice::F32 | PrecisionChoice::Bf16);
        let (precision, mut why_precision) = match (precision, device) {
            (PrecisionChoice::F32, _) => (Precision::F32, "f32 as configured".to_owned()),
            (PrecisionChoice::Bf16, Device::Cpu) if !cpu_multiplies_bf16() => (
                Precision::Bf16,
                "bf16 as configured, though this CPU has no avx512_bf16 and f32 is faster".to_owned(),
            ),
            (PrecisionChoice::Bf16, _) => (Precision::Bf16, "bf16 as configured".to_owned()),
            (PrecisionChoice::Auto, Device::Cpu) if cpu_multiplies_bf16() => (
                Precision::Bf16,
                "bf16 because this CPU has avx512_bf16".to_owned(),
            ),
            (PrecisionChoice::Auto, Device::Cpu) => (
                Precision::F32,
                "f32 because this CPU has no avx512_bf16".to_owned(),
            ),
            (PrecisionChoice::Auto, _) => (Precision::Bf16, "bf16 because the device is a GPU".to_owned()),
            (PrecisionChoice::Int8, Device::Cpu) => (Precision::Int8, "int8 as configured".to_owned()),
            (PrecisionChoice::Int8, _) => (
                Precision::Bf16,
                "bf16, though int8 is configured: that is for the CPU".to_owned(),
            ),
        };
        let mut many_rows = precision;
        if !is_chosen && many_rows_kind(Kind::BFloat16, device) == Kind::Float {
            many_rows = Precision::F32;
            why_precision +=
                ", and f32 for speech encoder and training, where it multiplies many rows faster so";
        }
        Ok(Self {
            device,
            precision,
            many_rows,
            reason: format!("{why_device}; {why_precision}"),
        })
    }

    /// The reference placement: CPU, f32.
    pub fn reference() -> Self {
        Self {
            device: Device::Cpu,
            precision: Precision::F32,
            many_rows: Precision::F32,
            reason: "cpu, f32: the reference".to_owned(),
        }
    }

    /// The placement of networks that hardly ever multiply few rows: speech encoders, and all in training.
    pub fn of_many_rows(&self) -> Self {
        Self {
            precision: self.many_rows,
            ..self.clone()
        }
    }

    /// The dtype of activations, and of weights that are not in 8-bit integers.
    pub fn kind(&self) -> Kind {
        match self.precision {
            Precision::F32 => Kind::Float,
            Precision::Int8 if !cpu_multiplies_bf16() => Kind::Float,
            Precision::Bf16 | Precision::Int8 => Kind::BFloat16,
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.device {
            Device::Cuda(index) => write!(f, "cuda:{index} ")?,
            _ => write!(f, "cpu ")?,
        }
        write!(f, "{} ({})", self.precision, self.reason)
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

/// Whether this CPU has instructions that multiply bf16. Without them bf16 is two to four times slower than
/// f32.
pub fn cpu_multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::is_x86_feature_detected!("avx512bf16") && std::is_x86_feature_detected!("avx512bw")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// The dtype in which products of many rows are fastest on a device, for values that are kept in `kind`: that
/// one, or f32 in the place of bf16.
pub fn many_rows_kind(kind: Kind, device: Device) -> Kind {
    let is_slow = device == Device::Cpu && cpu_multiplies_bf16() && !multiplies_many_rows_in_bf16();
    match kind {
        Kind::BFloat16 if is_slow => Kind::Float,
        kind => kind,
    }
}

/// Whether this CPU multiplies many rows faster in bf16 than in f32, where it multiplies bf16 at all.
///
/// Intel's processors make one product of bf16 pairs where they make two fused products of f32, so the sums
/// take as long, and what libtorch does around them takes longer: 170 and 300 GFLOP/s for 700 rows (2 cores
/// of a Xeon of model 207 whose AMX is hidden from its guests; oneDNN, MKL). With AMX bf16 is the faster one.
fn multiplies_many_rows_in_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        const AMX_BF16: u32 = 1 << 22; // edx of leaf 7
        let (vendor, features) = (__cpuid(0), __cpuid_count(7, 0));
        let is_intel =
            [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes) == [*b"Genu", *b"ineI", *b"ntel"];
        !is_intel || features.edx & AMX_BF16 != 0
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        true
    }
}

/// Whether operations of the calling thread are recorded for gradients.
///
/// Networks take short cuts where they are not. What decides is this, not whether a tensor carries a
/// gradient: so that a pass with a low-rank adapter under training takes the same way, bit for bit, as one
/// without.
pub fn records_gradients() -> bool {
    // SAFETY: both calls set a flag of this thread and return what it was.
    unsafe {
        let before = torch_sys::at_grad_set_enabled(0);
        torch_sys::at_grad_set_enabled(before);
        before != 0
    }
}

/// Whether this CPU has the 512-bit registers, with the instructions that libtorch, oneDNN and our own
/// kernels ask for before they use them.
pub fn cpu_has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512dq")
            && std::is_x86_feature_detected!("avx512vl")
            && std::is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// The vector instructions that decide speed here, such as `AVX512 (bf16, vnni)`: print it beside every
/// benchmark, for a ratio holds only on one kind of machine.
pub fn cpu_capability() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let level = if cpu_has_avx512() {
            "AVX512"
        } else if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            "AVX2"
        } else {
            "no AVX2"
        };
        let extras: Vec<&str> = [
            ("bf16", std::is_x86_feature_detected!("avx512bf16")),
            ("vnni", std::is_x86_feature_detected!("avx512vnni")),
        ]
        .into_iter()
        .filter_map(|(name, present)| present.then_some(name))
        .collect();
        if extras.is_empty() {
            level.to_owned()
        } else {
            format!("{level} ({})", extras.join(", "))
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        std::env::consts::ARCH.to_owned()
    }
}

impl FromStr for DeviceChoice {
    type Err = AccelError;

    fn from_str(text: &str) -> Result<Self, AccelError> {
        let unknown = || AccelError::UnknownDevice(text.to_owned());
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                let digits_only = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
                let index = digits_only.then(|| index.parse().ok()).flatten();
                index.map(Self::Cuda).ok_or_else(unknown)
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for PrecisionChoice {
    type Err = AccelError;

    fn from_str(text: &str) -> Result<Self, AccelError> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            _ => Err(AccelError::UnknownPrecision(text.to_owned())),
        }
    }
}

impl fmt::Display for PrecisionChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = AccelError;

    fn try_from(text: String) -> Result<Self, AccelError> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

impl TryFrom<String> for PrecisionChoice {
    type Error = AccelError;

    fn try_from(text: String) -> Result<Self, AccelError> {
        text.parse()
    }
}

impl From<PrecisionChoice> for String {
    fn from(choice: PrecisionChoice) -> Self {
        choice.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_survive_being_written_and_read() {
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(3)] {
            let text = serde_json::to_string(&choice).unwrap();
            assert_eq!(serde_json::from_str::<DeviceChoice>(&text).unwrap(), choice);
        }
        for choice in [
            PrecisionChoice::Auto,
            PrecisionChoice::F32,
            PrecisionChoice::Bf16,
            PrecisionChoice::Int8,
        ] {
            let text = serde_json::to_string(&choice).unwrap();
            assert_eq!(serde_json::from_str::<PrecisionChoice>(&text).unwrap(), choice);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
    }

    #[test]
    fn misspelt_choices_say_what_is_allowed() {
        for text in [
            "",
            "gpu",
            "cuda:",
            "cuda:x",
            "cuda:-1",
            "cuda:+1",
            "cuda:99999999999999999999",
            "CPU",
        ] {
            let message = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(message.contains("cuda:N"), "{message}");
        }
        for text in ["", "f16", "fp32", "BF16"] {
            let message = text.parse::<PrecisionChoice>().unwrap_err().to_string();
            assert!(message.contains("bf16"), "{message}");
        }
    }

    #[test]
    fn auto_precision_on_the_cpu_follows_its_instructions_and_says_why() {
        let placement = Placement::resolve(DeviceChoice::Cpu, PrecisionChoice::Auto).unwrap();

        let expected = if cpu_multiplies_bf16() {
            Precision::Bf16
        } else {
            Precision::F32
        };
        assert_eq!(placement.precision, expected);
        let of_many_rows = many_rows_kind(placement.kind(), placement.device);
        assert_eq!(placement.of_many_rows().kind(), of_many_rows);
        assert_eq!(placement.device, Device::Cpu);
        assert!(placement.reason.contains("avx512_bf16"), "{placement}");
    }

    #[test]
    fn a_cuda_device_that_is_not_there_is_an_error_with_the_reason() {
        let error = Placement::resolve(DeviceChoice::Cuda(4096), PrecisionChoice::Auto).unwrap_err();

        assert!(
            error
                .to_string()
                .starts_with("device `cuda:4096` is not available: "),
            "{error}"
        );
    }

    #[test]
    fn what_is_configured_is_what_is_used() {
        let placement = Placement::resolve(DeviceChoice::Cpu, PrecisionChoice::Bf16).unwrap();
        assert_eq!(
            (placement.device, placement.kind()),
            (Device::Cpu, Kind::BFloat16)
        );
        assert_eq!(placement.of_many_rows(), placement);

        let placement = Placement::resolve(DeviceChoice::Cpu, PrecisionChoice::F32).unwrap();
        assert_eq!((placement.device, placement.kind()), (Device::Cpu, Kind::Float));
    }
}

//! Building blocks on tch: device and precision, attention, norms, rotary positions, KV cache, LoRA,
//! optimiser.

pub mod accel;
pub mod attention;
pub mod conv;
pub mod cpu_kernels;
mod error;
pub mod feed_forward;
pub mod kv_cache;
pub mod linear;
pub mod linear_weight;
pub mod lora;
pub mod norm;
pub mod optimizer;
pub mod packed;
pub mod projections;
pub mod relative_bias;
pub mod rms_norm;
pub mod rotary;

pub use accel::{DeviceChoice, Placement, Precision, PrecisionChoice};
pub use error::NnError;

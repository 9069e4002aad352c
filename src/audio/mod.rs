//! Sound before tensors: decoding, resampling, validation.

pub mod log_mel;

//! Sound before tensors: decoding, resampling, validation.

//! Building blocks on tch: device and precision, attention, norms, rotary positions, KV cache, LoRA, optimiser.

pub mod optimizer;

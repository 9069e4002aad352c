//! Low-rank adapters on named projections.

/// Low-rank adapters on named projections.
#[derive(Debug)]
pub struct LoraSet;

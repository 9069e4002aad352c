//! Keys and values of past positions, per layer and slot.

/// Keys and values of past positions.
#[derive(Debug)]
pub struct KvCache;

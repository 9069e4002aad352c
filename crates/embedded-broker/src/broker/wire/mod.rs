//! The edge to the network: which requests exist, whether bytes are one of them, frames in and out.
//!
//! Everything here is fed by strangers. The codec crate allocates whatever length an array claims to have, so
//! [`shape`] walks each request first and only what fits its own bytes is decoded.

pub(super) mod apis;
pub(super) mod frame;
pub(super) mod refusal;
pub(super) mod shape;
#[cfg(test)]
mod tests;
